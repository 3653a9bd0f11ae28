"""Masks of weights: one bit an element."""

from collections.abc import Sequence

import torch
from torch import Tensor

_ops = torch.ops.bitpare


def pack_mask(kept: Tensor) -> Tensor:
    """A mask of one bit an element from a tensor of bool, True where the element is kept.

    Words of int64: element i, in row-major order whatever the strides, is bit ``i % 64`` of word
    ``i // 64``.

    >>> pack_mask(torch.tensor([True, False, True]))
    tensor([5])
    """
    return _ops.pack_mask(kept)


def unpack_mask(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """The tensor of bool of a packed mask.

    >>> unpack_mask(torch.tensor([5]), [3])
    tensor([ True, False,  True])
    """
    return _ops.unpack_mask(mask, shape)


def apply_mask(x: Tensor, mask: Tensor, *, mode: str = "hard") -> Tensor:
    """``x`` where the packed ``mask`` keeps it, and 0 elsewhere, NaN and infinities too.

    ``mode`` "hard": the gradient is masked like the value, exactly 0 where ``x`` is masked; "ste":
    it passes to all of ``x``, which lives on behind its mask.

    >>> weight = torch.tensor([1.0, torch.nan, -3.0], requires_grad=True)
    >>> mask = pack_mask(torch.tensor([True, False, True]))
    >>> apply_mask(weight, mask)
    tensor([ 1.,  0., -3.], grad_fn=<...>)
    >>> apply_mask(weight, mask, mode="ste").sum().backward()
    >>> weight.grad
    tensor([1., 1., 1.])
    """
    return _ops.apply_mask(x, mask, mode=mode)
