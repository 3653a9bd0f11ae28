"""Test every case of cases.py: against the reference, gradients, opcheck and compile, every dtype
and layout, and on a GPU if there is one."""

import math
from dataclasses import replace

import bitpare as bp
import pytest
import reference
import torch
import torch._dynamo.testing
from cases import (
    CASES,
    DTYPES,
    FLOAT_INPUT,
    MUTATING,
    TOLERANCE,
    WITH_GRADIENT,
    Case,
    differentiable_inputs,
    laid_out,
)
from cuda_graphs import captured

by_id = lambda case: case.id  # noqa: E731


def assert_close(got, expected, case, ignore=None, scale=None):
    """Compare within the dtype's tolerance of the largest expected magnitude, or of `scale`."""
    got, expected = got.detach().double(), expected.double()
    assert got.shape == expected.shape
    if got.numel() == 0:
        return
    if ignore is not None:
        assert ignore.double().mean() < 0.05, "too many elements are left out"
        got, expected = got[~ignore], expected[~ignore]
    largest = expected.abs().max().item() if scale is None else scale
    worst = (got - expected).abs().max().item()
    assert worst <= TOLERANCE[case.dtype] * max(largest, 1e-30), f"off by {worst} of {largest}"


def activated(case: Case):
    """Return the argument of act_fake_quant's activation in float64, and the activation's name."""
    (x, other, *_), kwargs = case.arguments()
    v = x.double() if other is None else x.double() + other.double()
    return v, kwargs["activation"]


def quantized(case: Case):
    args, kwargs = case.arguments()
    if case.op == "act_fake_quant":
        v, activation = activated(case)
        kwargs = case.attributes
        args = (reference.ACTIVATE[activation](v), *args[2:4])
    x, scale, zero_point = args
    return reference.Quantized(
        x, scale, zero_point, kwargs["quant_min"], kwargs["quant_max"], kwargs.get("axis"),
        kwargs.get("group"), kwargs.get("rounding", "nearest"),
    )  # fmt: skip


def expected_value(case: Case):
    """Return the reference's result, and where float32 rounding may differ from it."""
    args, kwargs = case.arguments()
    axis, group = kwargs.get("axis"), kwargs.get("group")
    x = args[0]
    if case.op in ("fake_quant", "fake_quant_lsq"):
        q = quantized(case)
        return q.value, q.near_tie(kwargs.get("rounding", "nearest"))
    if case.op == "act_fake_quant":
        q = quantized(case)
        v, activation = activated(case)
        off = case.attributes.get("quantize") == 0
        return (reference.ACTIVATE[activation](v), None) if off else (q.value, q.near_tie())
    if case.op == "bn_act_fake_quant":
        expected = reference.BnActFakeQuant(*args, **kwargs)
        return expected.value, expected.near_tie()
    if case.op == "quantize":
        q = quantized(case)
        return q.code, q.near_tie()
    if case.op == "dequantize":
        scale = reference.per_element(args[1], x, axis, group)
        z = args[2] if args[2] is None or not args[2].is_floating_point() else args[2].round()
        return (x.double() - reference.per_element(z, x, axis, group)) * scale, None
    if case.op in ("binarize", "ternarize"):
        scale, threshold = args[1], None
        if case.op == "ternarize":
            mean = None if scale is not None else reference.mean_magnitude(x, None, axis, group)
            threshold = scale * 0.5 if mean is None else mean * 0.7
        if scale is None:
            scale = reference.mean_magnitude(x, threshold, axis, group)
        kind = "ternary" if case.op == "ternarize" else kwargs.get("levels", "sign")
        t = reference.per_element(threshold, x, axis, group)
        near = (x.double().abs() - t).abs() < 1e-6 if case.op == "ternarize" else None
        return reference.levels(x, kind, t) * reference.per_element(scale, x, axis, group), near
    if case.op == "fake_float":
        one = torch.ones(())
        scale = reference.per_element(one if args[1] is None else args[1], x, axis, group)
        bits = kwargs["exponent_bits"], kwargs["mantissa_bits"]
        value = reference.fake_float(x.double() / scale, *bits)
        step = reference.fake_float(x.double() / scale * (1 + 1e-6), *bits)
        back = reference.fake_float(x.double() / scale * (1 - 1e-6), *bits)
        return value * scale, (step != value) | (back != value)
    if case.op == "mean_magnitude":
        return reference.mean_magnitude(x, None, axis, group), None
    if case.op == "pack_bits":
        return reference.pack_bits(x, kwargs["bits"]), None
    raise NotImplementedError(case.op)


