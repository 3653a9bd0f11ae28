"""Ops that look at values: ranges, histograms, and the scales that follow from them."""

import math

import bitpare as bp
import pytest
import reference
import torch
from torch import Tensor

from ops.entry import (
    S4,
    S8,
    SHAPE,
    TABLE,
    U8,
    Arguments,
    Call,
    Case,
    OpEntry,
    Speed,
    exactly,
    floats,
    scale,
)

F = bp.functional
FOUR_D = (3, 4, 5, 6)


def rows_of(x: Tensor, axis: int | None) -> Tensor:
    return x.flatten()[None] if axis is None else x.movedim(axis, 0).reshape(x.shape[axis], -1)


# -- minmax, minmax_histogram, qparams


def minmax_cases(op: str, **attributes: int) -> list[Case]:
    return [
        Case(op, FOUR_D, attributes),
        Case(op, FOUR_D, {"axis": 1, **attributes}),
        Case(op, FOUR_D, {"axis": 1, **attributes}, layout="channels_last"),
        Case(op, (3, 5000), {"axis": 0, **attributes}),
        Case(op, (0, 3), {"axis": 1, **attributes}),
    ]


def check_minmax(case: Case) -> None:
    (x,), kwargs = case.arguments()
    low, high = F.minmax(x, **kwargs)
    if x.numel() == 0:
        assert (low == math.inf).all() and (high == -math.inf).all()
    elif case.attributes:
        rows = x.transpose(0, case.attributes["axis"]).flatten(1)
        exactly((low, high), (rows.amin(1), rows.amax(1)))
    else:
        exactly((low, high), (x.amin(), x.amax()))


def histogram_arguments(case: Case, device: str) -> Call:
    shape = case.scale_shape()
    low, high = torch.full(shape, -2.0, device=device), torch.full(shape, 3.0, device=device)
    return (case.x(device), low, high), dict(case.attributes)


def check_histogram(case: Case) -> None:
    (x, low, high), kwargs = case.arguments()
    least, most, counts = F.minmax_histogram(x, low, high, **kwargs)
    axis = kwargs.get("axis")
    exactly((least, most), F.minmax(x, axis=axis))
    rows = x.flatten()[None] if axis is None else x.transpose(0, axis).flatten(1)
    expected = torch.stack([reference.histogram(row, -2.0, 3.0, kwargs["bins"]) for row in rows])
    exactly(counts, expected if axis is not None else expected[0])


def qparams_arguments(case: Case, device: str) -> Call:
    a, b = torch.randn(2, *case.shape, generator=case.generator()).to(device)
    return (torch.minimum(a, b), torch.maximum(a, b)), dict(case.attributes)


def check_qparams(case: Case) -> None:
    (low, high), kwargs = case.arguments()
    scales, zero_points = F.qparams(low, high, **kwargs)
    power_of_two = kwargs.pop("power_of_two", False)
    grid = kwargs["quant_min"], kwargs["quant_max"], kwargs.get("symmetric", True)
    for low1, high1, s, z in zip(
        *(t.flatten().tolist() for t in (low, high, scales, zero_points)), strict=True
    ):
        expected, expected_zero = reference.qparams(low1, high1, *grid)
        if power_of_two:
            expected = 2.0 ** math.ceil(math.log2(expected))
        assert s == pytest.approx(expected, rel=1e-6)
        assert z == expected_zero


def histogram_speed(x: Tensor):
    low, high = torch.tensor(-4.0, device=x.device), torch.tensor(4.0, device=x.device)
    return {
        "bitpare": lambda: F.minmax_histogram(x, low, high),
        "torch": lambda: (x.aminmax(), torch.histc(x, 2048, -4, 4)),
    }


def qparams_speed(x: Tensor):
    low, high = -x.abs(), x.abs()
    return {"bitpare": lambda: F.qparams(low, high, **U8, symmetric=False)}


