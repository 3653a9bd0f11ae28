"""Ops between values and integer codes, and between codes and packed bytes."""

import bitpare as bp
import reference
import torch
from torch import Tensor

from ops.entry import (
    S4,
    S8,
    SHAPE,
    TABLE,
    U8,
    Call,
    Case,
    Expected,
    N,
    OpEntry,
    Speed,
    exactly,
    laid_out,
    scale,
    zero,
)
from ops.fakes import quantized, quantizer, quantizer_arguments

F = bp.functional
WIDE = {"quant_min": -3000, "quant_max": 3000}
UNSIGNED = {"quant_min": 0, "quant_max": 65535}


def quantize_value(case: Case) -> Expected:
    q = quantized(case)
    return Expected(q.code, q.near_tie())


def dequantize_arguments(case: Case, device: str) -> Call:
    values, zero_point = case.quantizer(device)
    kwargs = {k: v for k, v in case.attributes.items() if k not in ("quant_min", "quant_max")}
    low, high = case.attributes["quant_min"], case.attributes["quant_max"]
    q = torch.randint(low, high + 1, case.shape, generator=case.generator())
    q = laid_out(q.to(torch.int8), case.layout)
    return (q.to(device), values, zero_point), {**kwargs, "dtype": case.dtype}


def dequantize_value(case: Case) -> Expected:
    (q, values, z), kwargs = case.arguments()
    where = q, kwargs.get("axis"), kwargs.get("group")
    z = z if z is None or not z.is_floating_point() else z.round()
    level = q.double() - reference.per_element(z, *where)
    return Expected(level * reference.per_element(values, *where))


def pack_arguments(case: Case, device: str) -> Call:
    codes = torch.randint(0, 2 ** case.attributes["bits"], case.shape, generator=case.generator())
    return (codes.to(torch.uint8).to(device),), dict(case.attributes)


def pack_value(case: Case) -> Expected:
    (codes,), kwargs = case.arguments()
    return Expected(reference.pack_bits(codes, kwargs["bits"]))


def unpack_arguments(case: Case, device: str) -> Call:
    bits = case.attributes["bits"]
    shape = (*case.shape[:-1], -(-case.shape[-1] * bits // 8))
    packed = torch.randint(0, 256, shape, generator=case.generator()).to(torch.uint8)
    return (packed.to(device), list(case.shape)), dict(case.attributes)


def check_unpack(case: Case) -> None:
    (packed, shape), kwargs = case.arguments()
    codes = F.unpack_bits(packed, shape, **kwargs)
    assert list(codes.shape) == shape
    used = F.pack_bits(codes, bits=kwargs["bits"])
    spare = -shape[-1] * kwargs["bits"] % 8
    packed = packed.clone()
    packed[..., -1] &= (1 << (8 - spare)) - 1
    exactly(used, packed)


def quantize_speed(x: Tensor):
    s, z = torch.tensor(0.05, device=x.device), torch.tensor(0, dtype=torch.int32, device=x.device)
    functions = {"bitpare": lambda: F.quantize(x, s, z, **S8)}
    if x.device.type == "cpu":
        functions["torch"] = lambda: torch.quantize_per_tensor(x, 0.05, 0, torch.qint8)
    return functions


def dequantize_speed(x: Tensor):
    s = torch.tensor(0.05, device=x.device)
    codes = F.quantize(x, s, **S8)
    functions = {"bitpare": lambda: F.dequantize(codes, s)}
    if x.device.type == "cpu":
        functions["torch"] = torch.quantize_per_tensor(x, 0.05, 0, torch.qint8).dequantize
    return functions


def four_bits(x: Tensor) -> Tensor:
    return F.quantize(x, torch.tensor(0.05, device=x.device), **S8).clamp(-8, 7)


def pack_speed(x: Tensor):
    codes = four_bits(x)
    return {"bitpare": lambda: F.pack_bits(codes, bits=4)}


def unpack_speed(x: Tensor):
    packed = F.pack_bits(four_bits(x), bits=4)
    return {"bitpare": lambda: F.unpack_bits(packed, x.shape, bits=4)}


TABLE["quantize"] = OpEntry(
    cases=[
        *(Case("quantize", (3, 4, 5, 6), grid, "integer") for grid in (S8, U8, WIDE, UNSIGNED)),
        Case("quantize", (3, 4, 5, 6), {**S8, "axis": 1}, "integer", layout="channels_last"),
        Case("quantize", (4, 64), {**S4, "group": 16}, "integer"),
        Case("quantize", (2, 3, 4, 8), {**S4, "group": 4}, layout="channels_last"),
        Case("quantize", (0, 3), S8),
    ],
    build=quantizer_arguments,
    reference=quantize_value,
    sample=quantizer,
    speed=Speed(5, quantize_speed),
)
TABLE["dequantize"] = OpEntry(
    cases=[
        Case("dequantize", (3, 4, 5, 6), S8, "integer"),
        Case("dequantize", (3, 4, 5, 6), {**S8, "axis": 1}, "integer", layout="channels_last"),
        Case("dequantize", (4, 64), {**S4, "group": 16}, "learned"),
    ],
    build=dequantize_arguments,
    reference=dequantize_value,
    halves=False,
    sample=lambda: {
        "q": torch.arange(N, dtype=torch.int16).view(SHAPE), "scale": scale(),
        "zero_point": zero(), "axis": 1,
    },
    speed=Speed(5, dequantize_speed),
)  # fmt: skip
TABLE["pack_bits"] = OpEntry(
    cases=[Case("pack_bits", (3, 37), {"bits": bits}) for bits in (1, 2, 4)],
    build=pack_arguments,
    reference=pack_value,
    halves=False,
    sample=lambda: {"codes": torch.arange(30).view(5, 6).remainder(4).byte(), "bits": 2},
    speed=Speed(1.5, pack_speed, "4"),
)
TABLE["unpack_bits"] = OpEntry(
    cases=[
        Case("unpack_bits", (3, 37), {"bits": bits, **signed})
        for bits in (1, 2, 4)
        for signed in ({}, {"signed": True})
    ],
    build=unpack_arguments,
    check=check_unpack,
    halves=False,
    sample=lambda: {
        "packed": torch.arange(10, dtype=torch.uint8).view(5, 2), "shape": [5, 7], "bits": 2
    },
    speed=Speed(1.5, unpack_speed, "4"),
)  # fmt: skip
