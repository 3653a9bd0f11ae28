"""Test distillation in a training loop: losses, hints, teachers, caches, smaller students."""

import copy
import io

import bitpare as bp
import networks
import pytest
import torch
import torch.nn.functional as F
from bitpare import distill as D
from bitpare.distill.cache import fingerprint
from processes import run_two
from torch import Tensor, nn

SHAPE = (6, 1, 8, 8)


def lenet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return networks.LeNet()


def batch(step: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(100 + step)
    return torch.randn(SHAPE, generator=g), torch.randint(0, 10, SHAPE[:1], generator=g)


class Net(nn.Module):
    """A student or teacher with named layers."""

    def __init__(self, width: int = 4, size: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, stride=size)
        self.norm = nn.BatchNorm2d(width)
        self.mid = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(F.relu(self.norm(self.stem(x))))
        return self.head(F.relu(x).mean([2, 3]))


def net(width: int = 4, size: int = 1, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Net(width, size)


# -- losses


def test_ramp():
    ramp = D.Ramp(1.0, 3.0, steps=20, when=(5, 15), shape="cosine")
    assert [ramp(s) for s in (0, 5, 10, 15, 99)] == [1, 1, pytest.approx(2), 3, 3]
    for wrong in (dict(steps=0), dict(steps=1, shape="log")):
        with pytest.raises(ValueError, match="Ramp"):
            D.Ramp(0.0, 1.0, **wrong)


def test_soft_target_is_the_op():
    zs, zt, y = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([0, 1, -100, 3])
    got = D.SoftTarget(3.0, 0.2, label_smoothing=0.1, divergence="js")(zs, zt, y)
    expected = bp.functional.distill_loss(
        zs, zt, y, temperature=3.0, alpha=0.2, label_smoothing=0.1, divergence="js"
    )
    assert torch.equal(got, expected)
    # The classes of a segmentation lie along dimension 1.
    maps, taught = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    target = torch.randint(0, 5, (2, 3, 3))
    rows = lambda m: m.movedim(1, -1).reshape(-1, 5)  # noqa: E731
    for loss in (D.SoftTarget, D.DKD, D.DIST, D.LogitMSE, D.HardTarget):
        got = loss(class_dim=1)(maps, taught, target)
        assert torch.allclose(got, loss()(rows(maps), rows(taught), target.flatten()), atol=1e-5)


def test_hard_targets():
    zs, zt, y = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([0, 1, -100, 3])
    kept = y != -100
    got = D.HardTarget(alpha=0.3)(zs, zt, y)
    expected = 0.3 * F.cross_entropy(zs, y) + 0.7 * F.cross_entropy(zs[kept], zt.argmax(1)[kept])
    assert torch.allclose(got, expected)
    assert torch.allclose(D.HardTarget()(zs, zt), F.cross_entropy(zs, zt.argmax(1)))
    top = D.TopLogits(*zt.topk(2, -1), zt.logsumexp(-1))
    assert torch.equal(D.HardTarget()(zs, top), D.HardTarget()(zs, zt))
    assert D.HardTarget()(zs, zt, torch.full((4,), -100)) == 0
    s, t, w = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [1.0]]), torch.zeros(2, 1)
    assert D.HardTarget("regression", alpha=0.5)(s, t, w) == 0.5 * 5 + 0.5 * 2.5
    assert D.HardTarget("regression", alpha=0.0, bounded=True)(s, t, w) == 4.5
    assert D.HardTarget("regression", alpha=0.0, bounded=True, margin=3.5)(s, t, w) == 5.0
    assert D.HardTarget("regression")(s, t) == 2.5


