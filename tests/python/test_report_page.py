"""Test the content of a report's page, by parsing it and in a browser."""

import html
import json
import math
import pathlib
import re
import shutil
import subprocess

import bitpare as bp
import pytest
import torch
from bitpare import QConfig
from bitpare.report import svg
from bitpare.report.charts import Bar, Line, columns, lines
from bitpare.report.graphs import graph_of
from bitpare.report.tally import BINS, bars_of
from reported import CONFIGS, Parsed, Trained, check_page, check_plot, lenet, same_state, state_of
from test_integer import LeNet, Residual, images, prepared
from torch import nn


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained()


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
    for points in (
        [(3.0, 5.0)],
        [(1.0, 1e30)],
        [(0.0, -1e308), (1.0, 1e308)],
        [(0.0, 1.0), (1.0, 1.0)],
        [(0.0, math.inf), (1.0, -2.0)],
    ):
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


@pytest.fixture(scope="module")
def full_page(trained, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("page") / "full.html"
    before = state_of(trained.model)
    bp.report.html(
        trained.model,
        path,
        float_model=trained.float_model,
        integer=trained.integer,
        data=(batch for batch in [(trained.x, trained.y)]),
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
        assert levels["one"] == 16 and levels["features.0"] == 63  # every fourth of 255

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
        for name in ("float_model= and integer=", "data=", "history=", "sensitivity="):
            assert f"give {name}" in words or f"Give {name}" in words
        assert page.kinds("weights") == ["histogram"] * 4
        assert page.kinds("activations") == page.kinds("over-time") == []

    @pytest.mark.parametrize("name", CONFIGS)
    def test_every_kind_of_quantizer(self, name, tmp_path):
        path = tmp_path / "page.html"
        bp.report.html(lenet(CONFIGS[name]), path, data=[images(4, 16)])
        page = check_page(path.read_text())
        assert len(page.kinds("weights")) == 4 and page.kinds("placement") == ["graph"]

    def test_residual_branches_are_drawn(self):
        model = prepared(Residual(), QConfig.int8())
        graph = graph_of(model)
        assert graph.note == "" and graph.counts == {"integer": len(graph.steps) - 2}
        skips = [(i, k) for k, s in enumerate(graph.steps) for i in s.inputs if k - i > 1]
        assert len(skips) == 2 and skips[0][0] == skips[1][0]  # from one value to two additions
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
        model = bp.calibrate(bp.prepare(Loops(), example_inputs=(x,)), data=[x], progress=False)
        bp.report.html(model, tmp_path / "tree.html", data=[x])
        page = check_page((tmp_path / "tree.html").read_text())
        assert "could not be traced" in " ".join(page.words)
        assert page.kinds("placement") == ["graph"]

    def test_a_model_that_is_not_calibrated(self, tmp_path):
        model = bp.prepare(LeNet(), example_inputs=(images(1, 16),))
        bp.report.html(model, tmp_path / "page.html", data=[images(2, 16)])
        page = check_page((tmp_path / "page.html").read_text())
        assert "Not calibrated: " in " ".join(page.words)
        assert "does not run yet" in " ".join(page.words)
        assert len(page.kinds("activations")) == 5

    def test_values_that_are_not_finite(self, tmp_path):
        model, x = lenet(), images(2, 16)
        x[0, 0, 0, 0], x[1, 0, 0, 0] = math.nan, math.inf
        bp.report.html(model, tmp_path / "page.html", data=[x])
        page = check_page((tmp_path / "page.html").read_text())
        assert "NaN or infinite values: " in " ".join(page.words)
        row = next(r for r in bp.report.layers(model, data=[x]).rows if r.name == "input")
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
        bp.report.html(prepared(Classes(), size=16), path, data=[images(2, 16)])
        assert "holds no floats" in " ".join(check_page(path.read_text()).words)

    def test_a_float_model_that_is_pruned(self, tmp_path):
        model, x = LeNet(), images(8, 16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        ramp = bp.prune.Schedule.cubic(sparsity=0.5, begin=0, end=4)
        bp.prune.Pruner(model, ramp).attach(optimizer)
        recorder = bp.report.Recorder(model, 2).attach(optimizer)
        for _ in range(6):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        scan = bp.prune.sensitivity(
            model, lambda m: float(m(x).sum()), sparsities=(0.5,), progress=False
        )
        before = state_of(model)
        bp.report.html(model, tmp_path / "x.html", history=recorder, sensitivity=scan)
        assert same_state(model, before)
        page = check_page((tmp_path / "x.html").read_text())
        assert page.kinds("weights") == ["histogram"] * 4 and page.kinds("activations") == []
        assert page.kinds("sparsity") == ["columns"] and page.kinds("over-time") == ["lines"]
        assert page.kinds("sensitivity-to-pruning") == ["heatmap"]
        words = " ".join(page.words)
        assert "Nothing is quantized" in words and "data=" not in words
        data = json.loads(page.data)
        rows = {r["name"]: r for r in data["layers"]}
        for name, row in rows.items():
            weight = model.get_submodule(name).weight
            assert row["form"] == "float32" and row["sqnr"] is None
            assert row["sparsity"] == pytest.approx(float((weight == 0).float().mean()))
        nonzeros = sum(int((model.get_submodule(n).weight != 0).sum()) for n in rows)
        assert data["summary"][0]["nonzeros"] == nonzeros < data["summary"][0]["weights"]

    def test_errors(self, tmp_path):
        with pytest.raises(ValueError, match=r"data= needs a prepared model .* this LeNet is not"):
            bp.report.html(LeNet(), tmp_path / "x.html", data=[images(2, 16)])
        with pytest.raises(TypeError, match="got an IntegerModel; pass that as integer="):
            bp.report.html(bp.convert(lenet()), tmp_path / "x.html")
        with pytest.raises(TypeError, match="got a tensor"):
            bp.report.html(lenet(), tmp_path / "x.html", data=images(2, 16))
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
