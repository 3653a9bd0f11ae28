"""Quantizers whose scales follow from the range of the data."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitpare import functional as bpf
from bitpare.nn.quantizer import ACTIVATIONS, OBSERVE, Quantizer
from bitpare.nn.weights import QuantizedWeight
from bitpare.spec.grid import Grid
from bitpare.spec.qspec import QSpec

_ops = torch.ops.bitpare
_bn_act_fake_quant = _ops.bn_act_fake_quant.default
_act_fake_quant = _ops.act_fake_quant.default
_fake_quant_weights = _ops.fake_quant_weights.default
_use_weight = _ops.use_weight.default
_update_ranges = _ops.update_ranges_.default
BINS = 2048


class RangeQuantizer(Quantizer):
    """A quantizer whose scale follows from a range: of the current weight, or of the activations so
    far.

    A training forward quantizes with the current range and stores the batch's range in
    ``pending``. ``Hub`` merges it at the start of the model's next training forward.

    range, pending: minimum and maximum, [2, scales]. count: the number of merged batches and of
    batches skipped because of NaN or infinite values. histogram: counts, limit and skipped
    batches of a calibration."""

    scale: Tensor
    zero_point: Tensor | None
    range: Tensor
    pending: Tensor
    count: Tensor

    def __init__(
        self, spec: QSpec, grid: Grid, name: str, role: str, scales: int = 1, limit: float = 0.0
    ) -> None:
        super().__init__(spec, grid, name, role)
        self.limit = limit
        self.method = spec.range or ("minmax" if role == "weight" else "ema")
        self.calibrated = role == "weight"
        self.register_buffer("scale", torch.ones(scales))
        zero_point = None if grid.symmetric else torch.zeros(scales, dtype=torch.int32)
        self.register_buffer("zero_point", zero_point)
        if role == "activation":
            self.register_buffer("range", torch.zeros(2, scales))
            self.register_buffer("pending", _nothing(scales))
            self.register_buffer("count", torch.zeros(2, dtype=torch.int64))
        simple = spec.rounding == "nearest" and spec.estimator == "ste" and spec.stretch == 1.0
        self.simple = simple and not spec.is_float and self.method in ("minmax", "ema")
        self.fast = self.simple and role == "activation" and scales == 1
        self.batched = (
            self.simple
            and role == "weight"
            and grid.symmetric
            and grid.axis in (None, 0)
            and grid.group is None
        )
        self.histogram: tuple[Tensor, Tensor, Tensor] | None = None
        if spec.rounding == "stochastic":
            self.register_buffer("rng", torch.zeros(2, dtype=torch.int64))
        if isinstance(self.method, tuple):
            self._give_range(*self.method)

    @property
    def scales(self) -> int:
        return self.scale.numel()

    def _give_range(self, low: float, high: float) -> None:
        self.calibrated, self.may_observe = True, False
        limits = torch.tensor([[low], [high]]).expand(2, self.scales) * self.spec.stretch
        if self.role == "activation":
            self.range.copy_(limits)
            self.count[0] = 1
            self.observing = False
            self.control[OBSERVE] = 0
        self._set_scale(limits[0], limits[1])

    # -- quantizing

    @property
    def rule(self) -> str:
        """Return how a pending range is merged into the current range."""
        return "minmax" if self.method == "minmax" else "ema"

    def quantize(self, x: Tensor) -> Tensor:
        if self.role == "weight":
            return self._quantize_weight(x)
        if self.training:
            self._observe_batch(x)
        self._require_known()
        return self._where_on(self._on_grid, x)

    def _observe_batch(self, x: Tensor) -> None:
        on = self._on(OBSERVE, self.observing)
        if on is False:
            return
        self._first_batch(x)
        low, high = self._range_of(x.detach())
        if isinstance(on, Tensor):
            low, high = low.where(on, torch.inf), high.where(on, -torch.inf)
        self._fold(low, high)

    def quantize_fast(self, x: Tensor, other: Tensor | None, activation: str) -> Tensor:
        if not self.calibrated:
            value = ACTIVATIONS[activation](x if other is None else x + other)
            self._first_batch(value)
            self._require_known()
        if other is not None and (
            other.shape != x.shape
            or other.dtype != x.dtype
            or activation not in ("none", "relu", "relu6")
        ):
            x, other = x + other, None
        mine = self._buffers
        pending = mine["pending"] if self.training else None
        return _act_fake_quant(
            x,
            other,
            mine["scale"],
            mine["zero_point"],
            mine["control"],
            pending,
            activation=activation,
        )

    def fuses(self) -> bool:
        if not self.fast or self.calibrating or self.bypass:
            return False
        for module in self.watched:
            if module._forward_hooks or module._forward_pre_hooks:
                return False
        return True

    def batch_norm(self, x: Tensor, bn: nn.modules.batchnorm._BatchNorm, activation: str) -> Tensor:
        """Return the quantized value of activation(bn(x)), computed by one op."""
        if not self.calibrated:
            self._start_with_norm(x, bn, activation)
        self.passing.done = self.follows_norm
        mine, parameters, running = self._buffers, bn._parameters, bn._buffers
        return _bn_act_fake_quant(
            x,
            parameters["weight"],
            parameters["bias"],
            running["running_mean"],
            running["running_var"],
            running["num_batches_tracked"],
            mine["scale"],
            mine["zero_point"],
            mine["control"],
            mine["pending"] if self.training else None,
            activation=activation,
            training=bn.training,
            momentum=bn.momentum,
            eps=bn.eps,
        )

    def _start_with_norm(
        self, x: Tensor, bn: nn.modules.batchnorm._BatchNorm, activation: str
    ) -> None:
        """Set the range from the first batch, without changing the running statistics."""
        if self.training:
            with torch.no_grad():
                mean = None if bn.training else bn.running_mean
                variance = None if bn.training else bn.running_var
                y = F.batch_norm(x, mean, variance, bn.weight, bn.bias, bn.training, 0.0, bn.eps)
                self._first_batch(ACTIVATIONS[activation](y))
        self._require_known()

    def _on_grid(self, x: Tensor) -> Tensor:
        zero_point = self.zero_point
        return self._fake_quant(
            x,
            self._shaped(x, self.scale),
            None if zero_point is None else self._shaped(x, zero_point),
            self.grid.axis,
            self.grid.group,
        )

    def zero_code(self) -> int:
        return 0 if self.zero_point is None else int(self.zero_point.reshape(()))

    # -- weights

    def _quantize_weight(self, weight: Tensor) -> Tensor:
        if self.batched:
            # The hub has quantized all weights at once. It has not if a part of the model is called
            # by itself or recomputed; activation checkpointing then needs the same ops.
            value, inside = self.passing.weight or quantize_weights([weight], [self])[0]
            return _use_weight(weight, value, inside)
        self.find_scale(weight)
        return self._where_on(self._on_grid, weight)

    def find_scale(self, weight: Tensor) -> None:
        """Set the scale of a weight from its range, unless the range is fixed or frozen."""
        on = self._on(OBSERVE, self.observing)
        if on is False or isinstance(self.method, tuple):
            return
        with torch.no_grad():
            self._set_scale(*self._range_of(weight.detach()), on)

    # -- ranges

    def _range_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each scale the minimum and maximum of x that the grid should cover."""
        grid, spec, method = self.grid, self.spec, self.method
        x, axis = self._rows(x)
        if method == "mse":
            low, high = bpf.mse_range(
                x,
                quant_min=grid.quant_min,
                quant_max=grid.quant_max,
                symmetric=grid.symmetric,
                axis=axis,
            )
        elif method in ("percentile", "entropy"):
            histogram = self._new_histogram(x.device)
            _ops.observe_histogram_(*histogram, x, axis=axis)
            low, high = self._range_of_histogram(histogram)
        elif method == "sigma":
            dims = [d for d in range(x.dim()) if d != axis] or [0]
            values, counts = x.float(), torch.ones_like(x, dtype=torch.float32)
            if self.role == "weight":  # pruned weights do not count
                counts = (x != 0).float()
            count = counts.sum(dims, keepdim=True).clamp(min=1)
            centre = values.sum(dims, keepdim=True) / count
            variance = ((values - centre).square() * counts).sum(dims) / count.view(-1)
            mean = centre.view(-1) if axis is not None else centre.view(())
            deviation = variance.view_as(mean).sqrt() * spec.sigma
            low, high = mean - deviation, mean + deviation
        else:
            low, high = bpf.minmax(x, axis=axis)
        return low.reshape(-1) * spec.stretch, high.reshape(-1) * spec.stretch

    def _new_histogram(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        counts = torch.zeros(self.scales, BINS, dtype=torch.int64, device=device)
        return (
            counts,
            torch.zeros(self.scales, device=device),
            torch.zeros(self.scales, dtype=torch.int64, device=device),
        )

    def _range_of_histogram(
        self, histogram: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        method: Any = self.method
        return bpf.histogram_range(
            histogram[0],
            histogram[1],
            method=method,
            percentile=self.spec.percentile,
            quant_min=self.grid.quant_min,
            quant_max=self.grid.quant_max,
            symmetric=self.grid.symmetric,
        )

    def _fold(self, low: Tensor, high: Tensor) -> None:
        """Take the range of this batch into the pending one; NaN stays NaN."""
        self.pending[0].copy_(torch.minimum(self.pending[0], low))
        self.pending[1].copy_(torch.maximum(self.pending[1], high))

    def _set_scale(self, low: Tensor, high: Tensor, on: Tensor | bool = True) -> None:
        scale, zero_point = bpf.qparams(
            low,
            high,
            quant_min=self.grid.quant_min,
            quant_max=self.grid.quant_max,
            symmetric=self.grid.symmetric,
            power_of_two=self.spec.power_of_two,
        )
        for mine, found in ((self.scale, scale), (self.zero_point, zero_point)):
            if mine is not None:
                mine.copy_(torch.where(on, found, mine) if isinstance(on, Tensor) else found)

    def merge(self) -> None:
        """Merge the pending range into the current range."""
        update_ranges([self])

    def _first_batch(self, x: Tensor) -> None:
        """Set the range from the first training batch before it is quantized, if not calibrated."""
        if self.calibrated or not (self.training and self.observing and self.quantizing):
            return
        with torch.no_grad():
            self._fold(*self._range_of(x.detach()))
            self.merge()
        self.calibrated = True

    def _require_known(self) -> None:
        if not self.calibrated and self.quantizing:
            self.calibrated = bool(self.count[0] > 0)
            self._require_calibrated()

    # -- calibration

    def observe(self, x: Tensor) -> None:
        if self.role == "weight" or isinstance(self.method, tuple):
            return
        if self.method in ("percentile", "entropy", "mse"):
            if self.histogram is None:
                self.histogram = self._new_histogram(x.device)
            _ops.observe_histogram_(*self.histogram, x, axis=self.grid.axis)
        else:
            self._fold(*self._range_of(x))
            self.merge()

    def restart(self) -> None:
        if self.role == "activation" and not isinstance(self.method, tuple):
            self.histogram = None
            self.count.zero_()
            self.pending.copy_(_nothing(self.scales))
            self.calibrated = False

    def conclude(self) -> None:
        if self.role == "weight" or isinstance(self.method, tuple):
            return
        if self.histogram is not None:
            low, high = self._range_of_histogram(self.histogram)
            self._fold(low * self.spec.stretch, high * self.spec.stretch)
            self.count[1] += self.histogram[2].sum()
            self.histogram = None
            self.count[0] = 0
            self.merge()
        self.calibrated = bool(self.count[0] > 0)

    @property
    def skipped(self) -> int:
        """Return the number of batches left out because of NaN or infinite values."""
        return int(self.count[1]) if self.role == "activation" else 0

    def _rescale(self, before: Grid) -> None:
        if self.role == "activation" and self.calibrated:
            self.merge()

    def _read_control(self) -> None:
        super()._read_control()
        if self.role == "activation":
            self.calibrated = bool(self.count[0] > 0)


def _nothing(scales: int) -> Tensor:
    infinity = torch.full((scales,), float("inf"))
    return torch.stack([infinity, -infinity])


def quantize_weights(
    weights: list[Tensor], quantizers: list[RangeQuantizer]
) -> list[tuple[Tensor, Tensor]]:
    """Return the values and straight-through bits of weights, in one op. The quantizers must be
    alike."""
    with torch.no_grad():
        values, inside = _fake_quant_weights(
            weights,
            [q._buffers["scale"] for q in quantizers],
            [q._buffers["control"] for q in quantizers],
            power_of_two=quantizers[0].spec.power_of_two,
        )
    return list(zip(values, inside, strict=True))


def refresh_scales(weights: Iterable[QuantizedWeight]) -> None:
    """Update the scales that follow from the current range of a weight."""
    batched: dict[bool, list[tuple[Tensor, RangeQuantizer]]] = {}
    for _, owner, attribute, q in weights:
        if isinstance(q, RangeQuantizer):
            weight = getattr(owner, attribute)
            if q.batched:
                batched.setdefault(q.spec.power_of_two, []).append((weight, q))
            else:
                q.find_scale(weight)
    for power_of_two, found in batched.items():
        _ops._weight_scales_(
            [weight for weight, _ in found],
            [q.scale for _, q in found],
            [q.control for _, q in found],
            power_of_two,
        )


def grouped_by_rule(quantizers: list[RangeQuantizer]) -> list[list[RangeQuantizer]]:
    """Group the quantizers whose ranges one op can merge together."""
    groups: dict[tuple[Any, ...], list[RangeQuantizer]] = {}
    for q in quantizers:
        key = (q.rule, q.spec.momentum, q.grid.symmetric, q.spec.power_of_two)
        groups.setdefault(key, []).append(q)
    return list(groups.values())


def update_ranges(alike: list[RangeQuantizer]) -> None:
    """Merge the pending ranges of quantizers that share a rule, in one op."""
    first, buffers = alike[0], [q._buffers for q in alike]
    symmetric = first.grid.symmetric
    _update_ranges(
        [b["pending"] for b in buffers],
        [b["range"] for b in buffers],
        [b["scale"] for b in buffers],
        [] if symmetric else [b["zero_point"] for b in buffers],
        [b["count"] for b in buffers],
        [b["control"] for b in buffers],
        rule=first.rule,
        momentum=first.spec.momentum,
        symmetric=symmetric,
        power_of_two=first.spec.power_of_two,
        limit=[q.limit for q in alike],
    )
