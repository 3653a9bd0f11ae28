"""Extend torch.fx to trace more forwards, and refuse what a graph cannot represent."""

import collections
import contextlib
import dataclasses
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, fx, nn

from bitpare.errors import Unsupported
from bitpare.graph.entry import ENTRY
from bitpare.graph.results import unpacked

CALLS = ("call_function", "call_method", "call_module")
# Classes that users registered as layers, which are not traced into.
LAYERS: set[type] = set()


def is_layer(module: nn.Module) -> bool:
    """Return whether a module is not traced into: a layer of torch.nn, or of a registered class."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Transformer)
    composed = (
        nn.TransformerEncoder,
        nn.TransformerDecoder,
        nn.TransformerEncoderLayer,
        nn.TransformerDecoderLayer,
    )
    kind = getattr(type(module), "_bitpare_source", (type(module), ""))[0]
    ours = getattr(type(module), "_bitpare_layer", False) or kind in LAYERS
    inside = type(module).__module__.startswith("torch.nn.")
    return ours or (inside and not isinstance(module, containers + composed))


def is_owner(module: nn.Module) -> bool:
    """Return whether a module has its own forward that calls other modules or functions."""
    plain = (nn.Sequential.forward, nn.Module.forward)
    return not is_layer(module) and type(module).forward not in plain


def _modes() -> tuple[bool, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )


def require_rank(value: Tensor | tuple[Any, ...] | list[Any], rank: int) -> None:
    """Raise Unsupported if a value has another number of dimensions or parts than in the trace. The
    call is part of the graph; it does nothing while that graph is traced again."""
    if isinstance(value, fx.Proxy):
        return
    held = value.shape if isinstance(value, Tensor) else value
    if len(held) == rank:
        return
    if isinstance(held, torch.Size):
        what, got = "dimensions", f"{len(held)}: {tuple(held)}"
    else:
        what, got = "parts", str(len(held))
    raise Unsupported(f"prepared with example inputs of {rank} {what} here, got {got}")


class _Proxy(fx.Proxy):
    """A proxy that knows its number of dimensions, because forwards branch on it."""

    tracer: "Tracer"

    def __len__(self) -> int:
        rank = self.tracer.rank_of(self, tuple, list)
        return super().__len__() if rank is None else rank

    def __getattr__(self, k: str) -> Any:
        if k == "shape":
            return self.tracer.create_proxy("call_function", getattr, (self, k), {})
        if k in ("ndim", "dim", "ndimension"):
            rank = self.tracer.rank_of(self, Tensor)
            if rank is not None:
                return rank if k == "ndim" else lambda: rank
        if k == "is_nested":  # the example is not, and a nested tensor has no shape to trace
            return False
        return super().__getattr__(k)


class Tracer(fx.Tracer):
    """A tracer that refuses modes that change in the middle of a forward.

    It may unpack sizes and count dimensions: to know them, it runs the nodes before on the
    values of the example call. It does the same for the results of functions. The structure of
    modules' results comes from ``results``."""

    proxy_buffer_attributes = True
    traced_func_name = ENTRY

    def __init__(self) -> None:
        super().__init__()
        self._modes_at_start = _modes()
        self.example: list[Any] = []  # values of the placeholders
        self.results: dict[nn.Module, Any] = {}
        self._known: dict[fx.Node, Any] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def iter(self, obj: fx.Proxy) -> Iterator[fx.Proxy]:
        rank = self.rank_of(obj, tuple, list)
        if rank is None:
            return super().iter(obj)
        return iter([obj[i] for i in range(rank)])

    def rank_of(self, obj: fx.Proxy, *kinds: type) -> int | None:
        """Return the number of dimensions or parts of such a value, and add a check of it to the
        graph."""
        try:
            value = self._value_of(obj.node)
        except Exception:  # fx then raises an error that says what could not be traced
            return None
        if not isinstance(value, kinds):
            return None
        held: Any = value.shape if isinstance(value, Tensor) else value
        rank = len(held)
        self.create_proxy("call_function", require_rank, (obj, rank), {})
        return rank

    def _value_of(self, node: fx.Node) -> Any:
        if node not in self._known:
            args = fx.node.map_arg(node.args, self._value_of)
            kwargs = fx.node.map_arg(node.kwargs, self._value_of)
            self._known[node] = self._run(node, args, kwargs)
        return self._known[node]

    def _run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "placeholder":
            return self.example[int(str(node.target).removeprefix("arg"))]
        with untraced(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            if node.op == "get_attr":
                held = self.root
                for name in str(node.target).split("."):
                    held = getattr(held, name)
                return held
            if node.op == "call_function":
                return node.target(*args, **kwargs)  # type: ignore[operator]
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            module = self.root.get_submodule(str(node.target))
            modes = {m: m.training for m in module.modules()}
            try:
                return module.eval()(*args, **kwargs)  # sizes are the same in training
            finally:
                for m, mode in modes.items():
                    m.training = mode

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, dict) and type(a) is not dict:
            return self._own_dict(a)
        return super().create_arg(a)

    def _own_dict(self, a: dict[Any, Any]) -> fx.Node:
        """Create a node for a dict of another class, as some libraries return for results with
        fields."""
        kind, items = type(a), {key: self.create_arg(value) for key, value in a.items()}
        if dataclasses.is_dataclass(a):
            return self.create_node("call_function", kind, (), items)
        if kind is collections.OrderedDict:
            return self.create_node("call_function", kind, (items,), {})
        raise Unsupported(f"its forward creates a {kind.__name__}, an unknown subclass of dict")

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        if kind in CALLS and _modes() != self._modes_at_start:
            raise Unsupported("the grad or autocast mode changes inside its forward")
        node = super().create_node(kind, *args, **kwargs)
        if node.name == "self":  # the result of a child named self
            node._rename("self_value")
        return node


