"""Test QatSchedule, whose effect depends only on the applied steps, and the BatchNorm
statistics."""

import copy

import bitpare as bp
import networks
import pytest
import torch
import torch.nn.functional as F
from bitpare.nn.quantizer import Quantizer
from torch import nn


def prepared(config: bp.QConfig | None = None) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    model = bp.prepare(networks.SmallMobileNet(), config, example_inputs=x)
    bp.calibrate(model, data=[x])
    return model.train(), x


def quantizers(model: nn.Module) -> list[Quantizer]:
    return [m for m in model.modules() if isinstance(m, Quantizer)]


def flags(model: nn.Module) -> set[tuple[int, ...]]:
    return {tuple(q.control[2:].tolist()) for q in quantizers(model)}


def test_phases():
    model, _ = prepared()
    schedule = bp.QatSchedule(model, steps=10, delay=0.2, freeze_ranges=0.6, freeze_bn=8)
    seen = []
    for _ in range(10):
        seen.append(flags(model))
        schedule.step()
    assert seen == [{(1, 0, 0)}] * 2 + [{(1, 1, 0)}] * 4 + [{(0, 1, 0)}] * 2 + [{(0, 1, 1)}] * 2


def test_delay_computes_in_float_and_observes():
    model, x = prepared()
    plain = copy.deepcopy(model)
    bp.QatSchedule(model, steps=10, delay=5)
    for q in quantizers(plain):
        q.bypass = True
    torch.manual_seed(0)
    y = model(x)
    torch.manual_seed(0)
    torch.testing.assert_close(y, plain(x), atol=1e-4, rtol=1e-4)
    assert all(torch.isfinite(q.pending).all() for q in quantizers(model) if q.role[0] == "a")


def test_frozen_batch_norm_keeps_its_statistics_in_train():
    model, x = prepared()
    schedule = bp.QatSchedule(model, steps=4, freeze_bn=0.5)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for step in range(4):
        before = [m.running_mean.clone() for m in norms]
        model.train()(x + step)
        moved = [not torch.equal(a, m.running_mean) for a, m in zip(before, norms, strict=True)]
        assert all(moved) if step < 2 else not any(moved)
        schedule.step()


def test_ramp_turns_quantizers_on_one_after_the_other():
    model, _ = prepared()
    schedule = bp.QatSchedule(model, steps=100, delay=10, ramp=20)
    counts = []
    for _ in range(40):
        counts.append(sum(int(q.control[3]) for q in quantizers(model)))
        schedule.step()
    assert (
        counts[:10] == [0] * 10 and counts[10] > 0 and counts[30:] == [len(quantizers(model))] * 10
    )
    assert counts == sorted(counts) and len(set(counts)) > 15


@pytest.mark.parametrize("learn", [None, "lsq"])
def test_bits_are_annealed(learn):
    config = bp.QConfig(weight=bp.QSpec(bits=8, learn=learn))
    model, x = prepared(config)
    schedule = bp.QatSchedule(model, steps=9, bits={0: 8, 3: 4, 6: 2})
    found = []
    for _ in range(9):
        model(x)
        q = model.features[1].conv[0].bp_weight
        found.append((q.bits, model.features[1].conv[0].quantized_weight().unique().numel() > 0))
        values = model.features[1].conv[0].quantized_weight()[0].unique().numel()
        assert values <= 2**q.bits
        schedule.step()
    assert [bits for bits, _ in found] == [8] * 3 + [4] * 3 + [2] * 3


def test_the_state_is_a_function_of_the_step_alone():
    """Check that loading a step count gives the same state as stepping there."""
    options = dict(steps=20, delay=2, ramp=4, freeze_ranges=12, freeze_bn=15, bits={0: 8, 9: 4})
    stepped, _ = prepared()
    schedule = bp.QatSchedule(stepped, **options)
    for step in range(20):
        loaded, _ = prepared()
        other = bp.QatSchedule(loaded, **options)
        other.load_state_dict(schedule.state_dict())
        assert other.step_count == step
        for a, b in zip(quantizers(stepped), quantizers(loaded), strict=True):
            assert torch.equal(a.control, b.control)
        schedule.step()


def test_attach_counts_applied_steps():
    model, x = prepared()
    optimizer = torch.optim.SGD(bp.param_groups(model), lr=0.01)
    schedule = bp.QatSchedule(model, steps=10, freeze_ranges=2).attach(optimizer)
    for step in range(3):
        assert schedule.step_count == step
        F.cross_entropy(model(x), torch.arange(4)).backward()
        optimizer.step()
    assert {q.control[2].item() for q in quantizers(model)} == {0}


class Skipping(torch.optim.Optimizer):
    """Reads found_inf by itself, as fused optimizers do under GradScaler."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        pass


def test_skipped_steps_do_not_count():
    model, _ = prepared()
    optimizer = Skipping(bp.param_groups(model))
    schedule = bp.QatSchedule(model, steps=10, freeze_ranges=2).attach(optimizer)
    for skipped in (False, True, True, False):
        optimizer.found_inf = torch.tensor(float(skipped))
        assert {q.control[2].item() for q in quantizers(model)} == {1}
        optimizer.step()
    assert schedule.step_count == 2
    assert {q.control[2].item() for q in quantizers(model)} == {0}


def test_wrong_arguments():
    model, _ = prepared()
    with pytest.raises(ValueError, match="steps must be an int of 1 or more"):
        bp.QatSchedule(model, steps=0)
    with pytest.raises(ValueError, match="delay must be a fraction of the run"):
        bp.QatSchedule(model, steps=5, delay=2.5)
    with pytest.raises(ValueError, match="freeze_bn must be a fraction of the run"):
        bp.QatSchedule(model, steps=5, freeze_bn=-0.5)
    with pytest.raises(ValueError, match="bits must be 1 to 16, got 0"):
        bp.QatSchedule(model, steps=5, bits={0: 0})
    with pytest.raises(ValueError, match="not prepared"):
        bp.QatSchedule(networks.LeNet(), steps=5)


def test_bn_reestimation():
    model, x = prepared()
    batches = [x, x * 2, x - 1]
    for q in quantizers(model):
        q.set_flags(observe=False)
    held = {k: v.clone() for k, v in model.state_dict().items()}
    bp.reestimate_bn(model, data=batches)
    first = model.features[0]
    with torch.no_grad():
        inputs = [model.bp_sites[0].eval()(b) for b in batches]
        outputs = [first[0](b) for b in inputs]
    expected = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    torch.testing.assert_close(first[1].running_mean, expected, atol=1e-5, rtol=1e-4)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, held[k])}
    assert changed and all("running" in k for k in changed), changed
