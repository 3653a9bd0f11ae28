"""Define how much is pruned after how many steps."""

import bisect
import dataclasses
from collections.abc import Callable, Mapping

from bitpare.steps import check_steps, step_at


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A list of pruning events.

    events: (step, sparsity) in ascending order; the sparsity holds from that step on. rewind: None,
    or a step whose weights are restored, with the new mask, at every later event.

    >>> print(Schedule.cubic(sparsity=0.8, begin=0, end=100, every=50))
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
        """Return the sparsity after this many steps."""
        index = bisect.bisect_right([when for when, _ in self.events], step)
        return self.events[index - 1][1] if index else 0.0

    @property
    def sparsity(self) -> float:
        """Return the final sparsity."""
        return self.events[-1][1]

    @property
    def last(self) -> int:
        """Return the step of the last event."""
        return self.events[-1][0]

    def __str__(self) -> str:
        events = [f"step {step}: {100 * sparsity:.1f} %" for step, sparsity in self.events]
        if len(events) > 6:
            events = [*events[:3], "...", events[-1]]
        text = ", ".join(events)
        return text if self.rewind is None else f"{text}; weights rewound to step {self.rewind}"

    @staticmethod
    def one_shot(sparsity: float, *, at: float = 0, steps: int | None = None) -> "Schedule":
        """Return a schedule with a single pruning. ``at`` is a fraction of the run or an applied
        step."""
        return Schedule(((_step_at("at", at, steps), sparsity),))

    @staticmethod
    def levels(levels: Mapping[float, float], *, steps: int | None = None) -> "Schedule":
        """Return a schedule of several levels, given as {when: sparsity}, with training between
        them."""
        return Schedule(
            tuple(sorted((_step_at("levels", at, steps), s) for at, s in levels.items()))
        )

    @staticmethod
    def linear(
        sparsity: float,
        *,
        begin: float = 0,
        end: float,
        every: float = 1,
        initial: float = 0.0,
        steps: int | None = None,
    ) -> "Schedule":
        """Return a schedule that prunes the same number of weights at each event.

        The arguments are those of `cubic`."""

        def at(t: float) -> float:
            return initial + (sparsity - initial) * t

        return _ramp(sparsity, begin, end, every, initial, steps, at)

    @staticmethod
    def cubic(
        sparsity: float,
        *,
        begin: float = 0,
        end: float,
        every: float = 1,
        initial: float = 0.0,
        steps: int | None = None,
    ) -> "Schedule":
        """Return a schedule that prunes fast at first and slowly towards the end (Zhu and Gupta
        2017, eq. 1).

        Args:
            sparsity: the share of the weights that is pruned at ``end``, in [0, 1).
            begin: the first event; a float is a fraction of the run, an int an applied step.
            end: the last event, as ``begin``.
            every: the time from one event to the next.
            initial: the sparsity at ``begin``.
            steps: the length of the run in applied steps; fractions need it.
        """

        def at(t: float) -> float:
            return sparsity + (initial - sparsity) * (1 - t) ** 3

        return _ramp(sparsity, begin, end, every, initial, steps, at)

    @staticmethod
    def exponential(
        sparsity: float,
        *,
        begin: float = 0,
        end: float,
        every: float = 1,
        initial: float = 0.0,
        steps: int | None = None,
    ) -> "Schedule":
        """Return a schedule that prunes the same share of the remaining weights at each event.

        The arguments are those of `cubic`."""

        def at(t: float) -> float:
            return 1 - (1 - initial) * ((1 - sparsity) / (1 - initial)) ** t

        return _ramp(sparsity, begin, end, every, initial, steps, at)

    @staticmethod
    def iterative(
        sparsity: float,
        *,
        rounds: int,
        every: float,
        begin: float = 0,
        rewind: float | None = None,
        steps: int | None = None,
    ) -> "Schedule":
        """Return a schedule of rounds that each prune the same share of the remaining weights.

        Args:
            sparsity: the share of the weights that is pruned after the last round, in [0, 1).
            rounds: the number of rounds.
            every: the time between rounds; a float is a fraction of the run, an int applied steps.
            begin: the start; the first round comes at ``begin + every``.
            rewind: the time whose weights are restored at each round (Frankle and Carbin 2019);
                None restores none.
            steps: the length of the run in applied steps; fractions need it.
        """
        between = _step_at("every", every, steps)
        if rounds < 1 or between < 1:
            raise ValueError(f"Schedule: rounds and every must be 1 or more, got {rounds}, {every}")
        _check_sparsity("sparsity", sparsity)
        first = _step_at("begin", begin, steps)
        back = None if rewind is None else _step_at("rewind", rewind, steps)
        levels = [1 - (1 - sparsity) ** (k / rounds) for k in range(1, rounds)] + [sparsity]
        return Schedule(
            tuple((first + between * (k + 1), level) for k, level in enumerate(levels)), back
        )


def _check_sparsity(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"Schedule: {name} must be in [0, 1), got {value}")


def _step_at(name: str, when: float, steps: int | None) -> int:
    length = None if steps is None else check_steps("Schedule", steps)
    return step_at("Schedule", name, when, length)


def _ramp(
    sparsity: float,
    begin: float,
    end: float,
    every: float,
    initial: float,
    steps: int | None,
    rule: Callable[[float], float],
) -> Schedule:
    _check_sparsity("sparsity", sparsity)
    _check_sparsity("initial", initial)
    first, last = _step_at("begin", begin, steps), _step_at("end", end, steps)
    between = _step_at("every", every, steps)
    if last <= first or between < 1:
        raise ValueError(
            f"Schedule: begin must be before end and every 1 or more, got steps {first}, {last}, "
            f"{between}"
        )
    times = range(first, last, between)
    events = [(step, rule((step - first) / (last - first))) for step in times]
    return Schedule((*(event for event in events if event[1] > 0), (last, sparsity)))
