"""Helpers for tests of reports: networks of every kind, and a parser of pages."""

import html
import html.parser
import math
import re

import bitpare as bp
import torch
from bitpare import QConfig, QSpec
from test_integer import LeNet, images, prepared
from torch import nn

CONFIGS = {
    "int8": QConfig.int8(),
    "tensorrt": QConfig.int8(target="tensorrt"),
    "int4": QConfig.int4(),
    "int2": QConfig.int2(),
    "binary": QConfig.binary_weights(),
    "groups": QConfig.weight_only(bits=4, group=4),
    "dynamic": QConfig.dynamic(),
    "fp8": QConfig.fp8(),
    "mse": QConfig(weight=QSpec(bits=4, range="mse"), activation=QSpec(symmetric=False)),
    "asymmetric": QConfig(weight=QSpec(bits=4, symmetric=False), activation=bp.FLOAT),
    "lsq+": QConfig(weight=QSpec(bits=6, learn="lsq"), activation=QSpec(bits=7, learn="lsq+")),
    "pact": QConfig(weight=QSpec(bits=8), activation=QSpec(bits=5, learn="pact")),
    "dorefa": QConfig(weight=QSpec(bits=3, learn="dorefa"), activation=QSpec()),
    "ternary": QConfig(weight=QSpec(bits=2, learn="ternary"), activation=QSpec()),
}


def state_of(model: nn.Module) -> dict:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same_state(model: nn.Module, before: dict) -> bool:
    after = model.state_dict()
    return list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in before)


def lenet(config: QConfig | None = None) -> nn.Module:
    return prepared(LeNet(), config or QConfig.int8(), size=16)


class Trained:
    """A small network after a few steps with every feature."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.float_model = LeNet()
        self.x, self.y = images(32, 16), torch.randint(0, 10, (32,))
        model = bp.prepare(self.float_model, QConfig.int4(), example_inputs=(self.x[:1],))
        bp.calibrate(model, data=[self.x], progress=False)
        optimizer = torch.optim.SGD(bp.param_groups(model), lr=0.05, momentum=0.9)
        schedule = bp.QatSchedule(model, steps=12, freeze_oscillating=0.05).attach(optimizer)
        pruner = bp.prune.Pruner(
            model, bp.prune.Schedule.cubic(sparsity=0.5, begin=0, end=6, every=2)
        )
        pruner.attach(optimizer)
        self.recorder = bp.report.Recorder(model, 3, oscillations=schedule).attach(optimizer)
        for _ in range(12):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(self.x), self.y)
            loss.backward()
            self.recorder.log(loss=loss)
            optimizer.step()
        self.model = model.eval()
        self.integer = bp.convert(model)
        self.scan = bp.prune.sensitivity(
            model,
            lambda m: -float(nn.functional.cross_entropy(m(self.x), self.y)),
            sparsities=(0.3, 0.6, 0.9),
            progress=False,
        )


class Parsed(html.parser.HTMLParser):
    """The sections, plots with their elements, links, and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.plots: list[tuple[str, dict, list[tuple[str, dict]]]] = []
        self.words: list[str] = []
        self.outside: list[str] = []
        self.data = ""
        self._within = self._is_data = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        held = dict(attrs)
        for name in ("src", "href", "data"):
            if name in held and not (held[name] or "").startswith("#"):
                self.outside.append(f"{tag} {held[name]}")
        if tag == "section":
            self.sections.append(held["id"])
        if tag == "svg":
            self.plots.append((self.sections[-1], held, []))
            self._within = True
        elif self._within:
            self.plots[-1][2].append((tag, held))
        self._is_data = held.get("id") == "bitpare-data"

    def handle_endtag(self, tag):
        if tag == "svg":
            self._within = False

    def handle_data(self, data):
        if self._is_data:
            self.data += data
            self._is_data = False
        else:
            self.words.append(data)

    def kinds(self, section: str) -> list[str]:
        return [a["class"].split()[1] for s, a, _ in self.plots if s == section]


MARKS = {"rect", "path", "polyline", "circle"}
LENGTHS = ("x", "y", "width", "height", "cx", "cy", "r", "x1", "y1", "x2", "y2")


def check_plot(text: str | tuple) -> None:
    """Check that a plot has marks inside its box, and that every coordinate is a number."""
    if isinstance(text, str):
        text = Parsed(f"<section id='x'>{text}</section>").plots[0]
    _, attributes, elements = text
    assert attributes["role"] == "img" and len(attributes["aria-label"]) > 3
    width, height = map(float, attributes["viewbox"].split()[2:])
    assert width > 10 and height > 10
    marks = 0
    for tag, held in elements:
        numbers = [float(held[k]) for k in LENGTHS if k in held]
        for key in ("d", "points"):
            numbers += map(float, re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", held.get(key, "")))
        assert all(math.isfinite(v) and abs(v) <= max(width, height) + 1 for v in numbers), held
        if tag == "rect":
            inside = float(held["width"]) > 0 and float(held["height"]) > 0
            assert float(held["x"]) >= -1 and float(held["y"]) >= -1
            marks += inside
        elif tag in MARKS:
            marks += len(numbers) >= 2
    assert marks > 0, attributes["aria-label"]


def check_page(text: str) -> Parsed:
    page = Parsed(text)
    assert page.outside == []
    assert "http" not in re.sub(r"<script type=.*?</script>", "", text, flags=re.DOTALL)
    assert "NaN" not in page.data and "None" not in " ".join(page.words)
    for plot in page.plots:
        check_plot(plot)
    assert len(set(page.sections)) == len(page.sections)
    return page
