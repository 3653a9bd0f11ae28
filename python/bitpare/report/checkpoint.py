"""Report on files: integer models, pickled models and state dicts."""

import argparse
import json
import math
import os
import pathlib
import pickle
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bitpare.deploy.files import load, whole_program
from bitpare.deploy.integer import IntegerModel, IntegerProgram
from bitpare.errors import Uncalibrated, Unsupported
from bitpare.files import write_whole
from bitpare.report.collect import drawn, page_of, page_of_tensors
from bitpare.report.contents import FLOAT_STATE, INTEGER, MODEL, STATE, Item, contents_of
from bitpare.report.graphs import of_program
from bitpare.report.grids import Ruler
from bitpare.report.layers import LayerRow
from bitpare.report.page import Page
from bitpare.report.state import rows_of_state
from bitpare.report.summary import Summary, row_of_file, summary
from bitpare.report.tally import BARS, Histogram
from bitpare.report.write import html_of

EXPECTED = (
    "expected an integer model that bp.deploy.save wrote, or a model, its state dict, or a "
    "checkpoint that holds one, that torch.save wrote"
)
_NO_DATA = {
    "data": "A file holds no data: bp.report.html(model, path, data=...) shows activations, "
    "clip rates, and the layer that loses accuracy.",
    "summary": "bp.report.html(model, path, float_model=..., integer=...) compares the forms of a "
    "model.",
    "graph": "A state dict does not say how the layers are connected; a saved model does.",
}
_NO_RECORD = {
    "history": "Scales, oscillation and sparsity over time are shown where the checkpoint holds "
    "the state of a bp.report.Recorder."
}


class BadFile(Exception):
    """A file that cannot be reported on; the message names it."""


def page_of_file(
    path: str | os.PathLike[str],
    *,
    trust: bool = False,
    shape: tuple[int, ...] | None = None,
    key: str | None = None,
    title: str | None = None,
) -> Page:
    """Return a page about a file. trust: whether it may be unpickled, which runs code in it. shape:
    the input shape to time an integer model with. key: the key of the model in a checkpoint."""
    file = pathlib.Path(path)
    try:
        written = file.read_bytes()
    except OSError as error:
        raise BadFile(f"{file}: {error.strerror}") from error
    if not _by_torch(written):
        try:
            model = load(file)
        except (RuntimeError, ValueError) as error:
            raise BadFile(
                f"{file}: {_reason(error).removeprefix(f'{file}: ')}; {EXPECTED}"
            ) from error
        return _of_integer(model, file, written, shape, title)
    found = contents_of(_unpickled(file, trust), key)
    if not found.items:
        where = "weights" if key is None else f"weights under the key {key!r}"
        raise BadFile(f"{file}: no {where}; {EXPECTED}")
    item = found.chosen()
    try:
        page = _of_item(item, file, written, shape, title)
    except (Uncalibrated, Unsupported) as error:
        raise BadFile(f"{file}: {_reason(error)}") from error
    page.history = found.history_of(item)
    if page.history is not None:
        page.missing.pop("history", None)
    if item.place:
        others = [i.key for i in found.items if i is not item]
        also = f" (--key takes another: {', '.join(others)})" if others else ""
        page.facts.append(f"under the key {item.key}{also}")
    return page


def _of_item(
    item: Item, file: pathlib.Path, written: bytes, shape: tuple[int, ...] | None, title: str | None
) -> Page:
    held = item.value
    if item.kind == INTEGER:
        return _of_integer(held, file, written, shape, title)
    if item.kind == STATE:
        return _of_state(held, file, written, title)
    if item.kind == FLOAT_STATE:
        page = page_of_tensors(held, written, title or f"{file.name}: state dict", [])
    else:
        page = page_of(held, title=title or f"{file.name}: {type(held).__name__}")
    if item.kind == MODEL:
        page.missing |= _NO_DATA
    page.missing |= _NO_RECORD
    return page


def _by_torch(written: bytes) -> bool:
    return written[:2] == b"PK" or written[:1] == b"\x80"


