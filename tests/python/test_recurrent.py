"""Test recurrent layers in a prepared model: float computation with quantized weights."""

import copy
import io

import bitpare as bp
import pytest
import torch
import torch.nn.functional as F
from bitpare.nn.quantizer import Quantizer
from bitpare.quant.compare import quantizers_off
from torch import Tensor, nn

TOKENS = 50


class Text(nn.Module):
    """Classifies sequences."""

    def __init__(self, kind: type, **options) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, 16)
        self.layers = kind(16, 12, num_layers=2, batch_first=True, bidirectional=True, **options)
        self.head = nn.Linear(2 * options.get("proj_size", 12), 5)

    def forward(self, tokens: Tensor) -> Tensor:
        y, _ = self.layers(self.embed(tokens))
        return self.head(y[:, 0] + y[:, -1])


class Cells(nn.Module):
    """Processes a sequence step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, 16)
        self.cells = nn.ModuleList([nn.LSTMCell(16, 12), nn.GRUCell(12, 8), nn.RNNCell(8, 8)])
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        lstm, gru, rnn = self.cells
        h = c = torch.zeros(len(tokens), 12)
        g = r = torch.zeros(len(tokens), 8)
        for x in self.embed(tokens).unbind(1):
            h, c = lstm(x, (h, c))
            g = gru(h, g)
            r = rnn(g, r)
        return self.head(r)


MODELS = {
    "lstm": lambda: Text(nn.LSTM, dropout=0.1),
    "projected": lambda: Text(nn.LSTM, proj_size=6),
    "gru": lambda: Text(nn.GRU),
    "rnn": lambda: Text(nn.RNN, bias=False),
    "cells": Cells,
}
CONFIGS = {
    "int8": bp.QConfig.int8(),
    "int4": bp.QConfig.int4(),
    "group": bp.QConfig.weight_only(bits=4, group=4),
}


@pytest.fixture(params=MODELS)
def model(request) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[request.param]()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: p for n, p in model.named_parameters() if ".weight_" in n}


@pytest.mark.parametrize("config", CONFIGS)
def test_trains_with_quantized_weights(model, config):
    tokens, target = torch.randint(0, TOKENS, (7, 6)), torch.randint(0, 5, (7,))
    qat = bp.prepare(model, CONFIGS[config], example_inputs=(tokens,))
    bp.calibrate(qat, data=[tokens], progress=False)
    assert set(dict(model.named_parameters())) <= set(dict(qat.named_parameters()))
    optimizer = torch.optim.SGD(bp.param_groups(qat), lr=0.2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(qat(tokens), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in weights_of(qat).values())
    again = bp.prepare(model, CONFIGS[config], example_inputs=(tokens,))
    again.load_state_dict(qat.state_dict())
    held = io.BytesIO()
    torch.save(qat, held)
    held.seek(0)
    for other in (again, copy.deepcopy(qat), torch.load(held, weights_only=False)):
        assert torch.equal(other.eval()(tokens), qat.eval()(tokens))


def test_computes_what_float_does_on_quantized_weights(model):
    tokens = torch.randint(0, TOKENS, (7, 6))
    activations_in_float = bp.QConfig(weight=bp.QSpec(bits=4), activation=bp.FLOAT)
    qat = bp.prepare(model, activations_in_float, example_inputs=(tokens,)).eval()
    plain = copy.deepcopy(model).eval()
    with quantizers_off(qat):
        assert torch.equal(qat(tokens), plain(tokens))
    with torch.no_grad():
        for name, q in qat.named_modules():
            if isinstance(q, Quantizer):
                owner, _, weight = name.rpartition(".bp_weight")
                parameter = plain.get_parameter(f"{owner}.{weight.lstrip('s.') or 'weight'}")
                assert not torch.equal(q(parameter), parameter)
                parameter.copy_(q(parameter))
    for layer in plain.modules():
        if isinstance(layer, nn.RNNBase):
            layer.flatten_parameters()
    assert torch.equal(qat(tokens), plain(tokens))


def test_is_placed(model):
    tokens = torch.randint(0, TOKENS, (7, 6))
    placement = bp.report.placement(bp.prepare(model, example_inputs=(tokens,)))
    assert {row.name for row in placement.quantizers} >= set(weights_of(model))
    layers = {name.rpartition(".")[0] for name in weights_of(model)}
    reasons = dict(placement.floating)
    assert all("with quantized weights" in reasons[name] for name in layers)


def test_may_stay_float(model):
    tokens = torch.randint(0, TOKENS, (7, 6))
    config = bp.QConfig.int8().override(lambda n, m: hasattr(m, "hidden_size"), weight=bp.FLOAT)
    placement = bp.report.placement(bp.prepare(model, config, example_inputs=(tokens,)))
    assert not {row.name for row in placement.quantizers} & set(weights_of(model))
