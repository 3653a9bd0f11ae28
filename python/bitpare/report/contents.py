"""Find the models in a checkpoint. Training scripts store them under various keys."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from bitpare.deploy.integer import IntegerModel
from bitpare.nn.hub import hub_of
from bitpare.report.history import History, is_state, records_of
from bitpare.report.state import is_prepared, is_weight

# Kinds of items, from the best one to report on to the worst.
INTEGER, MODEL, STATE, FLOAT_MODEL, FLOAT_STATE = range(5)
_KEYS = ("model", "state_dict", "model_state_dict")
_DEPTH = 8

Place = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Item:
    """An object that can be reported on, and the keys that lead to it."""

    kind: int
    place: Place
    value: Any

    @property
    def key(self) -> str:
        return "/".join(self.place)


@dataclasses.dataclass
class Contents:
    """The contents of a checkpoint. items: the objects of the best kind that exists. histories: the
    states of recorders."""

    items: list[Item]
    histories: list[tuple[Place, Mapping[str, Any]]]

    def chosen(self) -> Item:
        """Return the item to report on. One under a usual key comes first, then the last one,
        because stages of training are stored in order."""
        usual = [i for i in self.items if i.place and i.place[-1] in _KEYS]
        return (usual or self.items)[-1]

    def history_of(self, item: Item) -> History | None:
        """Return the history whose keys share most with the item's."""

        def shared(place: Place) -> int:
            pairs = zip(place, item.place, strict=False)
            return next((n for n, (a, b) in enumerate(pairs) if a != b), len(place))

        if not self.histories:
            return None
        nearest = max(shared(place) for place, _ in self.histories)
        state = [state for place, state in self.histories if shared(place) == nearest][-1]
        history = History(records_of(state))
        return history if history.records else None


def contents_of(held: Any, key: str | None = None) -> Contents:
    """Return the contents of an unpickled object, or with ``key`` only those at
    "stages/qat/model"."""
    found = Contents([], [])
    _look(held, (), found)
    items = found.items
    if key is not None:
        items = [i for i in items if i.key == key]
    best = min((i.kind for i in items), default=None)
    return Contents([i for i in items if i.kind == best], found.histories)


def _look(value: Any, place: Place, found: Contents) -> None:
    """Add the items in a value and its children, but do not look inside a model, state or
    optimizer. What looks like a float state may be a checkpoint that also holds a matrix."""
    if is_state(value):
        found.histories.append((place, value))
        return
    kind = _kind(value)
    if kind is not None:
        found.items.append(Item(kind, place, value))
    if kind not in (None, FLOAT_STATE) or len(place) >= _DEPTH:
        return
    if isinstance(value, Mapping) and "param_groups" not in value:
        for key, inner in value.items():
            _look(inner, (*place, str(key)), found)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for number, inner in enumerate(value):
            if isinstance(inner, Mapping | nn.Module):
                _look(inner, (*place, str(number)), found)


def _kind(value: Any) -> int | None:
    if isinstance(value, IntegerModel):
        return INTEGER
    if isinstance(value, nn.Module):
        return FLOAT_MODEL if hub_of(value) is None else MODEL
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        return None
    if is_prepared(value):
        return STATE
    return FLOAT_STATE if any(is_weight(v) for v in value.values()) else None
