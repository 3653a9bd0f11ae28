"""Test convert and verify: integer models compute what the prepared ones do, and can be used like
them."""

import copy
import math
import os
import pathlib
import pickle
import subprocess
import sys
import threading

import bitpare as bp
import pytest
import torch
import torch.nn.functional as F
from bitpare import _C, QConfig, QSpec
from torch import Tensor, nn

ROOT = pathlib.Path(__file__).parent.parent.parent


def settle(model: nn.Module) -> nn.Module:
    """Set BatchNorms as after training: statistics, and factors of both signs and many sizes."""
    generator = torch.Generator().manual_seed(3)

    def draw(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.copy_(draw(module.running_mean, -0.3, 0.3))
            module.running_var.copy_(draw(module.running_var, 0.2, 1.5))
            with torch.no_grad():
                module.weight.copy_(draw(module.weight, -1.5, 1.5))
                module.bias.copy_(draw(module.bias, -0.5, 0.5))
    return model.eval()


def block(i: int, o: int, **options) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, bias=False, **options), nn.BatchNorm2d(o), nn.ReLU())


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 10, 5),
            nn.ReLU(), nn.AvgPool2d(2),
        )  # fmt: skip
        self.one, self.two = nn.Linear(40, 20), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.features(x), 1)
        return self.two(F.relu(self.one(x)))


