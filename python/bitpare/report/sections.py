"""The sections of a report, each a piece of HTML."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bitpare.report import charts, graphs
from bitpare.report.charts import Bar, Line
from bitpare.report.layers import LayerRow
from bitpare.report.summary import SummaryRow
from bitpare.report.svg import escaped, percent, short
from bitpare.report.tally import Histogram

if TYPE_CHECKING:
    from bitpare.report.page import Page

_SHOWN = 24  # small plots that are not folded away


def all_of(page: "Page") -> list[tuple[str, str]]:
    """Titles and texts, in the order of the page."""
    return [
        ("What stands out", _findings(page)),
        ("Size and speed", _sizes(page)),
        ("Signal to noise", _overview(page)),
        ("Lost accuracy", _effects(page)),
        ("Weights", _distributions(page, "weight")),
        ("Activations", _distributions(page, "activation")),
        ("Sparsity", _sparsity(page)),
        ("Sensitivity to pruning", _sensitivity(page)),
        ("Over time", _history(page)),
        ("Placement", _placement(page)),
        ("All quantizers", _table(page)),
    ]


def _card(text: object, head: str = "") -> str:
    return f'<div class="card">{f"<h3>{escaped(head)}</h3>" if head else ""}{text}</div>'


def _missing(page: "Page", what: str) -> str:
    text = page.missing.get(what, "")
    return f'<p class="missing">{escaped(text)}</p>' if text else ""


def _say(text: str) -> str:
    return f"<p>{text}</p>"


def _db(value: float | None) -> str:
    return "–" if value is None else "exact" if math.isinf(value) else f"{value:.1f} dB"


def _bytes(count: int) -> str:
    return f"{short(count)}B" if count >= 1e4 else f"{count} B"


# -- the head


def tiles(page: "Page") -> str:
    rows = [r for r, _ in page.layers]
    found: list[tuple[str, str]] = []
    if page.summary is not None:
        first, last = page.summary.rows[0], page.summary.rows[-1]
        last = next((r for r in page.summary.rows if r.kind == "integer"), last)
        found.append((_bytes(last.bytes), f"file, {last.name}"))
        if last is not first:
            found.append((f"{first.bytes / max(last.bytes, 1):.2f} ×", f"smaller than {first.name}"))
        if last.p50 > 0:
            found.append((f"{last.p50 * 1e3:.3g} ms", f"median call, {last.name}"))
    weights = [r for r in rows if r.role == "weight" and r.sparsity is not None]
    count = sum(r.count for r in weights)
    if count:
        pruned = sum((r.sparsity or 0.0) * r.count for r in weights) / count
        found.append((percent(pruned), "of the weights are 0"))
    if page.effects is not None:
        found.append((_db(page.effects.output), "SQNR of the outputs"))
    known = [r for r in rows if r.sqnr is not None]
    if known:
        worst = min(known, key=lambda r: r.sqnr or 0.0)
        found.append((_db(worst.sqnr), f"lowest SQNR: {worst.role} of {worst.name}"))
    text = "".join(
        f'<div class="tile"><b>{escaped(a)}</b><span>{escaped(b)}</span></div>' for a, b in found
    )
    return f'<div class="tiles">{text}</div>' if text else ""


def _findings(page: "Page") -> str:
    rows = [r for r, _ in page.layers]
    said: list[str] = []
    if page.effects is not None and page.effects.rows:
        worst = page.effects.worst(3)
        names = ", ".join(f"<strong>{escaped(_of(r))}</strong> ({_db(r.output)})" for r in worst)
        said.append(
            f"Turned on alone, these disturb the model's output most: {names}; all quantizers "
            f"together leave {_db(page.effects.output)}."
        )
    said += _said_of(rows)
    if page.floating:
        names = ", ".join(f"<strong>{escaped(name)}</strong>" for name, _ in page.floating[:4])
        more = f" and {len(page.floating) - 4} more" if len(page.floating) > 4 else ""
        said.append(f"In float: {names}{more}; the reasons are under Placement.")
    if not said:
        said = ["Nothing is clipped, no quantizer wastes its levels, and no range would be better."]
    return _card(f'<ul class="findings">{"".join(f"<li>{s}</li>" for s in said)}</ul>')


def _of(row: Any) -> str:
    return f"{row.name} {row.role}"


def _said_of(rows: Sequence[LayerRow]) -> list[str]:
    """Quantizers whose range or bits do not fit their values."""
    checks: list[tuple[str, Callable[[LayerRow], float], float, Callable[[LayerRow], str]]] = [
        (
            "clip more than 1 % of their values",
            lambda r: r.clipped or 0.0,
            0.01,
            lambda r: percent(r.clipped or 0.0),
        ),
        (
            'would gain more than 2 dB by the range of least squared error (<code>range="mse"</code>)',
            lambda r: r.gain or 0.0,
            2.0,
            lambda r: f"{r.gain:.1f} dB",
        ),
        (
            "use less than half of their levels, though they have values enough: outliers set "
            "their range",
            lambda r: 1 - (r.levels if r.levels is not None and r.count > 2 << r.bits else 1.0),
            0.5,
            lambda r: percent(r.levels or 0.0),
        ),
    ]
    said = []
    for text, value, bound, shown in checks:
        found = sorted((r for r in rows if value(r) > bound), key=value, reverse=True)
        if found:
            names = ", ".join(
                f"<strong>{escaped(_of(r))}</strong> ({shown(r)})" for r in found[:4]
            )
            more = f" and {len(found) - 4} more" if len(found) > 4 else ""
            said.append(f"{len(found)} of {len(rows)} quantizers {text}: {names}{more}.")
    unknown = [r.name for r in rows if r.scale is None and r.count and r.sqnr is None]
    if unknown:
        said.append(f"Not calibrated: {escaped(', '.join(unknown[:6]))}.")
    return said


# -- sizes


def _sizes(page: "Page") -> str:
    if page.summary is None:
        return _missing(page, "summary")
    rows = page.summary.rows
    style = {"float": "float", "prepared": "quantized"}
    first = rows[0]

    def bar(r: SummaryRow, value: float, extra: float, hover: str) -> Bar:
        return Bar(r.name, value, style.get(r.kind, "integer"), f"{r.name}: {hover}", extra)

    sizes = [
        bar(r, r.bytes, r.compressed, f"{r.bytes:,} bytes, {r.compressed:,} compressed by zlib")
        for r in rows
    ]
    told = [f"{_bytes(r.bytes)}  ({r.bytes / max(first.bytes, 1):.0%})" for r in rows]
    text = _card(charts.rows(sizes, "bytes of the file of each model", told),
                 "Bytes of the file; the dark strip: compressed")  # fmt: skip
    timed = [r for r in rows if r.p50 > 0]
    if timed:
        bars = [
            bar(r, r.p50, r.p95, f"median {r.p50 * 1e3:.3f} ms, 95 % within {r.p95 * 1e3:.3f} ms")
            for r in timed
        ]
        shown = [f"{r.p50 * 1e3:.3g} ms  (95 %: {r.p95 * 1e3:.3g})" for r in timed]
        text += _card(charts.rows(bars, "latency of a call of each model", shown, whisker=True),
                      "Time of a call: median, and the 95th percentile")  # fmt: skip
    return f'<div class="two">{text}</div><br>' + _card(_summary_table(rows)) + _missing(
        page, "summary"
    )


def _summary_table(rows: Sequence[SummaryRow]) -> str:
    head = ["model", "file", "compressed", "parameters", "weights", "not 0", "MACs", "p50", "p95"]
    cells = [
        [
            r.name,
            f"{r.bytes:,}",
            f"{r.compressed:,}",
            f"{r.parameters:,}",
            f"{r.weights:,}",
            f"{r.nonzeros:,} ({r.nonzeros / max(r.weights, 1):.1%})",
            f"{r.macs:,}",
            f"{r.p50 * 1e3:.3f} ms" if r.p50 else "–",
            f"{r.p95 * 1e3:.3f} ms" if r.p95 else "–",
        ]
        for r in rows
    ]
    return table(head, cells)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    sortable: bool = False,
    keys: Sequence[Sequence[Any]] | None = None,
) -> str:
    """keys: what a column is sorted by, where that is not its text."""
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


# -- quantizers


def _overview(page: "Page") -> str:
    text = ""
    for role in ("weight", "activation"):
        rows = [r for r, _ in page.layers if r.role == role and r.sqnr is not None]
        if rows:
            bars = [
                Bar(r.name, r.sqnr or 0.0, role,
                    f"{r.name}: {_db(r.sqnr)}, {r.form}, clipped {_share(r.clipped)}")
                for r in rows
            ]  # fmt: skip
            text += _card(
                charts.columns(bars, f"SQNR of the {role}s, in dB", "dB"), f"{role.title()}s"
            )
    if not text:
        return _missing(page, "batches")
    intro = _say(
        "How far quantization is below the values, for each quantizer by itself: 6 dB are one bit. "
        "A bar that is much lower than its neighbours marks a range or a number of bits that does "
        "not fit."
    )
    return intro + text


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value)


def _effects(page: "Page") -> str:
    if page.effects is None or not page.effects.rows:
        return _missing(page, "batches")
    rows = page.effects.rows
    ceiling = max([r.output for r in rows if math.isfinite(r.output)], default=1.0)
    bars = [
        Bar(r.name, min(r.output, ceiling), r.role,
            f"{_of(r)} alone: output {_db(r.output)}, here {_db(r.here)}")
        for r in rows
    ]  # fmt: skip
    alone = _card(
        charts.columns(bars, "SQNR of the output with one quantizer on, in dB", "dB"),
        "SQNR of the model's output with one quantizer on: the lowest bars cost most",
    )
    points = [(float(i), r) for i, r in enumerate(rows)]
    kept = [
        Line("all quantizers on", [(i, r.together) for i, r in points]),
        Line("this one alone", [(i, r.here) for i, r in points]),
    ]
    kept = [k for k in kept if any(math.isfinite(v) for _, v in k.points)]
    added = _card(
        charts.lines(kept, "SQNR of each layer's result, in dB", across="quantizer", wide=True),
        "SQNR of each layer's result: where errors add up",
    ) if kept else ""  # fmt: skip
    legend = _legend([("weight", "a weight's"), ("activation", "an activation's")])
    intro = _say(
        "Against the float model, on a few samples. All quantizers on, the output has "
        f"<strong>{_db(page.effects.output)}</strong>."
    )
    return intro + legend + alone + added


def _legend(items: Sequence[tuple[str, str]]) -> str:
    text = "".join(f'<span><i class="{c}"></i>{escaped(t)}</span>' for c, t in items)
    return f'<div class="legend">{text}</div>'


def _distributions(page: "Page", role: str) -> str:
    held = [(r, h) for r, h in page.layers if r.role == role]
    shown = [(r, h) for r, h in held if h is not None and sum(h.counts)]
    if not held:
        return _say(f"No {role} is quantized.")
    if not shown:
        return _missing(page, "batches") if role == "activation" else ""
    shown.sort(key=lambda pair: pair[0].sqnr if pair[0].sqnr is not None else math.inf)
    cards = [_small(r, h) for r, h in shown]
    legend = _legend(
        [(role, f"{role}s"), ("levels", "levels of the grid"), ("clipped", "clipped")]
    )
    order = "the lowest SQNR first" if any(r.sqnr is not None for r, _ in shown) else "in order"
    intro = _say(
        f"{len(shown)} {role}s, {order}. Where channels have scales of their own, values are in "
        "steps of their channel's grid, so that one grid stands for all."
        if role == "weight"
        else f"{len(shown)} values, {order}: as the float model has them, before they are "
        "quantized."
    )
    text = intro + legend + f'<div class="grid">{"".join(cards[:_SHOWN])}</div>'
    if len(cards) > _SHOWN:
        text += (
            f"<details><summary>{len(cards) - _SHOWN} more with higher SQNR</summary>"
            f'<div class="grid">{"".join(cards[_SHOWN:])}</div></details>'
        )
    return text


def _small(row: LayerRow, h: Histogram | None) -> str:
    assert h is not None
    facts = [f"clipped {percent(row.clipped)}" if row.clipped is not None else ""]
    facts.append(f"levels {percent(row.levels)}" if row.levels is not None else "")
    facts.append(f"0: {percent(row.zeros)}" if row.zeros else "")
    facts.append(f"scale {short(row.scale)}" if row.scale is not None and row.scales == 1 else "")
    facts.append(f"{row.scales} scales" if row.scales > 1 else "")
    svg = charts.histogram(h, f"histogram of the {row.role} of {row.name}", row.role)
    every = svg.data.get("every")
    facts.append(f"a tick is {every} levels" if every else "")
    gain = ""
    if row.gain is not None and row.gain > 2 and row.best is not None:
        low, high = row.best
        gain = (
            f'<span class="bad"> · +{row.gain:.1f} dB with [{escaped(short(low))}, '
            f"{escaped(short(high))}]</span>"
        )
    name = escaped(row.name)
    return (
        f'<div class="small"><header><span class="name" title="{name}">{name}</span>'
        f'<span class="tag {row.role}">{escaped(row.form)}</span>'
        f'<span class="db">{_db(row.sqnr)}</span></header>'
        f'<div class="facts">{escaped(" · ".join(f for f in facts if f))}{gain}</div>{svg}</div>'
    )


def _sparsity(page: "Page") -> str:
    rows = [r for r, _ in page.layers if r.role == "weight" and r.sparsity is not None]
    if not rows:
        return ""
    count = max(sum(r.count for r in rows), 1)
    pruned = sum((r.sparsity or 0.0) * r.count for r in rows) / count
    after = sum((r.zeros or 0.0) * r.count for r in rows) / count
    intro = _say(
        f"<strong>{percent(pruned)}</strong> of {count:,} quantized weights are 0, "
        f"<strong>{percent(after)}</strong> are once they are rounded (pale)."
    )
    if pruned == 0 and after == 0:
        return intro
    bars = [
        Bar(r.name, r.sparsity or 0.0, "weight",
            f"{r.name}: {percent(r.sparsity or 0.0)} of {r.count:,} are 0, "
            f"{percent(r.zeros or 0.0)} after rounding", r.zeros)
        for r in rows
    ]  # fmt: skip
    return intro + _card(charts.columns(bars, "share of each weight that is 0", "share"))


# -- what others found


def _sensitivity(page: "Page") -> str:
    if page.sensitivity is None:
        return _missing(page, "sensitivity")
    scan = page.sensitivity
    ratios = sorted({r for layer in scan.found.values() for r in layer})
    order = sorted(scan.found, key=lambda n: min(scan.found[n].values()))
    lost = [[_lost(scan.baseline, scan.found[n].get(r)) for r in ratios] for n in order]
    shown = [[short(scan.found[n][r], 3) if r in scan.found[n] else "" for r in ratios]
             for n in order]  # fmt: skip
    heads = [f"{r:.0%}" for r in ratios]
    intro = _say(
        f"The result with one layer pruned by that share; nothing pruned: "
        f"<strong>{short(scan.baseline, 4)}</strong>. The stronger the colour, the more is lost."
    )
    drawn = charts.heatmap(order, heads, lost, shown, "sensitivity of each layer to pruning",
                           "share of the layer that is pruned")  # fmt: skip
    return intro + _card(drawn)


def _lost(baseline: float, value: float | None) -> float | None:
    return None if value is None else max(baseline - value, 0.0)


_SERIES = {
    "scale": ("Scales of the quantizers", True, False),
    "clipped": ("Share of each weight that is clipped", False, True),
    "sqnr": ("SQNR of the weights, in dB", False, False),
    "sparsity": ("Share of each weight that is 0", False, True),
    "oscillating": ("Share of each weight that oscillates", False, True),
    "frozen": ("Share of each weight that is frozen", False, True),
}


def _history(page: "Page") -> str:
    if page.history is None:
        return _missing(page, "history")
    recorder, plots, still = page.history, [], []
    for name in recorder.names("scalars"):
        points = [(float(s), v) for s, v in recorder.series("scalars", name)]
        if any(math.isfinite(v) for _, v in points):
            plots.append(_card(charts.lines([Line(name, points)], f"{name} over the steps"), name))
    for kind, (head, log, share) in _SERIES.items():
        series = [
            Line(n, [(float(s), v) for s, v in recorder.series(kind, n)])
            for n in recorder.names(kind)
        ]
        values = [v for line in series for _, v in line.points if math.isfinite(v)]
        if not values:
            continue
        if share and max(values) == 0:
            still.append(head.lower())
            continue
        plots.append(_card(charts.lines(series, f"{head}, over the steps", log=log, share=share),
                           head))  # fmt: skip
    first, last = recorder.records[0].step, recorder.records[-1].step
    intro = f"{len(recorder.records)} records, of steps {first} to {last}."
    if still:
        intro += f" 0 throughout: {escaped(', '.join(still))}."
    return _say(intro) + f'<div class="two">{"".join(plots)}</div>'


def _placement(page: "Page") -> str:
    if page.graph is None or not page.graph.steps:
        return _missing(page, "graph")
    graph = page.graph
    counts = graph.counts
    intro = (
        f"A tree of the modules, since {escaped(graph.note)}."
        if graph.note
        else "What <code>bp.convert</code> makes of the model, from top to bottom. A row is one "
        "operation, with what is computed together with it; lines at the left go round others. "
        "At the right: shape of a sample, integers of weight (w) and result (a)."
    )
    names = {
        "integer": "in integers",
        "quantized": "quantized, computed in float",
        "float": "float",
    }
    legend = _legend([(f, f"{n} {names[f]}") for f, n in counts.items()])
    drawn = f'<div class="scroll tall">{graphs.draw(graph)}</div>'
    text = _say(intro) + legend + _card(drawn)
    if page.floating:
        text += _card(table(["in float", "reason"], page.floating))
    return text


def _table(page: "Page") -> str:
    if not page.layers:
        return ""
    rows = [r for r, _ in page.layers]
    head = ["quantizer of", "role", "form", "scales", "scale", "clipped", "SQNR", "gain", "levels",
            "0 before", "0 after", "min", "max", "mean", "std"]  # fmt: skip

    def text(r: LayerRow) -> list[str]:
        general = ["–" if v is None else f"{v:.4g}" for v in (r.min, r.max, r.mean, r.std)]
        return [
            r.name, r.role, r.form, str(r.scales), "–" if r.scale is None else f"{r.scale:.4g}",
            _share(r.clipped), _db(r.sqnr), _db(r.gain), _share(r.levels), _share(r.sparsity),
            _share(r.zeros), *general,
        ]  # fmt: skip

    def keys(r: LayerRow) -> list[Any]:
        numbers = (r.scale, r.clipped, r.sqnr, r.gain, r.levels, r.sparsity, r.zeros, r.min, r.max,
                   r.mean, r.std)  # fmt: skip
        return [None, None, None, r.scales, *(-1e9 if v is None else v for v in numbers)]

    made = table(head, [text(r) for r in rows], sortable=True, keys=[keys(r) for r in rows])
    return (
        f"<details><summary>{len(rows)} quantizers; a click on a head sorts</summary>"
        f"{_card(made)}</details>"
    )
