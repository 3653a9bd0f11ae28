"""Collect the contents of a page about a model."""

import copy
import io
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bitpare.batches import Forward, data_or_none
from bitpare.deploy.integer import IntegerModel
from bitpare.errors import Uncalibrated, Unsupported
from bitpare.files import write_whole
from bitpare.models import unwrapped
from bitpare.nn.hub import hub_of
from bitpare.prune.sensitivity import Sensitivity
from bitpare.report.effects import Effects, effects
from bitpare.report.graphs import graph_of
from bitpare.report.history import History
from bitpare.report.layers import LayerRow, Measured, measured
from bitpare.report.page import Page
from bitpare.report.state import rows_of_floats
from bitpare.report.summary import Summary, row_of_file, summary
from bitpare.report.tally import Histogram
from bitpare.report.write import html_of

_SAMPLES = 8  # samples to try each quantizer on
_ROUNDS = 5  # rounds of timing, with three calls each
_IN_FLOAT = "Nothing is quantized: bp.prepare puts quantizers into a model."


def html(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    float_model: nn.Module | None = None,
    integer: nn.Module | None = None,
    data: Iterable[Any] | None = None,
    batches: int | None = None,
    forward: Forward | None = None,
    history: History | None = None,
    sensitivity: Sensitivity | None = None,
    title: str | None = None,
) -> None:
    """Write a page about a model to ``path``, as one self-contained HTML file.

    Sections without data say what argument they need. The model is not changed.

    Args:
        model: a prepared model; or a float model, whose page shows weights, sparsity and whatever
            else is given.
        path: the file to write.
        float_model: the model before `prepare`, for sizes and latency.
        integer: the model after `convert`, for sizes and latency.
        data: a few batches, as for `calibrate`, for histograms of activations, clip rates, and the
            layer that loses accuracy (from the first 8 samples).
        batches: the number of batches to use; None uses all.
        forward: ``forward(model, batch)``, to call the model in another way.
        history: a `Recorder` that was attached to the optimizer.
        sensitivity: the result of `bp.prune.sensitivity`.
        title: the title of the page.
    """
    inner = unwrapped(model)
    if isinstance(inner, IntegerModel):
        raise TypeError(
            "report.html: model must be the trained model, got an IntegerModel; pass that as "
            "integer="
        )
    page = page_of(
        inner,
        float_model=float_model,
        integer=integer,
        data=data,
        batches=batches,
        forward=forward,
        history=history,
        sensitivity=sensitivity,
        title=title,
    )
    write_whole(path, html_of(page).encode())


def page_of(
    model: nn.Module,
    *,
    float_model: nn.Module | None = None,
    integer: nn.Module | None = None,
    data: Iterable[Any] | None = None,
    batches: int | None = None,
    forward: Forward | None = None,
    history: History | None = None,
    sensitivity: Sensitivity | None = None,
    title: str | None = None,
) -> Page:
    """Return a page with everything that is known about a model."""
    hub = hub_of(model)
    if hub is None:
        others = {"float_model": float_model, "integer": integer, "data": data}
        given = [name for name, value in others.items() if value is not None]
        if given:
            raise ValueError(
                f"report.html: {given[0]}= needs a prepared model to compare with, and this "
                f"{type(model).__name__} is not prepared; call bp.prepare first"
            )
        return _of_floats(model, history, sensitivity, title)
    few: list[Any] = []
    source = data_or_none("report.html", data, batches, forward)
    if source is not None:
        source.data = _first_of(source.data, few)
    found = measured(model, source, "report.html")
    missing = _missing(float_model, integer, data) | _missing_records(history, sensitivity)
    return Page(
        title or f"{type(model).__name__}: quantization report",
        _facts(model, [m.row() for m in found]),
        _compared(missing, float_model, model, integer),
        drawn(found),
        _tried(missing, model, few, forward),
        graph_of(model),
        history if history is not None and history.records else None,
        sensitivity,
        [(name, reason) for name, reason, quantized in hub.notes if not quantized],
        missing,
    )


