"""Draws docs/images/results.svg from benchmarks/results/.

    python tools/pictures.py [--check]

--check says whether the picture is out of date instead of drawing it.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "results.svg"
OURS, THEIRS = "#0b6e4f", "#c97b1a"
ROW, BAR, LEFT, SCALE = 22, 14, 240, 150  # pixels; SCALE: of a bar of length 1
WIDTH, TOP = 945, 80


@dataclasses.dataclass
class Bar:
    label: str
    value: float
    colour: str


def stored(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / name).read_text())
    return found


def training() -> list[Bar]:
    """A step of each network: the faster layout of both sides, as in the table."""
    found = []
    for row in stored("qat-step-cpu.json")["rows"]:
        model, _, size = row["model"].partition("@")
        batch, pixels = size.split("x")
        found.append(Bar(f"{model}, {batch} images of {pixels} px", row["ratio"], OURS))
    return found


def inference() -> list[Bar]:
    """A call of each integer network against torch's of the float one."""
    found = []
    for row in stored("integer-cpu.json")["rows"]:
        name = f"{row['model']}, {row['batch']} image{'s' * (row['batch'] > 1)}"
        whole = row["seconds"]["torch, float"]["median"]
        for kind, said, colour in (
            ("bitpare", f"{name}: bitpare", OURS),
            ("onnxruntime", "ONNX Runtime", THEIRS),
        ):
            found.append(Bar(said, row["seconds"][kind]["median"] / whole, colour))
    return found


def text(x: float, y: float, said: str, **options: Any) -> str:
    given = "".join(f' {k.replace("_", "-")}="{v}"' for k, v in options.items())
    said = said.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:g}" y="{y:g}"{given}>{said}</text>'


def panel(x: float, title: str, under: str, bars: list[Bar]) -> list[str]:
    """Bars below each other, with a line at 1, which is float."""
    one, bottom = x + LEFT + SCALE, TOP + len(bars) * ROW
    made = [
        text(x, 28, title, font_weight="bold", font_size=15),
        text(x, 48, under, fill="#52606d"),
        text(one, TOP - 10, "float", text_anchor="middle", fill="#52606d"),
    ]
    for i, bar in enumerate(bars):
        y = TOP + i * ROW
        made.append(text(x + LEFT - 8, y + BAR - 3, bar.label, text_anchor="end"))
        made.append(
            f'<rect x="{x + LEFT:g}" y="{y}" width="{bar.value * SCALE:.1f}" height="{BAR}" '
            f'fill="{bar.colour}"/>'
        )
        made.append(text(one + 30, y + BAR - 3, f"{bar.value:.2f}"))
    made.append(
        f'<line x1="{one:g}" y1="{TOP - 5}" x2="{one:g}" y2="{bottom}" stroke="#1f2933" '
        'stroke-dasharray="3 3"/>'
    )
    return made


def drawn() -> str:
    left, right = training(), inference()
    machine = stored("integer-cpu.json")["machine"]
    height = TOP + max(len(left), len(right)) * ROW + 34
    where = f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="12" fill="#1f2933" '
        'role="img">',
        "<title>Times of training and of inference relative to float</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        *panel(20, "Training with quantization", "time of a step (less is faster)", left),
        *panel(475, "Inference in int8", "time of a call at 224 px (less is faster)", right),
        text(20, height - 12, f"Measured on {where}; benchmarks/results", fill="#52606d"),
        "</svg>",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    new = drawn()
    stale = not PICTURE.exists() or PICTURE.read_text() != new
    if stale and not options.check:
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        PICTURE.write_text(new)
    if stale:
        print(f"{'out of date' if options.check else 'drawn'}: {PICTURE.relative_to(ROOT)}")
    return int(options.check and stale)


if __name__ == "__main__":
    sys.exit(main())
