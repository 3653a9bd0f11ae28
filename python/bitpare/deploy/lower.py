"""Lowering: which nodes of a traced model are computed in integers, and as what."""

from collections.abc import Callable
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
from bitpare.deploy.lowering import Lowering, rank_of
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
from bitpare.deploy.products import (
    check_whole,
    convolution,
    entering_codes,
    lower_to_floats,
    quantized_convolution,
)
from bitpare.deploy.run_time import dynamic_fields
from bitpare.errors import Unsupported
from bitpare.nn.learned import DynamicQuantizer
from bitpare.nn.quantizer import Quantizer


def lowered(
    root: nn.Module, graph: fx.Graph, known: dict[fx.Node, Codes] | None = None
) -> Lowering:
    """Return the lowering of a graph; ``known`` are grids of values that come from elsewhere."""
    lowering = Lowering(root, graph, known)
    for node in graph.nodes:
        _quantized(lowering, node)
    for node in graph.nodes:
        lower_to_floats(lowering, node)
    _fuse_additions(lowering)
    return lowering


def _meaning_of_core(lowering: Lowering, found: Expression) -> Meaning:
    assert found.core is not None
    return lowering.meanings[found.core]


def _quantized(lowering: Lowering, node: fx.Node) -> None:
    if node in lowering.items:
        return
    meaning = lowering.meanings[node]
    if meaning.after is None:
        _moved(lowering, node, meaning)
        return
    if isinstance(meaning.after, DynamicQuantizer):
        _dynamic(lowering, node, meaning.after)
        return
    reason = no_codes(meaning.after)
    codes = codes_of(meaning.after)
    if codes is None:
        lowering.reasons[node] = reason or ""
        return
    try:
        _make(lowering, node, lowering.expression(node), codes)
    except Unsupported as refused:
        lowering.reasons[node] = str(refused)


def _moved(lowering: Lowering, node: fx.Node, meaning: Meaning) -> None:
    """Values that keep their grid, of one that is in integers."""
    if meaning.core not in (VALUE, FLATTEN, MAX_POOL) or meaning.activation is not None:
        return
    before = meaning.inputs[0]
    item = lowering.items.get(before)
    if item is None or item.gives_floats:
        return
    made = Item(node.name, [before], item.codes, flattened=item.flattened, found=item.found)
    shape = before.meta["shape"]
    try:
        if meaning.core == VALUE:
            lowering.alike(node, before)
        elif item.found is not None and item.found.spec.granularity == "token":
            return
        elif meaning.core == MAX_POOL:
            lowering.require(before, False)
            least = item.codes.low if item.codes is not None else _least(item.found)
            made.fields = {"op": "pool", "maximum": True, "least": least, **meaning.window}
            lowering.require(node, False)
        elif len(shape) == 4:
            lowering.require(before, False)
            made.flattened = tuple(shape[1:])
    except Unsupported as refused:
        lowering.reasons[node] = str(refused)
        return
    lowering.items[node] = made


def _dynamic(lowering: Lowering, node: fx.Node, q: Quantizer) -> None:
    """A grid that is found for each batch, of a convolution's result, of a value in float, or
    of whatever the node computes."""
    reason = no_integers(q)
    if reason is not None:
        lowering.reasons[node] = reason
        return
    found = lowering.expression(node)
    activation = found.activation or NOTHING
    item = Item(node.name, [node], None, dynamic_fields(q, activation), found=q)
    core = found.core and lowering.meanings[found.core].core
    try:
        if activation.table is not None:
            raise Unsupported("its activation is computed in float")
        if core == CONV:
            assert found.core is not None
            item.before = convolution(lowering, found.core, found.norm, None, None)
            item.inputs = item.before.inputs
            lowering.alike(node, found.core)
        elif found.core is None and found.norm is None and found.source is not None:
            item.inputs = [found.source]
            lowering.alike(node, found.source)
        else:
            raise Unsupported("it is computed in float")
        lowering.inside.update(found.inside)
    except Unsupported as refused:
        item.inputs, item.raw, item.before = [node], True, None
        item.fields = dynamic_fields(q, NOTHING)
        lowering.reasons[node] = str(refused)
    if q.spec.granularity == "token":
        lowering.layout(node).join(Layout(True))
    lowering.items[node] = item


