"""Convert a traced model to integers: its graph, then the modules that could not be traced."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from bitpare.deploy.assemble import assemble, integer_layer
from bitpare.deploy.attention import integer_attention
from bitpare.deploy.integer import IntegerModel, IntegerProgram
from bitpare.deploy.numbers import Codes
from bitpare.deploy.traced import Traced
from bitpare.errors import Unsupported
from bitpare.graph import is_layer
from bitpare.nn import layers
from bitpare.nn.attention import QMultiheadAttention
from bitpare.nn.quantizer import Quantizer

# The largest error of a converted part, relative to the norm of its result. A larger error means
# that the module does more than call its layers.
MOST_ERROR = 0.05


def integer_model(traced: Traced) -> IntegerModel:
    """Convert a traced model, or a traced part of one."""
    with torch.no_grad():
        body = assemble(traced.root, traced.graph, traced.lowering)
        floating = traced.lowering.floating + _convert_calls(body, traced)
        floating = [(name.removeprefix(traced.prefix), why) for name, why in floating]
        body.requires_grad_(False)
    leaves, form = _pytree.tree_flatten(traced.arguments)
    constants = [torch.empty(0) if isinstance(v, Tensor) else v for v in leaves]
    return IntegerModel(body, form, constants, list(traced.arguments), floating)


def _convert_calls(body: fx.GraphModule, traced: Traced) -> list[tuple[str, str]]:
    """Convert the modules that a body calls but that could not be traced, layer by layer. Return
    the layers with quantized weights that stay in float, with the reason."""
    floating: list[tuple[str, str]] = []
    nodes = {str(n.target): n for n in traced.graph.nodes if n.op == "call_module"}
    for node in list(body.graph.nodes):
        target = str(node.target)
        if node.op != "call_module" or target not in nodes:
            continue
        module = body.get_submodule(target)
        if isinstance(module, (IntegerProgram, Quantizer, layers.QuantizedLayer)):
            continue  # the trace lists these layers itself
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
        self.converted: dict[str, nn.Module] = {}

    def convert(self) -> list[tuple[str, str]]:
        self._visit(self.body.get_submodule(self.target), self.target)
        if self.converted:
            self._put(self.converted)
        return self.floating

    def _visit(self, module: Any, path: str) -> None:
        try:
            converted = self._converted(module, path)
        except Unsupported as refused:
            if isinstance(module, QMultiheadAttention) or module.bp_weight is not None:
                self.floating.append((path, str(refused)))
            return
        if converted is not None:
            self.converted[path] = converted
            return
        for name, child in module.named_children():
            self._visit(child, f"{path}.{name}")

    def _converted(self, module: nn.Module, path: str) -> nn.Module | None:
        """Return the integer form of a module, or None if its children are to be converted
        instead."""
        calls = self.traced.calls.get(path)
        if isinstance(module, QMultiheadAttention):
            return integer_attention(module, self.grids if path == self.target else [])
        if isinstance(module, layers.QuantizedLayer):
            if not calls:
                raise Unsupported("it was not called with the example inputs")
            first = next((a for a in calls[0].args if isinstance(a, Tensor)), None)
            if first is None:
                raise Unsupported("its input is not its first argument")
            return integer_layer(module, tuple(first.shape))
        if path in self.traced.islands or not calls or is_layer(module):
            return None
        if not any(isinstance(m, layers.QuantizedLayer) for m in module.modules()):
            return None
        return self._part(path)

    def _part(self, path: str) -> nn.Module | None:
        try:
            converted = integer_model(self.traced.part(path))
        except Unsupported:  # it was traced inside its owner, but may not be traceable by itself
            return None
        self.floating += [(f"{path}.{name}", why) for name, why in converted.floating]
        return converted

    def _put(self, converted: dict[str, nn.Module]) -> None:
        """Replace the layers, unless the result of the whole module then differs."""
        before = {path: self.body.get_submodule(path) for path in converted}
        try:
            expected = self._run()
            for path, module in converted.items():
                self.body.set_submodule(path, module)
            wrong = _error(expected, self._run()) > MOST_ERROR
            reason = "the module around it computes something else with it in integers"
        except (AttributeError, TypeError) as error:  # a forward reads attributes of the layer
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
