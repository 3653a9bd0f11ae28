"""Test pruning during training: schedules, exact zeros, resuming, and errors."""

import copy
import io
import math
import warnings

import bitpare as bp
import networks
import pytest
import torch
import torch.nn.functional as F
from bitpare.nn.learned import LearnedQuantizer
from bitpare.nn.quantizer import Quantizer
from bitpare.nn.ranges import RangeQuantizer
from bitpare.prune import Pruner, Regrowth, Schedule
from processes import run_two
from torch import Tensor, nn

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=False),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
}


def batch(step: int, shape=(4, 1, 8, 8)) -> tuple[Tensor, Tensor]:
    torch.manual_seed(100 + step)
    return torch.randn(shape), torch.randint(0, 10, (shape[0],))


def train(model, optimizer, steps, *, between=lambda: None) -> None:
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        between()
        optimizer.step()


def lenet() -> nn.Module:
    torch.manual_seed(0)
    return networks.LeNet()


def is_positive_zero(values: Tensor) -> bool:
    return bool((values == 0).all()) and not bool(torch.signbit(values).any())


# -- schedules


def test_schedules_by_hand():
    assert Schedule.one_shot(0.5, at=3).events == ((3, 0.5),)
    assert Schedule.linear(0.8, begin=2, end=6, every=2).events == ((4, 0.4), (6, 0.8))
    cubic = Schedule.cubic(0.8, begin=0, end=4, every=1)
    assert cubic.sparsity_at(0) == 0 and cubic.sparsity_at(99) == 0.8 == cubic.sparsity
    assert cubic.sparsity_at(1) == pytest.approx(0.8 - 0.8 * 0.75**3)
    exponential = Schedule.exponential(0.75, begin=0, end=2, every=1)
    assert exponential.sparsity_at(1) == pytest.approx(0.5)
    iterative = Schedule.iterative(0.75, rounds=2, every=10, begin=5, rewind=3)
    assert iterative.events == ((15, pytest.approx(0.5)), (25, 0.75)) and iterative.rewind == 3
    levels = Schedule.levels({20: 0.6, 10: 0.3})
    assert [levels.sparsity_at(s) for s in (9, 10, 19, 20)] == [0, 0.3, 0.3, 0.6]
    assert Schedule.linear(0.5, begin=0, end=5, every=2).last == 5
    assert str(levels) == "step 10: 30.0 %, step 20: 60.0 %"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Schedule.one_shot(1.0), r"sparsity must be in \[0, 1\), got 1.0"),
        (lambda: Schedule.cubic(1.5, end=4), r"sparsity must be in \[0, 1\), got 1.5"),
        (lambda: Schedule.linear(0.5, begin=5, end=5), "begin must be before end"),
        (lambda: Schedule.linear(0.5, end=5, every=0), "every 1 or more"),
        (lambda: Schedule.iterative(0.5, rounds=0, every=1), "rounds and every must be 1 or more"),
        (lambda: Schedule.iterative(0.5, rounds=1, every=2, rewind=9), "rewind must be a step up"),
        (lambda: Schedule(()), "give at least one step"),
        (lambda: Schedule.levels({-1: 0.5}), "levels must be 0 or more"),
        (lambda: Regrowth("grow", [1]), "kind must be rigl or set"),
        (lambda: Regrowth("set", []), "when must hold times after step 0"),
        (lambda: Regrowth("set", [1], fraction=1), r"fraction must be in \(0, 1\)"),
    ],
)
def test_schedule_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- exact zeros


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_is_zero_through_any_optimizer(name):
    model = lenet()
    optimizer = OPTIMIZERS[name](model.parameters())
    schedule = Schedule.cubic(0.9, begin=0, end=8, every=2)
    pruner = Pruner(model, schedule).attach(optimizer)
    total = sum(t.value.numel() for t in pruner.targets)
    before = {t.name: pruner.kept(t.name) for t in pruner.targets}

    def gradients_are_masked():  # before any clipping
        for target in pruner.targets:
            assert is_positive_zero(target.value.grad[~pruner.kept(target.name)])

    for step in range(12):
        train(model, optimizer, [step], between=gradients_are_masked)
        assert pruner.step_count == step + 1
        assert pruner.pruned() == int(schedule.sparsity_at(step + 1) * total + 1e-6)
        for target in pruner.targets:
            kept = pruner.kept(target.name)
            assert not (kept & ~before[target.name]).any()  # pruned weights stay pruned
            before[target.name] = kept
            assert is_positive_zero(target.value[~kept])
            for value in optimizer.state[target.value].values():
                if isinstance(value, Tensor) and value.shape == kept.shape and name != "rprop":
                    assert is_positive_zero(value[~kept])
    assert any((t.value[pruner.kept(t.name)] != 0).all() for t in pruner.targets)