def _of_floats(
    model: nn.Module,
    history: History | None,
    sensitivity: Sensitivity | None,
    title: str | None,
) -> Page:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    page = page_of_tensors(
        dict(model.named_parameters()),
        file.getvalue(),
        title or f"{type(model).__name__}: report",
        [type(model).__name__],
    )
    page.history = history if history is not None and history.records else None
    page.sensitivity = sensitivity
    page.missing |= _missing_records(history, sensitivity)
    return page


def page_of_tensors(
    tensors: Mapping[str, Any], written: bytes, title: str, facts: list[str]
) -> Page:
    """Return a page of float weights, and of the file that holds them."""
    found = rows_of_floats(tensors)
    weights = [m.tally.sample[0] for m in found if m.tally is not None]
    count = sum(t.numel() for t in tensors.values() if isinstance(t, Tensor))
    row = row_of_file("float", "float", count, weights, 0, written)
    told = [*facts, f"{count:,} parameters", f"{len(found)} weights in float"]
    return Page(title, told, Summary([row]), drawn(found), missing={"graph": _IN_FLOAT})


def drawn(found: list[Measured]) -> list[tuple[LayerRow, Histogram | None]]:
    """Return a row and a histogram for each measured quantizer."""
    return [
        (m.row(), m.tally.bars() if m.tally is not None and m.tally.count else None) for m in found
    ]


def _compared(
    missing: dict[str, str], float_model: Any, model: nn.Module, integer: Any
) -> Summary | None:
    """Return sizes and times. A copy of the model is measured, because an eval forward updates the
    scales of weights."""
    compared = {"float": float_model, "fake-quantized": copy.deepcopy(model), "integer": integer}
    given = {name: m for name, m in compared.items() if m is not None}
    try:
        return summary(*given.values(), names=list(given), rounds=_ROUNDS)
    except Uncalibrated as error:
        missing["summary"] = f"The model does not run yet: {error}."
        return None


def _tried(
    missing: dict[str, str], model: nn.Module, few: list[Any], forward: Forward | None
) -> Effects | None:
    if not few:
        return None
    try:
        return effects(model, few, forward=forward, progress=False)
    except Unsupported as error:
        missing["data"] = f"{error}."
        return None


def _missing(float_model: Any, integer: Any, data: Any) -> dict[str, str]:
    """Return for each section without data the arguments of `html` that it needs."""
    found = {}
    if float_model is None or integer is None:
        other = [n for n, m in (("float_model=", float_model), ("integer=", integer)) if m is None]
        found["summary"] = f"To compare with other forms of the model, give {' and '.join(other)}."
    if data is None:
        found["data"] = (
            "Give data=, a few batches as for calibrate: for histograms and clip rates of the "
            "activations, and for the layer that loses accuracy."
        )
    return found


def _missing_records(history: Any, sensitivity: Any) -> dict[str, str]:
    """Return the same for sections that need records of the training."""
    found = {}
    if history is None:
        found["history"] = (
            "Give history=, a bp.report.Recorder that was attached to the optimizer, for scales, "
            "oscillation and sparsity over time."
        )
    elif not history.records:
        found["history"] = "The recorder given as history= has no record yet."
    if sensitivity is None:
        found["sensitivity"] = (
            "Give sensitivity=, the result of bp.prune.sensitivity, for what each layer loses when "
            "it is pruned."
        )
    return found


def _facts(model: nn.Module, rows: list[LayerRow]) -> list[str]:
    count = sum(p.numel() for p in model.parameters())
    weights = [r for r in rows if r.role == "weight"]
    activations = [r for r in rows if r.role == "activation"]
    facts = [type(model).__name__, f"{count:,} parameters"]
    for name, some in (("weights", weights), ("activations", activations)):
        forms = list(dict.fromkeys(r.form for r in some))
        if forms:
            facts.append(f"{len(some)} quantizers of {name} ({', '.join(forms)})")
    return facts


def _first_of(data: Iterable[Any], few: list[Any]) -> Iterable[Any]:
    """Yield the batches, and put some samples of the first one into ``few``."""
    for i, batch in enumerate(data):
        if i == 0:
            few.append(_pytree.tree_map(_some, batch))
        yield batch


def _some(value: Any) -> Any:
    return value[:_SAMPLES] if isinstance(value, Tensor) and value.dim() else value
