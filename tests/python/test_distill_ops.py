"""Test distillation losses against the papers' formulas in float64: in every layout and dtype, with
extreme values, under opcheck and compile."""

import bitpare as bp
import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from ops.distillation import (
    attention,
    dist,
    distill,
    divergence,
    dkd,
    feature,
    relation,
)
from torch import Tensor

f = bp.functional


def logits(*shape: int, seed: int = 0, spread: float = 2.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * spread


def classes(*shape: int, of: int, seed: int = 0) -> Tensor:
    return torch.randint(0, of, shape, generator=torch.Generator().manual_seed(seed))


def gradient_of(loss, zs: Tensor, incoming: Tensor | None = None):
    z = zs.detach().clone().requires_grad_()
    value = loss(z)
    dy = torch.ones_like(value) if incoming is None else incoming.to(value)
    return value.detach(), torch.autograd.grad(value, z, dy)[0]


def check(ours, theirs, zs: Tensor, incoming=None, rtol=1e-6, atol=1e-6):
    """Check the value within rtol, and the gradient within atol of its largest element."""
    value, gradient = gradient_of(ours, zs, incoming)
    expected, slope = gradient_of(theirs, zs.double(), incoming)
    assert value.dtype == torch.float32 and gradient.dtype == zs.dtype
    off = (value.double() - expected).abs() / expected.abs().clamp(min=1e-3)
    assert value.numel() == 0 or off.max() <= rtol, f"off by {float(off.max()):.2g}"
    largest = float(slope.abs().max()) if slope.numel() else 0.0
    assert gradient.shape == slope.shape
    assert torch.allclose(gradient.double(), slope, rtol=0, atol=max(atol * largest, 1e-8))


SHAPES = [(7, 10), (3, 1), (2, 3, 5), (16,), (4, 1000), (3, 2049)]
OPTIONS = [
    {},
    {"divergence": "reverse"},
    {"divergence": "js"},
    {"temperature": 1.0},
    {"temperature": 2.0, "alpha": 0.3, "label_smoothing": 0.1},
    {"temperature": 3.7, "alpha": 0.9},
    {"temperature": 20.0},
    {"temperature": 0.05},
    {"temperature": 20.0, "divergence": "js"},
    {"alpha": 0.0},
    {"alpha": 1.0},
    {"reduction": "sum"},
    {"reduction": "none", "divergence": "reverse", "temperature": 2.0},
]
name = lambda o: "-".join(f"{k}={v}" for k, v in o.items()) or "default"  # noqa: E731


def as_reference(options):
    return {("divergence_" if k == "divergence" else k): v for k, v in options.items()}


@pytest.mark.parametrize("kind", ["none", "classes", "probabilities"])
@pytest.mark.parametrize("options", OPTIONS, ids=name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_distill_loss(shape, options, kind):
    zs, zt = logits(*shape), logits(*shape, seed=1)
    target = None
    if kind == "classes":
        target = classes(*shape[:-1], of=shape[-1])
    elif kind == "probabilities":
        target = logits(*shape, seed=2).softmax(-1)
    incoming = logits(*shape[:-1], seed=3) if options.get("reduction") == "none" else None
    # A row with one class has no loss. "reverse" subtracts numbers as large as log(q / p).
    steep = options.get("divergence") == "reverse"
    check(
        lambda z: f.distill_loss(z, zt, target, **options),
        lambda z: distill(z, zt, target, **as_reference(options)),
        zs,
        incoming,
        atol=5e-6 if steep else 1e-6,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_rows_that_are_left_out_and_weights(reduction):
    zs, zt, target = logits(3, 4, 9), logits(3, 4, 9, seed=1), classes(3, 4, of=9)
    target[0, 1] = target[2, 3] = 7
    weight = logits(3, 4, seed=5).abs()
    weight[1] = 0
    options = {"ignore_index": 7, "row_weight": weight, "reduction": reduction}
    for ours, theirs in ((f.distill_loss, distill), (f.dkd_loss, dkd)):
        value, gradient = gradient_of(lambda z, o=ours: o(z, zt, target, **options), zs)
        check(
            lambda z, o=ours: o(z, zt, target, **options),
            lambda z, t=theirs: t(z, zt, target, **options),
            zs,
        )
        out = (target == 7) | (weight == 0)
        assert (gradient[out] == 0).all() and (gradient[~out] != 0).any()
        if reduction == "none":
            assert (value[out] == 0).all() and value.shape == target.shape
    # An ignored row may contain anything.
    zs[0, 1], zt[2, 3] = torch.nan, torch.inf
    target[0, 1] = target[2, 3] = 7
    value, gradient = gradient_of(lambda z: f.distill_loss(z, zt, target, **options), zs)
    assert value.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("op", [f.distill_loss, f.dkd_loss])
def test_no_rows(op):
    zs = logits(4, 6)
    for reduction in ("mean", "sum"):
        value, gradient = gradient_of(
            lambda z, r=reduction: op(z, zs, torch.full((4,), -100), reduction=r), zs
        )
        assert value == 0 and (gradient == 0).all()
    empty = torch.zeros(0, 6)
    value, gradient = gradient_of(lambda z: op(z, empty, torch.zeros(0).long()), empty)
    assert value == 0 and gradient.shape == (0, 6)


@pytest.mark.parametrize("shape", [(5, 2), (6, 40), (2, 3, 1500), (3, 1)], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0, "alpha": 0.5, "beta": 2.0}, {"beta": 0.0}, {"alpha": 0.0},
                {"temperature": 20.0}], ids=name,
)  # fmt: skip
def test_dkd_loss(shape, options):
    zs, zt = logits(*shape), logits(*shape, seed=1)
    target = classes(*shape[:-1], of=shape[-1])
    if shape[-1] == 1:
        value, gradient = gradient_of(lambda z: f.dkd_loss(z, zt, target, **options), zs)
        assert value == 0 and (gradient == 0).all()
        return
    check(
        lambda z: f.dkd_loss(z, zt, target, **options),
        lambda z: dkd(z, zt, target, **options),
        zs,
        rtol=2e-5 if options.get("temperature") == 20 else 1e-6,
    )


# -- extremes


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_large_logits_stay_finite(temperature, kind):
    zs, zt = (logits(6, 50, seed=s, spread=1.0).clamp(-1, 1) * 1e4 for s in (0, 1))
    target = classes(6, of=50)
    check(
        lambda z: f.distill_loss(z, zt, target, temperature=temperature, divergence=kind),
        lambda z: distill(z, zt, target, temperature=temperature, divergence_=kind),
        zs,
        atol=1e-5,
    )
    value, gradient = gradient_of(lambda z: f.dkd_loss(z, zt, target, temperature=temperature), zs)
    assert value.isfinite() and gradient.isfinite().all()


def test_masked_classes():
    zs, zt, target = logits(4, 8), logits(4, 8, seed=1), torch.tensor([0, 1, 2, 3])
    both_s, both_t = zs.clone(), zt.clone()
    both_s[:, 5:], both_t[:, 5:] = -torch.inf, -torch.inf
    value, gradient = gradient_of(lambda z: f.distill_loss(z, both_t, target), both_s)
    expected, slope = gradient_of(lambda z: f.distill_loss(z, zt[:, :5], target), zs[:, :5])
    assert torch.allclose(value, expected) and (gradient[:, 5:] == 0).all()
    assert torch.allclose(gradient[:, :5], slope, atol=1e-7)
    # A class with probability 0 in the student only contributes nothing, in the teacher only
    # infinity.
    value, gradient = gradient_of(lambda z: f.distill_loss(z, both_t, target), zs)
    assert value.isfinite() and gradient.isfinite().all() and (gradient[:, 5:] > 0).all()
    value, gradient = gradient_of(lambda z: f.distill_loss(z, zt, target), both_s)
    assert value == torch.inf and gradient.isfinite().all()
    # NaN is not hidden, and stays in its row.
    zs[1, 2] = torch.nan
    value, gradient = gradient_of(lambda z: f.distill_loss(z, zt, target, reduction="none"), zs)
    assert value.isnan().tolist() == [False, True, False, False]
    assert gradient.isnan().any(-1).tolist() == [False, True, False, False]


def test_a_student_like_its_teacher_has_no_loss():
    z = logits(5, 30)
    for kind in ("forward", "reverse", "js"):
        value, gradient = gradient_of(lambda s, k=kind: f.distill_loss(s, z, divergence=k), z)
        assert abs(float(value)) < 1e-12 and gradient.abs().max() < 1e-8
    near = z + 1e-3 * logits(5, 30, seed=9)
    check(lambda s: f.distill_loss(s, z), lambda s: distill(s, z), near, rtol=1e-4)


# -- a teacher's largest logits


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_top_of_a_teacher(kind, k, temperature):
    n = 40
    zs, zt, target = logits(6, n), logits(6, n, seed=1), classes(6, of=n)
    values, indices = zt.topk(k, -1)
    top = dict(teacher_indices=indices, teacher_logsumexp=(zt / temperature).logsumexp(-1))

    def buckets(z):
        """Return the k classes, and all others as one."""
        z = z.double() / temperature
        rest = z.scatter(-1, indices, -torch.inf).logsumexp(-1, keepdim=True)
        given = z.gather(-1, indices)
        return given if k == n else torch.cat([given, rest], -1)

    def expected(z):
        soft = temperature**2 * divergence(buckets(z), buckets(zt), kind).mean()
        return 0.4 * F.cross_entropy(z.double(), target) + 0.6 * soft

    options = dict(temperature=temperature, alpha=0.4, divergence=kind, **top)
    check(
        lambda z: f.distill_loss(z, values, target, **options), expected, zs, rtol=2e-6, atol=2e-6
    )
    far = zs * 4000
    value, gradient = gradient_of(lambda z: f.distill_loss(z, values, target, **options), far)
    assert value.isfinite() and gradient.isfinite().all()


# -- dtypes, layouts, use


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_compute_in_float32(dtype):
    zs, zt, target = logits(6, 33).to(dtype), logits(6, 33, seed=1).to(dtype), classes(6, of=33)
    for teacher in (zt, zt.float()):
        value, gradient = gradient_of(lambda z, t=teacher: f.distill_loss(z, t, target), zs)
        expected, slope = gradient_of(lambda z: f.distill_loss(z, zt.float(), target), zs.float())
        assert torch.equal(value, expected) and torch.equal(gradient, slope.to(dtype))


def test_small_gradients_of_halves_survive_a_scaled_loss():
    zs, zt = (logits(512, 1000, seed=s, spread=0.02).half() for s in (0, 1))
    scale = 2.0**16
    z = zs.clone().requires_grad_()
    (f.distill_loss(z, zt, temperature=1.0) * scale).backward()
    _, slope = gradient_of(lambda s: f.distill_loss(s, zt.float(), temperature=1.0), zs.float())
    assert (slope.half() == 0).float().mean() > 0.3  # they would have underflowed
    assert torch.allclose(z.grad.float() / scale, slope, rtol=2e-3, atol=1e-12)


@pytest.mark.parametrize("op", [f.distill_loss, f.dkd_loss])
def test_layouts_and_threads(op):
    zs, zt, target = logits(64, 2000), logits(64, 2000, seed=1), classes(64, of=2000)
    expected = gradient_of(lambda z: op(z, zt, target), zs)
    wide = torch.zeros(64, 4001)
    wide[:, 1::2] = zs
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for laid in (zs, zs.T.contiguous().T, wide[:, 1::2]):
            got = gradient_of(lambda z: op(z, zt.T.contiguous().T, target), laid)
            assert all(map(torch.equal, got, expected))
    torch.set_num_threads(2)


def test_backward_twice_and_what_it_holds():
    zs, zt = logits(5, 20).requires_grad_(), logits(5, 20, seed=1)
    loss = f.distill_loss(zs, zt)
    first = torch.autograd.grad(loss, zs, retain_graph=True)[0]
    kept = first.clone()
    first.mul_(3)  # the caller may change a returned gradient
    second = torch.autograd.grad(loss, zs, torch.tensor(2.0), retain_graph=True)[0]
    assert torch.equal(second, 2 * kept)
    loss.backward()
    assert torch.equal(zs.grad, kept)
    # The gradients of both uses of a tensor are added.
    zs.grad = None
    (f.distill_loss(zs, zt) + 3 * f.distill_loss(zs, zt)).backward()
    assert torch.allclose(zs.grad, 4 * kept)
    gradient = torch.autograd.grad(f.distill_loss(zs, zt), zs, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="not implemented"):
        gradient.sum().backward()


def test_the_teacher_gets_no_gradient():
    zs, zt = logits(3, 4).requires_grad_(), logits(3, 4, seed=1).requires_grad_()
    f.distill_loss(zs, zt).backward()
    assert zt.grad is None and zs.grad is not None
    assert not f.distill_loss(zs.detach(), zt).requires_grad
    with torch.no_grad():
        assert not f.distill_loss(zs, zt).requires_grad


CALLS = {
    "distill": lambda z, t, y: f.distill_loss(z, t, y, alpha=0.3),
    "js": lambda z, t, y: f.distill_loss(z, t, divergence="js"),
    "rows": lambda z, t, y: f.distill_loss(z, t, y, reduction="none").sum(),
    "dkd": lambda z, t, y: f.dkd_loss(z, t, y),
    "dist": lambda z, t, y: f.dist_loss(z, t),
    "cosine": lambda z, t, y: f.feature_loss(z, t, kind="cosine"),
    "mse": lambda z, t, y: f.feature_loss(z, t),
    "attention": lambda z, t, y: f.attention_transfer(z.view(6, 3, 4), t.view(6, 3, 4)),
    "relation": lambda z, t, y: f.relation_loss(z, t),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compile(call, dtype):
    zs, zt, target = logits(6, 12).to(dtype), logits(6, 12, seed=1).to(dtype), classes(6, of=12)
    torch._dynamo.reset()
    compiled = torch.compile(CALLS[call], fullgraph=True, backend="aot_eager")
    for scale in (1.0, 3.0):
        got = gradient_of(lambda z, s=scale: s * compiled(z, zt, target), zs)
        expected = gradient_of(lambda z, s=scale: s * CALLS[call](z, zt, target), zs)
        for a, b in zip(got, expected, strict=True):
            assert torch.allclose(a.float(), b.float(), rtol=1e-5, atol=1e-7)


# -- features


def test_feature_losses():
    s, t = logits(4, 3, 5), logits(4, 3, 5, seed=1)
    for kind in ("mse", "l1", "cosine", "normalized"):
        check(lambda x, k=kind: f.feature_loss(x, t, kind=k), lambda x, k=kind: feature(x, t, k), s)
    tokens = f.feature_loss(s, t, kind="cosine", start_dim=-1)
    assert torch.allclose(tokens, 1 - F.cosine_similarity(s, t, dim=-1).mean())
    zero = torch.zeros(2, 3, requires_grad=True)
    f.feature_loss(zero, torch.ones(2, 3)).backward()
    for op in (f.feature_loss, f.relation_loss):
        assert op(torch.zeros(0, 3), torch.zeros(0, 3)) == 0


def test_attention_transfer():
    s, t = logits(4, 3, 6, 5), logits(4, 7, 6, 5, seed=1)
    check(lambda x: f.attention_transfer(x, t), lambda x: attention(x, t), s)


def test_relation_loss():
    s, t = logits(6, 9), logits(6, 4, seed=1)

    check(lambda x: f.relation_loss(x, t), lambda x: relation(x, t), s)
    check(lambda x: f.relation_loss(x, t, distance=25, angle=0), lambda x: relation(x, t, 25, 0), s)
    # Far from 0 and close together, where a product of features says nothing of their distance.
    near = 1000 + 0.01 * s
    check(lambda x: f.relation_loss(x, t), lambda x: relation(x, t), near)
    # Samples that coincide, and one alone.
    same = torch.ones(3, 4, requires_grad=True)
    f.relation_loss(same, t[:3]).backward()
    assert same.grad.isfinite().all()
    assert f.relation_loss(torch.ones(1, 4), torch.ones(1, 4)) == 0


def test_dist_loss():
    s, t = logits(5, 7), logits(5, 7, seed=1)

    check(lambda z: f.dist_loss(z, t), lambda z: dist(z, t), s, rtol=2e-6, atol=2e-6)
    check(
        lambda z: f.dist_loss(z, t, temperature=1.0, beta=0.5, gamma=3),
        lambda z: dist(z, t, 1.0, 0.5, 3),
        s,
        rtol=2e-6,
        atol=2e-6,
    )
    # A row of weight 0 does not count, and a row of weight 2 counts twice.
    kept = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0])
    chosen = torch.tensor([0, 2, 2, 3])
    value, gradient = gradient_of(lambda z: f.dist_loss(z, t, row_weight=kept), s)
    few, slope = gradient_of(lambda z: f.dist_loss(z[chosen], t[chosen]), s)
    assert torch.allclose(value, few) and torch.allclose(gradient, slope, atol=1e-7)
    s[1], t[4] = torch.nan, torch.inf
    again = gradient_of(lambda z: f.dist_loss(z, t, row_weight=kept), s)
    assert torch.equal(again[0], value) and torch.equal(again[1], gradient)
    value, gradient = gradient_of(lambda z: f.dist_loss(z, t, row_weight=torch.zeros(5)), s)
    assert value == 0 and (gradient == 0).all()
    for shape in ((4, 1), (0, 5), (3, 4, 6)):
        value, gradient = gradient_of(lambda z: f.dist_loss(z, logits(*z.shape)), logits(*shape))
        assert value.isfinite() and gradient.isfinite().all() and gradient.shape == shape


