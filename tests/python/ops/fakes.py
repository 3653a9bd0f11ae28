"""Ops that round values to a grid and back."""

import math

import bitpare as bp
import reference
import torch
from torch import Tensor

from ops.entry import (
    CONTIGUOUS,
    LAST,
    S4,
    S8,
    SEED,
    SHAPE,
    TABLE,
    U8,
    Arguments,
    Call,
    Case,
    Expected,
    N,
    OpEntry,
    Speed,
    backward_of,
    floats,
    rng,
    scale,
    words,
    zero,
)

F = bp.functional
GRID = S4


def quantizer_arguments(case: Case, device: str) -> Call:
    kwargs = dict(case.attributes)
    if case.stochastic:
        kwargs["rng"] = torch.tensor([SEED, 7], device=device)
    return (case.x(device), *case.quantizer(device)), kwargs


def scaled_arguments(case: Case, device: str) -> Call:
    (x, values, _), kwargs = quantizer_arguments(case, device)
    return (x, values), kwargs


def quantized(case: Case) -> reference.Quantized:
    (x, values, zero_point), kwargs = case.arguments()
    return reference.Quantized(
        x, values, zero_point, kwargs["quant_min"], kwargs["quant_max"], kwargs.get("axis"),
        kwargs.get("group"), kwargs.get("rounding", "nearest"),
    )  # fmt: skip


# -- fake_quant


def fake_quant_cases() -> list[Case]:
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


def fake_quant_value(case: Case) -> Expected:
    q = quantized(case)
    return Expected(q.value, q.near_tie(case.attributes.get("rounding", "nearest")))


def fake_quant_gradient(case: Case, dy: Tensor) -> list[Expected] | None:
    if case.stochastic:
        return None
    q, a = quantized(case), case.attributes
    dx = reference.fake_quant_gradient(q, dy, a.get("estimator", "ste"), a.get("delta", 0.0))
    return [Expected(dx, q.near_tie(a.get("rounding", "nearest")))]


def quantizer() -> Arguments:
    values = {"x": floats(*SHAPE), "scale": scale(), "zero_point": zero(), **GRID, "axis": 1}
    return {**values, "group": None}


def private_fake_quant() -> Arguments:
    more = {"rounding": 5, "rng": rng(), "memory_format": CONTIGUOUS}
    return {**quantizer(), **more, "floored": False, "save_inside": True}


LEARNED_ZERO = torch.tensor([1.0, 0.0, -2.0])

TABLE["fake_quant"] = OpEntry(
    cases=fake_quant_cases(),
    build=quantizer_arguments,
    reference=fake_quant_value,
    gradient=fake_quant_gradient,
    sample=lambda: {**quantizer(), "rounding": "stochastic", "rng": rng()},
    measured="run.py",
)
TABLE["_fake_quant"] = OpEntry(
    sample=private_fake_quant,
    variants=(
        {"zero_point": LEARNED_ZERO, "floored": True, "rounding": 0, "memory_format": LAST},
        {"zero_point": None, "save_inside": False, "rounding": 0, "memory_format": LAST},
    ),
)
TABLE["_fake_quant_gradient"] = OpEntry(
    sample=lambda: backward_of(
        private_fake_quant(), "floored", "save_inside", estimator=2, delta=0.3
    ),
    variants=({"zero_point": None, "rounding": 0, "rng": None, "memory_format": LAST},),
)
TABLE["_straight_through"] = OpEntry(
    sample=lambda: {"dy": floats(*SHAPE), "inside": words(N), "memory_format": CONTIGUOUS},
    variants=(
        {"memory_format": LAST},
        {"dy": floats(*SHAPE, seed=1).requires_grad_()},
    ),
)


# -- fake_quant_lsq


def lsq_cases() -> list[Case]:
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


