"""The integers that a tensor is quantized to, and the number of its scales."""

import dataclasses

from bitpare.spec.qspec import QSpec

LEAST_SCALE = 2.0**-40  # keeps divisions by a scale finite


@dataclasses.dataclass(frozen=True)
class Grid:
    """The codes quant_min .. quant_max, with one scale for the tensor, each index of axis or each
    group."""

    quant_min: int
    quant_max: int
    symmetric: bool
    axis: int | None = None
    group: int | None = None

    @property
    def bits(self) -> int:
        return (self.quant_max - self.quant_min).bit_length()

    def with_limits(self, quant_min: int, quant_max: int) -> "Grid":
        return dataclasses.replace(self, quant_min=quant_min, quant_max=quant_max)

    def with_bits(self, bits: int) -> "Grid":
        """Return the same kind of grid with another number of bits."""
        if self.quant_min == 0:
            return self.with_limits(0, 2**bits - 1)
        narrow = self.quant_min == -self.quant_max
        high = 2 ** (bits - 1) - 1
        return self.with_limits(-high - (0 if narrow and high > 0 else 1), max(high, 0))


def _largest_float(exponent: int, mantissa: int) -> int:
    """Return the value at which fake_float saturates for a floating-point format."""
    known = {(4, 3): 448, (5, 2): 57344, (2, 1): 6, (3, 2): 28, (2, 3): 7}
    if (exponent, mantissa) in known:
        return known[exponent, mantissa]
    bias = 2 ** (exponent - 1) - 1
    top = 2.0 ** (2**exponent - 1 - bias) * (2 - 2.0**-mantissa)
    return int(min(top, 2**30)) or 1


def grid_of(
    spec: QSpec,
    role: str,
    *,
    target: str = "onnxruntime",
    nonnegative: bool = False,
    axis: int | None = None,
) -> Grid:
    """Return the grid of a spec. ``role`` is "weight" or "activation"; ``axis`` is the channel
    dimension."""
    granularity = spec.granularity or ("channel" if role == "weight" else "tensor")
    axis = axis if granularity == "channel" and spec.group is None else None
    if spec.is_float:
        assert spec.exponent is not None and spec.mantissa is not None
        top = _largest_float(spec.exponent, spec.mantissa)
        return Grid(-top, top, True, axis, spec.group)
    learned = spec.learn not in (None, "lsq+")
    symmetric, signed = spec.symmetric, spec.signed
    if symmetric is None:
        symmetric = role == "weight" or target == "tensorrt" or learned
    if signed is None:
        unsigned = role == "activation" and (
            not symmetric or (nonnegative and target != "tensorrt")
        )
        signed = not (unsigned or spec.learn == "pact")
    if not signed:
        return Grid(0, 2**spec.bits - 1, symmetric, axis, spec.group)
    high = 2 ** (spec.bits - 1) - 1
    narrow = spec.narrow if spec.narrow is not None else role == "weight" and spec.bits == 8
    return Grid(-high if narrow and high else -high - 1, max(high, 1), symmetric, axis, spec.group)
