"""Classes with a generated forward, which can be pickled and copied like any other.

The class of a module becomes a subclass of its old class with the same name, so isinstance still
holds. One class exists per (base, source). A pickle stores base and source."""

import inspect
import linecache
from collections.abc import Iterator
from typing import Any

from torch import nn

PREFIX = "bp_"  # prefix of the names of modules that bitpare adds
_classes: dict[tuple[type, str], type] = {}


def _rebuild(base: type, source: str) -> nn.Module:
    new_class = rewritten_class(base, source)
    return new_class.__new__(new_class)  # type: ignore[call-overload,no-any-return]


def _reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    state = object.__reduce_ex__(self, 2)
    return (_rebuild, type(self)._bitpare_source, *state[2:])  # type: ignore[attr-defined]


def _visible(self: nn.Module) -> dict[str, nn.Module]:
    return {k: v for k, v in self._modules.items() if not k.startswith(PREFIX) and v is not None}


def _hide_added(base: type) -> dict[str, Any]:
    """Return container methods that skip the modules which bitpare adds."""

    def length(self: nn.Module) -> int:
        return len(_visible(self))

    if issubclass(base, nn.ModuleDict):
        return {
            "__len__": length,
            "__iter__": lambda self: iter(_visible(self)),
            "__contains__": lambda self, key: key in _visible(self),
            "keys": lambda self: _visible(self).keys(),
            "items": lambda self: _visible(self).items(),
            "values": lambda self: _visible(self).values(),
        }

    def iterate(self: nn.Module) -> Iterator[nn.Module]:
        return iter(_visible(self).values())

    def item(self: nn.Module, index: int | slice) -> Any:
        items = list(_visible(self).items())
        if isinstance(index, slice):
            chosen = [m for _, m in items[index]]
            return (
                nn.Sequential(*chosen) if issubclass(base, nn.Sequential) else nn.ModuleList(chosen)
            )
        return items[index][1]

    return {"__len__": length, "__iter__": iterate, "__getitem__": item}


def rewritten_class(base: type, source: str) -> type:
    """Return the subclass of ``base`` with the functions in ``source``. They can refer to the base
    as ``_bitpare_base``."""
    if (base, source) in _classes:
        return _classes[base, source]
    filename = f"<bitpare {base.__module__}.{base.__qualname__} {len(_classes)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    forward = inspect.signature(base.forward)  # type: ignore[attr-defined]
    scope: dict[str, Any] = {
        "_bitpare_base": base,
        "_bitpare_defaults": {name: p.default for name, p in forward.parameters.items()},
    }
    before = set(scope)
    exec(compile(source, filename, "exec"), scope)
    functions = {
        name: value
        for name, value in scope.items()
        if name not in before
        and inspect.isfunction(value)
        and value.__code__.co_filename == filename
    }
    namespace: dict[str, Any] = {
        **functions,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": _reduce,
        "_bitpare_source": (base, source),
    }
    if issubclass(base, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        namespace.update(_hide_added(base))
    new_class = type(base)(base.__name__, (base,), namespace)
    _classes[base, source] = new_class
    return new_class


def rewrite(module: nn.Module, source: str) -> None:
    """Add the functions in ``source`` to the class of ``module``."""
    module.__class__ = rewritten_class(type(module), source)
