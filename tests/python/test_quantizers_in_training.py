"""Test the side effects of the fused training ops: observing and mutation."""

import math

import bitpare as bp
import pytest
import reference
import torch
from cuda_graphs import captured

F = bp.functional
NN = torch.nn.functional
INF = math.inf


def new_pending(n: int = 1) -> torch.Tensor:
    return torch.tensor([[INF] * n, [-INF] * n])


def control(low=-8, high=7, observe=1, quantize=1) -> torch.Tensor:
    return torch.tensor([low, high, observe, quantize, 0], dtype=torch.int32)


TORCHS_OWN = {
    "none": lambda v: v,
    "relu": torch.relu,
    "relu6": NN.relu6,
    "hardswish": NN.hardswish,
    "hardsigmoid": NN.hardsigmoid,
}


@pytest.mark.parametrize("n", [1, 70, 200_000])
@pytest.mark.parametrize("activation", TORCHS_OWN)
def test_act_fake_quant_is_torchs_ops_one_by_one(activation, n):
    """Compare values, both gradients and the range, bit for bit."""
    x, other = (torch.randn(n) * 3).requires_grad_(), torch.randn(n).requires_grad_()
    inputs = [x, other] if activation in ("none", "relu", "relu6") else [x]
    pending, scale = new_pending(), torch.tensor(0.03)
    zero_point = torch.tensor(5, dtype=torch.int32)
    y = F.act_fake_quant(
        x, other if len(inputs) == 2 else None, scale, zero_point, control(0, 100), pending,
        activation=activation,
    )  # fmt: skip
    w = TORCHS_OWN[activation](sum(inputs))
    expected = torch.fake_quantize_per_tensor_affine(w, scale, zero_point, 0, 100)
    assert torch.equal(y, expected)
    assert pending.flatten().tolist() == [w.min().item(), w.max().item()]
    dy = torch.randn(n)
    for a, b in zip(
        torch.autograd.grad(y, inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True
    ):
        assert torch.equal(a, b)


def test_act_fake_quant_folds_into_what_is_pending():
    pending = torch.tensor([[-1.0], [4.0]])

    def call(x, c):
        F.act_fake_quant(x, None, torch.tensor(1.0), None, c, pending)

    call(torch.tensor([2.0, 9.0]), control())
    assert pending.flatten().tolist() == [-1, 9]
    call(torch.tensor([-50.0, 50.0]), control(observe=0))
    call(torch.empty(0), control())
    assert pending.flatten().tolist() == [-1, 9]
    call(torch.tensor([1.0, math.nan]), control())
    assert pending.isnan().all()
    call(torch.tensor([1.0]), control())
    assert pending.isnan().all()


def test_act_fake_quant_passes_values_while_quantize_is_off():
    x = torch.tensor([-100.0, 0.3, 100.0], requires_grad=True)
    off = control(quantize=0)
    bad_scale = torch.tensor(0.0)  # the scale is not read, because nothing was observed yet
    y = F.act_fake_quant(x, None, bad_scale, None, off, new_pending(), activation="relu")
    assert torch.equal(y, torch.tensor([0, 0.3, 100.0]))
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0, 1, 1]


def test_act_fake_quant_saves_bits_alone():
    def saved(**kwargs) -> int:
        x = torch.randn(64 * 100, requires_grad=True)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes), id):
            F.act_fake_quant(x, None, torch.tensor(0.1), None, control(), new_pending(), **kwargs)
        return sum(sizes)

    assert saved(activation="relu6") == 800
    assert saved(activation="hardswish") == 800 + 25600


def test_act_fake_quant_gradient_to_one_of_two():
    for needed in (0, 1):
        inputs = [torch.randn(9), torch.randn(9)]
        inputs[needed].requires_grad_()
        y = F.act_fake_quant(*inputs, torch.tensor(9.0), None, control(), new_pending())
        y.sum().backward()
        assert torch.equal(inputs[needed].grad, torch.ones(9))
        assert inputs[1 - needed].grad is None


def version_after(mutated: list[torch.Tensor], call) -> None:
    """Check that each call increases the version of each mutated tensor, with gradients, without
    them, and in inference mode."""
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        before = [t._version for t in mutated]
        with mode():
            call()
        assert [t._version for t in mutated] == [v + 1 for v in before], mode