def lsq_gradient(case: Case, dy: Tensor) -> list[Expected]:
    (x, s, zero_point), kwargs = case.arguments()
    axis, group = kwargs.get("axis"), kwargs.get("group")
    q = quantized(case)
    elements = x.numel() // max(s.numel(), 1)
    if group is None and axis != 0 and x.dim() > 1:
        elements //= max(x.shape[0], 1)
    g = kwargs.get("grad_scale", 1 / math.sqrt(max(elements, 1) * kwargs["quant_max"]))
    dx, ds, dz = reference.lsq_gradients(q, dy, s, zero_point, axis, group, g)
    # Five times float32's tolerance of the sum of the terms' magnitudes; a tie that float32 takes
    # the other way moves one term by |dy| at most.
    terms = (dy.double().abs() * q.level.abs().clamp(min=1)).sum().item()
    slack = (dy.double().abs() * q.near_tie()).sum().item()
    bound = g * (5 * terms + slack / 2e-6)
    gradients = [Expected(dx, q.near_tie()), Expected(ds, scale=bound)]
    if case.zero_point == "learned":
        gradients.append(Expected(dz, scale=bound * s.max().item()))
    return gradients


TABLE["fake_quant_lsq"] = OpEntry(
    cases=lsq_cases(),
    build=quantizer_arguments,
    reference=fake_quant_value,
    gradient=lsq_gradient,
    learned=("x", "scale", "zero_point"),
    sample=lambda: {**quantizer(), "grad_scale": 0.5},
    measured="run.py",
)
TABLE["_fake_quant_lsq_gradient"] = OpEntry(
    sample=lambda: backward_of(quantizer(), grad_scale=0.5, memory_format=CONTIGUOUS),
    variants=({"zero_point": LEARNED_ZERO, "grad_scale": None, "memory_format": LAST},),
)


# -- fake_float


def fake_float_cases() -> list[Case]:
    rows = []
    for exponent, mantissa in ((4, 3), (5, 2), (2, 1), (3, 2), (5, 10)):
        bits = {"exponent_bits": exponent, "mantissa_bits": mantissa}
        rows.append(Case("fake_float", (3, 4, 5, 6), bits, scale=False))
        rows.append(Case("fake_float", (3, 4, 5, 6), {**bits, "axis": 1}, layout="channels_last"))
    for rounding in ("toward_zero", "stochastic"):
        bits = {"exponent_bits": 4, "mantissa_bits": 3, "rounding": rounding}
        rows.append(Case("fake_float", (7, 33), bits))
    return rows


def scaled_down(case: Case) -> tuple[Tensor, Tensor]:
    """Return x / scale and scale, for each element."""
    (x, given), kwargs = case.arguments()
    given = torch.ones(()) if given is None else given
    each = reference.per_element(given, x, kwargs.get("axis"), kwargs.get("group"))
    return x.double() / each, each


def fake_float_value(case: Case) -> Expected:
    x, each = scaled_down(case)
    a = case.attributes
    bits = a["exponent_bits"], a["mantissa_bits"], a.get("rounding", "nearest")
    value = reference.fake_float(x, *bits)
    moves = [reference.fake_float(x * (1 + e), *bits) != value for e in (1e-6, -1e-6)]
    return Expected(value * each, moves[0] | moves[1])


def fake_float_gradient(case: Case, dy: Tensor) -> list[Expected]:
    a = case.attributes
    *_, below, top = reference.float_values(a["exponent_bits"], a["mantissa_bits"])
    inside = scaled_down(case)[0].abs() < top + (top - below) / 2  # it still rounds to the largest
    return [Expected(torch.where(inside, dy.double(), 0.0))]


def float_format() -> Arguments:
    bits = {"exponent_bits": 4, "mantissa_bits": 3}
    return {"x": floats(*SHAPE), "scale": scale(), **bits, "axis": 1, "group": None, "rng": rng()}


TABLE["fake_float"] = OpEntry(
    cases=fake_float_cases(),
    build=scaled_arguments,
    reference=fake_float_value,
    gradient=fake_float_gradient,
    sample=lambda: {**float_format(), "rounding": "stochastic"},
    speed=Speed(
        8,
        lambda x: {
            "bitpare": lambda: F.fake_float(x, exponent_bits=4, mantissa_bits=3),
            "torch": lambda: x.clamp(-448, 448).to(torch.float8_e4m3fn).to(torch.float32),
        },
        "e4m3",
    ),
)
TABLE["_fake_float"] = OpEntry(
    sample=lambda: {
        **float_format(), "rounding": 5, "save_inside": True, "memory_format": CONTIGUOUS
    },
    variants=({"rounding": 0, "rng": None, "memory_format": LAST},),
)  # fmt: skip
