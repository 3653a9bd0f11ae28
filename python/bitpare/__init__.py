"""Quantization-aware training for PyTorch, as C++ and CUDA ops.

>>> import torch, bitpare as bp
>>> bp.functional.fake_quant(torch.tensor([0.26]), torch.tensor(0.1), quant_min=-8, quant_max=7)
tensor([0.3000])
"""

from bitpare import _load

_load.load()

from bitpare import functional  # noqa: E402
from bitpare._build_info import version as __version__  # noqa: E402

__all__ = ["__version__", "functional"]
