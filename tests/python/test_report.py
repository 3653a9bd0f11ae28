"""Test the tables of bp.report against counts by hand."""

import json
import math

import bitpare as bp
import pytest
import torch
from bitpare import QConfig, QSpec
from reported import CONFIGS, lenet, same_state, state_of
from test_integer import LeNet, images, prepared


class TestLayers:
    def test_a_weight_is_counted_as_by_hand(self):
        model = lenet(QConfig.int8().override("one", weight=QSpec(bits=4, range=(-0.1, 0.1))))
        with torch.no_grad():
            model.one.weight[:3] = 0
            model.one.weight[3, 0] = 2.0
        before = state_of(model)
        row = next(r for r in bp.report.layers(model).rows if r.name == "one")
        assert same_state(model, before)
        weight = model.one.weight.detach()
        scale = model.one.bp_weight.scale.view(-1, 1)
        steps = weight / scale
        quantized = steps.round().clamp(-8, 7) * scale
        noise = (weight - quantized).square().sum()
        assert row.sqnr == pytest.approx(10 * math.log10(weight.square().sum() / noise), abs=1e-3)
        assert row.clipped == pytest.approx(((steps > 7.5) | (steps < -8.5)).float().mean().item())
        assert row.clipped > 0
        assert row.levels == len(steps.round().clamp(-8, 7).unique()) / 16
        assert row.sparsity == pytest.approx((weight == 0).float().mean().item())
        assert row.zeros == pytest.approx((quantized == 0).float().mean().item())
        assert (row.min, row.max) == (weight.min().item(), weight.max().item())
        assert row.mean == pytest.approx(weight.mean().item(), abs=1e-6)
        assert row.std == pytest.approx(weight.std(unbiased=False).item(), rel=1e-5)
        assert (row.bits, row.form, row.count) == (4, "s4", 800)
        assert row.scale == pytest.approx(model.one.bp_weight.scale.mean().item())

    def test_activations_are_what_the_float_model_has(self):
        model = lenet()
        x = images(6, 16) * 1.7  # beyond the calibrated range
        rows = bp.report.layers(model, data=[x[:4], x[4:]]).rows
        given = next(r for r in rows if r.name == "input")
        q = model.bp_sites[0] if hasattr(model, "bp_sites") else None
        assert q is not None and q.name == "input"
        steps = x / q.scale + q.zero_point
        codes = steps.round().clamp(0, 255)
        assert given.count == x.numel() and given.max == x.max().item()
        beyond = ((steps > 255.5) | (steps < -0.5)).float().mean().item()
        assert given.clipped == pytest.approx(beyond, abs=1e-5) and beyond > 0
        noise = ((codes - q.zero_point) * q.scale - x).square().sum()
        assert given.sqnr == pytest.approx(10 * math.log10(x.square().sum() / noise), abs=0.01)
        deeper = [r for r in rows if r.role == "activation" and r.name != "input"]
        with torch.no_grad(), bp.nn.quantizer.quantizers_off(model):
            expected = torch.relu(model.features[0](x))
        assert any(r.max == pytest.approx(expected.max().item(), rel=1e-5) for r in deeper)

    @pytest.mark.parametrize("name", CONFIGS)
    def test_every_kind_of_quantizer(self, name):
        model = lenet(CONFIGS[name])
        before = state_of(model)
        found = bp.report.layers(model, data=[images(4, 16)])
        assert same_state(model, before)
        assert [r for r in found.rows if r.role == "weight"]
        for row in found.rows:
            assert row.sqnr > 1, row
            assert row.levels is None or 0 < row.levels <= 1
            assert row.clipped is None or 0 <= row.clipped < 1
        text = str(found)
        assert len(text.splitlines()) == len(found.rows) + 2 and "nan" not in text
        assert len(json.loads(found.to_json())) == len(found.rows)

    def test_a_better_range_is_found(self):
        wide = QConfig.int8().override("two", weight=QSpec(bits=8, range=(-50.0, 50.0)))
        rows = {r.name: r for r in bp.report.layers(lenet(wide)).rows}
        assert rows["two"].gain > 20 and rows["two"].levels < 0.1 and rows["one"].gain < 1
        low, high = rows["two"].best
        fitted = QConfig.int8().override("two", weight=QSpec(bits=8, range=(low, high)))
        torch.manual_seed(0)
        better = next(r for r in bp.report.layers(lenet(fitted)).rows if r.name == "two")
        assert better.sqnr > rows["two"].sqnr + 15

    def test_masks_and_uncalibrated(self):
        model = bp.prepare(LeNet(), example_inputs=(images(1, 16),))
        rows = bp.report.layers(model, data=[images(2, 16)]).rows
        unknown = [r for r in rows if r.role == "activation"]
        assert unknown and all(r.sqnr is None and r.count > 0 for r in unknown)
        assert "-" in str(bp.report.layers(model))
        mask = bp.functional.pack_mask(torch.rand_like(model.one.weight) > 0.5)
        model.one.bp_weight.mask = mask
        row = next(r for r in bp.report.layers(model).rows if r.name == "one")
        assert 0.4 < row.sparsity < 0.6

    def test_errors(self):
        with pytest.raises(ValueError, match="the model is not prepared"):
            bp.report.layers(LeNet())
        with pytest.raises(TypeError, match=r"report.layers: data .* got a tensor"):
            bp.report.layers(lenet(), data=images(2, 16))
        with pytest.raises(ValueError, match="gave no batch"):
            bp.report.layers(lenet(), data=[])


