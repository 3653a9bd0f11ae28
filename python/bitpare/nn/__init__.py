"""Quantized layers and quantizers: modules that hold state and call ``bitpare.functional``."""

from bitpare.nn.layers import QUANTIZED, QuantizedLayer
from bitpare.nn.quantizer import Quantizer
from bitpare.nn.ranges import RangeQuantizer

__all__ = ["QUANTIZED", "QuantizedLayer", "Quantizer", "RangeQuantizer"]
