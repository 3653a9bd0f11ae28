"""Ops that make weights sparse: masks of one bit an element, and soft thresholding."""

import bitpare as bp
import reference
import torch
from torch import Tensor

from ops.entry import (
    CONTIGUOUS,
    S4,
    SHAPE,
    TABLE,
    Call,
    Case,
    Expected,
    N,
    OpEntry,
    Speed,
    exactly,
    floats,
    words,
)
from ops.fakes import quantizer

F = bp.functional
FOUR_D = (3, 4, 5, 6)
LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced")


def kept(case: Case) -> Tensor:
    """Return a tensor of bool, True where a case keeps its elements."""
    return torch.rand(case.shape, generator=case.generator()) < 0.6


def packed(case: Case, device: str) -> Tensor:
    return F.pack_mask(kept(case).to(device))


def kept_alone(case: Case, values: Tensor) -> Tensor:
    return torch.where(kept(case), values.double(), 0.0)


# -- pack_mask, unpack_mask, apply_mask, remask_


def check_pack(case: Case) -> None:
    bits = kept(case).flatten().tolist()
    mask = F.pack_mask(kept(case))
    assert mask.dtype == torch.int64 and len(mask) == -(-len(bits) // 64)
    assert [bool(int(mask[i // 64]) >> i % 64 & 1) for i in range(len(bits))] == bits


def apply_gradient(case: Case, dy: Tensor) -> list[Expected]:
    passes = case.attributes.get("mode") == "ste"
    return [Expected(dy.double() if passes else kept_alone(case, dy))]


def check_remask(case: Case) -> None:
    (tensors, masks), _ = case.arguments()
    zero = torch.zeros((), dtype=case.dtype)
    expected = [torch.where(kept(case), t, zero) for t in tensors]
    F.remask_(tensors, masks)
    exactly(tensors, expected)


def with_mask(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a mask of x as bool and packed."""
    chosen = x > 0
    return chosen, F.pack_mask(chosen)


def pack_speed(x: Tensor):
    chosen, _ = with_mask(x)
    return {"bitpare": lambda: F.pack_mask(chosen)}


def unpack_speed(x: Tensor):
    _, mask = with_mask(x)
    return {"bitpare": lambda: F.unpack_mask(mask, x.shape)}


def apply_speed(x: Tensor):
    chosen, mask = with_mask(x)
    return {"bitpare": lambda: F.apply_mask(x, mask), "torch": lambda: x * chosen}


def remask_speed(x: Tensor):
    chosen, mask = with_mask(x)
    weight, theirs = x.clone(), x.clone()
    return {"bitpare": lambda: F.remask_([weight], [mask]), "torch": lambda: theirs.mul_(chosen)}


TABLE["pack_mask"] = OpEntry(
    cases=[Case("pack_mask", FOUR_D), Case("pack_mask", (0, 3)), Case("pack_mask", (7, 33))],
    build=lambda case, device: ((kept(case).to(device),), {}),
    check=check_pack,
    halves=False,
    sample=lambda: {"kept": floats(*SHAPE) > 0},
    speed=Speed(1 + 1 / 8, pack_speed),
)
TABLE["unpack_mask"] = OpEntry(
    cases=[Case("unpack_mask", FOUR_D), Case("unpack_mask", (0, 3))],
    build=lambda case, device: ((packed(case, device), list(case.shape)), {}),
    check=lambda case: exactly(case.run(), kept(case)),
    halves=False,
    sample=lambda: {"mask": words(150), "shape": [3, 50]},
    speed=Speed(1 + 1 / 8, unpack_speed),
)
TABLE["apply_mask"] = OpEntry(
    cases=[
        Case("apply_mask", FOUR_D, {"mode": mode}, layout=layout)
        for mode in ("hard", "ste")
        for layout in LAYOUTS
    ],
    build=lambda case, device: ((case.x(device), packed(case, device)), dict(case.attributes)),
    reference=lambda case: Expected(kept_alone(case, case.x())),
    gradient=apply_gradient,
    sample=lambda: {"x": floats(*SHAPE), "mask": words(N)},
    speed=Speed(8 + 1 / 8, apply_speed),
)
TABLE["_apply_mask"] = OpEntry(
    sample=lambda: {"x": floats(*SHAPE), "mask": words(N), "memory_format": CONTIGUOUS},
    variants=({"memory_format": torch.channels_last},),
)
TABLE["remask_"] = OpEntry(
    cases=[Case("remask_", FOUR_D), Case("remask_", FOUR_D, layout="channels_last")],
    build=lambda case, device: (
        ([case.x(device), case.x(device).neg()], [packed(case, device)] * 2),
        {},
    ),
    check=check_remask,
    sample=lambda: {
        "tensors": [floats(*SHAPE), torch.arange(90).view(9, 10)], "masks": [words(N), words(90)]
    },
    speed=Speed(8 + 1 / 8, remask_speed),
)  # fmt: skip


# -- masked_fake_quant


def masked_arguments(case: Case, device: str) -> Call:
    return (case.x(device), packed(case, device), *case.quantizer(device)), dict(case.attributes)


def masked_quantized(case: Case) -> reference.Quantized:
    (x, _, values, zero_point), a = case.arguments()
    return reference.Quantized(
        x, values, zero_point, a["quant_min"], a["quant_max"], a.get("axis"), None
    )


def masked_value(case: Case) -> Expected:
    q = masked_quantized(case)
    return Expected(kept_alone(case, q.value), q.near_tie())


def masked_gradient(case: Case, dy: Tensor) -> list[Expected]:
    q = masked_quantized(case)
    straight = torch.where(q.inside, dy.double(), 0.0)
    ste = case.attributes.get("mode") == "ste"
    return [Expected(straight if ste else kept_alone(case, straight), q.near_tie())]


def masked_speed(x: Tensor):
    chosen, mask = with_mask(x)
    s = torch.tensor(0.05, device=x.device)
    z = torch.zeros((), dtype=torch.int32, device=x.device)
    return {
        "bitpare": lambda: F.masked_fake_quant(x, mask, s, **S4),
        "torch": lambda: torch.fake_quantize_per_tensor_affine(x, s, z, -8, 7) * chosen,
    }


TABLE["masked_fake_quant"] = OpEntry(
    cases=[
        Case("masked_fake_quant", FOUR_D, S4, "integer"),
        Case("masked_fake_quant", FOUR_D, {**S4, "mode": "ste"}, "integer"),
        Case("masked_fake_quant", FOUR_D, {**S4, "axis": 1}, layout="channels_last"),
        Case("masked_fake_quant", FOUR_D, {**S4, "axis": 0, "mode": "ste"}, layout="sliced"),
    ],
    build=masked_arguments,
    reference=masked_value,
    gradient=masked_gradient,
    sample=lambda: {**quantizer(), "mask": words(N)},
    speed=Speed(8 + 1 / 8, masked_speed),
)
TABLE["_masked_fake_quant"] = OpEntry(
    sample=lambda: {
        **quantizer(), "mask": words(N), "masks_gradient": True, "save_inside": True,
        "memory_format": CONTIGUOUS,
    },
)  # fmt: skip


# -- select_mask


def select_arguments(case: Case, device: str) -> Call:
    scores = [case.x(device).abs(), case.x(device).flatten()[:40].abs() * 2]
    return (scores, [case.attributes["sparsity"]]), {"scope": case.attributes["scope"]}


def check_select(case: Case) -> None:
    (scores, sparsity), kwargs = case.arguments()
    groups = [scores] if kwargs["scope"] == "global" else [[s] for s in scores]
    expected = []
    for group in groups:
        flat = torch.cat([s.flatten() for s in group])
        stays = torch.ones(len(flat), dtype=torch.bool)
        pruned = flat.argsort(stable=True)[: int(sparsity[0] * len(flat) + 1e-6)]
        stays[pruned] = False
        expected += [F.pack_mask(s) for s in stays.split([s.numel() for s in group])]
    exactly(F.select_mask(scores, sparsity, **kwargs), expected)


TABLE["select_mask"] = OpEntry(
    cases=[
        Case("select_mask", (12, 10), {"sparsity": 0.6, "scope": scope})
        for scope in ("global", "local")
    ],
    build=select_arguments,
    check=check_select,
    sample=lambda: {
        "scores": [floats(6, 8), floats(4, 12)], "sparsity": [0.5],
        "previous": [words(48), words(48)], "min_keep": [2],
    },
    measured="prune.py",
)  # fmt: skip
TABLE["_select_mask"] = OpEntry(
    sample=lambda: {
        "scores": [floats(6, 8), floats(4, 12)], "sparsity": [0.5], "together": True,
        "min_keep": [2], "previous": [words(48), words(48)],
    },
)  # fmt: skip
TABLE["_select_n_of_m"] = OpEntry(
    sample=lambda: {
        "scores": floats(6, 8), "keep": 2, "members": 4, "previous": words(48)
    },
)  # fmt: skip


# -- soft_threshold


def soft_arguments(case: Case, device: str) -> Call:
    """Values of which the first and the last lie on the threshold."""
    x = case.x(device)
    for at, value in ((0, 0.5), (-1, -0.5)) if x.numel() else ():
        x[(at,) * x.dim()] = value
    return (x, case.attributes["threshold"]), {}


def softshrink(case: Case) -> tuple[Tensor, Tensor]:
    (x, threshold), _ = case.arguments()
    x = x.double().requires_grad_()
    return x, torch.nn.functional.softshrink(x, threshold)


def soft_gradient(case: Case, dy: Tensor) -> list[Expected]:
    x, y = softshrink(case)
    return [Expected(*torch.autograd.grad(y, x, dy.double()))]


TABLE["soft_threshold"] = OpEntry(
    cases=[
        *(Case("soft_threshold", FOUR_D, {"threshold": 0.5}, layout=layout) for layout in LAYOUTS),
        *(Case("soft_threshold", shape, {"threshold": 0.5}) for shape in ((), (0, 4), (131,))),
        Case("soft_threshold", (7, 33), {"threshold": 0.0}),
    ],
    build=soft_arguments,
    reference=lambda case: Expected(softshrink(case)[1].detach()),
    gradient=soft_gradient,
    wrong=[
        ({"threshold": t}, f"soft_threshold: threshold must be finite and 0 or more, got {t:g}")
        for t in (-0.5, float("nan"), float("inf"))
    ],
    speed=Speed(
        8,
        lambda x: {
            "bitpare": lambda: F.soft_threshold(x, 0.5),
            "torch": lambda: torch.nn.functional.softshrink(x, 0.5),
        },
    ),
)
TABLE["_soft_threshold"] = OpEntry(
    sample=lambda: {
        "x": floats(*SHAPE), "threshold": 0.5, "save_inside": True, "memory_format": CONTIGUOUS
    },
    variants=({"save_inside": False, "memory_format": torch.channels_last},),
)  # fmt: skip
