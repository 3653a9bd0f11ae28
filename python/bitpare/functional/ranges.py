"""Compute ranges and scales from data."""

from typing import Literal

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
    """Return the scale and zero point for the range [min, max].

    Args:
        min: float32, one value per scale.
        max: float32, one value per scale.
        quant_min: the smallest integer of the grid.
        quant_max: the largest integer of the grid.
        symmetric: if true, ``scale = max(|min|, |max|) / quant_max`` and the zero point is 0.
            Otherwise the range is widened to include 0, ``scale = (max - min) / (quant_max -
            quant_min)`` and ``zero_point = clamp(quant_min - round(min / scale), quant_min,
            quant_max)``, so that 0 is exact.
        power_of_two: whether to round the scale up to a power of two.

    Scales are at least 2**-40.

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
    """Return the smallest and largest value of the tensor, or of each index of ``axis``, as
    float32.

    The result is NaN if any value is NaN, and (inf, -inf) for an empty tensor. There is no
    gradient.

    >>> minmax(torch.tensor([[1.0, 2.0], [-3.0, 4.0]]), axis=0)
    (tensor([ 1., -3.]), tensor([2., 4.]))
    """
    low, high = _ops.minmax(x, axis=axis)
    return low, high


def minmax_histogram(
    x: Tensor, low: Tensor, high: Tensor, *, bins: int = 2048, axis: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `minmax` and a histogram, with a single read of the tensor.

    Values outside [low, high] count in the outermost bins; NaN counts in none. Counts are
    int64. There is no gradient.

    Args:
        x: the values.
        low: the lower end of the bins, for the tensor or for each index of ``axis``.
        high: the upper end of the bins.
        bins: the number of equal bins.
        axis: the dimension with one histogram per index.

    >>> x = torch.tensor([0.1, 0.2, 0.9, 5.0])
    >>> minmax_histogram(x, torch.tensor(0.0), torch.tensor(1.0), bins=2)
    (tensor(0.1000), tensor(5.), tensor([2, 2]))
    """
    least, most, counts = _ops.minmax_histogram(x, low, high, bins=bins, axis=axis)
    return least, most, counts


def observe_histogram_(
    counts: Tensor, limit: Tensor, skipped: Tensor, x: Tensor, *, axis: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Count a batch into histograms that are kept over batches, and return them.

    If a batch has larger magnitudes than ``limit``, the limit is doubled until it holds them.
    Then 2, 4, 8 ... old bins are merged exactly into one, so the counts do not depend on the
    order of the batches or on how they are split. Nothing is read on the host. There is no
    gradient.

    Args:
        counts: int64 [n, bins], the counts of equal bins over [-limit, limit]. n is 1, or the size
            of ``axis``. The number of bins is a power of two; 0 counts in the first positive bin.
        limit: float32 [n], 0 at the start.
        skipped: int64 [n], the number of batches with values that are not finite. Such values are
            not counted.
        x: the batch.
        axis: the dimension with one histogram per index.

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
    method: Literal["percentile", "mse", "entropy"],
    percentile: float = 99.99,
    quant_min: int,
    quant_max: int,
    symmetric: bool,
) -> tuple[Tensor, Tensor]:
    """Return the range to quantize with, from each histogram of `observe_histogram_`.

    Symmetric ranges are equally wide on both sides of 0; other ranges include 0. An empty
    histogram gives (inf, -inf). There is no gradient.

    Args:
        counts: the counts, int64 [n, bins].
        limit: the limits, float32 [n].
        method: "percentile" takes the smallest range of whole bins that keeps ``percentile`` % of
            the values. It cuts the same number at both ends, or at one end if the other side of 0
            has no values. "mse" and "entropy" try the range of all bins that are not empty, and its
            parts within k / n of the largest magnitude for k = 1 ... n, where n is the number of
            bins of the wider side, 1024 at most. "mse" minimizes ``sum(count * (centre -
            fake_quant(centre))**2)`` on the grid of `qparams`. "entropy" is TensorRT's calibration:
            it minimizes the Kullback-Leibler divergence between the histogram, with outer values
            added to its end bins, and the same bins merged into the levels of the grid and spread
            out again.
        percentile: the percentage of values to keep, in (50, 100].
        quant_min: the smallest integer of the grid.
        quant_max: the largest integer of the grid.
        symmetric: whether the grid is symmetric.

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
    """Return the part of x's range that gives the smallest quantization error.

    The ranges ``k / steps * (min, max)`` for k = 1 ... steps are tried. The best one has the
    smallest ``sum((x - fake_quant(x))**2)`` on the grid of `qparams`. The result is (inf, -inf)
    for an empty x, and the whole range if that is not finite. There is no gradient.

    Args:
        x: the values.
        quant_min: the smallest integer of the grid.
        quant_max: the largest integer of the grid.
        symmetric: whether the grid is symmetric.
        axis: the dimension with one range per index.
        steps: the number of ranges to try.

    >>> x = torch.tensor([-1.0, -0.5, 0.5, 1.0, 1.0, 2.0])
    >>> mse_range(x, quant_min=-2, quant_max=1, steps=8)
    (tensor(-0.6250), tensor(1.2500))
    """
    low, high = _ops.mse_range(
        x, quant_min=quant_min, quant_max=quant_max, symmetric=symmetric, axis=axis, steps=steps
    )
    return low, high
