"""Pieces of HTML that sections are built from."""

import math
from collections.abc import Sequence
from typing import Any

from bitpare.report.page import Page
from bitpare.report.svg import escaped, percent, short


def card(text: object, head: str = "") -> str:
    return f'<div class="card">{f"<h3>{escaped(head)}</h3>" if head else ""}{text}</div>'


def missing(page: Page, what: str) -> str:
    text = page.missing.get(what, "")
    return f'<p class="missing">{escaped(text)}</p>' if text else ""


def say(text: str) -> str:
    return f"<p>{text}</p>"


def db(value: float | None) -> str:
    if value is None:
        return "–"
    if math.isinf(value):
        return "exact" if value > 0 else "NaN"
    return f"{value:.1f} dB"


def bytes_of(count: int) -> str:
    return f"{short(count)}B" if count >= 1e4 else f"{count:,} B"


def named(row: Any) -> str:
    return f"{row.name} {row.role}"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    sortable: bool = False,
    keys: Sequence[Sequence[Any]] | None = None,
) -> str:
    """Return a table. keys: what to sort a column by, if not by its text."""
    top = "".join(f"<th>{escaped(h)}</th>" for h in head)
    lines = []
    for i, row in enumerate(rows):
        cells = ""
        for j, cell in enumerate(row):
            key = "" if keys is None or keys[i][j] is None else f' data-v="{escaped(keys[i][j])}"'
            cells += f"<td{key}>{escaped(cell)}</td>"
        lines.append(f"<tr>{cells}</tr>")
    style = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll"><table{style}><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def share_of(value: float | None) -> str:
    return "–" if value is None else percent(value)


def legend_of(items: Sequence[tuple[str, str]]) -> str:
    text = "".join(f'<span><i class="{c}"></i>{escaped(t)}</span>' for c, t in items)
    return f'<div class="legend">{text}</div>'
