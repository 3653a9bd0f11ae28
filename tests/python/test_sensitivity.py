"""Test how much each layer loses when it alone is pruned."""

import json

import bitpare as bp
import pytest
import torch
from bitpare.prune import Pruner, Schedule, sensitivity, shrink
from test_pruner import lenet
from test_shrink import X, trained
from torch import nn


def counts(model: nn.Module) -> float:
    """Return a stand-in for accuracy: the weights left in each layer, with different values per
    layer."""
    worth = {"conv1": 40.0, "conv2": 5.0, "fc1": 1.0, "fc2": 20.0}
    return 100 - sum(
        worth[n] * float((m.weight == 0).float().mean())
        for n, m in model.named_modules()
        if n in worth
    )


def test_each_layer_is_pruned_alone_and_put_back():
    model = lenet().train()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    seen = []

    def evaluate(m):
        assert m is model and not m.training and not torch.is_grad_enabled()
        weights = {n: p for n, p in m.named_parameters() if p.dim() > 1}
        seen.append({n: round(float((p == 0).float().mean()), 2) for n, p in weights.items()})
        return counts(m)

    scan = sensitivity(model, evaluate, sparsities=(0.25, 0.5))
    assert model.training
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert seen[0] == dict.fromkeys(before.keys() & seen[0].keys(), 0.0)
    for entry in seen[1:]:
        assert sum(v > 0 for v in entry.values()) == 1
    assert scan.baseline == 100
    assert scan.found["conv2.weight"] == {
        0.25: pytest.approx(98.75, abs=0.05),
        0.5: pytest.approx(97.5, abs=0.05),
    }
    assert scan.sizes["fc2.weight"] == 320
    table = str(scan)
    assert "25%" in table and "nothing pruned: 100.00" in table and "conv2.weight" in table


def test_ratios_under_a_target():
    model = lenet()
    scan = sensitivity(model, counts, sparsities=(0.2, 0.4, 0.6, 0.8))
    by_drop = scan.sparsities(max_drop=4.0)
    assert by_drop["conv1.weight"] == pytest.approx(0.1, abs=0.01)  # interpolated
    assert by_drop["conv2.weight"] == by_drop["fc1.weight"] == 0.8
    assert by_drop["fc2.weight"] == pytest.approx(0.2, abs=0.01)
    by_size = scan.sparsities(sparsity=0.5)
    total = sum(scan.sizes.values())
    assert sum(scan.sizes[n] * r for n, r in by_size.items()) / total == pytest.approx(
        0.5, abs=1e-3
    )
    assert by_size["fc1.weight"] > by_size["conv2.weight"] > by_size["conv1.weight"]
    pruner = Pruner(model, Schedule.one_shot(0.5), scope=by_size)
    weights = sum(t.value.numel() for t in pruner.targets)
    assert pruner.pruned() / weights == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ValueError, match=r"covers a sparsity of 0\.800 at most, got sparsity=0\.9"):
        scan.sparsities(sparsity=0.9)
    with pytest.raises(ValueError, match="give max_drop= or sparsity="):
        scan.sparsities()


def test_a_dip_on_the_way_counts():
    scan = bp.prune.Sensitivity(90.0, {"a": {0.2: 90.0, 0.4: 80.0, 0.6: 89.5}}, {"a": 10})
    assert scan.sparsity_at("a", 1.0) == pytest.approx(0.22)
    assert scan.sparsity_at("a", 10.0) == 0.6
    assert scan.sparsity_at("a", 0.0) == 0.2


def test_an_interrupted_scan_goes_on(tmp_path):
    model, cache, calls = lenet(), tmp_path / "scan.json", []

    def evaluate(m):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return counts(m)

    before = {n: v.clone() for n, v in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        sensitivity(model, evaluate, sparsities=(0.5,), cache=cache)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert len(json.loads(cache.read_text())["found"]) == 2
    scan = sensitivity(model, evaluate, sparsities=(0.5,), cache=cache)
    assert len(calls) == 4 + 2
    again = sensitivity(model, evaluate, sparsities=(0.5,), cache=cache)
    assert len(calls) == 6 and again == scan
    with torch.no_grad():
        model.fc1.weight[0] += 1
    sensitivity(model, evaluate, sparsities=(0.5,), cache=cache)
    assert len(calls) == 6 + 5  # the scan of other weights starts again
    sensitivity(model, evaluate, sparsities=(0.5,), cache=cache, pattern="filter")
    assert len(calls) == 11 + 5


def test_channels_that_go_together():
    model = trained("Residual")

    def evaluate(m):
        return -float((m.first.weight == 0).float().mean() + 2 * (m.a.weight == 0).float().mean())

    scan = sensitivity(model, evaluate, sparsities=(0.5,), pattern="channel", example_inputs=X)
    assert scan.found.keys() == {"first", "a"}
    assert scan.found["first"][0.5] == pytest.approx(-1.5)  # the columns of a are pruned too
    assert scan.found["a"][0.5] == pytest.approx(-1.0)
    assert not (model.first.weight == 0).any()
    small = shrink(model, example_inputs=X, sparsity=scan.sparsities(max_drop=1.2))
    assert small.a.out_channels == 6 and small.first.out_channels == 5


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    scan = sensitivity(lenet(), counts, sparsities=(0.2, 0.4, 0.6, 0.8))
    scan.plot(tmp_path / "scan.png")
    assert (tmp_path / "scan.png").stat().st_size > 10_000
    scan.plot(tmp_path / "scan.svg")
    text = (tmp_path / "scan.svg").read_text()
    assert text.count("<path") > 20


def test_errors():
    with pytest.raises(ValueError, match=r"sparsities must be in \(0, 1\), got 1"):
        sensitivity(lenet(), counts, sparsities=(0.5, 1))
    with pytest.raises(ValueError, match="needs example_inputs="):
        sensitivity(lenet(), counts, pattern="channel")
    with pytest.raises(ValueError, match="sensitivity: pattern must be"):
        sensitivity(lenet(), counts, pattern="5:4")
