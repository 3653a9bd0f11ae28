"""Test properties that hold for every input: random shapes, granularities, grids and scales."""

import pathlib

import bitpare as bp
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

F = bp.functional
hypothesis.settings.register_profile(
    "bitpare", max_examples=80, deadline=None, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("bitpare")

floats = st.floats(width=32, allow_nan=False, allow_infinity=True)
scales = st.floats(min_value=2**-30, max_value=2**30, width=32)


@st.composite
def grids(draw):
    bits = draw(st.integers(1, 16))
    low = 0 if draw(st.booleans()) else -(2 ** (bits - 1))
    high = low + 2**bits - 1
    narrow = low < 0 and bits > 1 and draw(st.booleans())
    return {"quant_min": low + narrow, "quant_max": high}


@st.composite
def tensors(draw, max_dims=4):
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=max_dims))
    seed, spread = draw(st.integers(0, 2**31)), draw(st.sampled_from([0.01, 1.0, 1e4]))
    return torch.from_numpy(np.random.default_rng(seed).normal(0, spread, shape).astype("float32"))


@hypothesis.given(st.lists(floats, min_size=1, max_size=200), scales, grids(), st.data())
def test_bit_equal_to_torch(values, scale, grid, data):
    x, s = torch.tensor(values), torch.tensor(scale)
    z = torch.tensor(
        data.draw(st.integers(grid["quant_min"], grid["quant_max"])), dtype=torch.int32
    )
    x.requires_grad_()
    got = F.fake_quant(x, s, z, **grid)
    expected = torch.fake_quantize_per_tensor_affine(x, s, z, *grid.values())
    # The product x / scale may overflow to infinity, which torch casts to a wrong integer. A clamp
    # in float keeps the end of the range.
    product = x.detach() * (1 / s)
    safe = product.abs() < 2**30
    assert torch.equal(got[safe], expected[safe])
    (ours,) = torch.autograd.grad(got.sum(), x)
    (theirs,) = torch.autograd.grad(expected.sum(), x)
    assert torch.equal(ours[safe], theirs[safe])
    top = (grid["quant_max"] - z) * s
    bottom = (grid["quant_min"] - z) * s
    assert (got[product >= 2**30] == top).all() and (got[product <= -(2**30)] == bottom).all()


@hypothesis.given(tensors(), scales, grids())
def test_idempotent_monotonic_in_range(x, scale, grid):
    s = torch.tensor(scale)
    y = F.fake_quant(x, s, **grid)
    assert torch.equal(F.fake_quant(y, s, **grid), y)
    order = x.flatten().argsort()
    assert (y.flatten()[order].diff() >= 0).all()
    assert y.min() >= grid["quant_min"] * s and y.max() <= grid["quant_max"] * s


@hypothesis.given(tensors(), grids(), st.data())
def test_a_channel_is_quantized_as_it_would_be_alone(x, grid, data):
    axis = data.draw(st.integers(-x.dim(), x.dim() - 1))
    s = torch.rand(x.shape[axis]) + 0.01
    z = torch.randint(grid["quant_min"], grid["quant_max"] + 1, s.shape, dtype=torch.int32)
    y = F.fake_quant(x, s, z, axis=axis, **grid)
    for c in range(x.shape[axis]):
        alone = F.fake_quant(x.select(axis, c), s[c], z[c], **grid)
        assert torch.equal(y.select(axis, c), alone)


@hypothesis.given(tensors(max_dims=3), grids(), st.integers(1, 5))
def test_groups_are_channels_of_the_reshaped_tensor(x, grid, groups):
    x = x.repeat_interleave(groups, dim=-1)
    size = x.shape[-1] // groups
    s = torch.rand(*x.shape[:-1], groups) + 0.01
    y = F.fake_quant(x, s, group=size, **grid)
    rows = F.fake_quant(x.reshape(-1, size), s.flatten(), axis=0, **grid)
    assert torch.equal(y, rows.view_as(x))


@hypothesis.given(tensors(), grids(), st.data())
def test_layout_changes_nothing(x, grid, data):
    order = data.draw(st.permutations(range(x.dim())))
    other = x.permute(order).contiguous().permute(np.argsort(order).tolist())
    axis = data.draw(st.integers(0, x.dim() - 1))
    s = torch.rand(x.shape[axis]) + 0.01
    assert torch.equal(
        F.fake_quant(other, s, axis=axis, **grid), F.fake_quant(x, s, axis=axis, **grid)
    )


@hypothesis.given(tensors(), scales, grids())
def test_quantize_then_dequantize_is_fake_quant(x, scale, grid):
    s = torch.tensor(scale)
    q = F.quantize(x, s, **grid)
    assert int(q.min()) >= grid["quant_min"] and int(q.max()) <= grid["quant_max"]
    assert torch.equal(F.dequantize(q, s), F.fake_quant(x, s, **grid))


