"""torch.ao.quantization in FX graph mode, with its default settings of the x86 backend.

The default settings leave one bit of the activations unused (reduce_range), so that kernels do not
overflow on machines without VNNI. 4 bits use the same settings with smaller grids, for which there
are no kernels.
"""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao import quantization as q
from torch.ao.nn.intrinsic.qat import freeze_bn_stats
from torch.ao.quantization import quantize_fx

from peers.late import after

warnings.filterwarnings("ignore", category=DeprecationWarning)
warnings.filterwarnings("ignore", message=".*torch.ao.quantization is deprecated.*")


def mapping(bits: int) -> Any:
    if bits == 8:
        return q.get_default_qat_qconfig_mapping("x86")
    fake = q.FusedMovingAvgObsFakeQuantize
    activation = fake.with_args(
        observer=q.MovingAverageMinMaxObserver, quant_min=0, quant_max=2**bits - 1
    )
    weight = fake.with_args(
        observer=q.MovingAveragePerChannelMinMaxObserver, quant_min=-(2 ** (bits - 1)),
        quant_max=2 ** (bits - 1) - 1, dtype=torch.qint8, qscheme=torch.per_channel_symmetric,
    )  # fmt: skip
    return q.QConfigMapping().set_global(q.QConfig(activation=activation, weight=weight))


def prepare(model: nn.Module, batches: list[Tensor], bits: int = 8) -> nn.Module:
    torch.backends.quantized.engine = "x86"
    copied = copy.deepcopy(model).train()
    qat = quantize_fx.prepare_qat_fx(copied, mapping(bits), (batches[0],)).eval()
    with torch.no_grad():
        for x in batches:
            qat(x)
    return qat


def quantizers(model: nn.Module) -> int:
    return sum(isinstance(m, q.FakeQuantizeBase) for m in model.modules())


def schedule(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    after(optimizer, int(0.8 * steps), lambda: model.apply(freeze_bn_stats))
    after(optimizer, int(0.9 * steps), lambda: model.apply(q.disable_observer))


def convert(model: nn.Module, x: Tensor) -> nn.Module:
    return quantize_fx.convert_fx(copy.deepcopy(model).eval())
