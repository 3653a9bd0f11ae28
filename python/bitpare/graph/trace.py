"""Trace one owner, or everything below a module."""

import contextlib
import copy
import dataclasses
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from bitpare.errors import Unsupported
from bitpare.graph.entry import ENTRY, Entry, entry_function, make_entry
from bitpare.graph.state import Call, cloned, quiet_state
from bitpare.graph.tracer import CALLS, FlatTracer, OwnerTracer, Tracer, no_checkpointing


@contextlib.contextmanager
def _tracing() -> Iterator[None]:
    """Raise `Unsupported` for any error in the code of a forward while it is traced."""
    try:
        yield
    except Unsupported:
        raise
    except Exception as error:
        text = str(error).split("\n")[0][:80]
        if isinstance(error, fx.proxy.TraceError):
            reason = f"its forward depends on values or sizes of tensors ({text})"
        else:
            reason = f"its forward cannot be traced ({type(error).__name__}: {text})"
        raise Unsupported(reason) from error


def _run_tracer(
    tracer: Tracer,
    owner: nn.Module,
    entry: Entry,
    live: list[str],
    results: dict[nn.Module, Any],
) -> fx.Graph:
    """Return the owner's graph. Refuse a forward with side effects that a graph does not repeat.

    Tensors that the forward creates are constants; they become buffers of the owner, outside
    its state_dict."""
    kind = type(owner)
    tracer.example, tracer.results = entry.values, results
    attributes, buffers = dict(owner.__dict__), dict(owner._buffers)
    python_random, torch_random = random.getstate(), torch.get_rng_state()
    owner.__class__ = type(
        kind.__name__, (kind,), {ENTRY: entry_function(owner, entry, tracer, live)}
    )
    try:
        with no_checkpointing(), _tracing():
            graph = tracer.trace(owner)
    finally:
        owner.__class__ = kind
        after, after_buffers = dict(owner.__dict__), dict(owner._buffers)
        owner.__dict__.clear()
        owner.__dict__.update(attributes)
        owner._buffers.clear()
        owner._buffers.update(buffers)
    if python_random != random.getstate() or not torch.equal(torch_random, torch.get_rng_state()):
        raise Unsupported("its forward draws random numbers outside of torch's modules")
    constants = {
        name: value
        for name, value in {**after, **after_buffers}.items()
        if name.startswith("_tensor_constant")
    }
    changed = [
        k
        for k, v in after.items()
        if attributes.get(k, k) is not v and k not in constants and k not in live
    ]
    changed += [
        k for k, v in after_buffers.items() if buffers.get(k) is not v and k not in constants
    ]
    if changed:
        raise Unsupported(f"its forward assigns to {', '.join(sorted(changed))}")
    graph.bitpare_constants = constants  # type: ignore[attr-defined]
    return graph


@dataclasses.dataclass
class OwnerTrace:
    entry: Entry
    graph: fx.Graph
    frozen: dict[str, Any]  # numbers of the owner that are constants in the graph

    @property
    def events(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op in CALLS]


def event_key(owner: nn.Module, node: fx.Node) -> tuple[str, Any]:
    """Return the object that an event calls; it is the same in both traces."""
    if node.op != "call_module":
        return node.op, node.target
    return node.op, owner.get_submodule(str(node.target))


def _numbers_of(owner: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in owner.__dict__.items() if type(v) is float}


def trace_owner(owner: nn.Module, call: Call, results: dict[nn.Module, Any]) -> OwnerTrace:
    """Trace one owner with its children as leaves. Numbers stay variables if its forward allows
    it."""
    error: Unsupported | None = None
    for numbers in (True, False):
        entry = make_entry(owner, call, numbers)
        try:
            live = list(_numbers_of(owner)) if numbers else []
            graph = _run_tracer(OwnerTracer(), owner, entry, live, results)
            _try_graph(owner, graph, entry)
        except Unsupported as caught:
            error = caught
        else:
            _drop_unused(graph)
            return OwnerTrace(entry, graph, {} if numbers else _numbers_of(owner))
    assert error is not None
    raise error


def _drop_unused(graph: fx.Graph) -> None:
    """Remove numbers that nothing reads."""
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _try_graph(owner: nn.Module, graph: fx.Graph, entry: Entry) -> None:
    """Run the graph on the values that it was traced with, and raise any error."""
    if owner.training:  # eval has tried the same calls
        return
    held = dict(owner.__dict__)
    owner.__dict__.update(graph.bitpare_constants)  # type: ignore[attr-defined]
    try:
        with torch.no_grad(), _tracing():
            fx.Interpreter(owner, graph=graph).run(*cloned(entry.values))
    finally:
        owner.__dict__.clear()
        owner.__dict__.update(held)


@dataclasses.dataclass
class FlatTrace:
    graph: fx.Graph
    entry: Entry
    events: dict[str, list[list[tuple[str, Any]]]]
    uses: Counter[nn.Module]  # number of calls of each layer


def trace_flat(
    root: nn.Module, call: Call, opaque: set[nn.Module], results: dict[nn.Module, Any]
) -> FlatTrace:
    """Trace down to the layers and the opaque modules. Numbers are constants of this call."""
    tracer = FlatTracer(opaque)
    entry = make_entry(root, call, numbers=False)
    graph = _run_tracer(tracer, root, entry, [], results)
    uses = Counter(root.get_submodule(str(n.target)) for n in graph.nodes if n.op == "call_module")
    trace = FlatTrace(graph, entry, tracer.events, uses)
    _note_values(root, trace)
    return trace


class _Shapes(fx.Interpreter):
    """Notes for each node whether its value is a float tensor, and its shape or shapes."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["float"] = isinstance(value, Tensor) and value.is_floating_point()
        n.meta["tensor"] = isinstance(value, Tensor)
        n.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        if isinstance(value, tuple | list) and all(isinstance(v, Tensor) for v in value):
            n.meta["shapes"] = [tuple(v.shape) for v in value]
        return value


def _note_values(root: nn.Module, trace: FlatTrace) -> None:
    with quiet_state(root), torch.no_grad():
        probe = copy.deepcopy(root)
        for name, value in trace.graph.bitpare_constants.items():  # type: ignore[attr-defined]
            setattr(probe, name, value)
        with _tracing():
            _Shapes(probe, graph=trace.graph).run(*cloned(trace.entry.values))
