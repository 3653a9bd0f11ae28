"""Time functions against each other: in turns, in one process, by medians."""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

# glibc returns large blocks to the system and requests them again on each call. The page faults
# would dominate the measurement. This applies to all functions alike.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
}


def keep_freed_memory() -> None:
    """Restart the program with an allocator that keeps freed memory."""
    if any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})


def options(
    about: str | None, results: pathlib.Path, rounds: int = 15, **more: dict[str, Any]
) -> argparse.Namespace:
    """Return the options of a benchmark, after restarting it with keep_freed_memory. more: its own
    arguments, as for add_argument."""
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    for name, settings in more.items():
        parser.add_argument(f"--{name}", **settings)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--save", action="store_true", help=f"write {results.name}")
    found = parser.parse_args()
    keep_freed_memory()
    return found


def save(results: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    results.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


@dataclasses.dataclass
class Times:
    """The seconds of one call."""

    median: float
    p20: float
    p80: float


def interleaved_rounds(
    functions: dict[str, Callable[[], object]],
    rounds: int = 21,
    slice_s: float = 2e-3,
    before: dict[str, Callable[[], object]] | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of a call of each function in each round. The functions take turns of
    about slice_s seconds. before: a function that begins a turn and is not timed."""
    repeats = {}
    prepare = before or {}
    for name, f in functions.items():
        prepare.get(name, f)()
        f(), f()
        start = time.perf_counter()
        f()
        repeats[name] = max(1, int(slice_s / max(time.perf_counter() - start, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, f in functions.items():
            prepare.get(name, f)()
            _synchronize()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                f()
            _synchronize()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return seconds


def summary(values: list[float]) -> Times:
    cuts = statistics.quantiles(values, n=5)
    return Times(statistics.median(values), cuts[0], cuts[3])


def ratio(values: list[float], base: list[float]) -> Times:
    """Return the ratio of two functions' seconds for each round, because a slow round slows
    both."""
    return summary([a / b for a, b in zip(values, base, strict=True)])


def against(
    functions: dict[str, Callable[[], object]],
    base: str,
    rounds: int = 21,
    slice_s: float = 2e-3,
    before: dict[str, Callable[[], object]] | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the seconds of each function and the ratio to one of them, for JSON."""
    found = interleaved_rounds(functions, rounds, slice_s, before)
    return {
        "seconds": {name: vars(summary(values)) for name, values in found.items()},
        "ratio": {name: vars(ratio(values, found[base])) for name, values in found.items()},
    }


def interleave(
    functions: dict[str, Callable[[], object]],
    rounds: int = 21,
    slice_s: float = 2e-3,
    before: dict[str, Callable[[], object]] | None = None,
) -> dict[str, Times]:
    """Return the times of each function; see interleaved_rounds."""
    found = interleaved_rounds(functions, rounds, slice_s, before)
    return {name: summary(values) for name, values in found.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(module: str, *arguments: str) -> float:
    """Return the MiB that a new process needs for calls of module.build(*arguments)(), beyond its
    memory before them."""
    code = (
        "import sys, resource, importlib; sys.path.insert(0, sys.argv[1])\n"
        "step = importlib.import_module(sys.argv[2]).build(*sys.argv[3:])\n"
        "import ctypes; ctypes.CDLL(None).malloc_trim(0)\n"
        "import gc; gc.collect()\n"
        "rss = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "before = rss()\n"
        "for _ in range(3): step()\n"
        "peak = [l for l in open('/proc/self/status') if l.startswith('VmHWM')][0]\n"
        "print((int(peak.split()[1]) * 1024 - before) / 2**20)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment["MALLOC_ARENA_MAX"] = "1"
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    command = [sys.executable, "-c", code, str(pathlib.Path(__file__).parent), module, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def machine() -> dict[str, str]:
    """Return a description of the machine that was measured."""
    cpu = platform.processor()
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                cpu = line.split(":")[1].strip()
                break
    from bitpare import _C

    return {
        "cpu": cpu,
        "threads": str(torch.get_num_threads()),
        "instruction set": _C.cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
