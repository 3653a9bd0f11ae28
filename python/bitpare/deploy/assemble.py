"""Combine integer programs and the float operations between them into one graph."""

import copy
import dataclasses
import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from bitpare.deploy.integer import Body, IntegerProgram, holder_of
from bitpare.deploy.items import Item, before_flattening
from bitpare.deploy.lower import lowered
from bitpare.deploy.lowering import Lowering
from bitpare.deploy.numbers import Codes
from bitpare.deploy.traced import layer_graph
from bitpare.errors import Unsupported
from bitpare.nn.quantizer import Quantizer

VERSION = 1


def assemble(root: nn.Module, graph: fx.Graph, lowering: Lowering) -> Body:
    """Return the graph of integer programs and the float operations between them."""
    return _Assembly(root, graph, lowering).build()


def integer_layer(layer: Any, shape: tuple[int, ...], known: Codes | None = None) -> fx.GraphModule:
    """Return the graph of a layer and its input quantizer, as one program. ``shape``: the shape of
    the input. ``known``: the grid of the input, if it is quantized already."""
    root, graph, value = layer_graph(layer, shape)
    lowering = lowered(root, graph, {} if known is None else {value: known})
    if lowering.floating:
        raise Unsupported(lowering.floating[0][1])
    return assemble(root, graph, lowering)


def raw_module(root: nn.Module, node: fx.Node) -> nn.Module:
    """Return a copy of the module that a node calls, without the quantizer of its result."""
    module = copy.deepcopy(root.get_submodule(str(node.target)))
    held: Any = module if isinstance(module, Quantizer) else module._modules["bp_output"]
    held.bypass = True
    return module


@dataclasses.dataclass
class _Part:
    """A program while it is built. entries: the values that it reads from outside, as codes or
    (None) as floats."""

    nodes: list[fx.Node] = dataclasses.field(default_factory=list)
    entries: dict[tuple[fx.Node, Codes | None], int] = dataclasses.field(default_factory=dict)
    results: list[fx.Node] = dataclasses.field(default_factory=list)


