"""Run the projections of an attention in integers, and its products and softmax in float."""

import copy
from typing import Any

from torch import Tensor, fx, nn

from bitpare.deploy.assemble import integer_layer
from bitpare.deploy.integer import IntegerProgram
from bitpare.deploy.numbers import Codes
from bitpare.nn import layers
from bitpare.nn.attention import QMultiheadAttention
from bitpare.nn.quantizer import Quantizer


class IntegerAttention(QMultiheadAttention):
    """An attention with integer projections. Its products and softmax are computed in float.

    bp_projections: the projections of query, key and value. bp_last: the output projection."""

    bp_projections: nn.ModuleList
    bp_last: nn.Module

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        given = (query, key, value)
        return [p(x) for p, x in zip(self.bp_projections, given, strict=True)]

    def _output(self, context: Tensor) -> Tensor:
        made: Tensor = self.bp_last(context)
        return made


def _linear(weight: Tensor, bias: Tensor | None, q: Quantizer | None, enter: Any) -> nn.Module:
    made: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layers.upgrade(made)
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    made.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    made.bp_weight, made.bp_input = q, enter
    return made


def _quantizer_of(modules: nn.ModuleDict, name: str) -> Any:
    return modules._modules.get(name)


def integer_attention(attention: Any, grids: list[Codes | None]) -> nn.Module:
    """Return the integer form of an attention. ``grids``: the grids of query, key and value, None
    where unknown."""
    grids = [*grids, None, None, None][:3]
    shape = (1, 1, attention.embed_dim)
    made = copy.copy(attention)
    made._parameters, made._modules = dict(attention._parameters), dict(attention._modules)
    made._buffers = dict(attention._buffers)
    quantizers = attention.bp_in
    if attention.in_proj_weight is not None:
        q = _quantizer_of(quantizers, "in_proj_weight")
        whole = _linear(attention.in_proj_weight, attention.in_proj_bias, q, None)
        projections = [_third(integer_layer(whole, shape, grid), i) for i, grid in enumerate(grids)]
    else:
        projections = []
        biases = [None] * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
        for name, bias, grid in zip(("q", "k", "v"), biases, grids, strict=True):
            weight = getattr(attention, f"{name}_proj_weight")
            layer = _linear(weight, bias, _quantizer_of(quantizers, f"{name}_proj_weight"), None)
            projections.append(integer_layer(layer, (1, 1, weight.shape[1]), grid))
    enter = _quantizer_of(attention.bp_values, "context")
    out = _linear(attention.out_proj.weight, attention.out_proj.bias, attention.bp_out, enter)
    last = integer_layer(out, shape)
    for name in ("in_proj_weight", "in_proj_bias", *(f"{n}_proj_weight" for n in "qkv")):
        if name in made._parameters:
            made._parameters[name] = None
    for name in ("bp_in", "bp_out", "out_proj"):
        made._modules.pop(name)
    made._modules["bp_values"] = nn.ModuleDict(
        {n: v for n, v in attention.bp_values.items() if n != "context"}
    )
    made.__class__ = IntegerAttention
    made.bp_projections, made.bp_last = nn.ModuleList(projections), last
    return made


def _third(body: fx.GraphModule, index: int) -> fx.GraphModule:
    """Return a layer's program with only one third of the outputs."""
    made = copy.deepcopy(body)
    program: Any = made.program0
    held = {name: tensor.chunk(3)[index].clone() for name, tensor in program.named_buffers()}
    made.program0 = IntegerProgram(program.spec, held)
    return made
