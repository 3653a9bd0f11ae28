"""bp.report: what the tables say, against counts by hand; what the page shows, by parsing it."""

import contextlib
import copy
import html
import html.parser
import io
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys

import bitpare as bp
import pytest
import torch
from bitpare import QConfig, QSpec
from bitpare.__main__ import main
from bitpare.report import svg
from bitpare.report.charts import Bar, Line, columns, lines
from bitpare.report.checkpoint import input_shape
from bitpare.report.graphs import graph_of
from bitpare.report.tally import BINS, bars_of
from test_integer import LeNet, Residual, images, prepared, settle
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


# -- layers


class TestLayers:
    def test_a_weight_is_counted_as_by_hand(self):
        model = lenet(QConfig.int8().override("one", weight=QSpec(bits=4, range=(-0.1, 0.1))))
        with torch.no_grad():
            model.one.weight[:3] = 0
            model.one.weight[3, 0] = 2.0
        before = state_of(model)
        row = next(r for r in bp.report.layers(model).rows if r.name == "one")
        assert same_state(model, before)
        weight = model.one.weight.detach()
        scale = model.one.bp_weight.scale.view(-1, 1)
        steps = weight / scale
        quantized = steps.round().clamp(-8, 7) * scale
        noise = (weight - quantized).square().sum()
        assert row.sqnr == pytest.approx(10 * math.log10(weight.square().sum() / noise), abs=1e-3)
        assert row.clipped == pytest.approx(((steps > 7.5) | (steps < -8.5)).float().mean().item())
        assert row.clipped > 0
        assert row.levels == len(steps.round().clamp(-8, 7).unique()) / 16
        assert row.sparsity == pytest.approx((weight == 0).float().mean().item())
        assert row.zeros == pytest.approx((quantized == 0).float().mean().item())
        assert (row.min, row.max) == (weight.min().item(), weight.max().item())
        assert row.mean == pytest.approx(weight.mean().item(), abs=1e-6)
        assert row.std == pytest.approx(weight.std(unbiased=False).item(), rel=1e-5)
        assert (row.bits, row.form, row.count) == (4, "s4", 800)
        assert row.scale == pytest.approx(model.one.bp_weight.scale.mean().item())

    def test_activations_are_what_the_float_model_has(self):
        model = lenet()
        x = images(6, 16) * 1.7  # beyond what it was calibrated with
        rows = bp.report.layers(model, [x[:4], x[4:]]).rows
        given = next(r for r in rows if r.name == "input")
        q = model.bp_sites[0] if hasattr(model, "bp_sites") else None
        assert q is not None and q.name == "input"
        steps = x / q.scale + q.zero_point
        codes = steps.round().clamp(0, 255)
        assert given.count == x.numel() and given.max == x.max().item()
        beyond = ((steps > 255.5) | (steps < -0.5)).float().mean().item()
        assert given.clipped == pytest.approx(beyond, abs=1e-5) and beyond > 0
        noise = ((codes - q.zero_point) * q.scale - x).square().sum()
        assert given.sqnr == pytest.approx(10 * math.log10(x.square().sum() / noise), abs=0.01)
        deeper = [r for r in rows if r.role == "activation" and r.name != "input"]
        with torch.no_grad(), bp.nn.quantizer.quantizers_off(model):
            expected = torch.relu(model.features[0](x))
        assert any(r.max == pytest.approx(expected.max().item(), rel=1e-5) for r in deeper)

    @pytest.mark.parametrize("name", CONFIGS)
    def test_every_kind_of_quantizer(self, name):
        model = lenet(CONFIGS[name])
        before = state_of(model)
        found = bp.report.layers(model, [images(4, 16)])
        assert same_state(model, before)
        assert [r for r in found.rows if r.role == "weight"]
        for row in found.rows:
            assert row.sqnr > 1, row
            assert row.levels is None or 0 < row.levels <= 1
            assert row.clipped is None or 0 <= row.clipped < 1
        text = str(found)
        assert len(text.splitlines()) == len(found.rows) + 2 and "nan" not in text
        assert len(json.loads(found.to_json())) == len(found.rows)

    def test_a_better_range_is_found(self):
        wide = QConfig.int8().override("two", weight=QSpec(bits=8, range=(-50.0, 50.0)))
        rows = {r.name: r for r in bp.report.layers(lenet(wide)).rows}
        assert rows["two"].gain > 20 and rows["two"].levels < 0.1 and rows["one"].gain < 1
        low, high = rows["two"].best
        fitted = QConfig.int8().override("two", weight=QSpec(bits=8, range=(low, high)))
        torch.manual_seed(0)
        better = next(r for r in bp.report.layers(lenet(fitted)).rows if r.name == "two")
        assert better.sqnr > rows["two"].sqnr + 15

    def test_masks_and_uncalibrated(self):
        model = bp.prepare(LeNet(), example_inputs=(images(1, 16),))
        rows = bp.report.layers(model, [images(2, 16)]).rows
        unknown = [r for r in rows if r.role == "activation"]
        assert unknown and all(r.sqnr is None and r.count > 0 for r in unknown)
        assert "-" in str(bp.report.layers(model))
        mask = bp.functional.pack_mask(torch.rand_like(model.one.weight) > 0.5)
        model.one.bp_weight.mask = mask
        row = next(r for r in bp.report.layers(model).rows if r.name == "one")
        assert 0.4 < row.sparsity < 0.6

    def test_errors(self):
        with pytest.raises(ValueError, match="the model is not prepared"):
            bp.report.layers(LeNet())
        with pytest.raises(TypeError, match=r"report.layers: batches .* got a tensor"):
            bp.report.layers(lenet(), images(2, 16))
        with pytest.raises(ValueError, match="gave no batch"):
            bp.report.layers(lenet(), [])


