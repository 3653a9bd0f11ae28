"""Losses between the results of a student and of a teacher.

A loss is called as loss(student_logits, teacher, target), where ``teacher`` is a tensor of logits
or `TopLogits`. ``step`` is the training step, for scheduled numbers; a `Distiller` sets it. Only
the student gets gradients."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitpare import functional as bpf
from bitpare.distill.ramp import Scheduled, value_at


class TopLogits(NamedTuple):
    """A teacher's k largest logits: their values and classes, [..., k], and the logsumexp of all
    logits / T, [...]. temperature: T, if known."""

    values: Tensor
    indices: Tensor
    logsumexp: Tensor
    temperature: float | None = None


Teacher: TypeAlias = Tensor | TopLogits


class Loss(nn.Module):
    """The base of losses. Its numbers may be functions of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 0

    def at_step(self, step: int) -> None:
        """Set the training step of this loss and of the losses inside it."""
        set_step(self, step)

    def _now(self, number: Scheduled) -> float:
        return value_at(number, self.step)

    def _dense(self, teacher: Teacher) -> Tensor:
        if isinstance(teacher, TopLogits):
            raise ValueError(
                f"{type(self).__name__}: it needs all of the teacher's logits, but the cache holds "
                "only the largest; use SoftTarget, or a cache with top_k=None"
            )
        return teacher


def set_step(part: nn.Module, step: int) -> None:
    """Set the training step of all losses inside a module."""
    for module in part.modules():
        if isinstance(module, Loss):
            module.step = step


def _check_number(owner: str, name: str, value: Scheduled, low: float, high: float) -> None:
    _check_kind(owner, name, value)
    if not callable(value) and not low <= value <= high:
        raise ValueError(f"{owner}: {name} must be from {low:g} to {high:g}, got {value}")


def _check_kind(owner: str, name: str, value: Scheduled) -> None:
    if isinstance(value, Tensor):
        raise TypeError(f"{owner}: {name} must be a number or a function of the step, got a tensor")


def _check_temperature(owner: str, value: Scheduled) -> None:
    _check_kind(owner, "temperature", value)
    if not callable(value) and not value > 0:
        raise ValueError(f"{owner}: temperature must be above 0, got {value}")


class _OfClasses(Loss):
    """The base of losses over classes, which lie along ``class_dim``."""

    def __init__(self, class_dim: int, ignore_index: int) -> None:
        super().__init__()
        self.class_dim, self.ignore_index = class_dim, ignore_index

    def _rows(self, logits: Tensor) -> Tensor:
        """Move the classes to the last dimension."""
        return logits if self.class_dim == -1 else logits.movedim(self.class_dim, -1)

    def _labels(self, target: Tensor | None) -> Tensor | None:
        """Move the classes of a target of probabilities to the last dimension."""
        if target is None or not target.is_floating_point() or target.dim() < 2:
            return target
        return self._rows(target)

    def _hard(self, student: Tensor, target: Tensor) -> Tensor:
        rows = self._rows(student)
        labels = self._labels(target)
        assert labels is not None
        return _cross_entropy(rows.reshape(-1, rows.shape[-1]).float(), labels, self.ignore_index)

    def _given(self, teacher: Teacher) -> tuple[Tensor, dict[str, Tensor]]:
        if isinstance(teacher, TopLogits):
            return teacher.values, {
                "teacher_indices": teacher.indices,
                "teacher_logsumexp": teacher.logsumexp,
            }
        return self._rows(teacher), {}


