"""Find the weights of a model that can be pruned."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bitpare import functional as bpf
from bitpare.errors import Unsupported
from bitpare.models import Globs
from bitpare.nn.quantizer import Quantizer
from bitpare.nn.weights import is_sharded, quantized_weights

_PRUNED = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


class Target(NamedTuple):
    """A weight to prune. Tied weights come once, under their first name."""

    name: str
    owner: nn.Module
    attribute: str
    quantizer: Quantizer | None

    @property
    def value(self) -> nn.Parameter:
        found = self.owner._parameters[self.attribute]
        assert found is not None
        return found


def _weights_of(module: nn.Module) -> Iterator[str]:
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dim() >= 2 and "weight" in name:
            yield name


def find_targets(model: nn.Module, ignore: Sequence[str]) -> list[Target]:
    """Return the weights of convolutions, linear, recurrent and attention layers whose name matches
    no glob of ``ignore``."""
    quantizers = {(w.owner, w.attribute): w.quantizer for w in quantized_weights(model)}
    found: list[Target] = []
    seen: set[int] = set()
    ignored = Globs(ignore)
    for prefix, module in model.named_modules():
        if not isinstance(module, _PRUNED):
            continue
        for attribute in _weights_of(module):
            name = f"{prefix}.{attribute}" if prefix else attribute
            skip = ignored.matching(name, prefix)
            value = getattr(module, attribute)
            if skip or id(value) in seen:
                continue
            seen.add(id(value))
            _require_whole(name, value)
            found.append(Target(name, module, attribute, quantizers.get((module, attribute))))
    if ignored.unused:
        names = ", ".join(t.name for t in found[:5])
        raise ValueError(
            f"Pruner: ignore {ignored.unused[0]!r} matches no weight; there are {names}, ..."
        )
    if not found:
        raise ValueError("Pruner: the model has no weight to prune (convolution, linear, ...)")
    return found


def fits(target: Target, pattern: str, caller: str) -> bool:
    """Return whether the shape of a weight is a multiple of the pattern's."""
    probe = target.value.detach().to("meta", torch.float32)
    try:
        bpf.select_mask([probe], 0.5, pattern=pattern)
    except RuntimeError as error:
        text = str(error).split("\n")[0]
        if "pattern must be" in text:
            raise ValueError(text.replace("select_mask", caller)) from None
        return False
    return True


def _require_whole(name: str, value: Tensor) -> None:
    if is_sharded(value):
        raise Unsupported(
            f"{name}: a shard of a weight cannot be pruned by itself; prune before fully_shard, "
            "or gather the weights"
        )
