"""NNCF: nncf.quantize, then training of ranges and weights. It converts only to OpenVINO, so there
is no convert here.

Its kernels are compiled on first use into build/peers, which takes a minute.
"""

# ruff: noqa: E402  (nncf reads the environment as it is imported)
import os
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
os.environ["TORCH_EXTENSIONS_DIR"] = str(ROOT / "build" / "peers")
os.environ["NNCF_EXTENSION_LOAD_TIMEOUT"] = "0"  # no timeout
os.environ["NNCF_CI"] = "1"  # send no telemetry

import copy
import logging

import nncf
import torch
from nncf.quantization.advanced_parameters import QuantizationParameters
from nncf.torch.quantization.layers import BaseQuantizer
from torch import Tensor, nn

nncf.set_log_level(logging.ERROR)


def prepare(model: nn.Module, batches: list[Tensor], bits: int = 8) -> nn.Module:
    advanced = None
    if bits != 8:
        same = QuantizationParameters(num_bits=bits)
        advanced = nncf.AdvancedQuantizationParameters(
            activations_quantization_params=same, weights_quantization_params=same
        )
    return nncf.quantize(
        copy.deepcopy(model).eval(),
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU if bits == 8 else nncf.TargetDevice.ANY,
        subset_size=len(batches),
        advanced_parameters=advanced,
    )


def quantizers(model: nn.Module) -> int:
    return sum(isinstance(m, BaseQuantizer) for m in model.modules())


def masked(model: nn.Module, x: Tensor, sparsity: float) -> nn.Module:
    """Mask the smallest weights of the whole model in its forward pass."""
    mode = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL
    return nncf.prune(model, mode, ratio=sparsity, examples_inputs=x)


def schedule(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Do nothing, because ranges are learned."""
