"""Write the section of docs/benchmarks.md about other tools, and its plots, from the stored
results."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import plots

Stored = dict[str, Any]
WHISKERS = "bars: median; lines: 20th to 80th percentile of the rounds"


def percent(values: list[float]) -> str:
    """Format the mean, and each run if there are several."""
    if not values:
        return "—"
    mean = f"{sum(values) / len(values):.2f}"
    each = ", ".join(f"{v:.1f}" for v in values)
    return mean if len(values) == 1 else f"{mean} ({each})"


def spread(t: dict[str, float], factor: float = 1.0, digits: int = 2) -> str:
    median, low, high = (t[k] * factor for k in ("median", "p20", "p80"))
    return f"{median:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def shown(work: str) -> str:
    name, shape = work.split("@")
    batch, size = shape.split("x")
    return f"{name}, {size} px, batch {batch}"


def filled(
    lines: list[str],
    rows: list[dict[str, Any]],
    head: Callable[[dict[str, Any]], str],
    cells: Callable[[dict[str, Any]], list[str]],
    unknown: str,
) -> list[str]:
    """Return the rows of a table. A row that could not be measured shows the reason, if ``unknown``
    has a column for it."""
    for row in rows:
        found = [unknown.format(row["reason"])] if "reason" in row else cells(row)
        lines += [f"| {head(row)} | {line} |" for line in found]
    return lines


def steps(stored: Stored) -> list[str]:
    lines = [
        "A step is forward, loss, backward and SGD with momentum; the ratio is that of the faster "
        "layout of the tool to the faster layout of the float model, round by round, both taking "
        "turns in one process: median (20th–80th percentile). Peak memory is what three steps of a "
        "fresh process need beyond what it holds before them. All have 8-bit weights per channel "
        "and 8-bit activations, of which torch.ao FX leaves a bit unused (its default for x86); "
        "quantizers says how many of them the tool put into the model.",
        "",
        "| model | tool | quantizers | ms | of float's time | layout | peak MiB | of float's |",
        "|---|---|---:|---:|---:|---|---:|---:|",
    ]

    def cells(row: dict[str, Any]) -> list[str]:
        ms = row["seconds"][f"{row['tool']} {row['layout']}"]["median"] * 1e3
        memory = "— | —"
        if "peak_mib" in row:
            memory = f"{row['peak_mib']:.1f} | {row['peak_mib'] / row['float_mib']:.2f}"
        measured = (row["quantizers"], f"{ms:.1f}", spread(row["ratio"]), row["layout"], memory)
        return [" | ".join(map(str, measured))]

    def head(row: dict[str, Any]) -> str:
        return f"{shown(row['work'])} | {row['tool']}"

    return filled(lines, stored["rows"], head, cells, "— | — | — | {} | — | —")


def accuracy(stored: Stored) -> list[str]:
    lines = [
        "From the same float models, the same epochs of the same batches with the same optimizer; "
        "float is trained on without quantization for as long. 4 bits are those of all weights and "
        "activations; bitpare learns its scales there, Brevitas those of activations, and torch.ao "
        "FX, which has no such setting of its own, observes ranges. Epochs and learning rates are "
        "those of bitpare's accuracy tests; none were searched for the other tools, which may do "
        "better with their own. Percent of the test images: mean (each seed). An image is 0.2 "
        "points of a seed of the real digits and 0.05 of the composed ones, which have one seed: "
        "small differences do not rank the tools.",
        "",
        "| data | bits | tool | epochs | before, in float | after | converted to integers |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]

    def cells(row: dict[str, Any]) -> list[str]:
        found = " | ".join(percent(row[k]) for k in ("float", "after", "converted"))
        return [f"{row['epochs']} | {found}"]

    def head(row: dict[str, Any]) -> str:
        return f"{row['name']} | {row['bits']} | {row['tool']}"

    return filled(lines, stored["rows"], head, cells, "— | — | — | {}")


def compared(row: dict[str, Any], base: str, digits: int = 2) -> list[str]:
    """Return rows of seconds and ratios, then the failed measurements."""
    lines = [
        f"{name} | {t['median'] * 1e3:.{digits}f} "
        f"| {'1' if name == base else spread(row['ratio'][name])}"
        for name, t in row["seconds"].items()
    ]
    return lines + [f"{name} | — | {why}" for name, why in row["failed"].items()]


def latency(stored: Stored) -> list[str]:
    lines = [
        "MobileNetV2 at 224 px in integers as each tool leaves it, and in float with BatchNorm "
        "folded. All take turns in one process, each after a pause, since the threads of ONNX "
        "Runtime spin for a while after a call.",
        "",
        "| model | images | computed by | ms | of bitpare's time |",
        "|---|---:|---|---:|---:|",
    ]

    def head(row: dict[str, Any]) -> str:
        return f"{row['model']} | {row['batch']}"

    return filled(lines, stored["rows"], head, lambda row: compared(row, "bitpare"), "— | — | {}")


def pruning(stored: Stored) -> list[str]:
    removed = [
        "Half of the channels removed, the least by magnitude; forward: one image at 96 px, "
        "channels_last.",
        "",
        "| model | by | ms to prune | MACs left | parameters left | forward ms, whole | pruned |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    masked = [
        "",
        "A training step with masks on 90 % of the weights, which do not change, against one "
        "without.",
        "",
        "| model | masks by | ms | of float's time |",
        "|---|---|---:|---:|",
    ]

    def by_tool(row: dict[str, Any]) -> list[str]:
        whole = row["forward"]["whole"]["median"] * 1e3
        found = []
        for tool, left in row["left"].items():
            ms = [row[k][tool]["median"] * 1e3 for k in ("pruning", "forward")]
            found.append(
                f"{tool} | {ms[0]:.0f} | {left['macs']:.2f} | {left['parameters']:.2f} "
                f"| {whole:.2f} | {ms[1]:.2f}"
            )
        return found + [f"{k} | — | {why} | — | — | —" for k, why in row["failed"].items()]

    rows = [[r for r in stored["rows"] if key in r] for key in ("channels", "masks")]
    filled(removed, rows[0], lambda r: r["channels"], by_tool, "— | {} | — | — | — | —")
    filled(masked, rows[1], lambda r: shown(r["masks"]), lambda r: compared(r, "float", 1),
           "— | {} | —")  # fmt: skip
    return removed + masked


def kernels(stored: Stored) -> list[str]:
    lines = [
        "Cross entropy and the soft loss of a teacher, forward and backward. Fake quantization "
        "beside Brevitas' and NNCF's is in the first table of this page.",
        "",
        "| shape | computed by | ms | of bitpare's time |",
        "|---|---|---:|---:|",
    ]
    return filled(
        lines,
        stored["rows"],
        lambda row: str(row["shape"]),
        lambda row: compared(row, "bitpare"),
        "— | — | {}",
    )


def step_plots(stored: Stored) -> dict[str, str]:
    times: dict[str, list[plots.Bar]] = {}
    memory: dict[str, list[plots.Bar]] = {}
    for row in stored["rows"]:
        name, ours = row["tool"], row["tool"] == "bitpare"
        group = times.setdefault(shown(row["work"]), [])
        if "reason" in row:
            group.append(plots.Bar(name, None, note="not measured", ours=ours))
            continue
        r = row["ratio"]
        note = f"{r['median']:.2f}"
        group.append(plots.Bar(name, r["median"], r["p20"], r["p80"], note, ours))
        if "peak_mib" in row:
            share = row["peak_mib"] / row["float_mib"]
            of_memory = memory.setdefault(shown(row["work"]), [])
            of_memory.append(plots.Bar(name, share, note=f"{share:.2f}", ours=ours))
    title = "Time of a training step of int8 quantization-aware training"
    unit = "of the float model's, shorter is better"
    made = {"steps": plots.bars(title, times, f"{unit}; {WHISKERS}", 1.0, "float")}
    if memory:
        made["memory"] = plots.bars("Peak memory of a training step", memory, unit, 1.0, "float")
    return made


def latency_plots(stored: Stored) -> dict[str, str]:
    groups = {}
    for row in stored["rows"]:
        if "reason" in row:
            continue
        groups[f"{row['model']}, batch {row['batch']}"] = [
            plots.Bar(name, r["median"], r["p20"], r["p80"],
                      f"{row['seconds'][name]['median'] * 1e3:.1f} ms", name == "bitpare")
            for name, r in row["ratio"].items()
        ]  # fmt: skip
    if not groups:
        return {}
    title = "Time of a call of integer models at 224 px"
    return {
        "latency": plots.bars(title, groups, f"of bitpare's, shorter is better; {WHISKERS}", 1.0)
    }


PARTS = {  # in the order of the section: title, table, plots
    "steps": ("Training steps", steps, step_plots),
    "accuracy": ("Accuracy", accuracy, None),
    "latency": ("Integer models", latency, latency_plots),
    "pruning": ("Pruning", pruning, None),
    "kernels": ("Losses", kernels, None),
}


def section(results: pathlib.Path) -> tuple[str, dict[str, str]]:
    """Return the text of all measurements and the plots by file name, empty without
    measurements."""
    lines: list[str] = []
    pictures: dict[str, str] = {}
    for part, (title, table, draw) in PARTS.items():
        for path in sorted(results.glob(f"peers-{part}-*.json")):
            stored = json.loads(path.read_text())
            machine = stored["machine"]
            made = draw(stored) if draw else {}
            named = {f"peers-{k}-{path.stem.split('-')[-1]}.svg": v for k, v in made.items()}
            pictures |= named
            where = machine["gpu"] if machine["gpu"] != "none" else machine["cpu"]
            with_tools = ", ".join(f"{k} {v}" for k, v in stored["versions"].items())
            measured = f"Measured on {where}, {machine['threads']} threads; {with_tools}."
            lines += [
                f"### {title}", "",
                *([] if measured in lines else [measured, ""]),
                *(line for name in named for line in (f"![{title}](plots/{name})", "")),
                *table(stored), "",
            ]  # fmt: skip
    return "\n".join(lines).strip(), pictures