def test_rows_that_are_ignored_and_probabilities():
    torch.manual_seed(0)
    zs, zt, y = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([0, 1, -100, -100])
    other = zt.clone()
    other[2:] = 9.0
    for loss in (D.SoftTarget(), D.HardTarget(), D.LogitMSE(), D.DKD(), D.DIST()):
        got = loss(zs, zt, y)
        assert torch.allclose(got, loss(zs[:2], zt[:2], y[:2]), rtol=1e-5), type(loss).__name__
        assert torch.allclose(got, loss(zs, other, y), rtol=1e-5)
        assert loss(zs[:0], zt[:0], y[:0]) == 0
    labels = torch.randn(4, 5).softmax(-1)
    maps, taught = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    soft = torch.randn(2, 5, 3, 3).softmax(1)
    rows = lambda m: m.movedim(1, -1).reshape(-1, 5)  # noqa: E731
    for kind in (D.SoftTarget, D.HardTarget, D.LogitMSE, D.DIST):
        assert kind()(zs, zt, labels).isfinite()
        got = kind(class_dim=1)(maps, taught, soft)
        assert torch.allclose(got, kind()(rows(maps), rows(taught), rows(soft)), rtol=1e-4)
    got = D.SoftTarget(class_dim=1, alpha=1.0)(maps, taught, soft)
    assert torch.allclose(got, F.cross_entropy(maps, soft), rtol=1e-5)


def test_gradients_stay_bounded_where_there_is_no_direction():
    head = nn.Linear(16, 10)
    nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    kd = D.Distiller(head, nn.Linear(16, 10), D.DIST())
    kd(torch.randn(6, 16), torch.arange(6)).backward()
    assert head.weight.grad.abs().max() < 10
    s = torch.randn(6, 5)
    s[1] = s[0]
    s.requires_grad_()
    bp.functional.relation_loss(s, torch.randn(6, 5)).backward()
    assert s.grad.abs().max() < 10


def test_other_losses_by_hand():
    zs, zt, y = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    hard = F.cross_entropy(zs, y)
    assert torch.allclose(D.LogitMSE(alpha=0.3)(zs, zt, y), 0.3 * hard + 0.7 * F.mse_loss(zs, zt))
    assert torch.allclose(
        D.DKD(2.0, 0.5, 3.0, hard=0.7)(zs, zt, y),
        0.7 * hard + bp.functional.dkd_loss(zs, zt, y, temperature=2.0, alpha=0.5, beta=3.0),
    )
    assert torch.allclose(D.DIST(hard=2.0)(zs, zt, y), 2 * hard + bp.functional.dist_loss(zs, zt))
    both = D.Sum([(2.0, D.LogitMSE()), (D.Ramp(0, 1, steps=4), D.HardTarget())])
    for step in (0, 2, 9):
        both.at_step(step)
        expected = 2 * D.LogitMSE()(zs, zt, y) + min(step / 4, 1) * D.HardTarget()(zs, zt, y)
        assert torch.allclose(both(zs, zt, y), expected)


def test_multi_task():
    torch.manual_seed(0)
    s = {"kind": torch.randn(4, 5), "box": torch.randn(4, 2, requires_grad=True)}
    t = {"kind": torch.randn(4, 5), "box": torch.randn(4, 2)}
    y = {"kind": torch.tensor([0, 1, 2, 3]), "box": torch.randn(4, 2)}
    soft, box = D.SoftTarget(), D.HardTarget("regression")
    loss = D.MultiTask({"kind": soft, "box": box}, weights={"box": 3.0})
    expected = soft(s["kind"], t["kind"], y["kind"]) + 3 * box(s["box"], t["box"], y["box"])
    assert torch.allclose(loss(s, t, y), expected)
    learned = D.MultiTask({0: soft, 1: box}, weights="uncertainty")
    as_tuple = lambda d: (d["kind"], d["box"])  # noqa: E731
    learned(as_tuple(s), as_tuple(t), as_tuple(y)).backward()
    parts = torch.stack([
        soft(s["kind"], t["kind"], y["kind"]), box(s["box"], t["box"], y["box"])
    ]).detach()  # fmt: skip
    assert torch.allclose(learned.log_variance.grad, 1 - parts)
    with pytest.raises(ValueError, match="the student has no head 'box'; it gave \\['kind'\\]"):
        loss({"kind": s["kind"]}, t, y)
    with pytest.raises(ValueError, match="weights has 'size', which is not a head"):
        D.MultiTask({"box": box}, weights={"size": 1.0})


# -- the Distiller