@pytest.mark.parametrize("grad", [False, True])
def test_act_fake_quant_bumps_the_version(grad):
    x, pending = torch.randn(9, requires_grad=grad), new_pending()
    version_after(
        [pending],
        lambda: F.act_fake_quant(x, None, torch.tensor(1.0), None, control(), pending),
    )


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("activation", ["relu6", "hardswish"])
def test_act_fake_quant_mutates_when_compiled(activation, backend):
    torch._dynamo.reset()
    x = torch.randn(3, 70, requires_grad=True)
    seen = []
    for f in (F.act_fake_quant, torch.compile(F.act_fake_quant, fullgraph=True, backend=backend)):
        pending = new_pending()
        y = f(x, None, torch.tensor(0.1), None, control(), pending, activation=activation)
        seen.append((y, pending, torch.autograd.grad(y, x, x.detach())[0]))
    for a, b in zip(*seen, strict=True):
        assert torch.equal(a, b)


# Ranges ---------------------------------------------------------------------------------------


def states(pending, symmetric=False, low=0, high=255):
    """Return the arguments of update_ranges_ for quantizers with these pending lists of (low,
    high)."""
    pending = [torch.tensor(p, dtype=torch.float32).T.contiguous() for p in pending]
    n = [p.shape[1] for p in pending]
    return (
        pending,
        [torch.zeros(2, k) for k in n],
        [torch.full((k,), 123.0) for k in n],
        [] if symmetric else [torch.full((k,), 99, dtype=torch.int32) for k in n],
        [torch.zeros(2, dtype=torch.int64) for _ in n],
        [control(low, high) for _ in n],
    )


def step(all_states, seen, **kwargs):
    for pending, values in zip(all_states[0], seen, strict=True):
        pending.copy_(torch.tensor(values).T)
    F.update_ranges_(*all_states, **kwargs)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rule", ["minmax", "ema", "last"])
def test_update_ranges_over_steps(rule, symmetric):
    steps = [
        [[(-1.0, 2.0)], [(0.0, 3.0), (-4.0, -2.0)]],
        [[(-0.5, 4.0)], [(1.0, 2.0), (-9.0, 5.0)]],
        [[(-2.0, 1.0)], [(0.5, 9.0), (-1.0, 0.0)]],
    ]
    low, high = (-127, 127) if symmetric else (0, 255)
    s = states(steps[0], symmetric, low, high)
    expected = [[(0, 0)], [(0, 0)] * 2]
    for merges, seen in enumerate(steps):
        step(s, seen, rule=rule, momentum=0.1, symmetric=symmetric)
        for i, quantizer in enumerate(seen):
            for j, limits in enumerate(quantizer):
                e = reference.merged_range(rule, 0.1, merges, expected[i][j], limits)
                expected[i][j] = e
                assert s[1][i][:, j].tolist() == pytest.approx(e, rel=1e-6)
                scale, zero = reference.qparams(*e, low, high, symmetric)
                assert s[2][i][j].item() == pytest.approx(scale, rel=1e-6)
                assert symmetric or s[3][i][j].item() == zero
            assert s[4][i].tolist() == [merges + 1, 0]
            assert torch.equal(s[0][i], new_pending(len(quantizer)))


def test_update_ranges_without_anything_pending():
    s = states([[(-1.0, 3.0)]], symmetric=True, low=-127, high=127)
    nothing = [[(INF, -INF)]]
    step(s, nothing, rule="ema", symmetric=True)
    assert s[2][0].item() == 123 and s[4][0].tolist() == [0, 0]  # without a range nothing is set
    step(s, [[(-1.0, 3.0)]], rule="ema", symmetric=True)
    s[5][0][:2] = torch.tensor([-7, 7])  # the number of bits changes while nothing is observed
    step(s, nothing, rule="ema", symmetric=True)
    assert s[2][0].item() == pytest.approx(3 / 7) and s[4][0].tolist() == [1, 0]


