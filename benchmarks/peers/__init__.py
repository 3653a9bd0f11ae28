"""Compare bitpare with other tools, behind one interface.

An adapter is a module with

    PACKAGES                      the packages whose versions are stored with the results
    prepare(model, batches, bits) returns a copy of a float model for quantization-aware training,
                                  with the ranges of the batches; train(), eval() and calls as usual
    quantizers(model)             returns the number of quantizers
    schedule(model, optimizer, steps)
                                  freezes ranges and BatchNorm late in training, as the tool does
    convert(model, x)             returns a function that computes in integers, if the tool has one

Each tool is set up as in its own guide. If a tool cannot do something, it raises an exception,
which becomes a row of the results.
"""

import importlib
import importlib.metadata
from typing import Any

ADAPTERS = {
    "bitpare": "peers.bitpare_",
    "torch.ao FX": "peers.torch_fx",
    "torchao PT2E": "peers.pt2e",
    "NNCF": "peers.nncf_",
    "Brevitas": "peers.brevitas_",
}
PACKAGES = (
    "torch", "torchvision", "torchao", "nncf", "brevitas", "torch-pruning",
    "onnxruntime", "onnx", "liger-kernel",
)  # fmt: skip


def adapter(tool: str) -> Any:
    return importlib.import_module(ADAPTERS[tool])


def versions() -> dict[str, str]:
    """Return the versions of the installed packages."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def reason(error: BaseException) -> str:
    """Return the reason of a failure, in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {' '.join(lines[0].split())}"[:200]
