"""Fuzz the ops with random calls by their schemas, and integer models with random changes of their
specs and tensors under valid checksums. Each kind runs in its own processes.

    fuzz.py [--seconds S] [--seed N] [--kinds ops,specs]     prints what was tried; 1 if one crashed
    fuzz.py --replay KIND SEED CASE                          one case again, in this process
    fuzz.py --corpus FOLDER                                  files for the fuzzer of the readers

A call must return a result or raise a documented error. A signal, a hang or another exception is a
failure. Cases are generated from a seed, so each can be replayed.
"""

import argparse
import contextlib
import copy
import functools
import itertools
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from ops import call, programs, sample, schemas
from torch import Tensor

EXPECTED = (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError, MemoryError)
CASES = 2000  # cases per process
HANGS = 120  # seconds without a new case
MEMORY = 12 << 30

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn,
]  # fmt: skip
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 128, 129]
WHOLES = [0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 127, 255, 256, 2**15, 2**31 - 1, 2**31, -(2**31), 2**62]
REALS = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1e-8,
    1e-45,
    1e38,
    1e300,
    float("inf"),
    -float("inf"),
    float("nan"),
]
TEXTS = [
    "", "nearest", "stochastic", "floor", "ste", "ewgs", "tanh", "none", "relu", "relu6",
    "hardswish", "hardsigmoid", "sign", "zero_one", "mse", "entropy", "percentile", "mean", "sum",
    "forward", "reverse", "js", "minmax", "ema", "last", "global", "local", "element", "2:4",
    "block2x1", "filter", "channel", "hard", "cosine", "normalized", "l1", "block99999999999x1",
    "größe", "1:0", "\0",
]  # fmt: skip


