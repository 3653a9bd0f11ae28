"""Quantization-aware training for PyTorch, as C++ and CUDA ops.

>>> import torch, bitpare as bp
>>> bp.functional.fake_quant(torch.tensor([0.26]), torch.tensor(0.1), quant_min=-8, quant_max=7)
tensor([0.3000])
"""

from bitpare import _load

_load.load()

from bitpare import deploy, distill, functional, prune, report  # noqa: E402
from bitpare._build_info import version as __version__  # noqa: E402
from bitpare.deploy.convert import convert  # noqa: E402
from bitpare.deploy.verify import verify  # noqa: E402
from bitpare.errors import Differs, Uncalibrated, Unsupported  # noqa: E402
from bitpare.quant.calibrate import calibrate  # noqa: E402
from bitpare.quant.config import QConfig  # noqa: E402
from bitpare.quant.oscillation import Oscillations  # noqa: E402
from bitpare.quant.prepare import prepare  # noqa: E402
from bitpare.quant.reestimate import reestimate_bn  # noqa: E402
from bitpare.quant.schedule import QatSchedule  # noqa: E402
from bitpare.quant.spec import FLOAT, QSpec  # noqa: E402
from bitpare.quant.training import ema, param_groups  # noqa: E402

__all__ = [
    "FLOAT",
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
    "functional",
    "param_groups",
    "prepare",
    "prune",
    "reestimate_bn",
    "report",
    "verify",
]