def trained(kd, steps: int = 3, lr: float = 0.05) -> list[float]:
    optimizer = torch.optim.SGD(kd.parameters(), lr=lr, momentum=0.9)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = kd(*batch(step % 3))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_a_teacher_is_apart():
    student, teacher = net(2), net(8, seed=1)
    kd = D.Distiller(student, teacher, D.SoftTarget())
    names = [n for n, _ in kd.named_parameters()]
    assert names == [f"student.{n}" for n, _ in student.named_parameters()]
    before = copy.deepcopy(teacher.state_dict())
    kd.train()
    assert student.training and not teacher.training
    teacher.train()  # the user may have called train()
    trained(kd)
    assert not teacher.training
    assert all(torch.equal(v, before[n]) for n, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert not [n for n in kd.state_dict() if "teacher" in n]
    loss, result = kd(*batch(), return_logits=True)
    assert result.shape == (6, 10) and loss.requires_grad
    with torch.no_grad():
        expected = D.SoftTarget()(student(batch()[0]), teacher(batch()[0]), batch()[1])
    assert torch.allclose(loss, expected, atol=1e-4)


def test_it_goes_to_other_types_and_devices_with_its_teacher():
    kd = D.Distiller(net(2), net(8, seed=1), D.LogitMSE()).to(torch.bfloat16)
    x, y = batch()
    assert kd(x.bfloat16(), y).isfinite()
    assert next(kd._teachers[0].model.parameters()).dtype == torch.bfloat16
    meta = D.Distiller(net(2), net(8, seed=1)).to("meta")
    assert next(meta._teachers[0].model.parameters()).is_meta


def test_half_precision_and_micro_batches():
    x, y = batch()
    teacher = net(8, seed=1)
    expected = D.Distiller(net(2), teacher)(x, y)
    low = D.Distiller(net(2), teacher, teacher_dtype=torch.bfloat16)
    assert torch.allclose(low(x, y), expected, rtol=0.05)
    assert teacher.head.weight.dtype == torch.float32  # the user's own teacher is unchanged
    hints = lambda: [D.Hint("mid", "mid")]  # noqa: E731
    seen = []
    teacher.stem.register_forward_hook(lambda m, args, result: seen.append(len(args[0])))
    torch.manual_seed(0)
    whole = D.Distiller(net(2), teacher, hints=hints(), example_inputs=(x,))
    torch.manual_seed(0)
    parts = D.Distiller(net(2), teacher, hints=hints(), example_inputs=(x,), microbatch=4)
    parts.hints.load_state_dict(whole.hints.state_dict())
    seen.clear()
    assert torch.allclose(parts(x, y), whole(x, y), rtol=1e-5)
    assert seen == [4, 2, 6]


def test_several_teachers():
    x, y = batch()
    student, teachers = net(2), [net(8, seed=s) for s in (1, 2)]
    kd = D.Distiller(student, teachers, teacher_weights=[3, 1])
    student.eval()
    each = [D.Distiller(student, t)(x, y) for t in teachers]
    assert torch.allclose(kd(x, y), 0.75 * each[0] + 0.25 * each[1])
    with pytest.raises(ValueError, match="teacher_weights must be 2 numbers"):
        D.Distiller(student, teachers, teacher_weights=[1])


def test_inputs_and_results_of_any_form():
    class Two(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.inner = nn.Linear(4, 3)

        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"scores": self.inner(a + b)}

    a, b, y = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    kd = D.Distiller(Two(0), Two(1), logits=lambda result: result["scores"], microbatch=2)
    assert torch.equal(kd((a, b), y), kd({"a": a, "b": b}, y))
    _, result = kd((a, b), y, return_logits=True)
    assert list(result) == ["scores"]
    custom = D.Distiller(
        Two(0), Two(1), lambda s, t, target: (s["scores"] - t["scores"]).abs().sum()
    )
    assert custom((a, b)).ndim == 0


def test_scheduled_numbers_follow_applied_steps_and_resume():
    def make():
        loss = D.SoftTarget(D.Ramp(1.0, 4.0, steps=3), D.Ramp(1.0, 0.0, steps=4))
        return D.Distiller(net(2), net(8, seed=1), loss)

    kd = make()
    optimizer = torch.optim.SGD(kd.parameters(), lr=0.0)
    kd.attach(optimizer)
    found = []
    for _ in range(5):
        kd.eval()
        found.append(float(kd(*batch())))
        kd(*batch()).backward()  # accumulating gradients is not a step
        optimizer.step()
    student, teacher = kd.student, kd._teachers[0].model
    x, y = batch()
    for step, value in enumerate(found):
        t, a = 1.0 + min(step, 3), 1 - min(step / 4, 1)
        expected = D.SoftTarget(t, a)(student(x), teacher(x), y)
        assert value == pytest.approx(float(expected), rel=1e-5)
    other = make()
    stream = io.BytesIO()
    torch.save(kd.state_dict(), stream)
    stream.seek(0)
    other.load_state_dict(torch.load(stream))
    assert other.step_count == 5
    assert torch.equal(other.eval()(x, y), kd(x, y))


def test_schedules_reach_losses_inside_a_module():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.soft = D.SoftTarget(alpha=D.Ramp(0.0, 1.0, steps=10))

        def forward(self, s, t, y):
            return self.soft(s, t, y)

    x, y = batch()
    kd = D.Distiller(net(2), net(8, seed=1), Own()).eval()
    for _ in range(10):
        kd.step()
    assert torch.allclose(kd(x, y), F.cross_entropy(kd.student(x), y))
    with pytest.raises(TypeError, match="temperature must be a number or a function"):
        D.SoftTarget(temperature=nn.Parameter(torch.tensor(4.0)))


def test_it_pickles():
    kd = D.Distiller(
        net(2), net(8, seed=1), hints=[D.Hint("mid", "mid")], example_inputs=batch()[0]
    )
    stream = io.BytesIO()
    torch.save(kd, stream)
    stream.seek(0)
    again = torch.load(stream, weights_only=False)
    assert torch.equal(again.eval()(*batch()), kd.eval()(*batch()))


# -- hints


def test_hints_make_adapters_that_train():
    student, teacher = net(2, size=2), net(8, seed=1)
    buffers = copy.deepcopy(dict(student.named_buffers()))
    x, _ = batch()
    hints = [
        D.Hint("mid", "mid", 0.5),
        D.Hint("head", "head", kind="cosine"),
        D.AttentionTransfer("stem", "stem", 10.0),
        D.Relation("mid", "mid"),
    ]
    kd = D.Distiller(student, teacher, D.SoftTarget(), hints, example_inputs=(x,))
    assert all(torch.equal(v, buffers[n]) for n, v in student.named_buffers())
    assert kd.hints[0].adapter.weight.shape == (16, 4, 1, 1) and kd.hints[1].adapter is None
    assert any(p is kd.hints[0].adapter.weight for p in kd.parameters())
    before = kd.hints[0].adapter.weight.clone()
    losses = trained(kd, 30, lr=0.005)
    assert losses[-1] < losses[0] and not torch.equal(before, kd.hints[0].adapter.weight)
    # Compare the parts of the sum.
    kd.eval()
    features = {}
    for name, model in (("s", student), ("t", teacher)):
        for layer in ("stem", "mid", "head"):
            key = name + layer
            model.get_submodule(layer).register_forward_hook(
                lambda m, a, r, key=key: features.__setitem__(key, r)
            )
    x, y = batch()
    loss = kd(x, y)
    pool = lambda v: F.adaptive_avg_pool2d(v, 4)  # noqa: E731
    expected = D.SoftTarget()(features["shead"], features["thead"], y)
    adapted = kd.hints[0].adapter(features["smid"])
    expected = expected + 0.5 * F.mse_loss(adapted, pool(features["tmid"]))
    cosine = F.cosine_similarity(features["shead"], features["thead"])
    expected = expected + 1 - cosine.mean()
    f = bp.functional
    expected = expected + 10 * f.attention_transfer(features["sstem"], pool(features["tstem"]))
    expected = expected + f.relation_loss(features["smid"], features["tmid"])
    assert torch.allclose(loss, expected, rtol=1e-4)


def test_hints_see_what_the_layer_gave_not_what_was_written_over_it():
    torch.manual_seed(0)
    sizes = (nn.Linear(4, 6), nn.Linear(6, 3))
    student = nn.Sequential(sizes[0], nn.ReLU(inplace=True), sizes[1])
    teacher = copy.deepcopy(nn.Sequential(sizes[0], nn.ReLU(), sizes[1]))
    with torch.no_grad():
        teacher[0].weight.neg_()
    x = torch.randn(5, 4)
    kd = D.Distiller(
        student, teacher, lambda s, t, y: s.sum() * 0, hints=[D.Hint("0", "0")], example_inputs=x
    )
    assert torch.allclose(kd(x), F.mse_loss(student[0](x), teacher[0](x)))


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 8, 9), (2, 16, 18)),  # a Conv1d
        ((2, 5, 5, 8), (2, 5, 5, 16)),  # channels last
        ((2, 8, 6, 6), (2, 8, 3, 3)),
        ((2, 8, 6, 6), (2, 16, 6, 3)),
        ((2, 7, 8), (2, 7, 12)),  # tokens
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adapters_find_the_channels(shapes, dtype):
    hint = D.Hint("a", "b")
    student, teacher = (torch.randn(s).to(dtype) for s in shapes)
    hint.build(student, teacher)
    assert hint(student, teacher).isfinite()
    channels_last = shapes[0][1:-1] == shapes[1][1:-1]
    kind = nn.Linear if channels_last else nn.modules.conv._ConvNd
    assert hint.adapter is None or isinstance(hint.adapter, kind)