class TestEffects:
    def test_the_guilty_layer_is_found(self):
        config = QConfig.int8().override("features.3", weight=QSpec(bits=2, range="minmax"))
        model, x = prepared(LeNet(), config, size=16), images(8, 16)
        before = state_of(model)
        found = bp.report.effects(model, [x[:4], x[4:]])
        assert same_state(model, before)
        assert (found.worst(1)[0].name, found.worst(1)[0].role) == ("features.3", "weight")
        with torch.no_grad():
            got = model(x)
            with bp.nn.quantizer.quantizers_off(model):
                exact = model(x)
        expected = 10 * math.log10(exact.square().sum() / (exact - got).square().sum())
        assert found.output == pytest.approx(expected, abs=0.3)
        rows = {(r.name, r.role): r for r in found.rows}
        guilty = rows["features.3", "weight"]
        assert guilty.together < guilty.here + 1 and guilty.here < 20
        assert rows["features.0", "weight"].output > guilty.output + 10
        assert found.skipped == [] and "outputs with all quantizers on" in str(found)
        assert len(json.loads(found.to_json())["rows"]) == len(found.rows)

    def test_errors(self):
        with pytest.raises(TypeError, match="batches must be an iterable"):
            bp.report.effects(lenet(), images(2, 16))
        with pytest.raises(ValueError, match="gave no batch"):
            bp.report.effects(lenet(), [])


class TestValues:
    @pytest.mark.parametrize("name", ["int8", "int4", "groups", "mse"])
    def test_codes_and_what_they_stand_for(self, name):
        model = lenet(CONFIGS[name])
        seen = bp.report.values(model, "two")
        assert torch.equal(seen.dequantized, model.two.quantized_weight().detach())
        assert torch.equal(seen.weight, model.two.weight)
        zero = 0 if seen.zero_point is None else seen.zero_point.view(-1, 1)
        scale, codes = seen.scale.view(-1, 1), seen.codes
        if name == "groups":
            scale, codes = seen.scale.view(10, -1).repeat_interleave(4, 1), seen.codes
        assert torch.allclose((codes - zero) * scale, seen.dequantized, rtol=1e-5)
        assert len(seen.channels) == 10 and min(seen.channels) > 5

    def test_errors(self):
        with pytest.raises(ValueError, match="no quantized weight 'three'; there are"):
            bp.report.values(lenet(), "three")
        with pytest.raises(TypeError, match="must come from"):
            bp.report.values(bp.convert(lenet()), "two")


# -- plots


