"""Test observers and calibration."""

import math
import warnings

import bitpare as bp
import networks
import pytest
import torch
from bitpare.nn.quantizer import Quantizer
from bitpare.nn.ranges import RangeQuantizer, update_ranges
from bitpare.spec.grid import grid_of
from torch import Tensor, nn


def quantizer(**options) -> RangeQuantizer:
    spec = bp.QSpec(**options)
    return RangeQuantizer(spec, grid_of(spec, "activation", axis=1), "q", "activation")


def small(config: bp.QConfig | None = None) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(8, 1, 8, 8)
    return bp.prepare(networks.LeNet(), config, example_inputs=(x,)), x


def test_a_training_forward_quantizes_with_the_range_in_force():
    """Check that a step's values change the range only when the next forward begins."""
    model, x = small()
    bp.calibrate(model, data=[x])
    q = model.bp_sites[0]
    scale = q.scale.clone()
    model.train()(x * 3)
    assert torch.equal(q.scale, scale)
    assert q.pending[1].item() == (x * 3).max().item()
    model(x)
    expected = 1 + int(q.count[0])  # merged again in the meantime
    assert expected >= 3 and q.scale.item() > scale.item()
    held = q.scale.clone()
    model.eval()(x * 10)
    assert torch.equal(q.scale, held)


def test_ema_is_a_mean_until_its_momentum_takes_over():
    q = quantizer(momentum=0.1)
    tops = [4.0, 8.0, 6.0]
    for top in tops:
        q._fold(torch.tensor([0.0]), torch.tensor([top]))
        update_ranges([q])
    assert math.isclose(q.range[1].item(), sum(tops) / 3, rel_tol=1e-6)
    for _ in range(50):
        q._fold(torch.tensor([0.0]), torch.tensor([2.0]))
        update_ranges([q])
    before = q.range[1].item()
    q._fold(torch.tensor([0.0]), torch.tensor([12.0]))
    update_ranges([q])
    assert math.isclose(q.range[1].item(), before + 0.1 * (12 - before), rel_tol=1e-6)


def test_minmax_only_widens():
    q = quantizer(range="minmax")
    for low, high in [(-1.0, 2.0), (-0.5, 5.0), (-3.0, 1.0)]:
        q._fold(torch.tensor([low]), torch.tensor([high]))
        update_ranges([q])
    assert q.range.flatten().tolist() == [-3.0, 5.0]


def test_given_ranges_stay():
    model, x = small(bp.QConfig(activation=bp.QSpec(range=(-2.0, 2.0))))
    before = [q.scale.clone() for q in model.modules() if isinstance(q, RangeQuantizer)]
    bp.calibrate(model, data=[x * 100])
    after = [q.scale for q in model.modules() if isinstance(q, RangeQuantizer)]
    activations = [q for q in model.modules() if isinstance(q, RangeQuantizer) and q.may_observe]
    assert all(q.role == "weight" for q in activations)
    given = [i for i, q in enumerate(after) if q.numel() == 1]
    assert given and all(torch.equal(before[i], after[i]) for i in given)


@pytest.mark.parametrize(
    "options",
    [
        dict(range="percentile", percentile=99.0),
        dict(range="mse", bits=4),
        dict(range="entropy"),
        dict(range="sigma", sigma=2.0),
        dict(stretch=0.5),
    ],
    ids=lambda o: str(o.get("range", "stretch")),
)
def test_outliers_are_clipped(options):
    """Check that one outlier in 5,000 values does not determine the range, which still covers the
    rest."""
    torch.manual_seed(0)
    values = torch.randn(20_000)
    values[::5000], values[2500::5000] = 30.0, -30.0
    q = quantizer(**options)
    q.calibrating = True
    q(values)
    q.calibrating = False
    q.conclude()
    assert q.calibrated
    low, high = q.range.flatten().tolist()
    assert -25 < low < -1.2 and 1.2 < high < 25


def test_histograms_accumulate_over_batches():
    """Check that the percentile is that of all batches, whatever their order."""
    torch.manual_seed(0)
    parts = [torch.randn(4096) * s for s in (0.5, 4.0, 1.0)]
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        q = quantizer(range="percentile", percentile=99.0)
        q.calibrating = True
        for i in order:
            q(parts[i])
        q.conclude()
        found.append(q.range.clone())
    assert torch.equal(*found)
    expected = torch.quantile(torch.cat(parts), torch.tensor([0.005, 0.995]))
    torch.testing.assert_close(found[0].flatten(), expected, atol=0.05, rtol=0.02)


