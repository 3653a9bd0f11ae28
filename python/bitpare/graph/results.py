"""Describe results of modules that are more than one tensor.

The example calls show their structure, so that a forward may unpack, index and iterate over the
result of a child. Each part is one event of that forward, whether or not the child is a leaf of the
trace."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

from torch import fx

from bitpare.errors import Unsupported


@dataclasses.dataclass(frozen=True)
class Parts:
    """A container's type, and for each key the parts of its value, WHOLE, or None for None."""

    kind: type
    items: tuple[tuple[Any, Any], ...]


WHOLE = "whole"


def parts_of(value: Any) -> Any:
    """Return the parts of a list, tuple or dict, or WHOLE for anything else."""
    kind = type(value)
    if isinstance(value, dict):
        known = kind in (dict, collections.OrderedDict) or dataclasses.is_dataclass(value)
        if not known or not all(isinstance(key, str | int) for key in value):
            return WHOLE
        items = list(value.items())
    elif kind in (tuple, list) or (isinstance(value, tuple) and hasattr(value, "_fields")):
        items = list(enumerate(value))
    else:
        return WHOLE
    return Parts(kind, tuple((key, None if v is None else parts_of(v)) for key, v in items))


def one_of(found: list[Any]) -> Any:
    """Return the parts that all calls of a module returned, or WHOLE if they differ."""
    return found[0] if found and all(parts == found[0] for parts in found) else WHOLE


def make(kind: type, items: dict[Any, Any]) -> Any:
    """Return a container of this type with these items."""
    new: Any = kind
    if dataclasses.is_dataclass(kind):
        return new(**items)
    if issubclass(kind, dict):
        return new(items)
    return new(*items.values()) if hasattr(kind, "_fields") else new(items.values())


def unpacked(parts: Any, value: Any, phantom: Callable[[], object]) -> Any:
    """Return the value with a proxy for each part.

    phantom: called for each part that is in a container already and needs no node."""
    if not isinstance(parts, Parts):
        return value
    if isinstance(value, fx.Proxy):
        return make(
            parts.kind,
            {
                key: None if part is None else unpacked(part, value[key], phantom)
                for key, part in parts.items
            },
        )
    if parts_of(value) == WHOLE or len(value) != len(parts.items):
        raise Unsupported(f"its child returns another {type(value).__name__} when it is traced")
    found: dict[Any, Any] = {}
    for key, part in parts.items:
        if part is None:
            found[key] = None
            continue
        phantom()
        found[key] = unpacked(part, value[key], phantom)
    same = all(part is value[key] for key, part in found.items())
    return value if same else make(parts.kind, found)
