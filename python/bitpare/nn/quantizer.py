"""Modules that quantize one tensor. They hold state; each computes with one op.

State that a schedule changes lies on the device in ``control`` (int32: quant_min, quant_max,
observe, quantize, freeze), so a change neither synchronises nor recompiles. The copy on the host is
used only for decisions that no compiled graph depends on."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitpare import functional as bpf
from bitpare.errors import Uncalibrated, Unsupported
from bitpare.spec.grid import LEAST_SCALE, Grid
from bitpare.spec.qspec import QSpec

OBSERVE, QUANTIZE, FREEZE = 2, 3, 4
# Quantizers that users registered, by their name in QSpec(learn=).
REGISTERED: dict[str, "type[Quantizer]"] = {}
# Names of state tensors whose last dimension is the scales.
PER_SCALE = ("scale", "zero_point", "offset", "range", "pending", "statistics")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
}


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The state of a quantizer at one time."""

    values: dict[str, Tensor]
    grid: Grid
    bits: int


class Passing:
    """State that is passed between calls within one forward. Setting a module's own attribute is
    ten times slower.

    done: the BatchNorm before has already quantized. weight: the values and straight-through
    bits that the hub computed."""

    __slots__ = ("done", "weight")

    def __init__(self) -> None:
        self.done = False
        self.weight: tuple[Tensor, Tensor] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (Passing, ())


