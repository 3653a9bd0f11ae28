"""Plan what prepare changes in a model: the traces, the islands that stay float, and every site."""

import dataclasses
import difflib
from typing import Any

from torch import fx, nn

from bitpare import graph as g
from bitpare.errors import Unsupported
from bitpare.graph.ops import function_name, op_of
from bitpare.quant.chains import Analysis, Point
from bitpare.quant.kinds import FUSED_ACTIVATIONS, kind_of

EVAL, TRAIN = False, True


@dataclasses.dataclass
class Site:
    """A place where a value is quantized.

    The value is the result of a layer (``layer``), an argument of the owner's forward
    (``placeholder``), or the result of a call in that forward (``owner``, and ``positions`` of
    the call in eval and train)."""

    names: list[str]  # the layers that compute the value, for overrides and the report
    point: Point
    channels: int | None
    layer: nn.Module | None = None
    owner: str | None = None
    positions: dict[bool, int] = dataclasses.field(default_factory=dict)
    placeholder: str | None = None
    operand: int | None = None
    activation: str = "none"
    add: bool = False
    norm: nn.Module | None = None
    runs: int = 1
    quantizer: nn.Module | None = None  # set when it is placed

    @property
    def name(self) -> str:
        return self.names[-1]


class Plan:
    """Traces a model, finds what cannot be traced, and lists the sites."""

    def __init__(
        self,
        model: nn.Module,
        calls: dict[bool, dict[str, list[g.Call]]],
        islands: dict[str, str],
        target: str,
    ) -> None:
        self.model, self.calls, self.islands = model, calls, dict(islands)
        self.target = target
        self.names = {module: name for name, module in model.named_modules()}
        self.results = {
            mode: {model.get_submodule(n): g.one_of([c.result for c in cs]) for n, cs in by.items()}
            for mode, by in calls.items()
        }
        self.traces: dict[str, dict[bool, g.OwnerTrace]] = {}
        self.aligned: dict[str, dict[bool, dict[int, Any]]] = {}
        self.sites: dict[Any, Site] = {}
        self.first: set[nn.Module] = set()
        self.last: set[nn.Module] = set()
        self.shared: list[tuple[str, str]] = []
        self.alone: list[nn.Module] = []  # layers inside islands, which no trace contains
        for name, module in model.named_modules():
            if g.is_owner(module) and self.call_of(name) is not None:
                self._trace_owner(name, module)
        self._analyse()

    def call_of(self, name: str) -> g.Call | None:
        for mode in (EVAL, TRAIN):
            if name in self.calls[mode]:
                return self.calls[mode][name][0]
        return None

    def _trace_owner(self, name: str, owner: nn.Module) -> None:
        call = self.call_of(name)
        if name in self.islands or call is None:
            return
        traces = {}
        with g.quiet_state(self.model):
            try:
                for mode in (EVAL, TRAIN):
                    owner.train(mode)
                    traces[mode] = g.trace_owner(owner, call, self.results[mode])
            except Unsupported as error:
                self.islands[name] = str(error)
                return
        self.traces[name] = traces
        self.aligned[name] = _align(owner, traces)

    # -- flat traces

    def _analyse(self) -> None:
        """Trace every maximal traceable part. A part that fails becomes an island, and tracing
        starts again."""
        while True:
            before = len(self.islands)
            self.sites, self.alone, self.shared = {}, [], []
            self.first, self.last = set(), set()
            self._visit("", self.model)
            if len(self.islands) == before:
                return

    def _visit(self, name: str, module: nn.Module) -> None:
        if self.call_of(name) is None and not isinstance(module, nn.ModuleList | nn.ModuleDict):
            return
        if name not in self.islands and type(module).forward is not nn.Module.forward:
            if g.is_layer(module):
                self.alone.append(module)
                return
            if self._trace_root(name, module):
                self._visit_islands(name)
                return
        self._visit_children(name, module)

    def _visit_islands(self, root: str) -> None:
        """Visit the children of islands inside a traced part; each is traced by itself."""
        inside = [i for i in self.islands if i != root and (not root or i.startswith(root + "."))]
        for island in inside:
            if not any(island.startswith(other + ".") for other in inside):
                self._visit_children(island, self.model.get_submodule(island))

    def _visit_children(self, name: str, module: nn.Module) -> None:
        for child, part in module.named_children():
            full = f"{name}.{child}" if name else child
            if self.names.get(part) == full:
                self._visit(full, part)

    def _trace_root(self, name: str, root: nn.Module) -> bool:
        call = self.call_of(name)
        assert call is not None
        opaque = {self.model.get_submodule(island) for island in self.islands}
        with g.quiet_state(self.model):
            for mode in (EVAL, TRAIN):
                root.train(mode)
                try:
                    trace = g.trace_flat(root, call, opaque, self.results[mode])
                except Unsupported as error:
                    self.islands[name] = str(error)
                    return False
                if not self._check_events(name, root, mode, trace):
                    return True  # the caller tries again without the island
                self._collect(name, root, mode, trace)
        return True

    def full_name(self, root: str, inside: str) -> str:
        return ".".join(part for part in (root, inside) if part)

    def _check_events(self, name: str, root: nn.Module, mode: bool, trace: g.FlatTrace) -> bool:
        """Return whether the owners make the calls of their own traces in every run. An owner that
        does not becomes an island."""
        for inside, runs in trace.events.items():
            full = self.full_name(name, inside)
            owner = root.get_submodule(inside)
            if full not in self.traces:
                if g.is_owner(owner):
                    self.islands.setdefault(full, "it was not called with the example inputs")
                    return False
                self._trace_owner(full, owner)
                if full not in self.traces:
                    continue
            expected = [g.event_key(owner, n) for n in self.traces[full][mode].events]
            if any(run != expected for run in runs):
                self.islands[full] = "its forward takes different paths from call to call"
                del self.traces[full]
                return False
        return True

    # -- sites

    def _collect(self, name: str, root: nn.Module, mode: bool, trace: g.FlatTrace) -> None:
        analysis = Analysis(root, trace, self.target)
        places: dict[nn.Module, set[tuple[str, int]]] = {}
        for node in trace.graph.nodes:
            if node.op == "call_module":
                owner, _, position = node.meta["site"]
                places.setdefault(root.get_submodule(str(node.target)), set()).add(
                    (owner, position)
                )
        for nodes, layers in ((analysis.first, self.first), (analysis.last, self.last)):
            layers.update(root.get_submodule(str(n.target)) for n in nodes if n.op == "call_module")
        for end, concat in analysis.shared.items():
            pair = (self._node_name(name, end), self._node_name(name, concat))
            if pair not in self.shared:
                self.shared.append(pair)
        for point in analysis.points:
            self._add_point(name, root, mode, trace, places, point)

    def _node_name(self, root: str, node: fx.Node) -> str:
        if node.op == "call_module":
            return self.full_name(root, str(node.target))
        if node.op == "placeholder":
            return self.full_name(root, "input")
        if "site" not in node.meta:
            return self.full_name(root, str(node.target))
        owner, _, position = node.meta["site"]
        what = function_name(node)
        return self.full_name(root, f"{owner}.{what}_{position}" if owner else f"{what}_{position}")

    def _add_point(
        self,
        name: str,
        root: nn.Module,
        mode: bool,
        trace: g.FlatTrace,
        places: dict[nn.Module, set[tuple[str, int]]],
        point: Point,
    ) -> None:
        names = [self._node_name(name, n) for n in point.chain]
        shape = point.node.meta.get("shape")
        channels = shape[1] if shape is not None and len(shape) > 1 else None
        site = Site(names, point, channels)
        key: Any
        if point.node.op == "placeholder":
            index = [n for n in trace.graph.nodes if n.op == "placeholder"].index(point.node)
            site.owner, site.placeholder = name, trace.entry.paths[index]
            key = (name, "input", site.placeholder)
        else:
            node = point.node
            layer = root.get_submodule(str(node.target)) if node.op == "call_module" else None
            inside, _, position = node.meta["site"]
            self._note_chain(root, site)
            site.runs = len(trace.events[inside])
            used_once = layer is not None and len(places[layer]) == 1
            in_owner = site.add and node is not point.chain[0]
            if layer is not None and g.is_layer(layer) and used_once and not in_owner:
                site.layer = layer
                site.add = False
                key = layer
            else:
                site.owner = self.full_name(name, inside)
                key = (
                    site.owner,
                    self.aligned[site.owner][mode].get(position),
                    point.operand and 1,
                )
                site.positions = self._positions(site.owner, mode, position)
                site.operand = None if point.operand is None else point.operand[1]
            if site.norm is not None and len(places[site.norm]) != 1:
                site.norm = None
        if key in self.sites:
            self.sites[key].point.nonnegative &= point.nonnegative
            if site.norm is None:
                self.sites[key].norm = None
        else:
            self.sites[key] = site

    def _note_chain(self, root: nn.Module, site: Site) -> None:
        """Note what the quantizer can compute too: the activation, the addition or the BatchNorm
        before it."""
        if site.point.operand is not None:
            return
        chain = site.point.chain
        end = kind_of(root, chain[-1])
        if end.activation in FUSED_ACTIVATIONS:
            site.activation = end.activation
        rest = chain[:-1] if site.activation != "none" else chain
        if not rest:
            return
        last, kind = rest[-1], kind_of(root, rest[-1]).kind
        own = chain[-1].meta["site"][:2]
        if kind == "add" and last.meta["site"][:2] == own and _is_plain_addition(root, last):
            site.add = True
        if kind == "norm" and last.op == "call_module":
            site.norm = root.get_submodule(str(last.target))

    def _positions(self, owner: str, mode: bool, position: int) -> dict[bool, int]:
        shared = self.aligned[owner][mode].get(position)
        return {
            m: k for m in (EVAL, TRAIN) for k, s in self.aligned[owner][m].items() if s == shared
        }


