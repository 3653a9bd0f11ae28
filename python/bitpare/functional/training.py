"""The ops that layers of a model in training call: fake quantization fused with its neighbours."""

from collections.abc import Sequence

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
    activation: str = "none",
) -> Tensor:
    """An activation of ``x + other``, its range and its fake quantization, in one read of each.

    ``w = act(x + other)``; ``y = fake_quant(w)`` on the grid of ``control``, an int32 tensor of
    quant_min, quant_max, observe, quantize and freeze, read on the device. Where observe is 1 the
    least and most of ``w`` are folded into ``pending``, float32 of shape [2, 1]. Where quantize is
    0, ``y = w``. ``other``, of x's shape, the int32 ``zero_point`` and ``pending`` may be None.

    ``activation`` is none, relu, relu6, hardswish or hardsigmoid; the last two go without
    ``other``. The gradient is the activation's own where ``w`` was not clamped to the grid, else 0.

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
    activation: str = "none",
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """BatchNorm, an activation and `fake_quant` of a tensor in training, in one op.

    ``y = fake_quant(activation((x - mean) / sqrt(var + eps) * weight + bias))``

    ``activation`` is none, relu, relu6 or hardswish; ``x`` has shape ``[N, C, ...]``. ``control``
    is an int32 tensor of quant_min, quant_max, observe, quantize and freeze, read where ``x`` is.
    With ``training`` and without freeze, mean and var are those of ``x`` and move
    ``running_mean``, ``running_var`` (unbiased) and ``num_batches_tracked``; else they are the
    running ones. With observe, ``pending`` (float32 of the least and the most, (inf, -inf) at
    first, or None) takes in the activation's range; without quantize the activation passes as it
    is. Gradients go to ``x``, ``weight`` and ``bias``, 0 from where a value was clamped.

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
    """`fake_quant` of all weights of a model at once, with zero point 0 and scales of the weights.

    Weight i has ``scale[i]``, float32 of one element or one for each index of dimension 0. Where
    observe of ``control[i]`` is 1 it becomes ``max(|x|) / quant_max``, as `qparams` has it, else it
    is used as it is. Where quantize is 0 the values are x's. Returns the values, which carry no
    gradient, and for each weight the bits that `use_weight` passes gradients by; their last word is
    1 where any value of the weight was clamped to the grid.

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
    """``value``, with the gradient of `fake_quant` to ``weight``: what a layer takes at each use.

    ``value`` and ``inside`` are one weight's of `fake_quant_weights`. The result is an alias of
    ``value``. The gradient passes where the weight was in range.

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
    rule: str,
    momentum: float = 0.01,
    symmetric: bool,
    power_of_two: bool = False,
    limit: Sequence[float] = (),
) -> None:
    """Merges what every quantizer of a model saw into its range, and sets scale and zero point.

    An entry of each list is one quantizer of n scales: ``pending`` and ``range`` float32 [2, n],
    lows then highs; ``scale`` float32 [n]; ``zero_point`` int32 [n], no entries where symmetric;
    ``count`` int64 [2], steps merged and steps skipped; ``control`` as in `act_fake_quant`.

    rule "minmax" widens the range, "ema" moves it: ``low += m * (pending_low - low)`` with m the
    larger of ``momentum`` and 1 / (ranges merged + 1), and
    "last" replaces it; the first range is taken as it is. Where nothing is pending, (inf, -inf),
    the range stays; where a pending value is not finite the quantizer skips the step. Scale and
    zero point are `qparams` of the range on the grid of ``control``. A positive ``limit`` reduces
    the scale until no value of the grid passes it, so that an integer model may drop the clamp of
    ReLU6; it is without effect on scales that are powers of two. ``pending`` ends as (inf, -inf).

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
    """Looks at the integers of a weight after an optimizer step (Nagel et al. 2022, alg. 1).

    A weight oscillates where its integer changed, and in the direction opposite to the change
    before; ``frequency`` is the running mean of that, ``mean`` of the integers. Where the frequency
    exceeds ``threshold`` the weight is frozen: set to the grid's value nearest to its mean, now and
    at every later call.

    ``scale``: float32, each serving as many neighbours of ``weight`` as it has elements for each
    scale; zero point 0. ``control`` as in `act_fake_quant`. The state, an element for each of the
    weight's in the order they lie in memory: ``code`` int16, the last integer; ``turn`` int8, the
    direction of the last change, or 2 where frozen; ``frequency`` and ``mean`` float32. ``first``
    begins it. With ``skip``, a float32 of one element, nothing happens where that is above 0.

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
