"""Compute the cost of a model: parameters, bytes, and the multiply-accumulates of one call."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitpare.graph.state import Call, quiet_state

MULTIPLYING = (nn.modules.conv._ConvNd, nn.Linear)


def positions_of(model: nn.Module, call: Call) -> dict[nn.Module, int]:
    """Return for each convolution and linear layer how often one call uses each element of its
    weight."""
    found: dict[nn.Module, int] = {}

    def count(module: Any, args: Any, result: Tensor) -> None:
        if getattr(module, "transposed", False):
            uses = args[0].numel() // module.in_channels
        else:
            uses = result.numel() // getattr(module, "out_channels", result.shape[-1])
        found[module] = found.get(module, 0) + uses

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, MULTIPLYING)]
    try:
        with quiet_state(model), torch.no_grad():
            model.eval()(*call.args, **call.kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class Cost:
    """Computes the cost of a model, also with smaller parameters."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        self.model = model
        uses: dict[int, int] = {}
        for module, count in positions_of(model, call).items():
            uses[id(module.weight)] = uses.get(id(module.weight), 0) + count
        self._uses = {n: uses.get(id(p), 0) for n, p in model.named_parameters()}

    def of(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """Return "macs", "parameters" and "bytes" of the model, with these shapes in place of its
        own."""
        found = {"macs": 0, "parameters": 0, "bytes": 0}
        for name, held in self.model.named_parameters():
            count = math.prod(shapes.get(name, held.shape))
            found["parameters"] += count
            found["bytes"] += count * held.element_size()
            found["macs"] += count * self._uses[name]
        for name, held in self.model.named_buffers():
            found["bytes"] += math.prod(shapes.get(name, held.shape)) * held.element_size()
        return found
