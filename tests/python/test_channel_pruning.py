"""Test channel masks in training, in whole groups, and the removal of the channels at the end."""

import io

import bitpare as bp
import networks
import pytest
import torch
import torch.nn.functional as F
from bitpare.prune import Pruner, Schedule, plan_shrink, shrink
from test_pruner import batch, is_positive_zero
from test_shrink import NETS, X, trained
from torch import nn


def a_run(name: str, **options):
    model = trained(name).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)
    schedule = Schedule.cubic(0.5, begin=0, end=6, every=2)
    pruner = Pruner(model, schedule, pattern="channel", example_inputs=(X,), **options)
    return model, optimizer, pruner.attach(optimizer)


def train(model, optimizer, steps) -> None:
    for step in steps:
        torch.manual_seed(step)
        x = torch.randn(4, 3, 8, 8)
        optimizer.zero_grad()
        y = model(x)
        F.cross_entropy(y, torch.randint(0, y.shape[1], (4,))).backward()
        optimizer.step()


@pytest.mark.parametrize("name", NETS)
def test_masks_grow_and_shrink_removes_them(name):
    model, optimizer, pruner = a_run(name, scope="local")
    for step in range(8):
        train(model, optimizer, [step])
        for target in pruner.targets:
            gone = ~pruner.kept(target.name)
            assert is_positive_zero(target.value[gone])
            assert is_positive_zero(optimizer.state[target.value]["momentum_buffer"][gone])
    for units, mask in zip(pruner.units.groups, pruner.units.masks, strict=True):
        kept = bp.functional.unpack_mask(mask, [len(units)])
        assert int((~kept).sum()) == len(units) // 2
    expected = model.eval()(X)
    plan = plan_shrink(model, example_inputs=X, pruner=pruner)
    small = shrink(model, example_inputs=X, pruner=pruner, optimizer=optimizer)
    found = small(X)
    assert torch.allclose(found, expected, atol=1e-5 * max(1, float(expected.abs().max())))
    assert sum(p.numel() for p in small.parameters()) == plan.sizes["parameters after"]
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in small.parameters()}
    assert not optimizer._optimizer_step_post_hooks  # the pruner has removed its hooks
    train(small.train(), optimizer, range(8, 10))


