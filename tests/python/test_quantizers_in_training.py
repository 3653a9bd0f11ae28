"""What the fused ops of a training step do besides their values: they observe, and they mutate."""

import math

import bitpare as bp
import pytest
import reference
import torch

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
    """Bit for bit: values, both gradients, and the range."""
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
    bad_scale = torch.tensor(0.0)  # nothing was observed yet, and nothing is asked of it
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
    """Each mutated tensor counts each call, with gradients, without, and in inference mode."""
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
    """Arguments of update_ranges_ for quantizers of which the lists of (low, high) are pending."""
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
    assert s[2][0].item() == 123 and s[4][0].tolist() == [0, 0]  # no range yet: nothing is set
    step(s, [[(-1.0, 3.0)]], rule="ema", symmetric=True)
    s[5][0][:2] = torch.tensor([-7, 7])  # the grid is annealed while nothing is observed
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


UPDATE = {"rule": "ema", "momentum": 0.1, "symmetric": False, "power_of_two": False}


def test_update_ranges_opcheck():
    s = states([[(-1.0, 2.0)], [(0.0, 3.0), (-4.0, -2.0)]])
    torch.library.opcheck(torch.ops.bitpare.update_ranges_.default, s, {**UPDATE, "limit": []})


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_update_ranges_compiles(backend):
    torch._dynamo.reset()
    compiled = torch.compile(F.update_ranges_, fullgraph=True, backend=backend)
    results = []
    for f in (F.update_ranges_, compiled):
        s = states([[(-1.0, 2.0)], [(0.0, 3.0), (-4.0, -2.0)]])
        f(*s, **UPDATE)
        results.append([t for tensors in s for t in tensors])
    assert all(map(torch.equal, *results))
