"""Deploy a trained model: integer models, files and ONNX."""

from bitpare.deploy.checks import LayerRow
from bitpare.deploy.convert import convert
from bitpare.deploy.files import load, save
from bitpare.deploy.integer import IntegerModel, IntegerProgram
from bitpare.deploy.onnx import export_onnx
from bitpare.deploy.verify import Verification, verify

__all__ = [
    "IntegerModel",
    "IntegerProgram",
    "LayerRow",
    "Verification",
    "convert",
    "export_onnx",
    "load",
    "save",
    "verify",
]
