"""torchao's quantization of exported graphs (PT2E), with the quantizer of Inductor's x86 backend.

It finds layers by the metadata of a strict export; after another export it silently quantizes
nothing. It does not offer 4-bit weights. Converted models are compiled.
"""

import copy
import warnings
from typing import Any

import torch
import torch._inductor.config
import torchao.quantization.pt2e as pt2e
from torch import Tensor, nn
from torchao.quantization.pt2e import quantize_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

from peers.late import after

warnings.filterwarnings("ignore", category=FutureWarning)


def prepare(model: nn.Module, batches: list[Tensor], bits: int = 8) -> nn.Module:
    if bits != 8:
        raise NotImplementedError("X86InductorQuantizer has only 8 bits")
    batch = ({0: torch.export.Dim("batch", min=2)},)
    example = batches[0] if len(batches[0]) > 1 else batches[0].repeat(2, 1, 1, 1)
    copied = copy.deepcopy(model).train()
    graph = torch.export.export(copied, (example,), dynamic_shapes=batch, strict=True).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    qat = quantize_pt2e.prepare_qat_pt2e(graph, quantizer)
    pt2e.allow_exported_model_train_eval(qat)
    qat.eval()
    with torch.no_grad():
        for x in batches:
            qat(x if len(x) > 1 else x.repeat(2, 1, 1, 1))
    return qat


def quantizers(model: nn.Module) -> int:
    return sum(isinstance(m, pt2e.FakeQuantizeBase) for m in model.modules())


def schedule(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Freeze only the ranges, because the mode of BatchNorm is part of the graph."""
    after(optimizer, int(0.9 * steps), lambda: model.apply(pt2e.disable_observer))


def converted(model: nn.Module) -> nn.Module:
    """Return the graph with quantized weights, not compiled."""
    model.eval()  # rewrites the graph in place
    made = quantize_pt2e.convert_pt2e(copy.deepcopy(model))
    pt2e.allow_exported_model_train_eval(made)
    return made


def convert(model: nn.Module, x: Tensor) -> Any:
    """Return the model compiled with frozen weights for the shape of x. Call it without
    gradients."""
    compiled = torch.compile(converted(model))
    with torch._inductor.config.patch(freezing=True), torch.no_grad():
        compiled(x)
    return compiled
