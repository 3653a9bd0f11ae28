"""The page: sections put together from what is known, and a line where something is missing."""

import copy
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from bitpare import _build_info
from bitpare.errors import Uncalibrated, Unsupported
from bitpare.prune.sensitivity import Sensitivity
from bitpare.quant.batches import first_of
from bitpare.quant.names import find_hub, unwrapped
from bitpare.report import sections
from bitpare.report.effects import Effects, effects
from bitpare.report.graphs import Graph, graph_of
from bitpare.report.layers import LayerRow, measured, plain
from bitpare.report.recorder import Recorder
from bitpare.report.style import CSS, JS
from bitpare.report.summary import Summary, summary
from bitpare.report.svg import escaped
from bitpare.report.tally import Histogram

_FEW = 8  # samples that each quantizer is tried on alone
_ROUNDS = 5  # of timing: three calls each


@dataclasses.dataclass
class Page:
    """What a report is made of; None where it is not known, and in ``missing`` what to give.

    layers: a row and a histogram (None: no values) for each quantizer.
    """

    title: str
    facts: list[str]
    summary: Summary | None = None
    layers: list[tuple[LayerRow, Histogram | None]] = dataclasses.field(default_factory=list)
    effects: Effects | None = None
    graph: Graph | None = None
    history: Recorder | None = None
    sensitivity: Sensitivity | None = None
    floating: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """Every number of the page, as JSON can hold it."""
        found: dict[str, Any] = {"title": self.title, "facts": self.facts, "bitpare": _version()}
        if self.summary is not None:
            found["summary"] = [dataclasses.asdict(r) for r in self.summary.rows]
        found["layers"] = [dataclasses.asdict(r) for r, _ in self.layers]
        if self.effects is not None:
            found["effects"] = dataclasses.asdict(self.effects)
        if self.graph is not None:
            found["graph"] = dataclasses.asdict(self.graph)
        if self.history is not None:
            found["history"] = [dataclasses.asdict(r) for r in self.history.records]
        if self.sensitivity is not None:
            found["sensitivity"] = dataclasses.asdict(self.sensitivity)
        found["floating"] = [list(pair) for pair in self.floating]
        made: dict[str, Any] = plain(found)
        return made

    def html(self) -> str:
        """The page as one text that needs nothing else."""
        made = [(title, text) for title, text in sections.all_of(self) if text]
        links = "".join(f'<a href="#{_id(t)}">{escaped(t)}</a>' for t, _ in made)
        body = "".join(
            f'<section id="{_id(t)}"><h2>{escaped(t)}</h2>{text}</section>' for t, text in made
        )
        data = json.dumps(self.data()).replace("<", "\\u003c")
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escaped(self.title)}</title><style>{CSS}</style></head><body><main>"
            f"<h1>{escaped(self.title)}</h1><p>{escaped(' · '.join(self.facts))}</p>"
            f"{sections.tiles(self)}<nav>{links}</nav>{body}"
            f"<footer>Written by bitpare {escaped(_version())}. All numbers of this page are in it "
            "as JSON, in the element <code>bitpare-data</code>.</footer></main>"
            '<div id="tip" role="status"></div>'
            f'<script type="application/json" id="bitpare-data">{data}</script>'
            f"<script>{JS}</script></body></html>\n"
        )


def _version() -> str:
    return str(_build_info.version)


def _id(title: str) -> str:
    return title.lower().replace(" ", "-")


def write(text: str, path: str | os.PathLike[str]) -> None:
    """The file appears whole or not at all."""
    target = pathlib.Path(path)
    beside = target.with_name(target.name + ".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, target)


def html(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    float_model: nn.Module | None = None,
    integer: nn.Module | None = None,
    batches: Iterable[Any] | None = None,
    history: Recorder | None = None,
    sensitivity: Sensitivity | None = None,
    title: str | None = None,
) -> None:
    """Writes a page about a prepared model to ``path``: one file that needs no other.

    float_model, integer: the model before `prepare` and after `convert`, for sizes and latency.
    batches: as for `calibrate`, a few: for histograms of activations, clip rates, and the layer
    that loses accuracy (the first 8 samples). history: a `Recorder`. sensitivity: what
    `bp.prune.sensitivity` found. Sections whose input is missing say in a line what to give. The
    model is not changed.
    """
    inner = unwrapped(model)
    find_hub(inner, "report.html")
    write(
        page_of(
            inner,
            float_model=float_model,
            integer=integer,
            batches=batches,
            history=history,
            sensitivity=sensitivity,
            title=title,
        ).html(),
        path,
    )


def page_of(
    model: nn.Module,
    *,
    float_model: nn.Module | None = None,
    integer: nn.Module | None = None,
    batches: Iterable[Any] | None = None,
    history: Recorder | None = None,
    sensitivity: Sensitivity | None = None,
    title: str | None = None,
) -> Page:
    """Everything that can be known about a prepared model."""
    hub = find_hub(model, "report.html")
    few: list[Any] = []
    found = measured(model, None if batches is None else _first_of(batches, few), "report.html")
    missing = _missing(float_model, integer, batches, history, sensitivity)
    return Page(
        title or f"{type(model).__name__}: quantization report",
        _facts(model, [m.row() for m in found]),
        _compared(missing, float_model, model, integer),
        [(m.row(), m.tally.bars() if m.tally is not None and m.tally.count else None)
         for m in found],
        _tried(missing, model, few),
        graph_of(model),
        history if history is not None and history.records else None,
        sensitivity,
        [(name, reason) for name, reason, quantized in hub.notes if not quantized],
        missing,
    )  # fmt: skip


def _compared(
    missing: dict[str, str], float_model: Any, model: nn.Module, integer: Any
) -> Summary | None:
    """Sizes and times; an eval forward moves scales of weights, so it is a copy's."""
    compared = {"float": float_model, "fake-quantized": copy.deepcopy(model), "integer": integer}
    given = {name: m for name, m in compared.items() if m is not None}
    try:
        return summary(*given.values(), names=list(given), rounds=_ROUNDS)
    except Uncalibrated as error:
        missing["summary"] = f"The model does not run yet: {error}."
        return None


def _tried(missing: dict[str, str], model: nn.Module, few: list[Any]) -> Effects | None:
    if not few:
        return None
    try:
        return effects(model, few, progress=False)
    except Unsupported as error:
        missing["batches"] = f"{error}."
        return None


def _missing(
    float_model: Any, integer: Any, batches: Any, history: Any, sensitivity: Any
) -> dict[str, str]:
    """For each section what to give to `html` for it."""
    found = {}
    if float_model is None or integer is None:
        other = [n for n, m in (("float_model=", float_model), ("integer=", integer)) if m is None]
        found["summary"] = f"To compare with other forms of the model, give {' and '.join(other)}."
    if batches is None:
        found["batches"] = (
            "Give batches=, a few batches as for calibrate: for histograms and clip rates of the "
            "activations, and for the layer that loses accuracy."
        )
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


def _first_of(batches: Iterable[Any], few: list[Any]) -> Iterable[Any]:
    """The batches, of the first of which some samples are put into ``few``."""
    if isinstance(batches, Tensor):
        return batches  # an error, which says so

    def passing() -> Iterable[Any]:
        for i, batch in enumerate(batches):
            if i == 0:
                value = first_of(batch)
                few.append([value[:_FEW] if isinstance(value, Tensor) else value])
            yield batch

    return passing()
