"""Counting the optimizer steps that were applied."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def found_inf_of(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Above 0 where a GradScaler had a fused optimizer leave its step out; on the device."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf if isinstance(found_inf, Tensor) else None


def check_owned(optimizer: torch.optim.Optimizer, model: nn.Module, caller: str) -> None:
    """Raise ValueError unless the optimizer holds a parameter of the model."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in model.parameters()):
        raise ValueError(
            f"{caller}.attach: the optimizer holds no parameter of the model, so its steps would "
            "say nothing about it; attach the one that trains the model, or call step() after each "
            "applied step"
        )


class StepCounter:
    """Calls ``apply(step)`` when the number of applied steps passes one of ``events``, and
    ``each(found_inf)`` after every step.

    With a fused optimizer under GradScaler the step hook also runs where the step is skipped; the
    optimizer then holds ``found_inf``, on the device. So the count lies on the device too, and is
    read only where an event may be due: after as many hooks as are missing to it.
    """

    def __init__(
        self,
        events: list[int],
        apply: Callable[[int], None],
        each: Callable[[Tensor | None], None] | None = None,
    ) -> None:
        self.events, self.apply, self.each = events, apply, each
        self._known = 0  # a count that was read
        self._hooks = 0  # hooks since then, each of which may count
        self._skipped: Tensor | None = None  # of those, on the device

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.register_step_post_hook(self.after_step)

    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The hook that counts."""
        found_inf = found_inf_of(optimizer)
        if found_inf is not None:
            skipped = (found_inf > 0).to(torch.int64).reshape(())
            self._skipped = skipped if self._skipped is None else self._skipped + skipped
        self.step(found_inf)

    def step(self, found_inf: Tensor | None = None) -> None:
        if self.each is not None:
            self.each(found_inf)
        self._hooks += 1
        due = self._next()
        if due is not None and self._known + self._hooks >= due:
            self._read()
            while (due := self._next(self._applied)) is not None and self._known >= due:
                self._applied = due
                self.apply(self._known)

    _applied = 0

    def _next(self, after: int | None = None) -> int | None:
        after = self._applied if after is None else after
        return next((event for event in self.events if event > after), None)

    def _read(self) -> None:
        skipped = 0 if self._skipped is None else int(self._skipped)
        self._known += self._hooks - skipped
        self._hooks, self._skipped = 0, None

    def span(self) -> tuple[int, int]:
        """The next step to be applied is after the first and at most the second: of those since the
        count was read, some may have been skipped."""
        return self._known, self._known + self._hooks + 1

    def count(self) -> int:
        self._read()
        return self._known

    def reset(self, step: int) -> None:
        self._known, self._hooks, self._skipped = step, 0, None
        self._applied = max((event for event in self.events if event <= step), default=0)
