"""convert: from a prepared, trained model to one that runs in integers."""

import copy
import dataclasses
import inspect
import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from bitpare import graph as g
from bitpare.deploy.integer import IntegerModel, IntegerProgram, holder_of
from bitpare.deploy.lower import Item, Lowering, before_flattening
from bitpare.deploy.numbers import Codes
from bitpare.nn import layers
from bitpare.quant.names import find_hub, unwrapped

VERSION = 1


def convert(model: nn.Module) -> nn.Module:
    """A copy of a prepared model that computes in integers; the same call, on the same device.

    Weights become integers, BatchNorm goes into the requantization, activations into its clamps or
    into tables, residual additions into the convolution before them. What has no integer form is
    computed in float between integer parts, and listed in ``floating``. ``model`` is untouched.
    """
    model = unwrapped(model)
    traced = Traced(model, "convert")
    call, lowering = traced.call, traced.lowering
    with torch.no_grad():
        body = _Assembly(traced.root, traced.graph, lowering).build()
    signature = inspect.signature(type(model).forward)
    bound = signature.bind(model, *call.args, **call.kwargs)
    arguments = dict(list(bound.arguments.items())[1:])
    leaves, form = _pytree.tree_flatten(arguments)
    constants = [torch.empty(0) if isinstance(v, Tensor) else v for v in leaves]
    return IntegerModel(body, form, constants, list(arguments), lowering.floating)


class Traced:
    """A prepared model in eval, as `convert` sees it: a copy, its flat graph, what it means."""

    def __init__(self, model: nn.Module, caller: str) -> None:
        hub = find_hub(model, caller)
        self.device = hub.device_of(model)
        self.call = hub.example_call(model)
        self.root = copy.deepcopy(model).eval()
        g.clear_hooks(self.root)
        for module in self.root.modules():
            if isinstance(module, layers.NORMS):
                module.bp_tail = None  # each node computes what it says
        calls = g.record_calls(self.root, self.call, False)
        results = {self.root.get_submodule(n): c[0].result for n, c in calls.items() if c}
        with torch.no_grad():
            trace = g.trace_flat(self.root, self.call, set(), results)
            self.graph = trace.graph
            self.lowering = Lowering(self.root, self.graph)


@dataclasses.dataclass
class _Part:
    """A program in the making: the nodes it computes, floats it reads, values it gives."""

    nodes: list[fx.Node] = dataclasses.field(default_factory=list)
    entries: dict[tuple[fx.Node, Codes], int] = dataclasses.field(default_factory=dict)
    results: list[fx.Node] = dataclasses.field(default_factory=list)


