"""The one tracer: what a model does, as graphs, without changing the model.

An *owner* is a module that is no layer of torch.nn and calls others in a forward of its own. It is
traced with its children as leaves (``trace_owner``): that graph can be edited and becomes a new
forward. A *flat* trace (``trace_flat``) goes through all owners down to the layers of torch.nn: it
shows what feeds what. Each call in a flat trace knows its place: the owner and the position among
the calls of that owner's forward, which is the same in both traces.
"""

import collections
import contextlib
import copy
import dataclasses
import inspect
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, fx, nn
from torch.utils import _pytree

from bitpare.errors import Unsupported

CALLS = ("call_function", "call_method", "call_module")
ENTRY = "_bitpare_entry"


@dataclasses.dataclass
class Call:
    """The arguments of one call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one of torch.nn's own that computes, and so is never looked into."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Transformer)
    composed = (
        nn.TransformerEncoder,
        nn.TransformerDecoder,
        nn.TransformerEncoderLayer,
        nn.TransformerDecoderLayer,
    )
    ours = getattr(type(module), "_bitpare_layer", False)
    inside = type(module).__module__.startswith("torch.nn.")
    return ours or (inside and not isinstance(module, containers + composed))


def is_owner(module: nn.Module) -> bool:
    """Whether a module has a forward of its own that calls other modules or functions."""
    plain = (nn.Sequential.forward, nn.Module.forward)
    return not is_layer(module) and type(module).forward not in plain


def _copied(values: Any) -> Any:
    return _pytree.tree_map(lambda value: value, values)


@contextlib.contextmanager
def quiet_state(model: nn.Module) -> Iterator[None]:
    """Random numbers, buffers and modes come out as they went in."""
    python_state = random.getstate()
    modes = {module: module.training for module in model.modules()}
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)
            for module, mode in modes.items():
                module.training = mode


_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@contextlib.contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """Calls nothing of the user's but the forwards."""
    held = [(m, {name: m.__dict__[name] for name in _HOOKS}) for m in model.modules()]
    for module, hooks in held:
        module.__dict__.update({name: type(hooks[name])() for name in hooks})
    try:
        yield
    finally:
        for module, hooks in held:
            module.__dict__.update(hooks)


def clear_hooks(model: nn.Module) -> None:
    for module in model.modules():
        for name in _HOOKS:
            module.__dict__[name].clear()


def record_calls(model: nn.Module, call: Call, training: bool) -> dict[str, list[Call]]:
    """The calls of each module, by its first name, in one run of a copy of the model."""
    with quiet_state(model):
        probe = copy.deepcopy(model).train(training)
        clear_hooks(probe)
        found: dict[str, list[Call]] = {}

        def recorder(name: str) -> Callable[..., None]:
            def record(_: nn.Module, args: Any, kwargs: Any) -> None:
                found.setdefault(name, []).append(Call(*_copied((args, kwargs))))

            return record

        for name, module in probe.named_modules():
            module.register_forward_pre_hook(recorder(name), with_kwargs=True)
        with torch.no_grad():
            probe(*_copied(call.args), **_copied(call.kwargs))
    return found


def _signature(owner: nn.Module) -> inspect.Signature:
    return inspect.signature(type(owner).forward)


@dataclasses.dataclass
class Entry:
    """A module's call with its tensors (and numbers, where they may vary) as flat placeholders.

    header: the source of the parameters of a forward. paths: for each placeholder, the expression
    that finds it among them. guards: what must hold of the rest. rebuild: from the flat values to
    the arguments of the module's forward.
    """

    header: str
    paths: list[str]
    guards: list[str]
    rebuild: Callable[[tuple[Any, ...]], tuple[list[Any], dict[str, Any]]]
    values: list[Any]


