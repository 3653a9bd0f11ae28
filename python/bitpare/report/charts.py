"""Draw the kinds of plots in a report."""

import dataclasses
import math
from collections.abc import Sequence

from bitpare.report.svg import Axis, Svg, clipped_name, number, percent, short
from bitpare.report.tally import Histogram

COLOURS = 8  # number of line colours in the page's style: --line0 ...


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar of a plot. style: a CSS class of the page. hover: the tooltip. extra: the end of a
    paler bar or of a whisker."""

    name: str
    value: float
    style: str
    hover: str
    extra: float | None = None


def histogram(h: Histogram, title: str, style: str) -> Svg:
    """Draw bars of counts with the grid's levels over them. Clipped values are shaded."""
    width, height, left, top, floor = 280.0, 132.0, 6.0, 8.0, 112.0
    svg = Svg(width, height, title, kind="histogram")
    x = Axis(h.low, h.high, left, width - left)
    peak, total = max(h.counts, default=0), max(sum(h.counts) + h.below + h.above, 1)
    filled = sorted(c for c in h.counts if c)
    log = bool(filled) and peak > 25 * filled[len(filled) // 2]
    y = Axis(0.8, peak, floor, top, log=True) if log else Axis(0.0, peak, floor, top)
    _shade_clipped(svg, h, x, top, floor)
    if len(filled):
        svg.path(_outline(h.counts, h.low, h.width, x, y, floor), f"bars {style}")
    svg.line(left, floor, width - left, floor, "axis")
    _draw_levels(svg, h, x, top, floor)
    _label_values(svg, h, x, floor)
    if log:
        svg.text(width - left, top + 6, "log", "t faint", anchor="end")
    unit = h.ruler.step if h.ruler is not None else 1.0
    svg.data = {
        "low": repr(h.low * (unit or 1.0)),
        "width": repr(h.width * (unit or 1.0)),
        "unit": "" if unit is not None else " steps",
        "counts": ",".join(map(str, h.counts)),
        "total": str(total),
        "from": number(left),
        "to": number(width - left),
    }
    return svg


def _outline(counts: Sequence[int], low: float, step: float, x: Axis, y: Axis, floor: float) -> str:
    parts = []
    for i, count in enumerate(counts):
        if count:
            a, b = x(low + i * step), x(low + (i + 1) * step)
            gap = 0.12 * (b - a) if b - a > 2 else 0.0
            up = min(y(count), floor - 0.75)
            parts.append(f"M{number(a + gap / 2)} {number(floor)}V{number(up)}"
                         f"H{number(b - gap / 2)}V{number(floor)}Z")  # fmt: skip
    return "".join(parts)


def _shade_clipped(svg: Svg, h: Histogram, x: Axis, top: float, floor: float) -> None:
    if h.ruler is None or h.ruler.low is None or h.ruler.high is None:
        return
    half = 0.5 if len(h.ruler.levels) > 1 and h.ruler.levels[1] - h.ruler.levels[0] == 1 else 0.0
    ends = ((h.low, h.ruler.low - half, h.below), (h.ruler.high + half, h.high, h.above))
    for side, (begin, end, beyond) in enumerate(ends):
        begin, end = max(begin, h.low), min(end, h.high)
        if end > begin:
            a, b = x(begin), x(end)
            if b - a > 3:
                svg.rect(a, top, b - a, floor - top, "clipped", mark=False)
            at = b if side == 0 else a
            svg.line(at, top, at, floor, "clip")
        if beyond:
            place, anchor = (x(h.low) + 2, "start") if side == 0 else (x(h.high) - 2, "end")
            arrow = f"◂ {beyond}" if side == 0 else f"{beyond} ▸"
            svg.text(place, floor - 5, arrow, "t bad", anchor=anchor, hover="lie further out")


def _draw_levels(svg: Svg, h: Histogram, x: Axis, top: float, floor: float) -> None:
    """Draw lines over the bars if there is room for all levels, else ticks under them."""
    if h.ruler is None:
        return
    levels = [v for v in h.ruler.levels if h.low <= v <= h.high]
    if not levels:
        return
    if len(levels) <= 34:
        d = "".join(f"M{number(x(v))} {number(top + 4)}V{number(floor + 4)}" for v in levels)
        svg.path(d, "level", mark=False)
        return
    every = 1
    while len(levels) / every > 92:
        every *= 2
    first = next((i for i, v in enumerate(levels) if v >= 0), 0) % every
    d = "".join(f"M{number(x(v))} {number(floor)}v4" for v in levels[first::every])
    svg.path(d, "level", mark=False)
    if every > 1:
        svg.data["every"] = str(every)


def _label_values(svg: Svg, h: Histogram, x: Axis, floor: float) -> None:
    """Label the ends of the grid, 0, and the ends of the values. Labels are values if all scales
    are the same, else steps. Labels that would overlap an earlier one are left out."""
    step = h.ruler.step if h.ruler is not None else 1.0
    grid = [v for v in (h.ruler.low, h.ruler.high) if v is not None] if h.ruler is not None else []
    taken: list[tuple[float, float]] = []
    for value in (*grid, 0.0, h.low, h.high):
        if not h.low <= value <= h.high:
            continue
        shown = short(value * step) if step is not None else f"{value:.0f}"
        shown += " steps" if step is None and value == max(grid, default=h.high) else ""
        half = 3.1 * len(shown)
        at = min(max(x(value), half + 1), svg.width - half - 1)
        if all(at + half + 6 < a or at - half - 6 > b for a, b in taken):
            taken.append((at - half, at + half))
            svg.text(at, floor + 15, shown, "t faint", anchor="middle")


def columns(bars: Sequence[Bar], title: str, *, share: bool = False, lowest: bool = True) -> Svg:
    """Draw upright bars. If there is no room for all names, only the three lowest (or highest) bars
    are labelled, and tooltips show the others."""
    width, height, left, top = 1080.0, 226.0, 52.0, 8.0
    named = len(bars) <= 36
    longest = max((len(b.name) for b in bars), default=1)
    floor = height - (12.0 + (min(longest, 18) * 4.6 if named else 3 * 14.0))
    svg = Svg(width, height, title, kind="columns")
    y = _height_of(bars, floor, top)
    for tick in y.ticks(4):
        svg.line(left, y(tick), width, y(tick), "rule")
        label = percent(tick) if share and tick >= 0 else short(tick)
        svg.text(left - 6, y(tick) + 3.5, label, "t faint", anchor="end")
    room = (width - left) / max(len(bars), 1)
    thick = min(room * 0.8, 46.0)
    ground = y(0.0)
    for i, bar in enumerate(bars):
        at = left + (i + 0.5) * room - thick / 2
        ends = [(bar.extra, f"{bar.style} pale"), (bar.value, bar.style)]
        for value, style in ends if bar.extra is not None else ends[1:]:
            up = y(min(max(value or 0.0, y.low), y.high))
            over, under = min(up, ground), max(up, ground)
            svg.rect(at, over, thick, max(under - over, 0.5), style, hover=bar.hover)
    svg.line(left, ground, width, ground, "axis")
    middles = [left + (i + 0.5) * room for i in range(len(bars))]
    if named:
        for at, bar in zip(middles, bars, strict=True):
            text = clipped_name(bar.name, 18)
            svg.text(at + 3, floor + 10, text, "t", anchor="end", turn=-38.0)
    else:
        _name_three(svg, bars, middles, floor, lowest)
    return svg


def _height_of(bars: Sequence[Bar], floor: float, top: float) -> Axis:
    ends = [0.0, *(b.value for b in bars), *(b.extra for b in bars if b.extra is not None)]
    ends = [v for v in ends if math.isfinite(v)]
    low, high = min(ends), max(ends)
    return Axis(low, high * 1.03 if high > 0 else 1.0, floor, top)


def _name_three(
    svg: Svg, bars: Sequence[Bar], middles: list[float], floor: float, lowest: bool
) -> None:
    sign = 1 if lowest else -1
    order = sorted(range(len(bars)), key=lambda i: sign * bars[i].value)[:3]
    far = svg.width * 0.6
    # Place each name beside its line, away from the lines of lower names, so that no line crosses
    # one.
    order.sort(key=lambda i: (middles[i] > far, middles[i] if middles[i] > far else -middles[i]))
    for line, i in enumerate(order):
        at, down = middles[i], floor + 16 + 14 * line
        right = at > far
        svg.line(at, floor + 2, at, down - 4, "leader")
        svg.text(at + (-5 if right else 5), down, bars[i].name, "t",
                 anchor="end" if right else "start")  # fmt: skip


def rows(bars: Sequence[Bar], title: str, shown: Sequence[str], *, whisker: bool = False) -> Svg:
    """Draw a few horizontal bars, each with a text. ``extra`` is a paler bar, or the end of a
    whisker."""
    width, row, left = 520.0, 30.0, 120.0
    svg = Svg(width, row * len(bars) + 6, title, kind="rows")
    most = max(max(b.value, b.extra or 0.0) for b in bars) or 1.0
    x = Axis(0.0, most, left, width - 172)
    for i, (bar, text) in enumerate(zip(bars, shown, strict=True)):
        y = i * row + 4
        svg.text(left - 10, y + 15, clipped_name(bar.name, 18), "t strong", anchor="end")
        end = x(bar.value)
        svg.rect(left, y, max(end - left, 1.0), 20, bar.style, hover=bar.hover, radius=2)
        last = end
        if bar.extra is not None:
            other = x(bar.extra)
            last = max(end, other)
            if whisker:
                svg.line(end, y + 10, other, y + 10, "whisker")
                svg.line(other, y + 5, other, y + 15, "whisker")
            else:
                svg.rect(left, y + 14, max(other - left, 1.0), 6, "zipped", hover=bar.hover)
        svg.text(last + 8, y + 14.5, text, "t")
    return svg


def _within(value: float) -> float:
    """Limit a value, so that the difference of two values is finite."""
    return min(max(value, -1e300), 1e300)


@dataclasses.dataclass(frozen=True)
class Line:
    name: str
    points: list[tuple[float, float]]


def lines(
    series: Sequence[Line], title: str, *, across: str = "step", log: bool = False,
    share: bool = False, most: int = 6,
) -> Svg:  # fmt: skip
    """Draw lines over time. If there are many, only those that change most have a colour and a
    name."""
    kept = [(s, [(t, _within(v)) for t, v in s.points if math.isfinite(v)]) for s in series]
    kept = [(s, p) for s, p in kept if p]
    if not kept:
        raise ValueError(f"lines: {title!r} has no value")
    values = [v for _, p in kept for _, v in p]
    log = log and min(values) > 0 and max(values) > 3 * min(values)
    order = sorted(range(len(kept)), key=lambda i: -_change(kept[i][1], log))
    named = order[: most if len(kept) > most else len(kept)]
    width, height, left, top, floor = 520.0, 250.0, 52.0, 12.0, 216.0
    legend = 190.0 if len(kept) > 1 else 12.0
    svg = Svg(width, max(height, top + 16 * (len(named) + 1) + 10), title, kind="lines")
    times = [t for _, p in kept for t, _ in p]
    x = Axis(min(times), max(times), left, width - legend)
    low, high = min(values), max(values)
    pad = 0.0 if log else 0.05 * (high - low)
    y = Axis(low - pad, high + pad, floor, top, log=log)
    _frame(svg, x, y, across, share)
    for i in order[len(named) :]:
        s, points = kept[i]
        svg.polyline([(x(t), y(v)) for t, v in points], "line other", hover=s.name)
    for rank, i in reversed(list(enumerate(named))):
        s, points = kept[i]
        colour = f"stroke:var(--line{rank % COLOURS})"
        at = [(x(t), y(v)) for t, v in points]
        svg.polyline(at, "line", hover=s.name, colour=colour)
        if len(at) <= 40:
            for (px, py), (t, v) in zip(at, points, strict=True):
                hover = f"{s.name}: {_value(v, share)} at {short(t)}"
                fill = f"fill:var(--line{rank % COLOURS})"
                svg.circle(px, py, 2.2, "dot", hover=hover, colour=fill)
        if len(kept) > 1:
            here = top + 16 * rank + 4
            svg.rect(width - legend + 14, here - 3, 12, 4, "key", mark=False,
                     fill=colour.replace("stroke", "fill"))  # fmt: skip
            svg.text(width - legend + 31, here + 3, clipped_name(s.name, 24), "t", hover=s.name)
    if len(order) > len(named):
        here = top + 16 * len(named) + 7
        svg.text(width - legend + 31, here, f"and {len(order) - len(named)} others", "t faint")
    return svg


def _value(v: float, share: bool) -> str:
    return percent(v) if share else short(v, 4)


def _change(points: list[tuple[float, float]], log: bool) -> float:
    values = [v for _, v in points]
    if log:
        return math.log(max(values)) - math.log(min(values))
    return max(values) - min(values)


def _frame(svg: Svg, x: Axis, y: Axis, across: str, share: bool) -> None:
    marks = y.ticks(4)
    for tick in marks:
        svg.line(x.start, y(tick), x.end, y(tick), "rule")
        label = percent(tick) if share and tick >= 0 else short(tick)
        svg.text(x.start - 6, y(tick) + 3.5, label, "t faint", anchor="end")
    for tick in x.ticks(5):
        svg.line(x(tick), y.start, x(tick), y.start + 4, "axis")
        svg.text(x(tick), y.start + 15, short(tick), "t faint", anchor="middle")
    svg.line(x.start, y.start, x.end, y.start, "axis")
    svg.text((x.start + x.end) / 2, y.start + 29, across, "t faint", anchor="middle")


def heatmap(
    names: Sequence[str],
    heads: Sequence[str],
    cells: Sequence[Sequence[float | None]],
    shown: Sequence[Sequence[str]],
    title: str,
    across: str,
) -> Svg:
    """Draw a cell for each name and column. A larger value has a stronger colour, and 0 has
    none."""
    row, left, top = 24.0, 220.0, 24.0
    width = 1080.0
    room = min((width - left) / max(len(heads), 1), 86.0)
    svg = Svg(width, top + row * len(names) + 26, title, kind="heatmap")
    most = max((v for line in cells for v in line if v is not None), default=0.0) or 1.0
    for j, head in enumerate(heads):
        svg.text(left + (j + 0.5) * room, 14, head, "t faint", anchor="middle")
    for i, name in enumerate(names):
        y = top + i * row
        svg.text(left - 10, y + 15, clipped_name(name, 30), "t", anchor="end", hover=name)
        for j, value in enumerate(cells[i]):
            if value is None:
                continue
            share = min(max(value / most, 0.0), 1.0)
            style = f"fill-opacity:{0.06 + 0.94 * share:.3f}"
            hover = f"{name}, {heads[j]}: {shown[i][j]}"
            svg.rect(left + j * room + 1, y + 1, room - 2, row - 2, "heat", hover=hover, radius=2,
                     fill=style)  # fmt: skip
            ink = "t on" if share > 0.55 else "t"
            svg.text(left + (j + 0.5) * room, y + 15.5, shown[i][j], ink, anchor="middle")
    svg.text(left, top + row * len(names) + 17, across, "t faint")
    return svg


__all__ = ["Bar", "Line", "columns", "heatmap", "histogram", "lines", "rows"]
