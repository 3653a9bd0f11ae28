"""Test bp.save and bp.load: training continues from the file bit for bit."""

import contextlib
import copy

import bitpare as bp
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, width: int = 12):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor, scale: Tensor | None = None):
        y = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(y.mean((2, 3)))


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor):
        return x + F.relu(self.inner(x))


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Run:
    """A training run with every object that has a state."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.optimizer = torch.optim.SGD(bp.param_groups(model), lr=0.05, momentum=0.9)
        self.schedule = bp.QatSchedule(
            model, steps=12, bits={0: 8, 0.25: 4}, freeze_bn=0.5, freeze_ranges=0.6
        ).attach(self.optimizer)
        self.pruner = bp.prune.Pruner(model, sparsity=0.5, steps=12, when=(1, 9), every=2)
        self.pruner.attach(self.optimizer)

    def steps(self, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            torch.manual_seed(step)
            x, y = torch.randn(8, 3, 8, 8), torch.randint(5, (8,))
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    def states(self):
        parts = (self.optimizer, self.schedule, self.pruner)
        return [copy.deepcopy(part.state_dict()) for part in parts]

    def load(self, states):
        for part, state in zip((self.optimizer, self.schedule, self.pruner), states, strict=True):
            part.load_state_dict(state)


CONFIGS = {
    "int8": bp.QConfig.int8(),
    "int4": bp.QConfig.int4(),
    "overrides": bp.QConfig.int8()
    .override(nn.Linear, weight=bp.FLOAT)
    .override("blocks.*", weight=bp.QSpec(bits=4, learn="lsq")),
    "dynamic": bp.QConfig.dynamic(),
    "fp8": bp.QConfig.fp8(),
}


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("at", [2, 7])
def test_training_goes_on_bit_for_bit(tmp_path, name, at):
    torch.manual_seed(0)
    run = Run(bp.prepare(Net(), CONFIGS[name], example_inputs=(X,)))
    run.model.train()
    run.steps(0, at)
    bp.save(run.model, tmp_path / "q.safetensors")
    states = run.states()
    expected = run.steps(at, 12)
    again = Run(bp.load(tmp_path / "q.safetensors", model=Net))
    again.load(states)
    assert again.steps(at, 12) == expected
    assert same(run.model, again.model)
    if name == "int8":
        run.pruner.finalize(), again.pruner.finalize()
        made, remade = (bp.convert(r.model.eval()) for r in (run, again))
        assert torch.equal(made(X), remade(X))


def test_modes_and_flags_come_back(tmp_path):
    model = bp.prepare(Net(), example_inputs=(X,)).to(memory_format=torch.channels_last)
    bp.calibrate(model, data=[X])
    model.train()
    model.norm.eval()
    model.head.weight.requires_grad_(False)
    bp.save(model, tmp_path / "q")
    again = bp.load(tmp_path / "q", model=Net)
    assert [m.training for m in again.modules()] == [m.training for m in model.modules()]
    assert not again.head.weight.requires_grad and again.head.bias.requires_grad
    assert again.stem.weight.stride() == model.stem.weight.stride()
    assert same(model, again) and torch.equal(model.eval()(X), again.eval()(X))
    assert str(bp.report.placement(again)) == str(bp.report.placement(model))


@pytest.mark.parametrize("order", ["before", "after", "both", "part"])
def test_smaller_models(tmp_path, order):
    torch.manual_seed(1)
    net = Net().eval()
    if order in ("before", "both"):
        net = bp.prune.drop_layers(net, sparsity=0.5, example_inputs=(X,))
        net = bp.prune.shrink(net, sparsity=0.25, example_inputs=(X,))
    if order == "part":
        part = bp.prune.drop_layers(
            net.blocks, sparsity=0.5, example_inputs=torch.randn(1, 12, 8, 8)
        )
        net.blocks = part
    model = bp.calibrate(bp.prepare(net, example_inputs=(X,)), data=[X])
    if order in ("after", "both"):
        model = bp.prune.shrink(model, sparsity=0.5, example_inputs=(X,))
    bp.save(model, tmp_path / "q")
    again = bp.load(tmp_path / "q", model=Net)
    bp.save(again, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "q").read_bytes()
    assert same(model, again) and torch.equal(model.eval()(X), again.eval()(X))


def test_tied_weights_are_stored_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(F.relu(self.first(x)))

    x = torch.randn(2, 64)
    model = bp.calibrate(bp.prepare(Tied(), example_inputs=(x,)), data=[x])
    bp.save(model, tmp_path / "q")
    again = bp.load(tmp_path / "q", model=Tied)
    assert again.second.weight is again.first.weight and same(model, again)
    assert (tmp_path / "q").stat().st_size < 64 * 64 * 4 + 8000


def test_integer_examples_and_keywords(tmp_path):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 3)

        def forward(self, words, *, options):
            return self.head(self.table(words).mean(1) * options["scale"][0])

    words = torch.randint(10, (2, 6))
    options = {"scale": [torch.tensor(2.0)]}
    model = bp.prepare(Words(), example_inputs=(words,), example_kwargs={"options": options})
    model.train()(words, options=options)
    bp.save(model, tmp_path / "q")
    again = bp.load(tmp_path / "q", model=Words)
    assert torch.equal(again.eval()(words, options=options), model.eval()(words, options=options))


def test_half_precision(tmp_path):
    x, net = X.bfloat16(), Net().bfloat16()
    net.norm.float()  # statistics stay float32, as in mixed precision
    model = bp.prepare(net, example_inputs=(x,))
    bp.calibrate(model, data=[x])
    bp.save(model, tmp_path / "q")
    again = bp.load(tmp_path / "q", model=Net)
    assert again.stem.weight.dtype == torch.bfloat16
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_a_model_may_be_given_in_three_ways(tmp_path):
    model = bp.calibrate(bp.prepare(Net(8), example_inputs=(X,)), data=[X])
    bp.save(nn.DataParallel(model), tmp_path / "q")
    instance = Net(8)
    before = copy.deepcopy(instance.state_dict())
    for given in (lambda: Net(8), instance):
        assert same(bp.load(tmp_path / "q", model=given), model)
    assert all(torch.equal(before[n], v) for n, v in instance.state_dict().items())


def test_errors(tmp_path):
    path = tmp_path / "q"
    net = Net()
    with pytest.raises(ValueError, match="save: the model is not prepared"):
        bp.save(net, path)
    config = bp.QConfig.int8().override(lambda name, m: name == "head", weight=bp.FLOAT)
    with pytest.raises(ValueError, match="a function as a pattern"):
        bp.save(bp.prepare(net, config, example_inputs=(X,)), path)
    model = bp.prepare(net, example_inputs=(X,))
    bp.save(model, path)
    with pytest.raises(
        ValueError, match=r"q: cannot be loaded into Net; it was saved from .*Net: "
    ):
        bp.load(path, model=lambda: Net(6))
    with pytest.raises(ValueError, match="cannot be loaded into Block"):
        bp.load(path, model=lambda: Block(3))
    with pytest.raises(ValueError, match="model must be the float model"):
        bp.load(path, model=model)
    with pytest.raises(TypeError, match=r"model must return a torch\.nn\.Module, got int"):
        bp.load(path, model=lambda: 3)
    with pytest.raises(FileNotFoundError, match="absent"):
        bp.load(tmp_path / "absent", model=Net)
    (tmp_path / "text").write_text("hello, this is no file of tensors at all")
    with pytest.raises(ValueError, match="text: "):
        bp.load(tmp_path / "text", model=Net)
    bp.calibrate(model, data=[X])
    bp.deploy.save(
        bp.convert(
            bp.calibrate(
                bp.prepare(nn.Sequential(nn.Linear(4, 2)), example_inputs=torch.ones(1, 4)),
                data=[torch.ones(1, 4)],
            )
        ),
        tmp_path / "int8",
    )
    with pytest.raises(ValueError, match=r"bp\.deploy\.load reads integer models"):
        bp.load(tmp_path / "int8", model=Net)
    with pytest.raises(ValueError, match="not of an integer model"):
        bp.deploy.load(path)


def test_a_damaged_file_is_an_error(tmp_path):
    model = bp.prepare(Net(), example_inputs=(X,))
    bp.save(model, tmp_path / "q")
    content = (tmp_path / "q").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for trial in range(30):
        at = int(torch.randint(len(content) if trial % 2 else 4000, (), generator=generator))
        changed = (
            content[:at]
            if trial % 3 == 0
            else (content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :])
        )
        (tmp_path / "bad").write_bytes(changed)
        with contextlib.suppress(ValueError, TypeError, bp.Unsupported):
            bp.load(tmp_path / "bad", model=Net)