class SoftTarget(_OfClasses):
    """alpha CE(student, target) + (1 - alpha) T^2 KL(teacher || student) (Hinton et al. 2015).

    Without a target only the second term counts, with weight 1. See `functional.distill_loss`.

    Args:
        temperature: T, a number or a function of the step.
        alpha: the weight of the target, in [0, 1], a number or a function of the step.
        divergence: "forward" as above, "reverse" for KL(student || teacher), or "js".
        label_smoothing: the label smoothing of the first term.
        ignore_index: samples with this target do not count.
        class_dim: the dimension of the classes.

    >>> loss = SoftTarget(temperature=2.0, alpha=0.5)
    >>> loss(torch.zeros(1, 2), torch.tensor([[0.0, 2.0]]), torch.tensor([1]))
    tensor(0.5685)
    """

    def __init__(
        self,
        temperature: Scheduled = 4.0,
        alpha: Scheduled = 0.5,
        *,
        divergence: Literal["forward", "reverse", "js"] = "forward",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        class_dim: int = -1,
    ) -> None:
        super().__init__(class_dim, ignore_index)
        _check_temperature("SoftTarget", temperature)
        _check_number("SoftTarget", "alpha", alpha, 0, 1)
        self.temperature, self.alpha = temperature, alpha
        self.divergence, self.label_smoothing = divergence, label_smoothing

    def forward(self, student: Tensor, teacher: Teacher, target: Tensor | None = None) -> Tensor:
        logits, top = self._given(teacher)
        temperature = self._now(self.temperature)
        said = teacher.temperature if isinstance(teacher, TopLogits) else None
        if said is not None and said != temperature:
            raise ValueError(
                f"SoftTarget: the teacher's largest logits are for temperature {said:g}, the loss "
                f"has {temperature:g}"
            )
        return bpf.distill_loss(
            self._rows(student),
            logits,
            self._labels(target),
            temperature=temperature,
            alpha=self._now(self.alpha),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            divergence=self.divergence,
            **top,
        )


