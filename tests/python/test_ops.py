"""Every case of the table of ops: against the reference, in its gradients, under opcheck and
compile, in every dtype and layout, and on a GPU where there is one."""

import math
from dataclasses import replace

import bitpare as bp
import pytest
import torch
import torch._dynamo.testing
from cuda_graphs import captured
from ops import CASES, DTYPES, TABLE, WITH_GRADIENT, Case, call, sample, tensors_in
from ops.entry import TOLERANCE, Expected, laid_out
from torch.utils import _pytree

by_id = lambda case: case.id  # noqa: E731


def assert_close(got, expected: Expected, case: Case):
    """Within the dtype's tolerance of the magnitude that the result is rounded from."""
    got, value = got.detach().double(), expected.value.double()
    assert got.shape == value.shape
    if got.numel() == 0:
        return
    if expected.ignore is not None:
        assert expected.ignore.double().mean() < 0.05, "too many elements are left out"
        got, value = got[~expected.ignore], value[~expected.ignore]
    largest = value.abs().max().item() if expected.scale is None else expected.scale
    worst = (got - value).abs().max().item()
    assert worst <= TOLERANCE[case.dtype] * max(largest, 1e-30), f"off by {worst} of {largest}"


# The reference does not know which way stochastic rounding goes.
@pytest.mark.parametrize("case", [c for c in CASES if not c.stochastic], ids=by_id)
def test_is_the_reference(case):
    if case.entry.check:
        case.entry.check(case)
        return
    args, kwargs = case.arguments()
    got = getattr(bp.functional, case.op)(*args, **kwargs)
    assert_close(got, case.entry.reference(case), case)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.entry.halves], ids=by_id)
def test_half_types_compute_in_float32(case, dtype):
    """Check that the result is the float32 result of the same values, rounded once, bit for bit."""
    low = replace(case, dtype=dtype)
    wide = _pytree.tree_map_only(
        torch.Tensor, lambda t: t.float() if t.dtype == dtype else t, low.arguments()
    )
    for a, b in zip(low.run(), low.results(wide), strict=True):
        assert torch.equal(a, b.to(a.dtype))


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


# Gradients ------------------------------------------------------------------------------------


def gradients(case: Case, device="cpu", dy_layout="same"):
    args, kwargs, learned = case.learning(device)
    y = getattr(bp.functional, case.op)(*args, **kwargs)
    dy = torch.randn(y.shape, generator=case.generator()).to(device=device, dtype=y.dtype)
    dy = dy.expand(y.shape) if dy_layout == "same" else laid_out(dy.cpu(), dy_layout).to(device)
    return y, dy, torch.autograd.grad(y, learned, dy)


@pytest.mark.parametrize("case", WITH_GRADIENT, ids=by_id)
def test_gradient_is_the_reference(case):
    _, dy, got = gradients(case)
    expected = case.entry.gradient(case, dy)
    if expected is None:
        pytest.skip("which way each element was rounded is not the reference's to know")
    for gradient, right in zip(got, expected, strict=True):
        assert_close(gradient, right, case)


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
    args, kwargs, learned = case.learning()
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
    args, kwargs, _ = case.learning()
    kwargs = {k: v for k, v in kwargs.items() if v is not None}
    torch.library.opcheck(getattr(torch.ops.bitpare, case.op).default, args, kwargs)


SAMPLES = [
    pytest.param(op, changes, id="-".join((op, *changes)))
    for op, entry in TABLE.items()
    if not entry.host
    for changes in ({}, *entry.variants)
]


@pytest.mark.parametrize("op, changes", SAMPLES)
def test_opcheck_of_every_op(op, changes):
    """Private ops too, which lie below autograd."""
    given = {**sample(op), **changes}
    torch.library.opcheck(getattr(torch.ops.bitpare, op).default, (), given)


@pytest.mark.parametrize("op, changes", SAMPLES)
def test_meta_of_every_op_has_the_same_strides(op, changes):
    given = {**sample(op), **changes}
    same_layouts(tensors_in(call(op, to_meta(given))), tensors_in(call(op, given)))


def to_meta(values):
    return _pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), values)


def same_layouts(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def compiled(case: Case, backend: str, dynamic: bool | None = None):
    op = getattr(bp.functional, case.op)
    torch._dynamo.reset()
    return torch.compile(op, fullgraph=True, backend=backend, dynamic=dynamic)


def compare_compiled(case: Case, backend: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Compare results, and gradients where the op has them, with those of the compiled op; return
    the results."""
    both = []
    for function in (compiled(case, backend), getattr(bp.functional, case.op)):
        args, kwargs, learned = case.learning()
        both.append((case.results((args, kwargs), function), learned))
    (got, got_learned), (expected, expected_learned) = both
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    if got_learned:
        dy = torch.randn_like(expected[0])
        slopes = torch.autograd.grad(got[0], got_learned, dy)
        for a, b in zip(
            slopes, torch.autograd.grad(expected[0], expected_learned, dy), strict=True
        ):
            assert torch.equal(a, b)
    return list(zip(got, expected, strict=True))


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_compiles_whole(case):
    for a, b in compare_compiled(case, "aot_eager"):
        assert a.stride() == b.stride()


ONCE_PER_OP_AND_LAYOUT = list(
    {(c.op, c.layout): c for c in CASES if 0 not in c.shape and c.shape}.values()
)


@pytest.mark.parametrize("case", ONCE_PER_OP_AND_LAYOUT, ids=by_id)
def test_inductor(case):
    compare_compiled(case, "inductor")


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
    same_layouts(case.results(to_meta(case.arguments())), case.run())


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_modes_and_threads_change_nothing(case):
    """Autocast, inference mode, no_grad, and the number of threads."""
    expected, got = case.run(), []
    for mode in (
        torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.no_grad()
    ):  # fmt: skip
        with mode:
            got.append(case.run())
    torch.set_num_threads(1)
    got.append(case.run())
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


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_cuda_has_the_same_bits(case, dtype):
    low = replace(case, dtype=dtype)
    for cpu, gpu in zip(low.run(), low.run("cuda"), strict=True):
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
