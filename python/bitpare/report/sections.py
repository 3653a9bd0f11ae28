"""Write the sections of a report, as pieces of HTML."""

import math
from collections.abc import Callable, Sequence

from bitpare.report import charts, graphs
from bitpare.report.charts import Bar, Line
from bitpare.report.layer_sections import (
    distributions,
    in_numbers,
    lost_accuracy,
    overview,
    sparsity,
)
from bitpare.report.layers import LayerRow
from bitpare.report.page import Page
from bitpare.report.parts import bytes_of, card, db, legend_of, missing, named, say, table
from bitpare.report.summary import SummaryRow
from bitpare.report.svg import escaped, percent, short


def all_of(page: Page) -> list[tuple[str, str]]:
    """Return the titles and texts of the sections, in order."""
    return [
        ("What stands out", _findings(page)),
        ("Size and speed", _sizes(page)),
        ("Signal to noise", overview(page)),
        ("Lost accuracy", lost_accuracy(page)),
        ("Weights", distributions(page, "weight")),
        ("Activations", distributions(page, "activation")),
        ("Sparsity", sparsity(page)),
        ("Sensitivity to pruning", _sensitivity(page)),
        ("Over time", _history(page)),
        ("Placement", _placement(page)),
        ("In numbers", in_numbers(page)),
    ]


# -- the head


def tiles(page: Page) -> str:
    rows = [r for r, _ in page.layers]
    found: list[tuple[str, str]] = []
    if page.summary is not None:
        first, last = page.summary.rows[0], page.summary.rows[-1]
        last = next((r for r in page.summary.rows if r.kind == "integer"), last)
        found.append((bytes_of(last.bytes), f"file, {last.name}"))
        if last is not first:
            found.append(
                (f"{first.bytes / max(last.bytes, 1):.2f} ×", f"smaller than {first.name}")
            )
        if last.p50 > 0:
            found.append((f"{last.p50 * 1e3:.3g} ms", f"median call, {last.name}"))
    weights = [r for r in rows if r.role == "weight" and r.sparsity is not None]
    count = sum(r.count for r in weights)
    if count:
        pruned = sum((r.sparsity or 0.0) * r.count for r in weights) / count
        found.append((percent(pruned), "of the weights are 0"))
    if page.effects is not None:
        found.append((db(page.effects.output), "SQNR of the outputs"))
    known = [r for r in rows if r.sqnr is not None]
    if known:
        worst = min(known, key=lambda r: r.sqnr or 0.0)
        found.append((db(worst.sqnr), f"lowest SQNR: {worst.role} of {worst.name}"))
    text = "".join(
        f'<div class="tile"><b>{escaped(a)}</b><span>{escaped(b)}</span></div>' for a, b in found
    )
    return f'<div class="tiles">{text}</div>' if text else ""


def _findings(page: Page) -> str:
    rows = [r for r, _ in page.layers]
    said: list[str] = []
    if page.effects is not None and page.effects.rows:
        worst = page.effects.worst(3)
        names = ", ".join(f"<strong>{escaped(named(r))}</strong> ({db(r.output)})" for r in worst)
        said.append(
            f"Turned on alone, these disturb the model's output most: {names}; all quantizers "
            f"together leave {db(page.effects.output)}."
        )
    said += _said_of(rows)
    if page.floating:
        names = ", ".join(f"<strong>{escaped(name)}</strong>" for name, _ in page.floating[:4])
        more = f" and {len(page.floating) - 4} more" if len(page.floating) > 4 else ""
        said.append(f"In float: {names}{more}; the reasons are under Placement.")
    if not said and not any(r.clipped is not None for r in rows):
        return ""
    if not said:
        said = [
            "Of what was measured, nothing clips more than 1 % of its values, leaves half of its "
            "levels unused, or would gain 2 dB by another range."
        ]
    return card(f'<ul class="findings">{"".join(f"<li>{s}</li>" for s in said)}</ul>')


def _said_of(rows: Sequence[LayerRow]) -> list[str]:
    """Return sentences about quantizers whose range or bits do not fit their values."""
    checks: list[tuple[str, Callable[[LayerRow], float], float, Callable[[LayerRow], str]]] = [
        (
            "clip more than 1 % of their values",
            lambda r: r.clipped or 0.0,
            0.01,
            lambda r: percent(r.clipped or 0.0),
        ),
        (
            'would gain more than 2 dB by a range of least squared error, <code>range="mse"</code>',
            lambda r: 0.0 if r.learned else r.gain or 0.0,
            2.0,
            lambda r: f"{r.gain:.1f} dB",
        ),
        (
            "use less than half of their levels: their values are few, or their range is too wide",
            lambda r: 1 - (r.levels if r.levels is not None and r.count > 2 << r.bits else 1.0),
            0.5,
            lambda r: percent(r.levels or 0.0),
        ),
    ]
    said = []
    for text, value, bound, shown in checks:
        found = sorted((r for r in rows if value(r) > bound), key=value, reverse=True)
        if found:
            told = [f"<strong>{escaped(named(r))}</strong> ({shown(r)})" for r in found[:4]]
            more = f" and {len(found) - 4} more" if len(found) > 4 else ""
            said.append(f"{len(found)} of {len(rows)} quantizers {text}: {', '.join(told)}{more}.")
    broken = [r for r in rows if r.count and (r.min is None or r.std is None)]
    if broken:
        names = ", ".join(f"<strong>{escaped(named(r))}</strong>" for r in broken[:6])
        said.append(f"NaN or infinite values: {names}.")
    unknown = [r.name for r in rows if r.role == "activation" and r.count and r.sqnr is None]
    if unknown:
        said.append(f"Not calibrated: {escaped(', '.join(unknown[:6]))}.")
    return said


