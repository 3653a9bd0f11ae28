"""Round values to a grid, and return the rounded values."""

from typing import Literal

import torch
from torch import Tensor

_ops = torch.ops.bitpare


Rounding = Literal["nearest", "half_up", "floor", "ceil", "toward_zero", "stochastic"]


def fake_quant(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    group: int | None = None,
    rounding: Rounding = "nearest",
    estimator: Literal["ste", "identity", "ewgs", "tanh"] = "ste",
    delta: float = 0.0,
    rng: Tensor | None = None,
) -> Tensor:
    """Quantize to an integer grid and dequantize, with a gradient that passes the rounding.

    ``y = (clamp(round(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale``

    NaN stays NaN; infinities are clamped. ``scale`` and ``zero_point`` get no gradient; see
    `fake_quant_lsq`.

    Args:
        x: the values.
        scale: float32, one per tensor, index of ``axis`` or group.
        zero_point: int32, in the shape of ``scale``; None is 0. A learned float32 zero point is
            rounded to the nearest integer of the grid.
        quant_min: the smallest integer of the grid.
        quant_max: the largest integer of the grid.
        axis: the dimension with one scale per index.
        group: the number of neighbours of the last dimension that share a scale.
        rounding: "nearest" (ties to even), "half_up", "floor", "ceil", "toward_zero" or
            "stochastic".
        estimator: the gradient to ``x``. "ste" passes it on where the value was not clamped,
            "identity" everywhere. "ewgs" multiplies it by ``1 + delta * sign(dy) * (x / scale -
            level)``, and "tanh" by the slope of a tanh of sharpness ``delta`` in each step; both
            give 0 where the value was clamped.
        delta: the parameter of "ewgs" and "tanh".
        rng: an int64 tensor of a seed and a step, for "stochastic". The same ``rng`` gives the same
            bits on every device.

    >>> x = torch.tensor([-1.0, 0.24, 0.26, 9.0], requires_grad=True)
    >>> y = fake_quant(x, torch.tensor(0.5), quant_min=-4, quant_max=3)
    >>> y
    tensor([-1.0000,  0.0000,  0.5000,  1.5000], grad_fn=<...>)
    >>> y.sum().backward()
    >>> x.grad
    tensor([1., 1., 1., 0.])
    """
    if rounding == "nearest" and estimator == "ste":
        # Every training step makes this call, and each argument less saves the dispatcher 0.2 us.
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
    """Compute `fake_quant` with gradients for the scale and a float32 zero point too (LSQ, LSQ+).

    ``d scale = grad_scale * sum(dy * (level - x / scale))`` where x is in range, and
    ``grad_scale * sum(dy * level)`` where it is clamped. The level is the integer minus the
    zero point. ``d zero_point = -grad_scale * scale * sum(dy)`` where x is clamped. Scales are
    kept at 2**-40 or more; below, only a gradient that raises them passes.

    Args:
        x: the values.
        scale: float32, one per tensor, index of ``axis`` or group.
        zero_point: float32, in the shape of ``scale``; None is 0.
        quant_min: the smallest integer of the grid.
        quant_max: the largest integer of the grid.
        axis: the dimension with one scale per index.
        group: the number of neighbours of the last dimension that share a scale.
        grad_scale: the factor of the gradients. By default it is LSQ's ``1 / sqrt(N * quant_max)``,
            where N elements of one sample share a scale. Dimension 0 is taken as the batch, unless
            it is ``axis``, x is flat, or there are groups. Give it for a weight with a single
            scale.

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


def fake_float(
    x: Tensor,
    scale: Tensor | None = None,
    *,
    exponent_bits: int,
    mantissa_bits: int,
    axis: int | None = None,
    group: int | None = None,
    rounding: Rounding = "nearest",
    rng: Tensor | None = None,
) -> Tensor:
    """Round x / scale to a small floating-point format, and multiply by the scale.

    The formats are those of the OCP and IEEE standards: (4, 3) is fp8 e4m3 with maximum 448,
    (5, 2) fp8 e5m2, (2, 1) fp4, (5, 10) fp16, (8, 7) bf16. Larger values and infinities
    saturate; NaN stays NaN. The gradient passes where nothing saturates.

    Args:
        x: the values.
        scale: float32, one per tensor, index of ``axis`` or group; None is 1.
        exponent_bits: the number of exponent bits.
        mantissa_bits: the number of mantissa bits.
        axis: the dimension with one scale per index.
        group: the number of neighbours of the last dimension that share a scale.
        rounding: as in `fake_quant`.
        rng: an int64 tensor of a seed and a step, for "stochastic".

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


def binarize(
    x: Tensor,
    scale: Tensor | None = None,
    *,
    levels: Literal["sign", "zero_one", "minus_one_zero"] = "sign",
    axis: int | None = None,
    group: int | None = None,
    estimator: Literal["ste", "identity"] = "ste",
) -> Tensor:
    """Replace each value by one of two levels times a scale.

    ``y = scale * (x < 0 ? -1 : 1)`` for levels="sign".

    Args:
        x: the values.
        scale: float32, which gets the gradient ``sum(dy * level)``. By default it is the mean of
            |x| over the elements that share it, without a gradient.
        levels: "sign" as above; "zero_one" gives 1 where x > 0, else 0; "minus_one_zero" gives -1
            where x < 0, else 0.
        axis: the dimension with one scale per index.
        group: the number of neighbours of the last dimension that share a scale.
        estimator: "ste" passes the gradient to x where ``|x| <= scale``, "identity" everywhere.

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
    estimator: Literal["ste", "identity"] = "ste",
) -> Tensor:
    """Replace each value by one of three levels times a scale.

    ``y = scale * (x > threshold ? 1 : x < -threshold ? -1 : 0)``

    Args:
        x: the values.
        scale: float32. By default it is the mean of |x| above the threshold, as in ternary weight
            networks.
        threshold: by default 0.7 times the mean of |x|, or half the scale if ``scale`` is given.
        axis: the dimension with one scale per index.
        group: the number of neighbours of the last dimension that share a scale.
        estimator: as in `binarize`, but "ste" passes the gradient where ``|x| <= 1.5 * scale``.

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
    """Return the mean of |x| over the elements that share a scale.

    The order of the sum does not depend on the device or the threads. There is no gradient.

    Args:
        x: the values.
        threshold: count only values with |x| above it.
        axis: the dimension with one scale per index.
        group: the number of neighbours of the last dimension that share a scale.

    >>> mean_magnitude(torch.tensor([[-1.0, 3.0], [0.0, 4.0]]), axis=0)
    tensor([2., 2.])
    """
    return _ops.mean_magnitude(x, threshold, axis=axis, group=group)
