"""Layers of torch.nn with quantizers. Parameters, names and float results are the same."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitpare.nn.quantizer import Quantizer
from bitpare.nn.ranges import RangeQuantizer

use_weight = torch.ops.bitpare.use_weight.default


class QuantizedLayer:
    """The base class of quantized layers.

    ``enter``, ``quantized_weight`` and ``leave`` apply the quantizers of the input, weight and
    output if the layer has them. Call them in the forward of your own layer; see
    `bp.extend.quantized_layer`."""

    _bitpare_layer = True
    weight_axis = 0  # the dimension of the weight that is the output channels
    bp_weight: Quantizer | None
    bp_input: Quantizer | None
    bp_output: Quantizer | None
    weight: Tensor

    _modules: dict[str, Any]

    def quantized_weight(self) -> Tensor:
        """Return the quantized weight."""
        quantizer = self._modules["bp_weight"]
        if quantizer is None:
            return self.weight
        if quantizer.passing.weight is not None:  # the hub quantized all weights at once
            return use_weight(self.weight, *quantizer.passing.weight)
        return quantizer(self.weight)

    def enter(self, x: Tensor) -> Tensor:
        """Return the quantized input."""
        quantizer = self._modules["bp_input"]
        return x if quantizer is None else quantizer(x)

    def leave(self, y: Tensor) -> Tensor:
        """Return the quantized result."""
        quantizer = self._modules["bp_output"]
        return y if quantizer is None else quantizer(y)


class _Convolution(QuantizedLayer):
    def forward(self: Any, input: Tensor) -> Tensor:
        x = self.enter(input)
        return self.leave(self._conv_forward(x, self.quantized_weight(), self.bias))


class QConv1d(_Convolution, nn.Conv1d):
    pass


class QConv2d(_Convolution, nn.Conv2d):
    pass


class QConv3d(_Convolution, nn.Conv3d):
    pass


class _Transposed(QuantizedLayer):
    """A transposed convolution, whose weight is [in, out / groups, ...]."""

    weight_axis = 1

    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.padding_mode != "zeros":
            raise ValueError("Only `zeros` padding mode is supported for ConvTranspose")
        dims = self.weight.dim() - 2
        padding = self._output_padding(
            input,
            output_size,
            self.stride,
            self.padding,
            self.kernel_size,
            dims,
            self.dilation,
        )
        run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
        y = run(
            self.enter(input),
            self.quantized_weight(),
            self.bias,
            self.stride,
            self.padding,
            padding,
            self.groups,
            self.dilation,
        )
        return self.leave(y)


class QConvTranspose1d(_Transposed, nn.ConvTranspose1d):
    pass


class QConvTranspose2d(_Transposed, nn.ConvTranspose2d):
    pass


class QConvTranspose3d(_Transposed, nn.ConvTranspose3d):
    pass


class QLinear(QuantizedLayer, nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return self.leave(F.linear(self.enter(input), self.quantized_weight(), self.bias))


class QEmbedding(QuantizedLayer, nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        y = F.embedding(input, self.quantized_weight(), self.padding_idx)
        return self.leave(y)


class _BatchNorm:
    """A BatchNorm that may be fused with the quantizer after it.

    It stays a BatchNorm in training; convert folds its factor per channel into the integer
    requantization. If a quantizer follows, directly or after an activation of FUSED_WITH_NORM,
    one op computes all of them. bp_tail: that quantizer and the activation."""

    _bitpare_layer = True
    bp_output: Quantizer | None
    bp_tail: tuple[RangeQuantizer, str] | None
    bp_frozen: bool

    def forward(self: Any, input: Tensor) -> Tensor:
        if self.bp_tail is not None and self.bp_tail[0].fuses():
            return self.bp_tail[0].batch_norm(input, self, self.bp_tail[1])
        if self.bp_frozen and self.training:
            y = F.batch_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                False,
                0.0,
                self.eps,
            )
        else:
            y = super().forward(input)  # type: ignore[misc]
        return y if self.bp_output is None else self.bp_output(y)


class QBatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    pass


class QBatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    pass


class QBatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    pass


QUANTIZED: dict[type, type] = {
    nn.Conv1d: QConv1d,
    nn.Conv2d: QConv2d,
    nn.Conv3d: QConv3d,
    nn.ConvTranspose1d: QConvTranspose1d,
    nn.ConvTranspose2d: QConvTranspose2d,
    nn.ConvTranspose3d: QConvTranspose3d,
    nn.Linear: QLinear,
    nn.Embedding: QEmbedding,
    nn.BatchNorm1d: QBatchNorm1d,
    nn.BatchNorm2d: QBatchNorm2d,
    nn.BatchNorm3d: QBatchNorm3d,
}

FUSED_WITH_NORM = ("none", "relu", "relu6", "hardswish")
NORMS = (QBatchNorm1d, QBatchNorm2d, QBatchNorm3d)


def can_fuse(bn: nn.Module) -> bool:
    """Return whether the fused op supports this BatchNorm: it must keep running statistics with a
    fixed momentum."""
    norm: Any = bn
    return norm.momentum is not None and norm.track_running_stats and norm.running_mean is not None


def upgrade(module: nn.Module) -> bool:
    """Turn a layer of torch.nn into its quantized subclass, without quantizers yet. Return False if
    there is none."""
    quantized = QUANTIZED.get(type(module))
    if quantized is None:
        return False
    module.__class__ = quantized
    if issubclass(quantized, QuantizedLayer):
        for name in ("bp_weight", "bp_input", "bp_output"):
            module.register_module(name, None)
    else:
        module.register_module("bp_output", None)
        module.bp_tail = None  # type: ignore[assignment]
        module.bp_frozen = False  # type: ignore[assignment]
    return True
