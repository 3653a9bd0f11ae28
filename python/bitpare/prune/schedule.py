"""Schedule: how much is pruned after how many steps."""

import bisect
import dataclasses
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True)
class Schedule:
    """``events``: (step, sparsity) in ascending order; the sparsity holds from that step on.

    rewind: None, or the step whose weights come back, behind the new mask, at every later event.

    >>> print(Schedule.cubic(final=0.8, begin=0, end=100, every=50))
    step 50: 70.0 %, step 100: 80.0 %
    """

    events: tuple[tuple[int, float], ...]
    rewind: int | None = None

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.events]
        if not self.events:
            raise ValueError("Schedule: give at least one step")
        if steps != sorted(set(steps)) or steps[0] < 0 or any(s != int(s) for s in steps):
            raise ValueError(f"Schedule: steps must be 0 or more and ascending, got {steps}")
        for _, sparsity in self.events:
            _check_sparsity("sparsity", sparsity)
        if self.rewind is not None and not 0 <= self.rewind <= steps[0]:
            raise ValueError(
                f"Schedule: rewind must be a step up to the first pruning at {steps[0]}, got "
                f"{self.rewind}"
            )

    def sparsity_at(self, step: int) -> float:
        """Return the sparsity after so many steps."""
        index = bisect.bisect_right([when for when, _ in self.events], step)
        return self.events[index - 1][1] if index else 0.0

    @property
    def final(self) -> float:
        """The sparsity that is reached at last."""
        return self.events[-1][1]

    @property
    def last(self) -> int:
        """The step of the last event."""
        return self.events[-1][0]

    def __str__(self) -> str:
        shown = [f"step {step}: {100 * sparsity:.1f} %" for step, sparsity in self.events]
        if len(shown) > 6:
            shown = [*shown[:3], "...", shown[-1]]
        text = ", ".join(shown)
        return text if self.rewind is None else f"{text}; weights rewound to step {self.rewind}"

    @staticmethod
    def one_shot(final: float, *, at: int = 0) -> "Schedule":
        """All at once."""
        return Schedule(((at, final),))

    @staticmethod
    def levels(levels: Mapping[int, float]) -> "Schedule":
        """{step: sparsity}: several levels, with training between them."""
        return Schedule(tuple(sorted(levels.items())))

    @staticmethod
    def linear(
        final: float, *, begin: int = 0, end: int, every: int = 1, initial: float = 0.0
    ) -> "Schedule":
        """The same share at each step."""
        return _ramp(final, begin, end, every, initial, lambda t: initial + (final - initial) * t)

    @staticmethod
    def cubic(
        final: float, *, begin: int = 0, end: int, every: int = 1, initial: float = 0.0
    ) -> "Schedule":
        """Fast at first, slow towards the end (Zhu and Gupta 2017, eq. 1)."""
        return _ramp(
            final, begin, end, every, initial, lambda t: final + (initial - final) * (1 - t) ** 3
        )

    @staticmethod
    def exponential(
        final: float, *, begin: int = 0, end: int, every: int = 1, initial: float = 0.0
    ) -> "Schedule":
        """The same share of what is left at each step."""

        def sparsity(t: float) -> float:
            return 1 - (1 - initial) * ((1 - final) / (1 - initial)) ** t

        return _ramp(final, begin, end, every, initial, sparsity)

    @staticmethod
    def iterative(
        final: float, *, rounds: int, every: int, begin: int = 0, rewind: int | None = None
    ) -> "Schedule":
        """``rounds`` times the same share of what is left, ``every`` steps apart, the first time
        after ``begin + every`` steps. rewind: the step whose weights come back each time (Frankle
        and Carbin 2019)."""
        if rounds < 1 or every < 1:
            raise ValueError(f"Schedule: rounds and every must be 1 or more, got {rounds}, {every}")
        _check_sparsity("final", final)
        ratios = [1 - (1 - final) ** (k / rounds) for k in range(1, rounds)] + [final]
        events = tuple((begin + every * (k + 1), ratio) for k, ratio in enumerate(ratios))
        return Schedule(events, rewind)


def _check_sparsity(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"Schedule: {name} must be in [0, 1), got {value}")


def _ramp(
    final: float, begin: int, end: int, every: int, initial: float, rule: Callable[[float], float]
) -> Schedule:
    _check_sparsity("final", final)
    _check_sparsity("initial", initial)
    if begin < 0 or end <= begin or every < 1:
        raise ValueError(
            f"Schedule: needs 0 <= begin < end and every of 1 or more, got {begin}, {end}, {every}"
        )
    steps = [*range(begin, end, every), end]
    events = [(step, rule((step - begin) / (end - begin))) for step in steps[:-1]]
    events = [(step, sparsity) for step, sparsity in events if sparsity > 0]
    return Schedule((*events, (end, final)))