def _flatten(expression: str, value: Any, entry: Entry, numbers: bool) -> Callable[[Any], Any]:
    """Adds value's tensors to the entry; returns what rebuilds value from the flat ones."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, Tensor) or (numbers and is_number):
        index = len(entry.paths)
        entry.paths.append(expression)
        entry.values.append(value)
        return lambda flat: flat[index]
    if isinstance(value, list | tuple):
        entry.guards.append(f"len({expression}) == {len(value)}")
        parts = [
            _flatten(f"{expression}[{i}]", v, entry, numbers and not isinstance(value, torch.Size))
            for i, v in enumerate(value)
        ]
        if hasattr(value, "_fields"):
            return lambda flat: type(value)(*(part(flat) for part in parts))
        kind = list if isinstance(value, list) else tuple
        return lambda flat: kind(part(flat) for part in parts)
    if isinstance(value, dict):
        if not all(isinstance(key, str | int) for key in value):
            raise Unsupported("a dictionary with keys that are neither strings nor integers")
        entry.guards.append(f"list({expression}) == {list(value)!r}")
        named = {
            key: _flatten(f"{expression}[{key!r}]", v, entry, numbers) for key, v in value.items()
        }
        return lambda flat: {key: part(flat) for key, part in named.items()}
    if value is None or isinstance(value, bool):
        entry.guards.append(f"{expression} is {value!r}")
    elif isinstance(value, int | float | str):
        entry.guards.append(f"{expression} == {value!r}")
    return lambda flat: value


def make_entry(owner: nn.Module, call: Call, numbers: bool) -> Entry:
    parameters = list(_signature(owner).parameters.values())[1:]
    bound = _signature(owner).bind(owner, *call.args, **call.kwargs)
    given = set(bound.arguments)
    bound.apply_defaults()
    entry = Entry("self", [], [], lambda flat: ([], {}), [])
    parts, keyword_only = {}, False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not keyword_only:
            entry.header += ", *"
            keyword_only = True
        stars = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
        keyword_only = keyword_only or p.kind is p.VAR_POSITIONAL
        default = "" if p.default is p.empty else f"=_bitpare_defaults[{p.name!r}]"
        entry.header += f", {stars}{p.name}{default}"
        parts[p.name] = _flatten(p.name, bound.arguments[p.name], entry, numbers)

    def rebuild(flat: tuple[Any, ...]) -> tuple[list[Any], dict[str, Any]]:
        """As the example call gave them: a decorated forward may look at what is there."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for index, p in enumerate(parameters):
            value = parts[p.name](flat)
            if p.kind is p.VAR_POSITIONAL:
                args.extend(value)
            elif p.kind is p.VAR_KEYWORD:
                kwargs.update(value)
            elif p.name not in given:
                continue
            elif index < len(call.args) and p.kind is not p.KEYWORD_ONLY:
                args.append(value)
            else:
                kwargs[p.name] = value
        return args, kwargs

    entry.rebuild = rebuild
    return entry


def _entry_function(
    owner: nn.Module, entry: Entry, tracer: fx.Tracer, live: list[str]
) -> Callable[..., Any]:
    """A forward whose parameters are the entry's flat placeholders.

    ``live`` names numbers of the owner that the graph looks up at each call, so that they may be
    changed.
    """
    original = type(owner).forward

    def body(self: nn.Module, *flat: Any) -> Any:
        for name in live:
            self.__dict__[name] = tracer.create_proxy("get_attr", name, (), {})
        args, kwargs = entry.rebuild(flat)
        return original(self, *args, **kwargs)

    names = "".join(f", arg{i}" for i in range(len(entry.paths)))
    scope: dict[str, Any] = {"body": body}
    exec(f"def {ENTRY}(self{names}): return body(self{names})", scope)
    function: Callable[..., Any] = scope[ENTRY]
    return function


def _modes() -> tuple[bool, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )


def require_rank(sized: Tensor | torch.Size, rank: int) -> None:
    """In a traced forward that looked at a number of dimensions: it must be what it was."""
    shape = sized.shape if isinstance(sized, Tensor) else sized
    if len(shape) != rank:
        raise Unsupported(
            f"prepared with example inputs of {rank} dimensions here, got {len(shape)}: "
            f"{tuple(shape)}"
        )