def test_ticks_and_numbers():
    assert svg.ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert svg.ticks(-0.3, 0.3, 4) == pytest.approx([-0.2, 0, 0.2])
    assert svg.ticks(2, 2) == [2]
    assert svg.log_ticks(0.005, 30) == [0.01, 0.1, 1, 10]
    assert [svg.short(v) for v in (0, 0.04531, 1234567, 12345, -2e-7)] == [
        "0", "0.0453", "1.23 M", "12.3 k", "-2e-07",
    ]  # fmt: skip
    assert [svg.percent(v) for v in (0, 1, 0.5, 0.00001, 0.9999, 0.001)] == [
        "0 %", "100 %", "50.0 %", "< 0.01 %", "> 99.9 %", "0.10 %",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="must be finite"):
        svg.number(math.nan)
    with pytest.raises(ValueError, match="the plot 'nothing' is empty"):
        str(svg.Svg(1, 1, "nothing", kind="x"))


def test_odd_series():
    with pytest.raises(ValueError, match="has no value"):
        lines([Line("a", [(0, math.nan)])], "a")
    for points in ([(3.0, 5.0)], [(0.0, 1.0), (1.0, 1.0)], [(0.0, math.inf), (1.0, -2.0)]):
        check_plot(str(lines([Line("a", points)], "a line", log=True)))
    bars = [Bar(f"layer.{i}", v, "weight", "") for i, v in enumerate([0.0, math.inf, -3.0, 8.0])]
    check_plot(str(columns(bars, "some")))
    check_plot(str(columns(bars * 12, "many")))


def test_bars_hold_every_value():
    counts = torch.zeros(BINS, dtype=torch.int64)
    counts[::7] = 3
    for limit in (1.0, 64.0, 512.0):
        made = bars_of(counts, limit, None)
        assert sum(made.counts) + made.below + made.above == counts.sum()
        assert 20 <= len(made.counts) <= 100 and made.low <= -limit * 0.99
    assert bars_of(torch.zeros(BINS, dtype=torch.int64), 0.0, None).counts == [0]


# -- the page


class Parsed(html.parser.HTMLParser):
    """Sections, plots with their elements, links, and the text of a page."""

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
    """It has marks inside its box, and every coordinate is a number."""
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