@pytest.mark.parametrize("bad", [(math.nan, math.nan), (-INF, 1.0), (0.0, INF)])
def test_update_ranges_skips_what_is_not_finite(bad):
    s = states([[(-1.0, 3.0), (0.0, 1.0)], [(0.0, 1.0)]])
    step(s, [[(-1.0, 3.0), (0.0, 1.0)], [(0.0, 1.0)]], rule="minmax", symmetric=False)
    before = [t.clone() for t in (*s[1], *s[2], *s[3])]
    step(s, [[(-9.0, 9.0), bad], [(0.0, 1.0)]], rule="minmax", symmetric=False)
    assert all(map(torch.equal, before, (*s[1], *s[2], *s[3])))
    assert [c.tolist() for c in s[4]] == [[1, 1], [2, 0]]
    assert torch.equal(s[0][0], new_pending(2))


def test_update_ranges_keeps_relu6_below_its_limit():
    s = states([[(0.0, 6.0)], [(0.0, 6.0)], [(0.0, 5.0)]])
    F.update_ranges_(*s, rule="minmax", symmetric=False, limit=[6.0, 0.0, 6.0])
    limited, free, small = (scale.double().item() for scale in s[2])
    assert limited * 255 <= 6 < math.nextafter(limited, 1) * 255 + 1e-6
    assert abs(limited - free) <= 2**-29 and small == pytest.approx(5 / 255)


def test_update_ranges_bumps_versions():
    s = states([[(0.0, 6.0)]])
    mutated = [t for tensors in s[:5] for t in tensors]
    version_after(mutated, lambda: F.update_ranges_(*s, rule="last", symmetric=False))


# Weights --------------------------------------------------------------------------------------

WEIGHTS = [(7, 3, 5, 5), (40, 1, 3, 3), (33, 70), (1, 9), (5,), (), (0, 4), (300, 130)]


def weights(dtype=torch.float32, layout=torch.contiguous_format):
    w = [torch.randn(shape).to(dtype) for shape in WEIGHTS]
    return [v.contiguous(memory_format=layout) if v.dim() == 4 else v for v in w]


def scales_of(w, per_channel):
    return [torch.ones(v.shape[0] if per_channel and v.dim() else 1) for v in w]


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_fake_quant_of_each(dtype, layout, per_channel):
    w, grid = weights(dtype, layout), control(-8, 7)
    scale = scales_of(w, per_channel)
    value, inside = F.fake_quant_weights(w, scale, [grid] * len(w))
    for x, s, y, bits in zip(w, scale, value, inside, strict=True):
        axis = 0 if x.dim() and s.numel() == x.shape[0] else None
        if x.numel():
            low, high = F.minmax(x, axis=axis)
            e = F.qparams(low.reshape(s.shape), high.reshape(s.shape), quant_min=-8, quant_max=7)
            assert torch.equal(s, e[0])
        expected = F.fake_quant(x, s, quant_min=-8, quant_max=7, axis=axis)
        assert torch.equal(y, expected) and y.stride() == expected.stride()
        assert bits.numel() == (x.numel() + 63) // 64 + 1 and bits[-1] == 0


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_use_weight_has_the_gradient_of_fake_quant(layout, per_channel):
    """Use fixed scales, so that values are clamped."""
    w = [v.requires_grad_() for v in weights(layout=layout)]
    scale = [s * 0.2 for s in scales_of(w, per_channel)]
    given = [s.clone() for s in scale]
    value, inside = F.fake_quant_weights(w, scale, [control(-8, 7, observe=0)] * len(w))
    assert all(map(torch.equal, scale, given))
    for x, s, v, bits in zip(w, scale, value, inside, strict=True):
        axis = 0 if x.dim() and s.numel() == x.shape[0] else None
        expected = F.fake_quant(x, s, quant_min=-8, quant_max=7, axis=axis)
        used = F.use_weight(x, v, bits)
        assert used.data_ptr() == v.data_ptr() and not v.requires_grad
        dy = torch.randn(x.shape)
        (dx,), (e,) = torch.autograd.grad(used, x, dy), torch.autograd.grad(expected, x, dy)
        assert torch.equal(used, expected) and torch.equal(dx, e)
        assert bits[-1] == (0 if torch.equal(e, dy) else 1)