class Quantizer(nn.Module):
    """The base class of quantizers: a module that quantizes one tensor.

    forward(x, other, activation, plain) returns the quantized value of activation(x + other).
    ``plain`` computes the activation if the user's module does so."""

    _bitpare_layer = True  # tracing does not enter it
    control: Tensor
    mask: Tensor | None

    def __init__(self, spec: QSpec, grid: Grid, name: str, role: str) -> None:
        super().__init__()
        self.spec, self.grid, self.name, self.role = spec, grid, name, role
        self.bits = spec.bits
        self.calibrated = True  # subclasses that take ranges from data set False
        self.calibrating = self.bypass = False
        self.observing = self.quantizing = True
        self.loads = 0  # the number of loaded states
        self.passing = Passing()
        # True if the BatchNorm before may quantize too; it sets passing.done at each call.
        self.follows_norm = False
        # The packed mask of a weight, if the forward pass has to apply it.
        self.register_buffer("mask", None, persistent=False)
        self.mask_mode: Literal["hard", "ste"] = "hard"
        # The modules whose result is then quantized early. If one of them has hooks, nothing is
        # fused.
        self.watched: tuple[nn.Module, ...] = ()
        values = [grid.quant_min, grid.quant_max, 1, 1, 0]
        self.register_buffer("control", torch.tensor(values, dtype=torch.int32))

    def forward(
        self,
        x: Tensor,
        other: Tensor | None = None,
        activation: str = "none",
        plain: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        if self.passing.done:
            self.passing.done = False
            return x
        mask = self._buffers["mask"]
        if mask is not None:
            return self._masked(x, mask)
        if self.bypass or self.calibrating or not self.fast:
            value = x if other is None else x + other
            value = (ACTIVATIONS[activation] if plain is None else plain)(value)
            if self.bypass or not value.is_floating_point():
                return value
            if self.calibrating:
                self.observe(value.detach())
                return value
            return self.quantize(value)
        return self.quantize_fast(x, other, activation)

    def _masked(self, weight: Tensor, mask: Tensor) -> Tensor:
        """Return the quantized value of a masked weight. Masked values are 0 even if the grid has
        no 0."""
        weight = bpf.apply_mask(weight, mask, mode=self.mask_mode)
        if self.bypass or self.calibrating:
            return weight
        value = self.quantize(weight)
        return value if self.holds_zero else bpf.apply_mask(value, mask, mode=self.mask_mode)

    @property
    def holds_zero(self) -> bool:
        """Return whether 0 is quantized to 0."""
        return True

    fast = False
    may_observe = True  # False if the range is fixed by the spec

    def quantize(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def quantize_fast(self, x: Tensor, other: Tensor | None, activation: str) -> Tensor:
        raise NotImplementedError

    def _on(self, flag: int, host: bool) -> Tensor | bool:
        """Return whether a flag is set. Compiled graphs read it on the device, other code on the
        host."""
        return self.control[flag] != 0 if torch.compiler.is_compiling() else host

    def _where_on(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return run(x), or x if quantizing is off."""
        on = self._on(QUANTIZE, self.quantizing)
        if isinstance(on, Tensor):
            return torch.where(on, run(x), x)
        return run(x) if on else x

    def observe(self, x: Tensor) -> None:
        """Take x into the running calibration."""

    def conclude(self) -> None:
        """End a calibration."""

    def restart(self) -> None:
        """Begin a calibration, and discard the results of an earlier one."""

    def forget(self) -> None:
        """Discard what was learned from data, because other weights were loaded."""
        self.restart()

    def snapshot(self) -> "Snapshot":
        state = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return Snapshot(
            {name: value.detach().clone() for name, value in state.items()}, self.grid, self.bits
        )

    def put_back(self, snapshot: "Snapshot") -> None:
        """Restore an earlier state."""
        with torch.no_grad():
            for name, value in snapshot.values.items():
                getattr(self, name).copy_(value)
        self.grid, self.bits = snapshot.grid, snapshot.bits
        self._read_control()

    @property
    def skipped(self) -> int:
        """Return the number of batches left out because of NaN or infinite values."""
        return 0

    def fuses(self) -> bool:
        """Return whether the BatchNorm before this quantizer may quantize for it."""
        return False

    def _rows(self, x: Tensor) -> tuple[Tensor, int | None]:
        """Return x and the axis of its scales; groups become rows."""
        if self.grid.group is None:
            return x, self.grid.axis
        return x.reshape(-1, self.grid.group), 0

    def _shaped(self, x: Tensor, per_scale: Tensor) -> Tensor:
        if self.grid.group is None:
            return per_scale
        return per_scale.view(*x.shape[:-1], x.shape[-1] // self.grid.group)

    def _fake_quant(
        self,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        axis: int | None,
        group: int | None,
    ) -> Tensor:
        """Return x rounded to the grid of the spec, of integers or of small floats."""
        spec, rng = self.spec, self._buffers.get("rng")
        if rng is not None and self.training:
            rng[1] += 1
        if spec.is_float:
            assert spec.exponent is not None and spec.mantissa is not None
            return bpf.fake_float(
                x,
                scale,
                exponent_bits=spec.exponent,
                mantissa_bits=spec.mantissa,
                axis=axis,
                group=group,
                rounding=spec.rounding,
                rng=rng,
            )
        return bpf.fake_quant(
            x,
            scale,
            zero_point,
            quant_min=self.grid.quant_min,
            quant_max=self.grid.quant_max,
            axis=axis,
            group=group,
            rounding=spec.rounding,
            estimator=spec.estimator,
            delta=spec.delta,
            rng=rng,
        )

    def set_flags(
        self, observe: bool | None = None, quantize: bool | None = None, freeze: bool | None = None
    ) -> None:
        """Set flags on the device and their copies on the host."""
        for index, flag in ((OBSERVE, observe), (QUANTIZE, quantize), (FREEZE, freeze)):
            if flag is not None:
                self.control[index].fill_(int(flag))
        self.observing = self.observing if observe is None else observe
        self.quantizing = self.quantizing if quantize is None else quantize

    def set_bits(self, bits: int) -> None:
        """Change the grid to another number of bits; the range stays."""
        before = self.grid
        self.grid = before.with_bits(bits)
        self.bits = bits
        self.control[0].fill_(self.grid.quant_min)
        self.control[1].fill_(self.grid.quant_max)
        self._rescale(before)

    def _rescale(self, before: Grid) -> None:
        """Adapt the state to a new grid."""

    def _require_calibrated(self) -> None:
        if not self.calibrated:
            raise Uncalibrated(
                f"{self.name}: the {self.role} quantizer has seen no data; run bp.calibrate(model, "
                "data=loader) or a training step before eval or convert"
            )

    # -- the integer codes that `convert` reads

    @property
    def limits(self) -> tuple[int, int]:
        """Return the smallest and the largest code."""
        return self.grid.quant_min, self.grid.quant_max

    def zero_code(self) -> int:
        """Return the code of 0."""
        return 0

    def output_scales(self, value: Tensor) -> Tensor:
        """Return the scale of each output of a quantized weight."""
        scale = getattr(self, "scale", None)
        if not isinstance(scale, Tensor):
            raise Unsupported(f"weights of a {type(self).__name__}")
        return scale.detach().float().clamp(min=LEAST_SCALE).reshape(-1).expand(value.shape[0])

    def no_codes(self) -> str | None:
        """Return why values have no single fixed integer grid, or None if they have one."""
        scale = getattr(self, "scale", None)
        if not isinstance(scale, Tensor) or scale.numel() != 1:
            return "activations with several scales"
        return None

    def integer_form(self) -> str:
        sign = "s" if self.grid.quant_min < 0 else "u"
        return f"{sign}{self.bits}"

    def extra_repr(self) -> str:
        return f"{self.role}, {self.integer_form()}, {self.spec}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, *rest: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        if prefix + "control" in state_dict:
            self.loads += 1
            self._read_control()
        else:  # the weights of a float checkpoint
            self.forget()

    def _read_control(self) -> None:
        """Update the host's copies from the device after a load. Only this method synchronises."""
        low, high, observe, quantize, _ = self.control.tolist()
        self.observing, self.quantizing = bool(observe), bool(quantize)
        if (low, high) != (self.grid.quant_min, self.grid.quant_max):
            self.grid = self.grid.with_limits(low, high)
            self.bits = self.grid.bits


@contextlib.contextmanager
def quantizers_off(model: nn.Module) -> Iterator[None]:
    """Switch all quantizers off, so that the model computes what the float model does."""
    quantizers = [m for m in model.modules() if isinstance(m, Quantizer)]
    before = [q.bypass for q in quantizers]
    for q in quantizers:
        q.bypass = True
    try:
        yield
    finally:
        for q, value in zip(quantizers, before, strict=True):
            q.bypass = value