def test_adapters_of_tokens_and_given_ones():
    class Tokens(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed = nn.Linear(3, width)
            self.head = nn.Linear(width, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x).mean(1))

    x = torch.randn(4, 5, 3)
    kd = D.Distiller(Tokens(4), Tokens(6), hints=[D.Hint("embed", "embed")], example_inputs=(x,))
    assert isinstance(kd.hints[0].adapter, nn.Linear) and kd(x, torch.zeros(4).long()).isfinite()
    own = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    kd = D.Distiller(
        Tokens(4), Tokens(6), hints=[D.Hint("embed", "embed", adapter=own)], example_inputs=x
    )
    assert kd.hints[0].adapter is own and kd(x, torch.zeros(4).long()).isfinite()


def test_copies_and_compiled_ones_have_their_hooks():
    x, y = batch()
    kd = D.Distiller(net(2), net(8, seed=1), hints=[D.Hint("mid", "mid")], example_inputs=(x,))
    kd.eval()
    expected = kd(x, y)
    twin = copy.deepcopy(kd)
    assert torch.equal(twin(x, y), expected)
    with torch.no_grad():
        for p in twin.student.parameters():
            p.zero_()
    assert not torch.equal(twin(x, y), expected) and torch.equal(kd(x, y), expected)
    torch._dynamo.reset()
    compiled = torch.compile(kd, fullgraph=True, backend="aot_eager")
    got = compiled(x, y)
    got.backward()
    assert torch.allclose(got, expected)
    compiled_gradient = kd.student.mid.weight.grad.clone()
    kd.zero_grad()
    kd(x, y).backward()
    assert torch.allclose(kd.student.mid.weight.grad, compiled_gradient, atol=1e-6)
    assert kd.detach() is kd.student
    assert not kd.student.mid._forward_hooks and not kd._teachers[0].model.mid._forward_hooks


