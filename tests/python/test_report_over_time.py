"""Test records of a model over time: Recorder and TensorBoard."""

import copy
import json
import sys

import bitpare as bp
import pytest
import torch
from bitpare import QConfig
from reported import lenet, same_state, state_of
from test_integer import images
from torch import nn


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
    """A training run that can be resumed."""

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
        alone.recorder.counter.step = lambda *_: None  # never record
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
            schedule = bp.QatSchedule(lenet(), steps=3)
            bp.report.Recorder(schedule.model, oscillations=schedule)


class TestTensorBoard:
    def test_the_same_figures(self):
        run, writer = Run(), Writer()
        board = bp.report.TensorBoard(
            writer, run.model, every=4, oscillations=run.oscillations, data=[images(2, 16)]
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
