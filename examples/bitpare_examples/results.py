"""Print the table at the end of a run, which compares the models."""

import pathlib
from collections.abc import Mapping
from typing import Any

import bitpare as bp
import torch
from torch import Tensor, nn

from bitpare_examples.command import table
from bitpare_examples.training import accuracy

ONNX_RUNTIME = "ONNX Runtime"


def ship(model: nn.Module, folder: pathlib.Path, x: Tensor) -> None:
    """Write an integer model to model.safetensors and, if the onnx package is installed, to
    model.onnx."""
    bp.deploy.save(model, folder / "model.safetensors")
    print(f"wrote {folder / 'model.safetensors'}")
    try:
        bp.deploy.export_onnx(model, folder / "model.onnx", example_inputs=(x[:1],))
    except ImportError:
        print("no model.onnx: it needs the onnx package (pip install onnx onnxruntime)")
    else:
        print(f"wrote {folder / 'model.onnx'}")


def verify(model: nn.Module, integer: nn.Module, x: Tensor) -> bp.deploy.Verification | None:
    """Compare an integer model with its fake-quantized one, and print the result. Return None if
    they differ by more than rounding."""
    try:
        report = bp.verify(model, integer, data=x.split(250))
    except bp.Differs as error:
        print(str(error).splitlines()[0])
        print("(a network that has hardly been trained gives all classes nearly the same score)")
        return None
    print(
        f"integer against fake-quantized: each operation within {report.lsb:.0f} unit(s), the same "
        f"class for {report.agreement:.1%} of {report.samples} images"
    )
    return report


def _onnx_accuracy(path: pathlib.Path, x: Tensor, y: Tensor) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores = session.run(None, {session.get_inputs()[0].name: x.cpu().numpy()})[0]
    return 100.0 * float((scores.argmax(1) == y.cpu().numpy()).mean())


def compared(
    models: Mapping[str, nn.Module], x: Tensor, y: Tensor, folder: pathlib.Path | None = None
) -> dict[str, dict[str, Any]]:
    """Return the accuracy, file size, weights, multiplications and median time per image of each
    model. If the last model is an integer model that was shipped to a folder, add ONNX Runtime."""
    summary = bp.report.summary(*models.values(), example_inputs=(x[:1],), names=[*models])
    found = {}
    for row in summary.rows:
        if row.name in models:
            name, percent = row.name, accuracy(models[row.name], x, y)
        else:
            assert folder is not None
            name, percent = ONNX_RUNTIME, _onnx_accuracy(folder / "model.onnx", x, y)
        found[name] = {
            "accuracy": percent,
            "bytes": row.bytes,
            "weights": row.weights,
            "nonzeros": row.nonzeros,
            "macs": row.macs,
            "latency": row.p50,
        }
    return found


def print_compared(found: Mapping[str, Mapping[str, Any]]) -> None:
    rows = []
    for name, r in found.items():
        share = f"{r['nonzeros']:,} ({r['nonzeros'] / max(r['weights'], 1):.0%})"
        latency = f"{r['latency'] * 1e6:,.0f} us"
        rows.append(
            [name, f"{r['accuracy']:.1f} %", f"{r['bytes']:,}", share, f"{r['macs']:,}", latency]
        )
    print()
    head = ["model", "accuracy", "file bytes", "weights not 0", "MACs", "latency p50"]
    print(table(head, rows))
    print(f"latency: of one image, {torch.get_num_threads()} thread(s)")