# -- with quantization and pruning


def test_a_float_model_teaches_its_quantized_copy():
    model, (x, _) = net(8, seed=1).eval(), batch()
    qat = bp.prepare(model, example_inputs=(x,))
    bp.calibrate(qat, data=[x], progress=False)
    kd = D.Distiller(qat, teacher=model, hints=[D.Hint("mid", "mid")], example_inputs=(x,))
    assert kd.hints[0].adapter is None
    losses = trained(kd, 4)
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    pruner = bp.prune.Pruner(qat, bp.prune.Schedule.one_shot(0.5))
    trained(kd, 2)
    assert pruner.pruned() > 0
    pruner.finalize()
    assert kd.detach() is qat


# -- cached teachers


class Counting(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.rows = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.inner(x)


@pytest.mark.parametrize("top_k", [None, 3, 50])
def test_a_cache_asks_the_teacher_once(tmp_path, top_k):
    x, y = batch()
    teacher = Counting(net(8, seed=1))
    cache = lambda **o: D.TeacherCache(tmp_path, 20, top_k=top_k, dtype=torch.float32, **o)  # noqa: E731
    kd = D.Distiller(net(2), teacher, D.SoftTarget(), cache=cache())
    kd.eval()
    index = torch.tensor([4, 0, 19, 7, 8, 2])
    first = kd(x, y, index=index)
    assert teacher.rows == 6
    assert torch.equal(kd(x, y, index=index), first) and teacher.rows == 6
    if top_k != 3:
        assert torch.allclose(first, D.Distiller(kd.student, net(8, seed=1))(x, y), rtol=1e-4)
    else:
        zt = net(8, seed=1).eval()(x)
        expected = bp.functional.distill_loss(
            kd.student(x), *zt.topk(3, -1)[:1], y,
            teacher_indices=zt.topk(3, -1)[1], teacher_logsumexp=(zt / 4).logsumexp(-1),
        )  # fmt: skip
        assert torch.allclose(first, expected, rtol=1e-4)
    # Only missing samples are computed. Another augmentation is another sample.
    kd(x, y, index=torch.tensor([4, 0, 19, 7, 8, 3]))
    assert teacher.rows == 7
    kd(x, y, index=index, seed=5)
    assert teacher.rows == 13
    # Another process continues, with or without the teacher.
    again = D.Distiller(kd.student, None, D.SoftTarget(), cache=cache())
    assert torch.equal(again(x, y, index=index), first)
    with pytest.raises(KeyError, match="sample 1 is not there for seed 0"):
        again(x, y, index=torch.tensor([1, 0, 19, 7, 8, 2]))
    # Damaged rows count as missing.
    path = tmp_path / "0.values"
    data = bytearray(path.read_bytes())
    data[4 * (10 if top_k != 3 else 3) * 4 + 1] ^= 255  # a byte of sample 4
    path.write_bytes(bytes(data))
    fresh = cache()
    fresh.open(teacher)
    assert fresh.missing(index).tolist() == [True, False, False, False, False, False]
    repaired = D.Distiller(kd.student, teacher, D.SoftTarget(), cache=cache())
    rows = teacher.rows
    assert torch.equal(repaired(x, y, index=index), first) and teacher.rows == rows + 1


def test_a_cache_of_something_else_is_refused(tmp_path):
    x, y = batch()
    teacher = net(8, seed=1)
    kd = D.Distiller(net(2), teacher, cache=D.TeacherCache(tmp_path, 20, top_k=3))
    kd(x, y, index=torch.arange(6))
    with pytest.raises(ValueError, match="is of another teacher"):
        D.Distiller(net(2), net(8, seed=2), cache=D.TeacherCache(tmp_path, 20, top_k=3))
    for options, message in (
        (dict(samples=21, top_k=3), "made with samples 20, not 21"),
        (dict(samples=20), "made with top_k 3, not None"),
        (dict(samples=20, top_k=3, temperature=2.0), "made with temperature 4.0, not 2.0"),
    ):
        with pytest.raises(ValueError, match=message):
            D.Distiller(net(2), teacher, cache=D.TeacherCache(tmp_path, **options))
    other = D.Distiller(
        net(2), teacher, D.SoftTarget(2.0), cache=D.TeacherCache(tmp_path, 20, top_k=3)
    )
    with pytest.raises(ValueError, match="for temperature 4, the loss has 2"):
        other(x, y, index=torch.arange(6))
    wrapped = D.Sum([(1.0, D.SoftTarget(2.0))])
    other = D.Distiller(net(2), teacher, wrapped, cache=D.TeacherCache(tmp_path, 20, top_k=3))
    with pytest.raises(ValueError, match="for temperature 4, the loss has 2"):
        other(x, y, index=torch.arange(6))
    with pytest.raises(ValueError, match="a cache needs index="):
        kd(x, y)
    with pytest.raises(IndexError, match="samples must be from 0 to 19, got 15 to 20"):
        kd(x, y, index=torch.arange(15, 21))
    dense = D.Distiller(net(2), teacher, D.DKD(), cache=D.TeacherCache(tmp_path, 20, top_k=3))
    with pytest.raises(ValueError, match="needs all of the teacher's logits"):
        dense(x, y, index=torch.arange(6))
    with pytest.raises(ValueError, match="holds no cache, and there is no teacher"):
        D.Distiller(net(2), None, cache=D.TeacherCache(tmp_path / "none", 20))


def test_a_cache_takes_rows_of_what_has_rows(tmp_path):
    class Weighted(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.inner = nn.Linear(4, 3)

        def forward(self, x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
            return self.inner(x * w.mean()) * scale

    x, w, y = torch.randn(3, 4), torch.arange(8.0), torch.tensor([0, 1, 2])
    inputs = (x, w, torch.tensor(1e5))  # too large for fp16
    cache = D.TeacherCache(tmp_path, 9)
    kd = D.Distiller(Weighted(0), Weighted(1), cache=cache)
    assert kd(inputs, y, index=torch.arange(3)).isfinite()
    cache = D.TeacherCache(tmp_path / "wide", 9, dtype=torch.float32)
    kd = D.Distiller(Weighted(0), Weighted(1), cache=cache)
    expected = D.Distiller(Weighted(0), Weighted(1))(inputs, y)
    assert torch.allclose(kd(inputs, y, index=torch.arange(3)), expected)
    heads = type("Heads", (nn.Module,), {"forward": lambda self, x: {"a": x}})()
    kd = D.Distiller(net(2), heads, cache=D.TeacherCache(tmp_path / "dict", 9))
    with pytest.raises(TypeError, match="holds one tensor of logits, and the teacher gave dict"):
        kd(*batch(), index=torch.arange(6))


def test_fingerprints():
    a, b = net(2), net(2)
    assert fingerprint(a) == fingerprint(b) != fingerprint(net(2, seed=1))
    with torch.no_grad():
        b.head.weight[3, 1] = torch.nextafter(b.head.weight[3, 1], torch.tensor(9.0))
    assert fingerprint(a) != fingerprint(b)


# -- smaller students


def test_a_student_of_less_width():
    teacher, x = net(8, seed=1), batch()[0]
    before = copy.deepcopy(teacher.state_dict())
    student = D.shrink_student(teacher, example_inputs=(x,), width=0.25)
    assert type(student) is Net and student.stem.weight.shape == (2, 1, 3, 3)
    assert torch.equal(student.mid.weight, teacher.mid.weight[:4, :2])
    assert all(torch.equal(v, before[n]) for n, v in teacher.state_dict().items())
    assert D.Distiller(student, teacher)(*batch()).isfinite()
    for options, message in (
        (dict(width=0.0), "width must be above 0"),
        (dict(depth=1.5), "depth must be above 0 and at most 1"),
        (dict(), "give a width or a depth below 1"),
    ):
        with pytest.raises(ValueError, match=message):
            D.shrink_student(teacher, example_inputs=x, **options)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x))


def deep() -> nn.Sequential:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())  # the same shape, but without an addition
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), Block(4), plain, Block(4), Block(4), Block(4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10),
    )  # fmt: skip


