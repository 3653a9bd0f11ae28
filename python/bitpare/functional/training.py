"""Ops that layers call in training: fake quantization fused with its neighbours."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

_ops = torch.ops.bitpare


def act_fake_quant(
    x: Tensor,
    other: Tensor | None,
    scale: Tensor,
    zero_point: Tensor | None,
    control: Tensor,
    pending: Tensor | None,
    *,
    activation: Literal["none", "relu", "relu6", "hardswish", "hardsigmoid"] = "none",
) -> Tensor:
    """Fake-quantize an activation of ``x + other`` and observe its range, with one read of each.

    ``y = fake_quant(w)`` with ``w = activation(x + other)``. The gradient is that of the
    activation where ``w`` was not clamped to the grid, else 0.

    Args:
        x: the first operand.
        other: the second operand, in x's shape, or None.
        scale: float32, one element.
        zero_point: int32, one element; None is 0.
        control: int32 tensor of quant_min, quant_max, observe, quantize and freeze, read on the
            device. If quantize is 0, ``y = w``.
        pending: float32 [2, 1] or None. If observe is 1, the minimum and maximum of ``w`` are
            merged into it.
        activation: "none", "relu", "relu6", "hardswish" or "hardsigmoid". The last two cannot be
            used with ``other``.

    >>> control = torch.tensor([0, 7, 1, 1, 0], dtype=torch.int32)
    >>> pending = torch.tensor([[torch.inf], [-torch.inf]])
    >>> x = torch.tensor([-1.0, 0.3, 9.0])
    >>> act_fake_quant(x, None, torch.tensor(0.5), None, control, pending, activation="relu")
    tensor([0.0000, 0.5000, 3.5000])
    >>> pending.flatten()
    tensor([0., 9.])
    """
    return _ops.act_fake_quant(x, other, scale, zero_point, control, pending, activation=activation)


def bn_act_fake_quant(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    scale: Tensor,
    zero_point: Tensor | None,
    control: Tensor,
    pending: Tensor | None,
    *,
    activation: Literal["none", "relu", "relu6", "hardswish"] = "none",
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute BatchNorm, an activation and `fake_quant` of a tensor, in one op.

    ``y = fake_quant(activation((x - mean) / sqrt(var + eps) * weight + bias))``

    ``x``, ``weight`` and ``bias`` get gradients, which are 0 for clamped values.

    Args:
        x: the input, [N, C, ...].
        weight: the factors of BatchNorm, or None.
        bias: the offsets of BatchNorm, or None.
        running_mean: the running mean, which is updated in training.
        running_var: the running unbiased variance, which is updated in training.
        num_batches_tracked: the count of batches, which is updated in training, or None.
        scale: float32, one element.
        zero_point: int32, one element; None is 0.
        control: int32 tensor of quant_min, quant_max, observe, quantize and freeze, read on the
            device. If quantize is 0, the activation is returned.
        pending: float32 [2, 1] of minimum and maximum, (inf, -inf) at first, or None. If observe is
            1, the range of the activation is merged into it.
        activation: "none", "relu", "relu6" or "hardswish".
        training: whether to use the statistics of ``x``, unless freeze is 1; otherwise the running
            ones are used.
        momentum: the momentum of the running statistics.
        eps: the epsilon of BatchNorm.

    >>> x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    >>> mean, var, count = torch.zeros(2), torch.ones(2), torch.tensor(0)
    >>> control = torch.tensor([-128, 127, 1, 1, 0], dtype=torch.int32)
    >>> pending = torch.tensor([[torch.inf], [-torch.inf]])
    >>> bn_act_fake_quant(
    ...     x, None, None, mean, var, count, torch.tensor(0.25), None, control, pending,
    ...     activation="relu", training=True, eps=0.0,
    ... )
    tensor([[0., 0.],
            [1., 1.]])
    >>> mean, count, pending.flatten()
    (tensor([0.2000, 2.0000]), tensor(1), tensor([0., 1.]))
    """
    return _ops.bn_act_fake_quant(
        x,
        weight,
        bias,
        running_mean,
        running_var,
        num_batches_tracked,
        scale,
        zero_point,
        control,
        pending,
        activation=activation,
        training=training,
        momentum=momentum,
        eps=eps,
    )


