"""Losses between layers of a student and of a teacher."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from bitpare import functional as bpf
from bitpare.distill.ramp import Scheduled, value_at


class LayerLoss(nn.Module):
    """The base of losses between a layer of the student and one of the teacher, given by name.
    weight: the weight of the loss in the sum."""

    def __init__(self, student: str, teacher: str, weight: Scheduled) -> None:
        super().__init__()
        self.student, self.teacher, self.weight = student, teacher, weight

    def build(self, student: Tensor, teacher: Tensor) -> None:
        """Make the adapters for results of the shapes that the example inputs give."""

    def weighted(self, student: Tensor, teacher: Tensor, step: int) -> Tensor:
        loss: Tensor = self(student, teacher)
        return value_at(self.weight, step) * loss

    def extra_repr(self) -> str:
        return f"{self.student} like {self.teacher}, weight={self.weight}"


class Hint(LayerLoss):
    """A loss between features of student and teacher (Romero et al. 2015).

    Args:
        student: the name of the student's layer.
        teacher: the name of the teacher's layer.
        weight: the weight of the loss, a number or a function of the step.
        kind: "mse", "l1", "cosine" or "normalized"; see `functional.feature_loss`.
        adapter: "auto", None or a module. "auto" lets the `Distiller` make a 1x1 convolution or
            linear layer if the numbers of channels differ, and pool if the sizes of the maps
            differ.
        start_dim: the first of the dimensions that form a vector, for "cosine" and "normalized".
    """

    def __init__(
        self,
        student: str,
        teacher: str,
        weight: Scheduled = 1.0,
        *,
        kind: Literal["mse", "l1", "cosine", "normalized"] = "mse",
        start_dim: int = 1,
        adapter: nn.Module | Literal["auto"] | None = "auto",
    ) -> None:
        super().__init__(student, teacher, weight)
        if isinstance(adapter, str) and adapter != "auto":
            raise ValueError(f"Hint: adapter must be auto, None or a module, got {adapter!r}")
        self.kind, self.start_dim = kind, start_dim
        self.automatic, self.pools = adapter == "auto", False
        self.adapter = adapter if isinstance(adapter, nn.Module) else None

    def build(self, student: Tensor, teacher: Tensor) -> None:
        where = f"Hint({self.student!r}, {self.teacher!r})"
        if student.dim() != teacher.dim() or student.dim() < 2:
            raise ValueError(
                f"{where}: results must have the same dimensions, got {tuple(student.shape)} and "
                f"{tuple(teacher.shape)}"
            )
        if not self.automatic:
            return
        # The last dimension is the channels if no other one differs, as in tokens and channels-last
        # maps.
        a, b = student.shape, teacher.shape
        last = student.dim() == 2 or (a[1:-1] == b[1:-1] and a[-1] != b[-1])
        self.pools = not last and student.dim() > 2
        axis = -1 if last else 1
        inputs, outputs = a[axis], b[axis]
        if inputs != outputs:
            made: nn.Module
            if last:
                made = nn.Linear(inputs, outputs, bias=False)
            else:
                convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[student.dim() - 3]
                made = convolution(inputs, outputs, 1, bias=False)
            self.adapter = made.to(device=student.device, dtype=student.dtype)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.adapter is not None:
            student = self.adapter(student)
        if self.pools:
            student, teacher = _same_size(student, teacher)
        return bpf.feature_loss(student, teacher, kind=self.kind, start_dim=self.start_dim)


class AttentionTransfer(LayerLoss):
    """A loss between attention maps; see `functional.attention_transfer`. Its authors use the
    weight 1000."""

    def __init__(self, student: str, teacher: str, weight: Scheduled = 1000.0) -> None:
        super().__init__(student, teacher, weight)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return bpf.attention_transfer(*_same_size(student, teacher))


class Relation(LayerLoss):
    """A loss between the relations of the samples in a batch; see `functional.relation_loss`.

    Args:
        student: the name of the student's layer.
        teacher: the name of the teacher's layer.
        weight: the weight of the loss, a number or a function of the step.
        distance: the weight of the distances.
        angle: the weight of the angles.
    """

    def __init__(
        self,
        student: str,
        teacher: str,
        weight: Scheduled = 1.0,
        *,
        distance: float = 1.0,
        angle: float = 2.0,
    ) -> None:
        super().__init__(student, teacher, weight)
        self.distance, self.angle = distance, angle

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return bpf.relation_loss(student, teacher, distance=self.distance, angle=self.angle)


_POOL = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)


def _same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Pool maps of different sizes to the smaller size."""
    a, b = student.shape[2:], teacher.shape[2:]
    if a == b or student.dim() != teacher.dim() or student.dim() < 3:
        return student, teacher
    size = [min(x, y) for x, y in zip(a, b, strict=True)]
    pool = _POOL[len(size) - 1]
    return pool(student, size), pool(teacher, size)
