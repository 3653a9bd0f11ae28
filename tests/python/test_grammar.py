"""Test that public signatures are as agreed, and that wrong combinations of arguments raise
errors."""

import inspect
import pathlib

import bitpare as bp
import pytest
import torch
from torch import nn

SNAPSHOT = pathlib.Path(__file__).parent / "signatures.txt"
MODULES = ("bp", "functional", "prune", "distill", "deploy", "report", "extend")
# Words that were replaced: sparsity= is the share to remove, keep= what to keep, steps= a run's
# length.
GONE = {"loader", "ratio", "ratios", "share", "amount", "final", "total_steps", "channels", "macs"}


def public():
    """Yield the name and object of everything public, and of the methods of public classes."""
    for module in MODULES:
        package = bp if module == "bp" else getattr(bp, module)
        for name in sorted(package.__all__):
            value = getattr(package, name)
            if inspect.ismodule(value) or not callable(value):
                continue
            full = name if module == "bp" else f"{module}.{name}"
            yield full, value
            if not inspect.isclass(value) or not value.__module__.startswith("bitpare"):
                continue
            for method in sorted(vars(value)):
                found = inspect.getattr_static(value, method)
                found = getattr(found, "__func__", found)
                if not method.startswith("_") and inspect.isfunction(found):
                    yield f"{full}.{method}", found


def signatures() -> list[str]:
    lines = []
    for name, value in public():
        try:
            signature = str(inspect.signature(value))
        except ValueError:
            continue
        lines.append(f"{name}{signature}")
    return lines


def test_signatures_are_as_agreed():
    """After an intended change, rewrite the file with python tests/python/test_grammar.py."""
    assert signatures() == SNAPSHOT.read_text().splitlines()


def test_words_that_went_name_no_argument():
    for name, value in public():
        if inspect.isclass(value) and issubclass(value, (BaseException, tuple)):
            continue
        try:
            parameters = inspect.signature(value).parameters
        except ValueError:
            continue
        left = GONE & set(parameters)
        if name in ("Budget", "report.SummaryRow"):  # macs= is what to keep
            left -= {"macs"}
        assert not left, f"{name} has {left}"


def test_example_inputs_is_a_keyword():
    for name, value in public():
        try:
            parameters = inspect.signature(value).parameters
        except ValueError:
            continue
        if "example_inputs" in parameters:
            kind = parameters["example_inputs"].kind
            assert kind is inspect.Parameter.KEYWORD_ONLY, name


@pytest.mark.parametrize(
    "noun", ["QatSchedule", "Oscillations", "prune.Pruner", "distill.Distiller", "report.Recorder"]
)
def test_nouns_attach_have_a_state_and_detach(noun):
    kind = bp
    for part in noun.split("."):
        kind = getattr(kind, part)
    for method in ("attach", "detach", "state_dict", "load_state_dict"):
        assert callable(getattr(kind, method)), method


def prepared():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return bp.prepare(net, example_inputs=(torch.ones(2, 4),))


def test_detached_objects_do_not_follow():
    model = prepared()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = bp.QatSchedule(model, steps=10, freeze_ranges=0.9).attach(optimizer)
    oscillations = bp.Oscillations(model).attach(optimizer)
    pruner = bp.prune.Pruner(model, sparsity=0.5, steps=10, when=(0.0, 1.0)).attach(optimizer)
    recorder = bp.report.Recorder(model, every=1).attach(optimizer)
    kd = bp.distill.Distiller(model, nn.Linear(4, 2)).attach(optimizer)
    assert kd.student is model

    def step():
        model(torch.randn(2, 4)).sum().backward()
        optimizer.step()

    step()
    for part in (schedule, oscillations, pruner, recorder):
        assert part.detach() is None
    assert kd.detach() is model
    before, kept = len(recorder.records), pruner.pruned()
    step(), step()
    assert [schedule.step_count, pruner.step_count, kd.step_count] == [1, 1, 1]
    assert len(recorder.records) == before and pruner.pruned() == kept
    pruner.attach(optimizer)
    schedule.attach(optimizer)
    step()
    assert pruner.step_count == schedule.step_count == 2
    assert all(float((p == 0).float().mean()) > 0 for p in (model[0].weight,))


