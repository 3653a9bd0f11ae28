"""The ops, each one call of torch.ops.bitpare.*: no state, differentiable where it says so.

All of them take float32, float16 or bfloat16, contiguous, channels_last or any other strides, and
compute in float32. `scale` is float32. How many scales there are is said in one way everywhere:

- nothing: one scale for the tensor;
- ``axis=a``: one for each index of dimension a, ``scale`` of shape ``[x.shape[a]]``;
- ``group=g``: one for each g neighbours along the last dimension, ``scale`` of shape
  ``x.shape[:-1] + [x.shape[-1] // g]``.

On the CPU a scale that is not positive and finite is an error; on CUDA, where looking would need a
synchronisation, the result is NaN.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_ops = torch.ops.bitpare


def fake_quant(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    group: int | None = None,
    rounding: str = "nearest",
    estimator: str = "ste",
    delta: float = 0.0,
    rng: Tensor | None = None,
) -> Tensor:
    """Quantizes to an integer grid and back, with a gradient that sees through the rounding.

    ``y = (clamp(round(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale``

    ``zero_point`` is int32, or float32 where it is learned (then the nearest integer on the grid is
    used). ``rounding`` is nearest (to even), half_up, floor, ceil, toward_zero or stochastic; the
    last takes its randomness from ``rng``, an int64 tensor of a seed and a step, so that the same
    ``rng`` gives the same bits on every device. NaN stays NaN; infinities clamp.

    ``estimator`` is the gradient to ``x``, which is 0 where the value was clamped, except for
    identity: ste passes it on; identity passes it on everywhere; ewgs scales it by
    ``1 + delta * sign(dy) * (x / scale - level)``; tanh gives each step the slope of a tanh of
    sharpness ``delta``. ``scale`` and ``zero_point`` get no gradient here: see `fake_quant_lsq`.

    >>> x = torch.tensor([-1.0, 0.24, 0.26, 9.0], requires_grad=True)
    >>> y = fake_quant(x, torch.tensor(0.5), quant_min=-4, quant_max=3)
    >>> y
    tensor([-1.0000,  0.0000,  0.5000,  1.5000], grad_fn=<...>)
    >>> y.sum().backward()
    >>> x.grad
    tensor([1., 1., 1., 0.])
    """
    if rounding == "nearest" and estimator == "ste":
        # The call of every training step: each argument less saves the dispatcher 0.2 us.
        return _ops.fake_quant(
            x, scale, zero_point, quant_min=quant_min, quant_max=quant_max, axis=axis, group=group
        )
    return _ops.fake_quant(
        x,
        scale,
        zero_point,
        quant_min=quant_min,
        quant_max=quant_max,
        axis=axis,
        group=group,
        rounding=rounding,
        estimator=estimator,
        delta=delta,
        rng=rng,
    )


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


def fake_quant_lsq(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    group: int | None = None,
    grad_scale: float | None = None,
) -> Tensor:
    """`fake_quant` with gradients for the scale and a float32 zero point as well (LSQ, LSQ+).

    ``d scale = grad_scale * sum(dy * (level - x / scale))`` where x was in range and
    ``grad_scale * sum(dy * level)`` where it was clamped, with level the integer minus the zero
    point; ``d zero_point = -grad_scale * scale * sum(dy)`` where it was clamped.

    Without ``grad_scale`` it is LSQ's ``1 / sqrt(N * quant_max)``, N the elements that share a
    scale in one sample: dimension 0 is taken for the batch, unless it is ``axis``, x is flat, or
    there are groups. Give ``grad_scale`` for a weight quantized as a whole. Scales are held at or
    above 2**-40, where only a gradient that raises them passes.

    >>> x = torch.tensor([0.2, 0.7, 4.0])
    >>> scale = torch.tensor(0.5, requires_grad=True)
    >>> y = fake_quant_lsq(x, scale, quant_min=-4, quant_max=3, grad_scale=1.0)
    >>> y.sum().backward()
    >>> scale.grad  # (0 - 0.4) + (1 - 1.4) + 3
    tensor(2.2000)
    """
    return _ops.fake_quant_lsq(
        x,
        scale,
        zero_point,
        quant_min=quant_min,
        quant_max=quant_max,
        axis=axis,
        group=group,
        grad_scale=grad_scale,
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


def binarize(
    x: Tensor,
    scale: Tensor | None = None,
    *,
    levels: str = "sign",
    axis: int | None = None,
    group: int | None = None,
    estimator: str = "ste",
) -> Tensor:
    """Two levels times a scale.

    ``y = scale * (x < 0 ? -1 : 1)`` for levels="sign"; {0, 1} for "zero_one" (1 where x > 0);
    {-1, 0} for "minus_one_zero" (-1 where x < 0).

    Without ``scale`` it is the mean of |x| over the elements that share it, a constant to the
    gradient; a given scale gets ``sum(dy * level)``. The gradient to x passes where
    ``|x| <= scale`` (estimator="ste") or everywhere ("identity").

    >>> binarize(torch.tensor([-1.0, 0.0, 2.0]))
    tensor([-1.,  1.,  1.])
    """
    return _ops.binarize(x, scale, levels=levels, axis=axis, group=group, estimator=estimator)


def ternarize(
    x: Tensor,
    scale: Tensor | None = None,
    threshold: Tensor | None = None,
    *,
    axis: int | None = None,
    group: int | None = None,
    estimator: str = "ste",
) -> Tensor:
    """Three levels times a scale: ``y = scale * (x > threshold ? 1 : x < -threshold ? -1 : 0)``.

    Without ``scale`` they are those of ternary weight networks: threshold 0.7 times the mean of
    |x|, scale the mean of |x| above the threshold. With a scale and no threshold it is half the
    scale. Gradients as in `binarize`, with the clip at 1.5 scales.

    >>> ternarize(torch.tensor([-1.0, 0.1, 2.0]))
    tensor([-1.5000,  0.0000,  1.5000])
    """
    return _ops.ternarize(x, scale, threshold, axis=axis, group=group, estimator=estimator)


def mean_magnitude(
    x: Tensor,
    threshold: Tensor | None = None,
    *,
    axis: int | None = None,
    group: int | None = None,
) -> Tensor:
    """The mean of |x| over the elements that share a scale, of those above ``threshold`` if given.

    The sum has one order whatever the device and the number of threads. No gradient.

    >>> mean_magnitude(torch.tensor([[-1.0, 3.0], [0.0, 4.0]]), axis=0)
    tensor([2., 2.])
    """
    return _ops.mean_magnitude(x, threshold, axis=axis, group=group)


def fake_float(
    x: Tensor,
    scale: Tensor | None = None,
    *,
    exponent_bits: int,
    mantissa_bits: int,
    axis: int | None = None,
    group: int | None = None,
    rounding: str = "nearest",
    rng: Tensor | None = None,
) -> Tensor:
    """Rounds x / scale to a small floating point format, and back.

    Formats are those of the OCP and IEEE standards: (4, 3) is fp8 e4m3 with maximum 448, (5, 2)
    fp8 e5m2, (2, 1) fp4, (5, 10) fp16, (8, 7) bf16. Larger values saturate, infinities too; NaN
    stays NaN. rounding="toward_zero" truncates. The gradient passes where nothing saturated.

    >>> fake_float(torch.tensor([0.3, 17.0, 500.0]), exponent_bits=4, mantissa_bits=3).tolist()
    [0.3125, 16.0, 448.0]
    """
    return _ops.fake_float(
        x,
        scale,
        exponent_bits=exponent_bits,
        mantissa_bits=mantissa_bits,
        axis=axis,
        group=group,
        rounding=rounding,
        rng=rng,
    )


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    group: int | None = None,
) -> Tensor:
    """The integers of `fake_quant`: ``clamp(round(x / scale) + zero_point, quant_min, quant_max)``.

    The result has the smallest of int8, uint8, int16 and int32 that holds the grid. NaN is an error
    on the CPU and becomes the zero point on CUDA.

    >>> quantize(torch.tensor([-0.3, 0.26]), torch.tensor(0.1), quant_min=-8, quant_max=7)
    tensor([-3,  3], dtype=torch.int8)
    """
    return _ops.quantize(
        x, scale, zero_point, quant_min=quant_min, quant_max=quant_max, axis=axis, group=group
    )


def dequantize(
    q: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int | None = None,
    group: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The values that integers stand for: ``(q - zero_point) * scale``.

    >>> dequantize(torch.tensor([-3, 3], dtype=torch.int8), torch.tensor(0.5))
    tensor([-1.5000,  1.5000])
    """
    return _ops.dequantize(q, scale, zero_point, axis=axis, group=group, dtype=dtype)


def qparams(
    min: Tensor,
    max: Tensor,
    *,
    quant_min: int,
    quant_max: int,
    symmetric: bool = True,
    power_of_two: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scale and zero point for the range [min, max].

    symmetric: ``scale = max(|min|, |max|) / quant_max``, zero point 0. Otherwise the range is
    widened to hold 0, ``scale = (max - min) / (quant_max - quant_min)`` and
    ``zero_point = clamp(quant_min - round(min / scale), quant_min, quant_max)``, so that 0 is
    exact. power_of_two rounds the scale up. Scales are at least 2**-40.

    >>> qparams(torch.tensor(-1.0), torch.tensor(3.0), quant_min=0, quant_max=4, symmetric=False)
    (tensor(1.), tensor(1, dtype=torch.int32))
    """
    scale, zero_point = _ops.qparams(
        min,
        max,
        quant_min=quant_min,
        quant_max=quant_max,
        symmetric=symmetric,
        power_of_two=power_of_two,
    )
    return scale, zero_point


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

    ``activation`` is none, relu or relu6; ``x`` has shape ``[N, C, ...]``. ``control`` is an int32
    tensor of quant_min, quant_max, observe, quantize and freeze, read where ``x`` is. With
    ``training`` and without freeze, mean and var are those of ``x`` and move ``running_mean``,
    ``running_var`` (unbiased) and ``num_batches_tracked``; else they are the running ones. With
    observe, ``pending`` (float32 of the least and the most, (inf, -inf) at first, or None) takes in
    the activation's range; without quantize the activation passes as it is. Gradients go to ``x``,
    ``weight`` and ``bias``, 0 from where a value was clamped.

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


def minmax(x: Tensor, *, axis: int | None = None) -> tuple[Tensor, Tensor]:
    """The smallest and largest value, of the tensor or of each index of ``axis``, as float32.

    NaN where there is one; (inf, -inf) where there is nothing. No gradient.

    >>> minmax(torch.tensor([[1.0, 2.0], [-3.0, 4.0]]), axis=0)
    (tensor([ 1., -3.]), tensor([2., 4.]))
    """
    low, high = _ops.minmax(x, axis=axis)
    return low, high


def minmax_histogram(
    x: Tensor, low: Tensor, high: Tensor, *, bins: int = 2048, axis: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`minmax` and, in the same read, how many values fall into each of ``bins`` equal bins.

    The bins divide [low, high] (of the tensor, or of each index of ``axis``); values beyond count
    in the outermost bin, NaN in none. Counts are int64. No gradient.

    >>> x = torch.tensor([0.1, 0.2, 0.9, 5.0])
    >>> minmax_histogram(x, torch.tensor(0.0), torch.tensor(1.0), bins=2)
    (tensor(0.1000), tensor(5.), tensor([2, 2]))
    """
    least, most, counts = _ops.minmax_histogram(x, low, high, bins=bins, axis=axis)
    return least, most, counts


def pack_bits(codes: Tensor, *, bits: int) -> Tensor:
    """Packs int8 (signed) or uint8 codes of 1, 2 or 4 bits into bytes, along the last dimension.

    Code j stands at bit ``(j % (8 // bits)) * bits`` of its byte; rows begin at a byte. A code that
    does not fit is an error on the CPU and loses its high bits on CUDA.

    >>> pack_bits(torch.tensor([1, 2, 3], dtype=torch.uint8), bits=4)
    tensor([33,  3], dtype=torch.uint8)
    """
    return _ops.pack_bits(codes, bits=bits)


def unpack_bits(packed: Tensor, shape: Sequence[int], *, bits: int, signed: bool = False) -> Tensor:
    """The codes that `pack_bits` packed, of the given shape, as int8 if signed, else uint8.

    >>> unpack_bits(torch.tensor([33, 3], dtype=torch.uint8), [3], bits=4)
    tensor([1, 2, 3], dtype=torch.uint8)
    """
    return _ops.unpack_bits(packed, shape, bits=bits, signed=signed)


def observe_histogram_(
    counts: Tensor, limit: Tensor, skipped: Tensor, x: Tensor, *, axis: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts a batch into histograms that are kept over batches, and returns them.

    ``counts``, int64 of shape [n, bins], counts the values of x (n = 1) or of each index of
    ``axis`` in equal bins over [-limit, limit]; ``limit`` is float32 [n], 0 at the start. A batch
    with larger magnitudes first doubles the limit until it holds them, which makes one bin of 2, 4,
    8 ... old ones, exactly: batches in any order, or split in any way, give the same counts. bins
    is a power of two, half of them on either side of 0; 0 counts with the first positive bin.
    Values that are not finite are not counted, and add 1 to ``skipped``, int64 [n], for each batch
    that holds any. Nothing is looked at on the host. No gradient.

    >>> counts, limit = torch.zeros(1, 64, dtype=torch.int64), torch.zeros(1)
    >>> skipped = torch.zeros(1, dtype=torch.int64)
    >>> for batch in (torch.tensor([0.1, 0.9]), torch.tensor([-2.5, torch.nan])):
    ...     _ = observe_histogram_(counts, limit, skipped, batch)
    >>> limit, counts.nonzero()[:, 1].tolist(), skipped
    (tensor([4.]), [12, 32, 39], tensor([1]))
    """
    _ops.observe_histogram_(counts, limit, skipped, x, axis=axis)
    return counts, limit, skipped


def histogram_range(
    counts: Tensor,
    limit: Tensor,
    *,
    method: str,
    percentile: float = 99.99,
    quant_min: int,
    quant_max: int,
    symmetric: bool,
) -> tuple[Tensor, Tensor]:
    """The range to quantize with, from each histogram of `observe_histogram_`.

    method="percentile": the smallest range of whole bins that keeps ``percentile`` % of the values,
    cutting the same number at either end, or at one where the other side of 0 has no values.
    Otherwise the ranges tried are the outermost bins that are not empty, and those shrunk to k / n
    on both sides, k = 1 ... n; n is the bins of the wider side, 1024 at most. "mse" takes the one
    with the least ``sum(count * (centre - fake_quant(centre))**2)`` on the grid that `qparams`
    gives it. "entropy" is TensorRT's calibration: the least Kullback-Leibler divergence of the
    histogram, with what lies outside added to the end bins, from the same bins merged into as many
    levels as the grid has and spread out again.

    Symmetric ranges are as wide on both sides, the others hold 0. Where a histogram is empty they
    are (inf, -inf). No gradient.

    >>> counts, limit = torch.zeros(1, 64, dtype=torch.int64), torch.tensor([32.0])
    >>> counts[0, 30:36], counts[0, 63] = 1000, 1
    >>> grid = {"quant_min": 0, "quant_max": 15, "symmetric": False}
    >>> histogram_range(counts, limit, method="percentile", percentile=99.9, **grid)
    (tensor([-2.]), tensor([4.]))
    >>> histogram_range(counts, limit, method="percentile", percentile=100.0, **grid)
    (tensor([-2.]), tensor([32.]))
    """
    low, high = _ops.histogram_range(
        counts,
        limit,
        method=method,
        percentile=percentile,
        quant_min=quant_min,
        quant_max=quant_max,
        symmetric=symmetric,
    )
    return low, high


def mse_range(
    x: Tensor,
    *,
    quant_min: int,
    quant_max: int,
    symmetric: bool = True,
    axis: int | None = None,
    steps: int = 100,
) -> tuple[Tensor, Tensor]:
    """The part of x's own range that x is best quantized with.

    Of the ranges ``k / steps * (min, max)``, k = 1 ... steps, of the tensor or of each index of
    ``axis``, the one with the least ``sum((x - fake_quant(x))**2)`` on the grid that `qparams`
    gives it. (inf, -inf) where x is empty; the whole range where it is not finite. No gradient.

    >>> x = torch.tensor([-1.0, -0.5, 0.5, 1.0, 1.0, 2.0])
    >>> mse_range(x, quant_min=-2, quant_max=1, steps=8)
    (tensor(-0.6250), tensor(1.2500))
    """
    low, high = _ops.mse_range(
        x, quant_min=quant_min, quant_max=quant_max, symmetric=symmetric, axis=axis, steps=steps
    )
    return low, high
