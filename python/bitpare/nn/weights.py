"""List every weight that a prepared model quantizes."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from bitpare.nn.attention import QMultiheadAttention
from bitpare.nn.quantizer import Quantizer


class QuantizedWeight(NamedTuple):
    """A weight, its owner and its quantizer. ``name`` is its name in the state dict."""

    name: str
    owner: nn.Module
    attribute: str
    quantizer: Quantizer

    @property
    def value(self) -> Tensor:
        found: Tensor = getattr(self.owner, self.attribute)
        return found


def is_sharded(weight: Tensor) -> bool:
    """Return whether a weight is a DTensor, which is whole only in the forward of its own layer."""
    return type(weight) is not nn.Parameter and hasattr(weight, "_local_tensor")


def quantized_weights(model: nn.Module) -> Iterator[QuantizedWeight]:
    """Yield the quantized weights in the order of the modules. A shared weight comes once for each
    layer."""
    for prefix, module in model.named_modules():
        start = prefix + "." if prefix else ""
        found = [(module, "weight", getattr(module, "bp_weight", None))]
        found += [(module, name, q) for name, q in getattr(module, "bp_weights", {}).items()]
        if isinstance(module, QMultiheadAttention):
            found += [(module, name, q) for name, q in module.bp_in.items()]
            found += [(module.out_proj, "weight", module.bp_out)]
        for owner, attribute, quantizer in found:
            if isinstance(quantizer, Quantizer):
                where = start if owner is module else f"{start}out_proj."
                yield QuantizedWeight(where + attribute, owner, attribute, quantizer)
