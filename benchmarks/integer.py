"""Time integer inference against ONNX Runtime on the same network, and against torch in float.

python benchmarks/integer.py [--rounds 15] [--save]

ONNX Runtime is included if installed (pip install onnxruntime onnx). It quantizes the network
itself, per channel, with 8-bit activations. It spins for a while after each call, which slows the
next one, so each turn begins with a pause and with calls that are not timed.
"""

import pathlib
import tempfile
import time
from typing import Any

import timing

RESULTS = pathlib.Path(__file__).parent / "results" / "integer-cpu.json"
WORK = (("mobilenet_v2", 1), ("mobilenet_v2", 16), ("resnet50", 1), ("resnet50", 16))
SIZE = 224


def network(name: str) -> Any:
    import torch
    import torchvision

    torch.manual_seed(0)
    return getattr(torchvision.models, name)(weights=None).eval()


def in_integers(model: Any) -> Any:
    import bitpare as bp
    import torch

    x = torch.randn(2, 3, SIZE, SIZE)
    prepared = bp.prepare(model, bp.QConfig.int8(), example_inputs=(x,))
    bp.calibrate(prepared, data=[x])
    return bp.convert(prepared.eval())


def in_float(model: Any) -> Any:
    import torch
    from torch.fx.experimental.optimization import fuse

    return fuse(model).to(memory_format=torch.channels_last)


def of_onnx_runtime(model: Any, threads: int) -> Any:
    """Return ONNX Runtime's inference as a function of an array, or None if it is not installed."""
    try:
        import onnxruntime
        from onnxruntime import quantization as q
    except ImportError:
        return None
    import torch

    x = torch.randn(1, 3, SIZE, SIZE)
    with tempfile.TemporaryDirectory() as folder:
        whole, shaped, made = (f"{folder}/{n}.onnx" for n in ("float", "shaped", "int8"))
        torch.onnx.export(
            model, (x,), whole, dynamo=False, opset_version=17, input_names=["x"],
            dynamic_axes={"x": {0: "n"}},
        )  # fmt: skip

        class Reader(q.CalibrationDataReader):  # type: ignore[misc]
            batches = iter([{"x": x.numpy()}])

            def get_next(self) -> Any:
                return next(self.batches, None)

        q.quant_pre_process(whole, shaped, skip_symbolic_shape=True)
        q.quantize_static(
            shaped, made, Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
            activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
        )  # fmt: skip
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    return lambda array: session.run(None, {"x": array})


def settled(f: Any) -> Any:
    """Return a function that begins a turn. It waits, because threads of the last turn may still
    spin and new threads share a core until the system spreads them."""

    def begin() -> None:
        time.sleep(0.3)
        until = time.perf_counter() + 0.2
        while time.perf_counter() < until:
            f()

    return begin


def size_of(model: Any) -> int:
    import bitpare as bp

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.safetensors"
        bp.deploy.save(model, path)
        return path.stat().st_size


def main() -> None:
    options = timing.options(__doc__, RESULTS)
    import torch

    rows, held = [], {}
    for name, batch in WORK:
        if name not in held:
            model = network(name)
            held = {name: (in_integers(model), in_float(model), of_onnx_runtime(model, 2), model)}
        ours, floating, runtime, model = held[name]
        x = torch.randn(batch, 3, SIZE, SIZE)
        laid, array = x.contiguous(memory_format=torch.channels_last), x.numpy()
        functions = {
            "bitpare": lambda f=ours, x=x: f(x),
            "torch, float": lambda f=floating, x=laid: f(x),
        }
        if runtime is not None:
            functions["onnxruntime"] = lambda f=runtime, x=array: f(x)

        with torch.inference_mode():
            times = timing.interleave(
                functions,
                rounds=options.rounds,
                slice_s=0.05,
                before={k: settled(f) for k, f in functions.items()},
            )
        weights = 4 * sum(t.numel() for t in model.state_dict().values())
        row = {"model": name, "batch": batch, "bytes": size_of(ours) / weights}
        rows.append({**row, "seconds": {k: vars(t) for k, t in times.items()}})
        median = times["bitpare"].median
        print(f"{name}, {batch} images; file {row['bytes']:.3f} of float's")
        for kind, t in times.items():
            print(f"  {kind:14s} {t.median * 1e3:8.2f} ms, {t.median / median:5.2f}")
    if options.save:
        timing.save(RESULTS, rows)


if __name__ == "__main__":
    main()
