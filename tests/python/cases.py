"""Every op with inputs to test. A case is one row. Tests of correctness, gradients, opcheck,
compile, dtypes, layouts and devices, and the benchmarks, all read this table."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import bitpare as bp
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Relative to the largest magnitude that a result is rounded from. The float32 and float64 results
# of a formula differ by the rounding of a few operations.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

SEED = 20240229


@dataclasses.dataclass(frozen=True)
class Case:
    op: str
    shape: tuple[int, ...]
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    zero_point: str | None = None  # "integer", "learned"
    scale: bool = True
    layout: str = "contiguous"  # channels_last, transposed, sliced
    dtype: torch.dtype = torch.float32

    @property
    def id(self) -> str:
        extra = "-".join(f"{k}={v}" for k, v in self.attributes.items() if k[:5] != "quant")
        low, high = self.attributes.get("quant_min"), self.attributes.get("quant_max")
        grid = f"{low}..{high}" if high is not None else ""
        shape = "x".join(map(str, self.shape)) or "scalar"
        dtype = "" if self.dtype is torch.float32 else str(self.dtype)[6:]
        parts = (self.op, shape, grid, extra, self.zero_point, self.layout[:4], dtype)
        return ",".join(str(p) for p in parts if p and p != "cont")

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(SEED + sum(map(ord, self.id)))

    def x(self, device: str = "cpu") -> Tensor:
        return laid_out(torch.randn(self.shape, generator=self.generator()) * 2, self.layout).to(
            device=device, dtype=self.dtype
        )

    def scale_shape(self) -> list[int]:
        axis, group = self.attributes.get("axis"), self.attributes.get("group")
        if group is not None:
            return [*self.shape[:-1], self.shape[-1] // group]
        return [] if axis is None else [self.shape[axis]]

    def quantizer(self, device: str = "cpu") -> tuple[Tensor | None, Tensor | None]:
        """Return the scale and zero point."""
        generator, shape = self.generator(), self.scale_shape()
        if not self.scale:
            return None, None
        high = self.attributes.get("quant_max", 8)
        low = self.attributes.get("quant_min", -8)
        scale = (torch.rand(shape, generator=generator) + 0.5) * 5 / (high - low)
        zero_point = None
        if self.zero_point == "integer":
            zero_point = torch.randint(low, high + 1, shape, generator=generator, dtype=torch.int32)
        elif self.zero_point == "learned":
            zero_point = torch.randn(shape, generator=generator) * 3 + (low + high) / 2
        return scale.to(device), zero_point if zero_point is None else zero_point.to(device)

    def rng(self, device: str = "cpu") -> Tensor | None:
        return torch.tensor([SEED, 7], device=device) if self.stochastic else None

    @property
    def stochastic(self) -> bool:
        return self.attributes.get("rounding") == "stochastic"

    def arguments(self, device: str = "cpu") -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments of the op, x first."""
        return BUILD[self.op](self, device)

    def run(self, x: Tensor | None = None, device: str = "cpu") -> Any:
        args, kwargs = self.arguments(device)
        return getattr(bp.functional, self.op)(
            *((args[0] if x is None else x), *args[1:]), **kwargs
        )


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Return the same values with other strides."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced":
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), 77.0, dtype=x.dtype)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    return x


def _quantizer_arguments(case: Case, device: str):
    scale, zero_point = case.quantizer(device)
    kwargs = dict(case.attributes)
    if case.stochastic:
        kwargs["rng"] = case.rng(device)
    return (case.x(device), scale, zero_point), kwargs


def _scaled_arguments(case: Case, device: str):
    (x, scale, _), kwargs = _quantizer_arguments(case, device)
    return (x, scale), kwargs


def _act_arguments(case: Case, device: str):
    scale, zero_point = case.quantizer(device)
    a = case.attributes
    flags = [a["quant_min"], a["quant_max"], a.get("observe", 1), a.get("quantize", 1), 0]
    other = None
    if a.get("other"):
        other = replace(case, layout="contiguous").x(device).flip(0).contiguous()
    control = torch.tensor(flags, dtype=torch.int32, device=device)
    pending = torch.tensor([[torch.inf], [-torch.inf]], device=device)
    kwargs = {"activation": a.get("activation", "none")}
    return (case.x(device), other, scale, zero_point, control, pending), kwargs


