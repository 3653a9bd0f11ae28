"""Integers for storage, and back."""

from collections.abc import Sequence

import torch
from torch import Tensor

_ops = torch.ops.bitpare


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
