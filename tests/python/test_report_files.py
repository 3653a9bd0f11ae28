"""Test python -m bitpare report, which writes pages about files."""

import contextlib
import io
import json
import pathlib
import subprocess
import sys

import bitpare as bp
import pytest
import torch
from bitpare import QConfig
from bitpare.__main__ import main
from bitpare.report.checkpoint import input_shape
from reported import CONFIGS, Trained, check_page, lenet
from test_integer import LeNet, Residual, prepared, settle
from torch import nn


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained()


def command(*arguments: object) -> subprocess.CompletedProcess:
    """Run python -m bitpare report in this process."""
    out, err, words = io.StringIO(), io.StringIO(), ["report", *map(str, arguments)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(words)
        except SystemExit as error:
            status = error.code
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def checkpoint_of_a_run(trained: Trained) -> dict:
    """Return a checkpoint as training scripts save it: stages, each with all its parts."""
    optimizer = torch.optim.Adam(trained.float_model.parameters())
    trained.float_model(trained.x).sum().backward()
    optimizer.step()
    other = bp.report.Recorder(trained.float_model, 1)
    other.step()
    stages = {
        "float": {"net": trained.float_model, "optimizer": optimizer, "recorder": other},
        "first": {"student": trained.model, "optimizer": optimizer},
        "second": {"ema": trained.model, "teacher": trained.float_model, "notes": trained.recorder},
    }
    states = {
        stage: {name: part.state_dict() for name, part in parts.items()}
        for stage, parts in stages.items()
    }
    found = {"epoch": 3, "stages": states, "random": torch.get_rng_state(), "best": [0.5, None]}
    return found | {"confusion": torch.eye(10)}


def spoilt(model: nn.Module, ending: str, value: torch.Tensor) -> dict:
    """Return a state dict in which the first value with such a name is replaced."""
    state = dict(model.state_dict())
    return state | {next(k for k in state if k.endswith(ending)): value}


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory) -> dict[str, pathlib.Path]:
    folder = tmp_path_factory.mktemp("files")
    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    model = bp.prepare(net, example_inputs=(torch.ones(1, 8),))
    bp.calibrate(model, data=[torch.randn(4, 8)], progress=False)
    held = {
        "state": trained.model.state_dict(),
        "nested": {"epoch": 3, "model": trained.model.state_dict()},
        "pickled": model,
        "nested_pickled": {"model": model, "epoch": 3},
        "float": {"model": {"epoch": 3, "net": LeNet().state_dict()}},
        "pickled_float": LeNet(),
        "list": [1, 2],
        "optimizer": torch.optim.Adam(LeNet().parameters()).state_dict(),
        "run": checkpoint_of_a_run(trained),
        "no_control": spoilt(trained.model, ".control", torch.full((5,), torch.nan)),
        "no_scale": spoilt(trained.model, ".bp_weight.scale", torch.zeros(0)),
        "notes": {"model": LeNet().state_dict(), "records": [], "every": 1, "step": "two"},
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
        assert forms["features.3"] in ("s3", "s4")  # as few bits as the unpruned weights need
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

    def test_a_model_in_float(self, files, tmp_path):
        for name, options in (("float", ()), ("pickled_float", ("--trust",))):
            page = tmp_path / f"{name}.html"
            ran = command(files[name], "--html", page, *options)
            assert ran.returncode == 0, ran.stderr
            parsed = check_page(page.read_text())
            assert parsed.kinds("weights") == ["histogram"] * 4
            data = json.loads(parsed.data)
            assert {r["form"] for r in data["layers"]} == {"float32"}
            assert data["summary"][0]["bytes"] > 4 * data["summary"][0]["weights"]
        assert "under the key model/net" in (tmp_path / "float.html").read_text()

    def test_the_checkpoint_of_a_run(self, trained, files, tmp_path):
        page = tmp_path / "out.html"
        ran = command(files["run"], "--html", page)
        assert ran.returncode == 0, ran.stderr
        parsed = check_page(page.read_text())
        data, words = json.loads(parsed.data), " ".join(parsed.words)
        assert "under the key stages/second/ema" in words and "stages/first/student" in words
        assert [r["step"] for r in data["history"]] == [r.step for r in trained.recorder.records]
        assert set(parsed.kinds("over-time")) == {"lines"} and len(data["layers"]) > 4

        ran = command(files["run"], "--html", page, "--key", "stages/float/net")
        assert ran.returncode == 0, ran.stderr
        data = json.loads(check_page(page.read_text()).data)
        assert [r["step"] for r in data["history"]] == [1]
        assert {r["form"] for r in data["layers"]} == {"float32"}
        wrong = command(files["run"], "--html", page, "--key", "stages/third")
        assert wrong.returncode == 2 and "no weights under the key 'stages/third'" in wrong.stderr

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
            ("list", "no weights; expected"),
            ("optimizer", "no weights; expected"),
            ("no_control", ".bp_weight is not the state of a quantizer"),
            ("no_scale", ".bp_weight is not the state of a quantizer"),
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
