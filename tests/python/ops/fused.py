"""Fake quantization fused with the layers before it."""

from dataclasses import replace

import reference
import torch
from torch import Tensor

from ops.entry import (
    CONTIGUOUS,
    LAST,
    S4,
    S8,
    SHAPE,
    TABLE,
    U8,
    Arguments,
    Call,
    Case,
    Expected,
    N,
    OpEntry,
    control,
    floats,
    pending,
    words,
)

FOUR_D = (3, 4, 5, 6)


# -- act_fake_quant


def act_cases() -> list[Case]:
    op, zero = "act_fake_quant", "integer"
    rows = [
        Case(op, FOUR_D, {**S8, "observe": 0}, zero),
        Case(op, FOUR_D, {**S8, "activation": "relu6", "quantize": 0}),
        Case(op, (), S8, zero),
        Case(op, (0, 4), S8),
        Case(op, (131,), {**S4, "activation": "relu"}),
    ]
    for activation in ("none", "relu", "relu6", "hardswish", "hardsigmoid"):
        for layout in ("contiguous", "channels_last", "sliced"):
            kind = {**S4, "activation": activation}
            rows.append(Case(op, FOUR_D, kind, zero, layout=layout))
            if activation in ("none", "relu", "relu6"):
                rows.append(Case(op, FOUR_D, {**kind, "other": True}, zero, layout=layout))
    return rows


def act_arguments(case: Case, device: str) -> Call:
    values, zero_point = case.quantizer(device)
    a = case.attributes
    flags = [a["quant_min"], a["quant_max"], a.get("observe", 1), a.get("quantize", 1), 0]
    other = None
    if a.get("other"):
        other = replace(case, layout="contiguous").x(device).flip(0).contiguous()
    flags = torch.tensor(flags, dtype=torch.int32, device=device)
    kwargs = {"activation": a.get("activation", "none")}
    return (case.x(device), other, values, zero_point, flags, pending().to(device)), kwargs


class Act:
    """A call of act_fake_quant, taken apart."""

    def __init__(self, case: Case) -> None:
        (x, other, values, zero_point, *_), kwargs = case.arguments()
        v = x.double() if other is None else x.double() + other.double()
        self.w = reference.ACTIVATE[kwargs["activation"]](v)
        self.slope = reference.ACTIVATION_SLOPE[kwargs["activation"]](v)
        a = case.attributes
        self.off = a.get("quantize") == 0
        self.inputs = 1 if other is None else 2
        low, high = a["quant_min"], a["quant_max"]
        self.q = reference.Quantized(self.w, values, zero_point, low, high, None, None)


def act_value(case: Case) -> Expected:
    c = Act(case)
    return Expected(c.w) if c.off else Expected(c.q.value, c.q.near_tie())


def act_gradient(case: Case, dy: Tensor) -> list[Expected]:
    c = Act(case)
    dx = torch.where(c.q.inside | c.off, dy.double() * c.slope, 0.0)
    return [Expected(dx, c.q.near_tie())] * c.inputs


def act() -> Arguments:
    return {
        "x": floats(*SHAPE), "other": floats(*SHAPE, seed=2), "scale": torch.tensor([0.3]),
        "zero_point": torch.tensor([1], dtype=torch.int32), "control": control(),
        "pending": pending(),
    }  # fmt: skip


TABLE["act_fake_quant"] = OpEntry(
    cases=act_cases(),
    build=act_arguments,
    reference=act_value,
    gradient=act_gradient,
    learned=("x", "other"),
    sample=lambda: {**act(), "activation": "relu"},
    measured="run.py",
)
TABLE["_act_fake_quant"] = OpEntry(
    sample=lambda: {**act(), "activation": 1, "save_inside": True, "memory_format": CONTIGUOUS},
    variants=({"zero_point": None, "activation": 2, "memory_format": LAST},),
)
TABLE["_act_fake_quant_gradient"] = OpEntry(
    sample=lambda: {
        "dy": floats(*SHAPE), "x": floats(*SHAPE, seed=1), "inside": words(N), "activation": 3,
        "memory_format": CONTIGUOUS,
    },
    variants=({"memory_format": LAST},),
)  # fmt: skip


# -- bn_act_fake_quant