class _Proxy(fx.Proxy):
    """Knows its number of dimensions, which forwards branch on."""

    tracer: "_Tracer"

    def __len__(self) -> int:
        rank = self.tracer.rank_of(self, torch.Size)
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


class _Tracer(fx.Tracer):
    """Refuses what a graph cannot hold: modes that change in the middle of a forward.

    Sizes may be unpacked and dimensions counted: how many there are is seen by running what leads
    to them on the values of the example call.
    """

    proxy_buffer_attributes = True
    traced_func_name = ENTRY

    def __init__(self) -> None:
        super().__init__()
        self._modes_at_start = _modes()
        self.example: list[Any] = []  # values of the placeholders
        self._known: dict[fx.Node, Any] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def iter(self, obj: fx.Proxy) -> Iterator[fx.Proxy]:
        rank = self.rank_of(obj, torch.Size)
        if rank is None:
            return super().iter(obj)
        return iter([obj[i] for i in range(rank)])

    def rank_of(self, obj: fx.Proxy, kind: type[Tensor] | type[torch.Size]) -> int | None:
        """How many dimensions a tensor, or sizes, have, which the graph then checks."""
        try:
            value = self._value_of(obj.node)
        except Exception:  # the error of fx says what could not be traced
            return None
        if not isinstance(value, kind):
            return None
        rank = len(value.shape if isinstance(value, Tensor) else value)
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
                return module.eval()(*args, **kwargs)  # the sizes are those of training too
            finally:
                for m, mode in modes.items():
                    m.training = mode

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, dict) and type(a) is not dict:
            return self._own_dict(a)
        return super().create_arg(a)

    def _own_dict(self, a: dict[Any, Any]) -> fx.Node:
        """A result of a class of its own, as of libraries whose results are dicts with fields."""
        kind, items = type(a), {key: self.create_arg(value) for key, value in a.items()}
        if dataclasses.is_dataclass(a):
            return self.create_node("call_function", kind, (), items)
        if kind is collections.OrderedDict:
            return self.create_node("call_function", kind, (items,), {})
        raise Unsupported(f"its forward makes a {kind.__name__}, a dict of another kind")

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        if kind in CALLS and _modes() != self._modes_at_start:
            raise Unsupported("the grad or autocast mode changes inside its forward")
        node = super().create_node(kind, *args, **kwargs)
        if node.name == "self":  # what a child of that name gives
            node._rename("self_value")
        return node