def test_calibration_leaves_everything_else_alone():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    model = bp.prepare(networks.SmallMobileNet(), example_inputs=x).train()
    model.features[0].eval()
    modes = {name: m.training for name, m in model.named_modules()}
    held = {k: v.clone() for k, v in model.state_dict().items() if "bp_" not in k}
    state = torch.get_rng_state()
    bp.calibrate(model, data=[x, x * 2], batches=1)
    assert modes == {name: m.training for name, m in model.named_modules()}
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in held.items())
    assert torch.equal(state, torch.get_rng_state())
    model.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(x * 5)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_loaders_batches_and_microbatches():
    model, x = small()
    bp.calibrate(model, data=[(x, torch.zeros(8))], microbatch=3)
    one = model.bp_sites[0].count[0].item()
    assert one == 3
    bp.calibrate(model, data=[{"label": 0, "input": x}] * 5, batches=2)
    assert model.bp_sites[0].count[0].item() == 2
    bp.calibrate(model, data=[(0, x)], forward=lambda m, batch: m(batch[1]))
    assert model.bp_sites[0].count[0].item() == 1
    top = model.bp_sites[0].range[1].item()
    assert math.isclose(top, x.max().item())


def test_learned_scales_start_from_the_data():
    model, x = small(bp.QConfig.int4())
    bp.calibrate(model, data=[x])
    learned = [m for m in model.modules() if isinstance(m, Quantizer) and m.spec.learn == "lsq"]
    activation = next(m for m in learned if m.role == "activation")
    assert activation.calibrated and 0 < activation.scale.item() < 1
    weight = next(
        m
        for m in model.modules()
        if isinstance(m, Quantizer) and m.role == "weight" and m.spec.learn == "lsq"
    )
    model.eval()(x)
    assert weight.calibrated
    layer = model.conv2 if weight.name == "conv2" else model.fc1
    expected = 2 * layer.weight.detach().flatten(1).abs().mean(1) / math.sqrt(7)
    torch.testing.assert_close(weight.scale.detach(), expected)


def test_first_training_batch_observes_and_then_quantizes():
    model, x = small()
    model.train()
    y = model(x)
    assert torch.isfinite(y).all()
    q = model.bp_sites[0]
    assert q.calibrated and q.range[1].item() == x.max().item()
    model.eval()(x)


def test_bad_input():
    model, x = small()
    with pytest.raises(bp.Uncalibrated, match=r"input: the activation quantizer has seen no data"):
        model.eval()(x)
    with pytest.raises(ValueError, match="data gave no batch"):
        bp.calibrate(model, data=[])
    with pytest.raises(ValueError, match="batches must be 1 or more, got 0"):
        bp.calibrate(model, data=[x], batches=0)
    with pytest.raises(ValueError, match="not prepared"):
        bp.calibrate(networks.LeNet(), data=[x])
    nan = x.clone()
    nan[0, 0, 0, 0] = math.nan
    with pytest.raises(bp.Uncalibrated, match="every batch had NaN or infinite values at input"):
        bp.calibrate(model, data=[nan])
    assert not any(
        q.calibrated for q in model.modules() if isinstance(q, Quantizer) and q.role == "activation"
    )
    with pytest.warns(UserWarning, match=r"left out at input \(1\)"):
        bp.calibrate(model, data=[x, nan])
    good = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError):  # half of the batches have another shape
        bp.calibrate(model, data=[x, torch.randn(2, 5, 8, 8)])
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in good.items())
    model.eval()(x)


def test_constant_and_single_values_stay_finite():
    for value in (0.0, 5.0, -5.0, 1e-30):
        model, _ = small()
        x = torch.full((2, 1, 8, 8), value)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            bp.calibrate(model, data=[x])
        assert torch.isfinite(model.eval()(x)).all()


def test_frozen_quantizers_read_nothing():
    model, x = small()
    bp.calibrate(model, data=[x])
    for q in model.modules():
        if isinstance(q, Quantizer):
            q.set_flags(observe=False)
    held = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    for _ in range(3):
        model(x * 7)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in held.items())


@pytest.mark.parametrize("learn", ["lsq", "lsq+", "binary"])
def test_calibration_leaves_weights_alone(learn):
    weight = bp.QSpec(bits=1, learn="lsq") if learn == "binary" else bp.QSpec(bits=4, learn=learn)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    x = torch.randn(4, 3, 8, 8)
    config = bp.QConfig(weight=weight, activation=bp.QSpec(bits=8))
    qat = bp.prepare(model, config, example_inputs=(x,))
    before = {n: v.clone() for n, v in qat.state_dict().items() if "bp_weight" in n}
    assert before
    for batches in (1, 3):
        bp.calibrate(qat, data=[x] * batches)
        state = qat.state_dict()
        assert all(torch.equal(state[n], v) for n, v in before.items())
