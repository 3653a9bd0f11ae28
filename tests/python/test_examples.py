"""Run every example with --quick, and test their shared code."""

import importlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import types

import bitpare as bp
import pytest
import torch

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from bitpare_examples import checkpoint, command, data, networks, training  # noqa: E402

NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture(autouse=True)
def one_thread(fixed_threads):
    """Use one thread, because more slow down networks this small."""
    torch.set_num_threads(1)


def run(name, *arguments):
    return importlib.import_module(name).main([str(a) for a in arguments])


def test_there_is_an_example_of_each():
    assert NAMES == [
        "custom_training_loop",
        "inspect_layers",
        "joint",
        "lenet_digits",
        "mobilenet_cifar10",
        "resnet_prune_schedule",
        "static_vs_dynamic",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_help_explains(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(name, "--help")
    text = capsys.readouterr().out
    module = importlib.import_module(name)
    assert stopped.value.code == 0 and module.__doc__.strip() in text
    for option in ("--quick", "--seed", "--output", "--resume", "--tensorboard"):
        assert option in text
    assert len(module.__doc__.splitlines()) >= 5


# -- the examples


def check_compared(found, names, floor):
    """Check the compared models: accurate enough, and equal if they are the same network."""
    assert list(found) == names
    for name in names:
        assert floor <= found[name]["accuracy"] <= 100, found
        assert found[name]["bytes"] > 0 and found[name]["latency"] > 0
    if "integer" in found:
        assert abs(found["integer"]["accuracy"] - found["fake-quant"]["accuracy"]) <= 1.0
        assert found["integer"]["nonzeros"] <= found["fake-quant"]["nonzeros"]
        assert found["integer"]["bytes"] < found["float"]["bytes"] / 2
    if "ONNX Runtime" in found:
        assert abs(found["ONNX Runtime"]["accuracy"] - found["integer"]["accuracy"]) <= 1.0


def forms():
    """Return the rows of a table whose last model is an integer one."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError:
        return ["float", "fake-quant", "integer"]
    return ["float", "fake-quant", "integer", "ONNX Runtime"]


def check_lenet(found, folder, printed, floor):
    check_compared(found, forms(), floor)
    weights = found["fake-quant"]["weights"]
    assert found["fake-quant"]["nonzeros"] == weights - int(0.8 * weights)
    x = data.digits()[2]
    integer = bp.deploy.load(folder / "model.safetensors")
    percent = training.accuracy(integer, x, data.digits()[3])
    assert percent == found["integer"]["accuracy"]
    assert "<svg" in (folder / "report.html").read_text()
    lines = printed.splitlines()
    assert any("report.html" in line for line in lines) and lines[-1].startswith("latency")
    assert [line.split("  ")[0] for line in lines[-1 - len(found) : -1]] == list(found)


def test_lenet_digits(tmp_path, capsys):
    found = run("lenet_digits", "--quick", "--output", tmp_path)
    check_lenet(found, tmp_path, capsys.readouterr().out, floor=85)


@pytest.mark.slow
def test_lenet_digits_in_full(tmp_path, capsys):
    found = run("lenet_digits", "--output", tmp_path)
    check_lenet(found, tmp_path, capsys.readouterr().out, floor=97)


def test_custom_training_loop(tmp_path):
    found = run("custom_training_loop", "--quick", "--output", tmp_path)
    assert list(found) == ["float32", "8 bits", "4 bits", "2 bits"]
    assert min(found.values()) > 85
    states = torch.load(tmp_path / "checkpoint.pt")["stages"]["2 bits"]["parts"]["model"]
    masks = [states[f"mask{i}"] for i in range(4)]
    weights = [states[f"layers.{i}.weight"] for i in range(4)]
    kept = [
        bp.functional.unpack_mask(m, w.shape).float().sum()
        for m, w in zip(masks, weights, strict=True)
    ]
    assert float(sum(kept)) / sum(w.numel() for w in weights) < 0.6


def test_joint(tmp_path, capsys):
    found = run("joint", "--quick", "--output", tmp_path)
    check_compared(found, forms(), floor=40)
    assert found["integer"]["nonzeros"] <= 0.26 * found["integer"]["weights"]
    assert "4 bits for weights" in capsys.readouterr().out


def test_joint_with_two_of_four(tmp_path, capsys):
    small = ["--quick", "--images", 128, "--epochs", 1, "--joint-epochs", 2, "--pattern", "2:4"]
    found = run("joint", *small, "--output", tmp_path)
    printed = capsys.readouterr().out
    assert "--sparsity is 0.5" in printed and "dense, since 2:4 does not fit" in printed
    assert found["fake-quant"]["nonzeros"] < 0.6 * found["fake-quant"]["weights"]


def test_resnet_prune_schedule(tmp_path):
    found = run("resnet_prune_schedule", "--quick", "--output", tmp_path)
    untrained = found.pop("smaller, untrained")["accuracy"]
    check_compared(found, ["masked", "smaller"], floor=25)
    assert untrained == found["masked"]["accuracy"]  # only zeros were removed
    assert found["smaller"]["nonzeros"] == found["masked"]["nonzeros"]
    assert found["smaller"]["macs"] < 0.3 * found["masked"]["macs"]
    small = bp.prune.Plan.load(tmp_path / "plan.json").apply(networks.ResNet(1, 8))
    small.load_state_dict(torch.load(tmp_path / "small.pt"))


def test_static_vs_dynamic(tmp_path):
    found = run("static_vs_dynamic", "--quick", "--output", tmp_path)
    (static, dynamic, exact), integer = (
        [found[name]["accuracy"] for name in ("static", "dynamic, per batch", "float")],
        found["static, in integers"]["accuracy"],
    )
    assert exact[1] > 85 and abs(static[1] - exact[1]) < 2 and abs(integer[1] - static[1]) < 1
    assert dynamic[3] > exact[3] - 2  # dynamic ranges adapt to brightness
    assert static[3] < dynamic[3] - 2
    converted = found["dynamic, in integers"]["accuracy"]
    assert max(abs(a - b) for a, b in zip(converted, dynamic, strict=True)) < 1
    assert found["static, in integers"]["seconds"] < found["float"]["seconds"]


def test_inspect_layers(tmp_path, capsys):
    found = run("inspect_layers", "--quick", "--bits", 2, "--output", tmp_path)
    printed = capsys.readouterr().out
    assert found["float"] > 85 and found["before"] < found["after"] - 5
    assert found["worst"] in ("conv1", "conv2", "fc1", "fc2")
    assert f"{found['worst']} disturbs the output most" in printed and "de-quantized" in printed
    assert (tmp_path / "report.html").exists()
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "weights.png").read_bytes()[:4] == b"\x89PNG"


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mobilenet")
    nowhere = ["--data", folder / "nothing"]
    return folder, run("mobilenet_cifar10", "--quick", *nowhere, "--output", folder)


def test_mobilenet_cifar10(mobilenet):
    folder, found = mobilenet
    assert list(found) == forms()
    assert min(row["accuracy"] for row in found.values()) > 60  # 89 when it was written
    assert found["integer"]["bytes"] < found["float"]["bytes"] / 3
    model = networks.MobileNetV2(width=0.25)
    model.load_state_dict(torch.load(folder / "float.pt"))
    test_x, test_y = data.composed_digits(800, 160, clear=True)[2:]
    assert training.accuracy(model, test_x, test_y) == found["float"]["accuracy"]
    integer = bp.deploy.load(folder / "model.safetensors")
    assert training.accuracy(integer, test_x, test_y) == found["integer"]["accuracy"]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mobilenet_in_mixed_precision_from_a_checkpoint(mobilenet, amp, tmp_path, capsys):
    folder, before = mobilenet
    options = ["--quick", "--images", 64, "--amp", amp, "--channels-last", "--output", tmp_path]
    found = run("mobilenet_cifar10", *options, "--checkpoint", folder / "float.pt")
    assert found["float"]["weights"] == before["float"]["weights"]
    assert f"float weights from {folder / 'float.pt'}" in capsys.readouterr().out
    assert not (tmp_path / "float.pt").exists()


def test_mobilenet_in_two_processes(mobilenet, tmp_path):
    """Run under torchrun: only one process prints and writes, and --resume finds its files."""
    folder, _ = mobilenet
    example = [EXAMPLES / "mobilenet_cifar10.py", "--quick", "--images", "128", "--epochs", "1"]
    with socket.socket() as free:  # --standalone would need a host name
        free.bind(("127.0.0.1", 0))
        meet = ["--master-addr=127.0.0.1", f"--master-port={free.getsockname()[1]}"]
    launch = [sys.executable, "-m", "torch.distributed.run", *meet, "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launch, *example, "--output", tmp_path, "--data", folder]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("composed digits instead") == 1
    assert ran.stdout.count("latency p50") == 1
    stages = torch.load(tmp_path / "checkpoint.pt")["stages"]
    assert [stage["epochs"] for stage in stages.values()] == [1, 1]
    assert (tmp_path / "model.safetensors").exists()


# -- resuming a run


def same(a, b):
    """Return whether two states are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


LENET = ("lenet_digits", ["--epochs", 3, "--qat-epochs", 3])
JOINT = ("joint", ["--quick", "--images", 192, "--epochs", 2, "--joint-epochs", 4])


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    """Return the folders and results of uninterrupted runs, each made once."""
    found = {}

    def made(name, options):
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            found[name] = folder, run(name, *options, "--output", folder)
        return found[name]

    return made


@pytest.mark.parametrize("name, options, stop", [(*LENET, 2), (*LENET, 5), (*JOINT, 4)])
def test_a_resumed_run_is_the_uninterrupted_one(
    name, options, stop, whole_runs, tmp_path, monkeypatch
):
    folder, whole = whole_runs(name, options)
    saved, save = [], checkpoint.Checkpoint.save

    def save_and_stop(self, *arguments):
        save(self, *arguments)
        saved.append(arguments[0])
        if len(saved) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoint, "save", save_and_stop)
    parts = [*options, "--output", tmp_path]
    with pytest.raises(KeyboardInterrupt):
        run(name, *parts)
    resumed = run(name, *parts, "--resume")
    assert len(saved) == sum(int(n) for n in options[-3::2])  # nothing was trained twice
    for model in whole:
        for key in ("accuracy", "bytes", "nonzeros"):
            assert resumed[model][key] == whole[model][key]
    states = [torch.load(p / "checkpoint.pt") for p in (folder, tmp_path)]
    assert states[0]["settings"] == states[1]["settings"]
    assert same(states[0]["stages"], states[1]["stages"])
    files = [(p / "model.safetensors").read_bytes() for p in (folder, tmp_path)]
    assert files[0] == files[1]


def test_an_interrupted_example_says_how_it_goes_on(tmp_path):
    command = [sys.executable, EXAMPLES / "lenet_digits.py", "--epochs", "2000"]
    file = tmp_path / "checkpoint.pt"
    # In the background, as on a build server, the signal may be ignored, and so would it be here.
    process = subprocess.Popen(
        [*command, "--output", tmp_path],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not file.exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    last = process.stderr.read().splitlines()[-1]
    assert last == f"stopped: the same command with --resume goes on from {file}"


class Counter:
    """An object with a state."""

    def __init__(self, count=0):
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def saved(folder, **settings):
    path = folder / "checkpoint.pt"
    run = checkpoint.Checkpoint(path, settings, resume=False)
    run.save("float", 3, {"counter": Counter(7)}, torch.Generator())
    return path


def test_a_checkpoint_is_whole_at_any_moment(tmp_path, monkeypatch):
    path = saved(tmp_path)
    before = path.read_bytes()
    again = checkpoint.Checkpoint(path, {}, resume=True)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        again.save("float", 4, {"counter": Counter(8)}, torch.Generator())
    assert path.read_bytes() == before
    counter = Counter()
    found = checkpoint.Checkpoint(path, {}, resume=True)
    assert found.restore("float", {"counter": counter}, torch.Generator()) == 3
    assert counter.count == 7
    assert found.restore("another", {"counter": counter}, torch.Generator()) == 0


def test_what_cannot_be_resumed(tmp_path):
    def resumed(path, **settings):
        with pytest.raises(SystemExit) as stopped:
            checkpoint.Checkpoint(path, settings, resume=True)
        return str(stopped.value.code)

    assert f"there is no file {tmp_path / 'none'}" in resumed(tmp_path / "none")
    path = saved(tmp_path, qat_epochs=3)
    assert f"{path} was made with --qat-epochs 3, and this is 4" in resumed(path, qat_epochs=4)
    assert f"{path} is of another example" in resumed(path, epochs=3)
    path.write_bytes(path.read_bytes()[:-100])
    assert f"--resume: {path} is damaged" in resumed(path)
    path.write_bytes(b"text")
    assert f"--resume: {path} is damaged" in resumed(path)
    for other in ({"weights": torch.zeros(2)}, torch.zeros(2)):
        torch.save(other, path)
        assert f"--resume: {path} is no checkpoint of an example" in resumed(path)


def test_weights_of_another_network(tmp_path):
    def stopped(path):
        with pytest.raises(SystemExit) as stopped:
            checkpoint.load_weights(networks.LeNet(), path, "--checkpoint")
        return str(stopped.value.code)

    path = tmp_path / "weights.pt"
    assert f"--checkpoint: there is no file {path}" in stopped(path)
    torch.save(networks.LeNet(classes=7).state_dict(), path)
    assert f"{path} holds no weights of this LeNet" in stopped(path)
    assert "size mismatch for fc2.weight" in stopped(path)
    torch.save(torch.zeros(2), path)
    assert "holds no weights of this LeNet" in stopped(path)
    path.write_bytes(b"text")
    assert f"{path} is damaged, or not a file of torch.save" in stopped(path)


# -- data, options


def test_composed_digits():
    """Check that scenes are reproducible, and that training and test share no scans."""
    found, again = data.composed_digits(200, 100), data.composed_digits(200, 100)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    x, y, test_x, test_y = found
    assert x.shape == (200, 3, 32, 32) and test_x.shape == (100, 3, 32, 32)
    assert x.min() >= 0 and x.max() <= 1 and y.unique().tolist() == list(range(10))
    other = data.composed_digits(200, 100, seed=1)
    assert not torch.equal(other[0], x) and not torch.equal(other[3], test_y)
    scans, _, test_scans, _ = data.digits()
    rows = [set(map(tuple, part.flatten(1).tolist())) for part in (scans, test_scans)]
    assert len(test_scans) == 500 and len(scans) == 1297 and not rows[0] & rows[1]


def test_scenes_are_made_of_the_scans_given():
    """Check that training scenes do not depend on the test scans, nor test scenes on training
    scans."""
    x, y, test_x, test_y = data.digits()
    train, _ = data._compose(x, y, 50, 32, seed=1)
    test, _ = data._compose(test_x, test_y, 20, 32, seed=2)
    found = data.composed_digits(50, 20)
    assert torch.equal(found[0], train) and torch.equal(found[2], test)


def test_digits_are_lighter_than_their_background():
    """Compare with the same scenes without the digit, made from black scans."""
    x, y = data.digits()[:2]
    scenes, labels = data._compose(x, y, 300, 32, seed=1)
    empty, again = data._compose(torch.zeros_like(x), y, 300, 32, seed=1)
    assert torch.equal(labels, again)
    added = scenes - empty
    mask = data._placed(*_places(x))
    on = (mask > 0.5).expand_as(added)
    assert on.flatten(1).any(1).all()  # every scene has its digit
    # Noise may saturate a pixel, so that the digit adds nothing.
    inside = on & (empty < 0.7) & (empty > 0)
    assert (added[inside] > 0).all()
    assert inside.sum() > 0.9 * on.sum()
    light = scenes.mean(1, keepdim=True)
    for scene, digit in zip(light, mask, strict=True):
        assert scene[digit > 0.5].mean() > scene[digit < 0.05].mean() + 0.2


def _places(x):
    """Return the arguments with which _compose places its digits."""
    generator = torch.Generator().manual_seed(1)
    pick = torch.randint(len(x), (300,), generator=generator)
    return x[pick], 32, generator, (0.5, 0.85)


class Cifar:
    """A replacement of torchvision's class, with a few images."""

    def __init__(self, folder, train, download):
        if not (folder / "cifar").exists():
            if not download:
                raise RuntimeError("Dataset not found or corrupted. You can use download=True\n")
            raise OSError("no network")
        n = 40 if train else 20
        colours = torch.arange(n * 3072) % 256
        self.data = colours.view(n, 32, 32, 3).to(torch.uint8).numpy()
        self.targets = [i % 10 for i in range(n)]


def test_cifar10(tmp_path, monkeypatch, capsys):
    torchvision = pytest.importorskip("torchvision")
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Cifar)
    with pytest.raises(RuntimeError, match="not found"):
        data.cifar10(tmp_path)
    with pytest.raises(RuntimeError, match="the download failed: no network"):
        data.cifar10(tmp_path, download=True)
    (tmp_path / "cifar").touch()
    x, y, test_x, test_y = data.cifar10(tmp_path)
    assert x.shape == (40, 3, 32, 32) and test_x.shape == (20, 3, 32, 32)
    assert y[:3].tolist() == [0, 1, 2] and len(test_y) == 20
    # The first three bytes are the first pixel's channels: 0, 1 and 2.
    first = x[0, :, 0, 0] * torch.tensor([0.2470, 0.2435, 0.2616])
    first = (first + torch.tensor([0.4914, 0.4822, 0.4465])) * 255
    assert torch.allclose(first, torch.tensor([0.0, 1.0, 2.0]), atol=1e-3)
    mobilenet = importlib.import_module("mobilenet_cifar10")
    options = types.SimpleNamespace(data=tmp_path, download=False, images=20, seed=0)
    name, found = mobilenet.images(options, print)
    assert name == "CIFAR-10" and torch.equal(found[0], x)
    assert "40 images to train with" in capsys.readouterr().out


def test_images_are_shifted_and_flipped():
    x = torch.arange(6 * 6.0).view(1, 1, 6, 6).expand(64, 3, 6, 6)
    moved = data.shifted_and_flipped(x)
    assert moved.shape == x.shape and not torch.equal(moved, x)
    padded = torch.nn.functional.pad(x[:1], (4, 4, 4, 4), mode="reflect")[0, 0]
    windows = {
        tuple(p.flatten().tolist())
        for i in range(9)
        for j in range(9)
        for p in (padded[i : i + 6, j : j + 6], padded[i : i + 6, j : j + 6].flip(1))
    }
    seen = {tuple(image[0].flatten().tolist()) for image in moved}
    assert seen <= windows and len(seen) > 20
    assert torch.equal(moved[:, 0], moved[:, 2])


def test_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    small = ["--epochs", 1, "--qat-epochs", 2, "--output", tmp_path / "out"]
    run("lenet_digits", *small, "--tensorboard", tmp_path / "events")
    events = EventAccumulator(str(tmp_path / "events" / "int8")).Reload()
    tags = events.Tags()["scalars"]
    assert {"loss", "accuracy", "sparsity/fc1.weight", "scale/conv1.weight"} <= set(tags)
    assert [e.step for e in events.Scalars("loss")] == [10, 20, 30, 40]
    assert "loss" in EventAccumulator(str(tmp_path / "events" / "float")).Reload().Tags()["scalars"]


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit, match=r"--tensorboard needs the tensorboard package"):
        run("lenet_digits", "--output", tmp_path, "--tensorboard", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing(tmp_path, monkeypatch):
    def stopped(*options):
        with pytest.raises(SystemExit) as stopped:
            run("lenet_digits", "--output", tmp_path, *options)
        return str(stopped.value.code)

    assert "there is no file" in stopped("--resume")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "pip install scikit-learn" in stopped()
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(RuntimeError, match="torchvision is not installed"):
        data.cifar10(tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--epochs", "0"], "--epochs: must be a whole number in [1, inf), got 0"),
        (["--seed", "a"], "--seed: must be a whole number in [0, 1e9], got a"),
        (["--sparsity", "1"], "--sparsity: must be a number in [0, 1), got 1"),
        (["--alpha", "-1"], "--alpha: must be a number in [0, 1], got -1"),
        (["--temperature", "nan"], "--temperature: must be a number in (0, inf), got nan"),
        (["--temperature", "0"], "--temperature: must be a number in (0, inf), got 0"),
    ],
)
def test_values_out_of_range(options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("lenet_digits", *options)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: argument {message}")


def test_values_at_the_ends_of_their_range():
    options = ["--epochs", "1", "--sparsity", "0", "--alpha", "1", "--seed", "0"]
    parsed = importlib.import_module("lenet_digits").parse(options)
    assert (parsed.epochs, parsed.sparsity, parsed.alpha, parsed.seed) == (1, 0.0, 1.0, 0)


def test_a_device_that_torch_cannot_use(capsys):
    with pytest.raises(SystemExit):
        run("mobilenet_cifar10", "--device", "nowhere")
    assert "argument --device: torch cannot use nowhere" in capsys.readouterr().err


def test_an_output_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"--output: .*file cannot be made \(File exists\)"):
        run("lenet_digits", "--output", tmp_path / "file")


def test_fewer_images_than_a_batch():
    x, y = torch.randn(10, 1, 8, 8), torch.zeros(10, dtype=torch.long)
    model = networks.LeNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SystemExit, match=r"10 images are fewer than one batch takes \(64\)"):
        training.train(model, x, y, optimizer, 1)


def test_quick_gives_way_to_what_is_said():
    parser = command.parser("", "none")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--bits", type=int, default=8)
    quick = {"epochs": 2}
    assert command.parse(parser, [], quick=quick).epochs == 30
    parsed = command.parse(parser, ["--quick"], quick=quick)
    assert (parsed.epochs, parsed.bits) == (2, 8)
    assert command.parse(parser, ["--quick", "--epochs", "5"], quick=quick).epochs == 5