class Trained:
    """A small network after a few steps of everything there is."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.float_model = LeNet()
        self.x, self.y = images(32, 16), torch.randint(0, 10, (32,))
        model = bp.prepare(self.float_model, QConfig.int4(), example_inputs=(self.x[:1],))
        bp.calibrate(model, [self.x], progress=False)
        optimizer = torch.optim.SGD(bp.param_groups(model), lr=0.05, momentum=0.9)
        schedule = bp.QatSchedule(model, total_steps=12, freeze_oscillating=0.05).attach(optimizer)
        pruner = bp.prune.Pruner(model, bp.prune.Schedule.cubic(final=0.5, begin=0, end=6, every=2))
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
            ratios=(0.3, 0.6, 0.9),
            progress=False,
        )


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained()


@pytest.fixture(scope="module")
def full_page(trained, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("page") / "full.html"
    before = state_of(trained.model)
    bp.report.html(
        trained.model,
        path,
        float_model=trained.float_model,
        integer=trained.integer,
        batches=(batch for batch in [(trained.x, trained.y)]),
        history=trained.recorder,
        sensitivity=trained.scan,
        title="A <full> page",
    )
    assert same_state(trained.model, before)
    return path


class TestPage:
    def test_everything_is_there(self, trained, full_page):
        text = full_page.read_text()
        page = check_page(text)
        weights, activations = 4, len(bp.report.placement(trained.model).quantizers) - 4
        assert page.kinds("weights") == ["histogram"] * weights
        assert page.kinds("activations") == ["histogram"] * activations
        assert page.kinds("size-and-speed") == ["rows", "rows"]
        assert page.kinds("signal-to-noise") == ["columns", "columns"]
        assert page.kinds("lost-accuracy") == ["columns", "columns"]
        assert page.kinds("sparsity") == ["columns"]
        assert page.kinds("sensitivity-to-pruning") == ["heatmap"]
        assert page.kinds("placement") == ["graph"]
        over_time = page.kinds("over-time")
        assert set(over_time) == {"lines"} and len(over_time) >= 4
        words = " ".join(page.words)
        assert "A <full> page" in words and "<full>" not in text
        for name in ("features.3", "loss", "oscillates", "fake-quantized", "MACs", "max pool"):
            assert name in words
        assert "Give " not in words

    def test_histograms_hold_the_weights(self, trained, full_page):
        page = Parsed(full_page.read_text())
        for section, attributes, _ in page.plots:
            if section == "weights":
                name = attributes["aria-label"].rpartition(" ")[2]
                counts = [int(c) for c in attributes["data-counts"].split(",")]
                weight = trained.model.get_submodule(name).weight
                assert sum(counts) == weight.numel() == int(attributes["data-total"])
                low, width = float(attributes["data-low"]), float(attributes["data-width"])
                at_zero = math.floor(-low / width)
                assert counts[at_zero] >= int((weight == 0).sum())

    def test_the_levels_are_over_the_bars(self, full_page):
        page = Parsed(full_page.read_text())
        levels = {}
        for section, attributes, elements in page.plots:
            if section == "weights":
                drawn = next(a["d"] for t, a in elements if a.get("class") == "level")
                levels[attributes["aria-label"].rpartition(" ")[2]] = drawn.count("M")
        assert levels["one"] == 16 and levels["features.0"] == 63  # 255, each fourth

    def test_the_numbers_are_in_the_page(self, trained, full_page):
        data = json.loads(Parsed(full_page.read_text()).data)
        kinds = [r["kind"] for r in data["summary"]]
        assert kinds[:3] == ["float", "prepared", "integer"]
        names = {r["name"] for r in data["layers"]}
        assert {"one", "two", "input"} <= names
        assert [r["step"] for r in data["history"]] == [3, 6, 9, 12]
        assert data["sensitivity"]["baseline"] == pytest.approx(trained.scan.baseline)
        assert {s["form"] for s in data["graph"]["steps"]} == {"integer", "end"}

    def test_what_is_missing_is_said(self, trained, tmp_path):
        bp.report.html(trained.model, tmp_path / "bare.html")
        page = check_page((tmp_path / "bare.html").read_text())
        words = " ".join(page.words)
        for name in ("float_model= and integer=", "batches=", "history=", "sensitivity="):
            assert f"give {name}" in words or f"Give {name}" in words
        assert page.kinds("weights") == ["histogram"] * 4
        assert page.kinds("activations") == page.kinds("over-time") == []

    @pytest.mark.parametrize("name", CONFIGS)
    def test_every_kind_of_quantizer(self, name, tmp_path):
        path = tmp_path / "page.html"
        bp.report.html(lenet(CONFIGS[name]), path, batches=[images(4, 16)])
        page = check_page(path.read_text())
        assert len(page.kinds("weights")) == 4 and page.kinds("placement") == ["graph"]

    def test_residual_branches_are_drawn(self):
        model = prepared(Residual(), QConfig.int8())
        graph = graph_of(model)
        assert graph.note == "" and graph.counts == {"integer": len(graph.steps) - 2}
        skips = [(i, k) for k, s in enumerate(graph.steps) for i in s.inputs if k - i > 1]
        assert len(skips) == 2 and skips[0][0] == skips[1][0]  # of one value, to two additions
        assert [s.kind for s in graph.steps if "+ add" in s.kind] != []

    def test_a_model_that_cannot_be_traced_is_a_tree(self, tmp_path):
        class Loops(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(4, 4)

            def forward(self, x):
                while float(x.detach().abs().sum()) > 1:
                    x = self.layer(x) * 0.1
                return x

        x = torch.ones(2, 4)
        model = bp.calibrate(bp.prepare(Loops(), example_inputs=(x,)), [x], progress=False)
        bp.report.html(model, tmp_path / "tree.html", batches=[x])
        page = check_page((tmp_path / "tree.html").read_text())
        assert "could not be traced" in " ".join(page.words)
        assert page.kinds("placement") == ["graph"]

    def test_a_model_that_is_not_calibrated(self, tmp_path):
        model = bp.prepare(LeNet(), example_inputs=(images(1, 16),))
        bp.report.html(model, tmp_path / "page.html", batches=[images(2, 16)])
        page = check_page((tmp_path / "page.html").read_text())
        assert "Not calibrated: " in " ".join(page.words)
        assert "does not run yet" in " ".join(page.words)
        assert len(page.kinds("activations")) == 5

    def test_values_that_are_not_finite(self, tmp_path):
        model, x = lenet(), images(2, 16)
        x[0, 0, 0, 0], x[1, 0, 0, 0] = math.nan, math.inf
        bp.report.html(model, tmp_path / "page.html", batches=[x])
        page = check_page((tmp_path / "page.html").read_text())
        assert "NaN or infinite values: " in " ".join(page.words)
        row = next(r for r in bp.report.layers(model, [x]).rows if r.name == "input")
        assert row.min is None and row.sqnr == -math.inf
        with torch.no_grad():
            model.one.weight[0, 0] = math.nan
        row = next(r for r in bp.report.layers(model).rows if r.name == "one")
        assert row.min is row.sqnr is None and row.count == 800
        assert "one.weight" not in bp.report.Recorder(model).now().found["sqnr"]

    def test_a_model_without_floats_at_its_end(self, tmp_path):
        class Classes(LeNet):
            def forward(self, x):
                return super().forward(x).argmax(1)

        path = tmp_path / "page.html"
        bp.report.html(prepared(Classes(), size=16), path, batches=[images(2, 16)])
        assert "holds no floats" in " ".join(check_page(path.read_text()).words)

    def test_errors(self, tmp_path):
        with pytest.raises(ValueError, match="the model is not prepared"):
            bp.report.html(LeNet(), tmp_path / "x.html")
        with pytest.raises(TypeError, match="got a tensor"):
            bp.report.html(lenet(), tmp_path / "x.html", batches=images(2, 16))
        assert not list(tmp_path.iterdir())


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROBE = """<script>addEventListener('load', () => {
  const open = document.querySelectorAll('details'); open.forEach(d => d.open = true);
  const plots = [...document.querySelectorAll('svg.plot')];
  const marks = 'rect,path,polyline,circle';
  const seen = plots.map(p => [...p.querySelectorAll(marks)].filter(m => {
    const b = m.getBoundingClientRect(), s = getComputedStyle(m);
    const paint = s.fill !== 'none' || s.stroke !== 'none';
    return paint && b.width + b.height > 2 && s.visibility === 'visible';
  }).length);
  const first = document.querySelector('svg.histogram'), box = first.getBoundingClientRect();
  first.dispatchEvent(new MouseEvent('mousemove',
    {clientX: box.left + box.width / 2, clientY: box.top + 20}));
  const head = document.querySelectorAll('table.sortable th')[6];
  head.click();
  const cells = [...document.querySelectorAll('table.sortable tbody tr')].map(r => r.cells[6]);
  const result = document.createElement('pre');
  result.id = 'probe';
  result.textContent = JSON.stringify({seen, tip: document.getElementById('tip').textContent,
    sorted: cells.map(c => Number(c.dataset.v)), wide: document.documentElement.scrollWidth});
  document.body.append(result);
});</script>"""


def test_a_browser_shows_it(full_page, tmp_path):
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser here ({', '.join(BROWSERS)})")
    page = tmp_path / "probed.html"
    page.write_text(full_page.read_text().replace("</body>", PROBE + "</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,3000"]
    ran = subprocess.run(
        [browser, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="probe">(.*?)</pre>', ran.stdout, re.DOTALL)
    assert found, ran.stdout[-500:] + ran.stderr[-500:]
    probed = json.loads(html.unescape(found[1]))
    plots = Parsed(full_page.read_text()).plots
    assert len(probed["seen"]) == len(plots)
    for (_, attributes, _), marks in zip(plots, probed["seen"], strict=True):
        assert marks > 0, attributes["aria-label"]
    assert re.search(r"to .*: [\d,]+ values, [\d.]+ %", probed["tip"])
    assert probed["sorted"] == sorted(probed["sorted"], reverse=True)
    assert probed["wide"] <= 1200


# -- over time


class Writer:
    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.histograms: list[tuple[str, torch.Tensor, int]] = []
        self.texts: list[str] = []

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))

    def add_histogram(self, tag, values, step):
        self.histograms.append((tag, values, step))

    def add_text(self, tag, text, step):
        self.texts.append(text)


class Run:
    """A training that can be taken up in the middle."""

    def __init__(self, every: int = 4) -> None:
        torch.manual_seed(1)
        self.model = lenet(QConfig.int4()).train()
        self.optimizer = torch.optim.SGD(bp.param_groups(self.model), lr=0.05, momentum=0.9)
        self.oscillations = bp.Oscillations(self.model, freeze_above=0.05).attach(self.optimizer)
        self.recorder = bp.report.Recorder(self.model, every, oscillations=self.oscillations)
        self.recorder.attach(self.optimizer)

    def go(self, steps: range) -> None:
        for i in steps:
            generator = torch.Generator().manual_seed(i)
            x = torch.rand(8, 3, 16, 16, generator=generator)
            y = torch.randint(0, 10, (8,), generator=generator)
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(x), y)
            loss.backward()
            self.recorder.log(loss=loss, number=float(i))
            self.optimizer.step()

    def parts(self) -> dict:
        return {"model": self.model, "optimizer": self.optimizer,
                "oscillations": self.oscillations, "recorder": self.recorder}  # fmt: skip


class TestRecorder:
    def test_what_it_notes(self):
        run = Run(every=4)
        run.go(range(10))
        assert [r.step for r in run.recorder.records] == [4, 8]
        assert run.recorder.series("scalars", "number") == [(4, 1.5), (8, 5.5)]
        assert set(run.recorder.names("sparsity")) == {
            "features.0.weight", "features.3.weight", "one.weight", "two.weight",
        }  # fmt: skip
        assert set(run.recorder.names("oscillating")) == set(run.recorder.names("frozen"))
        last = run.recorder.now()
        row = next(r for r in bp.report.layers(run.model).rows if r.name == "one")
        assert last.step == 10 and last.found["sqnr"]["one.weight"] == pytest.approx(row.sqnr)
        assert last.found["clipped"]["one.weight"] == pytest.approx(row.clipped)
        assert last.found["scale"]["one.weight"] == pytest.approx(row.scale)
        shares = run.oscillations.shares()["one.weight"]
        assert last.found["oscillating"].get("one.weight", 0.0) == pytest.approx(shares[0] / 100)
        assert last.found["scalars"]["number"] == pytest.approx(8.5)

    def test_it_changes_nothing(self):
        watched, alone = Run(), Run()
        alone.recorder.counter.step = lambda *_: None  # never records
        watched.go(range(9))
        alone.go(range(9))
        assert alone.recorder.records == []
        assert same_state(watched.model, state_of(alone.model))

    @pytest.mark.parametrize("at", [3, 4, 6])
    def test_resumes(self, at):
        whole = Run()
        whole.go(range(10))
        first = Run()
        first.go(range(at))
        saved = copy.deepcopy({n: p.state_dict() for n, p in first.parts().items()})
        second = Run()
        for name, part in second.parts().items():
            part.load_state_dict(saved[name])
        second.go(range(at, 10))
        assert second.recorder.records == whole.recorder.records
        assert second.recorder.state_dict() == whole.recorder.state_dict()
        json.loads(second.recorder.to_json())

    def test_between_records_nothing_is_read(self, monkeypatch):
        run = Run(every=5)
        run.go(range(5))
        looks: list[str] = []
        for name in ("item", "tolist", "__float__", "__int__", "__bool__", "cpu"):
            original = getattr(torch.Tensor, name)

            def spy(self, *args, _name=name, _original=original, **kwargs):
                looks.append(_name)
                return _original(self, *args, **kwargs)

            monkeypatch.setattr(torch.Tensor, name, spy)
        loss = torch.tensor(2.0)
        for _ in range(4):
            run.recorder.log(loss=loss)
            run.recorder.counter.after_step(run.optimizer, (), {})
        assert looks == []
        run.recorder.log(loss=loss)
        run.recorder.counter.after_step(run.optimizer, (), {})
        assert looks and run.recorder.records[-1].step == 10

    def test_a_float_model(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        recorder = bp.report.Recorder(model, 1)
        with torch.no_grad():
            model[0].weight[:2] = 0
        recorder.step()
        assert recorder.records[0].found == {"sparsity": {"0.weight": 0.5}}
        nothing = bp.report.Recorder(nn.ReLU(), 1)
        nothing.step()
        assert nothing.records[0].found == {}

    def test_errors(self):
        with pytest.raises(ValueError, match="every must be 1 or more, got 0"):
            bp.report.Recorder(nn.Linear(1, 1), 0)
        with pytest.raises(ValueError, match="loss must be one number, got shape"):
            bp.report.Recorder(nn.Linear(1, 1)).log(loss=torch.ones(3))
        with pytest.raises(ValueError, match="has no freeze_oscillating"):
            schedule = bp.QatSchedule(lenet(), total_steps=3)
            bp.report.Recorder(schedule.model, oscillations=schedule)


class TestTensorBoard:
    def test_the_same_figures(self):
        run, writer = Run(), Writer()
        board = bp.report.TensorBoard(
            writer, run.model, every=4, oscillations=run.oscillations, batches=[images(2, 16)]
        )
        board.attach(run.optimizer)
        run.go(range(8))
        assert "quantizer of" in writer.texts[0]
        written = {(tag, step): value for tag, value, step in writer.scalars}
        for record in run.recorder.records:
            for kind, held in record.found.items():
                for name, value in held.items():
                    if kind != "scalars":
                        assert written[f"{kind}/{name}", record.step] == value
        assert ("sqnr/activation input", 8) in written
        weights = {(t, s): v for t, v, s in writer.histograms}
        steps = weights["weight/one.weight", 8]
        scale = run.model.one.bp_weight.scale.detach().view(-1, 1)
        assert torch.allclose(steps.view(20, 40), run.model.one.weight / scale, atol=1e-4)
        assert weights["activation/input", 4].numel() == 2 * 3 * 16 * 16
        other = bp.report.TensorBoard(Writer(), Run().model, every=4)
        other.load_state_dict(board.state_dict())
        assert other.recorder.counter.count() == 8

    def test_a_directory(self, tmp_path):
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        board = bp.report.TensorBoard(tmp_path, lenet(), every=1)
        board.log(loss=2.5)
        board.step()
        board.close()
        found = EventAccumulator(str(tmp_path)).Reload()
        assert found.Scalars("loss")[0].value == 2.5
        assert "weight/one.weight" in found.Tags()["histograms"]

    def test_errors(self, monkeypatch, tmp_path):
        with pytest.raises(TypeError, match=r"writer must be .* got int without add_scalar"):
            bp.report.TensorBoard(3, lenet())
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(ImportError, match="pip install tensorboard"):
            bp.report.TensorBoard(tmp_path, lenet())


# -- the command line


def command(*arguments: object) -> subprocess.CompletedProcess:
    """python -m bitpare report, in this process."""
    out, err, words = io.StringIO(), io.StringIO(), ["report", *map(str, arguments)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(words)
        except SystemExit as error:
            status = error.code
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory) -> dict[str, pathlib.Path]:
    folder = tmp_path_factory.mktemp("files")
    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    model = bp.prepare(net, example_inputs=(torch.ones(1, 8),))
    bp.calibrate(model, [torch.randn(4, 8)], progress=False)
    held = {
        "state": trained.model.state_dict(),
        "nested": {"epoch": 3, "model": trained.model.state_dict()},
        "pickled": model,
        "nested_pickled": {"model": model, "epoch": 3},
        "float": LeNet().state_dict(),
        "list": [1, 2],
    }
    found = {name: folder / f"{name}.pt" for name in held}
    for name, value in held.items():
        torch.save(value, found[name])
    found["integer"] = folder / "integer.safetensors"
    bp.deploy.save(trained.integer, found["integer"])
    for name, source in (("cut", "integer"), ("cut_state", "state")):
        found[name] = folder / f"{name}.bin"
        written = found[source].read_bytes()
        found[name].write_bytes(written[: len(written) // 2])
    found["text"] = folder / "notes.txt"
    found["text"].write_text("not a model")
    found["missing"] = folder / "missing.pt"
    return found


class TestCommand:
    def test_an_integer_model(self, trained, files, tmp_path):
        page, numbers = tmp_path / "out.html", tmp_path / "out.json"
        ran = command(files["integer"], "--html", page, "--json", numbers)
        assert ran.returncode == 0, ran.stderr
        parsed = check_page(page.read_text())
        assert len(parsed.kinds("weights")) == 4
        assert parsed.kinds("placement") == ["graph"] and parsed.kinds("sparsity") == ["columns"]
        assert parsed.kinds("size-and-speed") == ["rows", "rows"]
        data = json.loads(numbers.read_text())
        row = data["summary"][0]
        assert row["bytes"] == files["integer"].stat().st_size and row["p50"] > 0
        forms = {r["name"]: r["form"] for r in data["layers"]}
        assert (forms["features.0"], forms["one"], forms["two"]) == ("s8", "s4", "s8")
        assert forms["features.3"] in ("s3", "s4")  # as many bits as hold what pruning left
        zeros = sum(r["sparsity"] * r["count"] for r in data["layers"])
        assert row["weights"] - row["nonzeros"] == round(zeros) > 0
        summary = bp.report.summary(trained.integer, example_inputs=(trained.x[:1],), rounds=1)
        assert row["macs"] == summary.rows[0].macs

    @pytest.mark.parametrize("name", ["state", "nested"])
    def test_a_state_dict(self, trained, files, tmp_path, name):
        page, numbers = tmp_path / "out.html", tmp_path / "out.json"
        ran = command(files[name], "--html", page, "--json", numbers, "--title", "Mine")
        assert ran.returncode == 0, ran.stderr
        parsed = check_page(page.read_text())
        assert len(parsed.kinds("weights")) == 4 and "Mine" in parsed.words
        found = {(r["name"], r["role"]): r for r in json.loads(numbers.read_text())["layers"]}
        for row in bp.report.layers(trained.model).rows:
            if row.role == "weight":
                mine = found[row.name, "weight"]
                assert mine["sqnr"] == pytest.approx(row.sqnr, abs=1e-3)
                for key in ("form", "scales", "levels", "sparsity", "clipped", "learned"):
                    assert mine[key] == getattr(row, key), key
        activations = [
            q for q in bp.report.placement(trained.model).quantizers if q.role == "activation"
        ]
        assert sum(role == "activation" for _, role in found) == len(activations)

    @pytest.mark.parametrize("name", ["pickled", "nested_pickled"])
    def test_a_pickled_model(self, files, tmp_path, name):
        page = tmp_path / "out.html"
        refused = command(files[name], "--html", page)
        assert refused.returncode == 2 and not page.exists()
        assert f"{name}.pt" in refused.stderr and "--trust" in refused.stderr
        ran = command(files[name], "--html", page, "--trust")
        assert ran.returncode == 0, ran.stderr
        parsed = check_page(page.read_text())
        assert len(parsed.kinds("weights")) == 1 and parsed.kinds("placement") == ["graph"]

    @pytest.mark.parametrize(
        "name, says",
        [
            ("cut", "expected an integer model"),
            ("cut_state", "damaged"),
            ("text", "expected an integer model"),
            ("float", "no state of a quantizer"),
            ("list", "a list; expected"),
            ("missing", "No such file"),
        ],
    )
    def test_no_good(self, files, tmp_path, name, says):
        page = tmp_path / "out.html"
        ran = command(files[name], "--html", page)
        assert ran.returncode == 2 and not page.exists()
        assert files[name].name in ran.stderr and says in ran.stderr
        assert "Traceback" not in ran.stderr and len(ran.stderr.splitlines()) == 1

    def test_from_a_shell(self, files, tmp_path):
        words = [sys.executable, "-m", "bitpare", "report"]
        page = tmp_path / "out.html"
        ran = subprocess.run([*words, files["text"], "--html", page], capture_output=True)
        assert ran.returncode == 2 and b"notes.txt: " in ran.stderr and not page.exists()

    def test_arguments(self, files, tmp_path):
        assert "--html FILE" in command(files["state"]).stderr
        wrong = command(files["integer"], "--html", tmp_path / "x.html", "--input", "1,x")
        assert wrong.returncode == 2 and "must be sizes as 1,3,224,224" in wrong.stderr
        wrong = command(files["integer"], "--html", tmp_path / "x.html", "--input", "1,5,16,16")
        assert wrong.returncode == 2 and "integer.safetensors: --input 1×5×16×16" in wrong.stderr
        ran = command(files["integer"], "--json", tmp_path / "x.json", "--input", "2,3,16,16")
        assert ran.returncode == 0 and "2×3×16×16" in str(
            json.loads((tmp_path / "x.json").read_text())
        )
        nowhere = command(files["state"], "--html", tmp_path / "no" / "x.html")
        assert nowhere.returncode == 2 and "x.html" in nowhere.stderr

    @pytest.mark.parametrize("size", [15, 16])
    def test_the_input_of_an_integer_model(self, size):
        model = prepared(settle(Residual()), QConfig.int8(), size=size)
        channels, height = input_shape(bp.convert(model).programs[0].spec)[1:3]
        assert channels == 3 and height in (size, size + 1)


def test_states_of_other_kinds():
    from bitpare.report.state import rows_of_state

    for name in ("tensorrt", "groups", "asymmetric", "binary", "fp8", "ternary"):
        model = lenet(CONFIGS[name])
        exact = {r.name: r for r in bp.report.layers(model).rows if r.role == "weight"}
        for found in rows_of_state(model.state_dict()):
            row = found.row()
            if row.role == "weight" and row.sqnr is not None:
                assert row.sqnr == pytest.approx(exact[row.name].sqnr, abs=1e-3), name
