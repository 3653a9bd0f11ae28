"""Ops that take all weights or all quantizers of a model at once."""

import math

import bitpare as bp
import pytest
import reference
import torch
from torch import Tensor

from ops.entry import (
    TABLE,
    Arguments,
    Call,
    Case,
    Expected,
    OpEntry,
    Speed,
    control,
    exactly,
    floats,
    pending,
    scale,
    words,
)
from ops.masks import kept

F = bp.functional
FOUR_D = (3, 4, 5, 6)


# -- the weights of a model


def weights_arguments(case: Case, device: str) -> Call:
    """Two weights, the first with a scale for each index of dimension 0."""
    x = case.x(device)
    scales = [torch.ones(n, device=device) for n in (len(x), 1)]
    controls = [control().to(device)] * 2
    return ([x, x.flatten()[:70] * 3], scales, controls), dict(case.attributes)


def check_weights(case: Case) -> None:
    (x, scales, controls), kwargs = case.arguments()
    values, bits = F.fake_quant_weights(x, scales, controls, **kwargs)
    for value, inside, weight, s, axis in zip(values, bits, x, scales, (0, None), strict=True):
        rows = weight.flatten(1) if axis == 0 else weight.flatten()[None]
        for row, got in zip(rows, s.tolist(), strict=True):
            most = float(row.abs().max())
            expected, _ = reference.qparams(-most, most, -8, 7, True)
            if kwargs.get("power_of_two"):
                expected = 2.0 ** math.ceil(math.log2(expected))
            assert got == pytest.approx(expected, rel=1e-6)
        q = reference.Quantized(weight, s, None, -8, 7, axis, None)
        assert torch.allclose(value.double(), q.value, rtol=2e-6)
        exactly(F.unpack_mask(inside[:-1], weight.shape), q.inside)
        assert inside[-1] == int(not q.inside.all())


def use_arguments(case: Case, device: str) -> Call:
    bits = torch.cat([F.pack_mask(kept(case)), torch.ones(1, dtype=torch.int64)])
    return (case.x(device), case.x(device) * 0.5, bits.to(device)), {}


def sample_weights() -> Arguments:
    lists = {"x": [floats(6, 5), floats(4, 3, 2)], "scale": [torch.ones(6), torch.ones(1)]}
    return {**lists, "control": [control(), control()]}


TABLE["fake_quant_weights"] = OpEntry(
    cases=[
        Case("fake_quant_weights", FOUR_D),
        Case("fake_quant_weights", FOUR_D, layout="sliced"),
        Case("fake_quant_weights", (7, 33), {"power_of_two": True}),
    ],
    build=weights_arguments,
    check=check_weights,
    sample=sample_weights,
    variants=({"x": [floats(6, 5).requires_grad_(), floats(4, 3, 2).requires_grad_()]},),
    measured="run.py",
)
TABLE["_weight_scales_"] = OpEntry(sample=lambda: {**sample_weights(), "power_of_two": False})
TABLE["_fake_quant_weights"] = OpEntry(sample=sample_weights)
TABLE["use_weight"] = OpEntry(
    cases=[Case("use_weight", FOUR_D), Case("use_weight", (7, 33))],
    build=use_arguments,
    reference=lambda case: Expected(case.arguments()[0][1]),
    gradient=lambda case, dy: [Expected(torch.where(kept(case), dy.double(), 0.0))],
    learned=("weight",),
    sample=lambda: {
        "weight": floats(6, 40), "value": floats(6, 40, seed=1), "inside": words(240, 1)
    },
    measured="run.py",
)  # fmt: skip


# -- their oscillations


def track_arguments(case: Case, device: str) -> Call:
    """A weight that was looked at once, with state as if some of it had just moved."""
    weight = case.x(device)
    scales = torch.full((case.shape[0],), 0.3, device=device)
    n = weight.numel()
    code = torch.arange(n, device=device).remainder(5).sub(2)
    turn, frequency = code.sign().to(torch.int8), torch.full((n,), 0.15, device=device)
    state = (code.to(torch.int16), turn, frequency, code.float())
    kwargs = {"momentum": 0.1, "threshold": 0.2, **case.attributes}
    return (weight, scales, control().to(device), *state), kwargs


