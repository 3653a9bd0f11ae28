"""Test the parts of a training run: exact resume, copies, averages, compile, processes,
checkpointing."""

import copy
import io
import os
import pickle
import subprocess
import sys

import bitpare as bp
import networks
import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from bitpare.nn.quantizer import Quantizer
from processes import run_two
from torch import nn
from torch.utils.checkpoint import checkpoint

STEPS = 8
CONFIGS = {"int8": bp.QConfig.int8(), "int4": bp.QConfig.int4()}


def data(network: str, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = networks.NETWORKS[network][1]
    generator = torch.Generator().manual_seed(step)
    return (
        torch.randn(shape, generator=generator),
        torch.randint(0, 10, shape[:1], generator=generator),
    )


class Run:
    """A training run that can be saved and resumed."""

    def __init__(self, network: str, config: bp.QConfig) -> None:
        torch.manual_seed(0)
        self.network = network
        model = networks.NETWORKS[network][0]()
        self.model = bp.prepare(model, config, example_inputs=(data(network, 0)[0],)).train()
        groups = bp.param_groups(self.model, weight_decay=1e-4)
        self.optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
        self.schedule = bp.QatSchedule(
            self.model, steps=STEPS, delay=1, freeze_ranges=5, freeze_bn=6, bits={0: 8, 3: 4}
        ).attach(self.optimizer)

    def train(self, steps: range) -> "Run":
        for step in steps:
            x, target = data(self.network, step)
            self.optimizer.zero_grad()
            torch.manual_seed(step)
            F.cross_entropy(self.model(x), target).backward()
            self.optimizer.step()
        return self

    def save(self) -> io.BytesIO:
        file = io.BytesIO()
        state = [part.state_dict() for part in (self.model, self.optimizer, self.schedule)]
        torch.save(state, file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> "Run":
        for part, state in zip(
            (self.model, self.optimizer, self.schedule), torch.load(file), strict=True
        ):
            part.load_state_dict(state)
        return self


def same_state(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return list(one) == list(two) and all(torch.equal(v, two[k]) for k, v in one.items())


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("network", networks.NETWORKS)
def test_a_run_killed_at_any_step_resumes_exactly(network, config):
    whole = Run(network, CONFIGS[config]).train(range(STEPS))
    for step in range(STEPS):
        file = Run(network, CONFIGS[config]).train(range(step)).save()
        resumed = Run(network, CONFIGS[config]).load(file).train(range(step, STEPS))
        assert same_state(whole.model, resumed.model), step
    x, _ = data(network, 0)
    assert torch.equal(whole.model.eval()(x), resumed.model.eval()(x))


def test_the_model_may_be_loaded_before_the_schedule_is_made():
    file = Run("lenet", CONFIGS["int4"]).train(range(5)).save()
    whole = Run("lenet", CONFIGS["int4"]).train(range(STEPS))
    run = Run.__new__(Run)
    run.network = "lenet"
    states = torch.load(file)
    model = networks.LeNet()
    run.model = bp.prepare(model, CONFIGS["int4"], example_inputs=(data("lenet", 0)[0],)).train()
    run.model.load_state_dict(states[0])
    groups = bp.param_groups(run.model, weight_decay=1e-4)
    run.optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    run.optimizer.load_state_dict(states[1])
    run.schedule = bp.QatSchedule(
        run.model, steps=STEPS, delay=1, freeze_ranges=5, freeze_bn=6, bits={0: 8, 3: 4}
    ).attach(run.optimizer)
    run.schedule.load_state_dict(states[2])
    assert same_state(whole.model, run.train(range(5, STEPS)).model)


@pytest.mark.parametrize("network", networks.NETWORKS)
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_train_on_alike(network, way):
    run = Run(network, CONFIGS["int8"]).train(range(3))
    if way == "deepcopy":
        other = copy.deepcopy(run.model)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(run.model))
    else:
        file = io.BytesIO()
        torch.save(run.model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    x, target = data(network, 3)
    for model in (run.model, other):
        model.zero_grad()
        torch.manual_seed(0)
        F.cross_entropy(model(x), target).backward()
    grads = zip(run.model.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(p.grad, q.grad) for p, q in grads)
    run.model(x), other(x)
    assert same_state(run.model, other)


def test_pickles_open_in_another_process(tmp_path):
    x, _ = data("mobilenet", 0)
    run = Run("mobilenet", CONFIGS["int8"]).train(range(2))
    y = run.model.eval()(x)
    torch.save((run.model, x, y), tmp_path / "model.pt")
    code = (
        "import sys, torch, bitpare, networks; torch.set_num_threads(2);"
        "m, x, y = torch.load(sys.argv[1], weights_only=False); assert torch.equal(m(x), y)"
    )
    folder = os.path.dirname(__file__)
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.pt")], cwd=folder, check=True)


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_ema(network):
    run = Run(network, CONFIGS["int8"])
    average = bp.ema(run.model, decay=0.5)
    first = next(run.model.parameters()).detach().clone()
    for step in range(4):
        run.train(range(step, step + 1))
        average.update(run.model)
    mine, theirs = average.module.state_dict(), run.model.state_dict()
    for key, value in theirs.items():
        if not value.is_floating_point() or "bp_" in key:
            assert torch.equal(mine[key], value), key
    name = next(iter(theirs))
    assert not torch.equal(mine[name], theirs[name]) and not torch.equal(mine[name], first)
    x, _ = data(network, 0)
    assert torch.isfinite(average.eval()(x)).all()
    kept = bp.ema(run.model, decay=0.5)
    kept.load_state_dict(average.state_dict())
    assert same_state(kept, average)


def test_ema_is_the_average_it_says():
    run = Run("lenet", CONFIGS["int8"])
    average = bp.ema(run.model, decay=0.3)
    expected = run.model.conv1.weight.detach().clone()
    for step in range(3):
        run.train(range(step, step + 1))
        average.update(run.model)
        weight = min(0.3, (2.0 + step) / (11.0 + step))
        expected = weight * expected + (1 - weight) * run.model.conv1.weight.detach()
    torch.testing.assert_close(average.module.conv1.weight, expected)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("network", networks.NETWORKS)
def test_compile(network, backend):
    """Check that there is no graph break, no recompilation after flag changes, and the eager
    results."""
    torch._dynamo.reset()
    x, target = data(network, 0)
    run = Run(network, CONFIGS["int8"])
    bp.calibrate(run.model, data=[x])
    for module in run.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # inductor draws different random numbers
    eager = copy.deepcopy(run.model)
    count = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(run.model, backend=count, fullgraph=True)
    frames = 0
    for step in range(3):
        for model, kept in ((compiled, run.model), (eager, eager)):
            kept.zero_grad()
            torch.manual_seed(step)
            loss = F.cross_entropy(model(x), target)
            loss.backward()
        for p, q in zip(run.model.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, atol=2e-3, rtol=2e-2)
        for model in (run.model, eager):
            for q in model.modules():
                if isinstance(q, Quantizer):
                    q.control[2 + step % 2] = 1 - q.control[2 + step % 2]
        frames = frames or count.frame_count
        assert count.frame_count == frames


SWITCHED = {
    "lsq": (bp.QSpec(bits=4, learn="lsq"), bp.QSpec(bits=4, learn="lsq")),
    "lsq+": (bp.QSpec(bits=4, learn="lsq"), bp.QSpec(bits=4, learn="lsq+")),
    "pact": (bp.QSpec(bits=4, learn="dorefa"), bp.QSpec(bits=4, learn="pact")),
    "binary": (bp.QSpec(bits=1), bp.QSpec(bits=8, dynamic=True)),
    "mse": (bp.QSpec(bits=4, range="mse"), bp.QSpec(bits=8, range="sigma")),
    "channels": (bp.QSpec(bits=8, group=4), bp.QSpec(bits=8, granularity="channel")),
}


@pytest.mark.parametrize("name", SWITCHED)
def test_switches_do_not_recompile(name):
    """Check that graphs read the switches of every quantizer on the device."""
    torch._dynamo.reset()
    weight, activation = SWITCHED[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    x = torch.randn(16, 8)
    eager = bp.prepare(model, bp.QConfig(weight=weight, activation=activation), example_inputs=(x,))
    bp.calibrate(eager, data=[x])
    other = copy.deepcopy(eager)
    count = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(other, backend=count, fullgraph=True)
    results, frames = [], 0
    for step, (observe, quantize) in enumerate([(1, 1), (0, 1), (1, 0), (0, 0), (1, 1)]):
        for kept in (eager, other):
            kept.train()
            for q in (m for m in kept.modules() if isinstance(m, Quantizer)):
                q.set_flags(observe=bool(observe), quantize=bool(quantize))
        torch.manual_seed(step)
        batch = torch.randn(16, 8) * (1 + step)
        for run, kept in ((eager, eager), (compiled, other)):
            kept.zero_grad()
            y = run(batch)
            y.square().mean().backward()
            results.append((y.detach(), [p.grad for p in kept.parameters()], kept.state_dict()))
        (y1, g1, s1), (y2, g2, s2) = results[-2:]
        torch.testing.assert_close(y1, y2)
        for a, b in zip(g1, g2, strict=True):
            zero = torch.zeros(()) if a is None or b is None else None
            torch.testing.assert_close(
                zero.expand_as(b) if a is None and b is not None else a,
                zero.expand_as(a) if b is None and a is not None else b,
            )
        for key, value in s1.items():
            torch.testing.assert_close(value, s2[key], msg=lambda m, key=key: f"{key}: {m}")
        frames = frames or count.frame_count
        assert count.frame_count == frames
    assert not torch.equal(results[0][0], results[4][0])


def test_compiled_models_are_found_inside():
    model = bp.prepare(networks.LeNet(), example_inputs=data("lenet", 0)[0])
    wrapped = torch.compile(model, backend="eager")
    bp.calibrate(wrapped, data=[data("lenet", 0)[0]])
    assert bp.report.placement(wrapped).quantizers
    assert len(bp.param_groups(wrapped)) == 2


def test_activation_checkpointing_gives_the_same_gradients():
    """Check that parts recomputed in the backward pass see the same ranges and weights."""
    x, _ = data("mobilenet", 0)
    for calibrated in (True, False):
        model = bp.prepare(networks.SmallMobileNet(), example_inputs=(x,)).train()
        if calibrated:
            bp.calibrate(model, data=[x])
        model.classifier[0].p = 0.0
        other = copy.deepcopy(model)
        for norm in other.modules():
            if isinstance(norm, nn.BatchNorm2d):  # a recomputation moves the statistics twice,
                norm.momentum = 0.0  # as in any model
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 0.0
        features, recomputed = model.features, other.features
        y = x
        z = x
        for a, b in zip(features, recomputed, strict=True):
            y, z = a(y), checkpoint(b, z, use_reentrant=False)
        y.square().mean().backward()
        z.square().mean().backward()
        assert torch.equal(y, z)
        for p, q in zip(features.parameters(), recomputed.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)
        whole = checkpoint(other, x, use_reentrant=False)
        whole.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    run = Run("mobilenet", CONFIGS["int8"])
    x, target = data("mobilenet", 0)
    with torch.autocast("cpu", dtype):
        loss = F.cross_entropy(run.model(x).float(), target)
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in run.model.parameters())


def test_grad_scaler_skips_a_step():
    run = Run("lenet", CONFIGS["int8"])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for step in range(4):
        x, target = data("lenet", step)
        run.optimizer.zero_grad()
        scaler.scale(F.cross_entropy(run.model(x), target)).backward()
        if step == 1:
            next(run.model.parameters()).grad[0] = float("inf")
        scaler.step(run.optimizer)
        scaler.update()
    assert run.schedule.step_count == 3


def test_micro_batches_accumulate():
    """Split a batch into two for one step. Each use of a weight has its own gradient."""
    x, target = data("lenet", 0)
    model = bp.prepare(networks.LeNet(), example_inputs=(x,)).train()
    bp.calibrate(model, data=[x])
    for q in model.modules():
        if isinstance(q, Quantizer):
            q.set_flags(observe=False)
    whole = copy.deepcopy(model)
    F.cross_entropy(whole(x), target).backward()
    loss = sum(F.cross_entropy(model(x[i : i + 2]), target[i : i + 2]) / 2 for i in (0, 2))
    loss.backward()
    for p, q in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4)


def test_weights_changed_behind_autograd_are_seen():
    x, _ = data("lenet", 0)
    model = bp.prepare(networks.LeNet(), example_inputs=(x,)).train()
    bp.calibrate(model, data=[x])
    y = model(x)
    model.conv1.weight.data.mul_(2)
    assert not torch.equal(model(x), y)


PROCESSES = """
import os, sys, torch, torch.distributed as dist, torch.nn.functional as F
sys.path.insert(0, sys.argv[1])
import bitpare as bp, networks
from processes import leave
from bitpare.nn.quantizer import Quantizer
rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=2)
torch.set_num_threads(1)
for name, (kind, shape) in networks.NETWORKS.items():
    torch.manual_seed(0)
    model = bp.prepare(kind(), example_inputs=torch.randn(shape)).train()
    bp.calibrate(model, [torch.randn(shape)])
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(bp.param_groups(wrapped), lr=0.05, momentum=0.9)
    schedule = bp.QatSchedule(wrapped, steps=6, freeze_ranges=4).attach(optimizer)
    for step in range(6):
        torch.manual_seed(10 * step + rank)
        x = torch.randn(shape) * (1 + rank)
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    for key, value in model.state_dict().items():
        if "running" in key or "pending" in key:
            continue
        values = [torch.empty_like(value) for _ in range(2)]
        dist.all_gather(values, value)
        assert torch.equal(*values), (name, key)
    assert len(bp.report.placement(wrapped).quantizers) > 3
    del wrapped, model, optimizer, schedule
print("alike", flush=True)
leave()
"""


def test_two_processes_share_ranges(tmp_path):
    run_two(PROCESSES, tmp_path)


SHARDED = """
import sys, torch, torch.distributed as dist, torch.nn.functional as F
sys.path.insert(0, sys.argv[1])
import bitpare as bp, networks
from processes import leave
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=0, world_size=1)
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
mesh = init_device_mesh("cpu", (1,))
for name, (kind, shape) in networks.NETWORKS.items():
    torch.manual_seed(0)
    model = bp.prepare(kind(), example_inputs=torch.randn(shape)).train()
    bp.calibrate(model, [torch.randn(shape)])
    try:
        fully_shard(model, mesh=mesh)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        F.cross_entropy(model(torch.randn(shape)), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
        print(name, "works")
    except bp.Unsupported as error:
        print(name, "refused", error)
leave()
"""


def test_sharding_works_or_is_refused_with_the_reason(tmp_path):
    command = [sys.executable, "-c", SHARDED, os.path.dirname(__file__), str(tmp_path / "meet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    for line in done.stdout.splitlines():
        assert "works" in line or "refused" in line


def test_param_groups():
    model = bp.prepare(
        networks.SmallMobileNet(), bp.QConfig.int4(), example_inputs=torch.randn(2, 3, 16, 16)
    )
    groups = bp.param_groups(model, weight_decay=0.1, scale_lr=0.001)
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, plain, scales = ([names[id(p)] for p in g["params"]] for g in groups)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0, 0.0] and groups[2]["lr"] == 0.001
    assert all(n.endswith("weight") for n in decayed) and len(decayed) == 11
    assert all(n.endswith(("bias", "weight")) for n in plain)
    assert all("bp_" in n for n in scales)
    assert len(decayed) + len(plain) + len(scales) == len(names)
