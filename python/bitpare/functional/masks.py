"""Sparse weights: masks of one bit an element, and soft thresholding."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

_ops = torch.ops.bitpare


def pack_mask(kept: Tensor) -> Tensor:
    """Pack a bool tensor, which is True for kept elements, into a mask with one bit per element.

    The mask is int64. Element i, in row-major order whatever the strides, is bit ``i % 64`` of
    word ``i // 64``.

    >>> pack_mask(torch.tensor([True, False, True]))
    tensor([5])
    """
    return _ops.pack_mask(kept)


def unpack_mask(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the bool tensor of a packed mask.

    >>> unpack_mask(torch.tensor([5]), [3])
    tensor([ True, False,  True])
    """
    return _ops.unpack_mask(mask, shape)


def select_mask(
    scores: Sequence[Tensor],
    sparsity: float | Sequence[float],
    *,
    scope: Literal["global", "local"] = "global",
    previous: Sequence[Tensor] | None = None,
    min_keep: int | Sequence[int] = 1,
    pattern: str = "element",
) -> list[Tensor]:
    """Return packed masks that prune the given share of all elements, those with the lowest scores.

    Exactly ``floor(sparsity * n + 1e-6)`` elements are pruned. Elements that ``previous``
    prunes come first, then those of the lowest score; ties follow the order of the tensors and
    of their elements, row-major whatever the strides. So the CPU and a GPU give the same masks.
    The op neither sorts nor synchronises. A NaN score raises an error on the CPU; on a GPU it
    counts as more than infinity.

    Args:
        scores: the scores of each tensor; for magnitude pruning ``[w.abs() for w in weights]``.
        sparsity: the share to prune, in [0, 1]; with scope "local" it may be one number per tensor.
        scope: "global" compares the scores of all tensors; "local" prunes each tensor by itself.
        previous: masks whose pruned elements stay pruned.
        min_keep: the number of elements of each tensor that are never pruned; other elements are
            pruned instead. It may be one number per tensor.
        pattern: what is pruned as one unit, with the mean of its scores. "element"; "blockRxC",
            such as "block4x1", for R rows by C columns of dimensions 0 and 1; "filter" for an index
            of dimension 0; "channel" for an index of dimension 1. "N:M", such as "2:4", keeps N of
            M neighbours along dimension 1, whatever the sparsity, unless that is 0.

    >>> weights = [torch.tensor([3.0, -1.0, 0.5]), torch.tensor([0.1, -2.0])]
    >>> masks = select_mask([w.abs() for w in weights], 0.4)
    >>> [apply_mask(w, m).tolist() for w, m in zip(weights, masks)]
    [[3.0, -1.0, 0.0], [0.0, -2.0]]
    """
    return _ops.select_mask(
        scores,
        sparsity if isinstance(sparsity, Sequence) else [sparsity],
        scope=scope,
        previous=previous,
        min_keep=min_keep if isinstance(min_keep, Sequence) else [min_keep],
        pattern=pattern,
    )


def apply_mask(x: Tensor, mask: Tensor, *, mode: Literal["hard", "ste"] = "hard") -> Tensor:
    """Return ``x`` where the packed ``mask`` keeps it, and 0 elsewhere, even for NaN and
    infinities.

    Args:
        x: the values.
        mask: the packed mask.
        mode: "hard" masks the gradient like the value. "ste" passes the gradient to all of ``x``,
            so that masked values are trained too.

    >>> weight = torch.tensor([1.0, torch.nan, -3.0], requires_grad=True)
    >>> mask = pack_mask(torch.tensor([True, False, True]))
    >>> apply_mask(weight, mask)
    tensor([ 1.,  0., -3.], grad_fn=<...>)
    >>> apply_mask(weight, mask, mode="ste").sum().backward()
    >>> weight.grad
    tensor([1., 1., 1.])
    """
    return _ops.apply_mask(x, mask, mode=mode)


def masked_fake_quant(
    x: Tensor,
    mask: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    group: int | None = None,
    mode: Literal["hard", "ste"] = "hard",
) -> Tensor:
    """Compute `fake_quant` where the packed ``mask`` keeps ``x``, and exactly 0 elsewhere, in one
    pass.

    Masked values are 0 even if 0 is not on the grid. The gradient is straight-through.

    Args:
        x: the values.
        mask: the packed mask.
        scale: float32, one per tensor, index of ``axis`` or group.
        zero_point: int32, in the shape of ``scale``; None is 0.
        quant_min: the smallest integer of the grid.
        quant_max: the largest integer of the grid.
        axis: the dimension with one scale per index.
        group: the number of neighbours of the last dimension that share a scale.
        mode: "hard" gives masked values no gradient; "ste" passes it as if nothing were masked.

    >>> weight, mask = torch.tensor([0.9, 0.3, -1.6]), pack_mask(torch.tensor([True, False, True]))
    >>> masked_fake_quant(weight, mask, torch.tensor(0.5), quant_min=-2, quant_max=1)
    tensor([ 0.5000,  0.0000, -1.0000])
    """
    return _ops.masked_fake_quant(
        x,
        mask,
        scale,
        zero_point,
        quant_min=quant_min,
        quant_max=quant_max,
        axis=axis,
        group=group,
        mode=mode,
    )


def remask_(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Set each tensor to exactly +0 where its packed mask prunes it, in place and in one call.

    The tensors may have any type and layout: weights, gradients, optimizer state. Elements that
    are 0 already are only read.

    >>> weight, momentum = torch.tensor([1.0, 2.0, -0.0]), torch.ones(3)
    >>> remask_([weight, momentum], [torch.tensor([1])] * 2)
    >>> weight, momentum
    (tensor([1., 0., 0.]), tensor([1., 0., 0.]))
    """
    if len(tensors) or len(masks):  # the dispatcher needs a tensor to choose a device
        _ops.remask_(tensors, masks)


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    """Shrinks values toward 0 and sets the small ones to it: the proximal operator of the L1 norm.

    ``y = sign(x) * max(|x| - threshold, 0)``

    The gradient is 0 where ``|x| <= threshold`` and passes elsewhere, as in torch's softshrink; one
    bit an element is saved for it. NaN stays NaN.

    Args:
        x: Weights, or other values of any shape.
        threshold: A finite number, 0 or more; in a proximal step, the learning rate times the
            weight of the L1 penalty.

    >>> x = torch.tensor([-2.0, -0.5, 0.25, torch.nan, 3.0], requires_grad=True)
    >>> y = soft_threshold(x, 0.5)
    >>> y
    tensor([-1.5000,  0.0000,  0.0000,     nan,  2.5000], grad_fn=<...>)
    >>> torch.autograd.grad(y.nan_to_num().sum(), x)[0]
    tensor([1., 0., 0., 0., 1.])
    """
    return _ops.soft_threshold(x, threshold)
