"""Test the comparison with other tools: measurements, tables and plots."""

import json
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))

import plots
import tables
import timing
from peers import ADAPTERS, adapter, report, steps

BENCHMARKS = pathlib.Path(plots.__file__).parent
MACHINE = {"cpu": "a processor", "threads": "2", "instruction set": "avx512", "gpu": "none",
           "torch": "2.11.0", "python": "3.11"}  # fmt: skip


def run(*arguments):
    command = [sys.executable, BENCHMARKS / "peers" / "run.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_measurements_and_tools_that_are_missing(tmp_path):
    tools = ["bitpare", "NNCF"]
    options = ("--quick", "--threads", 1, "--only", "steps", "kernels")
    done = run(*options, "--tools", *tools, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "peers-steps-cpu.json").read_text())
    rows = {row["tool"]: row for row in found["rows"]}
    assert list(rows) == tools and found["versions"]["torch"]
    assert rows["bitpare"]["quantizers"] == 8  # four weights, four inputs
    times = rows["bitpare"]["ratio"]
    assert 0 < times["p20"] <= times["median"] <= times["p80"]
    try:
        adapter("NNCF")
    except ImportError:
        assert "No module named 'nncf'" in rows["NNCF"]["reason"]
        assert "No module named 'nncf'" in done.stdout
    losses = json.loads((tmp_path / "peers-kernels-cpu.json").read_text())["rows"][0]
    assert {"eager", "bitpare"} <= set(losses["seconds"])
    assert "Liger" in losses["failed"] or "Liger" in losses["seconds"]
    text, pictures = report.section(tmp_path)
    assert "| NNCF |" in text and list(pictures) == ["peers-steps-cpu.svg"]


def test_half_a_result_is_not_stored():
    refused = run("--quick", "--save")
    assert refused.returncode == 2 and "without --quick" in refused.stderr


@pytest.mark.parametrize("tool", ADAPTERS)
def test_an_adapter_trains_and_converts(tool):
    try:
        made = adapter(tool)
    except ImportError as error:
        pytest.skip(str(error))
    model, x, y = steps.problem("LeNet@64x8")
    qat = made.prepare(model, [x])
    assert made.quantizers(qat) >= 8
    step, optimizer = steps.step_of(qat, x, y)
    made.schedule(qat, optimizer, 10)
    before = [p.detach().clone() for p in qat.parameters()]
    for _ in range(12):
        step()
    assert all((p != b).any() for p, b in zip(qat.parameters(), before, strict=True) if p.dim() > 1)
    if hasattr(made, "convert"):
        qat.eval()
        with torch.no_grad():
            result, expected = made.convert(qat, x)(x), qat(x)
        assert (result - expected).abs().max() < 0.1 * expected.abs().max()


def test_ratios_are_those_within_a_round():
    """Check that rounds which are slow for both functions count like any other."""
    found = timing.ratio([1.0, 20.0, 1.0, 20.0, 1.0], [2.0, 40.0, 2.0, 40.0, 2.0])
    assert vars(found) == {"median": 0.5, "p20": 0.5, "p80": 0.5}


def test_bars():
    rows = [
        plots.Bar("ours & <theirs>", 0.5, 0.4, 0.6, "0.50", ours=True),
        plots.Bar("another", 2.0, note="2.00"),
        plots.Bar("missing", None, note="not measured"),
    ]
    text = plots.bars("Title", {"group": rows}, "unit", mark=1.0)
    assert text == plots.bars("Title", {"group": rows}, "unit", mark=1.0)
    root = ET.fromstring(text)
    name = "{http://www.w3.org/2000/svg}"
    drawn = [r for r in root.iter(f"{name}rect") if r.get("x")]
    assert len(drawn) == 2 and drawn[0].get("fill") != drawn[1].get("fill")
    assert float(drawn[1].get("width")) == pytest.approx(4 * float(drawn[0].get("width")), rel=0.01)
    shown = [t.text for t in root.iter(f"{name}text")]
    assert {"Title", "unit", "group", "ours & <theirs>", "not measured"} <= set(shown)
    right = max(float(r.get("x")) + float(r.get("width")) for r in drawn)
    assert right < float(root.get("width"))


def test_rows_without_a_measurement_stay(tmp_path):
    assert report.section(tmp_path) == ("", {})
    assert "peers" not in tables.tables(tmp_path)[0]
    times = {"median": 2e-3, "p20": 1e-3, "p80": 3e-3}
    parts = {
        "latency": [
            {"model": "m", "batch": 1, "seconds": {"bitpare": times, "slow": times},
             "ratio": {"bitpare": times, "slow": {"median": 1.5, "p20": 1.4, "p80": 1.6}},
             "failed": {"broken": "ValueError: no"}},
        ],
        "accuracy": [
            {"tool": "bitpare", "name": "d", "bits": 8, "float": [98.0, 97.0],
             "after": [97.0, 98.0], "converted": [], "epochs": 5},
            {"tool": "broken", "name": "d", "bits": 4, "reason": "ValueError: no"},
        ],
        "pruning": [
            {"channels": "m", "left": {"bitpare": {"macs": 0.25, "parameters": 0.5}},
             "pruning": {"bitpare": times}, "forward": {"whole": times, "bitpare": times},
             "failed": {"broken": "ValueError: no"}},
            {"masks": "m@2x8", "reason": "ValueError: no"},
        ],
    }  # fmt: skip
    for part, rows in parts.items():
        stored = {"machine": MACHINE, "versions": {"torch": "2.11.0"}, "rows": rows}
        (tmp_path / f"peers-{part}-cpu.json").write_text(json.dumps(stored))
    text, pictures = report.section(tmp_path)
    assert list(pictures) == ["peers-latency-cpu.svg"]
    for line in (
        "![Integer models](plots/peers-latency-cpu.svg)",
        "| m | 1 | bitpare | 2.00 | 1 |",
        "| m | 1 | slow | 2.00 | 1.50 (1.40–1.60) |",
        "| m | 1 | broken | — | ValueError: no |",
        "| d | 8 | bitpare | 5 | 97.50 (98.0, 97.0) | 97.50 (97.0, 98.0) | — |",
        "| d | 4 | broken | — | — | — | ValueError: no |",
        "| m | bitpare | 2 | 0.25 | 0.50 | 2.00 | 2.00 |",
        "| m | broken | — | ValueError: no | — | — | — |",
        "| m, 8 px, batch 2 | — | ValueError: no | — |",
    ):
        assert line in text.splitlines(), text
    assert tables.tables(tmp_path)[0]["peers"] == text
