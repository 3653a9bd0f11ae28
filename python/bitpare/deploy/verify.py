"""verify: whether what was trained is what runs."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from bitpare.deploy.convert import VERSION, Traced, input_entry, output_entry
from bitpare.deploy.integer import IntegerModel, IntegerProgram
from bitpare.deploy.lower import before_flattening
from bitpare.deploy.numbers import Codes
from bitpare.errors import Differs
from bitpare.quant.batches import first_of
from bitpare.quant.names import unwrapped
from bitpare.report.placement import table


@dataclasses.dataclass
class LayerRow:
    """How an integer operation differs from the fake-quantized one, given the same integers.

    lsb: the largest difference, in units of the result's scale (of floats: of what one unit of the
    accumulator is worth). differing: the share of elements that differ at all. sqnr: in dB.
    """

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
        return _decibels(self.signal, self.noise)

    def add(self, expected: Tensor, got: Tensor, unit: Tensor | float, floats: bool) -> None:
        off = (got.double() - expected.double()).abs()
        steps = off / unit
        self.elements += off.numel()
        if off.numel():
            self.lsb = max(self.lsb, float(steps.max()))
        self.unequal += int((steps > (1.0 if floats else 0.5)).sum())
        self.signal += float(expected.double().square().sum())
        self.noise += float(off.square().sum())


@dataclasses.dataclass
class Verification:
    """rows: one for each integer operation. zeros: (layer, weights that are 0 in one model only).

    samples, agreeing: of the outputs, if they are of classes, how often the largest is the same.
    """

    rows: list[LayerRow]
    zeros: list[tuple[str, int]]
    samples: int = 0
    agreeing: int = 0
    signal: float = 0.0
    noise: float = 0.0

    @property
    def lsb(self) -> float:
        return max((r.lsb for r in self.rows), default=0.0)

    @property
    def differing(self) -> float:
        return max((r.differing for r in self.rows), default=0.0)

    @property
    def agreement(self) -> float:
        return self.agreeing / self.samples if self.samples else 1.0

    @property
    def sqnr(self) -> float:
        return _decibels(self.signal, self.noise)

    def __str__(self) -> str:
        rows = [
            [r.name, r.op, r.elements, f"{r.lsb:.3g}", f"{r.differing:.2g}", f"{r.sqnr:.1f}"]
            for r in self.rows
        ]
        head = ["operation", "", "elements", "max LSB", "differing", "SQNR dB"]
        lines = table(head, rows)
        agreement = f", same class {self.agreement:.2%} of {self.samples}" if self.samples else ""
        lines.append(f"outputs: SQNR {self.sqnr:.1f} dB{agreement}")
        other = [f"{name} {count}" for name, count in self.zeros if count]
        lines.append("zero weights: " + (f"differ in {', '.join(other)}" if other else "the same"))
        return "\n".join(lines)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(max(signal, 1e-300) / noise)


def verify(
    model: nn.Module,
    integer: nn.Module,
    batches: Iterable[Any],
    *,
    max_lsb: float = 1.0,
    max_differing: float = 0.05,
    min_agreement: float = 0.99,
) -> Verification:
    """Compares a converted model with the prepared one in eval, operation by operation and whole.

    Each operation is given the integers that the prepared model has there, so that a difference is
    its own: one unit, where a value lies between two codes but for the rounding of floats. Past a
    bound it raises `Differs`, with the table; ``math.inf`` takes a bound away.
    """
    model = unwrapped(model)
    if not isinstance(integer, IntegerModel):
        raise TypeError(
            f"verify: the second model must come from bp.convert, got {type(integer).__name__}"
        )
    traced = Traced(model, "verify")
    checks = list(_checks(traced, integer))
    found = Verification([c.row for c in checks], _zeros(traced, integer))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                x = first_of(batch).to(traced.device)
                _compare_outputs(model(x), integer(x), found)
                values = _values(traced, x)
                for check in checks:
                    check.run(values)
    finally:
        model.train(was_training)
    _raise_past(found, max_lsb, max_differing, min_agreement)
    return found


def _raise_past(
    found: Verification, max_lsb: float, max_differing: float, min_agreement: float
) -> None:
    why = []
    if found.lsb > max_lsb + 1e-3:
        why.append(
            f"an operation differs by {found.lsb:.3g} units, at most {max_lsb:g} are allowed"
        )
    if found.differing > max_differing:
        why.append(f"of an operation {found.differing:.2g} of the elements differ")
    if found.agreement < min_agreement:
        why.append(f"the class is the same for {found.agreement:.2%} of the samples only")
    if any(count for _, count in found.zeros):
        why.append("weights are 0 in one of the models only")
    if why:
        raise Differs(f"verify: {'; '.join(why)}\n{found}")


def _compare_outputs(expected: Any, got: Any, found: Verification) -> None:
    pairs = zip(
        _pytree.tree_leaves(expected),
        _pytree.tree_leaves(got),
        strict=True,
    )
    for a, b in pairs:
        if not isinstance(a, Tensor) or not a.is_floating_point():
            continue
        found.signal += float(a.double().square().sum())
        found.noise += float((a.double() - b.double()).square().sum())
        if a.dim() == 2 and a.shape[1] > 1:
            found.samples += a.shape[0]
            found.agreeing += int((a.argmax(1) == b.argmax(1)).sum())


def _values(traced: Traced, x: Any) -> dict[str, Any]:
    """What each node of the prepared model gives."""
    values: dict[str, Any] = {}

    class Noting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            # What comes after may write into it.
            values[n.name] = value.clone() if isinstance(value, Tensor) else value
            return value

    leaves = [v for v in _pytree.tree_leaves(x) if isinstance(v, Tensor)]
    constants = traced.graph.bitpare_constants  # type: ignore[attr-defined]
    for name, value in constants.items():
        setattr(traced.root, name, value)
    Noting(traced.root, graph=traced.graph).run(*leaves)
    return values


class _Check:
    """One operation, as a program of its own."""

    def __init__(
        self,
        row: LayerRow,
        program: IntegerProgram,
        inputs: list[str],
        output: str,
        codes: Codes | None,
        unit: Tensor | float,
    ) -> None:
        self.row, self.program, self.inputs, self.output = row, program, inputs, output
        self.codes, self.unit = codes, unit

    def run(self, values: dict[str, Any]) -> None:
        expected = values[self.output]
        if self.codes is not None:  # in the prepared model the whole is quantized, not its parts
            expected = self.codes.nearest(expected)
        given = [values[name] for name in self.inputs]
        got = self.program(*given)[0].view(expected.shape)
        self.row.add(expected, got, self.unit, isinstance(self.unit, Tensor))


def _checks(traced: Traced, integer: IntegerModel) -> Iterator[_Check]:
    by_name = {n.name: n for n in traced.graph.nodes}
    for program in integer.programs:
        buffers = dict(program.named_buffers())
        for node in program.spec["nodes"]:
            target = by_name[node["of"]]
            inputs = list(traced.lowering.items[target].inputs)
            if "add" not in node:
                yield _check(traced, node, inputs, target, buffers)
                continue
            alone = {k: v for k, v in node.items() if k != "add"}
            first = by_name[node["add"]["first_of"]]
            yield _check(traced, alone, inputs[:1], first, buffers)
            pair = {"op": "pair", "name": target.name, "product": False, **node["add"]}
            yield _check(traced, pair, [first, inputs[1]], target, buffers)


def _check(
    traced: Traced,
    node: dict[str, Any],
    inputs: list[fx.Node],
    target: fx.Node,
    buffers: dict[str, Tensor],
) -> _Check:
    lowering = traced.lowering
    sources = [before_flattening(lowering.items, n) for n in inputs]
    distinct = list(dict.fromkeys(sources))
    entries = [input_entry(n, _codes(traced, n), value) for value, n in enumerate(distinct)]
    count = len(distinct)
    floats = bool(node.get("float", False))
    unit: Tensor | float
    codes, reached = None, None
    if floats:
        multiplier = buffers[node["multiplier"]].abs().double()
        unit = multiplier.view(-1, *[1] * (len(target.meta["shape"]) - 2))
    else:
        codes = _codes(traced, target)
        unit = codes.scale
        reached = codes if lowering.meanings[target].after is None else None
    numbers = [distinct.index(s) for s in sources]
    spec = {
        "version": VERSION,
        "values": count + 1,
        "inputs": entries,
        "nodes": [{**node, "inputs": numbers, "output": count}],
        "outputs": [output_entry(target, codes, count)],
    }
    named = [v for v in node.values() if isinstance(v, str)] + list(node.get("tables") or [])
    tensors = {name: buffers[name] for name in named if name in buffers}
    row = LayerRow(str(node["name"]), str(node["op"]))
    program = IntegerProgram(spec, tensors)
    return _Check(row, program, [n.name for n in distinct], target.name, reached, unit)


def _codes(traced: Traced, node: fx.Node) -> Codes:
    codes = traced.lowering.grid(node)
    assert codes is not None
    return codes


def _zeros(traced: Traced, integer: IntegerModel) -> list[tuple[str, int]]:
    """Of each layer, how many weights are 0 in one of the models only."""
    found = []
    for program in integer.programs:
        buffers = dict(program.named_buffers())
        for node in program.spec["nodes"]:
            if node["op"] != "conv":
                continue
            layer: Any = _layer(traced.root, node["name"])
            if layer is None:
                continue
            value = layer.quantized_weight().detach()
            codes = buffers[node["weight"]].reshape(value.shape)
            lost = (value == 0) & (codes != 0)  # a code may become 0 where its BatchNorm is
            found.append((node["name"], int(lost.sum())))
    return found


def _layer(root: nn.Module, name: str) -> Any:
    for candidate in (name, name.rpartition("_")[0]):
        try:
            module = root.get_submodule(candidate)
        except AttributeError:
            continue
        if hasattr(module, "quantized_weight"):
            return module
    return None