def kinds(model: nn.Module) -> str:
    return " ".join(type(m).__name__ for m in model)


def test_a_student_of_less_depth():
    teacher, x = deep(), batch()[0]
    student = D.shrink_student(teacher, example_inputs=x, depth=0.5)
    tail = "AdaptiveAvgPool2d Flatten Linear"
    assert kinds(student) == f"Conv2d Block Sequential Identity Block Identity {tail}"
    assert torch.equal(student[1].conv.weight, teacher[1].conv.weight)
    both = D.shrink_student(teacher, example_inputs=x, depth=0.25, width=0.5)
    assert both[4].conv.weight.shape == (2, 2, 3, 3) and both(x).shape == (6, 10)
    kept = bp.prune.drop_layers(teacher, example_inputs=x, sparsity=1.0, ignore=["4"])
    assert kinds(kept) == f"Conv2d Identity Sequential Identity Block Identity {tail}"
    with pytest.raises(ValueError, match="ignore '2' matches no block that may go"):
        bp.prune.drop_layers(teacher, example_inputs=x, sparsity=0.5, ignore=["2"])
    with pytest.raises(bp.Unsupported, match="no residual block that may go"):
        bp.prune.drop_layers(net(), example_inputs=x, sparsity=0.5)
    with pytest.raises(ValueError, match="sparsity must be from 0 to 1"):
        bp.prune.drop_layers(teacher, example_inputs=x, sparsity=2.0)

    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(Block(4), Block(4))

        def forward(self, x: Tensor) -> Tensor:
            return x + 0.2 * self.body(x)

    class Position(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.ones(1, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.p

    stem = nn.Conv2d(1, 4, 1)
    nested = nn.Sequential(stem, Position(), Nested(), Nested(), nn.Flatten(), nn.Linear(256, 2))
    small = bp.prune.drop_layers(nested, example_inputs=x, sparsity=0.5)
    assert kinds(small) == "Conv2d Position Nested Identity Flatten Linear"
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2)
    with pytest.raises(bp.Unsupported, match="no residual block that may go"):
        bp.prune.drop_layers(encoder, example_inputs=torch.randn(3, 2, 8), sparsity=0.5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "regnet_y_400mf"])