# -- sizes


def _sizes(page: Page) -> str:
    if page.summary is None:
        return missing(page, "summary")
    rows = page.summary.rows
    style = {"float": "float", "prepared": "quantized"}
    first = rows[0]

    def bar(r: SummaryRow, value: float, extra: float, hover: str) -> Bar:
        return Bar(r.name, value, style.get(r.kind, "integer"), f"{r.name}: {hover}", extra)

    sizes = [
        bar(r, r.bytes, r.compressed, f"{r.bytes:,} bytes, {r.compressed:,} compressed by zlib")
        for r in rows
    ]
    told = [f"{bytes_of(r.bytes)}  ({r.bytes / max(first.bytes, 1):.0%})" for r in rows]
    text = card(charts.rows(sizes, "bytes of the file of each model", told),
                 "Bytes of the file; the strip: compressed")  # fmt: skip
    timed = [r for r in rows if r.p50 > 0]
    if timed:
        bars = [
            bar(r, r.p50, r.p95, f"median {r.p50 * 1e3:.3f} ms, 95 % within {r.p95 * 1e3:.3f} ms")
            for r in timed
        ]
        shown = [f"{r.p50 * 1e3:.3g} ms  (95 %: {r.p95 * 1e3:.3g})" for r in timed]
        text += card(charts.rows(bars, "latency of a call of each model", shown, whisker=True),
                      "Time of a call: median, and the 95th percentile")  # fmt: skip
    return (
        f'<div class="two">{text}</div><br>' + card(_summary_table(rows)) + missing(page, "summary")
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
            f"{r.macs:,}" if r.macs else "–",
            f"{r.p50 * 1e3:.3f} ms" if r.p50 else "–",
            f"{r.p95 * 1e3:.3f} ms" if r.p95 else "–",
        ]
        for r in rows
    ]
    return table(head, cells)


# -- quantizers


# -- what others found


def _sensitivity(page: Page) -> str:
    if page.sensitivity is None:
        return missing(page, "sensitivity")
    scan = page.sensitivity
    ratios = sorted({r for layer in scan.found.values() for r in layer})
    order = sorted(scan.found, key=lambda n: min(scan.found[n].values()))
    lost = [[_lost(scan.baseline, scan.found[n].get(r)) for r in ratios] for n in order]
    shown = [[short(scan.found[n][r], 3) if r in scan.found[n] else "" for r in ratios]
             for n in order]  # fmt: skip
    heads = [f"{r:.0%}" for r in ratios]
    intro = say(
        f"The result with one layer pruned by that share; nothing pruned: "
        f"<strong>{short(scan.baseline, 4)}</strong>. The stronger the colour, the more is lost."
    )
    drawn = charts.heatmap(order, heads, lost, shown, "sensitivity of each layer to pruning",
                           "share of the layer that is pruned")  # fmt: skip
    return intro + card(drawn)


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


def _history(page: Page) -> str:
    if page.history is None:
        return missing(page, "history")
    recorder, plots, still = page.history, [], []
    for name in recorder.names("scalars"):
        points = [(float(s), v) for s, v in recorder.series("scalars", name)]
        if any(math.isfinite(v) for _, v in points):
            plots.append(card(charts.lines([Line(name, points)], f"{name} over the steps"), name))
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
        plots.append(card(charts.lines(series, f"{head}, over the steps", log=log, share=share),
                           head))  # fmt: skip
    first, last = recorder.records[0].step, recorder.records[-1].step
    intro = f"{len(recorder.records)} records, of steps {first} to {last}."
    if still:
        intro += f" 0 throughout: {escaped(', '.join(still))}."
    return say(intro) + f'<div class="two">{"".join(plots)}</div>'


def _placement(page: Page) -> str:
    if page.graph is None or not page.graph.steps:
        return missing(page, "graph")
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
    legend = legend_of([(f, f"{n} {names[f]}") for f, n in counts.items()])
    drawn = f'<div class="scroll tall">{graphs.draw(graph)}</div>'
    text = say(intro) + legend + card(drawn)
    if page.floating:
        text += card(table(["in float", "reason"], page.floating))
    return text
