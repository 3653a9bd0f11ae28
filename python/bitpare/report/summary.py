"""Compare models: bytes, weights, multiplications and time."""

import dataclasses
import functools
import io
import json
import pathlib
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bitpare.deploy.files import save, whole_program
from bitpare.deploy.integer import IntegerModel
from bitpare.deploy.onnx import export_onnx
from bitpare.errors import Unsupported
from bitpare.graph import call_with, positions_of
from bitpare.models import unwrapped
from bitpare.nn.hub import hub_of
from bitpare.text import table


@dataclasses.dataclass(frozen=True)
class SummaryRow:
    """The numbers of one model. parameters: in its state. weights, nonzeros: the weights of
    convolutions and linear layers, and those that are not 0. macs: of one call with the example
    inputs. bytes: the size of the file. compressed: its size with zlib. p50, p95: the time of a
    call, in seconds."""

    name: str
    kind: str
    parameters: int
    weights: int
    nonzeros: int
    macs: int
    bytes: int
    compressed: int
    p50: float
    p95: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """The result of `summary`, with one row per model. It prints as a table."""

    rows: list[SummaryRow]

    def __str__(self) -> str:
        first = self.rows[0]
        head = [
            "model",
            "file",
            "zipped",
            "of first",
            "weights",
            "not 0",
            "MACs",
            "p50 ms",
            "p95 ms",
        ]
        lines = [
            [
                r.name,
                _short(r.bytes),
                _short(r.compressed),
                f"{r.bytes / max(first.bytes, 1):.3f}",
                _short(r.weights),
                f"{r.nonzeros / max(r.weights, 1):.1%}",
                _short(r.macs),
                f"{r.p50 * 1e3:.2f}",
                f"{r.p95 * 1e3:.2f}",
            ]
            for r in self.rows
        ]
        return "\n".join(table(head, lines))

    def to_json(self) -> str:
        return json.dumps([dataclasses.asdict(r) for r in self.rows], indent=1)


def _short(number: float) -> str:
    for unit in ("", "k", "M", "G"):
        if abs(number) < 1000 or unit == "G":
            return f"{number:.0f}{unit}" if unit == "" else f"{number:.2f}{unit}"
        number /= 1000
    raise AssertionError


def summary(
    *models: nn.Module,
    example_inputs: tuple[Any, ...] | Tensor | None = None,
    names: list[str] | None = None,
    rounds: int = 20,
) -> Summary:
    """Compare models by bytes, non-zero weights, MACs and latency.

    If the last model is an integer model and ONNX Runtime is installed, it is timed there too.
    Models are timed in turns, in eval mode.

    Args:
        models: the models.
        example_inputs: the arguments of a call. By default they are zeros, in the shapes of the
            example inputs of a prepared model among ``models``.
        names: a name for each model.
        rounds: the number of timing rounds, with three calls each.
    """
    if not models:
        raise TypeError("summary: give at least one model")
    if names is not None and len(names) != len(models):
        raise ValueError(f"summary: names must have {len(models)} entries, got {len(names)}")
    call = _example(models, example_inputs)
    rows: list[dict[str, Any]] = []
    runs: list[Callable[[], Any]] = []
    for i, model in enumerate(models):
        model = unwrapped(model)
        name = names[i] if names is not None else _kind(model)
        rows.append({"name": name, "kind": _kind(model), **_counts(model, call)})
        runs.append(functools.partial(model, *call.args, **call.kwargs))
    runtime = _onnx_runtime(unwrapped(models[-1]), call)
    if runtime is not None:
        run, size, compressed = runtime
        rows.append({**rows[-1], "name": "onnxruntime", "kind": "onnxruntime"})
        rows[-1] |= {"bytes": size, "compressed": compressed}
        runs.append(run)
    modes = [(m, m.training) for m in models]
    try:
        for m in models:
            m.eval()
        with torch.no_grad():
            times = _times(runs, rounds)
    finally:
        for m, training in modes:
            m.train(training)
    made = [SummaryRow(**row, p50=p[0], p95=p[1]) for row, p in zip(rows, times, strict=True)]
    return Summary(made)


