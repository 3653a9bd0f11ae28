"""Trace a prepared model in eval mode, for `convert` and `verify`."""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from bitpare import graph as g
from bitpare.deploy.lower import lowered
from bitpare.models import unwrapped
from bitpare.nn import layers
from bitpare.nn.hub import find_hub


class Traced:
    """A module with a call of it, its flat graph, and the lowering of the graph.

    islands: submodules that keep their own forward. calls: the calls of each submodule.
    arguments: the arguments of the call, by name."""

    def __init__(
        self, root: nn.Module, call: g.Call, islands: set[str], calls: dict[str, list[g.Call]]
    ) -> None:
        self.root, self.call, self.islands, self.calls = root, call, islands, calls
        self.prefix = ""  # prefix of names in the graph that the module itself does not have
        bound = inspect.signature(type(root).forward).bind(root, *call.args, **call.kwargs)
        self.arguments = dict(list(bound.arguments.items())[1:])
        with torch.no_grad():
            if "" in islands:
                self._as_one_call()
            elif isinstance(root, layers.QuantizedLayer):
                shape = tuple(next(iter(self.arguments.values())).shape)
                self.root, self.graph, _ = layer_graph(root, shape)
                self.calls, self.prefix = {}, "layer"
            else:
                results = {root.get_submodule(n): c[0].result for n, c in calls.items() if c}
                opaque = {root.get_submodule(name) for name in islands}
                self.graph = g.trace_flat(root, call, opaque, results).graph
            self.lowering = lowered(self.root, self.graph)

    def _as_one_call(self) -> None:
        """Set a graph that only calls the module, because it cannot be traced."""
        graph, held = fx.Graph(), nn.Module()
        held.model = self.root
        graph.bitpare_constants = {}  # type: ignore[attr-defined]
        named: dict[int, fx.Node] = {}
        for value in _pytree.tree_leaves(self.arguments):
            if isinstance(value, Tensor) and id(value) not in named:
                node = graph.placeholder(f"arg{len(named)}")
                node.meta.update(
                    shape=tuple(value.shape), float=value.is_floating_point(), tensor=True
                )
                named[id(value)] = node
        args, kwargs = _pytree.tree_map(
            lambda v: named[id(v)] if isinstance(v, Tensor) else v,
            (self.call.args, self.call.kwargs),
        )
        result = graph.call_module("model", args, kwargs)
        result.meta.update(shape=None, float=False)
        graph.output(result)
        self.graph, self.root, self.prefix = graph, held, "model."
        self.islands = {f"model.{name}".rstrip(".") for name in self.islands}
        self.calls = {f"model.{name}".rstrip("."): found for name, found in self.calls.items()}

    def part(self, path: str) -> "Traced":
        """Return the trace of a submodule."""
        start = f"{path}."

        def below(name: str) -> bool:
            return name == path or name.startswith(start)

        return Traced(
            self.root.get_submodule(path),
            self.calls[path][0],
            {name[len(start) :] for name in self.islands if below(name)},
            {name[len(start) :]: found for name, found in self.calls.items() if below(name)},
        )


def prepared_trace(model: nn.Module, caller: str) -> Traced:
    """Trace a copy of a prepared model."""
    model = unwrapped(model)
    hub = find_hub(model, caller)
    call = hub.example_call(model)
    root = copy.deepcopy(model).eval()
    g.clear_hooks(root)
    for module in root.modules():
        if isinstance(module, layers.NORMS):
            module.bp_tail = None  # trace each node by itself, not fused
    calls = g.record_calls(root, call, False)
    return Traced(root, call, set(hub.islands), calls)


def layer_graph(layer: Any, shape: tuple[int, ...]) -> tuple[nn.Module, fx.Graph, fx.Node]:
    """Return a module with the layer and its input quantizer, its graph, and the graph's input
    node. ``shape``: the shape of the input."""
    root, graph = nn.Module(), fx.Graph()
    root.layer = copy.copy(layer)  # a copy that shares the weights
    root.layer._modules = {**layer._modules, "bp_input": None}
    value = given = graph.placeholder("x")
    if layer.bp_input is not None:
        root.enter = layer.bp_input
        value = graph.call_module("enter", (value,))
    result = graph.call_module("layer", (value,))
    graph.output(result)
    outputs = getattr(layer, "out_features", getattr(layer, "out_channels", 0))
    made = (
        (*shape[:-1], outputs) if isinstance(layer, nn.Linear) else (shape[0], outputs, *shape[2:])
    )
    for node, size in ((given, shape), (value, shape), (result, made)):
        node.meta.update(shape=size, float=True, tensor=True)
    graph.bitpare_constants = {}  # type: ignore[attr-defined]
    return root, graph, value