class Values:
    """Random values of the types in schemas."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw

    def shape(self) -> list[int]:
        rank = self.draw.choice([0, 1, 1, 2, 2, 3, 4, 4, 5])
        sizes = [self.draw.choice(SIZES) for _ in range(rank)]
        while sizes and torch.Size(sizes).numel() > 1 << 16:
            sizes[self.draw.randrange(rank)] = self.draw.choice([0, 1, 2])
        return sizes

    def tensor(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.draw.randrange(1 << 30))
        made = torch.randn(self.shape(), generator=generator)
        made = made * self.draw.choice([0.0, 1.0, 1e-30, 1e3, 1e30])
        if self.draw.random() < 0.2 and made.numel():
            made.view(-1)[self.draw.randrange(made.numel())] = self.draw.choice(REALS)
        dtype = self.draw.choice(DTYPES) if self.draw.random() < 0.5 else torch.float32
        return self.laid_out(made.to(dtype))

    def laid_out(self, x: Tensor) -> Tensor:
        """Return the same kind of tensor with other strides, on another device, or lazy."""
        how = self.draw.randrange(16)
        if how == 0 and x.dim():
            return x.transpose(0, -1)
        if how == 1 and x.numel():
            return x.flatten()[0].expand(x.shape)
        if how == 2 and x.dim():
            return torch.cat([x, x], -1)[..., ::2]
        if how == 3 and x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        if how == 4 and x.dim():
            return x.repeat_interleave(2, 0)[1::2]
        if how == 5 and x.is_floating_point():
            return torch._neg_view(x)
        if how == 6:
            return torch._efficientzerotensor(x.shape, dtype=x.dtype)
        if how == 7 and self.draw.random() < 0.3:
            return x.to("meta")
        if how == 8 and x.is_floating_point() and x.dim():
            return x.detach().requires_grad_()
        if how == 9 and x.dim() == 2 and self.draw.random() < 0.3 and x.dtype == torch.float32:
            return x.to_sparse()
        return x

    def changed(self, x: Tensor) -> Tensor:
        """Return a valid argument with one random change."""
        how = self.draw.randrange(8)
        if how == 0:
            return self.tensor()
        if how == 1:
            return x.to(self.draw.choice(DTYPES))
        if how == 2:
            return x.flatten()[: self.draw.randrange(x.numel() + 1)]
        if how == 3 and x.dim():
            return x.unsqueeze(self.draw.randrange(x.dim() + 1))
        if how == 4 and x.is_floating_point():
            return torch.full_like(x, self.draw.choice(REALS))
        if how == 5 and not x.is_floating_point() and x.dtype != torch.bool:
            return torch.full_like(x, 0) + torch.tensor(self.draw.choice(WHOLES)).to(x.dtype)
        if how == 6 and x.numel():
            return x.flatten()[:1].expand(x.shape)
        return self.laid_out(x)

    def of(self, kind: str) -> Any:
        if kind.startswith("Optional["):
            return None if self.draw.random() < 0.4 else self.of(kind[9:-1])
        if kind.startswith("List["):
            return [self.of(kind[5:-1]) for _ in range(self.draw.choice([0, 1, 1, 2, 2, 3]))]
        return {
            "Tensor": self.tensor,
            "int": lambda: self.draw.choice(WHOLES),
            "SymInt": lambda: self.draw.choice(WHOLES),
            "float": lambda: self.draw.choice(REALS),
            "number": lambda: self.draw.choice(REALS),
            "bool": lambda: self.draw.random() < 0.5,
            "str": lambda: self.draw.choice(TEXTS),
        }[kind]()


def shown(value: Any) -> str:
    if isinstance(value, Tensor):
        lazy = "".join(n for n in ("is_neg", "_is_zerotensor") if getattr(value, n)())
        where = value.device.type if value.layout == torch.strided else value.layout
        strides = value.stride() if value.layout == torch.strided else ""
        return f"{value.dtype}{list(value.shape)}{strides}{where}{lazy}"
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return repr(value)[:200]


# -- ops


def op_call(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """Return an op with arguments: valid ones with a few changes, or random ones."""
    values = Values(draw)
    op = draw.choice([n for n in schemas() if n not in ("_new_program", "_release_program")])
    kinds = {a.name: str(a.type) for a in schemas()[op].arguments}
    given = sample(op)
    if draw.random() < 0.15:
        for name, kind in kinds.items():
            if name not in ("memory_format", "program", "dtype"):
                given[name] = values.of(kind)
        return op, given
    for name in draw.sample(sorted(given), min(draw.choice([1, 1, 2, 3]), len(given))):
        value = given[name]
        if isinstance(value, Tensor):
            given[name] = values.changed(value)
        elif isinstance(value, list) and value and isinstance(value[0], Tensor):
            at = draw.randrange(len(value))
            value[at] = values.changed(value[at])
            if draw.random() < 0.2:
                given[name] = value[: draw.randrange(len(value) + 1)]
        elif name in kinds and name not in ("memory_format", "program", "dtype"):
            given[name] = values.of(kinds[name])
    if "memory_format" in given and draw.random() < 0.2:
        given["memory_format"] = draw.choice(
            [torch.channels_last, torch.channels_last_3d, torch.preserve_format]
        )
    return op, given


def run_op(draw: random.Random, describe: Any) -> None:
    op, given = op_call(draw)
    describe(f"{op}({', '.join(f'{k}={shown(v)}' for k, v in given.items())})")
    result = call(op, given)
    for leaf in result if isinstance(result, list | tuple) else [result]:
        if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.is_floating_point():
            leaf.sum().backward()


# -- specs


def walk(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from walk(inner, (*path, key))


def spec_value(draw: random.Random, before: Any) -> Any:
    if isinstance(before, int | float) and draw.random() < 0.6:
        near = [before + 1, before - 1, before * 2, -before, before * 256, before + 0.5]
        return draw.choice([*near, *WHOLES, *(r for r in REALS if abs(r) < 1e301)])
    return draw.choice([None, True, False, "", "x", [], {}, [0], *WHOLES, 0.1, 1e-320, 1e300])


def change(draw: random.Random, spec: Any, tensors: dict[str, Tensor]) -> None:
    """Make one random change. It may raise KeyError or the like after an earlier change."""
    what = draw.randrange(6)
    if what == 0 and tensors:
        name = draw.choice(sorted(tensors))
        tensors[name] = Values(draw).changed(tensors[name])
    elif what == 1 and len(spec["nodes"]) > 1:
        a, b = draw.sample(range(len(spec["nodes"])), 2)
        spec["nodes"][a], spec["nodes"][b] = spec["nodes"][b], spec["nodes"][a]
    elif what == 2:
        node = copy.deepcopy(draw.choice(spec["nodes"]))
        node["output"] = spec["values"]
        spec["values"] += 1
        spec["nodes"].insert(draw.randrange(len(spec["nodes"]) + 1), node)
        given = {"value": node["output"], "rows": draw.random() < 0.3}
        spec["outputs"].append({**given, "floats": draw.random() < 0.5, "scale": 0.1, "zero": 3})
    else:
        path = draw.choice(list(walk(spec))[1:])
        holder: Any = spec
        for key in path[:-1]:
            holder = holder[key]
        if draw.random() < 0.1 and isinstance(holder, dict):
            del holder[path[-1]]
        else:
            holder[path[-1]] = spec_value(draw, holder[path[-1]])


def changed_model(draw: random.Random) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return one of the models with a few changes to its spec or its tensors."""
    spec, tensors = copy.deepcopy(draw.choice(models()))
    for _ in range(draw.choice([1, 1, 2, 4])):
        with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError, IndexError):
            change(draw, spec, tensors)
    return spec, tensors


