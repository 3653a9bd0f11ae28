"""Compare bitpare with other tools.

    python benchmarks/peers/run.py [--only steps latency ...] [--tools NNCF ...] [--save]

steps      a training step of int8 quantization-aware training, and the memory it needs, against
           the faster layout of the float model, in turns
accuracy   after the same epochs from the same float models: LeNet on real digits, MobileNetV2 x0.5
           on composed digits, and of the converted models
latency    of MobileNetV2 in integers at 224 px
pruning    channels removed (torch-pruning), masks during training (torch.nn.utils.prune, NNCF)
kernels    losses of distillation (Liger; on a GPU)

Each measurement runs in its own process. If a tool fails or is not installed, its row says why. The
environment needs tools/requirements-peers.txt; `make bench-peers` creates it. Times are only
meaningful on a quiet machine.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import timing

from peers import ADAPTERS, accuracy, kernels, latency, pruning, steps, versions

HERE = pathlib.Path(__file__).parent
PARTS = ("steps", "accuracy", "latency", "pruning", "kernels")
TIMEOUT_S = 1800
Job = tuple[str, dict[str, Any], dict[str, Any]]  # function, row keys, arguments


def jobs(part: str, options: argparse.Namespace, folder: str) -> Iterator[Job]:
    quick, tools = options.quick, options.tools
    rounds = {"rounds": options.rounds, "slice_s": 0.0 if quick else 0.2}
    if part == "steps":
        for work in steps.WORK[-1:] if quick else steps.WORK:
            for tool in tools:
                key = {"tool": tool, "work": work}
                yield "steps.measure", key, {**key, **rounds, "memory": not quick}
    elif part == "accuracy":
        for name, bits in list(accuracy.RECIPES)[:1] if quick else accuracy.RECIPES:
            for tool in ("float", *tools):
                key = {"tool": tool, "name": name, "bits": bits}
                yield "accuracy.measure", key, {**key, "quick": quick, "folder": folder}
    elif part == "latency":
        for batch in latency.BATCHES[:1] if quick else latency.BATCHES:
            key = {"model": latency.MODEL, "batch": batch}
            yield "latency.measure", key, {"batch": batch, **rounds}
    elif part == "pruning":
        for name in pruning.MODELS[-1:] if quick else pruning.MODELS:
            yield "pruning.channels", {"channels": name}, {"name": name, **rounds}
        work = steps.WORK[-1 if quick else 0]
        yield "pruning.masks", {"masks": work}, {"work": work, **rounds}
    else:
        for shape in ((8, 100),) if quick else kernels.SHAPES:
            yield "kernels.measure", {"shape": shape}, {"shape": shape, **rounds}


def apart(function: str, arguments: dict[str, Any], threads: int) -> dict[str, Any]:
    """Return the row that a new process measures, or the reason of a failure."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "row.json"
        spelled = json.dumps({**arguments, "threads": threads})
        command = [sys.executable, str(HERE / "one.py"), function, spelled, str(path)]
        environment = {**os.environ, **timing.KEEP_MEMORY, "OMP_NUM_THREADS": str(threads)}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            return {"reason": f"took more than {TIMEOUT_S} s"}
        if not path.exists():
            print(done.stderr[-3000:], file=sys.stderr)
            return {"reason": f"the process ended with status {done.returncode}"}
        found = json.loads(path.read_text())
        if "reason" in found:
            print(done.stderr[-3000:], file=sys.stderr)
        return found


def brief(row: dict[str, Any]) -> str:
    """Format a result as one line."""
    if "reason" in row:
        return row["reason"]
    if "after" in row:
        return f"float {row['float']}, after {row['after']}, converted {row['converted']}"
    if "left" in row:
        left = [f"{k} {s['macs']:.2f} MACs" for k, s in row["left"].items()]
        return ", ".join([*left, *(f"{k}: {why}" for k, why in row["failed"].items())])
    if "layout" in row:
        return f"{row['ratio']['median']:.2f} of float's time, {row['layout']}"
    ratios = [f"{k} {t['median']:.2f}" for k, t in row["ratio"].items()]
    return ", ".join([*ratios, *(f"{k}: {why}" for k, why in row["failed"].items())])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--tools", nargs="+", choices=ADAPTERS, default=list(ADAPTERS))
    parser.add_argument("--rounds", type=int, default=11, help="turns of each function")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="whether it works: little, few rounds")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/peers-*.json")
    parser.add_argument("--out", type=pathlib.Path, help="write them to this folder instead")
    options = parser.parse_args()
    if options.save and (options.quick or len(options.tools) < len(ADAPTERS)):
        parser.error("--save stores whole results: without --quick and --tools")
    if options.rounds < 5:
        parser.error("--rounds must be 5 or more")
    if options.quick:
        options.rounds = 5
    out = options.out or (HERE.parent / "results" if options.save else None)
    measured_on = {"machine": timing.machine(), "versions": versions()}
    measured_on["machine"]["threads"] = str(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        for part in options.only:
            rows = []
            for function, key, arguments in jobs(part, options, folder):
                start = time.perf_counter()
                row = {**key, **apart(function, arguments, options.threads)}
                rows.append(row)
                label = ", ".join(str(v) for v in key.values())
                print(f"{part}: {label}: {brief(row)} ({time.perf_counter() - start:.0f} s)",
                      flush=True)  # fmt: skip
            if out is not None:
                stored = {**measured_on, "rows": rows}
                out.mkdir(parents=True, exist_ok=True)
                device = "cpu" if stored["machine"]["gpu"] == "none" else "cuda"
                path = out / f"peers-{part}-{device}.json"
                path.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