TABLE["minmax"] = OpEntry(
    cases=minmax_cases("minmax"),
    check=check_minmax,
    sample=lambda: {"x": floats(*SHAPE), "axis": 1},
    speed=Speed(4, lambda x: {"bitpare": lambda: F.minmax(x), "torch": x.aminmax}),
)
TABLE["minmax_histogram"] = OpEntry(
    cases=minmax_cases("minmax_histogram", bins=16),
    build=histogram_arguments,
    check=check_histogram,
    sample=lambda: {
        "x": floats(*SHAPE), "low": -scale(), "high": 3 * scale(), "bins": 16, "axis": 1
    },
    speed=Speed(4, histogram_speed),
)  # fmt: skip
TABLE["qparams"] = OpEntry(
    cases=[
        Case("qparams", (), {**S8}),
        Case("qparams", (7,), {**U8, "symmetric": False}),
        Case("qparams", (7,), {**S8, "power_of_two": True}),
    ],
    build=qparams_arguments,
    check=check_qparams,
    halves=False,
    sample=lambda: {"min": -scale(), "max": 2 * scale(), **S4, "symmetric": False},
    speed=Speed(16, qparams_speed),
)


# -- observe_histogram_, histogram_range, mse_range


def new_histograms(n: int, bins: int, device: str | torch.device) -> tuple[Tensor, Tensor, Tensor]:
    counts = torch.zeros(n, bins, dtype=torch.int64, device=device)
    skipped = torch.zeros(n, dtype=torch.int64, device=device)
    return counts, torch.zeros(n, device=device), skipped


def observe_arguments(case: Case, device: str) -> Call:
    """Histograms that have seen a batch of small values, and a larger one with an infinity."""
    kwargs = dict(case.attributes)
    bins, x = kwargs.pop("bins", 256), case.x(device)
    state = new_histograms(x.shape[kwargs["axis"]] if "axis" in kwargs else 1, bins, device)
    F.observe_histogram_(*state, x * 0.1, **kwargs)
    if x.numel():
        x[(-1,) * x.dim()] = torch.inf
    return (*state, x), kwargs


def check_observe_histogram(case: Case) -> None:
    (counts, limit, skipped, x), kwargs = case.arguments()
    state = counts, limit, skipped
    versions = [t._version for t in state]
    F.observe_histogram_(*state, x, **kwargs)
    assert [t._version for t in state] == [v + 1 for v in versions]
    small = rows_of(case.x() * 0.1, kwargs.get("axis"))
    for row, batches in enumerate(zip(small, rows_of(x, kwargs.get("axis")), strict=True)):
        both = torch.cat(batches).double()
        finite = both[both.isfinite()].abs()
        if len(finite) == 0:
            assert limit[row] == 0 and counts[row].sum() == 0
            continue
        assert limit[row] == 2.0 ** math.ceil(math.log2(finite.max().item()))
        expected = reference.symmetric_histogram(both, limit[row].item(), counts.shape[1])
        exactly(counts[row], expected)
        assert skipped[row] == int(not both.isfinite().all())


def range_arguments(case: Case, device: str) -> Call:
    """Histograms of case.shape[0] tensors: a bell, rectified ones, one with outliers, none."""
    rows, bins = case.shape
    x = torch.randn(rows, 20000, generator=case.generator()) * torch.arange(1, rows + 1)[:, None]
    x[1::4] = x[1::4].relu()
    x[2::4, ::5000] *= 5
    x[3::4] = torch.nan
    state = new_histograms(rows, bins, device)
    F.observe_histogram_(*state, x.to(device), axis=0)
    return state[:2], dict(case.attributes)


def check_histogram_range(case: Case) -> None:
    (counts, limit), kwargs = case.arguments()
    low, high = F.histogram_range(counts, limit, **kwargs)
    grid = kwargs["quant_min"], kwargs["quant_max"], kwargs["symmetric"]
    half = counts.shape[1] // 2
    for row, c, a, b in zip(counts, limit.tolist(), low.tolist(), high.tolist(), strict=True):
        if row.sum() == 0:
            assert (a, b) == (math.inf, -math.inf)
            continue
        span = round(-a / c * half), round(b / c * half)
        assert (a, b) == (-span[0] * c / half, span[1] * c / half)
        if kwargs["method"] == "percentile":
            assert span == reference.percentile_span(row, 99.99, kwargs["symmetric"])
            continue
        spans = reference.candidate_spans(row, kwargs["symmetric"])
        assert span in spans
        if kwargs["method"] == "mse":
            cost = lambda s, row=row, c=c: reference.histogram_error(row, c, s, *grid)  # noqa: E731
            slack = 1e-5 * cost(span)
        else:
            wide = [s for s in spans[:-1] if sum(s) >= grid[1] - grid[0] + 1]
            if grid[2] and grid[0] >= 0:
                wide = [s for s in spans[:-1] if s[1] >= grid[1] - grid[0] + 1]
            spans = [*wide, spans[-1]]
            assert span in spans
            cost = lambda s, row=row: reference.histogram_divergence(row, s, *grid)  # noqa: E731
            slack = 1e-6
        assert cost(span) <= min(map(cost, spans)) + slack


