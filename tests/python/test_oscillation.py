"""Test oscillating weights: tracking, freezing, and resuming both."""

import copy

import bitpare as bp
import pytest
import reference
import torch
from torch import nn

F = bp.functional
TYPES = {"code": torch.int16, "turn": torch.int8, "frequency": torch.float, "mean": torch.float}


def control(low=-8, high=7) -> torch.Tensor:
    return torch.tensor([low, high, 1, 1, 0], dtype=torch.int32)


def new_state(n: int, device="cpu") -> dict:
    return {name: torch.zeros(n, dtype=dtype, device=device) for name, dtype in TYPES.items()}


def walk(scales: int, looks: int, **kwargs):
    """Do a random walk that turns back often, and yield (weight before, weight after, state)."""
    torch.manual_seed(1)
    scale, start = torch.rand(scales) + 0.2, torch.randn(12, 5, 3, 3)
    state = new_state(start.numel())
    for look in range(looks):
        before = start + torch.randn_like(start) * 0.3
        weight = before.clone()
        F.track_oscillations_(weight, scale, control(), **state, first=look == 0, **kwargs)
        yield before, weight, state, scale


@pytest.mark.parametrize("scales", [1, 12, 60])
def test_is_the_algorithm(scales):
    momentum = torch.tensor(0.1).item()  # rounded to float32
    kwargs = {"momentum": 0.1, "threshold": 0.2}
    expected: dict = {}
    for look, (before, weight, state, scale) in enumerate(walk(scales, 20, **kwargs)):
        wanted = reference.track_oscillations(
            before, scale, expected, -8, 7, torch.tensor(momentum), 0.2, first=look == 0
        )
        assert torch.equal(weight, wanted)
        for name in TYPES:
            assert torch.equal(state[name].float(), expected[name].float()), (look, name)
    share = (state["turn"] == 2).float().mean()
    assert 0.05 < share < 0.95  # some are frozen and some are not


def test_without_threshold_nothing_is_written():
    looks = list(walk(12, 20, momentum=0.5))
    for before, weight, _, _ in looks:
        assert torch.equal(before, weight)
    state = looks[-1][2]
    assert (state["frequency"] > 0.2).any() and not (state["turn"] == 2).any()


def test_versions_and_layouts():
    weight = torch.randn(4, 6, 3, 3).contiguous(memory_format=torch.channels_last)
    state = new_state(weight.numel())
    args = (weight, torch.full((4,), 0.3), control(), *state.values())
    before = weight._version
    F.track_oscillations_(*args, first=True)
    assert weight._version > before
    expected = torch.round(weight / 0.3).clamp(-8, 7).permute(0, 2, 3, 1).flatten()
    assert torch.equal(state["code"].float(), expected)


def test_skip_leaves_all_as_it_is():
    *_, (_, weight, state, scale) = walk(12, 10, momentum=0.5, threshold=0.3)
    moved, kept = weight + 1, copy.deepcopy(state)
    args = (moved, scale, control(), *state.values())
    F.track_oscillations_(*args, threshold=0.0, skip=torch.ones(1))
    assert torch.equal(moved, weight + 1)
    assert all(torch.equal(state[name], kept[name]) for name in state)


@pytest.mark.cuda
def test_cuda_has_the_same_bits():
    torch.manual_seed(2)
    scale, start = torch.rand(12) + 0.2, torch.randn(12, 5, 3, 3)
    here, there = new_state(start.numel()), new_state(start.numel(), "cuda")
    for look in range(30):
        weight = start + torch.randn_like(start) * 0.3
        on_gpu = weight.cuda()
        kwargs = {"first": look == 0, "momentum": 0.1, "threshold": 0.2}
        F.track_oscillations_(weight, scale, control(), **here, **kwargs)
        F.track_oscillations_(on_gpu, scale.cuda(), control().cuda(), **there, **kwargs)
        assert torch.equal(on_gpu.cpu(), weight)
        assert all(torch.equal(there[name].cpu(), here[name]) for name in here)


# the class ------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.fc = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.fc.weight

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return self.tied(torch.relu(self.fc(self.up(x).mean([2, 3]))))


X = torch.randn(16, 3, 8, 8)


def prepared(config=None):
    torch.manual_seed(3)
    qat = bp.prepare(Net(), config or bp.QConfig.int8(), example_inputs=(X,))
    bp.calibrate(qat, data=[X])
    return qat.train()


def trained(qat, optimizer, steps, start=0):
    for step in range(start, start + steps):
        torch.manual_seed(step)
        x = torch.randn(16, 3, 8, 8)
        optimizer.zero_grad()
        nn.functional.cross_entropy(qat(x), torch.randint(0, 4, (16,))).backward()
        for p in (qat.conv.weight, qat.fc.weight):  # add noise, so that some oscillate
            p.grad += torch.randn_like(p) * 0.1
        optimizer.step()


