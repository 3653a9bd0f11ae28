"""Budget: the limits of what a smaller model may cost."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits of what a smaller model may cost.

    Args:
        macs: the multiply-accumulates of one call with the example inputs.
        parameters: the number of parameters.
        bytes: the size of the parameters and buffers in bytes.
        latency_ms: the milliseconds of one call; always absolute.

    A float in (0, 1] is a share of the original model; an int is absolute. All limits must
    hold.

    >>> Budget(macs=0.5, parameters=100_000)
    Budget(macs=0.5, parameters=100000)
    """

    macs: float | int | None = None
    parameters: float | int | None = None
    bytes: float | int | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        given = self.given()
        if not given:
            raise ValueError("Budget: give macs=, parameters=, bytes= or latency_ms=")
        for name, value in given.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name == "latency_ms":
                fine, wanted = number, "milliseconds above 0"
            else:
                fine = number and (isinstance(value, int) or value <= 1)
                wanted = "a share (a float in (0, 1]) or an absolute number (an int)"
            if not fine or not value > 0:
                raise ValueError(f"Budget: {name} must be {wanted}, got {value!r}")

    def given(self) -> dict[str, float]:
        """Return the limits that were set, by name."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def fits(self, before: Mapping[str, float], after: Mapping[str, float]) -> bool:
        """Return whether the costs ``after`` are within the budget. ``before``: the costs of the
        original model."""

        def limit(name: str, value: float) -> float:
            share = isinstance(value, float) and name != "latency_ms"
            return value * before[name] if share else value

        return all(after[name] <= limit(name, value) for name, value in self.given().items())

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{name}={value!r}' for name, value in self.given().items())})"


def least_that_fits(
    make: Callable[[float], Made], fits: Callable[[Made], bool], most: float, rounds: int
) -> Made | None:
    """Return make(x) for the smallest x in (0, most] that fits, found by bisection, or None."""
    low, high = 0.0, most
    best = make(high)
    if not fits(best):
        return None
    for _ in range(rounds):
        middle = (low + high) / 2
        tried = make(middle)
        if fits(tried):
            high, best = middle, tried
        else:
            low = middle
    return best
