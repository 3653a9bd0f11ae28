"""Distiller: run a student and its teachers, and compute the loss, in any training loop."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bitpare import graph as g
from bitpare.distill.cache import TeacherCache
from bitpare.distill.hints import LayerLoss
from bitpare.distill.losses import Loss, SoftTarget, set_step
from bitpare.distill.ramp import is_scheduled
from bitpare.distill.taps import Taps, is_compiled, joined
from bitpare.models import unwrapped
from bitpare.steps import Attached, StepCounter


class _Teacher:
    """A teacher outside the module tree, so that parameters() and state_dict() do not include
    it."""

    def __init__(self, model: nn.Module, layers: Sequence[str], owner: str) -> None:
        self.model = model.eval()
        self.taps = Taps(unwrapped(model), layers, owner)


class Distiller(Attached, nn.Module):
    """Run student and teacher, and return the loss.

    Args:
        student: any module.
        teacher: a module with the same inputs, or a list of them, whose losses are averaged. It may
            be None if ``cache`` holds all its logits. Teachers are in eval mode and get no
            gradient; their parameters and buffers are not part of this module.
        loss: a `SoftTarget`, another `Loss`, or a function of (student's result, teacher's result,
            target).
        hints: `Hint`, `AttentionTransfer` or `Relation` losses between layers of the student and of
            the first teacher. They need ``example_inputs``.
        teacher_weights: the weight of each teacher; None weights them equally.
        logits: a function that returns the part of a model's result that the loss uses. By default
            it is the attribute ``logits`` of the result, or the result itself.
        teacher_dtype: the precision of the teacher, which is then a copy.
        microbatch: the largest number of samples per call of the teacher.
        cache: a `TeacherCache`. Calls must then give ``index=``.
        example_inputs: the arguments of a call, from which the adapters of hints are made.

    Compile, distribute or copy the Distiller rather than the student, because hooks must be
    added first.

    >>> kd = Distiller(nn.Linear(4, 3), nn.Linear(4, 3), SoftTarget(temperature=2.0))
    >>> loss = kd(torch.randn(2, 4), torch.tensor([0, 2]))
    >>> len(list(kd.parameters()))
    2
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Sequence[nn.Module] | None,
        loss: Loss | Callable[[Any, Any, Any], Tensor] | None = None,
        hints: Sequence[LayerLoss] = (),
        *,
        example_inputs: tuple[Any, ...] | Tensor | None = None,
        teacher_weights: Sequence[float] | None = None,
        logits: Callable[[Any], Any] | None = None,
        teacher_dtype: torch.dtype | None = None,
        microbatch: int | None = None,
        cache: TeacherCache | None = None,
    ) -> None:
        super().__init__()
        teachers = (
            [] if teacher is None else [teacher] if isinstance(teacher, nn.Module) else [*teacher]
        )
        self._check(student, teachers, hints, example_inputs, microbatch, cache)
        self.student = student
        self.counter = StepCounter([], _nothing)
        self.loss = SoftTarget() if loss is None else loss
        self.hints = nn.ModuleList(hints)
        self.logits, self.teacher_dtype, self.microbatch = logits, teacher_dtype, microbatch
        self.cache = cache
        if cache is not None:
            cache.open(teachers[0] if teachers else None)
        if teacher_dtype is not None:
            teachers = [copy.deepcopy(t).to(teacher_dtype) for t in teachers]
        self.weights = _shares(teacher_weights, len(teachers))
        self._taps = Taps(unwrapped(student), [h.student for h in hints], "student")
        try:
            self._teachers = [
                _Teacher(t, [h.teacher for h in hints] if i == 0 else [], "teacher")
                for i, t in enumerate(teachers)
            ]
            if hints:
                self._build_hints(example_inputs)
        except Exception:
            self.detach()
            raise
        # A compiled graph that reads the step would be recompiled at each step.
        self._scheduled = any(
            is_scheduled(m) for part in (self.loss, self.hints) for m in _modules_of(part)
        )

    @staticmethod
    def _check(
        student: nn.Module,
        teachers: list[nn.Module],
        hints: Sequence[LayerLoss],
        example_inputs: Any,
        microbatch: int | None,
        cache: TeacherCache | None,
    ) -> None:
        if not teachers and cache is None:
            raise ValueError("Distiller: give a teacher, or a cache of a teacher's logits")
        for hint in hints:
            if not isinstance(hint, LayerLoss):
                raise TypeError(
                    f"Distiller: hints must be Hint, AttentionTransfer or Relation, got "
                    f"{type(hint).__name__}"
                )
        if hints and example_inputs is None:
            raise ValueError("Distiller: hints need example_inputs=, from which adapters are made")
        if hints and cache is not None:
            raise ValueError("Distiller: a cache holds logits; hints need the teacher itself")
        if cache is not None and len(teachers) > 1:
            raise ValueError("Distiller: a cache can replace only one teacher")
        if hints and (is_compiled(student) or any(is_compiled(t) for t in teachers)):
            raise ValueError(
                "Distiller: a compiled model would not call the hooks; build the Distiller from "
                "the model itself, then compile the Distiller"
            )
        if microbatch is not None and microbatch < 1:
            raise ValueError(f"Distiller: microbatch must be 1 or more, got {microbatch}")
        own = {id(p): name for name, p in student.named_parameters()}
        for teacher in teachers:
            shared = [own[id(p)] for p in teacher.parameters() if id(p) in own]
            if shared:
                raise ValueError(
                    f"Distiller: the teacher shares {shared[0]} with the student; give a "
                    "copy.deepcopy of it"
                )

    def _build_hints(self, example_inputs: Any) -> None:
        call = g.call_with("Distiller", example_inputs, None)
        student = unwrapped(self.student)
        with torch.no_grad(), g.quiet_state(student):
            student.eval()
            taught = self._of_teacher(self._teachers[0], call.args, call.kwargs)[1]
            self._taps.active = True
            held = {n: v.clone() for n, v in student.named_buffers()}
            student(*call.args, **call.kwargs)
            self._taps.active = False
            for name, value in student.named_buffers():
                value.copy_(held[name])
            found = self._taps.take()
        for hint in self.hints:
            assert isinstance(hint, LayerLoss)
            hint.build(*self._pair(hint, found, taught))

    @staticmethod
    def _pair(
        hint: LayerLoss, found: dict[str, Tensor], taught: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        for owner, name, values in (
            ("student", hint.student, found),
            ("teacher", hint.teacher, taught),
        ):
            if name not in values:
                raise RuntimeError(f"Distiller: the {owner} did not call its layer {name!r}")
        return found[hint.student], taught[hint.teacher]

    # -- running

    def forward(
        self,
        inputs: Any,
        target: Any = None,
        *,
        return_logits: bool = False,
        index: Tensor | None = None,
        seed: int = 0,
    ) -> Any:
        """Return the loss of a batch. With the student in eval mode it is computed in the same way.

        Args:
            inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
            target: the target of the loss, or None.
            return_logits: whether to return (loss, the student's logits).
            index: the indices of the samples, needed with a cache.
            seed: the seed of their augmentation, for the cache.
        """
        args, kwargs = _arguments(inputs)
        step = 0
        if self._scheduled:
            step = self.counter.count()
            if isinstance(self.loss, nn.Module):
                set_step(self.loss, step)
        said, taught = self._teacher_results(args, kwargs, index, seed)
        self._taps.active = len(self.hints) > 0
        try:
            result = self.student(*args, **kwargs)
        finally:
            self._taps.active = False
        logits = self._logits_of(result)
        loss: Any = 0.0
        for weight, teacher in zip(self.weights, said, strict=True):
            loss = loss + weight * self.loss(logits, teacher, target)
        found = self._taps.take()
        for hint in self.hints:
            assert isinstance(hint, LayerLoss)
            loss = loss + hint.weighted(*self._pair(hint, found, taught), step)
        return (loss, result) if return_logits else loss

    def _logits_of(self, result: Any) -> Any:
        if self.logits is not None:
            return self.logits(result)
        return getattr(result, "logits", result)

    def _teacher_results(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], index: Tensor | None, seed: int
    ) -> tuple[list[Any], dict[str, Tensor]]:
        """Return the logits of each teacher, and the features of the first."""
        if self.cache is not None:
            if index is None:
                raise ValueError("Distiller: a cache needs index=, the indices of the samples")
            return [self._cached(args, kwargs, index, seed)], {}
        found = [self._of_teacher(t, args, kwargs) for t in self._teachers]
        return [said for said, _ in found], found[0][1]

    def _of_teacher(
        self, teacher: _Teacher, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Tensor]]:
        if teacher.model.training:
            teacher.model.eval()
        if self.teacher_dtype is not None:
            args, kwargs = _pytree.tree_map(self._as_teacher, (args, kwargs))
        said, features = [], []
        teacher.taps.active = len(self.hints) > 0
        try:
            with torch.no_grad():
                for some_args, some_kwargs in _split((args, kwargs), self.microbatch):
                    said.append(self._logits_of(teacher.model(*some_args, **some_kwargs)))
                    features.append(teacher.taps.take())
        finally:
            teacher.taps.active = False
        if len(said) == 1:
            return said[0], features[0]
        return _pytree.tree_map(lambda *parts: torch.cat(parts), *said), joined(features)

    def _as_teacher(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(self.teacher_dtype)
        return value

    def _cached(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], index: Tensor, seed: int
    ) -> Any:
        cache = self.cache
        assert cache is not None
        gone = cache.missing(index, seed)
        if gone.any():
            if not self._teachers:
                cache.read(index, seed)  # raises an error that names the missing sample
            rows = gone.nonzero().flatten()
            some = _pytree.tree_map(
                lambda v: v[rows.to(v.device)] if _has_rows(v, len(index)) else v, (args, kwargs)
            )
            said, _ = self._of_teacher(self._teachers[0], *some)
            cache.write(index.cpu()[rows], said, seed)
        device = next(self.student.parameters()).device
        return cache.read(index, seed, device)

    # -- as a module

    def train(self, mode: bool = True) -> "Distiller":
        super().train(mode)
        for teacher in self._teachers:
            teacher.model.eval()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> "Distiller":
        super()._apply(fn, recurse)
        for teacher in self._teachers:
            teacher.model._apply(fn)
            if self.teacher_dtype is not None:
                teacher.model.to(self.teacher_dtype)
        return self

    def _followed(self) -> nn.Module:
        return self

    def get_extra_state(self) -> dict[str, int]:
        return {"step": self.counter.count()}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.counter.reset(int(state["step"]))

    def detach(self) -> nn.Module:
        """Remove the hooks from student, teachers and optimizer, and return the student."""
        self.counter.detach()
        self._taps.release()
        for teacher in getattr(self, "_teachers", []):
            teacher.taps.release()
        return self.student


def _nothing(step: int) -> None:
    """Do nothing: this counter only counts."""


def _has_rows(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == count


def _modules_of(part: Any) -> list[nn.Module]:
    return list(part.modules()) if isinstance(part, nn.Module) else []


def _shares(weights: Sequence[float] | None, teachers: int) -> list[float]:
    count = max(teachers, 1)  # a cache counts as one teacher
    if weights is None:
        return [1.0 / count] * count
    if len(weights) != count or min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(
            f"Distiller: teacher_weights must be {count} numbers of 0 or more, got {list(weights)}"
        )
    return [float(w) / sum(weights) for w in weights]


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def _split(value: Any, size: int | None) -> list[Any]:
    """Split all tensors along dimension 0 into parts of at most ``size``."""
    leaves, spec = _pytree.tree_flatten(value)
    count = next((len(v) for v in leaves if isinstance(v, Tensor) and v.dim() > 0), 0)
    if size is None or count <= size:
        return [value]
    parts = []
    for start in range(0, count, size):
        some = [v[start : start + size] if _has_rows(v, count) else v for v in leaves]
        parts.append(_pytree.tree_unflatten(some, spec))
    return parts
