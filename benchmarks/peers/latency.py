"""Time the integer models of each tool, in turns in one process."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import integer
import timing
import torch
from torch import Tensor, nn

from peers import adapter, reason

MODEL = "mobilenet_v2"
BATCHES = (1, 16)
CONTIGUOUS = ("bitpare", "ONNX Runtime")  # tools that take contiguous images
# A tool with a larger relative error computes something else.
ERROR = 0.3


def layout(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def network() -> nn.Module:
    """Return a network with realistic running statistics. Without them, the inputs of late layers
    are almost 0."""
    model = integer.network(MODEL).train()
    with torch.no_grad():
        for _ in range(10):
            model(torch.randn(8, 3, 64, 64))
    return model.eval()


def session(path: pathlib.Path) -> Callable[[Tensor], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    made = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = made.get_inputs()[0].name
    return lambda x: made.run(None, {name: x.numpy()})


def exported(model: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    import bitpare as bp

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.onnx"
        bp.deploy.export_onnx(bp.convert(model), path, example_inputs=(x,))
        return session(path)


def own_quantization(model: nn.Module) -> Callable[[Tensor], Any]:
    run = integer.of_onnx_runtime(model, torch.get_num_threads())
    if run is None:
        raise ImportError("onnxruntime is not installed")
    return lambda x: run(x.numpy())


def candidates(model: nn.Module, x: Tensor) -> dict[str, Callable[[], Callable[[Tensor], Any]]]:
    """Return for each tool a function that builds its model. ``x`` has as many images as a call."""

    def by(tool: str) -> Callable[[Tensor], Any]:
        made = adapter(tool)
        qat = made.prepare(model, [x[:1]])
        return made.convert(qat, layout(x))

    def of_bitpare() -> Any:
        return exported(adapter("bitpare").prepare(model, [x[:1]]).eval(), x[:1])

    return {
        "bitpare": lambda: by("bitpare"),
        "ONNX Runtime, bitpare's export": of_bitpare,
        "ONNX Runtime, its own quantization": lambda: own_quantization(model),
        "torch.ao FX, x86": lambda: by("torch.ao FX"),
        "torchao PT2E, compiled": lambda: by("torchao PT2E"),
        "torch in float, folded, channels_last": lambda: integer.in_float(model),
    }


def error_of(found: Any, expected: Tensor) -> float:
    """Return the relative root mean square error."""
    result = torch.as_tensor(found[0] if isinstance(found, list) else found)
    return float((result - expected).norm() / expected.norm())


def measure(batch: int, rounds: int, slice_s: float) -> dict[str, Any]:
    x = torch.randn(batch, 3, integer.SIZE, integer.SIZE)
    model = network()
    with torch.no_grad():
        expected = model(x)
    functions, errors, failed = {}, {}, {}
    for name, make in candidates(model, x).items():
        try:
            f = make()
            given = x if name.startswith(CONTIGUOUS) else layout(x)
            with torch.no_grad():
                off = error_of(f(given), expected)
            if not off < ERROR:
                raise ArithmeticError(f"its result is {off:.0%} off the float model's")
            errors[name] = off
            functions[name] = lambda f=f, x=given: f(x)
        except Exception as error:  # a failure is a result too
            failed[name] = reason(error)
    before = {name: integer.settled(f) for name, f in functions.items()}
    with torch.no_grad():
        found = timing.against(functions, "bitpare", rounds, slice_s, before)
    return {**found, "error": errors, "failed": failed}
