"""Count the values of a tensor before and after its quantizer, over batches."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from bitpare import functional as bpf
from bitpare.report.grids import Ruler, best_range, decibels, place, power, ruler_of

BINS = 2048
SAMPLE = 1 << 16  # values kept to try other ranges
BARS = 96


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts in bars of one width, from ``low`` on, in the ruler's steps or without a ruler in
    values. below, above: the numbers of values outside the bars."""

    counts: list[int]
    low: float
    width: float
    below: int = 0
    above: int = 0
    ruler: Ruler | None = None

    @property
    def high(self) -> float:
        return self.low + self.width * len(self.counts)


class Tally:
    """Counts values on the device until they are read."""

    def __init__(self, q: Any, device: torch.device) -> None:
        self.q = q
        self.ruler = ruler_of(q)
        self.known = bool(q.calibrated)
        self.count = 0
        self.sample: list[Tensor] = []
        self._sampled = 0
        self.sums = torch.zeros(7, dtype=torch.float64, device=device)
        self.least = torch.full((), torch.inf, device=device)
        self.most = -self.least
        levels = len(self.ruler.levels) if self.ruler is not None else 0
        self.used = torch.zeros(levels, dtype=torch.int64, device=device)
        self.histogram = (
            torch.zeros(1, BINS, dtype=torch.int64, device=device),
            torch.zeros(1, device=device),
            torch.zeros(1, dtype=torch.int64, device=device),
        )

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Count a batch, which must not be empty."""
        x = x.detach()
        x = x if x.dtype == torch.float32 else x.float()
        self.count += x.numel()
        least, most = bpf.minmax(x)
        self.least, self.most = torch.minimum(self.least, least), torch.maximum(self.most, most)
        zero = torch.zeros((), dtype=torch.float64, device=x.device)
        found = [x.sum(dtype=torch.float64), power(x), (x == 0).sum(), zero, zero, zero, zero]
        steps = x
        if self.known:
            placed = place(self.q, x)
            steps = placed.steps
            found[3] = (placed.got == 0).sum()
            found[4], found[5] = power(placed.wanted), power(placed.wanted - placed.got)
            found[6] = zero if placed.clipped is None else placed.clipped
            if placed.codes is not None and len(self.used):
                codes = placed.codes.flatten().clamp(0, len(self.used) - 1)
                self.used += torch.bincount(codes, minlength=len(self.used))
        self.sums += torch.stack([f.to(torch.float64) for f in found])
        bpf.observe_histogram_(*self.histogram, steps.contiguous())
        self._keep(x)

    def _keep(self, x: Tensor) -> None:
        """Keep some of the values. Keep a weight whole, because its channels have their own
        ranges."""
        if self.q.role == "weight":
            self.sample = [x]
        elif self._sampled < SAMPLE:
            every = max(x.numel() // (SAMPLE // 4), 1)
            self.sample.append(x.flatten()[::every].clone())
            self._sampled += self.sample[-1].numel()

    def numbers(self) -> dict[str, float | None]:
        """Return the numbers of a table row."""
        count = max(self.count, 1)
        total, squares, zeros, got_zeros, signal, noise, clipped = self.sums.tolist()
        mean = total / count
        variance = squares / count - mean * mean
        clips = self.ruler is not None and self.ruler.low is not None
        used = int((self.used > 0).sum()) / len(self.used) if len(self.used) else None
        found = {
            "min": float(self.least),
            "max": float(self.most),
            "mean": mean,
            "std": math.nan if math.isnan(variance) else math.sqrt(max(variance, 0.0)),
            "sparsity": zeros / count,
            "zeros": got_zeros / count if self.known else None,
            "clipped": clipped / count if self.known and clips else None,
            "sqnr": decibels(signal, noise) if self.known else None,
            "levels": used if self.known else None,
        }
        return {k: None if v is not None and math.isnan(v) else v for k, v in found.items()}

    def gain(self) -> tuple[float, float, float] | None:
        """Return how many dB the range with the smallest squared error is better than the current
        one, and that range, of the widest channel."""
        sample = self.sample[0] if self.q.role == "weight" else torch.cat(self.sample)
        if not self.known or (self.q.role != "weight" and self.q.grid.axis is not None):
            return None
        found = best_range(self.q, sample)
        if found is None:
            return None
        low, high, best = found
        placed = place(self.q, sample)
        now = decibels(power(placed.wanted), power(placed.wanted - placed.got))
        if not math.isfinite(best) or not math.isfinite(now):
            return None
        return max(best - now, 0.0), float(low.min()), float(high.max())

    def bars(self, most: int = BARS) -> Histogram:
        """Return the histogram to draw. It has about ``most`` bars, over the values and the grid,
        but not much wider than the grid."""
        counts, limit = self.histogram[0][0].cpu(), float(self.histogram[1][0])
        return bars_of(counts, limit, self.ruler, most)


def bars_of(counts: Tensor, limit: float, ruler: Ruler | None, most: int = BARS) -> Histogram:
    """Convert equal bins over [-limit, limit] to bars."""
    bins = counts.numel()
    width = 2 * limit / bins if limit > 0 else 1.0
    there = counts.nonzero()
    first = (int(there[0]) - bins // 2) * width if len(there) else 0.0
    last = (int(there[-1]) + 1 - bins // 2) * width if len(there) else 0.0
    first, last = _range_to_draw(first, last, ruler)
    while (last - first) / width > most:
        width *= 2
    begin, end = int(first // width), int(-(-last // width))
    end = max(end, begin + 1)
    inner = torch.zeros(end - begin, dtype=torch.int64)
    places = ((torch.arange(bins) - bins // 2) * (2 * limit / bins) + limit / bins) / width
    at = torch.floor(places).long() - begin
    inside = (at >= 0) & (at < len(inner))
    inner.index_add_(0, at[inside], counts[inside])
    below, above = int(counts[at < 0].sum()), int(counts[at >= len(inner)].sum())
    return Histogram(inner.tolist(), begin * width, width, below, above, ruler)


def _range_to_draw(first: float, last: float, ruler: Ruler | None) -> tuple[float, float]:
    """Return the range to draw: the values, and all of an integer grid."""
    if ruler is None:
        return first, last
    if ruler.low is None or ruler.high is None:
        ends = [*ruler.levels, 0.0]
        return max(min(first, min(ends)), min(ends) * 4), min(max(last, max(ends)), max(ends) * 4)
    span = ruler.high - ruler.low
    if (
        len(ruler.levels) < 2 or ruler.levels[1] - ruler.levels[0] != 1
    ):  # floating-point levels spread widely
        return max(first, ruler.low * 1.2), min(last, ruler.high * 1.2)
    first = min(max(first, ruler.low - 0.6 * span), ruler.low - 0.5)
    return first, max(min(last, ruler.high + 0.6 * span), ruler.high + 0.5)
