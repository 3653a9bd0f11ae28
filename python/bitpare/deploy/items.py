"""Describe how the values of a model are computed in integers. `lower` makes the items, `convert`
assembles them."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, fx

from bitpare.deploy.meaning import Activation
from bitpare.deploy.numbers import Codes
from bitpare.errors import Unsupported
from bitpare.nn.quantizer import Quantizer

NOTHING = Activation()


class Layout:
    """The place of the channels of a value: the last dimension (rows) or the second (an image).
    Values that must have the same layout share one, and it is set once one of them is known."""

    def __init__(self, rows: bool | None = None) -> None:
        self._rows, self._same = rows, self

    def _root(self) -> "Layout":
        found = self
        while found._same is not found:
            found = found._same
        return found

    @property
    def rows(self) -> bool | None:
        return self._root()._rows

    def join(self, other: "Layout") -> None:
        a, b = self._root(), other._root()
        if a._rows is None:
            a._same = b
        elif b._rows is None or b._rows == a._rows:
            b._same = a
        else:
            raise Unsupported("it is read as an image here, as rows there")


@dataclasses.dataclass
class Item:
    """How the value of a node is computed in integers.

    fields: the fields of the spec's node, or None if the value is that of ``inputs[0]`` or
    (source) is quantized from a float value. codes: the grid of the result, or None for a float
    result or a dynamic grid. found: the quantizer that computes a dynamic grid. tensors: field
    -> the tensor that it names. before: an item whose result the fields read instead of
    ``inputs``. raw: the fields read the node's own float value, before its quantizer."""

    name: str
    inputs: list[fx.Node]
    codes: Codes | None
    fields: dict[str, Any] | None = None
    tensors: dict[str, Any] = dataclasses.field(default_factory=dict)
    source: fx.Node | None = None
    flattened: tuple[int, int, int] | None = None  # channels, height, width
    found: Quantizer | None = None
    before: "Item | None" = None
    raw: bool = False

    @property
    def gives_floats(self) -> bool:
        return self.codes is None and self.found is None

    @property
    def reads_floats(self) -> bool:
        first = self.before or self
        return (first.fields or {}).get("op") in ("dynamic", "quantize", "weights")


@dataclasses.dataclass
class Expression:
    """The argument of a quantizer: activation(norm(core)), where each is optional, or a function of
    ``source``. inside: the nodes in between."""

    core: fx.Node | None
    source: fx.Node | None = None
    norm: Any = None
    activation: Activation | None = None
    inside: list[fx.Node] = dataclasses.field(default_factory=list)


def before_flattening(items: dict[fx.Node, Item], node: fx.Node) -> fx.Node:
    """Return the image that a flattened value comes from, or the node itself."""
    item = items.get(node)
    while item and item.fields is None and item.source is None and item.flattened is not None:
        node = item.inputs[0]
        item = items.get(node)
    return node


def pairing(a: Codes, b: Codes, result: Codes) -> dict[str, Any]:
    return {
        "zeros": [a.zero, b.zero],
        "scales": [a.scale, b.scale, result.inverse()],
        "range": result.range,
    }


def table_codes(entering: Codes, leaving: Codes, activation: Activation) -> Tensor:
    """Return the new code for each byte."""
    values = entering.values()
    if activation.table is not None:
        with torch.no_grad():
            values = activation.table(values.double()).float()
    elif activation != NOTHING:
        values = values.clamp(activation.low, activation.high)
    codes = torch.round(values * torch.tensor(leaving.inverse())) + leaving.zero
    return codes.clamp(leaving.low, leaving.high).to(torch.uint8)
