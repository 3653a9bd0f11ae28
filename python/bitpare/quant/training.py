"""Group parameters for an optimizer, and average the weights of a model."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bitpare.models import unwrapped
from bitpare.nn.quantizer import Quantizer


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float = 0.0,
    scale_lr: float | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer, without weight decay on scales, offsets,
    normalisation layers and biases.

    Args:
        model: a float or a prepared model.
        weight_decay: the weight decay of all other parameters.
        scale_lr: a learning rate for scales and offsets; None uses the optimizer's.
        options: further options, which every group gets.

    >>> groups = param_groups(nn.Linear(2, 2), weight_decay=1e-4)
    >>> [(len(g["params"]), g["weight_decay"]) for g in groups]
    [(1, 0.0001), (1, 0.0)]
    """
    norms = (
        nn.modules.batchnorm._NormBase,
        nn.LayerNorm,
        nn.GroupNorm,
        nn.LocalResponseNorm,
    )
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    scales: list[Tensor] = []
    seen: set[int] = set()
    for module in unwrapped(model).modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            if isinstance(module, Quantizer):
                scales.append(parameter)
            elif isinstance(module, norms) or parameter.dim() < 2 or name.endswith("bias"):
                plain.append(parameter)
            else:
                decayed.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay, **options},
        {"params": plain, "weight_decay": 0.0, **options},
    ]
    if scales:
        own = {} if scale_lr is None else {"lr": scale_lr}
        groups.append({"params": scales, "weight_decay": 0.0, **options, **own})
    return [group for group in groups if group["params"]]


class ema(nn.Module):
    """A copy of a model whose weights are a moving average of the model's weights.

    Call ``average.update(model)`` after each applied step, and evaluate ``average.module``.

    Parameters and running statistics are averaged. Counts, flags, integers and the ranges of
    quantizers are copied, because their average would be wrong.

    decay: the decay of the average per step. Early steps use the smaller
    (1 + step) / (10 + step)."""

    steps: Tensor

    def __init__(self, model: nn.Module, *, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"ema: decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.module = copy.deepcopy(unwrapped(model)).requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the current weights of the model into the average, after each applied step."""
        source, average = unwrapped(model), self.module
        self.steps += 1
        weight = torch.clamp((1.0 + self.steps) / (10.0 + self.steps), max=self.decay)
        averaged = [(p, q) for p, q in zip(average.parameters(), source.parameters(), strict=True)]
        copied: list[tuple[Tensor, Tensor]] = []
        modules = zip(average.modules(), source.modules(), strict=True)
        for mine, theirs in modules:
            buffers = zip(mine.buffers(recurse=False), theirs.buffers(recurse=False), strict=True)
            for p, q in buffers:
                is_average = p.is_floating_point() and not isinstance(mine, Quantizer)
                (averaged if is_average else copied).append((p, q))
        for p, q in averaged:
            p.lerp_(q.to(p.dtype), (1 - weight).to(p.dtype))
        for p, q in copied:
            p.copy_(q)
        for mine, theirs in zip(average.modules(), source.modules(), strict=True):
            if isinstance(mine, Quantizer) and isinstance(theirs, Quantizer):
                if mine.grid != theirs.grid:
                    mine._read_control()
                mine.calibrated = theirs.calibrated
                mine.observing, mine.quantizing = theirs.observing, theirs.quantizing
