"""Write the tables of README.md and docs/benchmarks.md, and docs/plots/, from benchmarks/results/.

    python benchmarks/tables.py [--check]

A table lies between <!-- benchmark:NAME --> and <!-- end -->. --check writes nothing and lists the
tables and plots that are out of date.
"""

import argparse
import json
import pathlib
import re
import sys
from typing import Any

from peers import report

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLOTS = ROOT / "docs" / "plots"
# The most important rows, which README shows.
SHORT = [
    ("fake_quant", "forward", "2^16"),
    ("fake_quant", "forward", "2^20"),
    ("fake_quant", "forward", "2^24"),
    ("fake_quant", "backward", "2^20"),
    ("fake_quant per channel", "forward", "activation NCHW [16, 64, 32, 32]"),
    ("fake_quant per channel", "forward", "activation NHWC [16, 64, 32, 32]"),
    ("fake_quant", "both, autograd", "64"),
    ("fake_quant_lsq", "both, autograd", "2^20"),
]


def measured_on(stored: dict[str, Any]) -> list[str]:
    machine = stored["machine"]
    where = machine["gpu"] if machine["gpu"] != "none" else (
        f"{machine['cpu']}, {machine['threads']} threads, {machine['instruction set']}"
    )  # fmt: skip
    return [f"Measured on {where}; torch {machine['torch']}.", ""]


def table(stored: dict[str, Any], chosen: list[tuple[str, str, str]] | None) -> str:
    lines = [
        *measured_on(stored),
        "| op | pass | size | dtype | µs | of a copy's speed | times faster than |",
        "|---|---|---|---|---:|---:|---|",
    ]
    for row in stored["rows"]:
        key = (row["op"], row["what"], row["shape"])
        if chosen is not None and (key not in chosen or row["dtype"] != "float32"):
            continue
        peers = ", ".join(f"{name} {ratio}" for name, ratio in row["times_faster"].items())
        lines.append(
            f"| {row['op']} | {row['what']} | {row['shape']} | {row['dtype']} "
            f"| {row['microseconds']['bitpare']['median']:.1f} | {row['share_of_copy']:.0%} "
            f"| {peers or '—'} |"
        )
    return "\n".join(lines)


def step_table(stored: dict[str, Any]) -> str:
    """Return the table of qat_step.py."""
    lines = [
        *measured_on(stored),
        "| model, batch x pixels | float ms | channels_last | quantized ms | channels_last "
        "| ratio of the faster | peak MiB of these, float | quantized | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in stored["rows"]:
        ms = [f"{times['median'] * 1e3:.1f}" for times in row["seconds"].values()]
        peak = [f"{row['peak_mib'][kind]:.0f}" for kind in row["fastest"]]
        lines.append(
            f"| {row['model'].replace('@', ', ')} | {' | '.join(ms)} | {row['ratio']:.2f} "
            f"| {' | '.join(peak)} | {row['memory_ratio']:.2f} |"
        )
    return "\n".join(lines)


def prune_table(stored: dict[str, Any]) -> str:
    """Return the table of prune.py or linear.py. Each block is compared with its first line."""
    lines = [
        *measured_on(stored),
        "| what | how | ms | times the first |",
        "|---|---|---:|---:|",
    ]
    for row in stored["rows"]:
        first = next(iter(row["seconds"].values()))["median"]
        lines += [
            f"| {row['name']} | {kind} | {t['median'] * 1e3:.2f} | {t['median'] / first:.2f} |"
            for kind, t in row["seconds"].items()
        ]
    return "\n".join(lines)


def distill_table(stored: dict[str, Any]) -> str:
    """Return the table of distill.py."""
    lines = [
        *measured_on(stored),
        "| loss | of | computed by | ms | times as long | memory, in gradients |",
        "|---|---|---|---:|---:|---:|",
    ]
    for row in stored["rows"]:
        ours = row["seconds"]["bitpare"]["median"]
        for kind, t in row["seconds"].items():
            memory = f"{row['memory'][kind]:.2f}" if kind in row["memory"] else "—"
            lines.append(
                f"| `{row['op']}` | {row['shape']} | {kind} | {t['median'] * 1e3:.2f} "
                f"| {t['median'] / ours:.2f} | {memory} |"
            )
    return "\n".join(lines)


def integer_table(stored: dict[str, Any]) -> str:
    """Return the table of integer.py."""
    lines = [
        *measured_on(stored),
        "| model | images | computed by | ms | of bitpare's time | file, of float's bytes |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for row in stored["rows"]:
        ours = row["seconds"]["bitpare"]["median"]
        for kind, t in row["seconds"].items():
            size = f"{row['bytes']:.3f}" if kind == "bitpare" else "—"
            lines.append(
                f"| {row['model']} | {row['batch']} | {kind} | {t['median'] * 1e3:.2f} "
                f"| {t['median'] / ours:.2f} | {size} |"
            )
    return "\n".join(lines)


SHAPES = {  # the prefix of other results -> the function for their table
    "qat-step": step_table,
    "prune": prune_table,
    "linear": prune_table,
    "integer": integer_table,
    "distill": distill_table,
}


def tables(results: pathlib.Path = RESULTS) -> tuple[dict[str, str], dict[str, str]]:
    """Return the tables by name, and the plots by file name."""
    made = {}
    for path in sorted(results.glob("*.json")):
        if path.stem.startswith("peers"):
            continue
        stored = json.loads(path.read_text())
        shape = next((f for name, f in SHAPES.items() if path.stem.startswith(name)), None)
        if shape is not None:
            made[path.stem] = shape(stored)
            continue
        made[path.stem] = table(stored, None)
        made[f"{path.stem}-short"] = table(stored, SHORT)
    section, plots = report.section(results)
    if section:
        made["peers"] = section
    return made, plots


def filled(text: str, made: dict[str, str]) -> str:
    def replace(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- benchmark:{name} -->\n{made.get(name, 'not measured yet')}\n<!-- end -->"

    return re.sub(r"<!-- benchmark:([\w-]+) -->.*?<!-- end -->", replace, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    (made, plots), stale = tables(), []
    for path in (ROOT / "README.md", ROOT / "docs" / "benchmarks.md"):
        text = path.read_text()
        new = filled(text, made)
        if new != text:
            stale.append(path.name)
            if not options.check:
                path.write_text(new)
    for name, new in plots.items():
        path = PLOTS / name
        if not path.exists() or path.read_text() != new:
            stale.append(f"plots/{name}")
            if not options.check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(new)
    if stale:
        print(f"{'out of date' if options.check else 'written'}: {', '.join(stale)}")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