def _make(lowering: Lowering, node: fx.Node, found: Expression, codes: Codes) -> None:
    activation = found.activation or NOTHING
    if found.core is None:
        _of_source(lowering, node, found, codes, activation)
    elif activation.table is not None:
        raise Unsupported("the input of its activation is not quantized")
    else:
        clamped = codes.clamped(activation.low, activation.high)
        _of_core(lowering, node, found, codes, clamped)
    lowering.inside.update(found.inside)


def _of_source(
    lowering: Lowering, node: fx.Node, found: Expression, codes: Codes, activation: Activation
) -> None:
    """A function of one value: a table of its codes, or codes of a value in float."""
    source = found.source
    assert source is not None
    entering, clamped = lowering.grid(source), codes.clamped(activation.low, activation.high)
    if entering is None:
        if found.norm is not None or activation.table is not None:
            raise Unsupported("its input is not quantized")
        lowering.alike(node, source)
        lowering.items[node] = Item(node.name, [], clamped, source=source)
        return
    check_whole(lowering, source)
    if found.norm is not None:
        if activation.table is not None:
            raise Unsupported("the input of its activation is not quantized")
        lowering.require(source, rank_of(source) == 2)
        fields: dict[str, Any] = {"op": "map", "tables": [], "zero": entering.zero}
        fields["range"] = clamped.range
        factor, shift = affine_of(found.norm)
        tensors: dict[str, Any] = {
            "multiplier": (factor * entering.scale / codes.scale).float(),
            "offset": (shift / codes.scale).float(),
        }
    elif activation == NOTHING and entering == codes:
        lowering.alike(node, source)
        lowering.items[node] = Item(node.name, [source], codes)
        return
    else:
        table = table_codes(entering, clamped, activation)
        fields, tensors = {"op": "map"}, {"tables": [table]}
    lowering.alike(node, source)
    lowering.items[node] = Item(node.name, [source], clamped, fields, tensors)


def _of_core(
    lowering: Lowering, node: fx.Node, found: Expression, codes: Codes, clamped: Codes
) -> None:
    core = found.core
    assert core is not None
    meaning = lowering.meanings[core]
    if found.norm is not None and meaning.core != CONV:
        raise Unsupported("its BatchNorm does not follow a convolution")
    if meaning.core not in RULES:
        raise Unsupported("it has no integer form")
    lowering.items[node] = RULES[meaning.core](lowering, node, found, codes, clamped)


def _product(
    lowering: Lowering, node: fx.Node, found: Expression, codes: Codes, clamped: Codes
) -> Item:
    item = quantized_convolution(lowering, node, found, codes, clamped)
    assert found.core is not None
    lowering.alike(node, found.core)
    return item


def _pair(
    lowering: Lowering, node: fx.Node, found: Expression, codes: Codes, clamped: Codes
) -> Item:
    """An addition or product of two values."""
    meaning = _meaning_of_core(lowering, found)
    inputs = list(meaning.inputs)
    shapes = [tuple(n.meta["shape"]) for n in inputs]
    if meaning.core == MUL and len(shapes[0]) == 4 and shapes[0][2:] == (1, 1):
        inputs.reverse()
        shapes.reverse()
    a, b = (entering_codes(lowering, n) for n in inputs)
    _check_batch(lowering, inputs)
    for n in inputs:
        check_whole(lowering, n)
    per_channel = len(shapes[0]) == 4 and shapes[1] == (*shapes[0][:2], 1, 1)
    if shapes[0] == shapes[1]:
        lowering.alike(node, *inputs)
    elif per_channel:
        for n in (node, *inputs):
            lowering.require(n, False)
    else:
        raise Unsupported(f"values of shapes {shapes[0]} and {shapes[1]}")
    product = meaning.core == MUL
    fields = {"op": "pair", "product": product, **pairing(a, b, clamped)}
    return Item(node.name, inputs, clamped, fields)