def fake_quant_weights(
    x: Sequence[Tensor],
    scale: Sequence[Tensor],
    control: Sequence[Tensor],
    *,
    power_of_two: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Fake-quantize all weights of a model at once, with zero point 0.

    Return the values, which carry no gradient, and for each weight the bits by which
    `use_weight` passes gradients. The last word of the bits is 1 if any value of the weight was
    clamped.

    Args:
        x: the weights.
        scale: float32 for each weight, one element or one per index of dimension 0. It is set to
            ``max(|x|) / quant_max``, as in `qparams`, if the weight's observe is 1.
        control: int32 for each weight, as in `act_fake_quant`. If quantize is 0, the values are x.
        power_of_two: whether to round scales up to a power of two.

    >>> x, scale = torch.tensor([[0.2, -1.4], [3.5, 0.4]]), torch.zeros(2)
    >>> control = torch.tensor([-7, 7, 1, 1, 0], dtype=torch.int32)
    >>> (value,), (inside,) = fake_quant_weights([x], [scale], [control])
    >>> value, scale
    (tensor([[ 0.2000, -1.4000],
            [ 3.5000,  0.5000]]), tensor([0.2000, 0.5000]))
    >>> inside
    tensor([15,  0])
    """
    value, inside = _ops.fake_quant_weights(x, scale, control, power_of_two=power_of_two)
    return value, inside


def use_weight(weight: Tensor, value: Tensor, inside: Tensor) -> Tensor:
    """Return ``value`` with the gradient of `fake_quant` to ``weight``, for one use in a layer.

    The result is an alias of ``value``. The gradient passes where the weight was in range.

    Args:
        weight: the weight.
        value: the weight's value from `fake_quant_weights`.
        inside: the weight's bits from `fake_quant_weights`.

    >>> weight = torch.tensor([0.2, -1.4, 9.0], requires_grad=True)
    >>> control = torch.tensor([-7, 7, 0, 1, 0], dtype=torch.int32)
    >>> (value,), (inside,) = fake_quant_weights([weight], [torch.tensor([0.2])], [control])
    >>> use_weight(weight, value, inside).sum().backward()
    >>> weight.grad
    tensor([1., 1., 0.])
    """
    return _ops.use_weight(weight, value, inside)


def update_ranges_(
    pending: Sequence[Tensor],
    range: Sequence[Tensor],
    scale: Sequence[Tensor],
    zero_point: Sequence[Tensor],
    count: Sequence[Tensor],
    control: Sequence[Tensor],
    *,
    rule: Literal["minmax", "ema", "last"],
    momentum: float = 0.01,
    symmetric: bool,
    power_of_two: bool = False,
    limit: Sequence[float] = (),
) -> None:
    """Merge the pending ranges of all quantizers of a model, and set their scales and zero points.

    Each list has one entry per quantizer, with n scales. Scale and zero point are the `qparams`
    of the range. A range without pending values, (inf, -inf), stays; a quantizer whose pending
    values are not finite skips the step. Afterwards ``pending`` is (inf, -inf).

    Args:
        pending: float32 [2, n], minima then maxima.
        range: float32 [2, n], minima then maxima.
        scale: float32 [n].
        zero_point: int32 [n]; an empty list if ``symmetric``.
        count: int64 [2], the numbers of merged and of skipped steps.
        control: int32, as in `act_fake_quant`.
        rule: "minmax" widens the range; "ema" moves it by ``low += m * (pending_low - low)``, where
            m is the larger of ``momentum`` and 1 / (ranges merged + 1); "last" replaces it. The
            first range is taken as it is.
        momentum: the momentum of "ema".
        symmetric: whether the grids are symmetric.
        power_of_two: whether to round scales up to a power of two.
        limit: a number for each quantizer. If positive, the scale is reduced until the largest
            value of the grid does not exceed it, so that an integer model may drop the clamp of a
            ReLU6. It has no effect on scales that are powers of two.

    >>> pending, seen = torch.tensor([[-1.0], [3.0]]), torch.zeros(2, 1)
    >>> scale, zero, count = torch.ones(1), torch.zeros(1, dtype=torch.int32), torch.zeros(2).long()
    >>> control = torch.tensor([0, 4, 1, 1, 0], dtype=torch.int32)
    >>> update_ranges_([pending], [seen], [scale], [zero], [count], [control], rule="minmax",
    ...                symmetric=False)
    >>> scale, zero, count
    (tensor([1.]), tensor([1], dtype=torch.int32), tensor([1, 0]))
    """
    _ops.update_ranges_(
        pending,
        range,
        scale,
        zero_point,
        count,
        control,
        rule=rule,
        momentum=momentum,
        symmetric=symmetric,
        power_of_two=power_of_two,
        limit=limit,
    )


def track_oscillations_(
    weight: Tensor,
    scale: Tensor,
    control: Tensor,
    code: Tensor,
    turn: Tensor,
    frequency: Tensor,
    mean: Tensor,
    *,
    momentum: float = 0.01,
    threshold: float | None = None,
    first: bool = False,
    skip: Tensor | None = None,
) -> None:
    """Track the integers of a weight after an optimizer step (Nagel et al. 2022, alg. 1).

    A weight oscillates if its integer changed in the opposite direction to its last change. If
    the running mean of these events exceeds ``threshold``, the weight is frozen: it is set to
    the grid value nearest to its mean integer, now and in every later call. The state tensors
    have one element per element of the weight, in memory order.

    Args:
        weight: the weight.
        scale: float32; each scale serves the same number of neighbouring elements. The zero point
            is 0.
        control: int32, as in `act_fake_quant`.
        code: int16, the last integer.
        turn: int8, the direction of the last change, or 2 for a frozen weight.
        frequency: float32, the running mean of the oscillations.
        mean: float32, the running mean of the integers.
        momentum: the momentum of both running means.
        threshold: the frequency above which a weight is frozen; None only tracks.
        first: whether to initialize the state.
        skip: a float32 tensor of one element. If it is above 0, the call does nothing.

    >>> weight, scale = torch.tensor([0.2, 0.2]), torch.ones(1)
    >>> control = torch.tensor([-8, 7, 1, 1, 0], dtype=torch.int32)
    >>> types = torch.int16, torch.int8, torch.float32, torch.float32
    >>> state = [torch.zeros(2, dtype=t) for t in types]
    >>> track_oscillations_(weight, scale, control, *state, first=True)
    >>> for value in (0.9, 0.3):  # to 1 and back
    ...     weight[0] = value
    ...     track_oscillations_(weight, scale, control, *state, momentum=0.25, threshold=0.2)
    >>> state[1], state[2], weight
    (tensor([2, 0], dtype=torch.int8), tensor([0.2500, 0.0000]), tensor([0.0000, 0.2000]))
    """
    _ops.track_oscillations_(
        weight,
        scale,
        control,
        code,
        turn,
        frequency,
        mean,
        momentum=momentum,
        threshold=threshold,
        first=first,
        skip=skip,
    )
