"""The content of a report, before it is written as HTML."""

import dataclasses
from typing import Any

from bitpare._build_info import version
from bitpare.prune.sensitivity import Sensitivity
from bitpare.report.effects import Effects
from bitpare.report.graphs import Graph
from bitpare.report.history import History
from bitpare.report.layers import LayerRow, plain
from bitpare.report.summary import Summary
from bitpare.report.tally import Histogram


@dataclasses.dataclass
class Page:
    """The content of a report. Unknown parts are None, and ``missing`` says what they need.

    layers: a row and a histogram (None without values) for each quantizer."""

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
        """Return every number of the page, as values for JSON."""
        found: dict[str, Any] = {"title": self.title, "facts": self.facts, "bitpare": str(version)}
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
