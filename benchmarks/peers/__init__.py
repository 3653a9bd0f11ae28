"""Other tools that do what bitpare does, behind one interface, and what compares them.

An adapter is a module with

    PACKAGES                      whose versions are stored with the results
    prepare(model, batches, bits) a copy of a float model for quantization-aware training, with
                                  the ranges of the batches; train(), eval() and calls as usual
    quantizers(model)             how many there are
    schedule(model, optimizer, steps)
                                  what the tool does late in training: ranges, BatchNorm
    convert(model, x)             where the tool has one: a function that computes in integers

Each tool is set up as its own guide does. What a tool cannot do it says in an exception, which
becomes a row of the results.
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
    """Return the versions of what is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def reason(error: BaseException) -> str:
    """Why something could not be done, in a line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {' '.join(lines[0].split())}"[:200]