S = bp.prune.Schedule
LINEAR = nn.Linear(4, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: S.cubic(0.5, end=0.5),
            "end=0.5 is a fraction of the run, so its length",
        ),
        (lambda: S.cubic(0.5, end=1.5, steps=9), "end must be a fraction of the run"),
        (lambda: S.cubic(0.5, end=11, steps=9), "end is step 11, but the run has steps=9"),
        (lambda: S.one_shot(0.5, at=True), "at must be a fraction of the run"),
        (lambda: S.levels({0.5: 0.5}), "levels=0.5 is a fraction of the run"),
        (lambda: bp.QatSchedule(prepared(), steps=0), "steps must be an int of 1 or more"),
        (lambda: bp.QatSchedule(prepared(), steps=2.5), "steps must be an int of 1 or more"),
        (
            lambda: bp.QatSchedule(prepared(), steps=9, delay=20),
            "delay is step 20, but the",
        ),
        (lambda: bp.QatSchedule(prepared(), steps=9, delay=2.0), "delay must be a fraction"),
        (lambda: bp.distill.Ramp(0, 1, steps=9, when=(0.5, 0.5)), "begin < end"),
        (lambda: bp.prune.Regrowth("set", [0.5]), "is a fraction of the run"),
        (lambda: bp.prune.Pruner(LINEAR, steps=9), "steps= needs sparsity="),
        (lambda: bp.prune.Pruner(LINEAR, "cubic"), "schedule= needs sparsity="),
        (lambda: bp.prune.Pruner(LINEAR, "square", sparsity=0.5), "schedule must be one of cubic"),
        (lambda: bp.prune.Pruner(LINEAR, "cubic", sparsity=0.5), "schedule= needs steps="),
        (
            lambda: bp.prune.Pruner(LINEAR, sparsity=0.5, when=(0.0, 0.5)),
            "is a fraction of the run",
        ),
        (lambda: bp.prune.Pruner(LINEAR, sparsity=0.5, steps=9, when=(0.5, 0.0)), "in this order"),
        (lambda: bp.prune.Pruner(LINEAR, sparsity=1.5), r"sparsity must be in \[0, 1\)"),
        (
            lambda: bp.prune.Pruner(LINEAR, S.one_shot(0.5), sparsity=0.5),
            "a Schedule says how much is pruned and when; leave out sparsity=",
        ),
        (
            lambda: bp.prune.Pruner(LINEAR, sparsity={"weight": 0.5}, scope="local"),
            "says the scope",
        ),
        (lambda: bp.prune.Pruner(LINEAR, sparsity={"zz": 0.5}), "'zz' matches no weight"),
        (lambda: bp.Budget(), "give macs=, parameters="),
        (lambda: bp.Budget(macs=1.5), "macs must be a share"),
        (lambda: bp.Budget(bytes=0), "bytes must be a share"),
        (lambda: bp.Budget(parameters=True), "parameters must be a share"),
        (lambda: bp.Budget(latency_ms=-1.0), "latency_ms must be milliseconds above 0"),
        (lambda: bp.calibrate(prepared(), data=[]), "data gave no batch"),
        (lambda: bp.calibrate(prepared(), data=[{"x": torch.ones(1, 4)}]), 'must hold "input"'),
        (lambda: bp.report.layers(prepared(), batches=3), "need data="),
    ],
)
def test_wrong_mixtures(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bp.calibrate(prepared(), data=torch.ones(2, 4)), r"got a tensor; give \[tensor\]"),
        (lambda: bp.calibrate(prepared(), data=3), "data must be an iterable of batches, got int"),
        (lambda: bp.calibrate(prepared(), data=[1], batches=[2]), "batches must be an int"),
        (lambda: bp.calibrate(prepared(), data=[1], forward=3), "forward must be a function"),
        (lambda: bp.prune.shrink(LINEAR, keep=0.5, example_inputs=(torch.ones(1, 4),)), "Budget"),
        (lambda: bp.prune.Pruner(LINEAR, 0.5), "schedule must be a bp.prune.Schedule or one of"),
        (lambda: bp.prune.shrink(LINEAR, (torch.ones(1, 4),), 0.5), "positional"),
    ],
)
def test_wrong_types(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_time_is_a_fraction_or_a_step():
    fractions = S.cubic(sparsity=0.8, begin=0.1, end=0.5, every=0.1, steps=100)
    assert fractions == S.cubic(sparsity=0.8, begin=10, end=50, every=10)
    pruner = bp.prune.Pruner(nn.Linear(8, 8), sparsity=0.5, steps=200, when=(0.0, 0.5))
    assert pruner.schedule == S.cubic(0.5, begin=0, end=100)
    pruner = bp.prune.Pruner(
        nn.Linear(8, 8), "linear", sparsity=0.5, steps=200, when=(10, 0.5), every=5
    )
    assert pruner.schedule == S.linear(0.5, begin=10, end=100, every=5)
    assert bp.prune.Regrowth("set", (0.5, 90), steps=100).events == [50, 90]
    ramp = bp.distill.Ramp(0.0, 1.0, steps=100, when=(0.5, 1.0))
    assert [ramp(0), ramp(75), ramp(100)] == [0.0, 0.5, 1.0]


def test_names_may_have_the_prefixes_of_wrappers():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    config = bp.QConfig.int8().override("module.2", weight=bp.FLOAT)
    model = bp.prepare(net, config, example_inputs=(torch.ones(2, 4),))
    assert model[2].bp_weight is None and model[0].bp_weight is not None
    pruner = bp.prune.Pruner(net, sparsity={"_orig_mod.module.0": 0.5})
    assert set(pruner.sparsity()) == {"0.weight"}
    pruner.finalize()
    small = bp.prune.shrink(net, sparsity={"module.0": 0.5}, example_inputs=torch.ones(2, 4))
    assert small[0].out_features == 4
    hint = bp.distill.Hint("module.0", "_orig_mod.0")
    kd = bp.distill.Distiller(
        net, nn.Sequential(nn.Linear(4, 8)), hints=[hint], example_inputs=(torch.ones(2, 4),),
        loss=lambda student, teacher, target: student.sum(),
    )  # fmt: skip
    assert torch.isfinite(kd(torch.ones(2, 4)))


def test_a_batch_may_be_given_in_any_way():
    model, x = prepared(), torch.randn(6, 4)
    first = None
    for data, forward in (
        ([x], None),
        ([(x, 1)], None),
        ([{"other": 0, "input": x}], None),
        ([{"pixels": x}], lambda m, batch: m(batch["pixels"])),
    ):
        bp.calibrate(model, data=data, forward=forward)
        bp.verify(model, bp.convert(model.eval()), data=data, forward=forward)
        rows = bp.report.layers(model, data=data, forward=forward).rows
        effects = bp.report.effects(model, data=data, forward=forward, progress=False).rows
        scale = float(model[1].bp_output.scale)
        found = (scale, [r.sqnr for r in rows], [r.output for r in effects])
        first = first or found
        assert found == first


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(signatures()) + "\n")
