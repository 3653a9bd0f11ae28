"""Decide which nodes of a traced model are computed in integers, and how."""

from typing import Any

from torch import Tensor, fx, nn

from bitpare.deploy.items import (
    NOTHING,
    Expression,
    Item,
    Layout,
    pairing,
    table_codes,
)
from bitpare.deploy.meaning import (
    ADD,
    CAT,
    CONV,
    FLATTEN,
    MAX_POOL,
    MEAN_POOL,
    MUL,
    VALUE,
    Activation,
    Meaning,
)
from bitpare.deploy.numbers import (
    SIGNED,
    Codes,
    affine_of,
    codes_of,
    no_codes,
    no_integers,
)
from bitpare.deploy.products import Products
from bitpare.deploy.run_time import dynamic_fields
from bitpare.deploy.values import rank_of
from bitpare.errors import Unsupported
from bitpare.nn import layers
from bitpare.nn.learned import DynamicQuantizer
from bitpare.nn.quantizer import Quantizer


class Lowering(Products):
    """Finds the integer form of each node of a graph. floating: layers with quantized weights that
    stay in float, with the reason."""

    def __init__(
        self, root: nn.Module, graph: fx.Graph, known: dict[fx.Node, Codes] | None = None
    ) -> None:
        super().__init__(root, graph, known)
        for node in graph.nodes:
            self._quantized(node)
        for node in graph.nodes:
            self._to_floats(node)
        self._fuse_additions()

    @property
    def floating(self) -> list[tuple[str, str]]:
        found = []
        for node, meaning in self.meanings.items():
            weighted = isinstance(meaning.module, layers.QuantizedLayer)
            item = self.items.get(node)
            in_float = item is None or item.raw
            if weighted and in_float and node not in self.inside:
                found.append((str(node.target), self.reasons.get(node, "it has no integer form")))
        return found

    # -- values that are quantized

    def _quantized(self, node: fx.Node) -> None:
        if node in self.items:
            return
        meaning = self.meanings[node]
        if meaning.after is None:
            self._moved(node, meaning)
            return
        if isinstance(meaning.after, DynamicQuantizer):
            self._dynamic(node, meaning.after)
            return
        reason = no_codes(meaning.after)
        codes = codes_of(meaning.after)
        if codes is None:
            self.reasons[node] = reason or ""
            return
        try:
            self._make(node, self.expression(node), codes)
        except Unsupported as refused:
            self.reasons[node] = str(refused)

    def _moved(self, node: fx.Node, meaning: Meaning) -> None:
        """Lower operations that only move values and keep their grid."""
        if meaning.core not in (VALUE, FLATTEN, MAX_POOL) or meaning.activation is not None:
            return
        before = meaning.inputs[0]
        item = self.items.get(before)
        if item is None or item.gives_floats:
            return
        made = Item(node.name, [before], item.codes, flattened=item.flattened, found=item.found)
        shape = before.meta["shape"]
        try:
            if meaning.core == VALUE:
                self.alike(node, before)
            elif item.found is not None and item.found.spec.granularity == "token":
                return
            elif meaning.core == MAX_POOL:
                self.require(before, False)
                least = item.codes.low if item.codes is not None else _least(item.found)
                made.fields = {"op": "pool", "maximum": True, "least": least, **meaning.window}
                self.require(node, False)
            elif len(shape) == 4:
                self.require(before, False)
                made.flattened = tuple(shape[1:])
        except Unsupported as refused:
            self.reasons[node] = str(refused)
            return
        self.items[node] = made

    def _dynamic(self, node: fx.Node, q: Quantizer) -> None:
        """Lower a quantizer with a dynamic grid, applied to the result of a convolution, a float
        value or any other operation of the node."""
        reason = no_integers(q)
        if reason is not None:
            self.reasons[node] = reason
            return
        found = self.expression(node)
        activation = found.activation or NOTHING
        item = Item(node.name, [node], None, dynamic_fields(q, activation), found=q)
        core = found.core and self.meanings[found.core].core
        try:
            if activation.table is not None:
                raise Unsupported("its activation is computed in float")
            if core == CONV:
                assert found.core is not None
                item.before = self._conv(found.core, found.norm, None, None)
                item.inputs = item.before.inputs
                self.alike(node, found.core)
            elif found.core is None and found.norm is None and found.source is not None:
                item.inputs = [found.source]
                self.alike(node, found.source)
            else:
                raise Unsupported("it is computed in float")
            self.inside.update(found.inside)
        except Unsupported as refused:
            item.inputs, item.raw, item.before = [node], True, None
            item.fields = dynamic_fields(q, NOTHING)
            self.reasons[node] = str(refused)
        if q.spec.granularity == "token":
            self.layout(node).join(Layout(True))
        self.items[node] = item

    def _make(self, node: fx.Node, found: Expression, codes: Codes) -> None:
        activation = found.activation or NOTHING
        if found.core is None:
            self._of_source(node, found, codes, activation)
        elif activation.table is not None:
            raise Unsupported("the input of its activation is not quantized")
        else:
            clamped = codes.clamped(activation.low, activation.high)
            self._of_core(node, found, codes, clamped)
        self.inside.update(found.inside)

    def _of_source(
        self, node: fx.Node, found: Expression, codes: Codes, activation: Activation
    ) -> None:
        """Lower a function of one value: a lookup table of codes, or the quantization of a float
        value."""
        source = found.source
        assert source is not None
        entering, clamped = self.grid(source), codes.clamped(activation.low, activation.high)
        if entering is None:
            if found.norm is not None or activation.table is not None:
                raise Unsupported("its input is not quantized")
            self.alike(node, source)
            self.items[node] = Item(node.name, [], clamped, source=source)
            return
        self._check_whole(source)
        if found.norm is not None:
            if activation.table is not None:
                raise Unsupported("the input of its activation is not quantized")
            self.require(source, rank_of(source) == 2)
            fields: dict[str, Any] = {"op": "map", "tables": [], "zero": entering.zero}
            fields["range"] = clamped.range
            factor, shift = affine_of(found.norm)
            tensors: dict[str, Any] = {
                "multiplier": (factor * entering.scale / codes.scale).float(),
                "offset": (shift / codes.scale).float(),
            }
        elif activation == NOTHING and entering == codes:
            self.alike(node, source)
            self.items[node] = Item(node.name, [source], codes)
            return
        else:
            table = table_codes(entering, clamped, activation)
            fields, tensors = {"op": "map"}, {"tables": [table]}
        self.alike(node, source)
        self.items[node] = Item(node.name, [source], clamped, fields, tensors)

    def _of_core(self, node: fx.Node, found: Expression, codes: Codes, clamped: Codes) -> None:
        core = found.core
        assert core is not None
        meaning = self.meanings[core]
        if meaning.core == CONV:
            self.items[node] = self._quantized_conv(node, found, codes, clamped)
            self.alike(node, core)
            return
        if found.norm is not None:
            raise Unsupported("its BatchNorm does not follow a convolution")
        if meaning.core in (ADD, MUL):
            self.items[node] = self._pair(node, meaning, clamped)
        elif meaning.core in (MEAN_POOL, MAX_POOL):
            self.items[node] = self._pool(node, meaning, codes, clamped)
        elif meaning.core == CAT:
            self._concat(node, meaning, codes, clamped)
        else:
            raise Unsupported("it has no integer form")

    def _pair(self, node: fx.Node, meaning: Meaning, clamped: Codes) -> Item:
        inputs = list(meaning.inputs)
        shapes = [tuple(n.meta["shape"]) for n in inputs]
        if meaning.core == MUL and len(shapes[0]) == 4 and shapes[0][2:] == (1, 1):
            inputs.reverse()
            shapes.reverse()
        a, b = (self._entering(n) for n in inputs)
        self._check_batch(inputs)
        for n in inputs:
            self._check_whole(n)
        per_channel = len(shapes[0]) == 4 and shapes[1] == (*shapes[0][:2], 1, 1)
        if shapes[0] == shapes[1]:
            self.alike(node, *inputs)
        elif per_channel:
            for n in (node, *inputs):
                self.require(n, False)
        else:
            raise Unsupported(f"values of shapes {shapes[0]} and {shapes[1]}")
        product = meaning.core == MUL
        fields = {"op": "pair", "product": product, **pairing(a, b, clamped)}
        return Item(node.name, inputs, clamped, fields)

    def _check_batch(self, inputs: list[fx.Node]) -> None:
        """Refuse constants, which have no batch dimension to match the other inputs."""
        if any(n not in self.varies for n in inputs):
            raise Unsupported("one of its inputs is a constant")

    def _pool(self, node: fx.Node, meaning: Meaning, codes: Codes, clamped: Codes) -> Item:
        source = meaning.inputs[0]
        entering = self._entering(source)
        self.require(source, False)
        if meaning.core == MAX_POOL:
            raise Unsupported("its result has a quantizer of its own")
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
        if not drops:
            self.require(node, False)
        flattened = (source.meta["shape"][1], 1, 1) if drops else None
        return Item(node.name, [source], clamped, fields, flattened=flattened)

    def _concat(self, node: fx.Node, meaning: Meaning, codes: Codes, clamped: Codes) -> None:
        """Lower a concatenation. Parts that nothing else reads are computed on the grid of the
        result."""
        made: dict[fx.Node, tuple[Item, list[fx.Node]]] = {}
        tables: list[Tensor | None] = []
        self._check_batch(meaning.inputs)
        for value in (node, *meaning.inputs):
            self.require(value, meaning.window["rows"])
        for part in meaning.inputs:
            entering = self.grid(part)
            if entering is None:
                found = self.open(part)
                plain = found is not None and (found.activation or NOTHING).table is None
                core = found.core if found is not None else None
                if not plain or core is None or self.meanings[core].core != CONV:
                    raise Unsupported("one of its inputs is not quantized")
                assert found is not None
                bounds = found.activation or NOTHING
                clamp = codes.clamped(bounds.low, bounds.high)
                made[part] = (self._conv(core, found.norm, codes, clamp), found.inside)
                entering = codes
            else:
                self._check_whole(part)
            same = entering.scale == clamped.scale and entering.zero == clamped.zero
            inside = clamped.low <= entering.low and entering.high <= clamped.high
            tables.append(None if same and inside else table_codes(entering, clamped, NOTHING))
        for part, (item, inside_nodes) in made.items():
            self.items[part] = item
            self.inside.update(n for n in inside_nodes if n is not part)
        fields = {"op": "concat"}
        self.items[node] = Item(
            node.name, list(meaning.inputs), clamped, fields, {"tables": tables}
        )

    # -- additions fused into convolutions

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
                "first_of": last.name, **pairing(made.codes, known.codes, item.codes)
            }  # fmt: skip
            made.inputs.append(other)
            made.codes = item.codes
            self.items[node] = made
            del self.items[last]
            self.inside.add(last)


def _least(q: Quantizer | None) -> int:
    """Return the smallest byte of a dynamic grid."""
    assert q is not None
    return q.grid.quant_min + (SIGNED if q.grid.quant_min < 0 else 0)
