"""Draw bar charts as SVG. The same numbers always give the same text."""

import dataclasses
import html
import math
from collections.abc import Sequence

WIDTH, LABELS, VALUES = 760, 250, 130  # widths of the picture, the labels and the text after a bar
ROW, BAR, GAP, TOP, BOTTOM = 22, 14, 12, 56, 30
COLORS = {True: "#2f6db5", False: "#b9c2cc"}  # bitpare's bars, other tools' bars
TEXT, LINES, MARK = "#24292f", "#8c959f", "#cf222e"


@dataclasses.dataclass
class Bar:
    """A row. low and high are the ends of a whisker. Without a value only the note is drawn."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""
    ours: bool = False


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{TEXT}"{more}>'
        f"{html.escape(text)}</text>"
    )


def _step(most: float) -> float:
    """Return 1, 2 or 5 times a power of ten, so that about five steps reach the largest value."""
    power = 10.0 ** math.floor(math.log10(most / 5))
    return next(power * n for n in (1, 2, 5, 10) if power * n >= most / 5 * 0.999)


def bars(
    title: str,
    groups: dict[str, Sequence[Bar]],
    unit: str,
    mark: float | None = None,
    marked: str = "",
) -> str:
    """Draw groups of horizontal bars on one scale. mark: a value to draw a line at. marked: its
    name."""
    known = [b for rows in groups.values() for b in rows if b.value is not None]
    most = max([b.high or b.value or 0.0 for b in known] + [mark or 0.0]) * 1.02
    scale = (WIDTH - LABELS - VALUES) / most
    body, y = [], float(TOP)
    for name, rows in groups.items():
        body.append(_text(10, y + 12, name, more=' font-weight="600"'))
        y += ROW
        for bar in rows:
            middle = y + ROW / 2
            body.append(_text(LABELS - 8, middle + 4, bar.label, "end"))
            end, line = float(LABELS), LABELS + (mark or 0.0) * scale
            if bar.value is not None:
                end = LABELS + bar.value * scale
                body.append(
                    f'<rect x="{LABELS}" y="{middle - BAR / 2:.1f}" height="{BAR}" '
                    f'width="{bar.value * scale:.1f}" fill="{COLORS[bar.ours]}"/>'
                )
            if bar.low is not None and bar.high is not None:
                left, right = (LABELS + v * scale for v in (bar.low, bar.high))
                body.append(f'<path d="M{left:.1f} {middle:.1f}H{right:.1f}" stroke="{TEXT}"/>')
                end = max(end, right)
            if end < line < end + 80:  # the line would cross the note
                end = line
            body.append(_text(end + 6, middle + 4, bar.note))
            y += ROW
        y += GAP
    bottom = y
    axis, value = [], 0.0
    while value <= most:
        x = LABELS + value * scale
        axis.append(
            f'<path d="M{x:.1f} {TOP}V{bottom:.1f}" stroke="{LINES}" stroke-opacity="0.3"/>'
        )
        axis.append(_text(x, bottom + 16, f"{value:g}", "middle"))
        value += _step(most)
    if mark is not None:
        x = LABELS + mark * scale
        axis.append(f'<path d="M{x:.1f} {TOP}V{bottom:.1f}" stroke="{MARK}"/>')
        axis.append(_text(x, TOP - 4, marked, "middle", ' font-style="italic"'))
    height = bottom + BOTTOM
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif" font-size="12">'
    )
    lines = [
        head,
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>',
        _text(10, 20, title, more=' font-size="14" font-weight="600"'),
        _text(10, 36, unit),
        *axis,
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