def _reason(error: BaseException) -> str:
    """Return the first sentence of an error message."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return first.partition(". ")[0].rstrip(".")


def _unpickled(file: pathlib.Path, trust: bool) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if trust or "weights_only" not in str(error).lower():
            raise BadFile(f"{file}: {_reason(error)}; {EXPECTED}") from error
        raise BadFile(
            f"{file}: it holds pickled objects, and to read them runs code that the file names; "
            "give --trust if it comes from someone you trust, or save the state dict instead"
        ) from error
    except (ImportError, AttributeError) as error:
        raise BadFile(
            f"{file}: {_reason(error)}: a class of the model cannot be imported; run in the "
            "directory of its module, or give the state dict instead"
        ) from error
    except Exception as error:  # unpickling a damaged file may raise anything
        raise BadFile(f"{file}: damaged ({_reason(error)}); {EXPECTED}") from error


# -- integer models


def _of_integer(
    model: IntegerModel,
    file: pathlib.Path,
    written: bytes,
    shape: tuple[int, ...] | None,
    title: str | None,
) -> Page:
    try:
        program, _ = whole_program(model, "report")
    except Exception as error:
        raise BadFile(f"{file}: {_reason(error)}") from error
    layers = [_of_codes(str(node["name"]), weight) for node, weight in program.weighted()]
    facts = [f"{len(program.spec['nodes'])} integer operations"]
    given = shape or input_shape(program.spec)
    rows = None
    if given is not None and len(program.spec["inputs"]) == 1:
        rows = _timed(model, given, file, shape is not None)
        facts.append(f"timed with an input of {'×'.join(map(str, given))}"
                     + ("" if shape is not None else " (--input says otherwise)"))  # fmt: skip
    page = Page(title or f"{file.name}: integer model", facts)
    page.summary = rows if rows is not None else _uncalled(program, written)
    page.layers = layers
    page.graph = of_program(program.spec, {r.name: r.form for r, _ in layers})
    page.missing = {"activation": "Activations are codes of at most 8 bits, see Placement; their "
                    "values depend on the input."}  # fmt: skip
    if rows is None:
        page.missing["summary"] = "Give --input, the shape of an input, to time the model."
    return page


def _timed(model: IntegerModel, shape: tuple[int, ...], file: pathlib.Path, given: bool) -> Any:
    try:
        return summary(model, example_inputs=(torch.zeros(shape),), rounds=5)
    except Exception as error:
        if given:
            text = "×".join(map(str, shape))
            raise BadFile(f"{file}: --input {text}: {_reason(error)}") from error
        return None


def input_shape(spec: dict[str, Any]) -> tuple[int, ...] | None:
    """Return an input shape with the sizes of the conversion, assuming square images."""
    first = spec["inputs"][0]
    if first.get("rows"):
        return (1, int(first["channels"]))
    node = next((n for n in spec["nodes"] if first["value"] in n["inputs"]), None)
    if node is None or not node.get("positions"):
        return None
    side = math.isqrt(int(node["positions"]))
    if side * side != node["positions"]:
        return None
    size = side
    if "kernel" in node and not node.get("linear"):
        stride, pads = node["stride"][0], node["padding"]
        size = (side - 1) * stride + node["dilation"][0] * (node["kernel"][0] - 1) + 1
        size += stride - 1 - pads[0] - pads[2]
    return (1, int(first["channels"]), size, size) if size > 0 else None


def _uncalled(program: IntegerProgram, written: bytes) -> Any:
    """Return a summary of sizes, without calling the model."""
    weights = [weight for _, weight in program.weighted()]
    macs = sum(weight.numel() * int(node["positions"]) for node, weight in program.weighted())
    parameters = sum(b.numel() for b in program.buffers())
    return Summary([row_of_file("integer", "integer", parameters, weights, macs, written)])


def _of_codes(name: str, weight: Tensor) -> tuple[LayerRow, Histogram | None]:
    """Return the row and histogram of an integer weight, with as few bits as its values need.
    `convert` scales codes of few bits by a power of two, which is removed here."""
    codes = weight.flatten().to(torch.int64)
    if not codes.numel():
        return LayerRow(name, "weight", "s8", 8, 1, None), None
    step = 1
    while step < 64 and not (codes % (2 * step)).any() and bool(codes.any()):
        step *= 2
    codes = codes // step
    low, high = int(codes.min()), int(codes.max())
    bits = max((max(high, -low - 1)).bit_length() + 1, 2)
    top = 2 ** (bits - 1) - 1
    least = min(low, -top)
    counts = torch.bincount(codes - least, minlength=top - least + 1)
    used = int((counts > 0).sum()) / len(counts)
    zeros = float((codes == 0).double().mean())
    row = LayerRow(
        name, "weight", f"s{bits}", bits, weight.shape[0], None, count=codes.numel(),
        sparsity=zeros, levels=used, min=float(low), max=float(high),
        mean=float(codes.double().mean()), std=float(codes.double().std(unbiased=False)),
    )  # fmt: skip
    ruler = Ruler([float(k) for k in range(least, top + 1)], float(least), float(top), None)
    return row, _grouped(counts.tolist(), least, ruler)


def _grouped(counts: list[int], least: int, ruler: Ruler) -> Histogram:
    """Return bars of one code each, or of a few neighbouring codes."""
    group = 1
    while len(counts) / group > BARS:
        group *= 2
    bars = [sum(counts[i : i + group]) for i in range(0, len(counts), group)]
    return Histogram(bars, least - 0.5, float(group), ruler=ruler)


# -- state dicts


def _of_state(
    state: Mapping[str, Any], file: pathlib.Path, written: bytes, title: str | None
) -> Page:
    try:
        found = rows_of_state(state)
    except ValueError as error:
        raise BadFile(f"{file}: damaged ({error})") from error
    weights = [m.tally.sample[0] for m in found if m.tally is not None and m.tally.sample]
    parameters = sum(t.numel() for t in state.values() if isinstance(t, Tensor))
    layers = drawn(found)
    row = row_of_file("checkpoint", "prepared", parameters, weights, 0, written)
    counts = {role: sum(r.role == role for r, _ in layers) for role in ("weight", "activation")}
    facts = [f"{n} quantizers of {role}s" for role, n in counts.items()]
    page = Page(title or f"{file.name}: state dict", facts, Summary([row]), layers)
    page.missing = _NO_DATA | _NO_RECORD
    return page


# -- the command line


def main(arguments: argparse.Namespace) -> int:
    """Run python -m bitpare report. The exit status is 2 if the file cannot be reported on."""
    if arguments.html is None and arguments.json is None:
        print("report: give --html FILE, --json FILE or both", file=sys.stderr)
        return 2
    try:
        page = page_of_file(
            arguments.checkpoint,
            trust=arguments.trust,
            shape=arguments.input,
            key=arguments.key,
            title=arguments.title,
        )
    except BadFile as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    for path, text in (
        (arguments.html, html_of(page) if arguments.html else ""),
        (arguments.json, json.dumps(page.data(), indent=1) + "\n"),
    ):
        if path is not None:
            try:
                write_whole(path, text.encode())
            except OSError as error:
                print(f"report: {path}: {error.strerror}", file=sys.stderr)
                return 2
            print(f"wrote {path}")
    return 0
