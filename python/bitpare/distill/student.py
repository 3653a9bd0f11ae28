"""shrink_student: a smaller model of a teacher's kind, that starts from its weights."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from bitpare.prune.layers import drop_layers
from bitpare.prune.shrink import plan_shrink


def shrink_student(
    teacher: nn.Module,
    example_inputs: tuple[Any, ...] | Tensor,
    *,
    width: float = 1.0,
    depth: float = 1.0,
    round_to: int = 1,
    ignore: Sequence[str] = (),
    not_understood: str = "refuse",
    example_kwargs: dict[str, Any] | None = None,
) -> nn.Module:
    """A copy of ``teacher`` with the first ``width`` of the channels of every layer, and ``depth``
    of the residual blocks that may go (see `prune.drop_layers`), the weights of both the teacher's.

    ignore: globs of layers that keep their channels. round_to, not_understood: see
    `prune.plan_shrink`. The teacher is not changed.

    >>> import torch
    >>> teacher = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 2))
    >>> shrink_student(teacher, torch.randn(1, 8), width=0.25)[0]
    Linear(in_features=8, out_features=3, bias=True)
    """
    for name, value in (("width", width), ("depth", depth)):
        if not 0 < value <= 1:
            raise ValueError(f"shrink_student: {name} must be above 0 and at most 1, got {value}")
    if width == 1.0 and depth == 1.0:
        raise ValueError("shrink_student: give a width or a depth below 1")
    student = teacher
    if depth < 1.0:
        student = drop_layers(student, example_inputs, 1.0 - depth, example_kwargs=example_kwargs)
    if width < 1.0:
        plan = plan_shrink(
            student,
            example_inputs,
            1.0 - width,
            round_to=round_to,
            ignore=ignore,
            not_understood=not_understood,
            keep="first",
            example_kwargs=example_kwargs,
        )
        student = plan.apply(student)
    return student