def _plain_arguments(case: Case, device: str):
    return (case.x(device),), dict(case.attributes)


def _bn_arguments(case: Case, device: str):
    """Return x; weight, bias, running mean and variance, count; scale, zero point, control,
    pending."""
    scale, zero_point = case.quantizer(device)
    attributes = {"observe": 1, "quantize": 1, "freeze": 0, "affine": True, **case.attributes}
    names = ("quant_min", "quant_max", "observe", "quantize", "freeze")
    control = torch.tensor([attributes.pop(name) for name in names], dtype=torch.int32)
    weight, bias, mean, log_var = torch.randn(4, case.shape[1], generator=case.generator())
    affine = (weight, bias) if attributes.pop("affine") else (None, None)
    state = (*affine, mean, log_var.exp(), torch.tensor(3))
    pending = torch.tensor([[math.inf], [-math.inf]])
    args = (*state, scale, zero_point, control, pending)
    return (case.x(device), *(a if a is None else a.to(device) for a in args)), attributes


def _dequantize_arguments(case: Case, device: str):
    scale, zero_point = case.quantizer(device)
    kwargs = {k: v for k, v in case.attributes.items() if k not in ("quant_min", "quant_max")}
    low, high = case.attributes["quant_min"], case.attributes["quant_max"]
    q = torch.randint(low, high + 1, case.shape, generator=case.generator())
    q = laid_out(q.to(torch.int8), case.layout)
    return (q.to(device), scale, zero_point), {**kwargs, "dtype": case.dtype}


def _qparams_arguments(case: Case, device: str):
    a, b = torch.randn(2, *case.shape, generator=case.generator()).to(device)
    return (torch.minimum(a, b), torch.maximum(a, b)), dict(case.attributes)


def _histogram_arguments(case: Case, device: str):
    shape = case.scale_shape()
    low, high = torch.full(shape, -2.0, device=device), torch.full(shape, 3.0, device=device)
    return (case.x(device), low, high), dict(case.attributes)


def _pack_arguments(case: Case, device: str):
    codes = torch.randint(0, 2 ** case.attributes["bits"], case.shape, generator=case.generator())
    return (codes.to(torch.uint8).to(device),), dict(case.attributes)


