"""Write the report's sections about single quantizers, as pieces of HTML."""

import math
from typing import Any

from bitpare.report import charts
from bitpare.report.charts import Bar
from bitpare.report.layers import LayerRow
from bitpare.report.page import Page
from bitpare.report.parts import card, db, legend_of, missing, named, say, share_of, table
from bitpare.report.svg import escaped, percent, short
from bitpare.report.tally import Histogram

_SHOWN = 24  # small plots that are shown unfolded


def overview(page: Page) -> str:
    text = ""
    for role in ("weight", "activation"):
        rows = [r for r, _ in page.layers if r.role == role and r.sqnr is not None]
        if rows:
            bars = [
                Bar(r.name, r.sqnr or 0.0, role,
                    f"{r.name}: {db(r.sqnr)}, {r.form}, clipped {share_of(r.clipped)}")
                for r in rows
            ]  # fmt: skip
            text += card(
                charts.columns(bars, f"SQNR of the {role}s, in dB"), f"{role.title()}s, in dB"
            )
    if not text:
        return missing(page, "data")
    intro = say(
        "How far quantization is below the values, for each quantizer by itself: 6 dB are one bit. "
        "A bar that is much lower than its neighbours marks a range or a number of bits that does "
        "not fit."
    )
    return intro + text


def lost_accuracy(page: Page) -> str:
    if page.effects is None or not page.effects.rows:
        return missing(page, "data")
    rows = page.effects.rows
    ceiling = max([r.output for r in rows if math.isfinite(r.output)], default=1.0)
    bars = [
        Bar(r.name, min(r.output, ceiling), r.role,
            f"{named(r)} alone: output {db(r.output)}, here {db(r.here)}")
        for r in rows
    ]  # fmt: skip
    alone = card(
        charts.columns(bars, "SQNR of the output with one quantizer on, in dB"),
        "SQNR of the model's output with one quantizer on, in dB: the lowest bars cost most",
    )
    both = [
        Bar(r.name, min(r.together, ceiling), r.role,
            f"{named(r)}: {db(r.together)} with all quantizers on, {db(r.here)} with this one",
            min(r.here, ceiling))
        for r in rows
    ]  # fmt: skip
    added = card(
        charts.columns(both, "SQNR of each layer's result, in dB"),
        "SQNR of each layer's result, in dB: all quantizers on, and (pale) this one alone",
    )
    legend = legend_of([("weight", "a weight's"), ("activation", "an activation's")])
    intro = say(
        "Against the float model, on a few samples. All quantizers on, the output has "
        f"<strong>{db(page.effects.output)}</strong>."
    )
    return intro + legend + alone + added


def distributions(page: Page, role: str) -> str:
    held = [(r, h) for r, h in page.layers if r.role == role]
    shown = [(r, h) for r, h in held if h is not None and any(h.counts)]
    if not held:
        return missing(page, role) or say(f"No {role} is quantized.")
    if not shown:
        return missing(page, "data") if role == "activation" else ""
    shown.sort(key=lambda pair: pair[0].sqnr if pair[0].sqnr is not None else math.inf)
    cards = [_small(r, h) for r, h in shown]
    grid = [("levels", "levels of the grid"), ("clipped", "clipped")]
    on_grid = any(h.ruler is not None for _, h in shown)
    legend = legend_of([(role, f"{role}s"), *(grid if on_grid else [])])
    known = any(r.sqnr is not None for r, _ in shown)
    order = "the lowest SQNR first" if known else "in the order of the layers"
    if role == "activation":
        told = f"{len(shown)} values, {order}: as the float model has them, before quantization."
    elif any(r.count and r.scale is None and r.sqnr is None for r, _ in shown):
        told = f"{len(shown)} weights, {order}."
    else:
        told = (
            f"{len(shown)} weights, {order}. Where channels have scales of their own, values are "
            "in steps of their channel's grid, so that one grid stands for all."
        )
    intro = say(told)
    text = intro + legend + f'<div class="grid">{"".join(cards[:_SHOWN])}</div>'
    if len(cards) > _SHOWN:
        text += (
            f"<details><summary>{len(cards) - _SHOWN} more</summary>"
            f'<div class="grid">{"".join(cards[_SHOWN:])}</div></details>'
        )
    return text


