"""Lower convolutions and linear layers, with the operations that are fused into them."""

from typing import Any

from torch import fx, nn

from bitpare.deploy.items import NOTHING, Expression, Item
from bitpare.deploy.meaning import CONV, NORM, VALUE, Activation, conv_window
from bitpare.deploy.numbers import Codes, conv_numbers, weight_codes
from bitpare.deploy.run_time import dynamic_numbers, linear_numbers
from bitpare.deploy.values import Values
from bitpare.errors import Unsupported


class Products(Values):
    """Makes the items of convolutions and linear layers, with quantized and with float results."""

    def _conv(
        self,
        core: fx.Node,
        norm: Any,
        codes: Codes | None,
        clamped: Codes | None,
        activation: Activation = NOTHING,
    ) -> Item:
        """Return the item of a convolution or linear layer. ``clamped``: the codes of the result,
        with the activation's clamp. ``codes``: None for a float result, which ``activation``
        clamps."""
        meaning, layer = self.meanings[core], self.meanings[core].module
        source = meaning.inputs[0]
        linear = isinstance(layer, nn.Linear)
        if meaning.before is not None:
            raise Unsupported("it quantizes its input itself")
        fields: dict[str, Any] = {"linear": linear, "bounds": [activation.low, activation.high]}
        entering, found = self.grid(source), self.found(source)
        if linear and codes is None and norm is None and not self._multiplies_codes(layer, source):
            self.require(source, True)
            self.require(core, True)
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
        flattened = self._flattened(source)
        if linear:
            channels, *size = flattened or (layer.in_features, 1, 1)
            tensors["weight"] = tensors["weight"].view(layer.out_features, channels, *size)
            window = {**window, "kernel": size}
        self.require(source, linear)
        self.require(core, linear)
        fields |= {"op": "conv", "groups": getattr(layer, "groups", 1), "float": codes is None}
        fields |= window
        if clamped is not None:
            fields["range"] = clamped.range
        return Item(str(core.target), [source], clamped, fields, tensors)

    def _multiplies_codes(self, layer: Any, source: fx.Node) -> bool:
        """Return whether the codes of a linear layer's input and weight can be multiplied."""
        if self.grid(source) is None and self.found(source) is None:
            return False
        try:
            weight_codes(layer)
        except Unsupported:
            return False
        return True

    def _quantized_conv(
        self, node: fx.Node, found: Expression, codes: Codes, clamped: Codes
    ) -> Item:
        """Return an all-integer item, or if that is unsupported a float result that is then
        quantized."""
        assert found.core is not None
        try:
            return self._conv(found.core, found.norm, codes, clamped)
        except Unsupported as refused:
            try:
                before = self._conv(found.core, found.norm, None, None)
            except Unsupported:
                raise refused from None
        fields = {"op": "quantize", "scale": codes.scale, "range": clamped.range}
        return Item(node.name, before.inputs, clamped, fields, before=before)

    def _to_floats(self, node: fx.Node) -> None:
        """Lower a convolution or linear layer with a float result, with its BatchNorm and clamp."""
        meaning = self.meanings[node]
        done = node in self.items or node in self.inside
        if meaning.core != CONV or meaning.after is not None or done:
            return
        chain, norm, activation = [node], None, NOTHING
        after = self._only_reader(node)
        if after is not None and self.meanings[after].core == NORM:
            norm = self.meanings[after].module
            chain.append(after)
            after = self._only_reader(after)
        if after is not None and self.meanings[after].core == VALUE:
            bounds = self.meanings[after].activation
            if bounds is not None and bounds.table is None:
                activation = bounds
                chain.append(after)
        try:
            made = self._conv(node, norm, None, None, activation)
            if norm is not None and (made.fields or {})["op"] == "weights":
                chain, norm = [node], None  # leave the rest in float
                made = self._conv(node, None, None, None)
            self.alike(node, chain[-1])
        except Unsupported as refused:
            self.reasons[node] = str(refused)
            return
        self.items[chain[-1]] = made
        self.inside.update(chain[:-1])

    def _only_reader(self, node: fx.Node) -> fx.Node | None:
        """Return the only consumer of a value, or None if that quantizes it or is lowered
        already."""
        users = list(node.users)
        if len(users) != 1 or self.meanings[users[0]].after is not None or users[0] in self.items:
            return None
        return users[0] if users[0] not in self.inside else None

    def _entering(self, node: fx.Node) -> Codes:
        codes = self.grid(node)
        if codes is None:
            raise Unsupported("its input is not quantized")
        return codes

    def _check_whole(self, node: fx.Node) -> None:
        """Refuse a flattened image, because only linear layers can read one."""
        flattened = self._flattened(node)
        if flattened is not None and flattened[1:] != (1, 1):
            raise Unsupported("it reads a flattened image")

    def _flattened(self, node: fx.Node) -> tuple[int, int, int] | None:
        item = self.items.get(node)
        return None if item is None else item.flattened