def _example(models: tuple[nn.Module, ...], example_inputs: Any) -> Any:
    if example_inputs is not None:
        return call_with("summary", example_inputs, None)
    for model in models:
        hub = hub_of(model)
        if hub is not None:
            return hub.example_call(model)
    raise ValueError("summary: example_inputs= is needed, because no model is prepared")


def _kind(model: nn.Module) -> str:
    if isinstance(model, IntegerModel):
        return "integer"
    return "float" if hub_of(model) is None else "prepared"


def _counts(model: nn.Module, call: Any) -> dict[str, int]:
    state = [t for t in model.state_dict().values() if isinstance(t, Tensor)]
    weights, macs = _weights(model, call)
    size, compressed = _bytes(model)
    return {
        "parameters": sum(t.numel() for t in state),
        "weights": sum(w.numel() for w in weights),
        "nonzeros": sum(int((w != 0).sum()) for w in weights),
        "macs": macs,
        "bytes": size,
        "compressed": compressed,
    }


def _weights(model: nn.Module, call: Any) -> tuple[list[Tensor], int]:
    """Return the weights of convolutions and linear layers, each once, and the MACs of one call."""
    batch = next((v.shape[0] for v in _pytree.tree_leaves(call.args) if isinstance(v, Tensor)), 1)
    positions = positions_of(model, call)
    found: dict[int, Tensor] = {id(m.weight): m.weight for m in positions}  # type: ignore[misc]
    macs = sum(m.weight.numel() * n for m, n in positions.items())  # type: ignore[operator]
    if isinstance(model, IntegerModel):
        for program in model.programs:
            for node, weight in program.weighted():
                found[id(weight)] = weight
                macs += weight.numel() * node["positions"] * batch
    return list(found.values()), macs


def row_of_file(
    name: str, kind: str, parameters: int, weights: list[Tensor], macs: int, written: bytes
) -> SummaryRow:
    """Return the row of a model that is not called."""
    return SummaryRow(
        name=name,
        kind=kind,
        parameters=parameters,
        weights=sum(w.numel() for w in weights),
        nonzeros=sum(int((w != 0).sum()) for w in weights),
        macs=macs,
        bytes=len(written),
        compressed=len(zlib.compress(written)),
        p50=0.0,
        p95=0.0,
    )


def _bytes(model: nn.Module) -> tuple[int, int]:
    """Return the size of the model's file, and its compressed size. The file is that of
    `deploy.save` if possible, else that of the state."""
    try:
        whole_program(model, "summary")
    except (TypeError, Unsupported):
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        written = file.getvalue()
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model"
            save(model, path)
            written = path.read_bytes()
    return len(written), len(zlib.compress(written))


def _onnx_runtime(model: nn.Module, call: Any) -> tuple[Callable[[], Any], int, int] | None:
    try:
        import onnx  # noqa: F401
        import onnxruntime

        whole_program(model, "summary")
    except (ImportError, TypeError, Unsupported):
        return None
    inputs = [v for v in _pytree.tree_leaves(call.args) if isinstance(v, Tensor)]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.onnx"
        try:
            export_onnx(model, path, example_inputs=tuple(inputs))
        except Unsupported:
            return None
        written = path.read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    session = onnxruntime.InferenceSession(written, options, providers=["CPUExecutionProvider"])
    given = {f"input{i}": v.cpu().numpy() for i, v in enumerate(inputs)}
    return lambda: session.run(None, given), len(written), len(zlib.compress(written))


def _times(runs: list[Callable[[], Any]], rounds: int) -> list[tuple[float, float]]:
    """Return the median and the 95th percentile of each run, timed in turns. Each turn begins with
    a pause, because other runtimes keep spinning for a while after a call."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for held, run in zip(seconds, runs, strict=True):
            time.sleep(0.02)
            run()
            for _ in range(3):
                _wait()
                start = time.perf_counter()
                run()
                _wait()
                held.append(time.perf_counter() - start)
    return [(statistics.median(s), sorted(s)[int(0.95 * (len(s) - 1))]) for s in seconds]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
