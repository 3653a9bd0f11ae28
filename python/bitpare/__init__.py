"""Quantization-aware training for PyTorch, with C++ and CUDA ops.

>>> import torch, bitpare as bp
>>> bp.functional.fake_quant(torch.tensor([0.26]), torch.tensor(0.1), quant_min=-8, quant_max=7)
tensor([0.3000])
"""

from bitpare import _load

_load.load()

from bitpare import deploy, distill, extend, functional, prune, report  # noqa: E402
from bitpare._build_info import version as __version__  # noqa: E402
from bitpare.deploy.convert import convert  # noqa: E402
from bitpare.deploy.prepared import load, save  # noqa: E402
from bitpare.deploy.verify import verify  # noqa: E402
from bitpare.errors import Differs, Uncalibrated, Unsupported  # noqa: E402
from bitpare.quant.calibrate import calibrate  # noqa: E402
from bitpare.quant.oscillation import Oscillations  # noqa: E402
from bitpare.quant.prepare import prepare  # noqa: E402
from bitpare.quant.qat_schedule import QatSchedule  # noqa: E402
from bitpare.quant.reestimate import reestimate_bn  # noqa: E402
from bitpare.quant.training import ema, param_groups  # noqa: E402
from bitpare.spec.budget import Budget  # noqa: E402
from bitpare.spec.qconfig import QConfig  # noqa: E402
from bitpare.spec.qspec import FLOAT, QSpec  # noqa: E402

__all__ = [
    "FLOAT",
    "Budget",
    "Differs",
    "Oscillations",
    "QConfig",
    "QSpec",
    "QatSchedule",
    "Uncalibrated",
    "Unsupported",
    "__version__",
    "calibrate",
    "convert",
    "deploy",
    "distill",
    "ema",
    "extend",
    "functional",
    "load",
    "param_groups",
    "prepare",
    "prune",
    "reestimate_bn",
    "report",
    "save",
    "verify",
]
