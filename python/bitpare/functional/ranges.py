"""Ranges and scales from data."""

import torch
from torch import Tensor

_ops = torch.ops.bitpare


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
    Otherwise the ranges tried are the outermost bins that are not empty, and of these what lies
    within k / n of the largest magnitude, k = 1 ... n; n is the bins of the wider side, 1024 at
    most. "mse" takes the one with the least ``sum(count * (centre - fake_quant(centre))**2)`` on
    the grid that `qparams` gives it. "entropy" is TensorRT's calibration: the least
    Kullback-Leibler divergence of the histogram, with what lies outside added to the end bins, from
    the same bins merged into as many levels as the grid has and spread out again.

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