def test_use_weight_passes_the_gradient_itself_where_nothing_was_clipped():
    w = torch.randn(9, 70, requires_grad=True)
    (value,), (inside,) = F.fake_quant_weights([w], [torch.ones(9)], [control()])
    dy = torch.randn(9, 70)
    (dx,) = torch.autograd.grad(F.use_weight(w, value, inside), w, dy)
    assert dx.data_ptr() == dy.data_ptr()
    (value,), (inside,) = F.fake_quant_weights([w], [torch.ones(9) / 9], [control(observe=0)])
    (dx,) = torch.autograd.grad(F.use_weight(w, value, inside), w, dy)
    assert dx.data_ptr() != dy.data_ptr() and (dx == 0).any()


@pytest.mark.parametrize("clipped", [False, True])
def test_uses_of_a_weight_run_backward_by_themselves(clipped):
    w = torch.full((4, 5), 0.4, requires_grad=True)
    scale = torch.full((4,), 0.1 if clipped else 1.0)
    (value,), (inside,) = F.fake_quant_weights([w], [scale], [control(observe=int(not clipped))])
    if clipped:
        inside[0], inside[-1] = -2, 1  # the first value is out of range
    first, second = F.use_weight(w, value, inside), F.use_weight(w, value, inside)
    assert first._version == value._version and not first.is_leaf
    first.sum().backward()  # micro-batches: each backward pass runs separately
    (second * 2).sum().backward()
    with torch.no_grad():
        assert not F.use_weight(w, value, inside).requires_grad
    expected = torch.full((4, 5), 3.0)
    if clipped:
        expected[0, 0] = 0
    assert torch.equal(w.grad, expected)


def test_hooks_of_a_weight_run_once_for_each_backward_pass():
    w, seen = torch.randn(4, 5, requires_grad=True), []
    w.register_hook(lambda dw: seen.append("gradient") or dw * 2)
    w.register_post_accumulate_grad_hook(lambda w: seen.append(w.grad.clone()))
    (value,), (inside,) = F.fake_quant_weights([w], [torch.ones(4)], [control()])
    (F.use_weight(w, value, inside).sum() + F.use_weight(w, value, inside).sum()).backward()
    assert seen[0] == "gradient" and torch.equal(seen[1], torch.full((4, 5), 4.0))
    assert len(seen) == 2
    doubled = w * 2  # not a leaf
    y = F.use_weight(doubled, value, inside)
    (dw,) = torch.autograd.grad(y.sum(), w)
    assert torch.equal(dw, torch.full((4, 5), 4.0))
    detached = w.detach()
    assert not F.use_weight(detached, value, inside).requires_grad


def test_second_derivative_through_use_weight():
    w = torch.randn(4, 5, requires_grad=True)
    for scale in (1.0, 0.05):
        (value,), (inside,) = F.fake_quant_weights(
            [w], [torch.tensor([scale])], [control(observe=0)]
        )
        (dw,) = torch.autograd.grad(
            F.use_weight(w, value, inside).pow(3).sum(), w, create_graph=True
        )
        (ddw,) = torch.autograd.grad(dw.sum(), w)
        passes = ((w / scale).round() >= -8) & ((w / scale).round() <= 7)
        assert torch.allclose(ddw, torch.where(passes, 6 * value, 0.0))


def test_weights_that_hold_nan_or_pass_unquantized():
    w = torch.tensor([[1.0, math.nan], [2.0, 0.9], [0.0, -INF], [0.0, 0.0]])
    scale = torch.zeros(4)
    (value,), (inside,) = F.fake_quant_weights([w], [scale], [control(-7, 7)])
    assert value[0].isnan().all() and value[2].isnan().all() and inside[-1] == 1
    assert scale[0].isnan() and value[3].tolist() == [0, 0]
    assert value[1].tolist() == pytest.approx([2, 2 * 3 / 7])
    (value,), (inside,) = F.fake_quant_weights([w], [scale], [control(quantize=0)])
    assert torch.equal(value.nan_to_num(), w.nan_to_num())
    assert inside.tolist() == [255, 0]
    whole, one = torch.randn(3, 50_000), torch.ones(1)
    whole[2, 7] = math.nan
    (value,), _ = F.fake_quant_weights([whole], [one], [control()])
    assert value.isnan().all() and one.isnan()


def test_weights_of_other_strides():
    x = torch.randn(6, 5, 4).transpose(0, 2)
    (value,), _ = F.fake_quant_weights([x], [torch.full((4,), 0.1)], [control(observe=0)])
    assert torch.equal(
        value, F.fake_quant(x, torch.full((4,), 0.1), axis=0, quant_min=-8, quant_max=7)
    )


