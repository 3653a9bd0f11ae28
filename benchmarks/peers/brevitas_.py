"""Brevitas: layers are replaced in its graph, with scales per channel; BatchNorm is unchanged.

Scales of activations are learned, starting from calibration."""

import copy

import torch
from brevitas.graph import quantize as graph
from brevitas.graph.calibrate import calibration_mode
from brevitas.proxy.quant_proxy import QuantProxyProtocol
from brevitas.quant import Int8WeightPerChannelFloat
from torch import Tensor, nn


def with_bits(entry: tuple | None, bits: int) -> tuple | None:
    """Return a layer's settings with this number of bits for weights."""
    if entry is None or "weight_quant" not in entry[1]:
        return entry
    layer, settings = entry
    weight = {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": bits}
    return layer, {**settings, **weight}


def prepare(model: nn.Module, batches: list[Tensor], bits: int = 8) -> nn.Module:
    kept = graph.preprocess_for_quantize(
        copy.deepcopy(model).eval(), relu6_to_relu=False, merge_bn=False
    )
    layers = {kind: with_bits(entry, bits) for kind, entry in graph.COMPUTE_LAYER_MAP.items()}
    acts = {
        kind: entry and (entry[0], {**entry[1], "bit_width": bits})
        for kind, entry in graph.QUANT_ACT_MAP.items()
    }
    identities = {
        kind: (entry[0], {**entry[1], "bit_width": bits})
        for kind, entry in graph.QUANT_IDENTITY_MAP.items()
    }
    qat = graph.quantize(
        kept, quant_identity_map=identities, compute_layer_map=layers, quant_act_map=acts
    )
    with torch.no_grad(), calibration_mode(qat):
        for x in batches:
            qat(x)
    return qat


def quantizers(model: nn.Module) -> int:
    proxies = (m for m in model.modules() if isinstance(m, QuantProxyProtocol))
    return sum(bool(m.is_quant_enabled) for m in proxies)


def schedule(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Do nothing, because scales are learned."""
