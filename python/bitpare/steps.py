"""Count the applied optimizer steps."""

import numbers
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


def check_steps(caller: str, steps: Any) -> int:
    """Return the length of a run in applied steps, or raise ValueError."""
    whole = isinstance(steps, numbers.Integral) and not isinstance(steps, bool)
    if not whole or int(steps) < 1:
        raise ValueError(f"{caller}: steps must be an int of 1 or more, got {steps!r}")
    return int(steps)


def step_at(caller: str, name: str, when: Any, steps: int | None) -> int:
    """Return a point in time as an applied step.

    Args:
        caller: the function that errors name.
        name: the argument that errors name.
        when: a float in [0, 1], a fraction of the run; or an int of 0 or more, a step.
        steps: the length of the run. A fraction needs it, and a step must not exceed it.
    """
    if isinstance(when, numbers.Integral) and not isinstance(when, bool):
        when = int(when)
        if when < 0:
            raise ValueError(f"{caller}: {name} must be 0 or more, got {when}")
        if steps is not None and when > steps:
            raise ValueError(f"{caller}: {name} is step {when}, but the run has steps={steps}")
        return when
    real = isinstance(when, numbers.Real) and not isinstance(when, bool)
    if not real or not 0 <= float(when) <= 1:
        raise ValueError(
            f"{caller}: {name} must be a fraction of the run (a float from 0 to 1) or a step (an "
            f"int), got {when!r}"
        )
    if steps is None:
        raise ValueError(
            f"{caller}: {name}={when} is a fraction of the run, so its length is needed: give "
            "steps=, or a step as an int"
        )
    return round(float(when) * steps)


def span_at(caller: str, when: Any, steps: int | None) -> tuple[int, int]:
    """Return a span of time (begin, end) as applied steps; see `step_at`."""
    if not isinstance(when, tuple | list) or len(when) != 2:
        raise ValueError(f"{caller}: when must be (begin, end), got {when!r}")
    begin, end = (step_at(caller, "when", at, steps) for at in when)
    if end < begin:
        raise ValueError(f"{caller}: when must be (begin, end) in this order, got {when!r}")
    return begin, end


class Hooks:
    """Hooks that are removed together. A copy of an object that has hooks has none."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def add(self, *handles: Any) -> None:
        """Add what registering a hook returned."""
        self._handles += handles

    def remove(self) -> None:
        """Remove all hooks."""
        while self._handles:
            self._handles.pop().remove()

    def __reduce__(self) -> tuple[Any, ...]:
        return Hooks, ()


def found_inf_of(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Return a device tensor that is above 0 if a GradScaler made a fused optimizer skip its
    step."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf if isinstance(found_inf, Tensor) else None


def check_owned(optimizer: torch.optim.Optimizer, model: nn.Module, caller: str) -> None:
    """Raise ValueError unless the optimizer holds a parameter of the model."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in model.parameters()):
        raise ValueError(
            f"{caller}.attach: the optimizer holds no parameter of the model, so its steps do not "
            "count; attach the optimizer that trains the model, or call step() after each applied "
            "step"
        )


class StepCounter:
    """Calls ``apply(step)`` when the number of applied steps reaches one of ``events``, and
    ``each(found_inf)`` after every step.

    With a fused optimizer under GradScaler the step hook also runs for skipped steps, and the
    optimizer has ``found_inf`` on the device. So the count is kept on the device too. It is
    read only when enough hooks have run that an event may be due."""

    def __init__(
        self,
        events: list[int],
        apply: Callable[[int], None],
        each: Callable[[Tensor | None], None] | None = None,
    ) -> None:
        self.events, self.apply, self.each = events, apply, each
        self._known = 0  # the count at the last read
        self._hooks = 0  # hooks since then; some may be of skipped steps
        self._skipped: Tensor | None = None  # number of skipped ones, on the device
        self._attached = Hooks()

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        self._attached.add(optimizer.register_step_post_hook(self.after_step))

    def detach(self) -> None:
        """Stop counting the steps of the optimizers that it was attached to."""
        self._attached.remove()

    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Count a step; this is the optimizer's hook."""
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
        """Return bounds of the next step: it comes after the first number and is at most the
        second. They differ because some steps since the last read may have been skipped."""
        return self._known, self._known + self._hooks + 1

    def count(self) -> int:
        self._read()
        return self._known

    def reset(self, step: int) -> None:
        self._known, self._hooks, self._skipped = step, 0, None
        self._applied = max((event for event in self.events if event <= step), default=0)


class Attached:
    """The base of objects that follow the applied steps of an optimizer."""

    counter: StepCounter
    model: nn.Module

    def _followed(self) -> nn.Module:
        """Return the model whose optimizer is followed."""
        return self.model

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Count the optimizer's applied steps from now on, and return this object.

        Steps that a GradScaler skips do not count."""
        check_owned(optimizer, self._followed(), type(self).__name__)
        self.counter.attach(optimizer)
        return self

    def detach(self) -> Any:
        """Stop counting steps. Changes to the model stay."""
        self.counter.detach()

    def step(self) -> None:
        """Count one applied optimizer step. ``attach`` calls it by itself."""
        self.counter.step()

    @property
    def step_count(self) -> int:
        """Return the number of applied optimizer steps."""
        return self.counter.count()