FEATURE_LOSSES = {
    "mse": (f.feature_loss, (5, 3, 4, 6), (5, 3, 4, 6)),
    "cosine": (lambda s, t: f.feature_loss(s, t, kind="cosine"), (5, 3, 4, 6), (5, 3, 4, 6)),
    "attention": (f.attention_transfer, (5, 3, 4, 6), (5, 7, 4, 6)),
    "dist": (f.dist_loss, (5, 30), (5, 30)),
    "relation": (f.relation_loss, (5, 3, 4, 6), (5, 30)),
}


@pytest.mark.parametrize("which", FEATURE_LOSSES)
def test_losses_between_features_in_every_layout_and_dtype(which):
    op, *shapes = FEATURE_LOSSES[which]
    s, t = logits(*shapes[0]), logits(*shapes[1], seed=1)
    expected = gradient_of(lambda x: op(x, t), s)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        laid = [s.transpose(0, 1).contiguous().transpose(0, 1), torch.stack([s, s], -1)[..., 0]]
        if s.dim() == 4:
            laid.append(s.contiguous(memory_format=torch.channels_last))
        for x in laid:
            assert all(map(torch.equal, gradient_of(lambda z: op(z, t), x), expected))
    torch.set_num_threads(2)
    for dtype in (torch.float16, torch.bfloat16):
        for taught in (t.to(dtype), t.to(dtype).float()):
            value, gradient = gradient_of(lambda x, y=taught: op(x, y), s.to(dtype))
            wide = gradient_of(lambda x, y=taught: op(x, y.float()), s.to(dtype).float())
            assert torch.equal(value, wide[0]) and torch.equal(gradient, wide[1].to(dtype))
    double = gradient_of(lambda x: op(x, t.double()), s.double())
    assert torch.equal(double[0], expected[0]) and torch.equal(double[1], expected[1].double())


