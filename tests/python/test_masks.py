"""Test masks of weights: packing, selection by masks, and gradients."""

import bitpare as bp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

F = bp.functional
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "sliced": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
}


def a_mask(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) < 0.6


@settings(max_examples=60, deadline=None)
@given(shape=st.lists(st.integers(0, 9), min_size=0, max_size=4), seed=st.integers(0, 99))
def test_pack_and_unpack(shape, seed):
    kept = a_mask(shape, seed)
    mask = F.pack_mask(kept)
    assert mask.dtype == torch.int64 and mask.shape == ((kept.numel() + 63) // 64,)
    assert torch.equal(F.unpack_mask(mask, shape), kept)
    bits = [bool(int(mask[i // 64]) >> (i % 64) & 1) for i in range(kept.numel())]
    assert bits == kept.flatten().tolist()
    if kept.numel() % 64:  # the remaining bits are 0
        assert (int(mask[-1]) & (2**64 - 1)) >> (kept.numel() % 64) == 0


def test_strides_do_not_matter_to_packing():
    kept = a_mask((3, 4, 5, 6))
    for make in LAYOUTS.values():
        assert torch.equal(F.pack_mask(make(kept)), F.pack_mask(kept))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["hard", "ste"])
@pytest.mark.parametrize("shape", [(7, 5, 3, 3), (64, 1, 3, 3), (9, 130, 1, 1)])
def test_apply_is_a_selection(shape, mode, layout, dtype):
    torch.manual_seed(1)
    kept = a_mask(shape)
    x = LAYOUTS[layout](torch.randn(shape, dtype=dtype))
    x[0, 0] = torch.nan
    x = x.requires_grad_()
    y = F.apply_mask(x, F.pack_mask(kept), mode=mode)
    expected = torch.where(kept, x.detach(), torch.zeros((), dtype=dtype))
    assert torch.equal(y.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))
    if layout in ("contiguous", "channels_last"):
        assert y.stride() == x.stride()
    assert not torch.signbit(y[~kept]).any()  # never -0
    dy = torch.randn_like(y)
    dy[-1, -1] = torch.nan
    (dx,) = torch.autograd.grad(y, x, dy)
    wanted = dy if mode == "ste" else torch.where(kept, dy, torch.zeros((), dtype=dtype))
    assert torch.equal(dx.nan_to_num(nan=7.0), wanted.nan_to_num(nan=7.0))


def test_masked_values_bring_no_nan_into_a_loss():
    x = torch.tensor([1.0, torch.nan, torch.inf, 2.0], requires_grad=True)
    mask = F.pack_mask(torch.tensor([True, False, False, True]))
    F.apply_mask(x, mask).square().sum().backward()
    assert x.grad.tolist() == [2.0, 0.0, 0.0, 4.0]


def test_second_derivatives_are_masked():
    x = torch.randn(9, dtype=torch.float32, requires_grad=True)
    kept = a_mask(9)
    y = F.apply_mask(x, F.pack_mask(kept))
    (dx,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.sum(), x)
    assert torch.allclose(ddx, torch.where(kept, 6 * x.detach(), torch.zeros(())))


def test_autocast_and_inference():
    x, kept = torch.randn(8, 8), a_mask((8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.apply_mask(x, F.pack_mask(kept)).dtype == torch.float32
    with torch.inference_mode():
        y = F.apply_mask(x, F.pack_mask(kept))
    assert torch.equal(y, x * kept)


@pytest.mark.cuda
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cuda_has_the_same_bits(layout):
    x, kept = LAYOUTS[layout](torch.randn(70, 33, 3, 3)), a_mask((70, 33, 3, 3))
    mask = F.pack_mask(kept.cuda())
    assert torch.equal(mask.cpu(), F.pack_mask(kept))
    assert torch.equal(F.unpack_mask(mask, kept.shape).cpu(), kept)
    y = F.apply_mask(x.cuda(), mask)
    assert torch.equal(y.cpu(), F.apply_mask(x, F.pack_mask(kept)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["hard", "ste"])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("zero_point", [False, True])
def test_masked_fake_quant(zero_point, axis, mode, layout, dtype):
    """Compare with fake quantization followed by a selection, and their gradient."""
    torch.manual_seed(1)
    shape = (7, 10, 3, 3)
    kept, x = a_mask(shape), LAYOUTS[layout](torch.randn(shape, dtype=dtype)).requires_grad_()
    scale = torch.tensor(0.1) if axis is None else torch.rand(shape[axis]) / 5 + 0.05
    zero = torch.full_like(scale, 3, dtype=torch.int32) if zero_point else None
    options = dict(quant_min=-8, quant_max=7, axis=axis)
    y = F.masked_fake_quant(x, F.pack_mask(kept), scale, zero, mode=mode, **options)
    plain = F.fake_quant(x, scale, zero, **options)
    expected = torch.where(kept, plain, torch.zeros((), dtype=dtype))
    assert torch.equal(y, expected) and y.stride() == plain.stride()
    assert not torch.signbit(y[~kept]).any()
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    (straight,) = torch.autograd.grad(plain, x, dy)
    wanted = straight if mode == "ste" else torch.where(kept, straight, 0.0)
    assert torch.equal(dx, wanted)


def test_masked_fake_quant_in_groups():
    x, kept = torch.randn(6, 32), a_mask((6, 32))
    scale = torch.rand(6, 4) / 5 + 0.05
    options = dict(quant_min=-8, quant_max=7, group=8)
    y = F.masked_fake_quant(x, F.pack_mask(kept), scale, **options)
    assert torch.equal(y, F.fake_quant(x, scale, **options) * kept)


STATE_TYPES = [*DTYPES, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", STATE_TYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_remask(layout, dtype):
    torch.manual_seed(1)
    shapes = [(7, 5, 3, 3), (64, 8, 1, 1), (130, 9, 2, 1)]
    kept = [a_mask(s, i) for i, s in enumerate(shapes)]
    tensors = [LAYOUTS[layout](torch.randn(s).mul(9).to(dtype)) for s in shapes]
    zero = torch.zeros((), dtype=dtype)
    expected = [torch.where(k, t, zero) for k, t in zip(kept, tensors, strict=True)]
    strides, versions = [t.stride() for t in tensors], [t._version for t in tensors]
    F.remask_(tensors, [F.pack_mask(k) for k in kept])
    for t, e, k, stride, version in zip(tensors, expected, kept, strides, versions, strict=True):
        assert torch.equal(t, e) and t.stride() == stride and t._version > version
        assert not dtype.is_floating_point or not torch.signbit(t[~k]).any()


def test_remask_clears_what_is_not_finite_and_negative_zeros():
    x = torch.tensor([torch.nan, torch.inf, -0.0, -0.0, torch.nan, 5.0])
    F.remask_([x], [F.pack_mask(torch.tensor([False, False, False, True, True, True]))])
    assert torch.signbit(x).tolist()[:4] == [False, False, False, True]
    assert x.nan_to_num(nan=7.0).tolist() == [0, 0, 0, 0, 7, 5]


def test_remask_in_other_cases():
    F.remask_([], [])
    F.remask_([torch.empty(0)], [torch.empty(0, dtype=torch.int64)])
    weight = torch.ones(3, requires_grad=True)
    loss = (weight**2).sum()
    with torch.no_grad():
        F.remask_([weight], [torch.tensor([5])])
    assert weight.tolist() == [1, 0, 1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with pytest.raises(RuntimeError, match="masks must be 1, one for each tensor, got 0"):
        F.remask_([weight], [])
    with pytest.raises(RuntimeError, match="mask must be an int64 tensor of 1 words"):
        F.remask_([weight], [torch.zeros(2, dtype=torch.int64)])
    with pytest.raises(RuntimeError, match="elements of 1, 2, 4 or 8 bytes"):
        F.remask_([torch.ones(3, dtype=torch.complex64)], [torch.tensor([5])])


def test_masked_ops_compile():
    x, mask = torch.randn(4, 6, requires_grad=True), F.pack_mask(a_mask((4, 6)))
    scale, grid = torch.tensor(0.1), {"quant_min": -8, "quant_max": 7}

    def run(x):
        y = F.masked_fake_quant(x, mask, scale, **grid)
        z = y.detach() * 1
        F.remask_([z], [mask])
        return y, z

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(x), run(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.cuda
@pytest.mark.parametrize("layout", LAYOUTS)
def test_masked_ops_on_cuda(layout):
    shape = (64, 32, 3, 3)
    x, mask = LAYOUTS[layout](torch.randn(shape)), F.pack_mask(a_mask(shape))
    options = dict(quant_min=-8, quant_max=7)
    y = F.masked_fake_quant(x.cuda(), mask.cuda(), torch.tensor(0.1).cuda(), **options)
    assert torch.equal(y.cpu(), F.masked_fake_quant(x, mask, torch.tensor(0.1), **options))
    z = x.cuda()
    F.remask_([z], [mask.cuda()])
    assert torch.equal(z.cpu(), F.apply_mask(x, mask))