def _is_plain_addition(root: nn.Module, node: fx.Node) -> bool:
    return op_of(root, node).name == "add" and not node.kwargs and len(node.args) == 2


def _align(owner: nn.Module, traces: dict[bool, g.OwnerTrace]) -> dict[bool, dict[int, Any]]:
    """Give the calls of both modes names, so that the same call has the same name in both."""
    keys = {m: [g.event_key(owner, n) for n in traces[m].events] for m in (EVAL, TRAIN)}
    names: dict[bool, dict[int, Any]] = {m: {} for m in (EVAL, TRAIN)}
    if keys[EVAL] == keys[TRAIN]:
        names[EVAL] = names[TRAIN] = {i: i for i in range(len(keys[EVAL]))}
        return names
    numbers: dict[Any, int] = {}
    lists = {m: [numbers.setdefault(k, len(numbers)) for k in keys[m]] for m in (EVAL, TRAIN)}
    matcher = difflib.SequenceMatcher(None, lists[EVAL], lists[TRAIN], autojunk=False)
    for block in matcher.get_matching_blocks():
        for i in range(block.size):
            names[EVAL][block.a + i] = names[TRAIN][block.b + i] = ("both", block.a + i)
    for mode in (EVAL, TRAIN):
        for i in range(len(keys[mode])):
            names[mode].setdefault(i, (mode, i))
    return names
