"""Numbers that change as training goes on."""

import dataclasses
import math
from collections.abc import Callable
from typing import TypeAlias

Scheduled: TypeAlias = float | Callable[[int], float]


@dataclasses.dataclass(frozen=True)
class Ramp:
    """From ``start`` at step ``begin`` to ``end`` after ``steps`` more; shape: "linear", "cosine".

    >>> alpha = Ramp(0.0, 1.0, steps=100)
    >>> alpha(0), alpha(50), alpha(1000)
    (0.0, 0.5, 1.0)
    """

    start: float
    end: float
    steps: int
    begin: int = 0
    shape: str = "linear"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.begin < 0:
            raise ValueError(f"Ramp: steps must be 1 or more, got {self.steps}")
        if self.shape not in ("linear", "cosine"):
            raise ValueError(f"Ramp: shape must be linear or cosine, got {self.shape!r}")

    def __call__(self, step: int) -> float:
        share = min(max((step - self.begin) / self.steps, 0.0), 1.0)
        if self.shape == "cosine":
            share = 0.5 - 0.5 * math.cos(math.pi * share)
        return self.start + (self.end - self.start) * share


def value_at(number: Scheduled, step: int) -> float:
    return float(number(step)) if callable(number) else float(number)


def is_scheduled(owner: object) -> bool:
    """Return whether one of its numbers is a function of the step."""
    held = [v for v in vars(owner).values() if not isinstance(v, type)]
    return any(callable(v) or (isinstance(v, list) and any(map(callable, v))) for v in held)
