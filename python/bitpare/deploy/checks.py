"""Compare each operation of an integer model with the same operation of the prepared model."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from bitpare.deploy.assemble import VERSION, input_entry, output_entry
from bitpare.deploy.attention import IntegerAttention
from bitpare.deploy.integer import IntegerModel, IntegerProgram
from bitpare.deploy.items import Item, before_flattening
from bitpare.deploy.numbers import Codes, codes_of
from bitpare.deploy.traced import Traced
from bitpare.graph import cloned
from bitpare.nn.quantizer import ACTIVATIONS

RAW = ".raw"  # suffix for the input of a node's output quantizer
UNITS_OF_FLOATS = 2.0**14  # tolerance of float results: 2^-14 of the largest result
# Attention quantizes inside, where codes may differ by one, so its tolerance is 2^-6.
UNITS_OF_SEVERAL = 2.0**6
RESOLUTION = 2.0**-22


@dataclasses.dataclass
class LayerRow:
    """The difference between an integer operation and the fake-quantized one, for the same input
    codes.

    lsb: the largest difference in units. The unit is the result's scale. For float results it
    is the value of one accumulator unit. Without a fixed activation grid it is 2^-14 of the
    largest result, or 2^-6 for attention. differing: the share of elements that differ; float
    results differ if they are off by more than one unit. sqnr: the signal-to-noise ratio in dB."""

    name: str
    op: str
    elements: int = 0
    lsb: float = 0.0
    unequal: int = 0
    signal: float = 0.0
    noise: float = 0.0

    @property
    def differing(self) -> float:
        return self.unequal / max(self.elements, 1)

    @property
    def sqnr(self) -> float:
        return decibels(self.signal, self.noise)

    def add(self, expected: Tensor, got: Tensor, unit: Tensor | float, floats: bool) -> None:
        off = (got.double() - expected.double()).abs()
        steps = off / unit
        self.elements += off.numel()
        if off.numel():
            self.lsb = max(self.lsb, float(steps.max()))
        self.unequal += int((steps > (1.0 if floats else 0.5)).sum())
        self.signal += float(expected.double().square().sum())
        self.noise += float(off.square().sum())


def decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(max(signal, 1e-300) / noise)


def values_of(traced: Traced, x: Any) -> dict[str, Any]:
    """Return the value of each node of the prepared model, and the inputs of dynamic quantizers."""
    values: dict[str, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            # Later nodes may change the value in place.
            values[n.name] = value.clone() if isinstance(value, Tensor) else value
            return value

    def note(name: str) -> Any:
        def record(_: nn.Module, args: Any, kwargs: Any) -> None:
            given, other, activation = (*args, None, None, None)[:3]
            other = kwargs.get("other", other)
            # Copy the value, because plain may change it in place.
            given = given.clone() if other is None else given + other
            plain = (
                kwargs.get("plain") or ACTIVATIONS[kwargs.get("activation", activation) or "none"]
            )
            values[name + RAW] = plain(given).detach()

        return record

    leaves = [v for v in _pytree.tree_leaves(x) if isinstance(v, Tensor)]
    constants = traced.graph.bitpare_constants  # type: ignore[attr-defined]
    for name, value in constants.items():
        setattr(traced.root, name, value)
    hooks = [
        item.found.register_forward_pre_hook(note(node.name), with_kwargs=True)
        for node, item in traced.lowering.items.items()
        if item.found is not None and item.fields is not None and item.fields["op"] == "dynamic"
    ]
    try:
        Recorder(traced.root, graph=traced.graph).run(*leaves)
    finally:
        for hook in hooks:
            hook.remove()
    return values


class Check:
    """One operation, run as a program of its own. ``codes``: the grid that expected values are
    rounded to."""

    def __init__(
        self,
        row: LayerRow,
        program: IntegerProgram,
        inputs: list[str],
        output: str,
        codes: Codes | None,
        unit: Tensor | float | None,
    ) -> None:
        self.rows = [row]
        self.program, self.inputs, self.output = program, inputs, output
        self.codes, self.unit = codes, unit

    def run(self, values: dict[str, Any]) -> None:
        expected = values[self.output]
        if self.codes is not None:  # the prepared model quantizes the whole, not its parts
            expected = self.codes.nearest(expected)
        given = [values[name] for name in self.inputs]
        got = self.program(*given)[0].view(expected.shape)
        self.rows[0].add(expected, got, *_unit(self.unit, expected))


def _unit(
    unit: Tensor | float | None, expected: Tensor, units: float = UNITS_OF_FLOATS
) -> tuple[Tensor | float, bool]:
    """Return the unit in which differences are counted, and whether the result is float. Without a
    given unit it is the largest result divided by ``units``."""
    if unit is None:
        most = float(expected.abs().max()) if expected.numel() else 0.0
        return max(most, 1e-30) / units, True
    if isinstance(unit, Tensor) and expected.numel():  # not below the float resolution
        unit = unit.clamp(min=float(expected.abs().max()) * RESOLUTION)
    return unit, isinstance(unit, Tensor)


def checks_of(traced: Traced, integer: IntegerModel) -> Iterator[Check]:
    """Yield a check for each operation of the traced graph."""
    by_name = {n.name: n for n in traced.graph.nodes}
    for program in integer.body.children():
        if not isinstance(program, IntegerProgram):
            continue
        unquantized: dict[str, Any] = {}
        making = _CheckBuilder(traced, dict(program.named_buffers()))
        for node in program.spec["nodes"]:
            target = by_name[node["of"]]
            item = traced.lowering.items[target]
            if node["op"] == "quantize":  # together with its operation
                yield making.check(unquantized, item.inputs, target, then=node)
            elif item.before is not None and (item.fields or {})["op"] == "quantize":
                unquantized = node
            elif node["op"] == "dynamic":
                yield making.check(node, [], target, raw=target)
            elif item.before is not None:
                assert item.fields is not None  # the activation comes before the quantizer
                node = {**node, "bounds": item.fields["bounds"]}
                yield making.check(node, item.inputs, target, to_raw=True)
            elif "add" not in node:
                yield making.check(node, item.inputs, target)
            else:
                alone = {k: v for k, v in node.items() if k != "add"}
                first = by_name[node["add"]["first_of"]]
                yield making.check(alone, item.inputs[:1], first)
                pair = {"op": "pair", "name": target.name, "product": False, **node["add"]}
                yield making.check(pair, [first, item.inputs[1]], target)


@dataclasses.dataclass
class _CheckBuilder:
    """Builds programs of single operations. For a dynamic grid, the program includes the operation
    that computes the grid."""

    traced: Traced
    buffers: dict[str, Tensor]

    def check(
        self,
        node: dict[str, Any],
        inputs: list[fx.Node],
        target: fx.Node,
        raw: fx.Node | None = None,
        to_raw: bool = False,
        then: dict[str, Any] | None = None,
    ) -> Check:
        """Return a check of one operation. ``raw``: the node whose value is read before its
        quantizer. ``to_raw``: the result is such a value. ``then``: an operation on the result."""
        lowering = self.traced.lowering
        entries: list[dict[str, Any]] = []
        names: list[str] = []
        before: list[dict[str, Any]] = []
        sources = [before_flattening(lowering.items, n) for n in inputs]
        if sources and node["op"] != "weights" and lowering.found(sources[0]) is not None:
            raw, before = self._chain(sources[0])
        if raw is not None:
            entries.append(input_entry(raw, None, 0, lowering.rows(raw)))
            names.append(raw.name + RAW)
            numbers = [len(before)]
        else:
            distinct = list(dict.fromkeys(sources))
            as_floats = node["op"] == "weights"
            for value, n in enumerate(distinct):
                codes = None if as_floats else _codes(self.traced, n)
                entries.append(input_entry(n, codes, value, lowering.rows(n)))
            names = [n.name for n in distinct]
            numbers = [distinct.index(s) for s in sources]
        count = len(entries) + len(before)
        nodes = [*before, {**node, **_unbounded(node), "inputs": numbers, "output": count}]
        if then is not None:
            nodes.append({**then, "inputs": [count], "output": count + 1})
            count += 1
        unit, reached, item = self._unit(then or node, target)
        spec = {
            "version": VERSION,
            "values": count + 1,
            "inputs": entries,
            "nodes": nodes,
            "outputs": [output_entry(item, count, lowering.rows(target))],
        }
        program = IntegerProgram(spec, self._tensors(nodes))
        row = LayerRow(str(node["name"]), str(node["op"]))
        output = target.name + (RAW if to_raw else "")
        return Check(row, program, names, output, reached, unit)

    def _unit(
        self, node: dict[str, Any], target: fx.Node
    ) -> tuple[Tensor | float | None, Codes | None, Item]:
        """Return the result's unit, the codes it is compared in, and its item."""
        lowering = self.traced.lowering
        if node["op"] == "dynamic" or (node["op"] == "pool" and lowering.items[target].found):
            return None, None, Item("", [], None, found=lowering.items[target].found)
        if node["op"] == "weights" or node.get("dynamic"):
            return None, None, Item("", [], None)
        if node.get("float", False):
            multiplier = self.buffers[node["multiplier"]].abs().double()
            rank = 1 if lowering.rows(target) else len(target.meta["shape"]) - 1
            return multiplier.view(-1, *[1] * (rank - 1)), None, Item("", [], None)
        codes = _codes(self.traced, target)
        reached = codes if lowering.meanings[target].after is None else None
        return codes.scale, reached, Item("", [], codes)

    def _chain(self, source: fx.Node) -> tuple[fx.Node, list[dict[str, Any]]]:
        """Return the node that computes a dynamic grid, and the operations from there to
        ``source``."""
        items, moves = self.traced.lowering.items, []
        while (fields := items[source].fields) is None or fields["op"] != "dynamic":
            if fields is not None:
                moves.append({**fields, "name": source.name})
            source = items[source].inputs[0]
        moves.append({**fields, **_unbounded(fields), "name": source.name})
        moves.reverse()
        for i, move in enumerate(moves):
            move.update(inputs=[i], output=i + 1)
        return source, moves

    def _tensors(self, nodes: list[dict[str, Any]]) -> dict[str, Tensor]:
        named: list[Any] = []
        for node in nodes:
            named += [v for v in node.values() if isinstance(v, str)]
            named += node.get("tables") or []
        return {name: self.buffers[name] for name in named if name in self.buffers}


