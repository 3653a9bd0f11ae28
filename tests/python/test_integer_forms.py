"""Test integer layers beyond images on fixed grids: rows of any rank, dynamic grids, weight-only
layers, layers in forwards that cannot be traced."""

import copy
import pickle

import bitpare as bp
import pytest
import torch
import torch.nn.functional as F
from bitpare import QConfig, QSpec
from test_integer import NETWORKS, images, lenet_size, prepared, settle
from torch import Tensor, nn


def tokens(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Mixer(nn.Module):
    """Linear layers over the last dimension of rank-3 values, with an addition between them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 5)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.two(self.act(self.one(x)))
        return self.three(F.relu(x))


class Channelslast(nn.Module):
    """An image whose channels a permutation moves last, as in Swin and ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 6)
        self.back = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(F.relu(self.conv(x)).permute(0, 2, 3, 1))
        return self.back(x.permute(0, 3, 1, 2)).mean((2, 3))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dropout=0.0)
        self.cross = nn.MultiheadAttention(16, 2, kdim=6, vdim=6, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.embed(x))
        y = y + self.cross(y, x, x, need_weights=False)[0]
        return self.head(y.mean(1))


class Untraceable(nn.Module):
    """Keeps its forward, because it branches on values. One of its layers is read, not called."""

    def __init__(self, reads: bool = False) -> None:
        super().__init__()
        self.reads = reads
        self.conv, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        if x.sum() > 1e9:
            x = x * 2
        x = x.mean((2, 3))
        y = self.linear(x)
        return y + self.linear.weight.mean() if self.reads else y


class Around(nn.Module):
    def __init__(self, reads: bool = False) -> None:
        super().__init__()
        self.inner, self.head = Untraceable(reads), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x))


def ready(net: nn.Module, config: QConfig, x: Tensor) -> nn.Module:
    model = bp.prepare(settle(net), config, example_inputs=(x[:1],))
    bp.calibrate(model, data=[x])
    return model.eval()


def close(a: Tensor, b: Tensor, share: float = 0.02) -> bool:
    return bool((a - b).norm() <= share * a.norm())


def checked(model: nn.Module, x: Tensor, **bounds: float) -> nn.Module:
    """Return the integer model, after comparing it with the prepared one, per operation and as a
    whole."""
    integer = bp.convert(model)
    bp.verify(model, integer, data=[x], min_agreement=0.9, **bounds)
    with torch.no_grad():
        expected, got = model(x), integer(x)
    assert got.shape == expected.shape
    assert close(expected, got)
    return integer


def whole(integer: nn.Module) -> bool:
    nodes = [n for n in integer.body.graph.nodes if n.op == "call_module"]
    return not integer.floating and len(nodes) == len(integer.programs) == 1


# -- rows


@pytest.mark.parametrize("shape", [(4, 12), (4, 7, 12), (2, 3, 5, 12), (12,)])
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_linear_layers_over_rows_of_any_rank(shape, target):
    x = tokens(*shape)
    model = ready(Mixer(), QConfig.int8(target=target), x if len(shape) > 1 else x[None])
    if len(shape) == 1:
        model = bp.prepare(Mixer().eval(), QConfig.int8(target=target), example_inputs=(x,))
        bp.calibrate(model, data=[[x]])
        model.eval()
    integer = checked(model, x)
    assert whole(integer)
    other = tokens(*(*shape[:-2], 9, 12) if len(shape) > 2 else shape, seed=5)
    assert close(model(other), integer(other))


def test_rows_of_an_image_with_its_channels_last():
    x = images(4)
    integer = checked(ready(Channelslast(), QConfig.int8(), x), x)
    assert not integer.floating


def test_rows_in_a_file_and_compiled(tmp_path):
    x = tokens(4, 7, 12)
    integer = bp.convert(ready(Mixer(), QConfig.int8(), x))
    bp.deploy.save(integer, tmp_path / "m.safetensors")
    loaded = bp.deploy.load(tmp_path / "m.safetensors")
    assert torch.equal(loaded(x), integer(x))
    compiled = torch.compile(integer, fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(x), integer(x))