class TestEffects:
    def test_the_guilty_layer_is_found(self):
        config = QConfig.int8().override("features.3", weight=QSpec(bits=2, range="minmax"))
        model, x = prepared(LeNet(), config, size=16), images(8, 16)
        before = state_of(model)
        found = bp.report.effects(model, data=[x[:4], x[4:]])
        assert same_state(model, before)
        assert (found.worst(1)[0].name, found.worst(1)[0].role) == ("features.3", "weight")
        with torch.no_grad():
            got = model(x)
            with bp.nn.quantizer.quantizers_off(model):
                exact = model(x)
        expected = 10 * math.log10(exact.square().sum() / (exact - got).square().sum())
        assert found.output == pytest.approx(expected, abs=0.3)
        rows = {(r.name, r.role): r for r in found.rows}
        guilty = rows["features.3", "weight"]
        assert guilty.together < guilty.here + 1 and guilty.here < 20
        assert rows["features.0", "weight"].output > guilty.output + 10
        assert found.skipped == [] and "outputs with all quantizers on" in str(found)
        assert len(json.loads(found.to_json())["rows"]) == len(found.rows)

    def test_errors(self):
        with pytest.raises(TypeError, match="data must be an iterable"):
            bp.report.effects(lenet(), data=images(2, 16))
        with pytest.raises(ValueError, match="gave no batch"):
            bp.report.effects(lenet(), data=[])


class TestValues:
    @pytest.mark.parametrize("name", ["int8", "int4", "groups", "mse"])
    def test_codes_and_what_they_stand_for(self, name):
        model = lenet(CONFIGS[name])
        seen = bp.report.values(model, "two")
        assert torch.equal(seen.dequantized, model.two.quantized_weight().detach())
        assert torch.equal(seen.weight, model.two.weight)
        zero = 0 if seen.zero_point is None else seen.zero_point.view(-1, 1)
        scale, codes = seen.scale.view(-1, 1), seen.codes
        if name == "groups":
            scale, codes = seen.scale.view(10, -1).repeat_interleave(4, 1), seen.codes
        assert torch.allclose((codes - zero) * scale, seen.dequantized, rtol=1e-5)
        assert len(seen.channels) == 10 and min(seen.channels) > 5

    def test_errors(self):
        with pytest.raises(ValueError, match="no quantized weight 'three'; there are"):
            bp.report.values(lenet(), "three")
        with pytest.raises(TypeError, match="must come from"):
            bp.report.values(bp.convert(lenet()), "two")