class HardTarget(_OfClasses):
    """A loss that uses the teacher's decisions as labels.

    Args:
        kind: "classification" is alpha CE(student, target) + (1 - alpha) CE(student, the teacher's
            class). "regression" is alpha MSE(student, target) + (1 - alpha) MSE(student, teacher).
        alpha: the weight of the target, in [0, 1], a number or a function of the step.
        bounded: for "regression", replace the second term by the student's error on the target, or
            0 where that is smaller than the teacher's error by ``margin`` (Chen et al. 2017, eq.
            4).
        margin: the margin of ``bounded``.
        ignore_index: samples with this target do not count.
        class_dim: the dimension of the classes.

    >>> loss = HardTarget("regression", alpha=0.0, bounded=True)
    >>> loss(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0]), torch.tensor([0.0, 0.0]))
    tensor(4.5000)
    """

    def __init__(
        self,
        kind: Literal["classification", "regression"] = "classification",
        alpha: Scheduled = 0.5,
        *,
        bounded: bool = False,
        margin: float = 0.0,
        ignore_index: int = -100,
        class_dim: int = -1,
    ) -> None:
        super().__init__(class_dim, ignore_index)
        if kind not in ("classification", "regression"):
            raise ValueError(f"HardTarget: kind must be classification or regression, got {kind!r}")
        if bounded and kind != "regression":
            raise ValueError("HardTarget: bounded needs kind='regression'")
        _check_number("HardTarget", "alpha", alpha, 0, 1)
        self.kind, self.alpha, self.bounded, self.margin = kind, alpha, bounded, margin

    def forward(self, student: Tensor, teacher: Teacher, target: Tensor | None = None) -> Tensor:
        alpha = self._now(self.alpha) if target is not None else 0.0
        if self.kind == "regression":
            return self._regression(student, self._dense(teacher), target, alpha)
        logits, top = self._given(teacher)
        chosen = logits.argmax(-1)
        if top:
            chosen = top["teacher_indices"].gather(-1, chosen[..., None]).squeeze(-1)
        return self._classification(student, chosen, target, alpha)

    def _classification(
        self, student: Tensor, chosen: Tensor, target: Tensor | None, alpha: float
    ) -> Tensor:
        if target is not None and not target.is_floating_point():
            # Samples without a label do not count.
            chosen = torch.where(target == self.ignore_index, self.ignore_index, chosen)
        taught = self._hard(student, chosen)
        if target is None or alpha == 0.0:
            return taught
        return alpha * self._hard(student, target) + (1 - alpha) * taught

    def _regression(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, alpha: float
    ) -> Tensor:
        student, teacher = student.float(), teacher.detach().float()
        if student.shape != teacher.shape:
            raise ValueError(
                f"HardTarget: student and teacher must have the same shape, got "
                f"{tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        if self.bounded and target is None:
            raise ValueError("HardTarget: bounded needs a target")
        if target is None:
            return F.mse_loss(student, teacher)
        if target.shape != student.shape:
            raise ValueError(
                f"HardTarget: target must have shape {tuple(student.shape)}, got "
                f"{tuple(target.shape)}"
            )
        error = (student - target.float()).square()
        if self.bounded:
            theirs = (teacher - target.float()).square()
            taught = torch.where(error + self.margin > theirs, error, 0.0).mean()
        else:
            taught = F.mse_loss(student, teacher)
        return alpha * error.mean() + (1 - alpha) * taught


def _cross_entropy(rows: Tensor, target: Tensor, ignored: int) -> Tensor:
    """Return the mean over the rows that are not ignored, or 0 if there are none."""
    if target.is_floating_point():
        labels = target.reshape(-1, target.shape[-1]).to(rows.dtype)
        total = F.cross_entropy(rows, labels, reduction="sum")
        return total / max(len(rows), 1)
    flat = target.reshape(-1)
    total = F.cross_entropy(rows, flat, ignore_index=ignored, reduction="sum")
    return total / (flat != ignored).sum().clamp(min=1)


class LogitMSE(_OfClasses):
    """alpha CE(student, target) + (1 - alpha) MSE(student's logits, teacher's) (Ba & Caruana 2014).

    >>> LogitMSE()(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
    tensor(0.5000)
    """

    def __init__(
        self, alpha: Scheduled = 0.5, *, ignore_index: int = -100, class_dim: int = -1
    ) -> None:
        super().__init__(class_dim, ignore_index)
        _check_number("LogitMSE", "alpha", alpha, 0, 1)
        self.alpha = alpha

    def forward(self, student: Tensor, teacher: Teacher, target: Tensor | None = None) -> Tensor:
        dense = self._dense(teacher)
        if target is None:
            return bpf.feature_loss(student, dense)
        if target.is_floating_point():
            apart = bpf.feature_loss(student, dense)
        else:  # leave out the rows that are ignored
            kept = target != self.ignore_index
            d = self._rows(student).float() - self._rows(dense).detach().float()
            each = torch.where(kept, d.square().mean(-1), 0.0)
            apart = each.sum() / kept.sum().clamp(min=1)
        alpha = self._now(self.alpha)
        return alpha * self._hard(student, target) + (1 - alpha) * apart


class DKD(_OfClasses):
    """hard CE(student, target) + T^2 (alpha TCKD + beta NCKD); see `functional.dkd_loss`.

    Args:
        temperature: T, a number or a function of the step, as are the next three.
        alpha: the weight of the target class against the others.
        beta: the weight of the divergence among the other classes.
        hard: the weight of the cross entropy.
        ignore_index: samples with this target do not count.
        class_dim: the dimension of the classes.
    """

    def __init__(
        self,
        temperature: Scheduled = 4.0,
        alpha: Scheduled = 1.0,
        beta: Scheduled = 8.0,
        *,
        hard: Scheduled = 1.0,
        ignore_index: int = -100,
        class_dim: int = -1,
    ) -> None:
        super().__init__(class_dim, ignore_index)
        _check_temperature("DKD", temperature)
        self.temperature, self.alpha, self.beta, self.hard = temperature, alpha, beta, hard

    def forward(self, student: Tensor, teacher: Teacher, target: Tensor | None = None) -> Tensor:
        if target is None:
            raise ValueError("DKD: it needs a target, because it treats the target class by itself")
        rows = self._rows(student)
        loss = bpf.dkd_loss(
            rows,
            self._rows(self._dense(teacher)),
            target,
            temperature=self._now(self.temperature),
            alpha=self._now(self.alpha),
            beta=self._now(self.beta),
            ignore_index=self.ignore_index,
        )
        hard = self._now(self.hard)
        return loss if hard == 0.0 else hard * self._hard(student, target) + loss


class DIST(_OfClasses):
    """hard CE(student, target) + `functional.dist_loss`.

    Args:
        temperature: T, a number or a function of the step, as are the next three.
        beta: the weight of the correlation within samples.
        gamma: the weight of the correlation within classes.
        hard: the weight of the cross entropy.
        ignore_index: samples with this target do not count.
        class_dim: the dimension of the classes.
    """

    def __init__(
        self,
        temperature: Scheduled = 4.0,
        beta: Scheduled = 2.0,
        gamma: Scheduled = 2.0,
        *,
        hard: Scheduled = 1.0,
        ignore_index: int = -100,
        class_dim: int = -1,
    ) -> None:
        super().__init__(class_dim, ignore_index)
        _check_temperature("DIST", temperature)
        self.temperature, self.beta, self.gamma, self.hard = temperature, beta, gamma, hard

    def forward(self, student: Tensor, teacher: Teacher, target: Tensor | None = None) -> Tensor:
        kept = None
        if target is not None and not target.is_floating_point():
            kept = (target != self.ignore_index).float()
        loss = bpf.dist_loss(
            self._rows(student),
            self._rows(self._dense(teacher)),
            row_weight=kept,
            temperature=self._now(self.temperature),
            beta=self._now(self.beta),
            gamma=self._now(self.gamma),
        )
        if target is None:
            return loss
        return self._now(self.hard) * self._hard(student, target) + loss


class Sum(Loss):
    """A weighted sum: Sum([(1.0, SoftTarget()), (Ramp(0, 2, steps=500), DIST(hard=0))])."""

    def __init__(self, terms: Sequence[tuple[Scheduled, Loss]]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("Sum: give at least one (weight, loss)")
        self.weights = [weight for weight, _ in terms]
        self.losses = nn.ModuleList(loss for _, loss in terms)

    def forward(self, student: Any, teacher: Any, target: Any = None) -> Tensor:
        found = [
            self._now(weight) * loss(student, teacher, target)
            for weight, loss in zip(self.weights, self.losses, strict=True)
        ]
        return torch.stack(found).sum()


class MultiTask(Loss):
    """A loss for each head of a model that returns a dict, tuple or list of tensors.

    The target must have the same keys or positions.

    Args:
        heads: {key or position: loss}.
        weights: {key: weight}, or "uncertainty" for exp(-s) L + s with a learned s per head
            (Kendall et al. 2018), which is one of the `Distiller`'s parameters. None weights all
            heads by 1.

    >>> loss = MultiTask({0: SoftTarget(), 1: HardTarget("regression")}, weights={1: 10.0})
    """

    def __init__(
        self,
        heads: Mapping[str | int, Loss],
        weights: Mapping[str | int, Scheduled] | Literal["uncertainty"] | None = None,
    ) -> None:
        super().__init__()
        if not heads:
            raise ValueError("MultiTask: give at least one head")
        self.keys = list(heads)
        self.losses = nn.ModuleList(heads.values())
        self.log_variance: nn.Parameter | None = None
        given: Mapping[str | int, Scheduled] = {}
        if isinstance(weights, str):
            if weights != "uncertainty":
                raise ValueError(
                    f"MultiTask: weights must be a dict or uncertainty, got {weights!r}"
                )
            self.log_variance = nn.Parameter(torch.zeros(len(heads)))
        elif weights is not None:
            given = weights
        unknown = [key for key in given if key not in heads]
        if unknown:
            raise ValueError(f"MultiTask: weights has {unknown[0]!r}, which is not a head")
        self.weights = [given.get(key, 1.0) for key in heads]

    def forward(self, student: Any, teacher: Any, target: Any = None) -> Tensor:
        found = []
        for i, (key, loss) in enumerate(zip(self.keys, self.losses, strict=True)):
            parts = [self._part(v, key, n) for v, n in ((student, "student"), (teacher, "teacher"))]
            wanted = None if target is None else self._part(target, key, "target")
            value = self._now(self.weights[i]) * loss(*parts, wanted)
            if self.log_variance is not None:
                s = self.log_variance[i]
                value = torch.exp(-s) * value + s
            found.append(value)
        return torch.stack(found).sum()

    @staticmethod
    def _part(value: Any, key: str | int, name: str) -> Any:
        try:
            return value[key]
        except (KeyError, IndexError, TypeError) as error:
            kind = list(value) if isinstance(value, dict) else type(value).__name__
            raise ValueError(
                f"MultiTask: the {name} has no head {key!r}; it gave {kind}"
            ) from error