class OwnerTracer(Tracer):
    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = super().call_module(m, forward, args, kwargs)
        return unpacked(self.results.get(m), result, lambda: None)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class FlatTracer(Tracer):
    """Traces down to the layers. ``events[owner]`` lists the calls in each run of the owner's
    forward. A node's meta["site"] is (owner, run, position)."""

    def __init__(self, opaque: set[nn.Module]) -> None:
        super().__init__()
        self.opaque = opaque
        self.frames: list[tuple[str, int]] = [("", 0)]
        self.events: dict[str, list[list[tuple[str, Any]]]] = {"": [[]]}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.opaque or is_layer(m)

    def _event(self, kind: str, target: Any) -> tuple[str, int, int]:
        name, run = self.frames[-1]
        self.events[name][run].append((kind, target))
        return name, run, len(self.events[name][run]) - 1

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = self.path_of_module(m)
        parts = self.results.get(m)
        if self.is_leaf_module(m, name):
            return unpacked(parts, super().call_module(m, forward, args, kwargs), lambda: None)
        self._event("call_module", m)
        runs = self.events.setdefault(name, [])
        runs.append([])
        self.frames.append((name, len(runs) - 1))
        try:
            result = super().call_module(m, forward, args, kwargs)
        finally:
            self.frames.pop()
        return unpacked(parts, result, lambda: self._event("call_function", operator.getitem))

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        if kind in CALLS:
            what = self.root.get_submodule(target) if kind == "call_module" else target
            node.meta["site"] = self._event(kind, what)
        return node


@contextlib.contextmanager
def no_checkpointing() -> Iterator[None]:
    def refuse(*_: Any, **__: Any) -> None:
        raise Unsupported("activation checkpointing inside its forward")

    original = torch.utils.checkpoint.checkpoint
    torch.utils.checkpoint.checkpoint = refuse
    try:
        yield
    finally:
        torch.utils.checkpoint.checkpoint = original


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """Let modules run normally inside the block, while a trace is being made."""
    patched = nn.Module.__call__, nn.Module.__getattr__
    nn.Module.__call__ = fx._symbolic_trace._orig_module_call  # type: ignore[method-assign]
    nn.Module.__getattr__ = fx._symbolic_trace._orig_module_getattr  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = patched  # type: ignore[method-assign]
