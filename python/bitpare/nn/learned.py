"""Quantizers with trained scales, and quantizers whose scales need no stored range."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bitpare import functional as bpf
from bitpare.nn.quantizer import REGISTERED, Quantizer
from bitpare.nn.ranges import RangeQuantizer
from bitpare.spec.grid import Grid
from bitpare.spec.qspec import QSpec


def kept_share(weight: Tensor, axis: int | None) -> Tensor:
    """Return the share of nonzero values in a weight for each scale, so that pruned values do not
    count in a mean. It is 1 if all values are 0."""
    dims = [d for d in range(weight.dim()) if d != axis]
    share = (weight.detach() != 0).float().mean(dims)
    return torch.where(share > 0, share, 1.0)


class _FromData(Quantizer):
    """A quantizer whose scale is set by the first data and then trained.

    count: the number of batches seen by a calibration, or -1 once the scale is set."""

    count: Tensor

    def _awaits_data(self) -> None:
        self.calibrated = False
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def _start(self, x: Tensor) -> None:
        """Set the scale from the first values, unless a state was loaded."""
        if int(self.count) >= 0:
            if self.role == "activation" and not self.training:
                self._require_calibrated()
            self.observe(x)
            self.conclude()
        self.calibrated = True

    def restart(self) -> None:
        if self.role == "activation":
            self.forget()

    def forget(self) -> None:
        self.count.zero_()
        self.calibrated = False

    def conclude(self) -> None:
        if int(self.count) > 0:
            with torch.no_grad():
                self._set_scale()
            self.count.fill_(-1)
            self.calibrated = True

    def _set_scale(self) -> None:
        raise NotImplementedError

    def _read_control(self) -> None:
        super()._read_control()
        self.calibrated = bool(self.count < 0)


class LearnedQuantizer(_FromData):
    """A quantizer with a trained scale: LSQ (Esser et al. 2020).

    LSQ+ (Bhalgat et al. 2020) learns an offset too. PACT (Choi et al. 2018) learns the top of
    the range, which determines the scale. Scales start at 2 mean|x| / sqrt(quant_max), from the
    weights, from a calibration or from the first training batch."""

    def __init__(
        self, spec: QSpec, grid: Grid, name: str, role: str, scales: int = 1, limit: float = 0.0
    ) -> None:
        super().__init__(spec, grid, name, role)
        self.kind = spec.learn or "lsq"
        self.limit = limit
        self.scale = nn.Parameter(torch.ones(scales))
        self.offset = nn.Parameter(torch.zeros(scales)) if self.kind == "lsq+" else None
        # Sums of minimum, maximum and mean|x| over the batches of a calibration.
        self.register_buffer("statistics", torch.zeros(3, scales))
        self._awaits_data()

    def quantize(self, x: Tensor) -> Tensor:
        if not self.calibrated:
            self._start(x.detach())
        return self._where_on(self._pact if self.kind == "pact" else self._lsq, x)

    def zero_code(self) -> int:
        if self.offset is None:
            return 0
        low, high = self.limits
        learned = (low - self.offset / self.scale).reshape(()).clamp(low, high)
        return int(torch.round(learned))

    def _lsq(self, x: Tensor) -> Tensor:
        grid = self.grid
        zero_point = None
        if self.offset is not None:
            zero_point = (grid.quant_min - self.offset / self.scale).clamp(
                grid.quant_min, grid.quant_max
            )
        return bpf.fake_quant_lsq(
            x,
            self._shaped(x, self.scale),
            None if zero_point is None else self._shaped(x, zero_point),
            quant_min=grid.quant_min,
            quant_max=grid.quant_max,
            axis=grid.axis,
            group=grid.group,
        )

    def _pact(self, x: Tensor) -> Tensor:
        """Quantize clip(x, 0, top). The gradient of the top comes from clipped values (eq. 3)."""
        scale = self.scale.clamp(min=2.0**-40)
        top = scale * self.grid.quant_max
        clipped = torch.where(x < top, x.clamp(min=0), top.to(x.dtype))
        return bpf.fake_quant(
            clipped,
            scale.detach(),
            quant_min=0,
            quant_max=self.grid.quant_max,
            estimator="identity",
        )

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        if self.calibrated:  # a weight, while the activations are calibrated
            return
        x, axis = self._rows(x)
        low, high = bpf.minmax(x, axis=axis)
        magnitude = bpf.mean_magnitude(x, axis=axis)
        if self.role == "weight":
            magnitude = magnitude / kept_share(x, axis)
        batch = torch.stack([low, high, magnitude]).reshape(3, -1)
        usable = torch.isfinite(batch).all()
        self.statistics += torch.where(usable, batch, 0)
        self.count += usable

    def forget(self) -> None:
        super().forget()
        self.statistics.zero_()

    def _set_scale(self) -> None:
        grid = self.grid
        low, high, magnitude = self.statistics / self.count
        if self.kind == "lsq+":
            low, high = low.clamp(max=0), high.clamp(min=0)
            self.scale.copy_((high - low) / (grid.quant_max - grid.quant_min))
            assert self.offset is not None
            self.offset.copy_(low)
        elif self.kind == "pact":
            self.scale.copy_(high / grid.quant_max)
        else:
            self.scale.copy_(2 * magnitude / math.sqrt(max(grid.quant_max, 1)))
        self.scale.clamp_(min=2.0**-40)
        self.hold_limit()
        self.statistics.zero_()

    def hold_limit(self) -> None:
        """Keep the grid within the top of the activation, so that a runtime can leave out its
        clamp."""
        if self.limit > 0:
            levels = self.grid.quant_max - self.grid.quant_min
            top = math.nextafter(self.limit / levels, 0.0)
            with torch.no_grad():
                self.scale.clamp_(max=top)

    def _rescale(self, before: Grid) -> None:
        if self.calibrated:
            with torch.no_grad():
                if self.kind == "lsq":  # the starting scale depends on sqrt(quant_max)
                    ratio = math.sqrt(max(before.quant_max, 1) / max(self.grid.quant_max, 1))
                else:
                    ratio = (before.quant_max - before.quant_min) / (
                        self.grid.quant_max - self.grid.quant_min
                    )
                self.scale.mul_(ratio)
                self.hold_limit()


class BinaryQuantizer(Quantizer):
    """A quantizer to {-s, s}, to {0, s} if the values are not negative, or ternary to {-s, 0, s}.

    s is the mean magnitude (Rastegari et al. 2016, Li et al. 2016)."""

    scale: nn.Parameter | None

    def __init__(
        self, spec: QSpec, grid: Grid, name: str, role: str, scales: int = 1, limit: float = 0.0
    ) -> None:
        super().__init__(spec, grid, name, role)
        del scales, limit
        self.ternary = spec.learn == "ternary"
        self.levels: Literal["sign", "zero_one"] = "zero_one" if grid.quant_min == 0 else "sign"
        self.scale = None

    def quantize(self, x: Tensor) -> Tensor:
        return self._where_on(self._binarized, x)

    def _binarized(self, x: Tensor) -> Tensor:
        grid = self.grid
        estimator: Any = self.spec.estimator
        if self.ternary:
            return bpf.ternarize(x, axis=grid.axis, group=grid.group, estimator=estimator)
        y = bpf.binarize(
            x,
            self.scale,
            levels=self.levels,
            axis=grid.axis,
            group=grid.group,
            estimator=estimator,
        )
        if self.mask is None or self.scale is not None:
            return y
        rows, axis = self._rows(x)  # average the magnitude over the unmasked weights only
        share = kept_share(rows, axis)
        if axis is not None:
            share = share.view([-1 if d == axis else 1 for d in range(rows.dim())])
        return (y.view_as(rows) / share).view_as(y)

    @property
    def holds_zero(self) -> bool:
        return self.ternary

    def output_scales(self, value: Tensor) -> Tensor:
        return value.abs().flatten(1).amax(1)

    def no_codes(self) -> str | None:
        return "binary activations"

    def integer_form(self) -> str:
        return "ternary" if self.ternary else "binary"


class LearnedBinaryQuantizer(_FromData, BinaryQuantizer):
    """A quantizer to {-s, s} or {0, s}; s starts at the mean magnitude and is trained."""

    def __init__(
        self, spec: QSpec, grid: Grid, name: str, role: str, scales: int = 1, limit: float = 0.0
    ) -> None:
        super().__init__(spec, grid, name, role, scales, limit)
        self.scale = nn.Parameter(torch.ones(scales))
        self._awaits_data()

    def quantize(self, x: Tensor) -> Tensor:
        if not self.calibrated:
            self._start(x.detach())
        return super().quantize(x)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        if int(self.count) == 0:
            assert self.scale is not None
            magnitude = bpf.mean_magnitude(x, axis=self.grid.axis, group=self.grid.group).reshape(
                -1
            )
            if self.role == "weight":
                magnitude = magnitude / kept_share(*self._rows(x))
            self.scale.copy_(magnitude)
            self.count.fill_(1)

    def _set_scale(self) -> None:
        """Do nothing: ``observe`` set the scale from the first batch."""


class DorefaQuantizer(Quantizer):
    """DoReFa (Zhou et al. 2016). Weights go through tanh onto 2^bits levels of [-1, 1] (eq. 9);
    activations are clipped to [0, 1] (eq. 11)."""

    def __init__(
        self, spec: QSpec, grid: Grid, name: str, role: str, scales: int = 1, limit: float = 0.0
    ) -> None:
        super().__init__(spec, grid, name, role)
        del scales, limit
        self.register_buffer("scale", torch.full((1,), 1.0 / (2**spec.bits - 1)))

    @property
    def limits(self) -> tuple[int, int]:
        return 0, 2**self.bits - 1

    def output_scales(self, value: Tensor) -> Tensor:
        return torch.full((value.shape[0],), 1.0 / (2**self.bits - 1), device=value.device)

    def quantize(self, x: Tensor) -> Tensor:
        return self._where_on(self._on_levels, x)

    @property
    def holds_zero(self) -> bool:
        return self.role == "activation"

    def _on_levels(self, x: Tensor) -> Tensor:
        top = 2**self.bits - 1
        if self.role == "activation":
            return bpf.fake_quant(x, self.scale, quant_min=0, quant_max=top)
        bent = torch.tanh(x)
        unit = bent / (2 * bent.detach().abs().max().clamp(min=2.0**-40)) + 0.5
        levels = bpf.fake_quant(unit, self.scale, quant_min=0, quant_max=top, estimator="identity")
        return 2 * levels - 1

    def _rescale(self, before: Grid) -> None:
        self.scale.fill_(1.0 / (2**self.bits - 1))


class DynamicQuantizer(Quantizer):
    """A quantizer that uses the range of each batch or each token, in training and at inference."""

    def __init__(
        self, spec: QSpec, grid: Grid, name: str, role: str, scales: int = 1, limit: float = 0.0
    ) -> None:
        super().__init__(spec, grid, name, role)
        del scales, limit

    def quantize(self, x: Tensor) -> Tensor:
        return self._where_on(self._with_its_range, x)

    def _with_its_range(self, x: Tensor) -> Tensor:
        grid, per_token = self.grid, self.spec.granularity == "token"
        with torch.no_grad():
            values = x.detach().reshape(-1, x.shape[-1]) if per_token else x.detach()
            low, high = bpf.minmax(values, axis=0 if per_token else None)
            scale, zero_point = bpf.qparams(
                low * self.spec.stretch,
                high * self.spec.stretch,
                quant_min=grid.quant_min,
                quant_max=grid.quant_max,
                symmetric=grid.symmetric,
                power_of_two=self.spec.power_of_two,
            )
            if per_token:
                scale, zero_point = (t.view(*x.shape[:-1], 1) for t in (scale, zero_point))
        group = x.shape[-1] if per_token else None
        return self._fake_quant(x, scale, None if grid.symmetric else zero_point, None, group)

    def integer_form(self) -> str:
        return super().integer_form() + " dynamic"


def quantizer_class(spec: QSpec) -> Callable[..., Quantizer]:
    """Return the quantizer class for a spec."""
    if spec.learn in REGISTERED:
        return REGISTERED[spec.learn]
    if spec.dynamic:
        return DynamicQuantizer
    if spec.bits == 1 or spec.learn in ("binary", "ternary"):
        return LearnedBinaryQuantizer if spec.learn == "lsq" else BinaryQuantizer
    if spec.learn == "dorefa":
        return DorefaQuantizer
    return LearnedQuantizer if spec.learn else RangeQuantizer
