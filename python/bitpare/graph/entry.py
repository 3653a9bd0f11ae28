"""Turn the arguments of a module's call into flat placeholders of a graph."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from bitpare.errors import Unsupported
from bitpare.graph.state import Call

ENTRY = "_bitpare_entry"


def _signature(owner: nn.Module) -> inspect.Signature:
    return inspect.signature(type(owner).forward)


@dataclasses.dataclass
class Entry:
    """The arguments of a module's call as flat placeholders. Tensors, and numbers that may vary,
    become placeholders.

    header: the source of the forward's parameters. paths: for each placeholder, the expression
    that reads it from the parameters. guards: conditions on the other arguments. rebuild: turns
    the flat values into the arguments of the forward."""

    header: str
    paths: list[str]
    guards: list[str]
    rebuild: Callable[[tuple[Any, ...]], tuple[list[Any], dict[str, Any]]]
    values: list[Any]


def _flatten(expression: str, value: Any, entry: Entry, numbers: bool) -> Callable[[Any], Any]:
    """Add the tensors in ``value`` to the entry, and return a function that rebuilds ``value``."""
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
        """Return the arguments as the example call gave them: a decorated forward may look
        at them."""
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


def entry_function(
    owner: nn.Module, entry: Entry, tracer: fx.Tracer, live: list[str]
) -> Callable[..., Any]:
    """Return a forward whose parameters are the entry's flat placeholders.

    ``live`` names numbers of the owner that the graph reads at each call, so that they may
    change."""
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