class Residual(nn.Module):
    """Additions with and without a ReLU, one of an earlier value, and an inverted bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8, padding=1, stride=2)
        self.left = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.deep = nn.Sequential(
            nn.Conv2d(8, 40, 1, bias=False), nn.BatchNorm2d(40), nn.ReLU6(),
            nn.Conv2d(40, 40, 3, padding=1, groups=40, bias=False), nn.BatchNorm2d(40), nn.ReLU6(),
            nn.Conv2d(40, 8, 1, bias=False), nn.BatchNorm2d(8),
        )  # fmt: skip
        self.head = nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.left(x) + x)
        y = x + self.deep(x)
        y = y + x
        return self.head(y.mean([2, 3]))


class Branches(nn.Module):
    """Concatenations of shared and unshared values, groups, dilation, ceil_mode, SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding="same")
        self.a = nn.Conv2d(12, 6, 3, padding=2, dilation=2, groups=3)
        self.b = nn.Conv2d(12, 5, (1, 3), padding=(0, 1))
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.mean = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        self.act = nn.SiLU()
        self.norm = nn.BatchNorm2d(23)
        self.end = nn.Conv2d(23, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        y = torch.cat([self.a(x), F.relu(self.b(x)), x], 1)
        y = self.norm(self.pool(y))
        return self.end(self.mean(y))


class Excite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Hardswish())
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.end = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        s = F.adaptive_avg_pool2d(x, 1)
        s = F.hardsigmoid(self.up(F.relu(self.down(s))))
        x = s * x
        return self.end(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Partly(nn.Module):
    """Integer parts around a float part."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3)
        self.two = nn.Conv2d(8, 6, 3)
        self.three = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        x = F.softmax(x, 1) * 3
        return self.three(self.two(x).amax((2, 3)))


NETWORKS = {"lenet": LeNet, "residual": Residual, "branches": Branches, "excite": Excite}
SIZE = 17
lenet_size = lambda name: 16 if name == "lenet" else SIZE  # noqa: E731


def images(n: int, size: int = SIZE, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def prepared(name_or_net, config: QConfig | None = None, size: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    net = NETWORKS[name_or_net]() if isinstance(name_or_net, str) else name_or_net
    size = size or (lenet_size(name_or_net) if isinstance(name_or_net, str) else SIZE)
    model = bp.prepare(settle(net), config or QConfig.int8(), example_inputs=images(1, size))
    bp.calibrate(model, data=[images(16, size)])
    return model.eval()


CONFIGS = {
    "int8": QConfig.int8(),
    "tensorrt": QConfig.int8(target="tensorrt"),
    "int4 weights": QConfig(weight=QSpec(bits=4), activation=QSpec()),
    "lsq+": QConfig(weight=QSpec(bits=6, learn="lsq"), activation=QSpec(bits=7, learn="lsq+")),
    "pact": QConfig(weight=QSpec(bits=8), activation=QSpec(bits=5, learn="pact")),
    "per tensor": QConfig(
        weight=QSpec(granularity="tensor", narrow=False), activation=QSpec(symmetric=True)
    ),
    "binary weights": QConfig.binary_weights(),
    "power of two": QConfig(weight=QSpec(power_of_two=True), activation=QSpec()),
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_integers_are_what_was_trained(name, config):
    model = prepared(name, CONFIGS[config])
    integer = bp.convert(model)
    x = images(16, lenet_size(name), seed=2)
    report = bp.verify(model, integer, data=[x], min_agreement=0.5)
    assert report.lsb <= 1.001 and report.rows and report.samples in (0, 16)
    assert report.sqnr > 20, str(report)
    if config in ("int8", "int4 weights", "lsq+", "binary weights"):
        assert integer.floating == [] and len(integer.programs) == 1


def test_every_part_is_in_integers():
    ops = lambda name: [  # noqa: E731
        n["op"] for n in bp.convert(prepared(name)).programs[0].spec["nodes"]
    ]
    assert ops("lenet") == ["conv", "pool", "conv", "pool", "conv", "conv"]
    # Two of the additions are fused into the convolution before them.
    found = ops("residual")
    assert found.count("conv") == 6 and found.count("pair") == 1 and found.count("pool") == 1
    assert "concat" in ops("branches") and "map" in ops("branches")


def test_one_program_serves_every_batch_and_size():
    model = prepared("residual")
    integer = bp.convert(model)
    whole = integer(images(9))
    assert torch.equal(torch.cat([integer(images(9)[i : i + 1]) for i in range(9)]), whole)
    assert integer(images(2, 30)).shape == (2, 7)
    assert integer(images(0)).shape == (0, 7)
    laid = images(9).contiguous(memory_format=torch.channels_last)
    strided = torch.stack([images(9), images(9)], -1)[..., 0]
    assert torch.equal(integer(laid), whole) and torch.equal(integer(strided), whole)
    for threads in (1, 3, 2):
        torch.set_num_threads(threads)
        assert torch.equal(integer(images(9)), whole)
    results: list[Tensor] = []
    runs = [threading.Thread(target=lambda: results.append(integer(images(9)))) for _ in range(6)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(results) == 6 and all(torch.equal(r, whole) for r in results)


def test_it_is_a_module_like_others():
    model = prepared("branches")
    integer = bp.convert(model)
    x, before = images(3), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = integer(x)
    assert torch.equal(copy.deepcopy(integer)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(integer))(x), expected)
    with torch.inference_mode():
        assert torch.equal(integer(x), expected)
    assert torch.equal(integer.to("cpu")(x), expected)
    assert torch.equal(integer.half()(x), expected)  # half() does not change its numbers
    assert not integer.train().training and not integer(x).requires_grad
    state = integer.state_dict()
    assert {t.dtype for t in state.values()} == {
        torch.int8, torch.int32, torch.float32, torch.uint8
    }  # fmt: skip
    other = bp.convert(prepared("branches", CONFIGS["int4 weights"]))
    assert not torch.equal(other(x), expected)
    fresh = bp.convert(model)
    with torch.no_grad():
        for tensor in fresh.state_dict().values():
            tensor.zero_()
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), expected)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"convert changed {name}"


def test_compile():
    integer = bp.convert(prepared("residual"))
    torch._dynamo.reset()
    compiled = torch.compile(integer, fullgraph=True, backend="aot_eager")
    for x in (images(2), images(5), images(2, 33)):
        with torch.no_grad():
            assert torch.equal(compiled(x), integer(x))


def test_what_has_no_integer_form_stays_in_float():
    torch.manual_seed(0)
    model = prepared(Partly())
    integer = bp.convert(model)
    x = images(4)
    assert torch.allclose(integer(x), model(x), atol=float(model(x).abs().max()) / 20)
    assert len(integer.programs) >= 2 and integer.floating == []
    config = QConfig.int8().override("two", weight=bp.FLOAT, activation=bp.FLOAT)
    mixed = bp.convert(prepared(Partly(), config))
    assert [m for m in mixed.body.modules() if isinstance(m, nn.Conv2d)]
    alone = bp.convert(prepared("residual", QConfig.weight_only()))
    assert {name for name, _ in alone.floating} >= {"stem.0", "left.0"}
    assert "its input is not quantized" in dict(alone.floating)["stem.0"]
    wide = QConfig(weight=QSpec(bits=12), activation=QSpec())
    reasons = dict(bp.convert(prepared("residual", wide)).floating)
    assert "do not fit in 8 bits" in reasons["head"]


def test_pruned_weights_are_the_same_zeros():
    model = prepared("residual")
    pruner = bp.prune.Pruner(model, bp.prune.Schedule.one_shot(sparsity=0.7, at=0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner.attach(optimizer)
    model.train()
    model(images(4)).sum().backward()
    optimizer.step()
    model.eval()
    integer = bp.convert(model)
    report = bp.verify(model, integer, data=[images(8)], min_agreement=0.5)
    assert report.zeros and not any(count for _, count in report.zeros)
    codes = integer.programs[0].get_buffer("deep.0.weight")
    assert torch.equal(codes.view(40, 8) == 0, model.deep[0].weight.view(40, 8) == 0)
    with torch.no_grad():
        codes[(codes == 0).nonzero()[0].tolist()[0]] = 3
    changed = copy.deepcopy(integer)
    with pytest.raises(bp.Differs, match="weights are 0 in only one of the models"):
        bp.verify(model, changed, data=[images(8)], max_lsb=math.inf, max_differing=math.inf,
                  min_agreement=0.0)  # fmt: skip


def test_verify_tells_a_wrong_model():
    model = prepared("lenet")
    integer = bp.convert(model)
    text = str(
        bp.verify(model, integer, data=[(images(32, 16), torch.zeros(32))], min_agreement=0.5)
    )
    assert "features.0" in text and "max LSB" in text and "zero weights: the same" in text
    wrong = copy.deepcopy(integer)
    wrong.programs[0].get_buffer("features.3.bias").add_(2000)
    wrong.programs[0].rebuild()
    with pytest.raises(bp.Differs, match=r"an operation differs by [\d.]+ units.*\n(.*\n)*.*SQNR"):
        bp.verify(model, wrong, data=[images(8, 16)])
    with pytest.raises(TypeError, match=r"must come from bp\.convert, got LeNet"):
        bp.verify(model, model, data=[images(8, 16)])


SAME = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import bitpare, torch
found = hashlib.sha256()
for model, x in torch.load(sys.argv[2], weights_only=False):
    found.update(model(x).numpy().tobytes())
from bitpare import _C
print(_C.cpu_capability(), found.hexdigest())
"""


def test_same_bits_on_every_instruction_set(tmp_path):
    """Check that other machines compute the same. So does the library for dense products that CUDA
    uses."""
    configs = (QConfig.int8(), QConfig.int4(), QConfig.dynamic())
    models = [
        (bp.convert(prepared(name, config)), images(4, lenet_size(name)))
        for name in NETWORKS
        for config in configs
    ]
    rows = torch.randn(3, 5, 48, generator=torch.Generator().manual_seed(0))
    for config in (QConfig.weight_only(bits=4, group=16), QConfig.weight_only(bits=1)):
        linear = bp.prepare(nn.Linear(48, 40).eval(), config, example_inputs=(rows,))
        models.append((bp.convert(linear), rows))
    torch.save(models, tmp_path / "models.pt")
    names = ["default", "avx2", "avx512"]
    names = names[: names.index(_C.machine_cpu_capability()) + 1]
    found = set()
    for name, products in [*((name, "") for name in names), (names[-1], "library")]:
        chosen = {"BITPARE_CPU_CAPABILITY": name, "BITPARE_INTEGER_PRODUCTS": products}
        command = [sys.executable, "-c", SAME, os.path.dirname(__file__), tmp_path / "models.pt"]
        ran = subprocess.run(command, env={**os.environ, **chosen}, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        used, digest = ran.stdout.split()
        assert used == name
        found.add(digest)
    assert len(found) == 1, found


def test_errors():
    integer = bp.convert(prepared("lenet"))
    x = images(2, 16)
    with pytest.raises(RuntimeError, match="input 0 must be float32, got Double"):
        integer(x.double())
    with pytest.raises(RuntimeError, match=r"must be \[batch, 3, height, width\], got \[2, 1, 16"):
        integer(x[:, :1])
    with pytest.raises(RuntimeError, match=r"must be \[batch, 3, height, width\], got \[3, 16, 16"):
        integer(x[0])
    with pytest.raises(RuntimeError, match=r"conv.*3 x 3 is smaller than the kernel|features"):
        integer(images(1, 8))
    with pytest.raises(ValueError, match="input 0 holds NaN"):
        integer(x.where(x > -1, torch.nan))
    with pytest.raises(TypeError, match="takes 1 argument, got 3"):
        integer(x, x, x)
    with pytest.raises(ValueError, match="convert: the model is not prepared"):
        bp.convert(LeNet())
    fresh = bp.prepare(LeNet().eval(), QConfig.int8(), example_inputs=images(1, 16))
    with pytest.raises(bp.Uncalibrated, match=r"activation quantizer has seen no data"):
        bp.convert(fresh)


@pytest.mark.cuda
@pytest.mark.parametrize("name", NETWORKS)
def test_cuda_has_the_same_bits(name):
    model = prepared(name)
    x = images(4, lenet_size(name))
    expected = bp.convert(model)(x)
    assert torch.equal(bp.convert(model).cuda()(x.cuda()).cpu(), expected)
    assert torch.equal(bp.convert(model.cuda())(x.cuda()).cpu(), expected)


class Returned(nn.Module):
    """Returns a flattened image that a layer reads too, and values of two grids."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3)
        self.end = nn.Linear(5 * 15 * 15, 4)
        self.far = nn.Conv2d(5, 2, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = F.relu(self.a(x)), self.b(x) * 3
        flat = torch.flatten(a, 1)
        return self.end(F.dropout(flat, 0.5, self.training)), flat, self.far(torch.max(a, b))


def test_values_that_are_returned_or_of_two_grids():
    model = prepared(Returned())
    integer = bp.convert(model)
    for got, expected in zip(integer(images(3)), model(images(3)), strict=True):
        assert got.shape == expected.shape
        noise = (got - expected).square().sum() / expected.square().sum()
        assert noise < 1e-3, float(noise)


def test_dropout_that_is_always_on_stays():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(F.dropout(F.relu(self.one(x)), 0.9))

    integer = bp.convert(prepared(Noisy()))
    assert not torch.equal(integer(images(2)), integer(images(2)))


# -- files


def test_save_and_load(tmp_path):
    for name in NETWORKS:
        for config in ("int8", "int4 weights", "binary weights"):
            integer = bp.convert(prepared(name, CONFIGS[config]))
            path = tmp_path / f"{name} {config}.safetensors"
            bp.deploy.save(integer, path)
            loaded = bp.deploy.load(path)
            x = images(3, lenet_size(name))
            assert torch.equal(loaded(x), integer(x)) and torch.equal(loaded(x=x), integer(x))
            state = integer.programs[0].state_dict()
            for key, value in loaded.programs[0].state_dict().items():
                assert torch.equal(value, state[key]) and value.dtype == state[key].dtype, key
    whole = (tmp_path / "lenet int8.safetensors").stat().st_size
    halves = (tmp_path / "lenet int4 weights.safetensors").stat().st_size
    bits = (tmp_path / "lenet binary weights.safetensors").stat().st_size
    weights = sum(m.weight.numel() for m in LeNet().modules() if hasattr(m, "weight"))
    # All layers except the first and last, minus some overhead.
    inner = weights - 450 - 200
    assert abs(inner / 2 - (whole - halves)) < 300 and abs(inner * 7 / 8 - (whole - bits)) < 300
    bp.deploy.save(loaded, tmp_path / "again")
    assert torch.equal(bp.deploy.load(tmp_path / "again")(x), loaded(x))


def test_pruned_weights_take_a_bitmap(tmp_path):
    model = prepared("residual")
    with torch.no_grad():
        for layer in (model.deep[0], model.deep[6]):
            layer.weight[layer.weight.abs() < layer.weight.abs().quantile(0.9)] = 0
    integer = bp.convert(model)
    bp.deploy.save(integer, tmp_path / "sparse")
    bp.deploy.save(bp.convert(prepared("residual")), tmp_path / "dense")
    saved = (tmp_path / "dense").stat().st_size - (tmp_path / "sparse").stat().st_size
    assert saved > 640 * (1 - 1 / 8 - 0.1) - 200  # a bit each, a byte for a tenth
    x = images(3)
    assert torch.equal(bp.deploy.load(tmp_path / "sparse")(x), integer(x))


def test_the_file_is_one_that_others_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    integer = bp.convert(prepared("branches"))
    bp.deploy.save(integer, tmp_path / "m.safetensors")
    state = integer.programs[0].state_dict()
    found = safetensors.load_file(tmp_path / "m.safetensors")
    assert found.keys() == state.keys()
    for key, value in found.items():
        packed = value.dtype == torch.uint8 and state[key].dtype == torch.int8
        assert packed or torch.equal(value, state[key])


def test_files_that_are_damaged_or_foreign(tmp_path):
    path = tmp_path / "m.safetensors"
    bp.deploy.save(bp.convert(prepared("lenet")), path)
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    wrong = {
        b"": "is cut off: it has no header",
        whole[:100]: "is cut off: its header has",
        whole[:-1]: "is cut off: .* bytes of data are wanted",
        whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:]: "checksum: the file is damaged",
        b"\xff" * 64: "not a safetensors file",
        whole.replace(b"bitpare-integer", b"bitpare-integral"[:15]): "format: a safetensors file",
        whole.replace(b'"version":"1"', b'"version":"9"'): "version 9; this bitpare reads",
        whole[:8] + b"{" + whole[9 : 8 + header].replace(b":", b";", 1) + whole[8 + header :]:
            "JSON, byte",
        whole.replace(b'\\"stride\\"', b'\\"strode\\"', 1): "checksum: the file is damaged",
    }  # fmt: skip
    for content, message in wrong.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"m.safetensors: .*{message}"):
            bp.deploy.load(path)
    with pytest.raises(ValueError, match=r"none\.safetensors: cannot be opened: No such file"):
        bp.deploy.load(tmp_path / "none.safetensors")
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):  # change one byte of the header: an error or the same model
        at = int(torch.randint(8, 8 + header, (), generator=generator))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            found = bp.deploy.load(path)
        except ValueError:
            continue
        assert torch.equal(found(images(1, 16)), bp.convert(prepared("lenet"))(images(1, 16)))


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(TypeError, match=r"save: the model must come from bp\.convert, got LeNet"):
        bp.deploy.save(LeNet(), tmp_path / "m")
    with pytest.raises(bp.Unsupported, match=r"save: parts of the model are in float \(.*softmax"):
        bp.deploy.save(bp.convert(prepared(Partly())), tmp_path / "m")
    integer = bp.convert(prepared("lenet"))
    with pytest.raises(ValueError, match=r"nowhere.* cannot be opened: No such file"):
        bp.deploy.save(integer, tmp_path / "nowhere" / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_program_without_python(tmp_path):
    """Run examples/cpp/classify.cpp, which is built with the C++ tests."""
    built = ROOT / "build" / "package" / "tests" / "cpp" / "classify"
    if not built.exists():
        pytest.skip("the C++ tests are not built")
    integer = bp.convert(prepared("residual"))
    bp.deploy.save(integer, tmp_path / "m.safetensors")
    pixels = torch.randint(0, 256, (SIZE, SIZE, 3), generator=torch.Generator().manual_seed(0))
    image = f"P6\n{SIZE} {SIZE}\n255\n".encode() + bytes(pixels.flatten().tolist())
    (tmp_path / "image.ppm").write_bytes(image)
    x = (pixels.permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
    command = [built, tmp_path / "m.safetensors", tmp_path / "image.ppm", "0.5", "0.25"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    first, *scores = ran.stdout.split("\n")[:-1]
    expected = integer(x).flatten()
    assert first == f"class {int(expected.argmax())}"
    assert torch.equal(torch.tensor([float(s) for s in scores]), expected)
    ran = subprocess.run([*command[:2], tmp_path / "m.safetensors"], capture_output=True, text=True)
    assert ran.returncode == 1 and "is not a binary PGM or PPM" in ran.stderr
