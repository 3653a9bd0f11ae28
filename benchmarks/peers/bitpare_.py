"""bitpare. With 4 bits, all layers have 4 bits as in the other tools; QConfig.int4() keeps 8 at the
ends."""

import bitpare as bp
import torch
from bitpare.nn.quantizer import Quantizer
from torch import Tensor, nn

FOUR = bp.QSpec(bits=4, learn="lsq")
CONFIGS = {8: bp.QConfig.int8(), 4: bp.QConfig(weight=FOUR, activation=FOUR)}


def prepare(model: nn.Module, batches: list[Tensor], bits: int = 8) -> nn.Module:
    qat = bp.prepare(model.eval(), CONFIGS[bits], example_inputs=(batches[0],))
    bp.calibrate(qat, data=batches)
    return qat


def quantizers(model: nn.Module) -> int:
    return sum(isinstance(m, Quantizer) for m in model.modules())


def schedule(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    found = bp.QatSchedule(model, steps=steps, freeze_bn=0.8, freeze_ranges=0.9)
    found.attach(optimizer)


def convert(model: nn.Module, x: Tensor) -> nn.Module:
    return bp.convert(model.eval())