@pytest.mark.parametrize("which", FEATURE_LOSSES)
def test_losses_between_features_used_twice(which):
    op, *shapes = FEATURE_LOSSES[which]
    s, t = logits(*shapes[0]).requires_grad_(), logits(*shapes[1], seed=1).requires_grad_()
    loss = op(s, t)
    first = torch.autograd.grad(loss, s, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, s, torch.tensor(2.0))[0], 2 * first)
    (op(s, t) + 3 * op(s, t)).backward()
    assert torch.allclose(s.grad, 4 * first) and t.grad is None
    with torch.no_grad():
        assert torch.equal(op(s, t), loss) and not op(s, t).requires_grad
    empty = torch.zeros(0, *shapes[0][1:], requires_grad=True)
    op(empty, torch.zeros(0, *shapes[1][1:])).backward()
    assert empty.grad.shape == empty.shape


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("which", FEATURE_LOSSES)
def test_losses_between_features_have_the_same_bits_on_cuda(which, dtype):
    op, *shapes = FEATURE_LOSSES[which]
    s, t = logits(*shapes[0]).to(dtype), logits(*shapes[1], seed=1).to(dtype)
    cpu = gradient_of(lambda x: op(x, t), s)
    gpu = gradient_of(lambda x: op(x, t.cuda()), s.cuda())
    assert all(torch.equal(a, b.cpu()) for a, b in zip(cpu, gpu, strict=True))


