"""Compute the numbers of integer layers: codes of activations and weights, with BatchNorm folded
in."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from bitpare.errors import Unsupported
from bitpare.nn.quantizer import Quantizer
from bitpare.nn.weights import is_sharded
from bitpare.spec.grid import LEAST_SCALE

SIGNED = 128  # codes are bytes, so signed codes are stored plus 128


@dataclasses.dataclass(frozen=True)
class Codes:
    """A grid of bytes, where a byte has the value (byte - zero) * scale.

    low, high: the smallest and largest byte in use."""

    scale: float
    zero: int
    low: int
    high: int

    @property
    def range(self) -> list[int]:
        """Return the range in the form of the kernels: low - zero, high - zero, zero."""
        return [self.low - self.zero, self.high - self.zero, self.zero]

    def clamped(self, low: float | None, high: float | None) -> "Codes":
        """Return the codes with the bounds of a clamp that comes before the quantizer."""
        least = self.low if low is None else max(self.low, self.code(low))
        most = self.high if high is None else min(self.high, self.code(high))
        return dataclasses.replace(self, low=min(least, most), high=most)

    def code(self, value: float) -> int:
        inverse = torch.tensor(1.0) / torch.tensor(self.scale)
        return int(torch.round(torch.tensor(value) * inverse)) + self.zero

    def inverse(self) -> float:
        return float(torch.tensor(1.0) / torch.tensor(self.scale))

    def nearest(self, x: Tensor) -> Tensor:
        """Round x to this grid."""
        codes = torch.round(x * self.inverse()) + self.zero
        return (codes.clamp(self.low, self.high) - self.zero) * self.scale

    def values(self) -> Tensor:
        """Return the values of the 256 bytes."""
        return (torch.arange(256, dtype=torch.float32) - self.zero) * torch.tensor(self.scale)


def no_integers(q: Quantizer) -> str | None:
    """Return why a quantizer of activations produces no bytes, or None if it does."""
    if q.bypass or not q.quantizing:
        return "its quantizer is switched off"
    if q.spec.is_float:
        return "a floating-point format"
    if q.bits > 8:
        return f"activations of {q.bits} bits"
    if q.spec.rounding != "nearest":
        return f"activations rounded '{q.spec.rounding}'"
    return None


def no_codes(q: Quantizer) -> str | None:
    """Return why a quantizer of activations has no fixed grid of bytes, or None if it has."""
    reason = no_integers(q)
    if reason is not None:
        return reason
    if q.spec.dynamic:
        return "dynamic ranges"
    return q.no_codes()


def codes_of(q: Quantizer) -> Codes | None:
    """Return the codes of a quantizer, or None if it has no fixed grid of bytes."""
    if no_codes(q) is not None:
        return None
    q._require_calibrated()
    held: Any = q
    scale = held.scale.detach().float().clamp(min=LEAST_SCALE).reshape(())
    low, high = q.limits
    up = SIGNED if low < 0 else 0
    return Codes(float(scale), q.zero_code() + up, low + up, high + up)


@dataclasses.dataclass
class WeightCodes:
    """The integers of a weight: codes * scale is exactly the quantized weight. ``scale`` is
    float64, with one value per output."""

    codes: Tensor  # int64, [outputs, ...]
    scale: Tensor

    def finer(self) -> tuple[Tensor, Tensor]:
        """Return the same weights in codes of 8 bits. A bias is rounded to one accumulator unit,
        which would be coarse if the weights had few bits."""
        most = max(int(self.codes.abs().max()), 1) if self.codes.numel() else 1
        factor = 2 ** max((127 // most).bit_length() - 1, 0)
        return self.codes * factor, self.scale / factor


def integer_quantizer(layer: Any) -> Quantizer:
    """Return the quantizer of a layer's weight. Raise Unsupported if it gives no integers."""
    q: Quantizer | None = layer.bp_weight
    if q is None:
        raise Unsupported("its weight is in float")
    if q.bypass or not q.quantizing:
        raise Unsupported("its weight's quantizer is switched off")
    if q.spec.is_float:
        raise Unsupported("its weight is in a floating-point format")
    if is_sharded(layer.weight):
        raise Unsupported("its weight is sharded")
    return q


def weight_codes(layer: Any) -> WeightCodes:
    """Return the integers of a layer's weight. Raise Unsupported if there are none."""
    q = integer_quantizer(layer)
    if q.grid.group is not None or q.grid.axis not in (None, 0):
        raise Unsupported("its weight's scales are not one per output")
    with torch.no_grad():
        value = layer.quantized_weight().detach().float()
        scale = q.output_scales(value)
        scale = torch.where(scale == 0, 1.0, scale)
        shape = (-1, *[1] * (value.dim() - 1))
        codes = torch.round(value / scale.view(shape))
        if bool((codes.abs() > 128).any()) or bool((codes == 128).any()):
            raise Unsupported(f"weights of {q.integer_form()} do not fit in 8 bits")
        if not torch.equal(codes * scale.view(shape), value):
            raise Unsupported(f"weights of {q.integer_form()} have no integer form")
    return WeightCodes(codes.long(), scale.double())


def norm_of(
    layer: Any, bn: Any | None, outputs: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the factor and offset of each output in float64, from the layer's bias and
    BatchNorm."""
    factor = torch.ones(outputs, dtype=torch.float64, device=device)
    offset = torch.zeros_like(factor)
    if layer.bias is not None:
        offset = layer.bias.detach().double()
    if bn is not None:
        factor, shift = affine_of(bn)
        offset = offset * factor + shift
    if not bool(torch.isfinite(factor).all() and torch.isfinite(offset).all()):
        raise Unsupported("its BatchNorm or bias is not finite")
    return factor, offset


def affine_of(bn: Any) -> tuple[Tensor, Tensor]:
    """Return the factor and the offset of a BatchNorm in eval, in float64."""
    factor = (bn.running_var.double() + bn.eps).rsqrt()
    if bn.weight is not None:
        factor = factor * bn.weight.detach().double()
    shift = -bn.running_mean.double() * factor
    if bn.bias is not None:
        shift = shift + bn.bias.detach().double()
    return factor, shift


def conv_numbers(
    layer: Any, bn: nn.Module | None, entering: Codes, leaving: Codes | None
) -> dict[str, Tensor]:
    """Return the tensors of a convolution or linear layer and its BatchNorm: int8 weight codes,
    int32 biases, float32 multipliers. ``leaving`` is None for a float result."""
    codes, scale = weight_codes(layer).finer()
    factor, offset = norm_of(layer, bn, codes.shape[0], codes.device)
    shape = (-1, *[1] * (codes.dim() - 1))
    least = (offset.abs() / (entering.scale * 2.0**30)).clamp(min=LEAST_SCALE)
    exact = scale * factor.abs()
    new = torch.where(exact < least, least, exact).float().double()
    raised = exact < least
    requantized = torch.round(codes * (exact / new).view(shape))
    codes = torch.where(raised.view(shape), requantized.long(), codes)
    unit = (torch.tensor(entering.scale) * new.float()).float()
    sign = torch.where(factor < 0, -1.0, 1.0)
    bias = torch.round(offset / (unit.double() * sign))
    extent = codes.abs().flatten(1).sum(1) * 255 + bias.abs()
    if bool((extent >= 2.0**31 - 1).any()):
        raise Unsupported("its sums could overflow 32 bits")
    multiplier = unit if leaving is None else unit / torch.tensor(leaving.scale)
    return {
        "weight": codes.to(torch.int8),
        "bias": bias.to(torch.int32),
        "multiplier": multiplier * sign.float(),
    }