def _small(row: LayerRow, h: Histogram | None) -> str:
    assert h is not None
    svg = charts.histogram(h, f"histogram of the {row.role} of {row.name}", row.role)
    facts = [f"clipped {percent(row.clipped)}" if row.clipped is not None else ""]
    facts.append(f"levels {percent(row.levels)}" if row.levels is not None else "")
    facts.append(f"0: {percent(row.zeros)}" if row.zeros else "")
    more = [f"scale {short(row.scale)}" if row.scale is not None and row.scales == 1 else ""]
    more.append(f"{row.scales} scales" if row.scales > 1 else "")
    every = svg.data.get("every")
    more.append(f"a tick each {every} levels" if every else "")
    text = escaped(" · ".join(f for f in more if f))
    if row.gain is not None and row.gain > 2 and row.best is not None and not row.learned:
        low, high = row.best
        better = f"+{row.gain:.1f} dB with [{short(low, 2)}, {short(high, 2)}]"
        text = f'<span class="bad">{escaped(better)}</span>'
    name = escaped(row.name)
    return (
        f'<div class="small"><header><span class="name" title="{name}">{name}</span>'
        f'<span class="tag {row.role}">{escaped(row.form)}</span>'
        f'<span class="db">{db(row.sqnr) if row.sqnr is not None else ""}</span></header>'
        f'<div class="facts">{escaped(" · ".join(f for f in facts if f))}</div>'
        f'<div class="facts">{text}</div>{svg}</div>'
    )


def sparsity(page: Page) -> str:
    rows = [r for r, _ in page.layers if r.role == "weight" and r.sparsity is not None]
    if not rows:
        return ""
    count = max(sum(r.count for r in rows), 1)
    pruned = sum((r.sparsity or 0.0) * r.count for r in rows) / count
    after = sum((r.zeros or 0.0) * r.count for r in rows) / count
    rounded = any(r.zeros is not None for r in rows)
    more = f", <strong>{percent(after)}</strong> are once they are rounded (pale)"
    intro = say(
        f"<strong>{percent(pruned)}</strong> of {count:,} weights are 0{more if rounded else ''}."
    )
    if pruned == 0 and after == 0:
        return intro
    bars = [
        Bar(r.name, r.sparsity or 0.0, "weight",
            f"{r.name}: {percent(r.sparsity or 0.0)} of {r.count:,} are 0, "
            f"{share_of(r.zeros)} after rounding", r.zeros)
        for r in rows
    ]  # fmt: skip
    return intro + card(
        charts.columns(bars, "share of each weight that is 0", share=True, lowest=False)
    )


def in_numbers(page: Page) -> str:
    if not page.layers:
        return ""
    rows = [r for r, _ in page.layers]
    head = ["name", "role", "form", "scales", "scale", "clipped", "SQNR", "gain", "levels",
            "0 before", "0 after", "min", "max", "mean", "std"]  # fmt: skip

    def text(r: LayerRow) -> list[str]:
        general = ["–" if v is None else f"{v:.4g}" for v in (r.min, r.max, r.mean, r.std)]
        return [
            r.name, r.role, r.form, str(r.scales), "–" if r.scale is None else f"{r.scale:.4g}",
            share_of(r.clipped), db(r.sqnr), db(r.gain), share_of(r.levels), share_of(r.sparsity),
            share_of(r.zeros), *general,
        ]  # fmt: skip

    def keys(r: LayerRow) -> list[Any]:
        numbers = (r.scale, r.clipped, r.sqnr, r.gain, r.levels, r.sparsity, r.zeros, r.min, r.max,
                   r.mean, r.std)  # fmt: skip
        return [None, None, None, r.scales, *(-1e9 if v is None else v for v in numbers)]

    made = table(head, [text(r) for r in rows], sortable=True, keys=[keys(r) for r in rows])
    return (
        f"<details><summary>{len(rows)} rows; a click on a head sorts</summary>"
        f"{card(made)}</details>"
    )
