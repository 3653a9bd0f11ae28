"""Draw the placement graph: what a model computes and in which form, from top to bottom."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from bitpare.deploy.integer import WEIGHTED
from bitpare.deploy.traced import Traced, prepared_trace
from bitpare.errors import Uncalibrated, Unsupported
from bitpare.graph.ops import function_name
from bitpare.models import unwrapped
from bitpare.nn import layers
from bitpare.nn.hub import find_hub
from bitpare.nn.quantizer import Quantizer
from bitpare.report.layers import form_of
from bitpare.report.svg import Svg, clipped_name, number

INTEGER, QUANTIZED, FLOAT, END = "integer", "quantized", "float", "end"


@dataclasses.dataclass
class Step:
    """One row of the graph. inputs: the rows that it reads. chips: labels at its right side."""

    name: str
    kind: str
    form: str
    inputs: list[int]
    chips: list[str]
    shape: str = ""
    depth: int = 0


@dataclasses.dataclass
class Graph:
    """The steps of a model in the order of computation. note: why the graph is a tree of modules
    instead."""

    steps: list[Step]
    note: str = ""

    @property
    def counts(self) -> dict[str, int]:
        forms = [s.form for s in self.steps]
        return {f: forms.count(f) for f in (INTEGER, QUANTIZED, FLOAT) if f in forms}


def graph_of(model: nn.Module) -> Graph:
    """Return the graph of a prepared model after `convert`, or its tree of modules if it cannot be
    traced."""
    model = unwrapped(model)
    hub = find_hub(model, "report.html")
    if "" in hub.islands:
        reason = next(why for name, why, _ in hub.notes if name == "(the model)")
        return Graph(_modules(model), f"the forward could not be traced ({reason})")
    try:
        return _traced(prepared_trace(model, "report.html"))
    except (Unsupported, Uncalibrated) as error:  # the modules are there all the same
        return Graph(_modules(model), f"the forward could not be traced ({error})")


def _traced(traced: Traced) -> Graph:
    lowering = traced.lowering
    steps: list[Step] = []
    rows: dict[fx.Node, int] = {}

    def sources(nodes: Sequence[fx.Node]) -> list[int]:
        """Return the rows that are read. A node without a row passes on its own inputs."""
        found: list[int] = []
        for node in nodes:
            if node in rows:
                found.append(rows[node])
            else:
                found += sources(lowering.reads(node))
        return list(dict.fromkeys(found))

    for node in traced.graph.nodes:
        item = lowering.items.get(node)
        shape = "×".join(map(str, node.meta["shape"][1:])) if node.meta.get("shape") else ""
        if node.op == "placeholder":
            step = Step("input", "", END, [], [], shape)
        elif node.op == "output":
            step = Step("output", "", END, sources(node.all_input_nodes), [])
        elif item is not None and item.source is not None:
            step = Step(_place(traced.root, node), "quantize", INTEGER, sources([item.source]),
                        _chips(traced.root, node), shape)  # fmt: skip
        elif item is not None and item.fields is None:
            continue  # a value under another name
        elif item is not None:
            source = item.before or item
            assert source.fields is not None
            step = Step(source.name, _kind(source.fields), INTEGER, sources(lowering.reads(node)),
                        _chips(traced.root, node, source.name), shape)  # fmt: skip
        elif node in lowering.inside or not node.meta.get("tensor"):
            continue
        else:
            chips = _chips(traced.root, node)
            form = QUANTIZED if chips else FLOAT
            step = Step(_place(traced.root, node), _called(traced.root, node), form,
                        sources(node.all_input_nodes), chips, shape)  # fmt: skip
        rows[node] = len(steps)
        steps.append(step)
    return Graph(steps)


def _place(root: nn.Module, node: fx.Node) -> str:
    if node.op != "call_module":
        return node.name
    module = root.get_submodule(str(node.target))
    return module.name if isinstance(module, Quantizer) else str(node.target)


def _called(root: nn.Module, node: fx.Node) -> str:
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return "quantizer" if isinstance(module, Quantizer) else kind_of_module(module)
    return function_name(node)


def _kind(fields: dict[str, Any]) -> str:
    op = str(fields["op"])
    if op == "conv":
        name = "linear" if fields.get("linear") else "conv"
        groups = int(fields.get("groups", 1))
        kernel = "×".join(map(str, fields["kernel"]))
        name = name if name == "linear" else f"{name} {kernel}"
        name = f"{name} / {groups}" if groups > 1 else name
        return f"{name} + add" if "add" in fields else name
    if op == "weights":
        return "linear"
    if op == "dynamic":
        return "quantize at run time"
    if op == "pool":
        return "max pool" if fields.get("maximum") else "mean pool"
    if op == "pair":
        return "multiply" if fields.get("product") else "add"
    return op


def _chips(root: nn.Module, node: fx.Node, name: str = "") -> list[str]:
    """Return the integer formats of the weight and the result."""
    found: list[str] = []
    for place in dict.fromkeys((name, str(node.target))):
        module: Any = _submodule(root, place)
        weight = getattr(module, "bp_weight", None)
        if isinstance(weight, Quantizer):
            found.append(f"w {form_of(weight)}")
        after = module if isinstance(module, Quantizer) else getattr(module, "bp_output", None)
        if isinstance(after, Quantizer):
            found.append(f"a {form_of(after)}")
    return list(dict.fromkeys(found))


def _submodule(root: nn.Module, name: str) -> nn.Module | None:
    try:
        return root.get_submodule(name) if name else None
    except AttributeError:
        return None


def kind_of_module(module: nn.Module) -> str:
    name = type(module).__name__
    return name[1:] if type(module) in layers.QUANTIZED.values() else name


def _modules(model: nn.Module) -> list[Step]:
    """Return the tree of modules, with quantizers as chips of their layers."""
    steps: list[Step] = []
    rows: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, Quantizer) or "bp_" in name:
            continue
        weight, after = getattr(module, "bp_weight", None), getattr(module, "bp_output", None)
        chips = [f"w {form_of(weight)}"] if isinstance(weight, Quantizer) else []
        chips += [f"a {form_of(after)}"] if isinstance(after, Quantizer) else []
        depth = name.count(".") + 1 if name else 0
        own = any(True for _ in module.parameters(recurse=False))
        form = QUANTIZED if chips else FLOAT if own else END
        parent = rows.get(name.rpartition(".")[0]) if name else None
        rows[name] = len(steps)
        last = name.rpartition(".")[2] or "model"
        steps.append(Step(last, kind_of_module(module), form, [] if parent is None else [parent],
                          chips, depth=depth))  # fmt: skip
    return steps


def of_program(spec: dict[str, Any], forms: dict[str, str]) -> Graph:
    """Return the graph of an integer model. forms: the formats of the weights, by layer name."""
    steps = [Step("input", "", END, [], [], f"channels: {i['channels']}") for i in spec["inputs"]]
    rows = {i["value"]: k for k, i in enumerate(spec["inputs"])}
    for node in spec["nodes"]:
        chips = [f"w {forms.get(str(node['name']), 's8')}"] if node["op"] in WEIGHTED else []
        if "range" in node:
            chips.append(f"a {(node['range'][1] - node['range'][0]).bit_length()} bits")
        inputs = list(dict.fromkeys(rows[v] for v in node["inputs"]))
        steps.append(Step(str(node["name"]), _kind(node), INTEGER, inputs, chips))
        rows[node["output"]] = len(steps) - 1
    outputs = [rows[o["value"]] for o in spec["outputs"]]
    steps.append(Step("output", "", END, outputs, []))
    return Graph(steps)


def _lanes(graph: Graph) -> tuple[list[tuple[int, int, int]], int]:
    """Return (from, to, lane) for edges that pass over rows. Overlapping edges have different
    lanes."""
    jumps = sorted(
        ((i, k) for k, s in enumerate(graph.steps) for i in s.inputs if k - i > 1),
        key=lambda e: (e[1] - e[0], e[0]),
    )
    taken: list[list[tuple[int, int]]] = []
    found = []
    for begin, end in jumps:
        lane = next(
            (n for n, held in enumerate(taken) if all(end <= a or begin >= b for a, b in held)),
            len(taken),
        )
        if lane == len(taken):
            taken.append([])
        taken[lane].append((begin, end))
        found.append((begin, end, lane))
    return found, len(taken)


def draw(graph: Graph) -> Svg:
    """Draw a row for each step. Edges that skip rows run along the left side."""
    tree = bool(graph.note)
    jumps, lanes = ([], 0) if tree else _lanes(graph)
    row, box, gutter = 32.0, 23.0, 18.0 + 11.0 * lanes
    width = gutter + 690.0 + (14.0 * max((s.depth for s in graph.steps), default=0) if tree else 0)
    words = ", ".join(f"{n} {form}" for form, n in graph.counts.items())
    svg = Svg(width, row * len(graph.steps) + 4, f"placement graph: {words}", kind="graph")
    middle = gutter + 34.0
    for k, step in enumerate(graph.steps):
        y = 2 + k * row
        if not tree and k - 1 in step.inputs:
            svg.path(_arrow(middle, y - (row - box), y), "edge", mark=False)
    for begin, end, lane in jumps:
        a, b = 2 + begin * row + box * 0.5, 2 + end * row + box * 0.5
        at = gutter - 12 - 11 * lane
        d = (f"M{number(gutter)} {number(a)}H{number(at + 7)}q-7 0 -7 7V{number(b - 7)}"
             f"q0 7 7 7H{number(gutter - 1)}m-5 -3.5l5 3.5l-5 3.5")  # fmt: skip
        names = f"{graph.steps[begin].name} → {graph.steps[end].name}"
        svg.path(d, "edge skip", hover=names, mark=False)
    for k, step in enumerate(graph.steps):
        _draw_step(svg, step, gutter + (14.0 * step.depth if tree else 0.0), 2 + k * row, box)
    return svg


def _arrow(x: float, begin: float, end: float) -> str:
    return f"M{number(x)} {number(begin)}V{number(end - 1)}m-3.5 -4l3.5 4l3.5 -4"


def _draw_step(svg: Svg, step: Step, x: float, y: float, box: float) -> None:
    width = 680.0
    svg.rect(x, y, width, box, f"step {step.form}", hover=_told(step), radius=4)
    svg.rect(x, y, 5, box, f"edgebar {step.form}", radius=2)
    svg.text(x + 14, y + 15.5, clipped_name(step.name, 40), "t strong", hover=step.name)
    svg.text(x + 300, y + 15.5, clipped_name(step.kind, 26), "t")
    svg.text(x + 560, y + 15.5, step.shape, "t faint", anchor="end")
    at = x + width - 8
    for chip in reversed(step.chips):
        room = 6.3 * len(chip) + 10
        at -= room
        svg.rect(at, y + 4, room - 4, box - 8, f"chip {step.form}", mark=False, radius=3)
        svg.text(at + (room - 4) / 2, y + 15, chip, "t chiptext", anchor="middle")


def _told(step: Step) -> str:
    return ", ".join(v for v in (step.name, step.kind, step.form, *step.chips, step.shape) if v)