_models: list[tuple[dict[str, Any], dict[str, Tensor]]] = []


def models() -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Return specs with every operation, of networks that convert made."""
    if not _models:
        import bitpare as bp
        from test_integer import CONFIGS, prepared

        chosen = [
            ("lenet", "int8"), ("residual", "int8"), ("branches", "int8"), ("excite", "int8"),
            ("residual", "dynamic"), ("branches", "int4 weights"),
        ]  # fmt: skip
        known = [(n, c) for n, c in chosen if c in CONFIGS]
        for name, config in known:
            for program in bp.convert(prepared(name, CONFIGS[config])).programs:
                full = {"arguments": ["x"], "single": True, **program.spec}
                _models.append((full, dict(program.named_buffers())))
        linear = torch.nn.Linear(48, 24)
        for config in (bp.QConfig.weight_only(bits=4, group=16), bp.QConfig.weight_only(bits=1)):
            rows = torch.randn(3, 48)
            one = bp.convert(bp.prepare(linear.eval(), config, example_inputs=(rows,)))
            full = {"arguments": ["x"], "single": True, **one.programs[0].spec}
            _models.append((full, dict(one.programs[0].named_buffers())))
    return _models


def run_spec(draw: random.Random, describe: Any) -> None:
    import bitpare as bp

    spec, tensors = changed_model(draw)
    text = json.dumps(spec)
    described = ", ".join(f"{n}={shown(t)}" for n, t in tensors.items())
    describe(f"{text} with {described}")
    content = torch.ops.bitpare._encode_integer(text, list(tensors.values()), list(tensors))
    with tempfile.NamedTemporaryFile() as file:
        file.write(content.numpy().tobytes())
        file.flush()
        model = bp.deploy.load(file.name)
    inputs = []
    for entry in model.programs[0].spec["inputs"]:
        batch, size = draw.choice([0, 1, 2, 40]), draw.choice([0, 1, 3, 8, 17])
        rows = (batch, min(entry["channels"], 1 << 12))
        image = (batch, min(entry["channels"], 64), size, draw.choice([1, 5, 16]))
        inputs.append(torch.randn(rows if entry["rows"] else image))
    describe(f"{text} with {described}, called with {shown(inputs)}")
    model.programs[0](*inputs)


RUN = {"ops": run_op, "specs": run_spec}


# -- processes


def case(kind: str, seed: int, index: int, describe: Any) -> bool:
    """Run a case; return whether it was accepted."""
    draw = random.Random(f"{kind} {seed} {index}")
    torch.manual_seed(index)
    try:
        RUN[kind](draw, describe)
    except EXPECTED as error:
        if type(error) is RuntimeError and "INTERNAL ASSERT" in str(error):
            raise
        return False
    return True


def work(kind: str, seed: int, cases: int, note: str) -> None:
    """Run the cases of a seed. The file says which case runs, and its outcome."""
    if "asan" not in os.environ.get("LD_PRELOAD", ""):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(2)
    accepted = 0
    with open(note, "w", encoding="utf-8", errors="backslashreplace") as file:

        def say(index: int, accepted: int, text: str) -> None:
            file.seek(0)
            file.write(f"{index} {accepted} {text}\n")
            file.truncate()
            file.flush()

        for index in range(cases):
            describe = functools.partial(say, index, accepted)
            describe("")
            accepted += case(kind, seed, index, describe)
        say(cases, accepted, "done")


def write_corpus(folder: pathlib.Path) -> None:
    """Write what tests/fuzz/fuzz_reader.cpp begins with: files, and their parts."""
    spec, tensors = programs.parts()
    small = ({"arguments": ["x"], "single": True, **spec}, tensors)
    for index, (spec, tensors) in enumerate([small, *models()]):
        text = json.dumps(spec)
        content = torch.ops.bitpare._encode_integer(text, list(tensors.values()), list(tensors))
        file = content.numpy().tobytes()
        length = int.from_bytes(file[:8], "little")
        header = json.loads(file[8 : 8 + length])
        encodings = header.pop("__metadata__")["encodings"]
        entries = json.dumps(header)[1:-1]
        parts = [text.encode(), encodings.encode(), entries.encode(), file[8 + length :]]
        (folder / f"file{index}").write_bytes(b"f" + file)
        (folder / f"parts{index}").write_bytes(b"\xff".join(parts))


class Worker:
    def __init__(self, kind: str, seed: int, cases: int, folder: pathlib.Path) -> None:
        self.kind, self.seed = kind, seed
        self.note = folder / f"{kind}-{seed}"
        self.output = folder / f"{kind}-{seed}.log"
        command = [sys.executable, __file__, "--work", kind, str(seed), str(cases), str(self.note)]
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)
        self.seen, self.since = "", time.monotonic()

    def state(self) -> tuple[int, int, str]:
        text = self.note.read_text(encoding="utf-8") if self.note.exists() else ""
        index, accepted, what = (
            [*text.strip().split(" ", 2), "0", "0", ""][:3] if text else (0, 0, "")
        )
        return int(index), int(accepted), str(what)

    def failure(self) -> str | None:
        """Return what went wrong in a process that ended or hangs, or None."""
        code = self.process.poll()
        if code == 0:
            return None
        if code is None:
            self.process.kill()
            self.process.wait()
        index, _, what = self.state()
        tail = "\n".join(self.output.read_text(errors="replace").splitlines()[-12:])
        why = f"no answer in {HANGS} s" if code is None else f"status {code}"
        again = f"fuzz.py --replay {self.kind} {self.seed} {index}"
        return f"{self.kind}, {why}: {again}\n  {what[:3000]}\n{tail}"

    def hangs(self) -> bool:
        seen = str(self.state())
        if seen != self.seen:
            self.seen, self.since = seen, time.monotonic()
        return time.monotonic() - self.since > HANGS

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def fuzz(kinds: list[str], seconds: float, seed: int, cases: int, workers: int) -> int:
    """Run processes until the time is over, and return the number of failed ones."""
    end, tried, accepted = (
        time.monotonic() + seconds,
        dict.fromkeys(kinds, 0),
        dict.fromkeys(kinds, 0),
    )
    failures: list[str] = []
    turns = zip(itertools.cycle(kinds), itertools.count(seed), strict=False)
    with tempfile.TemporaryDirectory() as name:
        folder, running = pathlib.Path(name), list[Worker]()

        def count(worker: Worker) -> None:
            index, good, _ = worker.state()
            tried[worker.kind] += index
            accepted[worker.kind] += good

        while time.monotonic() < end and len(failures) < 20:
            while len(running) < workers:
                kind, number = next(turns)
                running.append(Worker(kind, number, cases, folder))
            time.sleep(0.2)
            for worker in list(running):
                if worker.process.poll() is None and not worker.hangs():
                    continue
                failure = worker.failure()
                count(worker)
                if failure is not None:
                    failures.append(failure)
                    print(failure, flush=True)
                running.remove(worker)
        for worker in running:
            worker.stop()
            count(worker)
    for kind in kinds:
        print(f"{kind}: {tried[kind]} cases, {accepted[kind]} accepted, the others refused")
    print(f"{len(failures)} failures, seeds from {seed}")
    return len(failures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="ops,specs")
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--replay", nargs=3, metavar=("KIND", "SEED", "CASE"))
    parser.add_argument("--corpus", metavar="FOLDER", type=pathlib.Path)
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        kind, seed, cases, note = given.work
        work(kind, int(seed), int(cases), note)
        return 0
    if given.corpus:
        write_corpus(given.corpus)
        return 0
    if given.replay:
        kind, seed, index = given.replay
        print("accepted" if case(kind, int(seed), int(index), print) else "refused")
        return 0
    failed = fuzz(given.kinds.split(","), given.seconds, given.seed, given.cases, given.workers)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