CALIBRATION = ("observe_histogram_", "histogram_range", "mse_range")
WITH_REFERENCE = [
    c
    for c in CASES
    if c.op not in ("minmax", "minmax_histogram", "qparams", "unpack_bits", *CALIBRATION)
    and c.attributes.get("rounding") not in ("stochastic",)
    and not (c.op == "fake_float" and "rounding" in c.attributes)
]


@pytest.mark.parametrize("case", WITH_REFERENCE, ids=by_id)
def test_is_the_reference(case):
    expected, near_tie = expected_value(case)
    assert_close(case.run(), expected, case, near_tie)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", [c for c in FLOAT_INPUT if c.op != "dequantize"], ids=by_id)
def test_half_types_compute_in_float32(case, dtype):
    """Check that the result is the float32 result of the same values, rounded once, bit for bit."""
    low = replace(case, dtype=dtype)
    (x, *rest), kwargs = low.arguments()
    op = getattr(bp.functional, case.op)
    widened = [
        r.float() if isinstance(r, torch.Tensor) and r.dtype == dtype else r for r in (x, *rest)
    ]
    got, wide = op(x, *rest, **kwargs), op(*widened, **kwargs)
    for a, b in zip(as_tuple(got), as_tuple(wide), strict=True):
        assert torch.equal(a, b.to(a.dtype))


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("case", [c for c in FLOAT_INPUT if c.op == "minmax"], ids=by_id)
def test_minmax(case):
    (x,), kwargs = case.arguments()
    low, high = bp.functional.minmax(x, **kwargs)
    if x.numel() == 0:
        assert (low == math.inf).all() and (high == -math.inf).all()
    elif case.attributes:
        rows = x.transpose(0, case.attributes["axis"]).flatten(1)
        assert torch.equal(low, rows.amin(1)) and torch.equal(high, rows.amax(1))
    else:
        assert torch.equal(low, x.amin()) and torch.equal(high, x.amax())


@pytest.mark.parametrize("case", [c for c in CASES if c.op == "minmax_histogram"], ids=by_id)
def test_histogram(case):
    (x, low, high), kwargs = case.arguments()
    least, most, counts = bp.functional.minmax_histogram(x, low, high, **kwargs)
    axis = kwargs.get("axis")
    plain = bp.functional.minmax(x, axis=axis)
    assert torch.equal(least, plain[0]) and torch.equal(most, plain[1])
    rows = x.flatten()[None] if axis is None else x.transpose(0, axis).flatten(1)
    expected = torch.stack([reference.histogram(row, -2.0, 3.0, kwargs["bins"]) for row in rows])
    assert torch.equal(counts, expected if axis is not None else expected[0])


@pytest.mark.parametrize("case", [c for c in CASES if c.op == "qparams"], ids=by_id)
def test_qparams(case):
    (low, high), kwargs = case.arguments()
    scale, zero_point = bp.functional.qparams(low, high, **kwargs)
    power_of_two = kwargs.pop("power_of_two", False)
    grid = kwargs["quant_min"], kwargs["quant_max"], kwargs.get("symmetric", True)
    for low1, high1, s, z in zip(
        *(t.flatten().tolist() for t in (low, high, scale, zero_point)), strict=True
    ):
        expected, expected_zero = reference.qparams(low1, high1, *grid)
        if power_of_two:
            expected = 2.0 ** math.ceil(math.log2(expected))
        assert s == pytest.approx(expected, rel=1e-6)
        assert z == expected_zero


