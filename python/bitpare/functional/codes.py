"""Convert values to integers for storage, and back."""

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
    """Return the integers of `fake_quant`: ``clamp(round(x / scale) + zero_point, quant_min,
    quant_max)``.

    The result has the smallest type of int8, uint8, int16 and int32 that holds the grid. NaN
    raises an error on the CPU and becomes the zero point on CUDA.

    Args:
        x: the values.
        scale: float32, one per tensor, index of ``axis`` or group.
        zero_point: int32, in the shape of ``scale``; None is 0.
        quant_min: the smallest integer of the grid.
        quant_max: the largest integer of the grid.
        axis: the dimension with one scale per index.
        group: the number of neighbours of the last dimension that share a scale.

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
    """Return the values of integers: ``(q - zero_point) * scale``.

    Args:
        q: the integers.
        scale: float32, one per tensor, index of ``axis`` or group.
        zero_point: int32, in the shape of ``scale``; None is 0.
        axis: the dimension with one scale per index.
        group: the number of neighbours of the last dimension that share a scale.
        dtype: the floating-point type of the result.

    >>> dequantize(torch.tensor([-3, 3], dtype=torch.int8), torch.tensor(0.5))
    tensor([-1.5000,  1.5000])
    """
    return _ops.dequantize(q, scale, zero_point, axis=axis, group=group, dtype=dtype)


def pack_bits(codes: Tensor, *, bits: int) -> Tensor:
    """Pack codes of 1, 2 or 4 bits into bytes, along the last dimension.

    Codes are int8 (signed) or uint8. Code j is stored at bit ``(j % (8 // bits)) * bits`` of
    its byte, and every row starts a new byte. A code that does not fit raises an error on the
    CPU and loses its high bits on CUDA.

    >>> pack_bits(torch.tensor([1, 2, 3], dtype=torch.uint8), bits=4)
    tensor([33,  3], dtype=torch.uint8)
    """
    return _ops.pack_bits(codes, bits=bits)


def unpack_bits(packed: Tensor, shape: Sequence[int], *, bits: int, signed: bool = False) -> Tensor:
    """Return the codes that `pack_bits` packed.

    Args:
        packed: the bytes.
        shape: the shape of the codes.
        bits: the number of bits of a code: 1, 2 or 4.
        signed: whether the codes are int8; otherwise they are uint8.

    >>> unpack_bits(torch.tensor([33, 3], dtype=torch.uint8), [3], bits=4)
    tensor([1, 2, 3], dtype=torch.uint8)
    """
    return _ops.unpack_bits(packed, shape, bits=bits, signed=signed)
