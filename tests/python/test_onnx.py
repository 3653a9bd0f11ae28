"""Test export_onnx: other runtimes compute the same results, in integers."""

import collections

import bitpare as bp
import pytest
import torch
import torchvision
from bitpare import QConfig
from test_integer import CONFIGS, NETWORKS, Partly, images, lenet_size, prepared, settle
from test_integer_forms import WEIGHTS, Mixer, ready, tokens
from torch import Tensor, nn

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class Exported:
    """A model in ONNX Runtime, with the operations after its optimization."""

    def __init__(self, path, folder) -> None:
        onnx.checker.check_model(str(path), full_check=True)
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        options.log_severity_level = 3
        options.add_session_config_entry("session.qdqisint8allowed", "1")
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        made = onnx.load(folder / "optimized.onnx").graph.node
        self.ops = collections.Counter(n.op_type for n in made)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"input0": x.numpy()})[0])


def exported(integer: nn.Module, x: Tensor, folder, **options) -> Exported:
    bp.deploy.export_onnx(integer, folder / "m.onnx", example_inputs=(x,), **options)
    assert [p.name for p in folder.iterdir()] == ["m.onnx"]
    return Exported(folder / "m.onnx", folder)


@pytest.mark.parametrize("config", ["int8", "tensorrt", "int4 weights", "lsq+", "per tensor"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_results_in_integer_operations(name, config, tmp_path):
    if (name, config) == ("excite", "tensorrt"):
        pytest.skip("its Hardswish is in float on that grid")
    integer = bp.convert(prepared(name, CONFIGS[config]))
    x = images(64, lenet_size(name))
    found = exported(integer, x[:1], tmp_path)
    assert torch.allclose(found(x), integer(x), rtol=0, atol=1e-3 * float(integer(x).abs().max()))
    nodes = integer.programs[0].spec["nodes"]
    convs = [n for n in nodes if n["op"] == "conv" and not n["linear"]]
    linears = [n for n in nodes if n["op"] == "conv" and n["linear"]]
    sums = [n for n in nodes if "add" in n or (n["op"] == "pair" and not n["product"])]
    assert found.ops["QLinearConv"] == sum(not n["float"] for n in convs)
    assert found.ops["Conv"] == sum(n["float"] for n in convs)
    assert found.ops["QGemm"] == len(linears) and found.ops["Gemm"] == 0
    assert found.ops["QLinearAdd"] == len(sums)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_public_networks(name, tmp_path):
    torch.manual_seed(0)
    model = settle(getattr(torchvision.models, name)(weights=None, num_classes=10))
    x = torch.randn(16, 3, 64, 64)
    qat = bp.prepare(model, QConfig.int8(), example_inputs=(x[:1],))
    bp.calibrate(qat, data=[x])
    integer = bp.convert(qat.eval())
    found = exported(integer, x[:2], tmp_path)
    expected, got = integer(x), found(x)
    noise = (got - expected).square().sum() / expected.square().sum()
    assert noise < 1e-4 and torch.equal(got.argmax(1), expected.argmax(1))
    assert found.ops["Conv"] == found.ops["Gemm"] == found.ops["Add"] == 0
    assert torch.equal(found(x[:3]), got[:3])  # any batch size


@pytest.mark.parametrize("opset", [18, 21])
def test_rows_of_any_rank(opset, tmp_path):
    x = tokens(4, 7, 12)
    integer = bp.convert(ready(Mixer(), QConfig.int8(), x))
    found = exported(integer, x[:1], tmp_path, opset=opset)
    assert found.ops["QGemm"] == 3 and found.ops["QLinearAdd"] == 1 and not found.ops["Gemm"]
    difference = (found(x) - integer(x)).abs()
    assert difference.max() <= 1e-3 * integer(x).abs().max()
    assert found(x[:3]).shape == (3, 7, 5)  # any batch size


@pytest.mark.parametrize("name", ["8 bits", "4 bits", "1 bit", "groups", "asymmetric"])
@pytest.mark.parametrize("opset", [18, 21])
def test_integer_weights_alone(name, opset, tmp_path):
    x = tokens(6, 64)
    config = QConfig.weight_only(bits=4, group=32) if name == "groups" else WEIGHTS[name]
    net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32))
    if name == "groups":
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    integer = bp.convert(ready(net, config, x))
    found = exported(integer, x[:1], tmp_path, opset=opset)
    assert (found(x) - integer(x)).abs().max() <= 1e-5 * integer(x).abs().max()
    weights = onnx.load(tmp_path / "m.onnx").graph.initializer
    int4 = [t for t in weights if t.data_type == onnx.TensorProto.INT4]
    packed = opset == 21 and name in ("4 bits", "1 bit", "groups")
    assert bool(int4) == packed


@pytest.mark.parametrize("name", ["lenet", "residual"])
def test_the_form_for_tensorrt(name, tmp_path):
    """Check that only documented forms are used: no operation on codes, biases in float."""
    integer = bp.convert(prepared(name, CONFIGS["tensorrt"]))
    x = images(8, lenet_size(name))
    found = exported(integer, x[:1], tmp_path, runtime="tensorrt")
    assert (found(x) - integer(x)).abs().max() <= 1e-3 * integer(x).abs().max()
    graph = onnx.load(tmp_path / "m.onnx").graph
    codes = {n.output[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    readers = {n.op_type for n in graph.node if codes & set(n.input)}
    assert readers <= {"DequantizeLinear", "MaxPool", "Flatten"}
    assert not [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT32]


def test_weights_of_4_bits(tmp_path):
    integer = bp.convert(prepared("lenet", CONFIGS["int4 weights"]))
    x = images(8, 16)
    found = exported(integer, x[:1], tmp_path, opset=21)
    assert (found(x) - integer(x)).abs().max() <= 1e-3 * integer(x).abs().max()
    weights = onnx.load(tmp_path / "m.onnx").graph.initializer
    codes = [t for t in weights if t.name.endswith(".codes")]
    assert codes and all(t.data_type == onnx.TensorProto.INT4 for t in codes)


def test_errors(tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(TypeError, match=r"export_onnx: the model must come from bp\.convert"):
        bp.deploy.export_onnx(nn.Linear(2, 2), path, example_inputs=images(1))
    with pytest.raises(bp.Unsupported, match=r"export_onnx: parts of the model are in float"):
        bp.deploy.export_onnx(bp.convert(prepared(Partly())), path, example_inputs=images(1))
    integer = bp.convert(prepared("lenet"))
    with pytest.raises(ValueError, match="example_inputs must have 1 tensors, got 2"):
        bp.deploy.export_onnx(integer, path, example_inputs=(images(1), images(1)))
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Conv2d(4, 2, 1))
    with pytest.raises(bp.Unsupported, match=r"adaptive pooling to \[2, 2\]"):
        bp.deploy.export_onnx(bp.convert(prepared(pooled)), path, example_inputs=images(1))
    with pytest.raises(ValueError, match="runtime must be one of onnxruntime, tensorrt, got 'x'"):
        bp.deploy.export_onnx(integer, path, example_inputs=images(1), runtime="x")
    with pytest.raises(ValueError, match="opset must be 18 or more, got 17"):
        bp.deploy.export_onnx(integer, path, example_inputs=images(1), opset=17)
    x = tokens(4, 12)
    dynamic = bp.convert(ready(nn.Sequential(nn.Linear(12, 4)), QConfig.dynamic(), x))
    with pytest.raises(bp.Unsupported, match="dynamic ranges have no QDQ form"):
        bp.deploy.export_onnx(dynamic, path, example_inputs=x)
    assert list(tmp_path.iterdir()) == []