def bn_cases() -> list[Case]:
    op, train = "bn_act_fake_quant", {**S8, "training": True}
    rows = [
        Case(op, (30, 7), {**train, "activation": "relu"}, "integer"),
        Case(op, (5, 24, 9), {**train, "activation": "relu6"}, "integer"),
        Case(op, (2, 3, 2, 5, 6), {**train, "activation": "relu"}),
        Case(op, (2, 1, 40, 40), {**train, "activation": "relu"}),
        Case(op, (0, 4, 3, 3), train),
        Case(op, (1, 4, 1, 1), {**train, "training": False}),
        Case(op, FOUR_D, {**train, "affine": False}),
        Case(op, FOUR_D, {**train, **S4}, "integer"),
        Case(op, FOUR_D, {**train, "momentum": 0.3, "eps": 0.1}),
    ]
    for activation in ("none", "relu", "relu6", "hardswish"):
        both = {**train, **U8, "activation": activation}
        for layout in ("contiguous", "channels_last", "transposed", "sliced"):
            rows.append(Case(op, FOUR_D, both, "integer", layout=layout))
        for change in ({"training": False}, {"freeze": 1}, {"quantize": 0}, {"observe": 0}):
            rows.append(Case(op, FOUR_D, {**both, **change}, "integer", layout="channels_last"))
    return rows


def bn_arguments(case: Case, device: str) -> Call:
    """x; weight, bias, running mean and variance, count; scale, zero point, control, pending."""
    values, zero_point = case.quantizer(device)
    attributes = {"observe": 1, "quantize": 1, "freeze": 0, "affine": True, **case.attributes}
    names = ("quant_min", "quant_max", "observe", "quantize", "freeze")
    flags = torch.tensor([attributes.pop(name) for name in names], dtype=torch.int32)
    weight, bias, mean, log_var = torch.randn(4, case.shape[1], generator=case.generator())
    affine = (weight, bias) if attributes.pop("affine") else (None, None)
    state = (*affine, mean, log_var.exp(), torch.tensor(3))
    args = (*state, values, zero_point, flags, pending())
    return (case.x(device), *(a if a is None else a.to(device) for a in args)), attributes


def bn_value(case: Case) -> Expected:
    args, kwargs = case.arguments()
    c = reference.BnActFakeQuant(*args, **kwargs)
    return Expected(c.value, c.near_tie())


def bn_gradient(case: Case, dy: Tensor) -> list[Expected]:
    args, kwargs = case.arguments()
    c = reference.BnActFakeQuant(*args, **kwargs)
    # Results are rounded from such terms: each is a difference or a sum of them.
    terms = torch.where(c.inside, dy.double(), 0.0).abs()
    sums = (terms * c.normal.abs()).sum(c.axes), terms.sum(c.axes)
    slope = (c.weight / c.std).abs() * max(dy.abs().flatten().tolist(), default=0)
    gradients = [
        Expected(value, scale=2 * of.max().item())
        for value, of in zip(c.gradients(dy), (slope, *sums), strict=True)
    ]
    return gradients if args[1] is not None else gradients[:1]


def bn() -> Arguments:
    own = {
        "weight": floats(3), "bias": floats(3, seed=1), "running_mean": floats(3, seed=2),
        "running_var": torch.tensor([0.5, 1.0, 2.0]), "num_batches_tracked": torch.tensor([3]),
    }  # fmt: skip
    more = {k: v for k, v in act().items() if k != "other"}
    return {"x": more.pop("x"), **own, **more, "training": True, "momentum": 0.1, "eps": 1e-5}


TABLE["bn_act_fake_quant"] = OpEntry(
    cases=bn_cases(),
    build=bn_arguments,
    reference=bn_value,
    gradient=bn_gradient,
    learned=("x", "weight", "bias"),
    sample=lambda: {**bn(), "activation": "relu"},
    measured="run.py",
)
TABLE["_bn_act_fake_quant"] = OpEntry(
    sample=lambda: {**bn(), "activation": 1, "save_inside": True, "memory_format": CONTIGUOUS},
    variants=(
        {"zero_point": None, "activation": 2, "memory_format": LAST},
        {
            "weight": None, "bias": None, "num_batches_tracked": None, "activation": 0,
            "training": False, "save_inside": False, "memory_format": LAST,
        },
    ),
)  # fmt: skip
TABLE["_bn_act_fake_quant_gradient"] = OpEntry(
    sample=lambda: {
        "dy": floats(*SHAPE), "x": floats(*SHAPE, seed=1), "weight": floats(3), "inside": words(N),
        "statistics": torch.rand(13) + 0.5, "activation": 1, "memory_format": CONTIGUOUS,
    },
    variants=({"memory_format": LAST}, {"activation": 3, "memory_format": LAST}),
)  # fmt: skip
