"""Make a smaller student from a teacher."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from bitpare.prune.drop_layers import drop_layers
from bitpare.prune.shrink import plan_shrink


def shrink_student(
    teacher: nn.Module,
    *,
    example_inputs: tuple[Any, ...] | Tensor,
    example_kwargs: dict[str, Any] | None = None,
    width: float = 1.0,
    depth: float = 1.0,
    round_to: int = 1,
    ignore: Sequence[str] = (),
    not_understood: Literal["refuse", "leave"] = "refuse",
) -> nn.Module:
    """Return a narrower or shallower copy of ``teacher`` that starts from its weights.

    Args:
        teacher: the model; it is not changed.
        example_inputs: the positional arguments of a call of the teacher, or a single tensor.
        example_kwargs: the keyword arguments of that call.
        width: the share of the channels of every layer to keep, in (0, 1]; the first ones are kept.
        depth: the share of the removable residual blocks to keep; see `prune.drop_layers`.
        round_to: the number of channels stays a multiple of it; see `prune.plan_shrink`.
        ignore: globs of layers that keep their channels.
        not_understood: "refuse" or "leave"; see `prune.plan_shrink`.

    >>> import torch
    >>> teacher = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 2))
    >>> shrink_student(teacher, example_inputs=torch.randn(1, 8), width=0.25)[0]
    Linear(in_features=8, out_features=3, bias=True)
    """
    for name, value in (("width", width), ("depth", depth)):
        if not 0 < value <= 1:
            raise ValueError(f"shrink_student: {name} must be above 0 and at most 1, got {value}")
    if width == 1.0 and depth == 1.0:
        raise ValueError("shrink_student: give a width or a depth below 1")
    student = teacher
    if depth < 1.0:
        student = drop_layers(
            student,
            sparsity=1.0 - depth,
            example_inputs=example_inputs,
            example_kwargs=example_kwargs,
        )
    if width < 1.0:
        plan = plan_shrink(
            student,
            sparsity=1.0 - width,
            example_inputs=example_inputs,
            example_kwargs=example_kwargs,
            round_to=round_to,
            ignore=ignore,
            not_understood=not_understood,
            order="index",
        )
        student = plan.apply(student)
    return student