def _check_batch(lowering: Lowering, inputs: list[fx.Node]) -> None:
    """Constants have no batch that would grow with the others'."""
    if any(n not in lowering.varies for n in inputs):
        raise Unsupported("one of its inputs is a constant")


def _pool(
    lowering: Lowering, node: fx.Node, found: Expression, codes: Codes, clamped: Codes
) -> Item:
    """A mean over windows."""
    meaning = _meaning_of_core(lowering, found)
    source = meaning.inputs[0]
    entering = entering_codes(lowering, source)
    lowering.require(source, False)
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
        lowering.require(node, False)
    flattened = (source.meta["shape"][1], 1, 1) if drops else None
    return Item(node.name, [source], clamped, fields, flattened=flattened)


def _concat(
    lowering: Lowering, node: fx.Node, found: Expression, codes: Codes, clamped: Codes
) -> Item:
    """A concatenation: a part that nothing else reads is made on the grid of the whole."""
    meaning = _meaning_of_core(lowering, found)
    made: dict[fx.Node, tuple[Item, list[fx.Node]]] = {}
    tables: list[Tensor | None] = []
    _check_batch(lowering, meaning.inputs)
    for value in (node, *meaning.inputs):
        lowering.require(value, meaning.window["rows"])
    for part in meaning.inputs:
        entering = lowering.grid(part)
        if entering is None:
            part_of = lowering.open(part)
            plain = part_of is not None and (part_of.activation or NOTHING).table is None
            core = part_of.core if part_of is not None else None
            if not plain or core is None or lowering.meanings[core].core != CONV:
                raise Unsupported("one of its inputs is not quantized")
            assert part_of is not None
            bounds = part_of.activation or NOTHING
            clamp = codes.clamped(bounds.low, bounds.high)
            made[part] = (convolution(lowering, core, part_of.norm, codes, clamp), part_of.inside)
            entering = codes
        else:
            check_whole(lowering, part)
        same = entering.scale == clamped.scale and entering.zero == clamped.zero
        inside = clamped.low <= entering.low and entering.high <= clamped.high
        tables.append(None if same and inside else table_codes(entering, clamped, NOTHING))
    for part, (item, inside_nodes) in made.items():
        lowering.items[part] = item
        lowering.inside.update(n for n in inside_nodes if n is not part)
    fields = {"op": "concat"}
    return Item(node.name, list(meaning.inputs), clamped, fields, {"tables": tables})


def _fuse_additions(lowering: Lowering) -> None:
    for node, item in list(lowering.items.items()):
        if item.fields is None or item.fields["op"] != "pair" or item.fields["product"]:
            continue
        shapes = [n.meta["shape"] for n in item.inputs]
        last, other = item.inputs
        if lowering.order[last] < lowering.order[other]:
            last, other = other, last
        made = lowering.items.get(last)
        fits = made is not None and made.fields is not None and made.fields["op"] == "conv"
        alone = len(last.users) == 1 and "add" not in (made.fields or {} if made else {})
        known = lowering.items.get(other)
        if not fits or not alone or shapes[0] != shapes[1] or last is other or known is None:
            continue
        assert made is not None and made.codes is not None and made.fields is not None
        assert known.codes is not None and item.codes is not None
        made.fields["add"] = {
            "first_of": last.name, **pairing(made.codes, known.codes, item.codes)
        }  # fmt: skip
        made.inputs.append(other)
        made.codes = item.codes
        lowering.items[node] = made
        del lowering.items[last]
        lowering.inside.add(last)


def _least(q: Quantizer | None) -> int:
    """The least byte of a grid that is found at run time."""
    assert q is not None
    return q.grid.quant_min + (SIGNED if q.grid.quant_min < 0 else 0)


Rule = Callable[[Lowering, fx.Node, Expression, Codes, Codes], Item]
# The rule of what a quantizer reads: the item that makes its codes.
RULES: dict[str, Rule] = {
    CONV: _product,
    ADD: _pair,
    MUL: _pair,
    MEAN_POOL: _pool,
    MAX_POOL: _pool,
    CAT: _concat,
}
