"""Apply masks in the forward pass and to gradients, where setting weights to 0 is not enough."""

from typing import Literal

import torch
from torch import Tensor, nn

from bitpare.nn.rewritten import rewrite
from bitpare.prune.targets import Target

_PREFIX = "bp_mask_"
_SOURCE = """
from bitpare.functional import apply_mask as _apply_mask
def forward(self, *args, **kwargs):
    masks = {k.removeprefix("bp_mask_"): v for k, v in self._buffers.items()
             if k.startswith("bp_mask_")}
    for name, mask in masks.items():  # instance attributes hide the parameters
        self.__dict__[name] = _apply_mask(self._parameters[name], mask, mode="ste")
    try:
        return _bitpare_base.forward(self, *args, **kwargs)
    finally:
        for name in masks:
            del self.__dict__[name]
"""


def hold_mask(target: Target, mask: Tensor, mode: Literal["hard", "ste"]) -> None:
    """Apply the mask in the forward pass, if the weight keeps its values under the mask (mode
    "ste") or is quantized on a grid without 0."""
    quantizer, owner = target.quantizer, target.owner
    if quantizer is not None:
        if mode == "ste" or not quantizer.holds_zero:
            quantizer.mask, quantizer.mask_mode = mask, mode
    elif mode == "ste":
        if not _is_held(owner):
            rewrite(owner, _SOURCE)
        owner.register_buffer(_PREFIX + target.attribute, mask, persistent=False)


def masked_weights(weights: list[Tensor], masks: list[Tensor], mode: str) -> torch.ScriptObject:
    """Return a C++ object that masks weights and gradients. In mode "hard" it sets the gradients of
    pruned weights to 0 before they are accumulated. After ``note(True)`` it records the dense
    gradients. ``remask()`` sets pruned weights to 0. Its other methods are set(i, mask), noted(i)
    and remove()."""
    for weight in weights:
        if weight.requires_grad:
            # The first Python hook of a tensor removes its C++ hooks, so add and remove one first.
            weight.register_hook(lambda gradient: None).remove()
    result: torch.ScriptObject = torch.classes.bitpare.MaskedWeights(weights, masks, mode == "hard")
    return result


def release_mask(target: Target) -> None:
    if target.quantizer is not None:
        target.quantizer.mask = None
    owner = target.owner
    if _is_held(owner):
        for name in [n for n in owner._buffers if n.startswith(_PREFIX)]:
            delattr(owner, name)
        owner.__class__ = type(owner)._bitpare_source[0]  # type: ignore[attr-defined]


def _is_held(owner: nn.Module) -> bool:
    return any(name.startswith(_PREFIX) for name in owner._buffers)