@pytest.mark.parametrize("name", NETS)
def test_channels_of_zeros_stay_to_make_a_multiple(name):
    model, optimizer, pruner = a_run(name, scope="local")
    train(model, optimizer, range(8))
    expected = model.eval()(X)
    exact = plan_shrink(model, example_inputs=X, pruner=pruner)
    whole = plan_shrink(model, example_inputs=X, pruner=pruner, round_to=3)
    families = zip(pruner.units.groups, pruner.units.masks, strict=True)
    kept = [int(bp.functional.unpack_mask(m, [len(u)]).sum()) for u, m in families]
    stay = [min(-(-k // 3) * 3, len(u)) for k, u in zip(kept, pruner.units.groups, strict=True)]
    assert sum(stay) > sum(kept)
    units = pruner.units
    gone = units.families.limited(units.removed(), 3, 1)
    assert gone < units.removed() and [len(set(u) - gone) for u in units.groups] == stay
    assert exact.sizes["parameters after"] < whole.sizes["parameters after"]
    small = shrink(model, example_inputs=X, pruner=pruner, round_to=3, optimizer=optimizer)
    assert torch.allclose(small(X), expected, atol=1e-5 * max(1, float(expected.abs().max())))
    assert sum(p.numel() for p in small.parameters()) == whole.sizes["parameters after"]
    train(small.train(), optimizer, range(8, 10))


def test_groups_are_coupled():
    model, optimizer, pruner = a_run("Residual")
    train(model, optimizer, range(6))
    gone = {t.name: ~pruner.kept(t.name) for t in pruner.targets}
    first = gone["first.weight"].flatten(1).all(1)
    assert 0 < int(first.sum()) < 8
    for name in ("first.bias", "norm.weight", "norm.bias", "b.bias", "bn.weight", "bn.bias"):
        assert torch.equal(gone[name], first), name
    assert torch.equal(gone["head.weight"].all(0), first)
    assert torch.equal(gone["a.weight"].transpose(0, 1).flatten(1).all(1), first)
    assert not gone["head.weight"].all(1).any() and "head.bias" not in gone


@pytest.mark.parametrize("criterion", ["l1", "taylor", "bn_gamma", "random", "apoz"])
@pytest.mark.parametrize("name", ["Residual", "Depthwise"])
def test_resume_is_exact(name, criterion):
    options = {"criterion": criterion}
    if criterion == "bn_gamma" and name == "Depthwise":
        options["scope"] = {"first": 0.5}
    if criterion in ("taylor", "apoz"):
        options["min_keep"] = 2
    whole = a_run(name, **options)
    train(*whole[:2], range(8))
    for stop in (1, 4):
        first = a_run(name, **options)
        train(*first[:2], range(stop))
        held = io.BytesIO()
        torch.save([part.state_dict() for part in first], held)
        held.seek(0)
        second = a_run(name, **options)
        for part, state in zip(second, torch.load(held), strict=True):
            part.load_state_dict(state)
        train(*second[:2], range(stop, 8))
        for (n, p), q in zip(whole[0].named_parameters(), second[0].parameters(), strict=True):
            assert torch.equal(p, q), (stop, n)
        assert second[2].units.removed() == whole[2].units.removed()


def test_bn_gamma_decides():
    model = trained("Plain")
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([1.0, 0.01, 2, 0.02, 3, 0.03, 4, -0.04]))
    pruner = Pruner(
        model,
        Schedule.one_shot(0.5),
        pattern="channel",
        criterion="bn_gamma",
        scope={"first": 0.5},
        example_inputs=X,
    )
    assert pruner.kept("norm.weight").tolist() == [True, False] * 4


def test_channels_that_are_never_active_go():
    model = trained("Plain").train()
    pruner = Pruner(
        model, Schedule.one_shot(0.5, at=1), pattern="channel", criterion="apoz", example_inputs=X
    )
    assert list(pruner.units.activated) == ["norm"]  # a hardswish follows the other one
    with torch.no_grad():
        model.norm.bias.copy_(torch.tensor([9.0, -9, 9, -9, 9, -9, 9, -9]) * 10)
    with pytest.raises(RuntimeError, match="'apoz' has seen no activations"):
        pruner._prune(0, 0.5)
    model(X)
    pruner._prune(1, 0.5)
    gone = sum(int((~pruner.kept(t.name)).sum()) > 0 for t in pruner.targets)
    assert gone > 3 and pruner.kept("norm.weight").tolist()[1::2] == [False] * 4


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_prepared_models(name):
    kind, shape = networks.NETWORKS[name]
    torch.manual_seed(0)
    x, y = torch.randn(shape), torch.randint(0, 10, (shape[0],))
    qat = bp.prepare(kind(), example_inputs=(x,))
    bp.calibrate(qat, data=[x], progress=False)
    optimizer = torch.optim.SGD(bp.param_groups(qat), lr=0.01, momentum=0.9)
    pruner = Pruner(
        qat, Schedule.one_shot(0.5, at=1), pattern="channel", scope="local", example_inputs=(x,)
    ).attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(qat.train()(x), y).backward()
        optimizer.step()
    assert len(pruner.units.groups) >= 2
    for target in pruner.targets:
        gone = ~pruner.kept(target.name)
        assert is_positive_zero(target.value[gone])
        if target.quantizer is not None:
            assert is_positive_zero(target.quantizer(target.value)[gone])


def test_errors():
    model = trained("Plain")
    shot = Schedule.one_shot(0.5)
    for options, message in (
        (dict(), "pattern 'channel' needs example_inputs="),
        (dict(example_inputs=X, mode="ste"), "needs mode='hard'"),
        (dict(example_inputs=X, ignore=["zz"]), "Pruner: ignore 'zz' matches no layer"),
        (
            dict(example_inputs=X, pattern="element", criterion="bn_gamma"),
            "use pattern=",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Pruner(model, shot, **{"pattern": "channel", **options})
    pruner = Pruner(model, shot, pattern="channel", example_inputs=X)
    with pytest.raises(ValueError, match="the pruner works on another model"):
        shrink(trained("Plain"), example_inputs=X, pruner=pruner)
    with pytest.raises(ValueError, match="its masks say what is removed; omit ignore="):
        shrink(model, example_inputs=X, pruner=pruner, ignore=["*"])
    for other in (dict(keep=bp.Budget(macs=0.5)), dict(sparsity=0.5)):
        with pytest.raises(ValueError, match="give one of sparsity=, keep= and pruner="):
            shrink(model, example_inputs=X, pruner=pruner, **other)
    pruner.finalize()
    with pytest.raises(ValueError, match="the pruner has no channel masks"):
        shrink(model, example_inputs=X, pruner=Pruner(model, shot))
    with pytest.raises(bp.Unsupported, match="no channels of the model can be removed"):
        Pruner(nn.Linear(4, 2), shot, pattern="channel", example_inputs=batch(0)[0][0, 0, :, :4])
