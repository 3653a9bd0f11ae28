"""Models that run in integers."""

import dataclasses
import json
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from bitpare.errors import Unsupported

_new_program = torch.ops.bitpare._new_program
_release_program = torch.ops.bitpare._release_program
_run_program = torch.ops.bitpare.run_program.default

WEIGHTED = ("conv", "weights")  # operations with weights


def holder_of(module: nn.Module, path: str) -> nn.Module:
    """Return the module at a path below another. Missing modules on the path are created empty."""
    for part in path.split(".") if path else []:
        if module._modules.get(part) is None:  # ignore other attributes of that name
            module._modules[part] = nn.Module()
        module = module._modules[part]  # type: ignore[assignment]
    return module


class IntegerProgram(nn.Module):
    """A part of a model that computes only in integers, between float inputs and float outputs.

    spec: its operations, see docs/integer.md. Its buffers are the integer weights and other
    tensors, with the names in the spec. They are packed for the kernels once, and again after
    they are loaded or moved. Call ``rebuild()`` after you write to them."""

    def __init__(self, spec: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.spec, self._number = spec, 0
        for name, tensor in tensors.items():
            path, _, last = name.rpartition(".")
            if not all(name.split(".")):
                raise ValueError(f"tensor {name!r} must have a name without empty parts")
            holder_of(self, path)._buffers[last] = tensor
        self.rebuild()
        self.register_load_state_dict_post_hook(_rebuilt)

    def get_buffer(self, target: str) -> Tensor:
        """Return a buffer by its name in the spec, even if an attribute has that name."""
        buffer = dict(self.named_buffers()).get(target)
        if buffer is None:
            raise AttributeError(f"there is no tensor {target}")
        return buffer

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        made: list[Tensor] = _run_program(inputs, self._number)
        return made

    def weighted(self) -> list[tuple[dict[str, Any], Tensor]]:
        """Return the convolutions and linear layers, each with its integer weight."""
        nodes = [n for n in self.spec["nodes"] if n["op"] in WEIGHTED]
        return [(node, self.get_buffer(node["weight"])) for node in nodes]

    def rebuild(self) -> None:
        """Pack the current buffers for the kernels.

        The program keeps its number, and running calls finish with the old buffers, so
        other threads may call the program meanwhile."""
        held, spec = dict(self.named_buffers()), json.dumps(self.spec)
        number = _new_program(spec, list(held.values()), list(held), self._number)
        if not self._number:
            self.__dict__["_number"] = number  # a layer may have the name "_number"
            weakref.finalize(self, _release_program, number)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        numbers = {k: v for k, v in self.named_buffers() if v.is_floating_point()}
        made = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in numbers.items():  # .half() must not change them
            path, _, last = name.rpartition(".")
            now = self.get_buffer(name)
            if now.dtype != before.dtype:
                holder_of(self, path)._buffers[last] = before.to(now.device)
        self.rebuild()
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_number": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.rebuild()

    def extra_repr(self) -> str:
        return f"{len(self.spec['nodes'])} operations"


def _rebuilt(program: IntegerProgram, _: Any) -> None:
    program.rebuild()


@dataclasses.dataclass(frozen=True)
class _Result:
    """The result of a node, by the node's position in its graph."""

    node: int


@dataclasses.dataclass(frozen=True)
class _Named:
    """A part of torch that pickle cannot store, by its name."""

    name: str

    def resolve(self) -> Any:
        value: Any = torch
        for part in self.name.split("."):
            value = getattr(value, part)
        return value


def _picklable(value: Any) -> Any:
    """Return what a pickle stores for a node's target or one of its arguments."""
    if isinstance(value, torch._ops.OpOverload):
        space, _, name = value._schema.name.partition("::")
        return _Named(f"ops.{space}.{name}.{value._overloadname}")
    if isinstance(value, torch.memory_format | torch.layout):
        return _Named(str(value).removeprefix("torch."))
    name = getattr(value, "__name__", "")
    builtin = callable(value) and getattr(value, "__module__", None) is None
    return _Named(name) if builtin and getattr(torch, name, None) is value else value


def _restored(state: dict[str, Any], nodes: list[tuple[Any, ...]]) -> "Body":
    """Return the body from a pickle, built node by node."""
    graph, made = fx.Graph(), list[fx.Node]()

    def value_of(stored: Any) -> Any:
        if isinstance(stored, _Result):
            return made[stored.node]
        return stored.resolve() if isinstance(stored, _Named) else stored

    for op, name, target, arguments in nodes:
        args, kwargs = fx.node.map_aggregate(arguments, value_of)  # type: ignore[misc]
        made.append(graph.create_node(op, value_of(target), args, kwargs, name))
    holder = nn.Module()
    holder.__dict__.update(state)
    body = Body(holder, graph, "IntegerBody")
    body.__dict__.update(state)
    return body


class Body(fx.GraphModule):
    """The graph of programs and of the float operations between them.

    Its pickle stores the graph itself. An fx.GraphModule is traced again when it is unpickled,
    and tracing temporarily replaces methods of torch.nn.Module, so that calls in other threads
    fail."""

    def __reduce__(self) -> tuple[Callable[..., "Body"], tuple[Any, ...]]:
        places = {node: _Result(i) for i, node in enumerate(self.graph.nodes)}

        def stored(value: Any) -> Any:
            return places[value] if isinstance(value, fx.Node) else _picklable(value)

        nodes = [
            (n.op, n.name, stored(n.target), fx.node.map_aggregate((n.args, n.kwargs), stored))
            for n in self.graph.nodes
        ]
        return _restored, ({k: v for k, v in self.__dict__.items() if k != "_graph"}, nodes)


class IntegerModel(nn.Module):
    """The result of `convert`. It is called like the original model and computes in integers where
    possible.

    floating: layers that stay in float, with the reason. body: the graph of programs and of the
    float operations between them."""

    def __init__(
        self,
        body: Body,
        form: _pytree.TreeSpec,
        constants: list[Any],
        arguments: list[str],
        floating: list[tuple[str, str]],
    ) -> None:
        super().__init__()
        self.body = body
        self.floating = floating
        self._form, self._constants, self.arguments = form, constants, arguments
        self._tensors = sum(isinstance(c, Tensor) for c in constants)
        self.eval()

    @property
    def programs(self) -> list[IntegerProgram]:
        return [m for m in self.modules() if isinstance(m, IntegerProgram)]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs and len(args) == self._tensors and self._plain(args):
            return self.body(*args)
        if len(args) > len(self.arguments):
            count = len(self.arguments)
            raise TypeError(
                f"the integer model takes {count} argument{'s' * (count != 1)}, got {len(args)}"
            )
        given = dict(zip(self.arguments, args, strict=False))
        leaves, form = _pytree.tree_flatten({**given, **kwargs})
        same = form == self._form and all(
            isinstance(a, Tensor) == isinstance(b, Tensor) and (isinstance(a, Tensor) or a == b)
            for a, b in zip(leaves, self._constants, strict=True)
        )
        if not same:
            raise Unsupported(
                "the integer model was converted from a model prepared with other arguments; "
                f"call it with {', '.join(self.arguments)} as there"
            )
        return self.body(*(v for v in leaves if isinstance(v, Tensor)))

    def _plain(self, args: tuple[Any, ...]) -> bool:
        return len(self._constants) == self._tensors and all(isinstance(a, Tensor) for a in args)

    def train(self, mode: bool = True) -> "IntegerModel":
        """Stay in eval mode, because integers are not trained."""
        return super().train(False)
