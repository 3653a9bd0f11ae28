"""Show the values of one weight as floats, as integers, and dequantized."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from bitpare.deploy.integer import IntegerModel
from bitpare.models import unwrapped
from bitpare.nn.hub import find_hub
from bitpare.nn.weights import quantized_weights
from bitpare.report.grids import decibels, is_affine, on_scales, power, zero_point_of
from bitpare.report.layers import on_weight


@dataclasses.dataclass(frozen=True)
class Values:
    """The values of a weight. weight: the masked float weight. codes: its integers, or None.
    dequantized: the values of the integers. scale, zero_point: those of the quantizer."""

    weight: Tensor
    codes: Tensor | None
    dequantized: Tensor
    scale: Tensor | None
    zero_point: Tensor | None

    @property
    def error(self) -> Tensor:
        return self.dequantized - self.weight

    @property
    def channels(self) -> list[float]:
        """Return the SQNR of each output channel, in dB."""
        rows = zip(self.weight.flatten(1), self.error.flatten(1), strict=True)
        return [decibels(power(w), power(e)) for w, e in rows]


@torch.no_grad()
def values(model: nn.Module, layer: str) -> Values:
    """Return the values of a quantized weight of a prepared model. ``layer``: the name of the
    weight or of its layer.

    >>> import bitpare as bp
    >>> net = nn.Sequential(nn.Linear(2, 1))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, -0.3]]))
    >>> seen = values(bp.prepare(net, example_inputs=(torch.ones(1, 2),)), "0")
    >>> seen.codes.tolist(), seen.dequantized
    ([[127, -38]], tensor([[ 1.0000, -0.2992]]))
    """
    if isinstance(model, IntegerModel):
        raise TypeError(
            "report.values: the model must come from bp.prepare, got an integer model: its codes "
            "are buffers of model.programs"
        )
    inner = unwrapped(model)
    find_hub(inner, "report.values")
    weights = list(quantized_weights(inner))
    found = [w for w in weights if layer in (w.name, w.name.rpartition(".")[0], w.quantizer.name)]
    if not found:
        known = ", ".join(w.name for w in weights[:8])
        raise ValueError(f"report.values: no quantized weight {layer!r}; there are {known}")
    if len(found) > 1:
        known = ", ".join(w.name for w in found)
        raise ValueError(f"report.values: {layer!r} has several weights; give one of {known}")
    q, weight = on_weight(found[0].quantizer, found[0].value)
    return _values(weight, q.quantize(weight), q)


def _values(weight: Tensor, got: Tensor, q: Any) -> Values:
    scale = getattr(q, "scale", None)
    scale = scale.detach() if isinstance(scale, Tensor) else None
    if scale is None or not is_affine(q):
        return Values(weight, None, got, scale, None)
    zero = zero_point_of(q)
    rows, factors = on_scales(q, got, scale)
    codes = torch.round(rows / factors)
    if zero is not None:
        codes = codes + on_scales(q, got, zero.float())[1]
    return Values(weight, codes.to(torch.int32).view(weight.shape), got, scale, zero)
