"""Test bp.extend with layers, quantizers and operations of a user."""

import bitpare as bp
import pytest
import torch
from torch import nn
from torch.nn import functional as F

X = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(0))


class PlainConv(nn.Conv2d):
    """A user's class that computes the same as torch's."""

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


@bp.extend.quantized_layer(PlainConv, op="conv2d")
class QPlainConv(bp.extend.QuantizedLayer, PlainConv):
    def forward(self, x):
        y = F.conv2d(self.enter(x), self.quantized_weight(), self.bias, self.stride, self.padding)
        return self.leave(y)


class Shifted(nn.Linear):
    def forward(self, x):
        return F.linear(x + 1, self.weight, self.bias)


@bp.extend.quantized_layer(Shifted)
class QShifted(bp.extend.QuantizedLayer, Shifted):
    def forward(self, x):
        return self.leave(F.linear(self.enter(x + 1), self.quantized_weight(), self.bias))


class Cube(nn.Module):
    def forward(self, x):
        return x * x * x


bp.extend.operation(Cube, "cube", kind="table")


class OwnReLU(nn.Module):
    def forward(self, x):
        return x.clamp(min=0)


bp.extend.operation(OwnReLU, "relu")


def pair(conv, act=nn.ReLU):
    torch.manual_seed(1)
    return nn.Sequential(conv(3, 8, 3), nn.BatchNorm2d(8), act(), conv(8, 4, 3, padding=1))


def ready(net):
    return bp.calibrate(bp.prepare(net.eval(), example_inputs=(X,)), data=[X]).eval()


def test_a_layer_of_ones_own_is_torchs_in_all_respects():
    own, torchs = ready(pair(PlainConv)), ready(pair(nn.Conv2d))
    assert type(own[0]) is QPlainConv and torch.equal(own(X), torchs(X))
    int8 = bp.convert(own)
    assert int8.floating == [] and torch.equal(int8(X), bp.convert(torchs)(X))
    small = bp.prune.shrink(pair(PlainConv).eval(), sparsity=0.5, example_inputs=(X,))
    assert type(small[0]) is PlainConv and small[0].out_channels == 4
    pruner = bp.prune.Pruner(own, sparsity=0.5)
    assert pruner.pruned() > 0
    pruner.finalize()


def test_a_layer_without_an_op_is_quantized_and_stays_float_in_convert():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Shifted(8, 4))
    x = torch.randn(5, 6)
    model = bp.calibrate(bp.prepare(net, example_inputs=(x,)), data=[x]).eval()
    assert type(model[2]) is QShifted and model[2].bp_weight is not None
    int8 = bp.convert(model)
    assert [name for name, _ in int8.floating] == ["2"]
    assert torch.allclose(int8(x), model(x), atol=1e-5)
    with pytest.raises(bp.Unsupported, match="Shifted mixes its channels in a way of its own"):
        bp.prune.shrink(net, sparsity=0.5, example_inputs=(x,))


def test_operations():
    model = ready(pair(nn.Conv2d, Cube))
    int8 = bp.convert(model)
    assert int8.floating == [] and len(int8.programs) == 1
    bp.verify(model, int8, data=[X], max_differing=0.1, min_agreement=0)
    small = bp.prune.shrink(pair(nn.Conv2d, Cube).eval(), sparsity=0.5, example_inputs=(X,))
    assert small[0].out_channels == 4
    own, torchs = ready(pair(nn.Conv2d, OwnReLU)), ready(pair(nn.Conv2d))
    assert torch.equal(bp.convert(own)(X), bp.convert(torchs)(X))


def test_a_lowering_may_refuse():
    class Odd(nn.Module):
        def forward(self, x):
            return x.flip(1)

    def refuse(node, op):
        raise bp.Unsupported("no flip in integers")

    bp.extend.operation(Odd, "odd_flip", kind="same", lowering=refuse)
    model = ready(pair(nn.Conv2d, Odd))
    int8 = bp.convert(model)
    assert len(int8.programs) == 2 and torch.allclose(int8(X), model(X), atol=0.1)


def test_other_errors_of_a_rule_are_not_taken_for_float():
    class Broken(nn.Module):
        def forward(self, x):
            return x

    def broken(node, op):
        raise ZeroDivisionError("a bug of the rule")

    bp.extend.operation(Broken, "broken_rule", kind="same", lowering=broken)
    with pytest.raises(ZeroDivisionError, match="a bug of the rule"):
        bp.convert(ready(pair(nn.Conv2d, Broken)))


@pytest.mark.parametrize("role", ["weight", "activation"])
def test_a_quantizer(role):
    @bp.extend.quantizer("fixed_step")
    class FixedStep(bp.extend.Quantizer):
        def __init__(self, spec, grid, name, role, scales=1, limit=0.0):
            super().__init__(spec, grid, name, role)
            self.register_buffer("scale", torch.full((1,), 1 / 16))

        def quantize(self, x):
            low, high = self.limits
            return bp.functional.fake_quant(x, self.scale, quant_min=low, quant_max=high)

    config = bp.QConfig(**{role: bp.QSpec(learn="fixed_step", granularity="tensor")})
    model = bp.calibrate(bp.prepare(pair(nn.Conv2d), config, example_inputs=(X,)), data=[X]).eval()
    assert any(isinstance(m, FixedStep) for m in model.modules())
    int8 = bp.convert(model)
    assert int8.floating == []
    bp.verify(model, int8, data=[X], max_differing=0.1, min_agreement=0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: bp.extend.operation(Cube, "hardswish", kind="table"),
            ValueError,
            "has its own rules",
        ),
        (lambda: bp.extend.operation(Cube, "brand_new"), ValueError, "kind must be table, same"),
        (lambda: bp.extend.operation(3, "relu"), TypeError, "must be a class of modules"),
        (lambda: bp.extend.quantizer("lsq"), ValueError, "is a built-in quantizer"),
        (lambda: bp.extend.quantizer("new")(Cube), TypeError, "must derive from"),
        (lambda: bp.extend.quantized_layer(Cube, op="conv2d"), ValueError, "derive from torch's"),
        (lambda: bp.extend.quantized_layer(PlainConv)(Cube), TypeError, "QuantizedLayer"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