@hypothesis.given(floats, floats, grids(), st.booleans())
def test_qparams_cover_the_range_and_hold_zero(a, b, grid, power_of_two):
    hypothesis.assume(abs(a) < 1e38 and abs(b) < 1e38)
    low, high = torch.tensor(min(a, b)), torch.tensor(max(a, b))
    s, z = F.qparams(low, high, symmetric=False, power_of_two=power_of_two, **grid)
    assert s >= 2**-40 and torch.isfinite(s)
    assert grid["quant_min"] <= z <= grid["quant_max"]
    zero = F.fake_quant(torch.zeros(1), s, z, **grid)
    assert zero.item() == 0.0
    if power_of_two:
        assert torch.frexp(s).mantissa == 0.5
    # every value of the range is within one step of its quantized value
    ends = torch.stack([low.clamp(max=0), high.clamp(min=0)])
    assert ((F.fake_quant(ends, s, z, **grid) - ends).abs() <= s * 1.001).all()


@hypothesis.given(tensors(), st.sampled_from([1, 2, 4]), st.booleans())
def test_pack_and_unpack(x, bits, signed):
    low = -(2 ** (bits - 1)) if signed else 0
    codes = (x.to(torch.int64) % 2**bits + low).to(torch.int8 if signed else torch.uint8)
    packed = F.pack_bits(codes, bits=bits)
    assert packed.shape[-1] == -(-codes.shape[-1] * bits // 8)
    assert torch.equal(F.unpack_bits(packed, codes.shape, bits=bits, signed=signed), codes)


@hypothesis.given(tensors(), st.data())
def test_minmax_is_aminmax(x, data):
    axis = data.draw(st.one_of(st.none(), st.integers(-x.dim(), x.dim() - 1)))
    low, high = F.minmax(x, axis=axis)
    rows = x.flatten()[None] if axis is None else x.movedim(axis, 0).reshape(x.shape[axis], -1)
    assert torch.equal(low.reshape(-1), rows.amin(1)) and torch.equal(
        high.reshape(-1), rows.amax(1)
    )


def histograms(bins, *batches):
    state = torch.zeros(1, bins, dtype=torch.int64), torch.zeros(1), torch.zeros(1).long()
    for batch in batches:
        F.observe_histogram_(*state, batch)
    return state


all_floats = st.lists(st.floats(width=32), min_size=1, max_size=60)


@hypothesis.given(all_floats, st.sampled_from([64, 512]), st.data())
def test_splitting_a_batch_does_not_change_its_histogram(values, bins, data):
    x = torch.tensor(values)
    counts, limit, _ = histograms(bins, x)
    cuts = data.draw(st.lists(st.integers(0, len(values)), max_size=4).map(sorted))
    parts = [x[a:b] for a, b in zip([0, *cuts], [*cuts, len(values)], strict=True)]
    got_counts, got_limit, skipped = histograms(bins, *data.draw(st.permutations(parts)))
    assert torch.equal(got_counts, counts) and torch.equal(got_limit, limit)
    assert counts.sum() == x.isfinite().sum()
    assert skipped == sum(not part.isfinite().all() for part in parts)


@hypothesis.given(tensors(), grids(), st.booleans())
def test_percentile_of_all_is_the_outermost_bins(x, grid, symmetric):
    hypothesis.assume(grid["quant_max"] > 0)
    counts, limit, _ = histograms(256, x)
    low, high = F.histogram_range(
        counts, limit, method="percentile", percentile=100.0, symmetric=symmetric, **grid
    )
    edges = torch.linspace(-1, 1, 257) * limit
    filled = counts[0].nonzero().flatten()
    least, most = edges[filled[0]].clamp(max=0), edges[filled[-1] + 1].clamp(min=0)
    if symmetric:
        most = torch.maximum(-least, most)
        least = -most
    assert low == least and high == most
    assert low <= x.min() and x.max() <= high


def total_error(x, low, high, symmetric, grid):
    s, z = F.qparams(low, high, symmetric=symmetric, **grid)
    return (F.fake_quant(x, s, z, **grid).double() - x.double()).square().sum().item()


@hypothesis.given(tensors(), grids(), st.booleans())
def test_mse_range_is_never_worse_than_minmax(x, grid, symmetric):
    hypothesis.assume(grid["quant_max"] > 0)
    low, high = F.mse_range(x, symmetric=symmetric, **grid)
    whole = total_error(x, *F.minmax(x), symmetric, grid)
    # the compared sums are float32, and so is the cancellation in x - fake_quant(x)
    slack = 1e-5 * whole + 1e-12 * x.double().square().sum().item()
    assert total_error(x, low, high, symmetric, grid) <= whole + slack


@hypothesis.given(tensors(), grids(), st.booleans())
def test_mse_of_a_histogram_is_never_worse_than_its_whole_range(x, grid, symmetric):
    hypothesis.assume(grid["quant_max"] > 0)
    counts, limit, _ = histograms(256, x)
    ranges = [
        F.histogram_range(
            counts, limit, method=method, percentile=100.0, symmetric=symmetric, **grid
        )
        for method in ("mse", "percentile")
    ]
    centres = (torch.arange(256) - 127.5) * limit / 128
    values = centres.repeat_interleave(counts[0])
    chosen, whole = (total_error(values, *r, symmetric, grid) for r in ranges)
    assert chosen <= whole * (1 + 1e-5) + 1e-12 * values.double().square().sum().item()


@hypothesis.given(tensors(), st.sampled_from(["percentile", "mse", "entropy"]), st.booleans())
def test_histogram_range_lies_in_the_limit_and_holds_zero(x, method, symmetric):
    counts, limit, _ = histograms(512, x)
    grid = {"quant_min": -8, "quant_max": 7, "symmetric": symmetric}
    low, high = F.histogram_range(counts, limit, method=method, **grid)
    assert -limit <= low <= 0 <= high <= limit and low < high
    assert not symmetric or low == -high


@hypothesis.given(tensors(), st.integers(0, 2**62), st.integers(0, 2**62))
def test_stochastic_rounding_is_one_of_both_neighbours_and_repeats(x, seed, step):
    grid = {"quant_min": -100, "quant_max": 100, "rounding": "stochastic"}
    x, s, rng = x.clamp(-30, 30), torch.tensor(0.5), torch.tensor([seed, step])
    y = F.fake_quant(x, s, rng=rng, **grid)
    assert ((y - x).abs() <= 0.5).all()
    assert torch.equal(y, F.fake_quant(x, s, rng=rng.clone(), **grid))


def test_stochastic_rounding_is_unbiased():
    x = torch.full((400_000,), 0.3)
    y = F.fake_quant(
        x, torch.tensor(1.0), quant_min=-8, quant_max=7, rounding="stochastic",
        rng=torch.tensor([5, 1]),
    )  # fmt: skip
    assert y.mean().item() == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / 400_000) ** 0.5)
    other = F.fake_quant(
        x, torch.tensor(1.0), quant_min=-8, quant_max=7, rounding="stochastic",
        rng=torch.tensor([5, 2]),
    )  # fmt: skip
    assert 0.3 < (y != other).double().mean() < 0.55


