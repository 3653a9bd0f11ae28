"""Reference formulas in float64 or integers, written as simply as possible.

`test_reference.py` compares them with values worked out by hand and with torch's own ops."""

import math

import torch
from torch import Tensor


def per_element(values: Tensor | None, x: Tensor, axis: int | None, group: int | None) -> Tensor:
    """Expand the values to one for each element of x, in float64; None becomes 0."""
    if values is None:
        return torch.zeros_like(x, dtype=torch.float64)
    v = values.double()
    if group is not None:
        return v.repeat_interleave(group, dim=-1).expand(x.shape)
    if axis is not None:
        shape = [1] * x.dim()
        shape[axis] = -1
        return v.reshape(shape).expand(x.shape)
    return v.reshape([1] * x.dim()).expand(x.shape)


def reduce_like(terms: Tensor, values: Tensor, axis: int | None, group: int | None) -> Tensor:
    """Sum terms over the elements that share a value."""
    if group is not None:
        return terms.unflatten(-1, (-1, group)).sum(-1)
    if axis is not None:
        return terms.transpose(0, axis).flatten(1).sum(1) if terms.dim() > 1 else terms
    return terms.sum().reshape(values.shape)


ROUND = {
    "nearest": torch.round,
    "half_up": lambda v: torch.floor(v + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
    "toward_zero": torch.trunc,
}


class Quantized:
    """The intermediate values of one call of fake_quant."""

    def __init__(self, x, scale, zero_point, low, high, axis, group, rounding="nearest"):
        self.scale = per_element(scale, x, axis, group)
        z = zero_point
        if z is not None and z.is_floating_point():
            z = z.round().clamp(low, high)
        self.zero_point = per_element(z, x, axis, group)
        self.position = x.double() / self.scale
        self.rounded = ROUND[rounding](self.position) + self.zero_point
        self.code = self.rounded.clamp(low, high)
        self.inside = (self.rounded >= low) & (self.rounded <= high)
        self.level = self.code - self.zero_point
        self.value = self.level * self.scale

    def near_tie(self, rounding="nearest"):
        """Return where float32 may round to another integer than float64 does."""
        at = 0.5 if rounding in ("nearest", "half_up") else 0.0
        distance = (self.position - at) - torch.round(self.position - at)
        return distance.abs() < 4e-7 * (1 + self.position.abs())


ACTIVATE = {
    "none": lambda v: v,
    "relu": lambda v: v.clamp(min=0),
    "relu6": lambda v: v.clamp(0, 6),
    "hardswish": lambda v: v * (v + 3).clamp(0, 6) / 6,
    "hardsigmoid": lambda v: (v + 3).clamp(0, 6) / 6,
}

ACTIVATION_SLOPE = {
    "none": torch.ones_like,
    "relu": lambda v: (v > 0).double(),
    "relu6": lambda v: ((v > 0) & (v < 6)).double(),
    "hardswish": lambda v: torch.where(v.abs() < 3, v / 3 + 0.5, (v > 0).double()),
    "hardsigmoid": lambda v: (v.abs() < 3) / 6.0,
}


def fake_quant_gradient(q: Quantized, dy: Tensor, estimator: str, delta: float) -> Tensor:
    dy = dy.double()
    if estimator == "identity":
        return dy
    if estimator == "ste":
        slope = torch.ones_like(dy)
    elif estimator == "ewgs":
        slope = 1 + delta * dy.sign() * (q.position - q.level)
    else:
        within = q.position - q.position.floor() - 0.5
        slope = (delta / 2) * (1 - torch.tanh(delta * within) ** 2) / math.tanh(delta / 2)
    return torch.where(q.inside, dy * slope, torch.zeros_like(dy))


def lsq_gradients(q: Quantized, dy, scale, zero_point, axis, group, grad_scale):
    """Return dx, d scale, d zero_point."""
    dy = dy.double()
    slope = torch.where(q.inside, q.level - q.position, q.level)
    ds = reduce_like(dy * slope, scale, axis, group) * grad_scale
    outside = torch.where(q.inside, 0.0, dy)
    dz = -reduce_like(outside, scale, axis, group) * scale.double() * grad_scale
    return torch.where(q.inside, dy, 0.0), ds, dz


class BnActFakeQuant:
    """The intermediate values of one call of bn_act_fake_quant."""

    def __init__(
        self, x, weight, bias, running_mean, running_var, count, scale, zero_point, control,
        pending, activation="none", training=True, momentum=0.1, eps=1e-5,
    ):  # fmt: skip
        low, high, self.observe, self.quantize, freeze = control.tolist()
        self.of_batch = training and not freeze
        self.axes = [d for d in range(x.dim()) if d != 1]
        self.shape = [-1 if d == 1 else 1 for d in range(x.dim())]
        self.n = x.numel() // max(x.shape[1], 1)
        mean, var = running_mean.double(), running_var.double()
        self.running_mean, self.running_var = mean, var
        if self.of_batch and self.n > 0:
            batch_var, batch_mean = torch.var_mean(x.double(), self.axes, correction=0)
            self.running_mean = (1 - momentum) * mean + momentum * batch_mean
            unbiased = batch_var * self.n / (self.n - 1)
            self.running_var = (1 - momentum) * var + momentum * unbiased
            mean, var = batch_mean, batch_var
        self.std = (var + eps).sqrt()
        self.weight = torch.ones_like(mean) if weight is None else weight.double()
        offset = torch.zeros_like(mean) if bias is None else bias.double()
        self.normal = (x.double() - self.spread(mean)) / self.spread(self.std)
        self.v = self.normal * self.spread(self.weight) + self.spread(offset)
        self.activated = ACTIVATE[activation](self.v)
        self.slope = ACTIVATION_SLOPE[activation](self.v)
        self.q = Quantized(self.activated, scale, zero_point, low, high, None, None)
        self.value = self.q.value if self.quantize else self.activated
        self.inside = (self.slope != 0) & (self.q.inside | (self.quantize == 0))

    def spread(self, of_channels):
        return of_channels.reshape(self.shape)

    def near_tie(self):
        """Return where rounding may differ. The input carries the rounding of a few more operations
        than x."""
        if not self.quantize:
            return torch.zeros_like(self.v, dtype=torch.bool)
        distance = (self.q.position - 0.5) - torch.round(self.q.position - 0.5)
        return distance.abs() < 4e-6 * (1 + self.q.position.abs())

    def gradients(self, dy):
        """Return dx, dweight, dbias."""
        dv = torch.where(self.inside, dy.double() * self.slope, 0.0)
        dbias, dweight = dv.sum(self.axes), (dv * self.normal).sum(self.axes)
        if self.of_batch:
            mean = dbias / max(self.n, 1), dweight / max(self.n, 1)
            dv = dv - self.spread(mean[0]) - self.normal * self.spread(mean[1])
        return dv * self.spread(self.weight / self.std), dweight, dbias


def levels(x: Tensor, kind: str, threshold: Tensor | None = None) -> Tensor:
    x = x.double()
    if kind == "sign":
        return torch.where(x < 0, -1.0, 1.0).double()
    if kind == "zero_one":
        return (x > 0).double()
    if kind == "minus_one_zero":
        return -(x < 0).double()
    return (x > threshold).double() - (x < -threshold).double()


def mean_magnitude(x, threshold, axis, group):
    kept = x.double().abs()
    count = torch.ones_like(kept)
    if threshold is not None:
        above = kept > per_element(threshold, x, axis, group)
        kept, count = kept * above, count * above
    shape = torch.empty(()) if axis is None and group is None else kept
    total, number = (reduce_like(t, shape, axis, group) for t in (kept, count))
    return torch.where(number > 0, total / number.clamp(min=1), 0.0)


def float_values(exponent_bits: int, mantissa_bits: int) -> list[float]:
    """Return every finite magnitude of a format in ascending order, from its bit patterns."""
    bias = 2 ** (exponent_bits - 1) - 1
    values = []
    for e in range(2**exponent_bits):
        for m in range(2**mantissa_bits):
            top = e == 2**exponent_bits - 1
            if top and exponent_bits >= 5:
                continue  # infinity and NaN
            if top and exponent_bits == 4 and mantissa_bits > 0 and m == 2**mantissa_bits - 1:
                continue  # the only NaN
            fraction = m / 2**mantissa_bits
            values.append(
                fraction * 2.0 ** (1 - bias) if e == 0 else (1 + fraction) * 2.0 ** (e - bias)
            )
    return values


def fake_float(
    x: Tensor, exponent_bits: int, mantissa_bits: int, rounding: str = "nearest"
) -> Tensor:
    """Return the nearest value of the format, in a tie the one whose mantissa is even; or the next
    one toward zero."""
    table = torch.tensor(float_values(exponent_bits, mantissa_bits), dtype=torch.float64)
    magnitude = x.double().abs().clamp(max=table[-1].item())
    above = torch.searchsorted(table, magnitude.contiguous()).clamp(max=len(table) - 1)
    below = (above - 1).clamp(min=0)
    up, down = table[above] - magnitude, magnitude - table[below]
    nearer = (up < down) | ((up == down) & (above % 2 == 0))
    take_above = nearer if rounding == "nearest" else up == 0
    return torch.where(take_above, table[above], table[below]).copysign(x.double())


def qparams(low: float, high: float, qmin: int, qmax: int, symmetric: bool) -> tuple[float, int]:
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        return max(-low, high, qmax * 2.0**-40) / qmax, 0
    scale = max((high - low) / (qmax - qmin), 2.0**-40)
    zero = torch.tensor(low).div(torch.tensor(scale)).round()  # in float32, which decides ties
    return scale, min(max(qmin - int(zero), qmin), qmax)


def merged_range(rule, momentum, merges, range_, seen):
    """Return (low, high) after one step; None stands for a range without data."""
    if merges == 0 or rule == "last":
        return seen
    if rule == "minmax":
        return min(range_[0], seen[0]), max(range_[1], seen[1])
    step = max(momentum, 1 / (merges + 1))
    return tuple(r + step * (s - r) for r, s in zip(range_, seen, strict=True))


def track_oscillations(weight, scale, state, low, high, momentum, threshold, first):
    """Run one look at a weight, in torch's own ops and in float32 as the op computes it; return the
    weight. state: code, turn, frequency and mean, each replaced."""
    rows = weight.float().reshape(scale.numel(), -1)
    now = torch.round(rows * (1 / scale)[:, None]).clamp(low, high).flatten()
    if first:
        state["code"], state["mean"] = now, now.clone()
        state["turn"], state["frequency"] = torch.zeros_like(now), torch.zeros_like(now)
        return weight
    frozen = state["turn"] == 2
    direction = torch.sign(now - state["code"])
    returned = (direction * state["turn"] < 0).float()
    frequency = momentum * returned + (1 - momentum) * state["frequency"]
    mean = momentum * now + (1 - momentum) * state["mean"]
    freezes = (frequency > threshold) & ~frozen
    held = torch.where(frozen, state["code"], torch.round(mean).clamp(low, high))
    stays = frozen | freezes
    state["turn"] = torch.where(direction == 0, state["turn"], direction)
    state["turn"] = torch.where(stays, 2.0, state["turn"])
    state["code"] = torch.where(stays, held, now)
    state["frequency"] = torch.where(frozen, state["frequency"], frequency)
    state["mean"] = torch.where(stays, held, mean)
    value = (held.reshape(rows.shape) * scale[:, None]).flatten()
    return torch.where(stays, value, weight.float().flatten()).reshape(weight.shape)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    per_byte, columns = 8 // bits, codes.shape[-1]
    rows = codes.reshape(-1, columns).to(torch.int64) % 2**bits
    packed = torch.zeros(rows.shape[0], -(-columns // per_byte), dtype=torch.int64)
    for j in range(columns):
        packed[:, j // per_byte] += rows[:, j] << (j % per_byte) * bits
    return packed.reshape(*codes.shape[:-1], -1).to(torch.uint8)


def histogram(x: Tensor, low: float, high: float, bins: int) -> Tensor:
    x = x.double().flatten()
    x = x[~x.isnan()]
    place = ((x - low) * bins / (high - low)).floor().clamp(0, bins - 1).to(torch.int64)
    return torch.bincount(place, minlength=bins)


def symmetric_histogram(x: Tensor, limit: float, bins: int) -> Tensor:
    """Return the counts over [-limit, limit]. Bins are closed on the side away from 0; 0 is
    positive."""
    x = x.double().flatten()
    x = x[x.isfinite()]
    place = (x.abs() * (bins // 2) / limit).ceil().clamp(min=1).to(torch.int64)
    return torch.bincount(
        torch.where(x < 0, bins // 2 - place, bins // 2 - 1 + place), minlength=bins
    )


def outermost(counts: Tensor, symmetric: bool) -> tuple[int, int]:
    """Return how many bins on each side of 0 contain all counts."""
    half, filled = len(counts) // 2, counts.nonzero().flatten().tolist()
    down, up = max(half - filled[0], 0), max(filled[-1] + 1 - half, 0)
    return (max(down, up),) * 2 if symmetric else (down, up)


def percentile_span(counts: Tensor, percentile: float, symmetric: bool) -> tuple[int, int]:
    """Return the smallest allowed span, by trying every span."""
    half, total = len(counts) // 2, int(counts.sum())
    left_out = 1 - percentile / 100
    cut = min(int(left_out * total), total - 1)
    kept = lambda d, u: int(counts[half - d : half + u].sum())  # noqa: E731
    if symmetric:
        return next((m, m) for m in range(half + 1) if total - kept(m, m) <= cut)
    down, up = outermost(counts, False)
    side = int(left_out / 2 * total)
    below, above = (side, side) if down and up else (cut, 0) if down else (0, cut)
    under = lambda d: int(counts[: half - d].sum())  # noqa: E731
    over = lambda u: int(counts[half + u :].sum())  # noqa: E731
    return (
        next(d for d in range(half + 1) if under(d) <= below),
        next(u for u in range(half + 1) if over(u) <= above),
    )


def candidate_spans(counts: Tensor, symmetric: bool) -> list[tuple[int, int]]:
    down, up = outermost(counts, symmetric)
    n = min(max(down, up), 1024)
    magnitudes = [-(-max(down, up) * k // n) for k in range(1, n + 1)]
    return [(min(down, m), min(up, m)) for m in magnitudes]


def squared_error(x: Tensor, low: float, high: float, qmin: int, qmax: int, symmetric: bool):
    """Return the squared error of each x, quantized with the range [low, high]."""
    scale, zero_point = qparams(low, high, qmin, qmax, symmetric)
    code = ((x.double() / scale).round() + zero_point).clamp(qmin, qmax)
    return (x.double() - (code - zero_point) * scale) ** 2


def histogram_error(counts: Tensor, limit: float, span, qmin: int, qmax: int, symmetric: bool):
    """Return the expected squared error, in units of limit**2."""
    bins = len(counts)
    width = limit / (bins // 2)
    centres = (torch.arange(bins) - bins // 2 + 0.5) * width
    error = squared_error(centres, -span[0] * width, span[1] * width, qmin, qmax, symmetric)
    return float((counts * error).sum() / counts.sum() / limit**2)


def histogram_divergence(counts: Tensor, span, qmin: int, qmax: int, symmetric: bool) -> float:
    """Return the Kullback-Leibler divergence of the entropy method, bin by bin."""
    half, levels = len(counts) // 2, qmax - qmin + 1
    down, up = (0 if symmetric and qmin >= 0 else span[0]), span[1]
    inside = counts[half - down : half + up].double()
    p = inside.clone()
    p[0] += counts[: half - down].sum()
    p[-1] += counts[half + up :].sum()
    levels = min(levels, len(p))
    level = torch.arange(len(p)) * levels // len(p)
    mass = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, inside)
    filled = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, (p > 0).double())
    q = torch.where(p > 0, (mass / filled.clamp(min=1))[level], 0.0)
    p, q = p / p.sum(), q / q.sum()
    return float(torch.where(p > 0, p * (p / q).log(), 0.0).sum())