def test_the_least_magnitudes_go():
    model = lenet()
    weights = torch.cat([t.flatten() for n, t in model.named_parameters() if t.dim() > 1]).abs()
    threshold = weights.sort().values[int(0.7 * len(weights))]
    pruner = Pruner(model, Schedule.one_shot(0.7))
    for target in pruner.targets:
        kept = pruner.kept(target.name)
        assert (target.value[kept].abs() >= threshold).all()
    assert pruner.pruned() == int(0.7 * len(weights))


def test_negative_zeros_and_nan_are_cleared():
    model = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-0.0, 1, 2, 3], [4, 5, 6, 7.0]]))
    pruner = Pruner(model, Schedule.one_shot(0.25)).attach(torch.optim.SGD(model.parameters(), 0.1))
    assert is_positive_zero(model.weight[0, :2])
    model.weight.grad = torch.full((2, 4), -1.0)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    pruner._optimizer.step()
    assert is_positive_zero(model.weight[0, :2])


def test_weights_that_an_optimizer_spreads_stay_zero():
    """Test an update that is not elementwise, such as orthogonalised momentum."""

    class Spread(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data -= 0.1 * (p.grad.mean() + 1)

    model = lenet()
    optimizer = Spread(model.parameters(), lr=1.0)
    pruner = Pruner(model, Schedule.one_shot(0.5)).attach(optimizer)
    train(model, optimizer, range(2))
    for target in pruner.targets:
        assert is_positive_zero(target.value[~pruner.kept(target.name)])


def test_gradient_accumulation():
    model, other = lenet(), lenet()
    pruner = Pruner(model, Schedule.one_shot(0.5))
    for m in (model, other):
        for i in range(3):
            x, y = batch(i)
            F.cross_entropy(m(x), y).backward() if m is model else None
    with torch.no_grad():
        for p, q in zip(other.parameters(), model.parameters(), strict=True):
            p.copy_(q)
    for i in range(3):
        x, y = batch(i)
        F.cross_entropy(other(x), y).backward()
    expected = dict(other.named_parameters())
    for target in pruner.targets:
        kept = pruner.kept(target.name)
        dense = expected[target.name].grad
        assert torch.allclose(target.value.grad, torch.where(kept, dense, 0.0), atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_skips_do_not_count(fused):
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=fused)
    pruner = Pruner(model, Schedule.levels({2: 0.3, 3: 0.6})).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    seen = []
    for step in range(6):
        x, y = batch(step)
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        if step in (1, 2):
            model.fc2.bias.grad[0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        seen.append(round(pruner.pruned() / sum(t.value.numel() for t in pruner.targets), 2))
    assert seen == [0, 0, 0, 0.3, 0.6, 0.6] and pruner.step_count == 4


# -- options


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("mode", ["hard", "ste"])
@pytest.mark.parametrize("pattern", ["element", "2:4", "block4x1", "filter"])
def test_patterns_and_modes(pattern, mode, prepared):
    model = lenet()
    if prepared:
        model = bp.prepare(model, example_inputs=(batch(0)[0],))
        bp.calibrate(model, data=[batch(0)[0]], progress=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = Schedule.one_shot(0.5, at=1)
    pruner = Pruner(model, schedule, pattern=pattern, mode=mode, scope="local").attach(optimizer)
    train(model, optimizer, range(3))
    names = {t.name for t in pruner.targets} | set(pruner.dense)
    assert names == {f"{n}.weight" for n in ("conv1", "conv2", "fc1", "fc2")}
    for target in pruner.targets:
        kept = pruner.kept(target.name)
        assert kept.float().mean() == pytest.approx(0.5, abs=0.02) or len(kept[0]) == 1
        if pattern == "2:4":
            groups = kept.reshape(kept.shape[0], -1, 4, kept[0, 0].numel())
            assert (groups.sum(2) == 2).all()
        gone = target.value[~kept]
        assert is_positive_zero(gone) if mode == "hard" else (gone != 0).sum() >= len(gone) / 2


def test_the_forward_pass_sees_masked_weights_that_live_on():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
    model.append(nn.Unflatten(1, (10, 1, 1))).append(nn.ConvTranspose2d(10, 2, 2))
    plain, (x, _) = copy.deepcopy(model), batch(0)
    kinds, names = [type(m) for m in model.modules()], list(model.state_dict())
    pruner = Pruner(model, Schedule.one_shot(0.5), mode="ste")
    for target in pruner.targets:
        plain.get_parameter(target.name).data.mul_(pruner.kept(target.name))
    y = model(x)
    assert torch.equal(y, plain(x))
    assert all(isinstance(m, k) for m, k in zip(model.modules(), kinds, strict=True))
    assert list(model.state_dict()) == names
    y.square().sum().backward()
    plain(x).square().sum().backward()
    for target in pruner.targets:  # masked weights get gradients
        assert torch.equal(target.value.grad, plain.get_parameter(target.name).grad)
    copied = copy.deepcopy(model)
    held = io.BytesIO()
    torch.save(model, held)
    held.seek(0)
    assert torch.equal(copied(x), y)
    assert torch.equal(torch.load(held, weights_only=False)(x), y)
    dense = {t.name: t.value.detach().clone() for t in pruner.targets}
    pruner.restore()
    assert [type(m) for m in model.modules()] == kinds and not torch.equal(model(x), y)
    assert all(torch.equal(t.value, dense[t.name]) for t in pruner.targets)


def test_finalize_bakes_and_lets_go():
    for mode in ("hard", "ste"):
        model, (x, _) = lenet(), batch(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        pruner = Pruner(model, Schedule.one_shot(0.5), mode=mode).attach(optimizer)
        y = model(x)
        assert pruner.finalize() is model and torch.equal(model(x), y)
        zeros = {t.name: t.value == 0 for t in pruner.targets}
        assert all(torch.equal(~pruner.kept(name), zero) for name, zero in zeros.items())
        train(model, optimizer, [0])  # the weights are free again
        assert any((t.value[zeros[t.name]] != 0).any() for t in pruner.targets)
        Pruner(model, Schedule.one_shot(0.1))
    with pytest.raises(ValueError, match="only mode='ste' keeps them"):
        Pruner(lenet(), Schedule.one_shot(0.5)).restore()


def test_movement_brings_weights_back():
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = Schedule.levels({2: 0.5, 6: 0.5})
    pruner = Pruner(model, schedule, criterion="movement", mode="ste").attach(optimizer)
    train(model, optimizer, range(4))
    first = {t.name: pruner.kept(t.name) for t in pruner.targets}
    train(model, optimizer, range(4, 8))
    assert any((pruner.kept(n) & ~kept).any() for n, kept in first.items())


def test_taylor_scores_are_sums_of_squared_changes():
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = Pruner(model, Schedule.one_shot(0.5, at=3), criterion="taylor", scope="local")
    pruner.attach(optimizer)
    sums = {t.name: torch.zeros_like(t.value) for t in pruner.targets}
    other = lenet()
    for step in range(3):
        x, y = batch(step)
        other.zero_grad()
        F.cross_entropy(other(x), y).backward()
        for n, p in other.named_parameters():
            if n in sums:
                sums[n] += (p.detach() * p.grad) ** 2
    train(model, optimizer, range(3))
    for name, score in sums.items():
        kept = pruner.kept(name)
        assert score[kept].min() >= score[~kept].max() * (1 - 1e-5)


def test_scopes():
    local = Pruner(lenet(), Schedule.one_shot(0.5), scope="local")
    assert all(abs(s - 0.5) < 0.02 for s in local.sparsity().values())
    some = Pruner(
        lenet(), Schedule.levels({0: 0.4, 9: 0.8}), scope={"conv*": 0.6, "fc1.weight": 0.8}
    )
    found = some.sparsity()
    assert found.keys() == {"conv1.weight", "conv2.weight", "fc1.weight"}
    assert found["conv2.weight"] == pytest.approx(0.3, abs=0.01)
    assert found["fc1.weight"] == pytest.approx(0.4, abs=0.01)
    ignoring = Pruner(lenet(), Schedule.one_shot(0.5), ignore=["conv1", "fc*"])
    assert ignoring.sparsity().keys() == {"conv2.weight"}


def test_criteria():
    model = lenet()
    pruner = Pruner(model, Schedule.one_shot(0.5), criterion=lambda name, w: -w)
    for target in pruner.targets:
        kept, w = pruner.kept(target.name), target.value
        assert (w[kept] != 0).all()
    first = Pruner(lenet(), Schedule.one_shot(0.5), criterion="random", seed=1)
    again = Pruner(lenet(), Schedule.one_shot(0.5), criterion="random", seed=1)
    third = Pruner(lenet(), Schedule.one_shot(0.5), criterion="random", seed=2)
    assert torch.equal(first.masks["fc1.weight"], again.masks["fc1.weight"])
    assert not torch.equal(first.masks["fc1.weight"], third.masks["fc1.weight"])
    rows = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1], [9.0, 9.0]])
    layer = nn.Linear(2, 4, bias=False)
    layer.weight.data.copy_(rows)  # the middle filter is nearest to the others
    Pruner(layer, Schedule.one_shot(0.25), criterion="fpgm", pattern="filter")
    assert (layer.weight[3] == 9).all() and (layer.weight[1, 0] == 0.1 or layer.weight[2, 1] == 0.1)


def test_tied_weights_count_once_and_recurrent_ones_are_pruned():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.r = nn.Linear(8, 8), nn.Linear(8, 8), nn.LSTM(8, 4)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.r(self.b(self.a(x)))[0]

    for mode in ("hard", "ste"):
        model = Tied()
        pruner = Pruner(model, Schedule.one_shot(0.5), mode=mode)
        names = [t.name for t in pruner.targets]
        assert names == ["a.weight", "r.weight_ih_l0", "r.weight_hh_l0"]
        assert pruner.pruned() == (64 + 128 + 64) // 2
        y = model(torch.randn(3, 8))
        pruner.finalize()
        assert y.shape == (3, 4)


def test_rewinding():
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = Pruner(model, Schedule.iterative(0.75, rounds=2, every=3, rewind=1)).attach(optimizer)
    train(model, optimizer, [0])
    early = {t.name: t.value.detach().clone() for t in pruner.targets}
    train(model, optimizer, range(1, 3))
    for target in pruner.targets:
        kept = pruner.kept(target.name)
        assert torch.equal(target.value, torch.where(kept, early[target.name], 0.0))
    assert not optimizer.state  # momentum starts again
    assert pruner.pruned() == int(0.5 * sum(t.value.numel() for t in pruner.targets))


@pytest.mark.parametrize("kind", ["rigl", "set"])
def test_regrowth(kind):
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = Pruner(
        model, Schedule.one_shot(0.6), regrow=Regrowth(kind, [2, 4], fraction=0.4), scope="local"
    ).attach(optimizer)
    train(model, optimizer, [0])
    before = {t.name: pruner.kept(t.name) for t in pruner.targets}
    x, y = batch(1)
    probe = copy.deepcopy(model)
    F.cross_entropy(probe(x), y).backward()
    dense = {n: p.grad.abs() for n, p in probe.named_parameters()}
    train(model, optimizer, [1])
    moved = 0
    for target in pruner.targets:
        kept, was = pruner.kept(target.name), before[target.name]
        assert int(kept.sum()) == int(was.sum())
        new, gone = kept & ~was, was & ~kept
        moved += int(new.sum())
        assert is_positive_zero(target.value[new]) and is_positive_zero(target.value[gone])
        if kind == "rigl" and new.any():
            score = dense[target.name]
            assert score[new].min() >= score[~was & ~new].max() * (1 - 1e-5)
    assert moved > 100
    train(model, optimizer, range(2, 4))
    assert all((t.value[pruner.kept(t.name)] != 0).any() for t in pruner.targets)


# -- the hook on gradients


def test_gradients_are_masked_before_anybody_sees_them():
    model = nn.Linear(6, 4)
    pruner = Pruner(model, Schedule.one_shot(0.5))
    kept = pruner.kept("weight")
    x = torch.randn(3, 6)
    dense = 2 * (F.linear(x, model.weight, model.bias).T @ x).detach()
    wanted = torch.where(kept, dense, 0.0)
    # Compute gradients by hand, twice, in parts, and of second order.
    (found,) = torch.autograd.grad(model(x).square().sum(), [model.weight])
    assert torch.allclose(found, wanted) and is_positive_zero(found[~kept])
    (found,) = torch.autograd.grad(model(x).square().sum(), [model.weight], create_graph=True)
    assert torch.allclose(found, wanted)
    (second,) = torch.autograd.grad(found.sum(), [model.weight])
    assert is_positive_zero(second[~kept]) and second[kept].any()
    for part in x.split(1):
        model(part).square().sum().backward()
    assert torch.allclose(model.weight.grad, wanted) and is_positive_zero(model.weight.grad[~kept])
    # NaN and infinity become 0 where pruned.
    model.zero_grad()
    (model(x) * torch.tensor([torch.nan, torch.inf, 1, 1])).sum().backward()
    assert is_positive_zero(model.weight.grad[~kept])


def test_a_gradient_that_somebody_holds_is_not_written_over():
    model = nn.Linear(6, 4)
    held = torch.ones(4, 6)
    pruner = Pruner(model, Schedule.one_shot(0.5))
    model.weight.backward(held)
    assert (held == 1).all() and int((model.weight.grad == 0).sum()) == 12
    seen = []
    model.weight.register_hook(lambda gradient: seen.append(gradient))
    model(torch.ones(1, 6)).sum().backward()
    assert (seen[0] == 1).all() and is_positive_zero(model.weight.grad[~pruner.kept("weight")])
    pruner.finalize()
    model.zero_grad()
    model.weight.backward(held)
    assert (model.weight.grad == 1).all()  # the hook is removed
    model.weight.grad = None
    Pruner(model, Schedule.one_shot(0.75))
    model.weight.backward(held)
    assert int((model.weight.grad == 0).sum()) == 18


def test_lamp():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False))
    with torch.no_grad():
        model[0].weight.mul_(1e-3)  # plain magnitudes would prune all of it
    pruner = Pruner(model, Schedule.one_shot(0.9), criterion="lamp")
    scores = []
    for w in (m.weight.detach().double().flatten() for m in model):
        scores += [float(v**2 / (w[w.abs() >= v.abs()] ** 2).sum()) for v in w]
    cut = sorted(scores)[int(0.9 * 800) - 1]
    found = torch.cat([pruner.kept(t.name).flatten() for t in pruner.targets])
    assert pruner.pruned() == 720 and not found[torch.tensor(scores) <= cut].any()
    assert all(0.8 < share < 0.95 for share in pruner.sparsity().values())