@pytest.mark.parametrize("case", [c for c in CASES if c.op == "unpack_bits"], ids=by_id)
def test_unpack(case):
    (packed, shape), kwargs = case.arguments()
    codes = bp.functional.unpack_bits(packed, shape, **kwargs)
    assert list(codes.shape) == shape
    used = bp.functional.pack_bits(codes, bits=kwargs["bits"])
    spare = -shape[-1] * kwargs["bits"] % 8
    packed = packed.clone()
    packed[..., -1] &= (1 << (8 - spare)) - 1
    assert torch.equal(used, packed)


def channel_rows(x, axis):
    return x.flatten()[None] if axis is None else x.movedim(axis, 0).reshape(x.shape[axis], -1)


@pytest.mark.parametrize("case", [c for c in CASES if c.op == "observe_histogram_"], ids=by_id)
def test_observe_histogram(case):
    (counts, limit, skipped, x), kwargs = case.arguments()
    state = counts, limit, skipped
    versions = [t._version for t in state]
    bp.functional.observe_histogram_(*state, x, **kwargs)
    assert [t._version for t in state] == [v + 1 for v in versions]
    small = channel_rows(case.x() * 0.1, kwargs.get("axis"))
    for row, batches in enumerate(zip(small, channel_rows(x, kwargs.get("axis")), strict=True)):
        both = torch.cat(batches).double()
        finite = both[both.isfinite()].abs()
        if len(finite) == 0:
            assert limit[row] == 0 and counts[row].sum() == 0
            continue
        assert limit[row] == 2.0 ** math.ceil(math.log2(finite.max().item()))
        expected = reference.symmetric_histogram(both, limit[row].item(), counts.shape[1])
        assert torch.equal(counts[row], expected)
        assert skipped[row] == int(not both.isfinite().all())


def test_observe_histogram_in_inference_mode_and_with_a_gradient():
    """Check that the op bypasses autograd: inference tensors have no version, and x may need a
    gradient."""
    x = torch.randn(50)
    new = lambda: (  # noqa: E731
        torch.zeros(1, 64, dtype=torch.int64), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    )  # fmt: skip
    expected = bp.functional.observe_histogram_(*new(), x)
    with torch.inference_mode():
        inference = new()
        got = bp.functional.observe_histogram_(*inference, x.clone())
    assert all(map(torch.equal, got, expected))
    bp.functional.observe_histogram_(*inference, x)
    assert torch.equal(inference[0], 2 * expected[0])
    assert all(
        map(torch.equal, bp.functional.observe_histogram_(*new(), x.requires_grad_()), expected)
    )


@pytest.mark.parametrize("case", [c for c in CASES if c.op == "histogram_range"], ids=by_id)
def test_histogram_range(case):
    (counts, limit), kwargs = case.arguments()
    low, high = bp.functional.histogram_range(counts, limit, **kwargs)
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


