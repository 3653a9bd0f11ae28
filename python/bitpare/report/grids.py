"""Place values on the grid of a quantizer."""

import dataclasses
import itertools
import math
from typing import Any

import torch
from torch import Tensor

from bitpare import functional as bpf
from bitpare.nn.learned import (
    BinaryQuantizer,
    DorefaQuantizer,
    DynamicQuantizer,
    LearnedQuantizer,
)
from bitpare.nn.quantizer import Quantizer

MOST_LEVELS = 1 << 16


@dataclasses.dataclass(frozen=True)
class Ruler:
    """A grid to draw, in steps from zero, because the size of a step may differ between scales.

    levels: the positions of the levels, in order. low, high: values beyond are clipped; None if
    none are. step: the size of a step, or None if it differs."""

    levels: list[float]
    low: float | None
    high: float | None
    step: float | None


@dataclasses.dataclass
class Placed:
    """Values on a grid. steps: the positions, in steps from zero. wanted, got: the values before
    and after quantization. codes: the index of each value's level. clipped: the number of clipped
    values."""

    steps: Tensor
    wanted: Tensor
    got: Tensor
    codes: Tensor | None
    clipped: Tensor | None


def on_scales(q: Any, x: Tensor, per_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return x, as rows if scales belong to groups, and scales that broadcast with it."""
    rows, axis = q._rows(x)
    if axis is None or per_scale.numel() == 1:
        return rows, per_scale.reshape(()) if per_scale.numel() == 1 else per_scale
    return rows, per_scale.view([-1 if d == axis else 1 for d in range(rows.dim())])


def _float_levels(exponent: int, mantissa: int, top: float) -> list[float]:
    """Return the values of a small floating-point format."""
    if exponent + mantissa > 10:
        return []
    bias = 2 ** (exponent - 1) - 1
    found = {0.0}
    for e, m in itertools.product(range(2**exponent), range(2**mantissa)):
        part = m / 2**mantissa
        value = (1 + part) * 2.0 ** (e - bias) if e else part * 2.0 ** (1 - bias)
        if value <= top:
            found |= {value, -value}
    return sorted(found)


def zero_point_of(q: Any) -> Tensor | None:
    if isinstance(q, LearnedQuantizer):
        if q.offset is None:
            return None
        low, high = q.grid.quant_min, q.grid.quant_max
        return torch.round((low - q.offset / q.scale).clamp(low, high)).detach()
    found = getattr(q, "zero_point", None)
    return found if isinstance(found, Tensor) else None


def is_affine(q: Quantizer) -> bool:
    """Return whether codes are integers that a scale and a zero point convert to values."""
    bent = isinstance(q, DorefaQuantizer) and q.role == "weight"
    return not (q.spec.is_float or bent or isinstance(q, BinaryQuantizer | DynamicQuantizer))


def _limits(q: Quantizer) -> tuple[int, int]:
    if isinstance(q, DorefaQuantizer):
        return 0, 2**q.bits - 1
    return q.grid.quant_min, q.grid.quant_max


def ruler_of(q: Any) -> Ruler | None:
    """Return the ruler of a quantizer, or None if its grid is dynamic or not yet known."""
    if not q.calibrated or isinstance(q, DynamicQuantizer):
        return None
    scale = getattr(q, "scale", None)
    step = float(scale.detach()) if isinstance(scale, Tensor) and scale.numel() == 1 else None
    if isinstance(q, BinaryQuantizer):
        levels = [-1.0, 0.0, 1.0] if q.ternary else [-1.0, 1.0]
        return Ruler([0.0, 1.0] if q.grid.quant_min == 0 else levels, None, None, step)
    if q.spec.is_float:
        top = float(q.grid.quant_max)
        return Ruler(_float_levels(q.spec.exponent, q.spec.mantissa, top), -top, top, step)
    if isinstance(q, DorefaQuantizer) and q.role == "weight":
        top = 2**q.bits - 1
        return Ruler([2 * k / top - 1 for k in range(top + 1)], None, None, 1.0)
    low, high = _limits(q)
    zero = zero_point_of(q)
    middle = 0.0 if zero is None else float(zero.float().median())
    levels = [k - middle for k in range(low, high + 1)] if high - low < MOST_LEVELS else []
    return Ruler(levels, low - middle, high - middle, step)


@torch.no_grad()
def place(q: Any, x: Tensor) -> Placed:
    """Return the result of a calibrated quantizer in eval for x."""
    got = q.quantize(x)
    if isinstance(q, DynamicQuantizer):
        return Placed(x, x, got, None, None)
    if isinstance(q, BinaryQuantizer):
        rows, axis = q._rows(x)
        dims = [d for d in range(rows.dim()) if d != axis]
        size = got.view_as(rows).abs().amax(dims, keepdim=True).clamp(min=2.0**-40)
        levels = torch.round(got.view_as(rows) / size)
        lowest, width = (0.0, 1.0) if q.grid.quant_min == 0 else (-1.0, 1.0 if q.ternary else 2.0)
        return Placed(rows / size, x, got, ((levels - lowest) / width).long(), None)
    if isinstance(q, DorefaQuantizer) and q.role == "weight":
        bent = torch.tanh(x)
        bent = bent / bent.abs().max().clamp(min=2.0**-40)
        codes = torch.round((got + 1) / 2 * (2**q.bits - 1))
        return Placed(bent, bent, got, codes.long(), None)
    scale = q.scale.detach().clamp(min=2.0**-40)
    rows, scale = on_scales(q, x, scale)
    steps, back = rows / scale, got.view_as(rows) / scale
    if q.spec.is_float:
        levels = torch.tensor(ruler_of(q).levels, device=x.device)  # type: ignore[union-attr]
        between = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize(back.float(), between) if len(levels) else None
        top = q.grid.quant_max * (
            1 + 2.0 ** -(q.spec.mantissa + 2)
        )  # the largest value that rounds to the last level
        return Placed(steps, x, got, codes, (steps.abs() > top).sum())
    low, high = _limits(q)
    zero = zero_point_of(q)
    shift = 0.0 if zero is None else on_scales(q, x, zero.float())[1]
    codes = (torch.round(back) + shift - low).long()
    clipped = ((steps + shift > high + 0.5) | (steps + shift < low - 0.5)).sum()
    return Placed(steps, x, got, codes, clipped)


@torch.no_grad()
def best_range(q: Quantizer, x: Tensor) -> tuple[Tensor, Tensor, float] | None:
    """Return the minimum and maximum of the range that quantizes x best, and its SQNR. Return None
    for grids whose range cannot be chosen."""
    if not is_affine(q) or isinstance(q, DorefaQuantizer) or x.numel() == 0:
        return None
    rows, axis = q._rows(x.float())
    if not bool(torch.isfinite(rows).all()):
        return None
    grid: dict[str, Any] = {"quant_min": q.grid.quant_min, "quant_max": q.grid.quant_max}
    symmetric = q.grid.symmetric
    low, high = bpf.mse_range(rows, **grid, symmetric=symmetric, axis=axis)
    scale, zero_point = bpf.qparams(
        low, high, **grid, symmetric=symmetric, power_of_two=q.spec.power_of_two
    )
    got = bpf.fake_quant(rows, scale, None if symmetric else zero_point, **grid, axis=axis)
    return low, high, decibels(power(rows), power(rows - got))


def power(x: Tensor) -> Tensor:
    return x.float().square().sum(dtype=torch.float64)


def decibels(signal: Tensor | float, noise: Tensor | float) -> float:
    """Return 10 log10(signal / noise): inf without noise, -inf if there are NaN or infinite
    values."""
    signal, noise = float(signal), float(noise)
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return -math.inf
    return math.inf if noise == 0.0 else 10 * math.log10(max(signal, 1e-300) / noise)