# -- wrong use


def test_errors():
    z, y = torch.randn(4, 6), torch.tensor([0, 1, 2, 3])
    wrong = [
        (lambda: f.distill_loss(z, z[:, :5]), "same rows and classes, got \\[4, 6\\]"),
        (lambda: f.distill_loss(z.long(), z), "student_logits must be float32, .* got Long"),
        (lambda: f.distill_loss(z, z.int()), "teacher_logits must be float32, .* got Int"),
        (lambda: f.distill_loss(z, z, temperature=0), "temperature must be above 0, got 0"),
        (lambda: f.distill_loss(z, z, temperature=-1), "temperature must be above 0, got -1"),
        (lambda: f.distill_loss(z, z, y, alpha=1.1), "alpha must be from 0 to 1, got 1.1"),
        (lambda: f.distill_loss(z, z, y, alpha=-0.1), "alpha must be from 0 to 1, got -0.1"),
        (lambda: f.distill_loss(z, z, y, label_smoothing=2), "label_smoothing must be from 0 to 1"),
        (lambda: f.distill_loss(z, z, y[:3]), "target must have shape \\[4\\], got \\[3\\]"),
        (lambda: f.distill_loss(z, z, y.int()), "target must be classes \\(int64\\)"),
        (lambda: f.distill_loss(z, z, torch.rand(4, 5)), "target must have shape \\[4, 6\\]"),
        (lambda: f.distill_loss(z, z, row_weight=torch.ones(3)), "row_weight must have shape"),
        (lambda: f.distill_loss(z, z, reduction="max"), "reduction must be one of 'none'"),
        (lambda: f.distill_loss(z, z, divergence="kl"), "divergence must be one of 'forward'"),
        (lambda: f.distill_loss(z, z, teacher_indices=y), "teacher_logsumexp must be given"),
        (lambda: f.distill_loss(z[:, :0], z[:, :0]), "at least one class"),
        (lambda: f.dkd_loss(z, z, torch.rand(4, 6)), "dkd_loss: target must be classes"),
        (lambda: f.dkd_loss(z, z, y, alpha=-1.0), "alpha and beta must not be negative"),
        (lambda: f.feature_loss(z, z[:, :5]), "feature_loss: student and teacher must"),
        (lambda: f.feature_loss(z, z, kind="l3"), "kind must be one of 'mse'"),
        (lambda: f.feature_loss(z, z, kind="cosine", start_dim=3), "start_dim must be a dimension"),
        (lambda: f.attention_transfer(z, z), "must agree in all but channels"),
        (lambda: f.relation_loss(z, z[:3]), "must be of the same samples"),
        (lambda: f.dist_loss(z, z, temperature=0.0), "temperature must be above 0"),
    ]  # fmt: skip
    for call, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            call()
    with pytest.raises(IndexError, match=r"target must be a class from 0 to 5 .* got 6 in row 1"):
        f.distill_loss(z, z, torch.tensor([0, 6, 1, 2]))
    top = dict(teacher_indices=torch.full((4, 2), 9), teacher_logsumexp=torch.zeros(4))
    with pytest.raises(IndexError, match="teacher_indices must be classes from 0 to 5, got 9"):
        f.distill_loss(z, z[:, :2], **top)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cuda_has_the_same_bits(shape, options, dtype):
    zs, zt = logits(*shape).to(dtype), logits(*shape, seed=1).to(dtype)
    for target in (None, classes(*shape[:-1], of=shape[-1]), zs.float().softmax(-1)):
        on = lambda d, y=target: gradient_of(  # noqa: E731
            lambda z: f.distill_loss(
                z, zt.to(d), y if y is None else y.to(d), **options
            ), zs.to(d),
        )  # fmt: skip
        for cpu, gpu in zip(on("cpu"), on("cuda"), strict=True):
            assert torch.equal(cpu, gpu.cpu())
