"""Which nodes of a traced model are computed in integers, and as what."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, fx, nn

from bitpare.deploy.meaning import (
    ADD,
    CAT,
    CONV,
    FLATTEN,
    FLOAT,
    MAX_POOL,
    MEAN_POOL,
    MUL,
    NORM,
    VALUE,
    Activation,
    Meaning,
    conv_window,
    meaning_of,
)
from bitpare.deploy.numbers import Codes, affine_of, codes_of, conv_numbers, no_codes
from bitpare.nn import layers
from bitpare.quant.kinds import SAME, kind_of, same_input

NOTHING = Activation()
_CONVERSIONS = ("to", "type_as", "half", "bfloat16", "feature_dropout", "drop_path")


@dataclasses.dataclass
class Item:
    """How a node's value is made in integers.

    fields: of the spec's node; None where the value is that of ``inputs[0]`` under another name, or
    (source) codes of a value in float. codes: of the result; None where it is of floats. tensors:
    what the fields name, by the field.
    """

    name: str
    inputs: list[fx.Node]
    codes: Codes | None
    fields: dict[str, Any] | None = None
    tensors: dict[str, Any] = dataclasses.field(default_factory=dict)
    source: fx.Node | None = None
    flattened: tuple[int, int, int] | None = None  # channels, height, width


@dataclasses.dataclass
class Expression:
    """What a quantizer is given: an activation of a BatchNorm of the core, each optional; or of
    the value of ``source``. inside: the nodes between."""

    core: fx.Node | None
    source: fx.Node | None = None
    norm: Any = None
    activation: Activation | None = None
    inside: list[fx.Node] = dataclasses.field(default_factory=list)


class Refused(Exception):
    """Why something stays in float."""


class Lowering:
    """items: what is computed in integers. inside: nodes that are part of such. floating: layers
    with quantized weights that stay in float, with the reason."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root, self.graph = root, graph
        self.meanings: dict[fx.Node, Meaning] = {n: meaning_of(root, n) for n in graph.nodes}
        self.order = {n: i for i, n in enumerate(graph.nodes)}
        self.items: dict[fx.Node, Item] = {}
        self.inside: set[fx.Node] = set()
        self.reasons: dict[fx.Node, str] = {}
        for node in graph.nodes:
            self._quantized(node)
        for node in graph.nodes:
            self._to_floats(node)
        self._fuse_additions()

    @property
    def floating(self) -> list[tuple[str, str]]:
        found = []
        for node, meaning in self.meanings.items():
            weighted = isinstance(meaning.module, layers.WEIGHTED)
            if weighted and node not in self.items and node not in self.inside:
                found.append((str(node.target), self.reasons.get(node, "it has no integer form")))
        return found

    # -- what is on a grid

    def grid(self, node: fx.Node) -> Codes | None:
        """The codes of a node's value."""
        if node in self.items:
            return self.items[node].codes
        meaning = self.meanings[node]
        if meaning.after is not None:
            return codes_of(meaning.after)
        moved = meaning.core in (FLATTEN, MAX_POOL) or (
            meaning.core == VALUE and meaning.activation is None
        )
        if moved:
            return self.grid(meaning.inputs[0])
        before = same_input(node) if self._moves(node) else None
        return self.grid(before) if before is not None else None

    def _moves(self, node: fx.Node) -> bool:
        """Whether a node in float hands on values of one tensor, as they are."""
        floats = [n for n in node.all_input_nodes if n.meta.get("float")]
        name = str(getattr(node.target, "__name__", node.target))
        moves = kind_of(self.root, node).kind == SAME and name not in _CONVERSIONS
        return moves and len(floats) <= 1 and not name.startswith(("dropout", "stochastic"))

    def _open(self, node: fx.Node) -> Expression | None:
        """The expression of a value that nothing else reads and that is on no grid."""
        meaning = self.meanings[node]
        if len(node.users) != 1 or meaning.core == FLOAT or self.grid(node) is not None:
            return None
        if meaning.after is not None:
            return None
        found = self._expression(node)
        found.inside.append(node)
        return found

    def _expression(self, node: fx.Node) -> Expression:
        meaning = self.meanings[node]
        if meaning.core not in (VALUE, NORM):
            return Expression(node, activation=meaning.activation)
        source = meaning.inputs[0]
        found = self._open(source)
        if found is not None:
            if meaning.core == VALUE and (meaning.activation is None or found.activation is None):
                found.activation = meaning.activation or found.activation
                return found
            core = found.core and self.meanings[found.core].core
            if core == CONV and found.norm is None and found.activation is None:
                found.norm = meaning.module
                return found
        norm = meaning.module if meaning.core == NORM else None
        return Expression(None, source, norm, meaning.activation)

    # -- values that are quantized

    def _quantized(self, node: fx.Node) -> None:
        if node in self.items:
            return
        meaning = self.meanings[node]
        if meaning.after is None:
            self._moved(node, meaning)
            return
        reason = no_codes(meaning.after)
        codes = codes_of(meaning.after)
        if codes is None:
            self.reasons[node] = reason or ""
            return
        try:
            self._make(node, self._expression(node), codes)
        except Refused as refused:
            self.reasons[node] = str(refused)

    def _moved(self, node: fx.Node, meaning: Meaning) -> None:
        """Values that keep their grid, of one that is in integers."""
        codes = self.grid(node) if meaning.core in (VALUE, FLATTEN, MAX_POOL) else None
        before = meaning.inputs[0] if meaning.inputs else node
        if codes is None or before not in self.items or self.items[before].codes is None:
            return
        shape = before.meta["shape"]
        if meaning.core == MAX_POOL and len(shape) == 4:
            fields = {"op": "pool", "maximum": True, "least": codes.low, **meaning.window}
            self.items[node] = Item(node.name, [before], codes, fields)
        elif meaning.core == VALUE:
            flattened = self.items[before].flattened
            self.items[node] = Item(node.name, [before], codes, flattened=flattened)
        elif meaning.core == FLATTEN:
            flattened = tuple(shape[1:]) if len(shape) == 4 else self.items[before].flattened
            self.items[node] = Item(node.name, [before], codes, flattened=flattened)

    def _make(self, node: fx.Node, found: Expression, codes: Codes) -> None:
        activation = found.activation or NOTHING
        if found.core is None:
            self._of_source(node, found, codes, activation)
        elif activation.table is not None:
            raise Refused("its activation is not of a quantized value")
        else:
            clamped = codes.clamped(activation.low, activation.high)
            self._of_core(node, found, codes, clamped)
        self.inside.update(found.inside)

    def _of_source(
        self, node: fx.Node, found: Expression, codes: Codes, activation: Activation
    ) -> None:
        """A function of one value: a table of its codes, or codes of a value in float."""
        source = found.source
        assert source is not None
        entering, clamped = self.grid(source), codes.clamped(activation.low, activation.high)
        if entering is None:
            if found.norm is not None or activation.table is not None:
                raise Refused("its input is not quantized")
            self._check_rank(source)
            self.items[node] = Item(node.name, [], clamped, source=source)
            return
        self._check_whole(source)
        if found.norm is not None:
            if activation.table is not None:
                raise Refused("its activation is not of a quantized value")
            fields: dict[str, Any] = {"op": "map", "tables": [], "zero": entering.zero}
            fields["range"] = clamped.range
            factor, shift = affine_of(found.norm)
            tensors: dict[str, Any] = {
                "multiplier": (factor * entering.scale / codes.scale).float(),
                "offset": (shift / codes.scale).float(),
            }
        elif activation == NOTHING and entering == codes:
            self.items[node] = Item(node.name, [source], codes)
            return
        else:
            table = _table(entering, clamped, activation)
            fields, tensors = {"op": "map"}, {"tables": [table]}
        self.items[node] = Item(node.name, [source], clamped, fields, tensors)

    def _of_core(self, node: fx.Node, found: Expression, codes: Codes, clamped: Codes) -> None:
        core = found.core
        assert core is not None
        meaning = self.meanings[core]
        if meaning.core == CONV:
            self.items[node] = self._conv(core, found.norm, codes, clamped)
            return
        if found.norm is not None:
            raise Refused("its BatchNorm follows no convolution")
        if meaning.core in (ADD, MUL):
            self.items[node] = self._pair(node, meaning, clamped)
        elif meaning.core in (MEAN_POOL, MAX_POOL):
            self.items[node] = self._pool(node, meaning, codes, clamped)
        elif meaning.core == CAT:
            self._concat(node, meaning, codes, clamped)
        else:
            raise Refused("it has no integer form")

    def _entering(self, node: fx.Node) -> Codes:
        codes = self.grid(node)
        if codes is None:
            raise Refused("its input is not quantized")
        self._check_rank(node)
        return codes

    def _check_rank(self, node: fx.Node) -> None:
        if len(node.meta.get("shape") or ()) not in (2, 4):
            raise Refused(f"a value of shape {node.meta.get('shape')}")

    def _check_whole(self, node: fx.Node) -> None:
        """Flattened images are read by linear layers alone."""
        self._check_rank(node)
        flattened = self._flattened(node)
        if flattened is not None and flattened[1:] != (1, 1):
            raise Refused("it reads a flattened image")

    def _flattened(self, node: fx.Node) -> tuple[int, int, int] | None:
        item = self.items.get(node)
        return None if item is None else item.flattened

    def _conv(self, core: fx.Node, norm: Any, codes: Codes | None, clamped: Codes | None) -> Item:
        meaning, layer = self.meanings[core], self.meanings[core].module
        source = meaning.inputs[0]
        if meaning.before is not None:
            raise Refused("it quantizes its input itself")
        entering = self._entering(source)
        window = conv_window(layer)
        if window is None:
            raise Refused(f"padding of mode '{layer.padding_mode}'")
        numbers = conv_numbers(layer, norm, entering, codes)
        if isinstance(numbers, str):
            raise Refused(numbers)
        weight, flattened = numbers.weight, self._flattened(source)
        if isinstance(layer, nn.Linear):
            if len(source.meta["shape"]) != 2:
                raise Refused(f"a value of shape {source.meta['shape']}")
            channels, *size = flattened or (layer.in_features, 1, 1)
            weight = weight.view(layer.out_features, channels, *size)
            window = {**window, "kernel": size}
        elif len(source.meta["shape"]) != 4:
            raise Refused(f"a value of shape {source.meta['shape']}")
        fields = {
            "op": "conv",
            "groups": getattr(layer, "groups", 1),
            "zero": entering.zero,
            "float": clamped is None,
            "linear": isinstance(layer, nn.Linear),
            **window,
        }
        if clamped is not None:
            fields["range"] = clamped.range
        tensors = {"weight": weight, "bias": numbers.bias, "multiplier": numbers.multiplier}
        return Item(str(core.target), [source], clamped, fields, tensors)

    def _pair(self, node: fx.Node, meaning: Meaning, clamped: Codes) -> Item:
        inputs = list(meaning.inputs)
        shapes = [tuple(n.meta["shape"]) for n in inputs]
        if meaning.core == MUL and len(shapes[0]) == 4 and shapes[0][2:] == (1, 1):
            inputs.reverse()
            shapes.reverse()
        a, b = (self._entering(n) for n in inputs)
        for n in inputs:
            self._check_whole(n)
        per_channel = len(shapes[0]) == 4 and shapes[1] == (*shapes[0][:2], 1, 1)
        if shapes[0] != shapes[1] and not per_channel:
            raise Refused(f"values of shapes {shapes[0]} and {shapes[1]}")
        product = meaning.core == MUL
        fields = {"op": "pair", "product": product, **_pairing(a, b, clamped)}
        return Item(node.name, inputs, clamped, fields)

    def _pool(self, node: fx.Node, meaning: Meaning, codes: Codes, clamped: Codes) -> Item:
        source = meaning.inputs[0]
        entering = self._entering(source)
        if len(source.meta["shape"]) != 4:
            raise Refused(f"a value of shape {source.meta['shape']}")
        if meaning.core == MAX_POOL:
            raise Refused("its result has a quantizer of its own")
        window = dict(meaning.window)
        drops = window.pop("drops", False)
        fields = {
            "op": "pool",
            "maximum": False,
            "scale": entering.scale,
            "new_scale": codes.scale,
            "zero": entering.zero,
            "range": clamped.range,
            "count_padding": False,
            "divisor": 0,
            **window,
        }
        channels = source.meta["shape"][1]
        flattened = (channels, 1, 1) if drops else None
        return Item(node.name, [source], clamped, fields, flattened=flattened)

    def _concat(self, node: fx.Node, meaning: Meaning, codes: Codes, clamped: Codes) -> None:
        """Each part on the grid of the whole: made on it where nothing else reads it."""
        made: dict[fx.Node, tuple[Item, list[fx.Node]]] = {}
        tables: list[Tensor | None] = []
        for part in meaning.inputs:
            entering = self.grid(part)
            if entering is None:
                found = self._open(part)
                plain = found is not None and (found.activation or NOTHING).table is None
                core = found.core if found is not None else None
                if not plain or core is None or self.meanings[core].core != CONV:
                    raise Refused("one of its inputs is not quantized")
                assert found is not None
                bounds = found.activation or NOTHING
                clamp = codes.clamped(bounds.low, bounds.high)
                made[part] = (self._conv(core, found.norm, codes, clamp), found.inside)
                entering = codes
            else:
                self._check_whole(part)
            same = entering.scale == clamped.scale and entering.zero == clamped.zero
            inside = clamped.low <= entering.low and entering.high <= clamped.high
            tables.append(None if same and inside else _table(entering, clamped, NOTHING))
        for part, (item, inside_nodes) in made.items():
            self.items[part] = item
            self.inside.update(n for n in inside_nodes if n is not part)
        fields = {"op": "concat"}
        self.items[node] = Item(
            node.name, list(meaning.inputs), clamped, fields, {"tables": tables}
        )

    # -- values that stay in float

    def _to_floats(self, node: fx.Node) -> None:
        """A convolution or linear layer whose result is not quantized, with its BatchNorm."""
        meaning = self.meanings[node]
        done = node in self.items or node in self.inside
        if meaning.core != CONV or meaning.after is not None or done:
            return
        users = list(node.users)
        root, norm = node, None
        after = self.meanings.get(users[0]) if len(users) == 1 else None
        if after is not None and after.core == NORM and after.after is None:
            root, norm = users[0], after.module
        try:
            self.items[root] = self._conv(node, norm, None, None)
        except Refused as refused:
            self.reasons[node] = str(refused)
            return
        if root is not node:
            self.inside.add(node)

    # -- additions within convolutions

    def _fuse_additions(self) -> None:
        for node, item in list(self.items.items()):
            if item.fields is None or item.fields["op"] != "pair" or item.fields["product"]:
                continue
            shapes = [n.meta["shape"] for n in item.inputs]
            last, other = item.inputs
            if self.order[last] < self.order[other]:
                last, other = other, last
            made = self.items.get(last)
            fits = made is not None and made.fields is not None and made.fields["op"] == "conv"
            alone = len(last.users) == 1 and "add" not in (made.fields or {} if made else {})
            known = self.items.get(other)
            if not fits or not alone or shapes[0] != shapes[1] or last is other or known is None:
                continue
            assert made is not None and made.codes is not None and made.fields is not None
            assert known.codes is not None and item.codes is not None
            made.fields["add"] = {
                "first_of": last.name, **_pairing(made.codes, known.codes, item.codes)
            }  # fmt: skip
            made.inputs.append(other)
            made.codes = item.codes
            self.items[node] = made
            del self.items[last]
            self.inside.add(last)


def before_flattening(items: dict[fx.Node, Item], node: fx.Node) -> fx.Node:
    """The image that a flattened value is, or the node itself."""
    item = items.get(node)
    while item and item.fields is None and item.source is None and item.flattened is not None:
        node = item.inputs[0]
        item = items.get(node)
    return node


def _pairing(a: Codes, b: Codes, result: Codes) -> dict[str, Any]:
    return {
        "zeros": [a.zero, b.zero],
        "scales": [a.scale, b.scale, result.inverse()],
        "range": result.range,
    }


def _table(entering: Codes, leaving: Codes, activation: Activation) -> Tensor:
    """What becomes of each byte."""
    values = entering.values()
    if activation.table is not None:
        with torch.no_grad():
            values = activation.table(values.double()).float()
    elif activation != NOTHING:
        values = values.clamp(activation.low, activation.high)
    codes = torch.round(values * torch.tensor(leaving.inverse())) + leaving.zero
    return codes.clamp(leaving.low, leaving.high).to(torch.uint8)
