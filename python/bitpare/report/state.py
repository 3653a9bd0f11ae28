"""Read the weights and quantizers in a state dict, without the classes of its model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bitpare.nn.ranges import RangeQuantizer
from bitpare.nn.weights import is_sharded
from bitpare.report.layers import Measured
from bitpare.report.tally import Tally
from bitpare.spec.grid import Grid
from bitpare.spec.qspec import QSpec

_CONTROL = ".control"


def rows_of_state(state: Mapping[str, Any]) -> list[Measured]:
    """Return the weights with their saved scales, and the scales of activations. Raise ValueError
    if the state of a quantizer is invalid."""
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    weights: list[Measured] = []
    others: list[Measured] = []
    for key, control in tensors.items():
        if not key.endswith(_CONTROL) or control.numel() != 5:
            continue
        place = key.removesuffix(_CONTROL)
        owner = weight_of(place)
        try:
            q = _quantizer(place, owner, tensors, control)
        except (RuntimeError, ValueError, IndexError, ArithmeticError) as error:
            raise ValueError(f"{place} is not the state of a quantizer") from error
        if owner is None:
            others.append(Measured(place, q, None, len(others)))
            continue
        value = tensors.get(owner)
        tally = None
        if value is not None and value.numel() and value.is_floating_point():
            tally = Tally(q, value.device)
            tally.add(value)
        q.name = owner.removesuffix(".weight")
        learned = f"{place}.statistics" in tensors
        weights.append(Measured(q.name, q, tally, len(weights), learned))
    return [*weights, *others]


class Unquantized:
    """Takes the place of a quantizer for a float weight."""

    spec = QSpec()
    role = "weight"
    calibrated = False

    def __init__(self, name: str, value: Tensor) -> None:
        self.name, self.bits = name, 8 * value.element_size()
        self._form = str(value.dtype).removeprefix("torch.")

    def integer_form(self) -> str:
        return self._form


def is_prepared(state: Mapping[Any, Any]) -> bool:
    """Return whether a state contains quantizers."""
    return any(
        isinstance(key, str) and key.endswith(_CONTROL) and isinstance(value, Tensor)
        for key, value in state.items()
    )


def rows_of_floats(tensors: Mapping[str, Any]) -> list[Measured]:
    """Return the weights of a model without quantizers."""
    found: list[Measured] = []
    for key, value in tensors.items():
        if is_weight(value):
            q = Unquantized(key.removesuffix(".weight"), value)
            tally = Tally(q, value.device)
            tally.add(value)
            found.append(Measured(q.name, q, tally, len(found)))
    return found


def is_weight(value: Any) -> bool:
    floats = isinstance(value, Tensor) and value.is_floating_point() and not is_sharded(value)
    return floats and value.dim() >= 2 and value.numel() > 0


def weight_of(place: str) -> str | None:
    """Return the name of the weight that the quantizer at a path belongs to, or None for
    activations."""
    owner, _, last = place.rpartition(".")
    above, _, group = owner.rpartition(".")
    start = f"{owner}." if owner else ""
    if last == "bp_weight":
        return f"{start}weight"
    if last == "bp_out":
        return f"{start}out_proj.weight"
    if group in ("bp_weights", "bp_in"):
        return f"{above}.{last}" if above else last
    return None


def _quantizer(
    place: str, owner: str | None, tensors: Mapping[str, Tensor], control: Tensor
) -> Any:
    """Return a quantizer that rounds like the saved one. It is uncalibrated if the state does not
    contain enough to know how."""
    low, high = (int(v) for v in control[:2])
    scale, weight = tensors.get(f"{place}.scale"), tensors.get(owner or "")
    zero = tensors.get(f"{place}.zero_point")
    offset = tensors.get(f"{place}.offset")
    if offset is not None and scale is not None:
        zero = torch.round((low - offset / scale).clamp(low, high)).to(torch.int32)
    count = tensors.get(f"{place}.count")
    binary = count is not None and count.dim() == 0 and f"{place}.statistics" not in tensors
    seen = count is None or (count.dim() == 0 and int(count) < 0) or int(count.flatten()[0]) > 0
    whole = high > 0 and (high + 1) & high == 0 and low in (0, -high, -high - 1)
    place_of_scales: tuple[int | None, int | None] = (None, None)
    if scale is not None and weight is not None:
        found = scales_of(weight, scale.numel())
        place_of_scales, whole = found or (None, None), whole and found is not None
    grid = Grid(low, high, zero is None, *place_of_scales)
    role = "activation" if owner is None else "weight"
    n = 1 if scale is None else scale.numel()
    q = RangeQuantizer(QSpec(bits=min(max(grid.bits, 1), 16)), grid, place, role, n).eval()
    q.bits = grid.bits
    q.set_flags(observe=False, quantize=True)
    sound = scale is not None and bool((torch.isfinite(scale) & (scale > 0)).all())
    q.calibrated = sound and seen and whole and not binary
    if scale is not None:
        q.scale.copy_(scale.detach().reshape(-1).float())
    if zero is not None and q.zero_point is not None:
        q.zero_point.copy_(zero.reshape(-1))
    return q


def scales_of(weight: Tensor, count: int) -> tuple[int | None, int | None] | None:
    """Return the axis and group of this many scales, or None if they do not fit the weight."""
    if count == 1:
        return None, None
    for axis in range(min(weight.dim(), 2)):
        if count == weight.shape[axis]:
            return axis, None
    if weight.dim() and weight.numel() % count == 0:
        group = weight.numel() // count
        if weight.shape[-1] % group == 0:
            return None, group
    return None