def test_nan_and_infinity():
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0], requires_grad=True)
    y = F.fake_quant(x, torch.tensor(0.5), quant_min=-8, quant_max=7)
    assert y[0].isnan() and y[1:].tolist() == [3.5, -4.0, 0.0]
    y.nansum().backward()
    assert x.grad.tolist() == [0.0, 0.0, 0.0, 1.0]


def test_minmax_of_nan_and_signed_zero():
    low, high = F.minmax(torch.tensor([1.0, float("nan"), 2.0]))
    assert low.isnan() and high.isnan()
    low, high = F.minmax(torch.tensor([-0.0, -0.0]))
    assert not torch.signbit(low) and not torch.signbit(high)


def test_rng_may_move_on_before_the_backward_pass():
    x, rng = torch.randn(500, requires_grad=True), torch.tensor([3, 0])
    options = {"quant_min": -8, "quant_max": 7, "rounding": "stochastic", "estimator": "ewgs"}
    y = F.fake_quant(x, torch.tensor(0.5), rng=rng, delta=0.5, **options)
    error = (x / 0.5 - y / 0.5).detach()
    rng[1] += 1
    y.sum().backward()
    inside = (y / 0.5 > -8) & (y / 0.5 < 7)
    assert torch.allclose(x.grad[inside], (1 + 0.5 * error)[inside], atol=1e-5)


@pytest.mark.slow
def test_more_elements_than_32_bits_can_count():
    meminfo = pathlib.Path("/proc/meminfo").read_text()
    free = int(meminfo.split("MemAvailable:")[1].split()[0])
    if free < 14 << 20:
        pytest.skip("needs 14 GiB of free memory")
    n = 2**31 + 77
    x = torch.zeros(n, dtype=torch.float16, requires_grad=True)
    with torch.no_grad():
        x[-1], x[-2], x[2**31] = 9.0, 1.1, 0.6
    y = F.fake_quant(x, torch.tensor(0.5), quant_min=-8, quant_max=7)
    assert y[-3:].tolist() == [0.0, 1.0, 3.5] and y[2**31].item() == 0.5
    low, high = F.minmax(x)
    assert (low.item(), high.item()) == (0.0, 9.0)
    (dx,) = torch.autograd.grad(y, x, y.detach().fill_(1.0))
    assert dx[-3:].tolist() == [1.0, 1.0, 0.0]