def _unbounded(node: dict[str, Any]) -> dict[str, Any]:
    """Drop the activation bounds, because the value before a dynamic quantizer already has them."""
    return {"bounds": [None, None]} if node["op"] == "dynamic" else {}


def _codes(traced: Traced, node: fx.Node) -> Codes:
    codes = traced.lowering.grid(node)
    assert codes is not None
    return codes


class PartCheck:
    """A check of a part that was converted separately, with the inputs of the prepared model. A
    traced part is checked operation by operation, another part as a whole."""

    def __init__(self, traced: Traced, path: str, made: nn.Module) -> None:
        self.made = made
        self.seen: list[tuple[Any, Any, Any]] = []
        self.row, self.unit = LayerRow(path, "layer"), None
        before: Any = traced.root.get_submodule(path)
        self.units = UNITS_OF_SEVERAL if isinstance(made, IntegerAttention) else UNITS_OF_FLOATS
        self.within: list[Any] = []
        self.part: Traced | None = None
        if isinstance(made, IntegerModel):
            self.part = traced.part(path)
            self.within = all_checks(self.part, made)
        elif getattr(before, "bp_output", None) is not None:
            codes = codes_of(before.bp_output)
            self.unit = None if codes is None else codes.scale
        before.register_forward_hook(self._note, with_kwargs=True)

    @property
    def rows(self) -> list[LayerRow]:
        found = [row for check in self.within for row in check.rows]
        prefix = self.row.name
        return [dataclasses.replace(r, name=f"{prefix}.{r.name}") for r in found] or [self.row]

    def _note(self, _: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        self.seen.append(cloned((args, kwargs, result)))

    def run(self, _: dict[str, Any]) -> None:
        seen, self.seen = self.seen, []
        for args, kwargs, expected in seen:
            if self.part is not None:
                values = values_of(self.part, (args, kwargs))
                for check in self.within:
                    check.run(values)
                continue
            with torch.no_grad():
                got = self.made(*args, **kwargs)
            pairs = zip(_pytree.tree_leaves(expected), _pytree.tree_leaves(got), strict=True)
            for a, b in pairs:
                if isinstance(a, Tensor) and a.is_floating_point():
                    self.row.add(a, b, *_unit(self.unit, a, self.units))


def all_checks(traced: Traced, integer: IntegerModel) -> list[Any]:
    """Return the checks of a traced model's operations and of the parts that could not be
    traced."""
    made: list[Any] = list(checks_of(traced, integer))
    done: list[str] = []
    for path, module in integer.body.named_modules():
        alone = isinstance(module, IntegerAttention | IntegerModel) or hasattr(module, "program0")
        if not path or not alone or any(path.startswith(f"{d}.") for d in done):
            continue
        done.append(path)
        made.append(PartCheck(traced, path, module))
    return made