@pytest.mark.parametrize("kind", ["int8", "dynamic", "weight_only"])
def test_a_transformer_has_integer_weights(kind):
    x = tokens(6, 9, 6)
    configs = {
        "int8": QConfig.int8(),
        "dynamic": QConfig.dynamic(),
        "weight_only": QConfig.weight_only(bits=8),
    }
    model = ready(Transformer(), configs[kind], x)
    integer = checked(model, x)
    assert not integer.floating
    floats = [n for n, p in integer.named_parameters() if p.dim() > 1]
    assert not floats, "no weight is left in float"
    assert torch.equal(copy.deepcopy(integer)(x), integer(x))
    assert torch.equal(pickle.loads(pickle.dumps(integer))(x), integer(x))


# -- dynamic grids

DYNAMIC = {
    "int8": QConfig.dynamic(),
    "int4 weights": QConfig(weight=QSpec(bits=4), activation=QSpec(dynamic=True)),
    "symmetric": QConfig(weight=QSpec(), activation=QSpec(dynamic=True, symmetric=True)),
    "5 bits": QConfig(weight=QSpec(), activation=QSpec(bits=5, dynamic=True)),
    "power of two": QConfig(
        weight=QSpec(), activation=QSpec(dynamic=True, symmetric=True, power_of_two=True)
    ),
    "tensorrt": QConfig(weight=QSpec(), activation=QSpec(dynamic=True), target="tensorrt"),
}


@pytest.mark.parametrize("config", DYNAMIC.values(), ids=DYNAMIC.keys())
@pytest.mark.parametrize("name", NETWORKS)
def test_dynamic_networks(name, config):
    x = images(8, lenet_size(name))
    model = prepared(name, config)
    integer = checked(model, x)
    assert not integer.floating, integer.floating
    assert close(model(x[:3] * 3), integer(x[:3] * 3)), "another range"


def test_a_scale_for_each_token():
    config = QConfig(weight=QSpec(), activation=QSpec(dynamic=True, granularity="token"))
    x = tokens(4, 7, 12) * torch.logspace(-2, 2, 7)[:, None]
    integer = checked(ready(Mixer(), config, x), x)
    assert not integer.floating
    nodes = [n for p in integer.programs for n in p.spec["nodes"]]
    assert any(n["op"] == "dynamic" and n["per_row"] for n in nodes)


def test_a_dynamic_chain_is_one_program():
    x = images(8, 16)
    integer = bp.convert(prepared("lenet", QConfig(weight=QSpec(), activation=QSpec(dynamic=True))))
    names = [n["op"] for n in integer.programs[0].spec["nodes"]]
    assert names.count("dynamic") >= 2 and "float" not in names
    assert integer(x[:0]).shape == (0, 10)