@pytest.mark.parametrize("case", [c for c in CASES if c.op == "mse_range"], ids=by_id)
def test_mse_range(case):
    (x,), kwargs = case.arguments()
    low, high = bp.functional.mse_range(x, **kwargs)
    axis, steps = kwargs.get("axis"), kwargs.get("steps", 100)
    grid = kwargs["quant_min"], kwargs["quant_max"], kwargs.get("symmetric", True)
    for row, a, b in zip(
        channel_rows(x, axis), low.reshape(-1).tolist(), high.reshape(-1).tolist(), strict=True
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


# Gradients ------------------------------------------------------------------------------------


def gradients(case: Case, device="cpu", dy_layout="same"):
    args, kwargs, learned = differentiable_inputs(case, device)
    y = getattr(bp.functional, case.op)(*args, **kwargs)
    dy = torch.randn(y.shape, generator=case.generator()).to(device=device, dtype=y.dtype)
    dy = dy.expand(y.shape) if dy_layout == "same" else laid_out(dy.cpu(), dy_layout).to(device)
    return y, dy, torch.autograd.grad(y, learned, dy)


@pytest.mark.parametrize("case", WITH_GRADIENT, ids=by_id)
def test_gradient_is_the_reference(case):
    _, dy, got = gradients(case)
    args, kwargs = case.arguments()
    axis, group = kwargs.get("axis"), kwargs.get("group")
    x = args[0]
    if case.op == "fake_quant":
        if case.stochastic:
            pytest.skip("which way each element was rounded is not the reference's to know")
        q = quantized(case)
        estimator = kwargs.get("estimator", "ste")
        expected = reference.fake_quant_gradient(q, dy, estimator, kwargs.get("delta", 0.0))
        assert_close(got[0], expected, case, q.near_tie(kwargs.get("rounding", "nearest")))
    elif case.op == "act_fake_quant":
        q = quantized(case)
        v, activation = activated(case)
        slope = reference.ACTIVATION_SLOPE[activation](v)
        passes = q.inside | (case.attributes.get("quantize") == 0)
        for dx in got:
            assert_close(dx, torch.where(passes, dy.double() * slope, 0.0), case, q.near_tie())
    elif case.op == "fake_quant_lsq":
        q = quantized(case)
        elements = x.numel() // max(args[1].numel(), 1)
        if group is None and axis != 0 and x.dim() > 1:
            elements //= max(x.shape[0], 1)
        default = 1 / math.sqrt(max(elements, 1) * kwargs["quant_max"])
        g = kwargs.get("grad_scale", default)
        dx, ds, dz = reference.lsq_gradients(q, dy, args[1], args[2], axis, group, g)
        assert_close(got[0], dx, case, q.near_tie())
        # A tie that float32 rounds the other way moves one term by at most |dy|.
        slack = (dy.double().abs() * q.near_tie()).sum().item() * g
        bound = g * (dy.double().abs() * q.level.abs().clamp(min=1)).sum().item() * 1e-5 + slack
        assert got[1].shape == args[1].shape
        assert ((got[1].double() - ds).abs() <= bound).all()
        if case.zero_point == "learned":
            assert ((got[2].double() - dz).abs() <= bound * args[1].max().item()).all()
    elif case.op == "bn_act_fake_quant":
        expected = reference.BnActFakeQuant(*args, **kwargs)
        # Results are differences or sums of such terms, so they round like them.
        terms = torch.where(expected.inside, dy.double(), 0.0).abs()
        sums = (terms * expected.normal.abs()).sum(expected.axes), terms.sum(expected.axes)
        slope = (expected.weight / expected.std).abs() * max(dy.abs().flatten().tolist(), default=0)
        for a, b, of in zip(got, expected.gradients(dy), (slope, *sums), strict=len(got) == 3):
            assert_close(a, b, case, scale=2 * of.max().item())
    elif case.op == "fake_float":
        *_, below, top = reference.float_values(kwargs["exponent_bits"], kwargs["mantissa_bits"])
        scale = torch.ones(()) if args[1] is None else args[1]
        magnitude = (x.double() / reference.per_element(scale, x, axis, group)).abs()
        inside = magnitude < top + (top - below) / 2  # up to this, values round to the largest one
        assert_close(got[0], torch.where(inside, dy.double(), 0.0), case)
    else:
        kind = "ternary" if case.op == "ternarize" else kwargs.get("levels", "sign")
        scale = args[1]
        threshold = None if scale is None else scale * 0.5
        if scale is None:
            if kind == "ternary":
                threshold = reference.mean_magnitude(x, None, axis, group) * 0.7
            scale = reference.mean_magnitude(x, threshold, axis, group)
        limit = reference.per_element(scale, x, axis, group) * (1.5 if kind == "ternary" else 1.0)
        near = (x.double().abs() - limit).abs() < 1e-5
        passes = (x.double().abs() <= limit) | (kwargs.get("estimator") == "identity")
        assert_close(got[0], torch.where(passes, dy.double(), 0.0), case, near)
        if args[1] is not None:
            level = reference.levels(x, kind, reference.per_element(threshold, x, axis, group))
            ds = reference.reduce_like(dy.double() * level, args[1], axis, group)
            assert_close(got[1], ds, case, scale=dy.double().abs().sum().item())


@pytest.mark.parametrize("case", [c for c in WITH_GRADIENT if len(c.shape) == 4], ids=by_id)
@pytest.mark.parametrize("dy_layout", ["channels_last", "transposed", "sliced"])
def test_gradient_layout_changes_nothing(case, dy_layout):
    if 0 in case.shape:
        pytest.skip("an empty tensor has one layout")
    expected = gradients(case)[2]
    got = gradients(case, dy_layout=dy_layout)[2]
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", WITH_GRADIENT, ids=by_id)
def test_expanded_gradient(case):
    args, kwargs, learned = differentiable_inputs(case)
    y = getattr(bp.functional, case.op)(*args, **kwargs)
    by_sum = torch.autograd.grad(y.sum(), learned, retain_graph=True)
    by_ones = torch.autograd.grad(y, learned, torch.ones_like(y))
    for a, b in zip(by_sum, by_ones, strict=True):
        assert torch.equal(a, b)


def test_straight_through_is_its_own_second_derivative():
    x = torch.randn(3, 70, requires_grad=True)
    y = bp.functional.fake_quant(x, torch.tensor(0.1), quant_min=-8, quant_max=7)
    dy = torch.randn(3, 70, requires_grad=True)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    v = torch.randn(3, 70)
    (ddy,) = torch.autograd.grad(dx, dy, v)
    inside = ((x / 0.1).round() >= -8) & ((x / 0.1).round() <= 7)
    assert torch.equal(ddy, torch.where(inside, v, 0.0))


def test_second_derivative_of_the_others_raises():
    x = torch.randn(70, requires_grad=True)
    scale = torch.tensor(0.1, requires_grad=True)
    y = bp.functional.fake_quant_lsq(x, scale, quant_min=-8, quant_max=7)
    dy = torch.randn(70, requires_grad=True)
    (ds,) = torch.autograd.grad(y, scale, dy, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        ds.backward()


def test_scale_of_fake_quant_gets_no_gradient():
    x, scale = torch.randn(9, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    bp.functional.fake_quant(x, scale, quant_min=-8, quant_max=7).sum().backward()
    assert scale.grad is None and x.grad is not None


def test_learned_scale_at_the_floor_only_grows():
    x = torch.tensor([1.0, -1.0])
    for dy, grows in ((torch.tensor([1.0, -1.0]), False), (torch.tensor([-1.0, 1.0]), True)):
        scale = torch.tensor(0.0, requires_grad=True)
        y = bp.functional.fake_quant_lsq(x, scale, quant_min=-8, quant_max=7, grad_scale=1.0)
        (ds,) = torch.autograd.grad(y, scale, dy)
        assert (ds < 0) == grows and torch.isfinite(y).all()


# torch's machinery ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_opcheck(case):
    args, kwargs = case.arguments()
    if case.op in DIFFERENTIABLE_OPS:
        args, kwargs, _ = differentiable_inputs(case)
    op = getattr(torch.ops.bitpare, case.op).default
    kwargs = {k: v for k, v in kwargs.items() if v is not None}
    torch.library.opcheck(op, args, kwargs)


DIFFERENTIABLE_OPS = {c.op for c in WITH_GRADIENT}

_X, _DY = torch.linspace(-3, 3, 96).view(2, 3, 4, 4), torch.linspace(-1, 1, 96).view(2, 3, 4, 4)
_SCALE, _ZERO = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 0.0, -2.0])
_BITS = torch.tensor([-7, 12345])
_CONTROL = torch.tensor([-8, 7, 1, 1, 0], dtype=torch.int32)
_PENDING = torch.tensor([[torch.inf], [-torch.inf]])
_LAST = torch.channels_last
PRIVATE = [
    ("_fake_quant", (_X, _SCALE, _ZERO, -8, 7, 1, None, 0, None, True, True, _LAST)),
    ("_fake_quant", (_X, _SCALE, None, -8, 7, 1, None, 0, None, False, False, _LAST)),
    ("_act_fake_quant", (_X, _DY, _SCALE[:1], None, _CONTROL, _PENDING, 2, True, _LAST)),
    ("_act_fake_quant_gradient", (_DY, _X, _BITS, 3, _LAST)),
    ("_weight_scales_", ([_X, _DY], [_SCALE[:1], _SCALE[:2]], [_CONTROL, _CONTROL], False)),
    ("_fake_quant_weights", ([_X, _DY], [_SCALE[:1], _SCALE[:2]], [_CONTROL, _CONTROL])),
    ("_straight_through", (_DY, _BITS, _LAST)),
    ("_straight_through", (_DY.clone().requires_grad_(), _BITS, torch.contiguous_format)),
    ("_fake_quant_gradient", (_DY, _X, _SCALE, None, -8, 7, 1, None, 0, None, 2, 0.5, _LAST)),
    ("_fake_quant_lsq_gradient", (_DY, _X, _SCALE, _ZERO, -8, 7, 1, None, None, _LAST)),
    ("_binarize", (_X, _SCALE, _SCALE * 0.5, 3, 1, None, _LAST)),
    ("_binarize_gradient", (_DY, _X, _SCALE, None, 0, True, 1, None, _LAST)),
    ("_mean_magnitude", (_X, _SCALE, 1, None)),
    ("_fake_float", (_X, _SCALE, 4, 3, 1, None, 0, None, True, _LAST)),
    ("_bn_act_fake_quant", (_X, _SCALE, _ZERO, _ZERO.clone(), _SCALE.clone(), torch.tensor(0),
                            torch.tensor(0.1), None, _CONTROL, torch.zeros(2, 1), 2, True, 0.1,
                            1e-5, True, _LAST)),
    ("_bn_act_fake_quant", (_X, None, None, _ZERO.clone(), _SCALE.clone(), None,
                            torch.tensor(0.1), torch.tensor(3, dtype=torch.int32), _CONTROL,
                            torch.zeros(2, 1), 0, False, 0.1, 1e-5, False, _LAST)),
    ("_bn_act_fake_quant_gradient", (_DY, _X, _SCALE, _BITS, torch.ones(13), 1, _LAST)),
    ("_bn_act_fake_quant_gradient", (_DY, _X, _SCALE, _BITS, torch.ones(13), 3, _LAST)),
]  # fmt: skip


@pytest.mark.parametrize("name, args", PRIVATE, ids=[name for name, _ in PRIVATE])
def test_opcheck_of_what_lies_below_autograd(name, args):
    torch.library.opcheck(getattr(torch.ops.bitpare, name).default, args)

    def to_meta(a):
        if isinstance(a, list):
            return [to_meta(b) for b in a]
        return a.to("meta") if isinstance(a, torch.Tensor) else a

    op = getattr(torch.ops.bitpare, name)
    meta, real = flat(op(*map(to_meta, args))), flat(op(*args))
    for a, b in zip(meta, real, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def flat(results):
    """Return the tensors of a result: one, several, lists of them, or none."""
    if results is None:
        return []
    return [t for r in as_tuple(results) for t in (r if isinstance(r, list) else [r])]


def compiled(case: Case, backend: str, dynamic: bool | None = None):
    op = getattr(bp.functional, case.op)
    torch._dynamo.reset()
    return torch.compile(op, fullgraph=True, backend=backend, dynamic=dynamic)


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_compiles_whole(case):
    args, kwargs, learned = (
        differentiable_inputs(case) if case.op in DIFFERENTIABLE_OPS else (*case.arguments(), [])
    )
    expected = as_tuple(getattr(bp.functional, case.op)(*args, **kwargs))
    if case.op in MUTATING:
        args, kwargs = case.arguments()
    got = as_tuple(compiled(case, "aot_eager")(*args, **kwargs))
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()
    if learned:
        dy = torch.randn_like(expected[0])
        for a, b in zip(
            torch.autograd.grad(got[0], learned, dy),
            torch.autograd.grad(expected[0], learned, dy),
            strict=True,
        ):
            assert torch.equal(a, b)


ONCE_PER_OP_AND_LAYOUT = list(
    {(c.op, c.layout): c for c in CASES if 0 not in c.shape and c.shape}.values()
)


@pytest.mark.parametrize("case", ONCE_PER_OP_AND_LAYOUT, ids=by_id)
def test_inductor(case):
    args, kwargs, learned = (
        differentiable_inputs(case) if case.op in DIFFERENTIABLE_OPS else (*case.arguments(), [])
    )
    expected = as_tuple(getattr(bp.functional, case.op)(*args, **kwargs))
    if case.op in MUTATING:
        args, kwargs = case.arguments()
    got = as_tuple(compiled(case, "inductor")(*args, **kwargs))
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    if learned:
        dy = torch.randn_like(expected[0])
        for a, b in zip(
            torch.autograd.grad(got[0], learned, dy),
            torch.autograd.grad(expected[0], learned, dy),
            strict=True,
        ):
            assert torch.equal(a, b)


def test_dynamic_shapes_do_not_recompile():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    f = torch.compile(bp.functional.fake_quant, fullgraph=True, backend=counter, dynamic=True)
    for n in (40, 70, 131):  # up to 64 elements fit in one word of bits, which is a special case
        x, scale = torch.randn(n, 4, requires_grad=True), torch.rand(4) + 0.1
        y = f(x, scale, quant_min=-8, quant_max=7, axis=1)
        y.sum().backward()
        assert torch.equal(y, bp.functional.fake_quant(x, scale, quant_min=-8, quant_max=7, axis=1))
    assert counter.frame_count == 1


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_meta_has_the_same_strides(case):
    args, kwargs = case.arguments()
    to_meta = lambda v: v.to("meta") if isinstance(v, torch.Tensor) else v  # noqa: E731
    op = getattr(bp.functional, case.op)
    meta = as_tuple(op(*map(to_meta, args), **{k: to_meta(v) for k, v in kwargs.items()}))
    for a, b in zip(meta, as_tuple(op(*args, **kwargs)), strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


@pytest.mark.parametrize("case", FLOAT_INPUT, ids=by_id)
def test_modes_and_threads_change_nothing(case):
    """Test autocast, inference mode, no_grad, and different numbers of threads."""
    expected = as_tuple(case.run())
    with torch.autocast("cpu", torch.bfloat16):
        got = [as_tuple(case.run())]
    with torch.inference_mode():
        got.append(as_tuple(case.run()))
    with torch.no_grad():
        got.append(as_tuple(case.run()))
    torch.set_num_threads(1)
    got.append(as_tuple(case.run()))
    for values in got:
        for a, b in zip(values, expected, strict=True):
            assert torch.equal(a.nan_to_num(9e9), b.nan_to_num(9e9)) and a.dtype == b.dtype


@pytest.mark.parametrize("axis", [0, 1])
def test_large_sums_do_not_depend_on_threads(axis):
    x, scale = torch.randn(700, 300), torch.full((700 if axis == 0 else 300,), 0.3)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        s = scale.clone().requires_grad_()
        y = bp.functional.fake_quant_lsq(x, s, quant_min=-4, quant_max=3, axis=axis)
        results.append(torch.autograd.grad(y, s, x.cos())[0])
    assert torch.equal(*results)


@pytest.mark.parametrize("case", WITH_GRADIENT, ids=by_id)
def test_input_is_not_changed_or_returned(case):
    args, kwargs = case.arguments()
    before, version = args[0].clone(), args[0]._version
    y = getattr(bp.functional, case.op)(*args, **kwargs)
    assert torch.equal(args[0], before) and args[0]._version == version
    assert y.numel() == 0 or y.data_ptr() != args[0].data_ptr()


# A GPU, where there is one --------------------------------------------------------------------


def on_both(case: Case):
    cpu, gpu = (as_tuple(case.run(device=device)) for device in ("cpu", "cuda"))
    return zip(cpu, gpu, strict=True)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_cuda_has_the_same_bits(case, dtype):
    for cpu, gpu in on_both(replace(case, dtype=dtype)):
        assert torch.equal(cpu.nan_to_num(9e9), gpu.cpu().nan_to_num(9e9))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", WITH_GRADIENT, ids=by_id)
def test_cuda_gradients_have_the_same_bits(case, dtype):
    low = replace(case, dtype=dtype)
    for cpu, gpu in zip(gradients(low)[2], gradients(low, "cuda")[2], strict=True):
        assert torch.equal(cpu, gpu.cpu())


@pytest.mark.cuda
@pytest.mark.parametrize("op", [bp.functional.fake_quant, bp.functional.fake_quant_lsq])
def test_cuda_graph(op):
    """Capture forward and backward in one graph: no synchronisation, on the capturing stream."""
    x = torch.randn(64, 3, 9, 9, device="cuda", requires_grad=True)
    scale = (torch.rand(3, device="cuda") + 0.1).requires_grad_()

    def step():
        y = op(x, scale, quant_min=-8, quant_max=7, axis=1)
        wanted = [x, scale] if op is bp.functional.fake_quant_lsq else [x]
        return y, torch.autograd.grad(y, wanted, torch.ones_like(y))

    graph, (y, grads) = captured(step)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    expected_y, expected = step()
    assert torch.equal(y, expected_y)
    assert all(map(torch.equal, grads, expected))


@pytest.mark.cuda
@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_cuda_graph_of_calibration(method):
    """Capture observing and choosing a range in one graph. Neither reads anything on the host."""
    x = torch.randn(64, 3, 9, 9, device="cuda")
    grid = {"quant_min": -8, "quant_max": 7, "symmetric": True}

    def new_state():
        counts = torch.zeros(3, 256, dtype=torch.int64, device="cuda")
        return counts, torch.zeros(3, device="cuda"), torch.zeros_like(counts[:, 0].contiguous())

    def step(state):
        bp.functional.observe_histogram_(*state, x, axis=1)
        mse = bp.functional.mse_range(x, quant_min=-8, quant_max=7, axis=1)
        return *bp.functional.histogram_range(*state[:2], method=method, **grid), *mse

    state, expected_state = new_state(), new_state()
    graph, got = captured(lambda: step(state), lambda: step(new_state()))
    for spread in (1.0, 30.0):  # the second replay widens the histograms
        x.copy_(torch.randn_like(x) * spread)
        graph.replay()
        expected = step(expected_state)
        assert all(map(torch.equal, state, expected_state))
        assert all(map(torch.equal, got, expected))


@pytest.mark.cuda
def test_cuda_bad_scale_is_nan():
    for bad in (0.0, -1.0, math.nan, math.inf):
        scale = torch.tensor(bad, device="cuda")
        y = bp.functional.fake_quant(
            torch.randn(9, device="cuda"), scale, quant_min=-8, quant_max=7
        )
        assert y.isnan().all()