def test_public_networks(name):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    teacher = getattr(torchvision.models, name)(num_classes=10).eval()
    x = torch.randn(2, 3, 64, 64)
    student = D.shrink_student(teacher, example_inputs=(x,), width=0.5, depth=0.5)
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    assert count(student) < 0.3 * count(teacher)
    D.Distiller(student, teacher)(x, torch.tensor([1, 2])).backward()


# -- wrong use


def test_errors():
    x, _ = batch()
    student, teacher = net(2), net(8, seed=1)
    hint = lambda *names: dict(hints=[D.Hint(*names)], example_inputs=(x,))  # noqa: E731
    for make, message in (
        (lambda: D.Distiller(student, None), "give a teacher, or a cache"),
        (lambda: D.Distiller(student, student), "shares stem.weight with the student"),
        (lambda: D.Distiller(student, teacher, **hint("midd", "mid")), "'midd'; near matches: mid"),
        (lambda: D.Distiller(student, teacher, **hint("mid", "mod")), "teacher has no layer 'mod'"),
        (lambda: D.Distiller(student, teacher, hints=[D.Hint("mid", "mid")]), "example_inputs="),
        (lambda: D.Distiller(student, teacher, **hint("mid", "head")), "have the same dimensions"),
        (lambda: D.Distiller(torch.compile(student), teacher, **hint("mid", "mid")), "compiled"),
        (lambda: D.Distiller(student, teacher, microbatch=0), "microbatch must be 1 or more"),
        (lambda: D.SoftTarget(temperature=0.0), "temperature must be above 0, got 0"),
        (lambda: D.SoftTarget(alpha=2.0), "alpha must be from 0 to 1, got 2"),
        (lambda: D.HardTarget("ranking"), "kind must be classification or regression"),
        (lambda: D.HardTarget(bounded=True), "bounded needs kind='regression'"),
        (lambda: D.DKD()(x[:, 0, 0], x[:, 0, 0]), "it needs a target"),
        (lambda: D.Hint("a", "b", adapter="linear"), "adapter must be auto, None or a module"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make()
    assert not student.mid._forward_hooks  # no hook is left behind
    with pytest.raises(TypeError, match="hints must be Hint"):
        D.Distiller(student, teacher, hints=[nn.ReLU()], example_inputs=x)


PROCESSES = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
import bitpare as bp, networks
from processes import leave
from bitpare import distill as D
rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=2)
torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.randn(4, 1, 8, 8)
kd = D.Distiller(networks.LeNet(), networks.LeNet(), hints=[D.Hint("conv1", "conv1")],
                 example_inputs=(x,))
wrapped = torch.nn.parallel.DistributedDataParallel(kd)
optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05, momentum=0.9)
for step in range(3):
    torch.manual_seed(10 * step + rank)
    optimizer.zero_grad()
    wrapped(torch.randn(4, 1, 8, 8), torch.randint(0, 10, (4,))).backward()
    optimizer.step()
for value in kd.student.state_dict().values():
    values = [torch.empty_like(value) for _ in range(2)]
    dist.all_gather(values, value)
    assert torch.equal(*values)
print("alike", flush=True)
leave()
"""


def test_two_processes(tmp_path):
    run_two(PROCESSES, tmp_path)