class _Assembly:
    """Puts integer items into programs, and connects programs and float operations in one graph.

    Stages alternate: 0, 2, ... are computed in float, 1, 3, ... in integers, and each reads
    earlier ones. raw: nodes whose float value a program reads -> the stage that computes the
    value."""

    def __init__(self, root: nn.Module, graph: fx.Graph, lowering: Lowering) -> None:
        self.root, self.graph, self.lowering = root, graph, lowering
        self.items = lowering.items
        self.stages: dict[fx.Node, int] = {}
        self.raw: dict[fx.Node, int] = {}
        self.flattened: dict[fx.Node, fx.Node] = {}  # flattened value, read in float -> its image
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
            waiting += self.lowering.reads(node)
        return found

    def _stage(self, node: fx.Node) -> int:
        item = self.items.get(node)
        in_float = max(
            (self.stages[s] + self.stages[s] % 2 for s in self.lowering.reads(node)), default=0
        )
        if item is None:
            return in_float
        if item.raw:
            self.raw[node] = in_float
            return in_float + 1
        return max((self._stage_after(s, item) for s in self.lowering.reads(node)), default=1)

    def _stage_after(self, source: fx.Node, item: Item) -> int:
        """Return the stage of a node that reads ``source`` in a program. It is the source's own
        stage, unless one uses floats and the other codes; then the value passes through a float
        stage."""
        stage, made = self.stages[source], self.items.get(source)
        if made is None:
            return stage + 1
        same = item.source is None and made.gives_floats == item.reads_floats
        return stage if same else stage + 2

    # -- programs

    def build(self) -> Body:
        parts: dict[int, _Part] = {}
        for node in self.graph.nodes:
            if node in self.items and node in self.stages:
                parts.setdefault(self.stages[node], _Part()).nodes.append(node)
        for node in self.graph.nodes:
            if node not in self.stages:
                continue
            for source in self.lowering.reads(node):
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
        numbers: dict[tuple[fx.Node, bool], int] = {}  # value numbers, of floats or codes
        for node in part.nodes:
            self._enter(part, node, numbers)
        count = len(part.entries)
        nodes: list[dict[str, Any]] = []
        tensors: dict[str, Tensor] = {}
        for node in part.nodes:
            item = self.items[node]
            if item.source is not None:
                continue
            if item.fields is None:
                numbers[node, item.gives_floats] = numbers[item.inputs[0], item.gives_floats]
                continue
            given = [numbers[s, item.reads_floats] for s in item.inputs]
            for step in (item.before, item):
                if step is None:
                    continue
                fields = self._fields(node, step, tensors)
                nodes.append({**fields, "inputs": given, "output": count})
                given, count = [count], count + 1
            numbers[node, item.gives_floats] = count - 1
        spec = {
            "version": VERSION,
            "values": count,
            "inputs": [
                input_entry(source, codes, v, self.lowering.rows(source))
                for (source, codes), v in part.entries.items()
            ],
            "nodes": nodes,
            "outputs": [
                output_entry(item, numbers[n, item.gives_floats], self.lowering.rows(n))
                for n, item in ((n, self.items[n]) for n in part.results)
            ],
        }
        return IntegerProgram(spec, tensors)

    def _enter(self, part: _Part, node: fx.Node, numbers: dict[tuple[fx.Node, bool], int]) -> None:
        """Register what a node reads from outside its program."""
        item = self.items[node]
        if item.source is not None:
            key: tuple[fx.Node, Codes | None] = (item.source, item.codes)
            numbers[node, False] = part.entries.setdefault(key, len(part.entries))
        for source in item.inputs:
            if source in part.nodes and not item.raw:
                continue
            codes = None if item.reads_floats else self.lowering.grid(source)
            number = part.entries.setdefault((source, codes), len(part.entries))
            numbers[source, item.reads_floats] = number

    def _fields(self, node: fx.Node, item: Item, tensors: dict[str, Tensor]) -> dict[str, Any]:
        assert item.fields is not None
        name = _unused(item.name, tensors)
        fields = {"name": name, **item.fields, **_named(item, name, tensors)}
        fields["of"] = node.name
        shape = node.meta["shape"]  # the shape with the example inputs, for reports
        rows = self.lowering.rows(node)
        fields["positions"] = math.prod(shape[1:-1] if rows else shape[2:])
        if item.codes is not None:  # for other runtimes
            fields["scale_of_output"] = item.codes.scale
            fields["zero_of_output"] = item.codes.zero
        return fields

    # -- the graph of programs and float operations

    def _graph_module(self, programs: dict[int, IntegerProgram]) -> Body:
        made = fx.Graph()
        values: dict[fx.Node, fx.Node] = {}
        modules: dict[str, Any] = {}
        raw: dict[fx.Node, fx.Node] = {}
        for stage in range(max(self.stages.values()) + 1):
            if stage in programs:
                name = f"program{stage // 2}"
                modules[name] = programs[stage]
                part = self.parts[stage]
                args = tuple(
                    (raw if codes is None and source in part.nodes else values)[source]
                    for source, codes in part.entries
                )
                call = made.call_module(name, args)
                for i, node in enumerate(part.results):
                    values[node] = made.call_function(operator.getitem, (call, i))
                for node, whole in self.flattened.items():
                    if whole in part.results:
                        values[node] = made.call_function(torch.flatten, (values[whole], 1))
                continue
            for node in self.graph.nodes:
                if self.raw.get(node) == stage:
                    modules[name := f"{node.name}_raw"] = raw_module(self.root, node)
                    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                    raw[node] = made.call_module(name, args, kwargs)
                if self.stages.get(node) != stage or node in self.items or node.op == "output":
                    continue
                values[node] = made.node_copy(node, values.__getitem__)
        output = next(n for n in self.graph.nodes if n.op == "output")
        made.node_copy(output, values.__getitem__)
        holder = _holder(self.root, modules, made, self.graph)
        return Body(holder, made, "IntegerBody")


def _holder(
    root: nn.Module, modules: dict[str, Any], made: fx.Graph, traced: fx.Graph
) -> nn.Module:
    """Return a module that contains the programs and modules that the graph calls or reads."""
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
    """Return an unused name. A layer that is called twice has its tensors twice."""
    made, count = name, 1
    while any(key.startswith(made + ".") for key in tensors):
        count += 1
        made = f"{name}_{count}"
    return made


def _named(item: Item, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the fields that name tensors, and add the tensors to ``tensors``."""
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


def input_entry(source: fx.Node, codes: Codes | None, value: int, rows: bool) -> dict[str, Any]:
    """Return an input of a spec: floats to quantize, or floats to keep."""
    shape = source.meta["shape"]
    channels = shape[-1] if rows else shape[1]
    made: dict[str, Any] = {"value": value, "channels": channels, "rows": rows}
    if codes is None:
        return {**made, "floats": True}
    return {**made, "scale": codes.scale, "range": codes.range}


def output_entry(item: Item, value: int, rows: bool) -> dict[str, Any]:
    """Return an output of a spec: codes to convert to floats, or floats."""
    made: dict[str, Any] = {"value": value, "rows": rows, "floats": item.gives_floats}
    if item.codes is not None:
        made |= {"scale": item.codes.scale, "zero": item.codes.zero}
    return made
