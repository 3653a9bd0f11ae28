"""Test the counts of report.summary against counts by hand."""

import json

import bitpare as bp
import pytest
import torch
from test_integer import LeNet, images, prepared
from torch import nn

# The MACs of LeNet on 16 x 16 pixels: outputs times the number of terms of each.
MACS = 6 * 256 * 75 + 10 * 16 * 150 + 20 * 40 + 10 * 20
WEIGHTS = 6 * 75 + 10 * 150 + 20 * 40 + 10 * 20


def test_counts():
    float_model = LeNet()
    with torch.no_grad():
        float_model.one.weight[:5] = 0
    model = prepared(float_model, size=16)
    integer = bp.convert(model)
    found = bp.report.summary(float_model.train(), model, integer, rounds=2)
    assert float_model.training and not model.training
    kinds = [r.kind for r in found.rows]
    assert kinds[:3] == ["float", "prepared", "integer"] and kinds[3:] in ([], ["onnxruntime"])
    for row in found.rows:
        assert (row.macs, row.weights) == (MACS, WEIGHTS) and 0 < row.p50 <= row.p95
        assert 0 < row.compressed <= row.bytes * 1.01
    assert found.rows[0].nonzeros == WEIGHTS - 5 * 40 and found.rows[2].nonzeros <= WEIGHTS - 200
    floats = sum(p.numel() for p in float_model.parameters())
    assert found.rows[0].parameters == floats and found.rows[0].bytes >= 4 * floats
    assert found.rows[2].bytes < found.rows[0].bytes
    text = str(found)
    assert "prepared" in text and "p95 ms" in text and len(text.splitlines()) == 2 + len(kinds)
    assert [r["kind"] for r in json.loads(found.to_json())] == kinds
    named = bp.report.summary(
        nn.Linear(3, 2), example_inputs=torch.zeros(4, 3), names=["one"], rounds=1
    )
    assert named.rows[0].name == "one" and named.rows[0].macs == 4 * 6


def test_errors():
    with pytest.raises(ValueError, match="example_inputs= is needed, because no model is prepared"):
        bp.report.summary(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="at least one model"):
        bp.report.summary()
    with pytest.raises(ValueError, match="names must have 1 entries, got 2"):
        bp.report.summary(nn.Linear(2, 2), example_inputs=images(1), names=["a", "b"])
