"""Layers of what could not be traced, and attention: each becomes integers by itself, with floats
around it."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from bitpare.deploy.integer import IntegerProgram
from bitpare.deploy.lower import Lowering
from bitpare.deploy.numbers import Codes
from bitpare.deploy.refused import Refused
from bitpare.deploy.traced import Traced, layer_graph
from bitpare.graph import is_layer
from bitpare.nn import layers
from bitpare.nn.attention import QMultiheadAttention
from bitpare.nn.quantizer import Quantizer

# How far a part of a model may be from what it was, of its norm: past this it is something else.
MOST_ERROR = 0.05


def raw_module(root: nn.Module, node: fx.Node) -> nn.Module:
    """Return a copy of the module that a node calls, without the quantizer of its result."""
    module = copy.deepcopy(root.get_submodule(str(node.target)))
    held: Any = module if isinstance(module, Quantizer) else module._modules["bp_output"]
    held.bypass = True
    return module


def convert_calls(body: fx.GraphModule, traced: Traced) -> list[tuple[str, str]]:
    """Makes what a body calls, but could not be traced, integers part by part. Returns layers with
    quantized weights that stay in float, with the reason."""
    floating: list[tuple[str, str]] = []
    nodes = {str(n.target): n for n in traced.graph.nodes if n.op == "call_module"}
    for node in list(body.graph.nodes):
        target = str(node.target)
        if node.op != "call_module" or target not in nodes:
            continue
        module = body.get_submodule(target)
        if isinstance(module, (IntegerProgram, Quantizer, *layers.WEIGHTED)):
            continue  # layers stand in the trace's own list
        inputs = [a for a in nodes[target].args if isinstance(a, fx.Node)]
        grids = [traced.lowering.grid(n) for n in inputs]
        floating += _Island(body, target, traced, grids).convert()
    return floating


class _Island:
    """A module that is called as a whole."""

    def __init__(
        self, body: fx.GraphModule, target: str, traced: Traced, grids: list[Codes | None]
    ) -> None:
        self.body, self.target, self.traced, self.grids = body, target, traced, grids
        self.floating: list[tuple[str, str]] = []
        self.made: dict[str, nn.Module] = {}

    def convert(self) -> list[tuple[str, str]]:
        self._visit(self.body.get_submodule(self.target), self.target)
        if self.made:
            self._put(self.made)
        return self.floating

    def _visit(self, module: Any, path: str) -> None:
        try:
            made = self._converted(module, path)
        except Refused as refused:
            if isinstance(module, QMultiheadAttention) or module.bp_weight is not None:
                self.floating.append((path, str(refused)))
            return
        if made is not None:
            self.made[path] = made
            return
        for name, child in module.named_children():
            self._visit(child, f"{path}.{name}")

    def _converted(self, module: nn.Module, path: str) -> nn.Module | None:
        """None where the module's children are looked at instead."""
        calls = self.traced.calls.get(path)
        if isinstance(module, QMultiheadAttention):
            return integer_attention(module, self.grids if path == self.target else [])
        if isinstance(module, layers.WEIGHTED):
            if not calls:
                raise Refused("it was not called with the example inputs")
            first = next((a for a in calls[0].args if isinstance(a, Tensor)), None)
            if first is None:
                raise Refused("its input is not its first argument")
            return integer_layer(module, tuple(first.shape))
        if path in self.traced.islands or not calls or is_layer(module):
            return None
        if not any(isinstance(m, layers.WEIGHTED) for m in module.modules()):
            return None
        return self._part(path)

    def _part(self, path: str) -> nn.Module | None:
        from bitpare.deploy.convert import integer_model

        try:
            made = integer_model(self.traced.part(path))
        except Exception:  # what prepare traced in its owner need not trace by itself
            return None
        self.floating += [(f"{path}.{name}", why) for name, why in made.floating]
        return made

    def _put(self, made: dict[str, nn.Module]) -> None:
        """Replaces the layers, if the whole computes the same with them."""
        before = {path: self.body.get_submodule(path) for path in made}
        try:
            expected = self._run()
            for path, module in made.items():
                self.body.set_submodule(path, module)
            wrong = _error(expected, self._run()) > MOST_ERROR
            reason = "the module around it computes something else with it in integers"
        except Exception as error:
            wrong, reason = True, f"the module around it does more than call it ({error})"
        if wrong:
            for path, module in before.items():
                self.body.set_submodule(path, module)
                self.floating.append((path, reason))

    def _run(self) -> list[Tensor]:
        call = self.traced.calls[self.target][0]
        args, kwargs = copy.deepcopy((call.args, call.kwargs))
        with torch.no_grad():
            result = self.body.get_submodule(self.target)(*args, **kwargs)
        return [v for v in _pytree.tree_leaves(result) if isinstance(v, Tensor)]


def _error(expected: list[Tensor], got: list[Tensor]) -> float:
    if [t.shape for t in expected] != [t.shape for t in got]:
        return float("inf")
    off = sum(
        float((a.double() - b.double()).square().sum()) for a, b in zip(expected, got, strict=True)
    )
    all_of = sum(float(a.double().square().sum()) for a in expected)
    return (off / max(all_of, 1e-30)) ** 0.5


def integer_layer(layer: Any, shape: tuple[int, ...], known: Codes | None = None) -> fx.GraphModule:
    """A layer with a quantizer of its input, as a graph of one program. shape: of its input; known:
    the grid that its input is on already."""
    from bitpare.deploy.convert import assemble

    root, graph, value = layer_graph(layer, shape)
    lowering = Lowering(root, graph, {} if known is None else {value: known})
    if lowering.floating:
        raise Refused(lowering.floating[0][1])
    return assemble(root, graph, lowering)


# -- attention


class IntegerAttention(QMultiheadAttention):
    """Projections in integers; the products between, and the softmax, in float.

    bp_projections: of query, key and value. bp_last: of the output.
    """

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


def _held(modules: nn.ModuleDict, name: str) -> Any:
    return modules._modules.get(name)


def integer_attention(attention: Any, grids: list[Codes | None]) -> nn.Module:
    """grids: of query, key and value, as far as they are known."""
    grids = [*grids, None, None, None][:3]
    shape = (1, 1, attention.embed_dim)
    made = copy.copy(attention)
    made._parameters, made._modules = dict(attention._parameters), dict(attention._modules)
    made._buffers = dict(attention._buffers)
    quantizers = attention.bp_in
    if attention.in_proj_weight is not None:
        q = _held(quantizers, "in_proj_weight")
        whole = _linear(attention.in_proj_weight, attention.in_proj_bias, q, None)
        projections = [_third(integer_layer(whole, shape, grid), i) for i, grid in enumerate(grids)]
    else:
        projections = []
        biases = [None] * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
        for name, bias, grid in zip(("q", "k", "v"), biases, grids, strict=True):
            weight = getattr(attention, f"{name}_proj_weight")
            layer = _linear(weight, bias, _held(quantizers, f"{name}_proj_weight"), None)
            projections.append(integer_layer(layer, (1, 1, weight.shape[1]), grid))
    enter = _held(attention.bp_values, "context")
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
    """A third of a layer's outputs."""
    made = copy.deepcopy(body)
    program: Any = made.program0
    held = {name: tensor.chunk(3)[index].clone() for name, tensor in program.named_buffers()}
    made.program0 = IntegerProgram(program.spec, held)
    return made
