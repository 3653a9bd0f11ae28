"""The page: sections put together from what is known, and a line where something is missing."""

import dataclasses
import json
from typing import Any

from bitpare import _build_info
from bitpare.prune.sensitivity import Sensitivity
from bitpare.report import sections
from bitpare.report.effects import Effects
from bitpare.report.graphs import Graph
from bitpare.report.history import History
from bitpare.report.layers import LayerRow, plain
from bitpare.report.style import CSS, JS
from bitpare.report.summary import Summary
from bitpare.report.svg import escaped
from bitpare.report.tally import Histogram


@dataclasses.dataclass
class Page:
    """The content of a report; None where it is not known, and in ``missing`` what to give.

    layers: a row and a histogram (None: no values) for each quantizer.
    """

    title: str
    facts: list[str]
    summary: Summary | None = None
    layers: list[tuple[LayerRow, Histogram | None]] = dataclasses.field(default_factory=list)
    effects: Effects | None = None
    graph: Graph | None = None
    history: History | None = None
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
