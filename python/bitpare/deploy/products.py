"""Rules for convolutions and linear layers, with what is computed together with them."""

from typing import Any

from torch import fx, nn

from bitpare.deploy.items import NOTHING, Expression, Item
from bitpare.deploy.lowering import Lowering
from bitpare.deploy.meaning import CONV, NORM, VALUE, Activation, conv_window
from bitpare.deploy.numbers import Codes, conv_numbers, weight_codes
from bitpare.deploy.run_time import dynamic_numbers, linear_numbers
from bitpare.errors import Unsupported


def convolution(
    lowering: Lowering,
    core: fx.Node,
    norm: Any,
    codes: Codes | None,
    clamped: Codes | None,
    activation: Activation = NOTHING,
) -> Item:
    """A convolution or linear layer. codes: of the result, clamped by its activation; None for
    floats, which ``activation`` clamps."""
    meaning, layer = lowering.meanings[core], lowering.meanings[core].module
    source = meaning.inputs[0]
    linear = isinstance(layer, nn.Linear)
    if meaning.before is not None:
        raise Unsupported("it quantizes its input itself")
    fields: dict[str, Any] = {"linear": linear, "bounds": [activation.low, activation.high]}
    entering, found = lowering.grid(source), lowering.found(source)
    if linear and codes is None and norm is None and not _multiplies_codes(lowering, layer, source):
        lowering.require(source, True)
        lowering.require(core, True)
        numbers = linear_numbers(layer)
        fields |= {"op": "weights", "group": numbers.pop("group")}
        return Item(str(core.target), [source], None, fields, numbers)
    window = conv_window(layer)
    if window is None:
        raise Unsupported(f"padding of mode '{layer.padding_mode}'")
    if found is not None:
        if codes is not None:
            raise Unsupported("its input has dynamic ranges, but its result does not")
        tensors = dynamic_numbers(layer, norm)
        fields["dynamic"] = True
    elif entering is not None:
        tensors = conv_numbers(layer, norm, entering, codes)
        fields["zero"] = entering.zero
    else:
        raise Unsupported("its input is not quantized")
    flattened = _flattened(lowering, source)
    if linear:
        channels, *size = flattened or (layer.in_features, 1, 1)
        tensors["weight"] = tensors["weight"].view(layer.out_features, channels, *size)
        window = {**window, "kernel": size}
    lowering.require(source, linear)
    lowering.require(core, linear)
    fields |= {"op": "conv", "groups": getattr(layer, "groups", 1), "float": codes is None}
    fields |= window
    if clamped is not None:
        fields["range"] = clamped.range
    return Item(str(core.target), [source], clamped, fields, tensors)


def _multiplies_codes(lowering: Lowering, layer: Any, source: fx.Node) -> bool:
    """Return whether a linear layer's input and weight have codes that can be
    multiplied."""
    if lowering.grid(source) is None and lowering.found(source) is None:
        return False
    try:
        weight_codes(layer)
    except Unsupported:
        return False
    return True


def quantized_convolution(
    lowering: Lowering, node: fx.Node, found: Expression, codes: Codes, clamped: Codes
) -> Item:
    """In integers from end to end, or where that is refused as floats that get codes."""
    assert found.core is not None
    try:
        return convolution(lowering, found.core, found.norm, codes, clamped)
    except Unsupported as refused:
        try:
            before = convolution(lowering, found.core, found.norm, None, None)
        except Unsupported:
            raise refused from None
    fields = {"op": "quantize", "scale": codes.scale, "range": clamped.range}
    return Item(node.name, before.inputs, clamped, fields, before=before)


def lower_to_floats(lowering: Lowering, node: fx.Node) -> None:
    """A convolution or linear layer whose result is not quantized, with its BatchNorm and
    clamp."""
    meaning = lowering.meanings[node]
    done = node in lowering.items or node in lowering.inside
    if meaning.core != CONV or meaning.after is not None or done:
        return
    chain, norm, activation = [node], None, NOTHING
    after = _only_reader(lowering, node)
    if after is not None and lowering.meanings[after].core == NORM:
        norm = lowering.meanings[after].module
        chain.append(after)
        after = _only_reader(lowering, after)
    if after is not None and lowering.meanings[after].core == VALUE:
        bounds = lowering.meanings[after].activation
        if bounds is not None and bounds.table is None:
            activation = bounds
            chain.append(after)
    try:
        made = convolution(lowering, node, norm, None, None, activation)
        if norm is not None and (made.fields or {})["op"] == "weights":
            chain, norm = [node], None  # the rest stays as it is
            made = convolution(lowering, node, None, None, None)
        lowering.alike(node, chain[-1])
    except Unsupported as refused:
        lowering.reasons[node] = str(refused)
        return
    lowering.items[chain[-1]] = made
    lowering.inside.update(chain[:-1])


def _only_reader(lowering: Lowering, node: fx.Node) -> fx.Node | None:
    """Return the only consumer of a value, or None if that quantizes it or is lowered
    already."""
    users = list(node.users)
    if len(users) != 1:
        return None
    reader = users[0]
    done = reader in lowering.items or reader in lowering.inside
    return None if done or lowering.meanings[reader].after is not None else reader


def entering_codes(lowering: Lowering, node: fx.Node) -> Codes:
    codes = lowering.grid(node)
    if codes is None:
        raise Unsupported("its input is not quantized")
    return codes


def check_whole(lowering: Lowering, node: fx.Node) -> None:
    """Flattened images are read by linear layers alone."""
    flattened = _flattened(lowering, node)
    if flattened is not None and flattened[1:] != (1, 1):
        raise Unsupported("it reads a flattened image")


def _flattened(lowering: Lowering, node: fx.Node) -> tuple[int, int, int] | None:
    item = lowering.items.get(node)
    return None if item is None else item.flattened