def test_weights_power_of_two():
    scale = torch.zeros(1)
    F.fake_quant_weights([torch.tensor([3.0])], [scale], [control(-7, 7)], power_of_two=True)
    assert scale.item() == 0.5


def test_weights_do_not_depend_on_threads():
    w = weights()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        scale = scales_of(w, False)
        results.append((*scale, *F.fake_quant_weights(w, scale, [control()] * len(w))[0]))
    assert all(map(torch.equal, *results))


def test_weights_bump_the_version_of_scales():
    w = [v.requires_grad_() for v in weights()]
    scale = scales_of(w, True)
    version_after(scale, lambda: F.fake_quant_weights(w, scale, [control()] * len(w)))


@pytest.mark.parametrize("observe", [0, 1])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_weights_compile(backend, observe):
    """Compile a step of two layers, one of which uses its weight twice."""
    torch._dynamo.reset()

    def step(x, w, scale, controls):
        value, inside = F.fake_quant_weights(w, scale, controls)
        first = F.use_weight(w[0], value[0], inside[0])
        again = F.use_weight(w[0], value[0], inside[0])
        second = F.use_weight(w[1], value[1], inside[1])
        return ((x @ first.T).relu() + x @ again.T) @ second.T

    w = [torch.randn(20, 30, requires_grad=True), torch.randn(10, 20, requires_grad=True)]
    x, results = torch.randn(4, 30), []
    for f in (step, torch.compile(step, fullgraph=True, backend=backend)):
        scale = [torch.full((20,), 0.1), torch.full((1,), 0.1)]
        y = f(x, w, scale, [control(-8, 7, observe)] * 2)
        results.append([y, *scale, *torch.autograd.grad(y.square().sum(), w)])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)


def test_use_weight_compiled_in_inference():
    torch._dynamo.reset()
    w = torch.randn(4, 5)
    (value,), (inside,) = F.fake_quant_weights([w], [torch.ones(4)], [control()])
    with torch.inference_mode():
        got = torch.compile(F.use_weight, fullgraph=True, backend="aot_eager")(w, value, inside)
    assert torch.equal(got, value)


# A GPU, where there is one --------------------------------------------------------------------


def to_cuda(value):
    if isinstance(value, (list, tuple)):
        return type(value)(to_cuda(v) for v in value)
    return value.cuda() if isinstance(value, torch.Tensor) else value


def all_of(*values):
    return [t for v in values for t in (all_of(*v) if isinstance(v, (list, tuple)) else [v])]


def act_step(x, scale, grid, pending):
    y = F.act_fake_quant(x, None, scale, None, grid, pending, activation="relu6")
    return [y, pending, torch.autograd.grad(y, x, x.detach())[0]]


UPDATE = {"rule": "ema", "momentum": 0.1, "symmetric": False, "power_of_two": False}


def range_step(*s):
    F.update_ranges_(*s, **UPDATE)
    return all_of(*s[:5])


def weight_step(w, scale, grids):
    return all_of(scale, F.fake_quant_weights(w, scale, grids))


ON_BOTH = {
    "act": (act_step, lambda: (torch.randn(9000, requires_grad=True), torch.full((1,), 0.1),
                               control(), new_pending())),
    "ranges": (range_step, lambda: states([[(-1.0, 2.0)], [(0.0, 3.0), (-4.0, -2.0)]] * 40)),
    "weights": (weight_step, lambda: (weights() * 9, scales_of(weights() * 9, True),
                                      [control()] * 9 * len(WEIGHTS))),
    "weights, one scale": (weight_step, lambda: (weights(), scales_of(weights(), False),
                                                 [control()] * len(WEIGHTS))),
}  # fmt: skip


@pytest.mark.cuda
@pytest.mark.parametrize("name", ON_BOTH)
def test_cuda_has_the_same_bits_and_captures(name):
    step, build = ON_BOTH[name]
    args = build()
    on_gpu, in_graph = to_cuda(args), to_cuda(args)
    expected = step(*args)
    for a, b in zip(step(*on_gpu), expected, strict=True):
        assert torch.equal(a.cpu(), b)
    graph, found = captured(lambda: step(*in_graph), lambda: step(*to_cuda(build())))
    graph.replay()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.cpu(), b)