# -- resume


RUNS = {
    "l1": dict(),
    "taylor": dict(criterion="taylor"),
    "random": dict(criterion="random", scope="local"),
    "movement": dict(criterion="movement", mode="ste"),
    "ste": dict(mode="ste", pattern="filter"),
    "regrow": dict(regrow=lambda: Regrowth("rigl", [3, 6])),
    "rewind": dict(schedule=Schedule.iterative(0.8, rounds=3, every=2, rewind=1)),
}


def a_run(name: str, prepared: bool):
    options = dict(RUNS[name])
    schedule = options.pop("schedule", Schedule.cubic(0.8, begin=1, end=7, every=2))
    options = {k: v() if k == "regrow" else v for k, v in options.items()}
    model = lenet()
    if prepared:
        model = bp.prepare(model, example_inputs=(batch(0)[0],))
        bp.calibrate(model, data=[batch(0)[0]], progress=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    return model, optimizer, Pruner(model, schedule, **options).attach(optimizer)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("name", RUNS)
def test_resume_is_exact(name, prepared):
    whole = a_run(name, prepared)
    train(*whole[:2], range(9))
    for stop in (1, 3, 4, 6):
        first = a_run(name, prepared)
        train(*first[:2], range(stop))
        held = io.BytesIO()
        torch.save([part.state_dict() for part in first], held)
        held.seek(0)
        second = a_run(name, prepared)
        for part, state in zip(second, torch.load(held), strict=True):
            part.load_state_dict(state)
        train(*second[:2], range(stop, 9))
        for (n, p), q in zip(whole[0].named_parameters(), second[0].parameters(), strict=True):
            assert torch.equal(p, q), (stop, n)
        assert all(torch.equal(m, second[2].masks[n]) for n, m in whole[2].masks.items())


def test_zeros_that_are_there_stay():
    pruned = lenet()
    Pruner(pruned, Schedule.one_shot(0.7)).finalize()
    optimizer = torch.optim.Adam(pruned.parameters())
    pruner = Pruner(pruned).attach(optimizer)
    zeros = {t.name: t.value == 0 for t in pruner.targets}
    train(pruned, optimizer, range(3))
    assert all(torch.equal(t.value == 0, zeros[t.name]) for t in pruner.targets)


# -- with quantization


CONFIGS = {
    "int8": bp.QConfig.int8(),
    "int4": bp.QConfig.int4(),
    "binary": bp.QConfig.binary_weights(),
    "dorefa": bp.QConfig(weight=bp.QSpec(bits=2, learn="dorefa"), activation=bp.QSpec(bits=8)),
    "sigma": bp.QConfig(weight=bp.QSpec(bits=4, range="sigma"), activation=bp.QSpec(bits=8)),
}


def zero_sets_agree(model: nn.Module, pruner: Pruner) -> None:
    for target in pruner.targets:
        assert target.quantizer is not None
        value = target.quantizer(target.value)
        gone = ~pruner.kept(target.name)
        assert is_positive_zero(value[gone])
        q = target.quantizer
        if isinstance(q, RangeQuantizer | LearnedQuantizer):  # and the integers of convert
            weight = bp.functional.apply_mask(target.value.detach(), pruner.masks[target.name])
            scale = q.scale.detach()
            codes = bp.functional.quantize(
                weight,
                scale if q.grid.axis is not None else scale.reshape(()),
                quant_min=q.grid.quant_min,
                quant_max=q.grid.quant_max,
                axis=q.grid.axis,
            )
            assert not codes[gone].any()
            assert torch.equal(codes == 0, value.detach() == 0)


@pytest.mark.parametrize("mode", ["hard", "ste"])
@pytest.mark.parametrize("name", CONFIGS)
def test_prepare_then_prune(name, mode):
    x, y = batch(0)
    qat = bp.prepare(lenet(), CONFIGS[name], example_inputs=(x,))
    bp.calibrate(qat, data=[x], progress=False)
    optimizer = torch.optim.SGD(bp.param_groups(qat), lr=0.02, momentum=0.9)
    pruner = Pruner(qat, Schedule.cubic(0.6, begin=0, end=4), mode=mode).attach(optimizer)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = F.cross_entropy(qat(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        zero_sets_agree(qat, pruner)
    assert losses[-1] < losses[0]
    expected = qat.eval()(x)
    pruner.finalize()
    if name not in ("binary", "dorefa"):
        assert torch.allclose(qat(x), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_prune_then_prepare(name):
    model, (x, _) = lenet(), batch(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    first = Pruner(model, Schedule.one_shot(0.7)).attach(optimizer)
    train(model, optimizer, range(2))
    qat = bp.prepare(model, CONFIGS[name], example_inputs=(x,))
    bp.calibrate(qat, data=[x], progress=False)
    optimizer = torch.optim.SGD(bp.param_groups(qat), lr=0.05, momentum=0.9)
    second = Pruner(qat).attach(optimizer)
    assert all(torch.equal(first.masks[n], m) for n, m in second.masks.items())
    train(qat, optimizer, range(3))
    zero_sets_agree(qat, second)


def test_statistics_are_those_of_kept_weights():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(16, 4, bias=False))
    x = torch.randn(2, 16)
    binary = bp.QConfig(weight=bp.QSpec(bits=1), activation=bp.FLOAT)
    qat = bp.prepare(layer, binary, example_inputs=(x,))
    pruner = Pruner(qat, Schedule.one_shot(0.5))
    kept, weight = pruner.kept("0.weight"), qat[0].weight.detach()
    value = qat[0].bp_weight(qat[0].weight)
    scale = (weight.abs() * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True)
    if value.detach().abs().amax() == value.detach().abs()[kept].amin():  # one scale for the tensor
        scale = (weight.abs() * kept).sum() / kept.sum()
    assert torch.allclose(value.detach().abs(), scale * kept, atol=1e-6)
    pruner.finalize()
    learned = bp.QConfig(weight=bp.QSpec(bits=4, learn="lsq"), activation=bp.FLOAT)
    pruned = nn.Sequential(nn.Linear(16, 4, bias=False))
    pruned[0].weight.data.copy_(weight)
    dense = copy.deepcopy(pruned)
    dense[0].weight.data[~kept] = weight[kept].abs().mean()
    found = [
        m.scale.detach()
        for model in (pruned, dense)
        for m in bp.prepare(model, learned, example_inputs=(x,)).modules()
        if isinstance(m, Quantizer)
    ]
    assert found[0].numel() == 4 and (found[0] > 0).all()
    mean = (weight.abs() * kept).sum(1) / kept.sum(1)
    assert torch.allclose(found[0], 2 * mean / math.sqrt(7), rtol=1e-4)


# -- other copies, other processes


def test_averages_are_pruned_too():
    model = lenet()
    average = bp.ema(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = Pruner(model, Schedule.one_shot(0.5, at=2)).attach(optimizer)
    train(model, optimizer, range(3), between=lambda: average.update(model))
    pruner.apply_to_(average)
    weights = dict(average.module.named_parameters())
    for target in pruner.targets:
        assert is_positive_zero(weights[target.name][~pruner.kept(target.name)])
    with pytest.raises(ValueError, match=r"the model has no weight conv1\.weight"):
        pruner.apply_to_(nn.Linear(2, 2))


def test_compiled_models_are_pruned():
    model, (x, y) = lenet(), batch(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    compiled = torch.compile(model, backend="aot_eager")
    pruner = Pruner(compiled, Schedule.cubic(0.8, begin=0, end=4)).attach(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
        for target in pruner.targets:
            assert is_positive_zero(target.value.grad[~pruner.kept(target.name)])
        optimizer.step()
    assert pruner.pruned() == int(0.8 * sum(t.value.numel() for t in pruner.targets))


PROCESSES = """
import sys, torch, torch.distributed as dist, torch.nn.functional as F
sys.path.insert(0, sys.argv[1])
import bitpare as bp, networks
from processes import leave
rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=2)
torch.set_num_threads(1)
for criterion in ("l1", "taylor", "random", "movement", "rigl"):
    regrow = bp.prune.Regrowth("rigl", [3, 6], fraction=0.4) if criterion == "rigl" else None
    criterion = "l1" if criterion == "rigl" else criterion
    mode = "ste" if criterion == "movement" else "hard"
    torch.manual_seed(0)
    model = networks.LeNet()
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05, momentum=0.9)
    schedule = bp.prune.Schedule.cubic(0.8, begin=1, end=5)
    pruner = bp.prune.Pruner(wrapped, schedule, criterion=criterion, mode=mode,
                             regrow=regrow).attach(optimizer)
    for step in range(7):
        torch.manual_seed(10 * step + rank)
        optimizer.zero_grad()
        y = torch.randint(0, 10, (4,))
        F.cross_entropy(wrapped(torch.randn(4, 1, 8, 8)), y).backward()
        for t in pruner.targets:
            gone = t.value.grad[~pruner.kept(t.name)]
            assert mode == "ste" or not gone.any()
        optimizer.step()
    for value in [*pruner.masks.values(), *model.state_dict().values()]:
        values = [torch.empty_like(value) for _ in range(2)]
        dist.all_gather(values, value)
        assert torch.equal(*values), criterion
    del wrapped, model, optimizer, pruner
print("alike", flush=True)
leave()
"""


def test_two_processes_share_masks(tmp_path):
    run_two(PROCESSES, tmp_path)


def test_frozen_layers_and_other_types():
    """Check that untrained layers are pruned too, and weights of any floating-point type."""
    for dtype in (torch.float64, torch.bfloat16):
        model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).to(dtype)
        model[0].requires_grad_(False)
        optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9)
        pruner = Pruner(model, Schedule.one_shot(0.5, at=1), scope="local").attach(optimizer)
        for _ in range(2):
            model(torch.randn(3, 8, dtype=dtype)).sum().backward()
            optimizer.step()
        assert (int((model[0].weight == 0).sum()), pruner.pruned()) == (24, 30)
        assert is_positive_zero(model[2].weight[~pruner.kept("2.weight")])


# -- wrong use


def test_errors():
    shot = Schedule.one_shot(0.5)
    for make, message in (
        (lambda m: Pruner(m, shot, criterion="l3"), "criterion must be one of l1, l2"),
        (lambda m: Pruner(m, shot, mode="soft"), "mode must be hard or ste"),
        (lambda m: Pruner(m, shot, scope="layer"), "scope must be global, local or a dict"),
        (lambda m: Pruner(m, shot, scope={"convx*": 0.5}), "'convx\\*' matches no weight; there"),
        (lambda m: Pruner(m, shot, scope={"conv1": 1.0}), r"sparsities of scope must be in \[0, 1"),
        (lambda m: Pruner(m, shot, ignore=["conv9"]), "ignore 'conv9' matches no weight; there"),
        (lambda m: Pruner(m, shot, pattern="5:4"), "Pruner: pattern must be 'element'"),
        (lambda m: Pruner(m, shot, pattern="block64x64"), "fits no weight of the model"),
        (lambda m: Pruner(m, shot, criterion="movement"), "needs mode='ste'"),
        (lambda m: Pruner(m, shot, criterion="fpgm"), "compares filters"),
        (lambda m: Pruner(m, shot, criterion="taylor"), "has seen no gradient before the first"),
        (lambda m: Pruner(nn.ReLU(), shot), "no weight to prune"),
        (lambda m: Pruner(m, shot, criterion=lambda n, w: w[0]), "criterion gave .* scores for"),
    ):
        model = lenet()
        with pytest.raises(ValueError, match=message):
            make(model)
        Pruner(model, shot)  # nothing was left behind
    with pytest.raises(
        TypeError, match=r"schedule must be a bp\.prune\.Schedule or one of .*, got float"
    ):
        Pruner(lenet(), 0.5)
    model = lenet()
    pruner = Pruner(model, shot)
    with pytest.raises(ValueError, match="has a pruner already"):
        Pruner(model, shot)
    with pytest.raises(ValueError, match=r"the optimizer does not own conv1.weight and 3 more"):
        pruner.attach(torch.optim.SGD(lenet().parameters(), 0.1))
    pruner.attach(torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(ValueError, match="attached to an optimizer already"):
        pruner.attach(torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(KeyError, match=r"no weight 'fc9'; there are conv1\.weight"):
        pruner.kept("fc9")
    state = pruner.state_dict()
    other = Pruner(nn.Sequential(nn.Linear(2, 2)), shot)
    with pytest.raises(ValueError, match="the state is of other weights"):
        other.load_state_dict(state)


def test_nan_weights_are_an_error():
    model = lenet()
    model.conv1.weight.data[0] = math.nan
    with pytest.raises(RuntimeError, match=r"scores\[0\] holds NaN"):
        Pruner(model, Schedule.one_shot(0.5))


def test_min_keep_wins_and_says_so_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(UserWarning, match="min_keep=3 keeps more than a sparsity of 0.5"):
        pruner = Pruner(model, Schedule.levels({0: 0.5, 1: 0.6}), min_keep=3).attach(optimizer)
    assert pruner.pruned() == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()


def test_shards_are_refused():
    class Shard(Tensor):
        _local_tensor = None

    model = nn.Linear(4, 4)
    weight = nn.Parameter(torch.randn(4, 4).as_subclass(Shard))
    del model._parameters["weight"]
    model.register_parameter("weight", weight)
    with pytest.raises(bp.Unsupported, match="weight: a shard of a weight cannot be pruned"):
        Pruner(model, Schedule.one_shot(0.5))