CONFIGS = {
    "range": bp.QConfig(weight=bp.QSpec(bits=3), activation=bp.QSpec(bits=8)),
    "lsq": bp.QConfig(weight=bp.QSpec(bits=3, learn="lsq"), activation=bp.QSpec(bits=8)),
    "mse": bp.QConfig(weight=bp.QSpec(bits=3, range="mse"), activation=bp.QSpec(bits=8)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_frozen_weights_stay_at_their_integer(name):
    qat = prepared(CONFIGS[name])
    optimizer = torch.optim.SGD(qat.parameters(), lr=0.3)
    oscillations = bp.Oscillations(qat, momentum=0.1, freeze_above=0.15).attach(optimizer)
    assert oscillations.untracked == {
        "up.weight": "its scales do not lie along dimension 0",
        "tied.weight": "shared with a layer before",
    }
    trained(qat, optimizer, 40)
    frozen = {n: s[1] for n, s in oscillations.shares().items()}
    assert set(frozen) == {"conv.weight", "fc.weight"} and frozen["conv.weight"] > 0
    state = {n: s for n, s in oscillations.state_dict().items()}["conv.weight"]
    held, code = state["turn"] == 2, state["code"].clone()
    trained(qat, optimizer, 20, start=40)
    later = oscillations.state_dict()["conv.weight"]
    assert (later["turn"][held] == 2).all() and torch.equal(later["code"][held], code[held])
    scale = qat.conv.bp_weight.scale.detach().repeat_interleave(27)
    assert torch.equal(qat.conv.weight.flatten()[held], (code * scale)[held])
    assert f"{len(frozen)} weight tensors" in str(oscillations)


def test_tracking_does_not_change_training():
    results = []
    for track in (False, True):
        qat = prepared()
        optimizer = torch.optim.SGD(qat.parameters(), lr=0.1)
        if track:
            bp.Oscillations(qat).attach(optimizer)
        trained(qat, optimizer, 5)
        results.append(list(qat.parameters()))
    assert all(map(torch.equal, *results))


def scheduled(bits=None):
    qat = prepared(CONFIGS["lsq"])
    optimizer = torch.optim.SGD(qat.parameters(), lr=0.3)
    schedule = bp.QatSchedule(
        qat, steps=60, delay=4, bits=bits, freeze_oscillating={0: 0.05, 0.5: 0.02}
    ).attach(optimizer)
    return qat, optimizer, schedule


@pytest.mark.parametrize("stop", [2, 17, 33])
def test_a_run_taken_up_again_is_the_uninterrupted_run(stop):
    bits = {0: 4, 0.4: 3}
    qat, optimizer, schedule = scheduled(bits)
    trained(qat, optimizer, 45)
    first, halfway, its_schedule = scheduled(bits)
    trained(first, halfway, stop)
    saved = copy.deepcopy([first.state_dict(), halfway.state_dict(), its_schedule.state_dict()])
    second, again, new_schedule = scheduled(bits)
    for part, state in zip((second, again, new_schedule), saved, strict=True):
        part.load_state_dict(state)
    trained(second, again, 45 - stop, start=stop)
    for a, b in zip(qat.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert schedule.oscillations.shares() == new_schedule.oscillations.shares()
    assert max(s[1] for s in schedule.oscillations.shares().values()) > 0


def test_the_schedule_says_what_it_will_freeze():
    _, _, schedule = scheduled()
    assert "step 30: freeze weights oscillating above 0.02" in str(schedule)
    assert schedule.oscillations.freeze_above == 0.05
    only = bp.QatSchedule(prepared(), steps=9, freeze_oscillating=float("inf"))
    assert only.oscillations.freeze_above == float("inf")


def test_other_bits_begin_anew():
    qat, optimizer, schedule = scheduled({0: 4, 0.5: 3})
    trained(qat, optimizer, 30)
    assert max(s[1] for s in schedule.oscillations.shares().values()) > 0
    trained(qat, optimizer, 1, start=30)  # the first step on the new grid
    assert max(s[1] for s in schedule.oscillations.shares().values()) == 0


def test_wrong_use_is_said():
    with pytest.raises(ValueError, match="the model is not prepared"):
        bp.Oscillations(Net())
    qat = prepared()
    for bad in (0.0, 1.5):
        with pytest.raises(ValueError, match="momentum must be in"):
            bp.Oscillations(qat, momentum=bad)
    with pytest.raises(ValueError, match="freeze_above must be 0 or more, got -1"):
        bp.Oscillations(qat, freeze_above=-1)
    oscillations = bp.Oscillations(qat)
    with pytest.raises(ValueError, match=r"the state is of other weights: conv.weight, fc.weight"):
        oscillations.load_state_dict({})
    _, _, schedule = scheduled()
    with pytest.raises(ValueError, match="a schedule without oscillations"):
        schedule.load_state_dict({"step": 3})