class _Assembly:
    """Puts integer items into programs, and programs and what is in float into one graph.

    Stages: 0, 2, ... are in float, 1, 3, ... in integers; each reads earlier ones.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, lowering: Lowering) -> None:
        self.root, self.graph, self.lowering = root, graph, lowering
        self.items = lowering.items
        self.stages: dict[fx.Node, int] = {}
        self.flattened: dict[fx.Node, fx.Node] = {}  # read in float -> the image
        needed = self._needed()
        for node in graph.nodes:
            if node in needed:
                self.stages[node] = self._stage(node)

    def _needed(self) -> set[fx.Node]:
        found: set[fx.Node] = set()
        waiting = [n for n in self.graph.nodes if n.op in ("output", "placeholder")]
        while waiting:
            node = waiting.pop()
            if node in found:
                continue
            found.add(node)
            waiting += self._sources(node)
        return found

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        item = self.items.get(node)
        if item is None:
            return list(node.all_input_nodes)
        return [item.source] if item.source is not None else item.inputs

    def _stage(self, node: fx.Node) -> int:
        stages = [self.stages[s] for s in self._sources(node)]
        if node in self.items:
            return max((s if s % 2 else s + 1 for s in stages), default=1)
        return max((s + s % 2 for s in stages), default=0)

    # -- programs

    def build(self) -> fx.GraphModule:
        parts: dict[int, _Part] = {}
        for node in self.graph.nodes:
            if node in self.items and node in self.stages:
                parts.setdefault(self.stages[node], _Part()).nodes.append(node)
        for node in self.graph.nodes:
            if node not in self.stages:
                continue
            for source in self._sources(node):
                crosses = source in self.items and self.stages[source] != self.stages[node]
                part = parts[self.stages[source]] if crosses else None
                whole = before_flattening(self.items, source) if crosses else source
                if part is not None and whole not in part.results:
                    part.results.append(whole)
                if whole is not source:
                    self.flattened[source] = whole
        self.parts = parts
        programs = {s: self._program(parts[s]) for s in sorted(parts)}
        return self._graph_module(programs)

    def _program(self, part: _Part) -> IntegerProgram:
        numbers: dict[fx.Node, int] = {}
        nodes: list[dict[str, Any]] = []
        tensors: dict[str, Tensor] = {}
        for node in part.nodes:
            item = self.items[node]
            if item.source is not None:
                assert item.codes is not None
                numbers[node] = self._entry(part, item.source, item.codes)
        # Values are counted from the entries on.
        for node in part.nodes:
            for source in self.items[node].inputs:
                if source not in numbers and source not in part.nodes:
                    codes = self.lowering.grid(source)
                    assert codes is not None
                    numbers[source] = self._entry(part, source, codes)
        count = len(part.entries)
        for node in part.nodes:
            item = self.items[node]
            if item.source is not None:
                continue
            if item.fields is None:
                numbers[node] = numbers[item.inputs[0]]
                continue
            name = _unused(item.name, tensors)
            fields = {"name": name, **item.fields, **_named(item, name, tensors)}
            fields["of"] = node.name
            fields["positions"] = math.prod(node.meta["shape"][2:])  # of the example, for reports
            if item.codes is not None:  # for other runtimes
                fields["scale_of_output"] = item.codes.scale
                fields["zero_of_output"] = item.codes.zero
            fields["inputs"] = [numbers[s] for s in item.inputs]
            fields["output"] = numbers[node] = count
            count += 1
            nodes.append(fields)
        spec = {
            "version": VERSION,
            "values": count,
            "inputs": [
                input_entry(source, codes, v) for (source, codes), v in part.entries.items()
            ],
            "nodes": nodes,
            "outputs": [
                output_entry(node, self.items[node].codes, numbers[node]) for node in part.results
            ],
        }
        return IntegerProgram(spec, tensors)

    def _entry(self, part: _Part, source: fx.Node, codes: Codes) -> int:
        return part.entries.setdefault((source, codes), len(part.entries))

    # -- the graph around them

    def _graph_module(self, programs: dict[int, IntegerProgram]) -> fx.GraphModule:
        made = fx.Graph()
        values: dict[fx.Node, fx.Node] = {}
        modules: dict[str, Any] = {}
        for stage in range(max(self.stages.values()) + 1):
            if stage in programs:
                name = f"program{stage // 2}"
                modules[name] = programs[stage]
                part = self.parts[stage]
                args = tuple(values[source] for source, _ in part.entries)
                call = made.call_module(name, args)
                for i, node in enumerate(part.results):
                    values[node] = made.call_function(operator.getitem, (call, i))
                for node, whole in self.flattened.items():
                    if whole in part.results:
                        values[node] = made.call_function(torch.flatten, (values[whole], 1))
                continue
            for node in self.graph.nodes:
                if self.stages.get(node) != stage or node in self.items or node.op == "output":
                    continue
                values[node] = made.node_copy(node, values.__getitem__)
        output = next(n for n in self.graph.nodes if n.op == "output")
        made.node_copy(output, values.__getitem__)
        holder = _holder(self.root, modules, made, self.graph)
        return fx.GraphModule(holder, made, "IntegerBody")


def _holder(
    root: nn.Module, modules: dict[str, Any], made: fx.Graph, traced: fx.Graph
) -> nn.Module:
    """What the graph calls and reads: programs, and modules of the model."""
    held = nn.Module()
    for node in made.nodes:
        target = str(node.target)
        if node.op not in ("call_module", "get_attr") or target in modules:
            continue
        constants = traced.bitpare_constants  # type: ignore[attr-defined]
        path, _, last = target.rpartition(".")
        where = holder_of(held, path)
        if node.op == "call_module":
            where.add_module(last, root.get_submodule(target))
            continue
        value: Any = constants.get(target)
        if value is None:
            value = root
            for part in target.split("."):
                value = getattr(value, part)
        if isinstance(value, nn.Parameter):
            where.register_parameter(last, value)
        elif isinstance(value, Tensor):
            where.register_buffer(last, value)
        else:
            setattr(where, last, value)
    for name, module in modules.items():
        held.add_module(name, module)
    return held


def _unused(name: str, tensors: dict[str, Tensor]) -> str:
    """A layer that is used twice has its numbers twice."""
    made, count = name, 1
    while any(key.startswith(made + ".") for key in tensors):
        count += 1
        made = f"{name}_{count}"
    return made


def _named(item: Item, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The fields that name tensors, which are added to the others."""
    fields: dict[str, Any] = {}
    for field, held in item.tensors.items():
        if isinstance(held, list):
            keys = [None if t is None else f"{name}.{field}{i}" for i, t in enumerate(held)]
            tensors.update({k: t for k, t in zip(keys, held, strict=True) if k is not None})
            fields[field] = keys
        else:
            fields[field] = f"{name}.{field}"
            tensors[f"{name}.{field}"] = held
    return fields


def input_entry(source: fx.Node, codes: Codes, value: int) -> dict[str, Any]:
    """Of a spec: floats that become codes."""
    shape = source.meta["shape"]
    rows = len(shape) == 2
    return {
        "value": value,
        "channels": shape[-1] if rows else shape[1],
        "rows": rows,
        "scale": codes.scale,
        "range": codes.range,
    }


def output_entry(node: fx.Node, codes: Codes | None, value: int) -> dict[str, Any]:
    """Of a spec: codes that become floats, or floats as they are."""
    rows = len(node.meta["shape"]) == 2
    made: dict[str, Any] = {"value": value, "rows": rows, "floats": codes is None}
    if codes is not None:
        made |= {"scale": codes.scale, "zero": codes.zero}
    return made
