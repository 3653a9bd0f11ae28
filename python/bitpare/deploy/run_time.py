"""Layers without a fixed grid of activations: the grid is computed for each batch, or activations
are float and only weights are integers."""

from typing import Any

import torch
from torch import Tensor, nn

from bitpare.deploy.meaning import Activation
from bitpare.deploy.numbers import (
    integer_quantizer,
    no_codes,
    no_integers,
    norm_of,
    weight_codes,
)
from bitpare.errors import Unsupported
from bitpare.nn.learned import DynamicQuantizer, LearnedQuantizer
from bitpare.nn.quantizer import Quantizer
from bitpare.nn.ranges import RangeQuantizer
from bitpare.spec.grid import LEAST_SCALE


def no_form(q: Quantizer) -> str | None:
    """Return why a quantizer of activations has no integer form, or None if it has one."""
    return no_integers(q) if isinstance(q, DynamicQuantizer) else no_codes(q)


def dynamic_fields(q: Quantizer, activation: Activation) -> dict[str, Any]:
    """Return the fields of the operation that computes a grid and quantizes values to it."""
    return {
        "op": "dynamic",
        "grid": [q.grid.quant_min, q.grid.quant_max],
        "symmetric": q.grid.symmetric,
        "power_of_two": q.spec.power_of_two,
        "per_row": q.spec.granularity == "token",
        "stretch": q.spec.stretch,
        "bounds": [activation.low, activation.high],
    }


def dynamic_numbers(layer: Any, bn: nn.Module | None) -> dict[str, Tensor]:
    """Return the tensors of a convolution or linear layer with a dynamic input grid, and its
    BatchNorm: the weight codes, the multipliers and the offsets."""
    codes = weight_codes(layer)
    factor, offset = norm_of(layer, bn, codes.codes.shape[0], codes.codes.device)
    if bool((codes.codes.abs().flatten(1).sum(1) * 510 >= 2**31).any()):
        raise Unsupported("its sums could overflow 32 bits")
    return {
        "weight": codes.codes.to(torch.int8),
        "multiplier": (codes.scale * factor).float(),
        "offset": offset.float(),
    }


def linear_numbers(layer: Any) -> dict[str, Any]:
    """Return the tensors of a linear layer with integer weights and float activations: codes,
    scales and zero points as [outputs, groups], and the number of inputs per group."""
    q = integer_quantizer(layer)
    outputs, inputs = layer.weight.shape
    grouped = q.grid.group is not None and isinstance(q, RangeQuantizer | LearnedQuantizer)
    if grouped or not q.grid.symmetric:
        group = q.grid.group or inputs
        codes, scale, zeros = _grouped(layer, q, outputs, inputs // group)
    else:
        found = weight_codes(layer)
        group, zeros = inputs, None
        codes, scale = found.codes.to(torch.int8), found.scale.float().view(outputs, 1)
    made = {"weight": codes, "multiplier": scale, "group": group}
    if zeros is not None:
        made["zeros"] = zeros
    if layer.bias is not None:
        made["offset"] = layer.bias.detach().float()
    return made


def _grouped(layer: Any, q: Any, outputs: int, groups: int) -> tuple[Tensor, Tensor, Tensor | None]:
    if q.bits > 8:
        raise Unsupported(f"weights of {q.bits} bits")
    with torch.no_grad():
        value = layer.quantized_weight().detach().float().view(outputs, groups, -1)
        scale = _by_group(q.scale.detach().float().clamp(min=LEAST_SCALE), outputs, groups)
        codes = torch.round(value / scale[..., None])
        zeros = getattr(q, "zero_point", None)
        if zeros is not None:
            down = 2 ** (q.bits - 1) if q.grid.quant_min >= 0 else 0  # store signed codes
            zeros = _by_group(zeros.detach().float(), outputs, groups) - down
            codes = codes + zeros[..., None]
        less = codes if zeros is None else codes - zeros[..., None]
        fits = bool((codes >= -128).all() and (codes <= 127).all())
        if not fits or not torch.equal(less * scale[..., None], value):
            raise Unsupported(f"weights of {q.integer_form()} have no integer form")
    kept = None if zeros is None or not bool(zeros.any()) else zeros.contiguous().to(torch.int8)
    return codes.view(outputs, -1).to(torch.int8), scale.contiguous(), kept


def _by_group(numbers: Tensor, outputs: int, groups: int) -> Tensor:
    """Return numbers of a tensor, its outputs or its groups as [outputs, groups]."""
    if numbers.numel() == outputs * groups:
        return numbers.reshape(outputs, groups)
    return numbers.reshape(-1, 1).expand(outputs, groups)
