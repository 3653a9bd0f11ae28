"""Sparse weights: masks of one bit an element, and soft thresholding."""

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


def select_mask(
    scores: Sequence[Tensor],
    sparsity: float | Sequence[float],
    *,
    scope: str = "global",
    previous: Sequence[Tensor] | None = None,
    min_keep: int | Sequence[int] = 1,
    pattern: str = "element",
) -> list[Tensor]:
    """Packed masks that prune the share ``sparsity`` of all elements: those of the least score.

    Exactly ``floor(sparsity * n + 1e-6)`` are pruned, those first that the masks ``previous``
    prune already, then by score, ties in the order of the tensors and of their elements (row-major,
    whatever the strides); so the CPU and a GPU give the same masks. For magnitude pruning, the
    scores are ``[w.abs() for w in weights]``. No sort, no synchronisation.

    scope: "global" compares the scores of all tensors; "local" prunes each by itself, and
    ``sparsity`` may then be one number for each. min_keep: how many of each tensor stay whatever
    their score; others are pruned instead.

    pattern: "element"; "N:M" as "2:4", which keeps N of M neighbours along dimension 1, whatever
    the sparsity, unless that is 0; "blockRxC" as "block4x1", R rows by C columns of dimensions 0
    and 1; "filter", all that shares an index of dimension 0; "channel", of dimension 1. A block,
    filter or channel counts as one, with the mean of its scores.

    A NaN among the scores is an error on the CPU; on a GPU it counts as more than infinity.

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
    mode: str = "hard",
) -> Tensor:
    """`fake_quant` where the packed ``mask`` keeps ``x``, and exactly 0 elsewhere, whether or not 0
    is on the grid; in one pass.

    The gradient is straight-through. ``mode`` "hard": 0 where ``x`` is masked; "ste": as if nothing
    were masked.

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
    """Makes each tensor exactly +0 where its packed mask prunes it, in place and in one call.

    Tensors of any type and layout: weights, gradients, and the state of optimizers. What is 0
    already is only read.

    >>> weight, momentum = torch.tensor([1.0, 2.0, -0.0]), torch.ones(3)
    >>> remask_([weight, momentum], [torch.tensor([1])] * 2)
    >>> weight, momentum
    (tensor([1., 0., 0.]), tensor([1., 0., 0.]))
    """
    if len(tensors) or len(masks):  # the dispatcher needs a tensor to go by
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
