"""Numbers that change during training."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, TypeAlias

from bitpare.steps import check_steps, span_at

Scheduled: TypeAlias = float | Callable[[int], float]


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A number that changes from ``start`` to ``end`` during training.

    Args:
        start: the number before the change.
        end: the number after it.
        steps: the length of the run, in applied optimizer steps.
        when: (begin, end) of the change; a float is a fraction of the run, an int an applied step.
        shape: "linear" or "cosine".

    >>> alpha = Ramp(0.0, 1.0, steps=100)
    >>> alpha(0), alpha(50), alpha(1000)
    (0.0, 0.5, 1.0)
    """

    start: float
    end: float
    steps: int
    when: tuple[float, float] = (0.0, 1.0)
    shape: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        first, last = self.span()
        if last <= first:
            raise ValueError(f"Ramp: when must be (begin, end) with begin < end, got {self.when}")
        if self.shape not in ("linear", "cosine"):
            raise ValueError(f"Ramp: shape must be linear or cosine, got {self.shape!r}")

    def span(self) -> tuple[int, int]:
        """Return the first and the last step of the change."""
        begin, end = span_at("Ramp", self.when, check_steps("Ramp", self.steps))
        return begin, end

    def __call__(self, step: int) -> float:
        first, last = self.span()
        share = min(max((step - first) / (last - first), 0.0), 1.0)
        if self.shape == "cosine":
            share = 0.5 - 0.5 * math.cos(math.pi * share)
        return self.start + (self.end - self.start) * share


def value_at(number: Scheduled, step: int) -> float:
    return float(number(step)) if callable(number) else float(number)


def is_scheduled(owner: object) -> bool:
    """Return whether one of the object's numbers is a function of the step."""
    held = [v for v in vars(owner).values() if not isinstance(v, type)]
    return any(callable(v) or (isinstance(v, list) and any(map(callable, v))) for v in held)