def check_track(case: Case) -> None:
    (weight, scales, grid, *state), kwargs = case.arguments()
    names = ("code", "turn", "frequency", "mean")
    expected = {name: t.clone() for name, t in zip(names, state, strict=True)}
    momentum, first = torch.tensor(kwargs["momentum"]), kwargs.get("first", False)
    # The state lies in the order of the weight in memory.
    in_memory = weight.permute(0, 2, 3, 1) if case.layout == "channels_last" else weight
    wanted = reference.track_oscillations(
        in_memory.clone(), scales, expected, -8, 7, momentum, kwargs["threshold"], first
    )
    F.track_oscillations_(weight, scales, grid, *state, **kwargs)
    exactly(in_memory, wanted)
    for name, t in zip(names, state, strict=True):
        exactly(t.float(), expected[name].float())


def track_speed(x: Tensor):
    weight, n = x.clone(), x.numel()
    scales, grid = torch.full((1,), 0.3, device=x.device), control().to(x.device)
    types = torch.int16, torch.int8, torch.float32, torch.float32
    state = [torch.zeros(n, dtype=t, device=x.device) for t in types]
    call = lambda: F.track_oscillations_(weight, scales, grid, *state, threshold=0.2)  # noqa: E731
    return {"bitpare": call}


TABLE["track_oscillations_"] = OpEntry(
    cases=[
        Case("track_oscillations_", (12, 5, 3, 3)),
        Case("track_oscillations_", (12, 5, 3, 3), {"first": True}),
        Case("track_oscillations_", (12, 5, 3, 3), layout="channels_last"),
    ],
    build=track_arguments,
    check=check_track,
    sample=lambda: {
        "weight": floats(3, 20), "scale": scale(), "control": control(),
        "code": torch.zeros(60, dtype=torch.int16), "turn": torch.ones(60, dtype=torch.int8),
        "frequency": torch.full((60,), 0.2), "mean": floats(60),
        "threshold": 0.1, "skip": torch.zeros(1),
    },
    speed=Speed(4 + 2 * (2 + 1 + 4 + 4), track_speed),
)  # fmt: skip


# -- the ranges of a model's quantizers


def ranges_arguments(case: Case, device: str) -> Call:
    """Quantizers of one scale and of several, at their second step."""
    low, high = torch.randn(2, *case.shape, generator=case.generator()).sort(0).values
    seen = [torch.stack([low[:n], high[:n]]) for n in (1, case.shape[0])]
    n = [s.shape[1] for s in seen]
    quantizers = (
        seen,
        [s - 0.5 for s in seen],
        [torch.ones(k) for k in n],
        [torch.zeros(k, dtype=torch.int32) for k in n],
        [torch.tensor([1, 0]) for _ in n],
        [control() for _ in n],
    )
    if case.attributes["symmetric"]:
        quantizers = (*quantizers[:3], [], *quantizers[4:])
    kwargs = {"power_of_two": False, "limit": [], **case.attributes}
    return tuple([t.to(device) for t in tensors] for tensors in quantizers), kwargs


def check_ranges(case: Case) -> None:
    args, kwargs = case.arguments()
    before = [t.clone() for t in args[0]], [t.clone() for t in args[1]]
    F.update_ranges_(*args, **kwargs)
    symmetric = kwargs["symmetric"]
    for i, (seen, in_force) in enumerate(zip(*before, strict=True)):
        for j in range(seen.shape[1]):
            limits = tuple(in_force[:, j].tolist()), tuple(seen[:, j].tolist())
            expected = reference.merged_range(kwargs["rule"], 0.1, 1, *limits)
            assert args[1][i][:, j].tolist() == pytest.approx(expected, rel=1e-6)
            s, z = reference.qparams(*args[1][i][:, j].tolist(), -8, 7, symmetric)
            assert args[2][i][j].item() == pytest.approx(s, rel=1e-6)
            assert symmetric or args[3][i][j].item() == z
        exactly(args[0][i], pending().expand_as(seen))
        assert args[4][i].tolist() == [2, 0]


def update() -> Arguments:
    return {
        "pending": [torch.tensor([[-1.0], [2.0]])], "range": [torch.zeros(2, 1)],
        "scale": [torch.ones(1)], "zero_point": [torch.zeros(1, dtype=torch.int32)],
        "count": [torch.zeros(2, dtype=torch.int64)], "control": [control()],
        "rule": "ema", "momentum": 0.1, "symmetric": False, "power_of_two": False, "limit": [],
    }  # fmt: skip


TABLE["update_ranges_"] = OpEntry(
    cases=[
        Case("update_ranges_", (7,), {"rule": rule, "momentum": 0.1, "symmetric": symmetric})
        for rule in ("minmax", "ema", "last")
        for symmetric in (True, False)
    ],
    build=ranges_arguments,
    check=check_ranges,
    halves=False,
    sample=update,
    measured="run.py",
)