class OwnerTracer(_Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class FlatTracer(_Tracer):
    """Goes down to the layers. ``events[owner]`` lists, for each call of that owner, the calls its
    forward makes; a node's meta["site"] is (owner, run, position)."""

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
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        self._event("call_module", m)
        runs = self.events.setdefault(name, [])
        runs.append([])
        self.frames.append((name, len(runs) - 1))
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.frames.pop()

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        if kind in CALLS:
            what = self.root.get_submodule(target) if kind == "call_module" else target
            node.meta["site"] = self._event(kind, what)
        return node


@contextlib.contextmanager
def _no_checkpointing() -> Iterator[None]:
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
    """Modules called while a trace is made run as they do outside of it."""
    patched = nn.Module.__call__, nn.Module.__getattr__
    nn.Module.__call__ = fx._symbolic_trace._orig_module_call  # type: ignore[method-assign]
    nn.Module.__getattr__ = fx._symbolic_trace._orig_module_getattr  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = patched  # type: ignore[method-assign]


def _run_tracer(tracer: _Tracer, owner: nn.Module, entry: Entry, live: list[str]) -> fx.Graph:
    """The owner's graph; refuses a forward that leaves traces of another kind than the graph.

    Tensors made during the trace are constants: they become buffers of the owner, outside its
    state_dict.
    """
    kind = type(owner)
    tracer.example = entry.values
    attributes, buffers = dict(owner.__dict__), dict(owner._buffers)
    python_random, torch_random = random.getstate(), torch.get_rng_state()
    owner.__class__ = type(
        kind.__name__, (kind,), {ENTRY: _entry_function(owner, entry, tracer, live)}
    )
    try:
        with _no_checkpointing():
            graph = tracer.trace(owner)
    finally:
        owner.__class__ = kind
        after, after_buffers = dict(owner.__dict__), dict(owner._buffers)
        owner.__dict__.clear()
        owner.__dict__.update(attributes)
        owner._buffers.clear()
        owner._buffers.update(buffers)
    if python_random != random.getstate() or not torch.equal(torch_random, torch.get_rng_state()):
        raise Unsupported("its forward takes random numbers outside of torch's modules")
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
    frozen: dict[str, Any]  # numbers of the owner that the graph holds as constants

    @property
    def events(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op in CALLS]


def event_key(owner: nn.Module, node: fx.Node) -> tuple[str, Any]:
    """What an event calls: the same object in both traces."""
    if node.op != "call_module":
        return node.op, node.target
    return node.op, owner.get_submodule(str(node.target))


def _numbers_of(owner: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in owner.__dict__.items() if type(v) is float}


def trace_owner(owner: nn.Module, call: Call) -> OwnerTrace:
    """Traces one owner, children as leaves: numbers stay variables where its forward allows."""
    error: Exception | None = None
    for numbers in (True, False):
        entry = make_entry(owner, call, numbers)
        try:
            live = list(_numbers_of(owner)) if numbers else []
            graph = _run_tracer(OwnerTracer(), owner, entry, live)
            _try_graph(owner, graph, entry)
        except Exception as caught:  # whatever a forward does with a proxy
            error = caught
        else:
            _drop_unused(graph)
            return OwnerTrace(entry, graph, {} if numbers else _numbers_of(owner))
    assert error is not None
    raise error


def _drop_unused(graph: fx.Graph) -> None:
    """Numbers that nothing reads."""
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _try_graph(owner: nn.Module, graph: fx.Graph, entry: Entry) -> None:
    """Runs the graph on the values it was traced for; raises what it raises."""
    if owner.training:  # the same calls were tried in eval
        return
    held = dict(owner.__dict__)
    owner.__dict__.update(graph.bitpare_constants)  # type: ignore[attr-defined]
    try:
        with torch.no_grad():
            values = _pytree.tree_map(
                lambda v: v.clone() if isinstance(v, Tensor) else v, entry.values
            )
            fx.Interpreter(owner, graph=graph).run(*values)
    finally:
        owner.__dict__.clear()
        owner.__dict__.update(held)


@dataclasses.dataclass
class FlatTrace:
    graph: fx.Graph
    entry: Entry
    events: dict[str, list[list[tuple[str, Any]]]]
    uses: Counter[nn.Module]  # of layers


def trace_flat(root: nn.Module, call: Call, opaque: set[nn.Module]) -> FlatTrace:
    """Traces down to the layers and the opaque modules; constants are those of this call."""
    tracer = FlatTracer(opaque)
    entry = make_entry(root, call, numbers=False)
    graph = _run_tracer(tracer, root, entry, [])
    uses = Counter(root.get_submodule(str(n.target)) for n in graph.nodes if n.op == "call_module")
    trace = FlatTrace(graph, entry, tracer.events, uses)
    _note_values(root, trace)
    return trace


class _Shapes(fx.Interpreter):
    """Notes at each node whether its value is a tensor of floats."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["float"] = isinstance(value, Tensor) and value.is_floating_point()
        n.meta["tensor"] = isinstance(value, Tensor)
        n.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        return value


def _note_values(root: nn.Module, trace: FlatTrace) -> None:
    with quiet_state(root), torch.no_grad():
        probe = copy.deepcopy(root)
        for name, value in trace.graph.bitpare_constants.items():  # type: ignore[attr-defined]
            setattr(probe, name, value)
        values = _pytree.tree_map(
            lambda v: v.clone() if isinstance(v, Tensor) else v, trace.entry.values
        )
        _Shapes(probe, graph=trace.graph).run(*values)