def check_mse_range(case: Case) -> None:
    (x,), kwargs = case.arguments()
    low, high = F.mse_range(x, **kwargs)
    axis, steps = kwargs.get("axis"), kwargs.get("steps", 100)
    grid = kwargs["quant_min"], kwargs["quant_max"], kwargs.get("symmetric", True)
    for row, a, b in zip(
        rows_of(x, axis), low.reshape(-1).tolist(), high.reshape(-1).tolist(), strict=True
    ):
        if row.numel() == 0:
            assert (a, b) == (math.inf, -math.inf)
            continue
        least, most = row.min().item(), row.max().item()
        costs = [
            reference.squared_error(row, least * k / steps, most * k / steps, *grid).sum()
            for k in range(1, steps + 1)
        ]
        k = round(b / most * steps)
        assert (a, b) == pytest.approx((least * k / steps, most * k / steps), rel=1e-6)
        assert costs[k - 1] <= min(costs) * (1 + 1e-5)


def calibration_cases(op: str, **attributes: int) -> list[Case]:
    return [
        Case(op, FOUR_D, attributes),
        Case(op, FOUR_D, {"axis": 1, **attributes}),
        Case(op, FOUR_D, {"axis": -1, **attributes}),
        Case(op, FOUR_D, {"axis": 1, **attributes}, layout="channels_last"),
        Case(op, FOUR_D, {"axis": 0, **attributes}, layout="transposed"),
        Case(op, (3, 5000), {"axis": 0, **attributes}),
        Case(op, (40000,), attributes),
        Case(op, (0, 3), {"axis": 1, **attributes}),
    ]


def histogram_range_cases() -> list[Case]:
    grids = ((S8, True), (U8, False), (S4, True), (U8, True), (S4, False))
    rows = [
        Case("histogram_range", (5, 1024), {**grid, "method": method, "symmetric": symmetric})
        for method in ("percentile", "mse", "entropy")
        for grid, symmetric in grids
    ]
    wide = {**S8, "method": "mse", "symmetric": True}
    return [*rows, Case("histogram_range", (2, 4096), wide)]


def histograms() -> Arguments:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 50, (3, 64), generator=generator)
    return {"counts": counts, "limit": torch.tensor([1.0, 2.0, 4.0])}


def observe_speed(x: Tensor):
    state = new_histograms(1, 2048, x.device)
    return {
        "bitpare": lambda: F.observe_histogram_(*state, x),
        "torch": lambda: torch.histc(x, 2048, -4, 4),
    }


def histogram_range_speed(x: Tensor):
    state = new_histograms(1, 2048, x.device)
    F.observe_histogram_(*state, x)
    call = {**S8, "method": "mse", "symmetric": True}
    return {"bitpare": lambda: F.histogram_range(*state[:2], **call)}


TABLE["observe_histogram_"] = OpEntry(
    cases=calibration_cases("observe_histogram_"),
    build=observe_arguments,
    check=check_observe_histogram,
    sample=lambda: {
        **histograms(), "skipped": torch.zeros(3, dtype=torch.int64), "x": floats(*SHAPE), "axis": 1
    },
    speed=Speed(4, observe_speed),
)  # fmt: skip
TABLE["histogram_range"] = OpEntry(
    cases=histogram_range_cases(),
    build=range_arguments,
    check=check_histogram_range,
    halves=False,
    sample=lambda: {**histograms(), **S4, "method": "mse", "symmetric": True},
    speed=Speed(2048 * 8 / 2**20, histogram_range_speed),
)
TABLE["mse_range"] = OpEntry(
    cases=[
        *calibration_cases("mse_range", **S4, steps=30),
        Case("mse_range", (7, 90), {**S8, "axis": 0}),
        Case("mse_range", (7, 90), {**U8, "axis": 0, "symmetric": False}),
    ],
    check=check_mse_range,
    sample=lambda: {"x": floats(*SHAPE), **S4, "axis": 1, "steps": 8},
    speed=Speed(4, lambda x: {"bitpare": lambda: F.mse_range(x, **S8)}),
)