def _unpack_arguments(case: Case, device: str):
    bits = case.attributes["bits"]
    shape = (*case.shape[:-1], -(-case.shape[-1] * bits // 8))
    packed = torch.randint(0, 256, shape, generator=case.generator()).to(torch.uint8)
    return (packed.to(device), list(case.shape)), dict(case.attributes)


def _observe_arguments(case: Case, device: str):
    """Return histograms of a batch of small values, and a larger batch with an infinity."""
    kwargs = dict(case.attributes)
    bins, x = kwargs.pop("bins", 256), case.x(device)
    n = x.shape[kwargs["axis"]] if "axis" in kwargs else 1
    counts = torch.zeros(n, bins, dtype=torch.int64, device=device)
    skipped = torch.zeros(n, dtype=torch.int64, device=device)
    state = counts, torch.zeros(n, device=device), skipped
    bp.functional.observe_histogram_(*state, x * 0.1, **kwargs)
    if x.numel():
        x[(-1,) * x.dim()] = torch.inf
    return (*state, x), kwargs


def _range_arguments(case: Case, device: str):
    """Return case.shape[0] histograms: bell-shaped, rectified, with outliers, empty."""
    rows, bins = case.shape
    x = torch.randn(rows, 20000, generator=case.generator()) * torch.arange(1, rows + 1)[:, None]
    x[1::4] = x[1::4].relu()
    x[2::4, ::5000] *= 5
    x[3::4] = torch.nan
    counts = torch.zeros(rows, bins, dtype=torch.int64, device=device)
    skipped = torch.zeros(rows, dtype=torch.int64, device=device)
    state = counts, torch.zeros(rows, device=device), skipped
    bp.functional.observe_histogram_(*state, x.to(device), axis=0)
    return state[:2], dict(case.attributes)


BUILD: dict[str, Callable[[Case, str], tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "fake_quant": _quantizer_arguments,
    "fake_quant_lsq": _quantizer_arguments,
    "act_fake_quant": _act_arguments,
    "bn_act_fake_quant": _bn_arguments,
    "quantize": _quantizer_arguments,
    "dequantize": _dequantize_arguments,
    "binarize": _scaled_arguments,
    "ternarize": _scaled_arguments,
    "fake_float": _scaled_arguments,
    "mean_magnitude": _plain_arguments,
    "minmax": _plain_arguments,
    "minmax_histogram": _histogram_arguments,
    "qparams": _qparams_arguments,
    "pack_bits": _pack_arguments,
    "unpack_bits": _unpack_arguments,
    "observe_histogram_": _observe_arguments,
    "histogram_range": _range_arguments,
    "mse_range": _plain_arguments,
}

DIFFERENTIABLE = (
    "fake_quant",
    "act_fake_quant",
    "fake_quant_lsq",
    "binarize",
    "ternarize",
    "fake_float",
    "bn_act_fake_quant",
)

S8 = {"quant_min": -128, "quant_max": 127}
U8 = {"quant_min": 0, "quant_max": 255}
S4 = {"quant_min": -8, "quant_max": 7}


def _fake_quant_cases() -> list[Case]:
    shape = (3, 4, 5, 6)
    rows = [
        Case("fake_quant", shape, S8),
        Case("fake_quant", shape, U8, "integer"),
        Case("fake_quant", shape, S4, "learned"),
        Case("fake_quant", shape, {"quant_min": -127, "quant_max": 127}),
        Case("fake_quant", shape, {"quant_min": 0, "quant_max": 1}),
        Case("fake_quant", shape, {"quant_min": -2, "quant_max": 1}, "integer"),
        Case("fake_quant", shape, {"quant_min": -32768, "quant_max": 32767}),
        Case("fake_quant", (), S8),
        Case("fake_quant", (0, 4), S8),
        Case("fake_quant", (2, 0, 3, 3), {**S8, "axis": 1}, "integer"),
        Case("fake_quant", (131,), S4),
        Case("fake_quant", (4, 64), {**S4, "group": 16}, "integer"),
        Case("fake_quant", (4, 6, 30), {**S4, "group": 30}),
    ]
    for layout in ("contiguous", "channels_last", "transposed", "sliced"):
        rows.append(Case("fake_quant", shape, S4, "integer", layout=layout))
        for axis in (0, 1, -1):
            rows.append(Case("fake_quant", shape, {**S4, "axis": axis}, "integer", layout=layout))
    rows.append(Case("fake_quant", (2, 3, 4, 8), {**S4, "group": 4}, layout="channels_last"))
    for rounding in ("half_up", "floor", "ceil", "toward_zero", "stochastic"):
        rows.append(Case("fake_quant", (7, 33), {**S4, "rounding": rounding}, "integer"))
    for estimator, delta in (("identity", 0.0), ("ewgs", 0.3), ("tanh", 4.0)):
        attributes = {**S4, "axis": 1, "estimator": estimator, "delta": delta}
        rows.append(Case("fake_quant", shape, attributes, "integer"))
        rows.append(Case("fake_quant", shape, attributes, "integer", layout="channels_last"))
    stochastic = {"rounding": "stochastic", "estimator": "ewgs", "delta": 0.3}
    rows.append(Case("fake_quant", (7, 33), {**S4, **stochastic}))
    return rows


def _act_cases() -> list[Case]:
    op, shape, zero = "act_fake_quant", (3, 4, 5, 6), "integer"
    rows = [
        Case(op, shape, {**S8, "observe": 0}, zero),
        Case(op, shape, {**S8, "activation": "relu6", "quantize": 0}),
        Case(op, (), S8, zero),
        Case(op, (0, 4), S8),
        Case(op, (131,), {**S4, "activation": "relu"}),
    ]
    for activation in ("none", "relu", "relu6", "hardswish", "hardsigmoid"):
        for layout in ("contiguous", "channels_last", "sliced"):
            kind = {**S4, "activation": activation}
            rows.append(Case(op, shape, kind, zero, layout=layout))
            if activation in ("none", "relu", "relu6"):
                rows.append(Case(op, shape, {**kind, "other": True}, zero, layout=layout))
    return rows


def _lsq_cases() -> list[Case]:
    shape = (3, 4, 5, 6)
    rows = [
        Case("fake_quant_lsq", shape, S4),
        Case("fake_quant_lsq", shape, S4, "learned"),
        Case("fake_quant_lsq", shape, {**S4, "grad_scale": 0.5}, "integer"),
        Case("fake_quant_lsq", (131,), S4, "learned"),
        Case("fake_quant_lsq", (0, 4), S4, "learned"),
        Case("fake_quant_lsq", (4, 64), {**S4, "group": 16}, "learned"),
        Case("fake_quant_lsq", (2, 3, 4, 8), {**S4, "group": 4}, layout="channels_last"),
    ]
    for layout in ("contiguous", "channels_last", "sliced"):
        for axis in (0, 1, -1):
            rows.append(
                Case("fake_quant_lsq", shape, {**S4, "axis": axis}, "learned", layout=layout)
            )
    return rows


def _bn_cases() -> list[Case]:
    shape, train = (3, 4, 5, 6), {**S8, "training": True}
    rows = [
        Case("bn_act_fake_quant", (30, 7), {**train, "activation": "relu"}, "integer"),
        Case("bn_act_fake_quant", (5, 24, 9), {**train, "activation": "relu6"}, "integer"),
        Case("bn_act_fake_quant", (2, 3, 2, 5, 6), {**train, "activation": "relu"}),
        Case("bn_act_fake_quant", (2, 1, 40, 40), {**train, "activation": "relu"}),
        Case("bn_act_fake_quant", (0, 4, 3, 3), train),
        Case("bn_act_fake_quant", (1, 4, 1, 1), {**train, "training": False}),
        Case("bn_act_fake_quant", shape, {**train, "affine": False}),
        Case("bn_act_fake_quant", shape, {**train, **S4}, "integer"),
        Case("bn_act_fake_quant", shape, {**train, "momentum": 0.3, "eps": 0.1}),
    ]
    for activation in ("none", "relu", "relu6", "hardswish"):
        both = {**train, **U8, "activation": activation}
        for layout in ("contiguous", "channels_last", "transposed", "sliced"):
            rows.append(Case("bn_act_fake_quant", shape, both, "integer", layout=layout))
        for change in ({"training": False}, {"freeze": 1}, {"quantize": 0}, {"observe": 0}):
            changed = {**both, **change}
            rows.append(
                Case("bn_act_fake_quant", shape, changed, "integer", layout="channels_last")
            )
    return rows


def _other_cases() -> list[Case]:
    shape = (3, 4, 5, 6)
    rows = []
    for op in ("binarize", "ternarize"):
        for given in (True, False):
            rows += [
                Case(op, shape, {}, scale=given),
                Case(op, shape, {"axis": 0}, scale=given),
                Case(op, shape, {"axis": 1}, scale=given, layout="channels_last"),
                Case(op, (4, 64), {"group": 16}, scale=given),
                Case(op, shape, {"estimator": "identity"}, scale=given),
            ]
    for levels in ("zero_one", "minus_one_zero"):
        rows.append(Case("binarize", shape, {"levels": levels, "axis": 0}))
    for exponent, mantissa in ((4, 3), (5, 2), (2, 1), (3, 2), (5, 10)):
        bits = {"exponent_bits": exponent, "mantissa_bits": mantissa}
        rows.append(Case("fake_float", shape, bits, scale=False))
        rows.append(Case("fake_float", shape, {**bits, "axis": 1}, layout="channels_last"))
    for rounding in ("toward_zero", "stochastic"):
        bits = {"exponent_bits": 4, "mantissa_bits": 3, "rounding": rounding}
        rows.append(Case("fake_float", (7, 33), bits))
    for grid in (
        S8,
        U8,
        {"quant_min": -3000, "quant_max": 3000},
        {"quant_min": 0, "quant_max": 65535},
    ):
        rows.append(Case("quantize", shape, grid, "integer"))
    rows += [
        Case("quantize", shape, {**S8, "axis": 1}, "integer", layout="channels_last"),
        Case("quantize", (4, 64), {**S4, "group": 16}, "integer"),
        Case("quantize", (2, 3, 4, 8), {**S4, "group": 4}, layout="channels_last"),
        Case("quantize", (0, 3), S8),
        Case("dequantize", shape, S8, "integer"),
        Case("dequantize", shape, {**S8, "axis": 1}, "integer", layout="channels_last"),
        Case("dequantize", (4, 64), {**S4, "group": 16}, "learned"),
        Case("qparams", (), {**S8}),
        Case("qparams", (7,), {**U8, "symmetric": False}),
        Case("qparams", (7,), {**S8, "power_of_two": True}),
    ]
    for op in ("mean_magnitude", "minmax", "minmax_histogram"):
        bins = {"bins": 16} if op == "minmax_histogram" else {}
        rows += [
            Case(op, shape, bins),
            Case(op, shape, {"axis": 1, **bins}),
            Case(op, shape, {"axis": 1, **bins}, layout="channels_last"),
            Case(op, (3, 5000), {"axis": 0, **bins}),
            Case(op, (0, 3), {"axis": 1, **bins}),
        ]
    rows.append(Case("mean_magnitude", (4, 64), {"group": 16}))
    for bits in (1, 2, 4):
        rows.append(Case("pack_bits", (3, 37), {"bits": bits}))
        rows.append(Case("unpack_bits", (3, 37), {"bits": bits}))
        rows.append(Case("unpack_bits", (3, 37), {"bits": bits, "signed": True}))
    return rows


def _calibration_cases() -> list[Case]:
    shape = (3, 4, 5, 6)
    rows = []
    for op, attributes in (("observe_histogram_", {}), ("mse_range", {**S4, "steps": 30})):
        rows += [
            Case(op, shape, attributes),
            Case(op, shape, {"axis": 1, **attributes}),
            Case(op, shape, {"axis": -1, **attributes}),
            Case(op, shape, {"axis": 1, **attributes}, layout="channels_last"),
            Case(op, shape, {"axis": 0, **attributes}, layout="transposed"),
            Case(op, (3, 5000), {"axis": 0, **attributes}),
            Case(op, (40000,), attributes),
            Case(op, (0, 3), {"axis": 1, **attributes}),
        ]
    rows.append(Case("mse_range", (7, 90), {**S8, "axis": 0}))
    rows.append(Case("mse_range", (7, 90), {**U8, "axis": 0, "symmetric": False}))
    for method in ("percentile", "mse", "entropy"):
        for grid, symmetric in ((S8, True), (U8, False), (S4, True), (U8, True), (S4, False)):
            attributes = {**grid, "method": method, "symmetric": symmetric}
            rows.append(Case("histogram_range", (5, 1024), attributes))
    rows.append(Case("histogram_range", (2, 4096), {**S8, "method": "mse", "symmetric": True}))
    return rows


CASES = (
    _fake_quant_cases()
    + _act_cases()
    + _lsq_cases()
    + _other_cases()
    + _calibration_cases()
    + _bn_cases()
)
MUTATING = ("observe_histogram_",)
FLOAT_INPUT = [
    c
    for c in CASES
    if c.op not in ("qparams", "pack_bits", "unpack_bits", "histogram_range", *MUTATING)
]
WITH_GRADIENT = [c for c in CASES if c.op in DIFFERENTIABLE]


def differentiable_inputs(case: Case, device: str = "cpu"):
    """Return the arguments, with x and learned tensors requiring gradients, and those tensors."""
    args, kwargs = case.arguments(device)
    learned = [args[0].clone(memory_format=torch.preserve_format).requires_grad_()]
    rest = list(args[1:])
    if case.op == "act_fake_quant" and rest[0] is not None:
        rest[0] = rest[0].clone().requires_grad_()
        learned.append(rest[0])
    if case.op in ("fake_quant_lsq", "binarize", "ternarize", "bn_act_fake_quant"):
        parameters = rest[:2] if case.op == "bn_act_fake_quant" else rest
        for i, value in enumerate(parameters):
            if isinstance(value, Tensor) and value.is_floating_point():
                rest[i] = value.clone().requires_grad_()
                learned.append(rest[i])
    return (learned[0], *rest), kwargs, learned