def test_a_dynamic_network_refuses_what_has_no_range():
    integer = bp.convert(prepared("lenet", QConfig.dynamic()))
    x = images(2, 16)
    x[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        integer(x)


# -- only weights in integers

WEIGHTS = {
    "8 bits": QConfig.weight_only(bits=8),
    "4 bits": QConfig.weight_only(bits=4),
    "2 bits": QConfig.weight_only(bits=2),
    "1 bit": QConfig(weight=QSpec(bits=1, learn="binary"), activation=bp.FLOAT),
    "ternary": QConfig(weight=QSpec(bits=2, learn="ternary"), activation=bp.FLOAT),
    "groups": QConfig.weight_only(bits=4, group=4),
    "8 bits in groups": QConfig.weight_only(bits=8, group=6),
    "asymmetric": QConfig(weight=QSpec(bits=4, symmetric=False), activation=bp.FLOAT),
    "asymmetric groups": QConfig(
        weight=QSpec(bits=3, symmetric=False, group=4), activation=bp.FLOAT
    ),
    "asymmetric 8": QConfig(weight=QSpec(symmetric=False), activation=bp.FLOAT),
    "per tensor": QConfig(weight=QSpec(bits=4, granularity="tensor"), activation=bp.FLOAT),
    "groups, int8 activations": QConfig(weight=QSpec(bits=4, group=4), activation=QSpec()),
}


@pytest.mark.parametrize("config", WEIGHTS.values(), ids=WEIGHTS.keys())
@pytest.mark.parametrize("rows", [1, 9])
def test_linear_layers_with_integer_weights_alone(config, rows):
    x = tokens(rows, 3, 12)
    model = ready(Mixer(), config, x)
    integer = checked(model, x)
    assert not integer.floating, integer.floating
    ops = {n["op"] for p in integer.programs for n in p.spec["nodes"]}
    assert "weights" in ops
    expected, got = model(x), integer(x)
    assert (expected - got).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", ["int8", "dynamic", "weight_only"])
def test_a_layer_by_itself(kind):
    x = tokens(5, 12)
    integer = checked(ready(nn.Linear(12, 7), getattr(QConfig, kind)(), x), x)
    assert whole(integer) and len(integer.programs[0].spec["nodes"]) >= 1


@pytest.mark.parametrize("name", ["8 bits", "4 bits", "1 bit", "groups", "asymmetric groups"])
def test_networks_with_integer_weights_alone_in_files(name, tmp_path):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(64, 128), nn.Linear(128, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(F.relu(self.one(x)))

    x = tokens(5, 64)
    integer = bp.convert(ready(Two(), WEIGHTS[name], x))
    assert whole(integer)
    bp.deploy.save(integer, tmp_path / "m.safetensors")
    assert torch.equal(bp.deploy.load(tmp_path / "m.safetensors")(x), integer(x))
    bits, grouped = {"8 bits": 8, "4 bits": 4, "1 bit": 1}.get(name, 4), "groups" in name
    size, weights = (tmp_path / "m.safetensors").stat().st_size, 64 * 128 + 128 * 32
    numbers = weights // 4 * 5 if grouped else 0  # a float32 scale and a zero point per group of 4
    assert size < weights * bits / 8 * 1.01 + numbers + 4000


def test_convolutions_with_integer_weights_alone_stay_in_float():
    integer = bp.convert(prepared("lenet", QConfig.weight_only(bits=8)))
    reasons = dict(integer.floating)
    assert set(reasons) == {"features.0", "features.3"}
    assert all("not quantized" in why for why in reasons.values())


# -- forwards that cannot be traced


@pytest.mark.parametrize("kind", ["int8", "dynamic", "weight_only"])
def test_layers_of_an_island_become_integers_by_themselves(kind):
    x = images(6)
    config = {"int8": QConfig.int8(), "dynamic": QConfig.dynamic(),
              "weight_only": QConfig.weight_only()}[kind]  # fmt: skip
    model = ready(Around(), config, x)
    integer = checked(model, x)
    left = {"inner.conv"} if kind == "weight_only" else set()
    assert {name for name, _ in integer.floating} == left
    assert "inner.linear.weight" not in dict(integer.named_parameters())


def test_an_island_that_reads_its_layers_keeps_them():
    x = images(6)
    model = ready(Around(reads=True), QConfig.int8(), x)
    integer = bp.convert(model)
    assert close(model(x), integer(x))
    assert "inner.linear" in dict(integer.floating)
    assert isinstance(integer.body.get_submodule("inner.linear"), nn.Linear)


# -- low-bit weights in the kernels


@pytest.mark.parametrize("bits", [4, 2])
def test_weights_of_few_bits_stay_packed(bits):
    """Check that the result is that of 8-bit codes. tests/cpp/test_integer.cpp tests that all
    instruction sets give the same bits."""
    net = nn.Sequential(
        nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 50, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(50 * 169, 10),
    )  # fmt: skip
    config = QConfig(weight=QSpec(bits=bits), activation=QSpec())
    x = images(4)
    checked(ready(net, config, x), x)


def test_placement_says_what_has_no_integer_form():
    config = QConfig(activation=QSpec(bits=12)).override("head", activation=QSpec.float(4, 3))
    model = bp.prepare(NETWORKS["residual"]().eval(), config, example_inputs=(images(1),))
    notes = dict(bp.report.placement(model).notes)
    assert any(
        why == "convert leaves it in float: activations of 12 bits" for why in notes.values()
    )
    whole_model = bp.prepare(NETWORKS["residual"]().eval(), QConfig.int4(),
                             example_inputs=(images(1),))  # fmt: skip
    notes = bp.report.placement(whole_model).notes
    assert not any("leaves it in float" in why for _, why in notes)


def test_a_model_for_a_device_that_is_not_there():
    integer = bp.convert(prepared("lenet"))
    if torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises((RuntimeError, AssertionError), match=r"(?i)cuda|nvidia"):
        integer.to("cuda")
    assert integer(images(1, 16)).shape == (1, 10), "it is as it was"


def test_a_grid_for_each_row_is_for_linear_layers():
    program = bp.convert(prepared("lenet", QConfig.dynamic())).programs[0]
    spec = copy.deepcopy(program.spec)
    next(n for n in spec["nodes"] if n["op"] == "dynamic")["per_row"] = True
    with pytest.raises(RuntimeError, match="has a grid for each row"):
        bp.deploy.IntegerProgram(spec, dict(program.named_buffers()))
