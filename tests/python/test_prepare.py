"""Test that prepare keeps a model's structure, and its results bit for bit with quantizers off."""

import collections
import copy
import dataclasses
import pickle
import random

import bitpare as bp
import networks
import pytest
import torch
import torch.nn.functional as F
from bitpare.nn.quantizer import Quantizer
from bitpare.quant.compare import quantizers_off
from torch import Tensor, nn

ISLANDS = {  # what a graph cannot hold, and a word of the reason
    "NoGradRegion": "mode",
    "AutocastRegion": "mode",
    "BufferUpdate": "assigns",
    "AssignedAttribute": "assigns",
    "RandomBranch": "random",
    "PythonRandom": "random",
    "Checkpointed": "checkpoint",
    "CheckpointedChild": "checkpoint",
    "ShapeBranch": "values or sizes",
    "TypeBranch": "cannot be traced",
    "Length": "cannot be traced",
}


def seeded(model: nn.Module, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    random.seed(seed)
    y = model(x)
    y.square().mean().backward()
    return y, torch.get_rng_state()


def assert_same(float_model: nn.Module, prepared: nn.Module, x: Tensor, training: bool, seed: int):
    """Compare outputs, gradients, buffers and random numbers, bit for bit, with quantizers off."""
    a, b = copy.deepcopy(float_model).train(training), copy.deepcopy(prepared).train(training)
    with quantizers_off(b):
        (ya, sa), (yb, sb) = seeded(a, x, seed), seeded(b, x, seed)
    assert torch.equal(ya, yb) and torch.equal(sa, sb)
    parameters, buffers = dict(b.named_parameters()), dict(b.named_buffers())
    for name, p in a.named_parameters():
        other = parameters[name]
        assert (p.grad is None) == (other.grad is None), name
        assert p.grad is None or torch.equal(p.grad, other.grad), name
    for name, value in a.named_buffers():
        assert torch.equal(value, buffers[name]), name


@pytest.mark.parametrize("name", networks.HARD)
def test_hard_forwards(name):
    torch.manual_seed(0)
    model, x = networks.Wrapped(networks.HARD[name]()), torch.randn(2, 4, 6, 6)
    before = copy.deepcopy(model.state_dict())
    prepared = bp.prepare(model, example_inputs=(x,))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert isinstance(prepared.inner, networks.HARD[name])
    for training in (False, True):
        for seed in range(4):
            size = 7 if name == "ShapeBranch" and seed == 3 else 6
            assert_same(model, prepared, torch.randn(2, 4, size, size), training, seed)
    reasons = dict(bp.report.placement(prepared).floating)
    assert ("inner" in reasons) == (name in ISLANDS), reasons
    if name in ISLANDS:
        assert ISLANDS[name] in reasons["inner"]

    bp.calibrate(prepared, data=[(x,)])
    rows = bp.report.placement(prepared).quantizers
    assert all(row.calibrated for row in rows), [r for r in rows if not r.calibrated]
    again = pickle.loads(pickle.dumps(prepared)).eval()
    random.seed(0), torch.manual_seed(0)
    y = prepared.eval()(x)
    random.seed(0), torch.manual_seed(0)
    assert torch.equal(y, again(x))
    prepared.train()(x).sum().backward()


def test_numbers_of_the_owner_stay_alive():
    model = networks.Wrapped(networks.Hard.ChangingNumber())
    x = torch.randn(1, 4, 5, 5)
    prepared = bp.prepare(model, example_inputs=(x,))
    model.inner.strength = prepared.inner.strength = 3.5
    assert_same(model, prepared, x, True, 0)


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.rate = networks.conv(), 0.5

    def forward(self, x: Tensor) -> Tensor:
        if self.rate > 0.25:  # this number selects the path, so it cannot stay a variable
            x = x + self.a(x)
        return x + self.rate


def test_a_number_that_became_constant_warns_when_it_is_assigned():
    prepared = bp.prepare(Frozen(), example_inputs=(torch.randn(1, 4, 5, 5),))
    with pytest.warns(UserWarning, match=r"Frozen.rate is part of the forward"):
        prepared.rate = 0.75


def test_other_arguments_than_prepared_for_are_refused():
    class Optional(networks.Base):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            y = self.a(x) + x
            return y if mask is None else y * mask

    prepared = bp.prepare(Optional(), example_inputs=(torch.randn(1, 4, 5, 5),))
    bp.calibrate(prepared, data=[torch.randn(1, 4, 5, 5)])
    with pytest.raises(bp.Unsupported, match="Optional: prepared with example inputs of other"):
        prepared(torch.randn(1, 4, 5, 5), torch.ones(1))


@pytest.fixture(scope="module")
def mobilenet():
    torch.manual_seed(0)
    model, shape = networks.SmallMobileNet(), (4, 3, 16, 16)
    return model, bp.prepare(model, example_inputs=(torch.randn(shape),)), torch.randn(shape)


def test_containers_names_and_types_are_kept(mobilenet):
    model, prepared, _ = mobilenet
    assert isinstance(prepared, networks.SmallMobileNet) and type(prepared) is not type(model)
    assert type(prepared).__name__ == "SmallMobileNet"
    assert len(prepared.features) == 4 and len(prepared.features[1].conv) == 8
    assert isinstance(prepared.features[1].conv[2], nn.ReLU6)
    assert isinstance(prepared.features[1].conv[1], nn.BatchNorm2d)
    names = [name for name, _ in prepared.named_parameters()]
    assert names == [name for name, _ in model.named_parameters()]
    assert [k for k in prepared.state_dict() if "bp_" not in k] == list(model.state_dict())


def test_hooks_still_run(mobilenet):
    model, _, x = mobilenet
    seen = []
    hooked = copy.deepcopy(model)
    hooked.features[1].register_forward_hook(lambda m, a, y: seen.append(y.shape))
    prepared = bp.prepare(hooked, example_inputs=(x,))
    assert not seen  # prepare did not call them either
    bp.calibrate(prepared, data=[x])
    assert len(seen) == 1
    inside = []
    prepared.features[0][1].register_forward_hook(lambda m, a, y: inside.append(y))
    prepared.eval()(x)
    assert inside[0].min() < 0  # the result of BatchNorm, before ReLU6


def test_batch_norm_and_dropout_follow_train_and_eval(mobilenet):
    _, prepared, x = mobilenet
    model = copy.deepcopy(prepared).train()
    model(x)
    norm = model.features[0][1]
    assert int(norm.num_batches_tracked) == 1
    norm.eval()
    held = norm.running_mean.clone()
    model(x)
    assert torch.equal(norm.running_mean, held) and int(norm.num_batches_tracked) == 1
    model.eval()
    assert torch.equal(model(x), model(x))


def test_float_checkpoint_loads_and_leaves_quantizers_uncalibrated(mobilenet):
    model, _, x = mobilenet
    prepared = bp.prepare(model, example_inputs=(x,))
    other = networks.SmallMobileNet()
    missing, unexpected = prepared.load_state_dict(other.state_dict(), strict=False)
    assert not unexpected and all("bp_" in key for key in missing)
    with pytest.raises(bp.Uncalibrated, match=r"features\.0\.2|input"):
        prepared.eval()(x)


def test_prepared_state_loads_strictly(mobilenet):
    model, _, x = mobilenet
    one = bp.prepare(model, example_inputs=(x,))
    bp.calibrate(one, data=[x])
    two = bp.prepare(networks.SmallMobileNet(), example_inputs=(x,))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.eval()(x), two.eval()(x))
    assert all(r.calibrated for r in bp.report.placement(two).quantizers)


def test_every_value_between_layers_is_on_its_grid(mobilenet):
    """Check that in eval each convolution and linear reads integers times a scale."""
    model, _, x = mobilenet
    prepared = bp.prepare(model, example_inputs=(x,))
    bp.calibrate(prepared, data=[x])
    prepared.eval()
    levels = {}

    def look(name):
        return lambda module, args: levels.update({name: args[0].unique().numel()})

    for name, module in prepared.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_pre_hook(look(name))
    prepared(x)
    assert levels and all(count <= 256 for count in levels.values()), levels


def test_placement_lists_everything(mobilenet):
    _, prepared, _ = mobilenet
    found = bp.report.placement(prepared)
    held = [name for name, m in prepared.named_modules() if isinstance(m, Quantizer)]
    assert sorted(row.where for row in found.quantizers) == sorted(held)
    text = str(found)
    assert "features.1.conv.0" in text and "s8" in text and "u8" in text
    layers = dict(found.integer)
    assert layers["classifier.1"].startswith("Linear")
    assert not found.floating


class Reasons(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = networks.conv(), networks.conv()
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.used(x))


def test_what_stays_float_is_named_with_its_reason():
    x = torch.randn(1, 4, 5, 5)
    config = bp.QConfig.int8().override("used", weight=bp.FLOAT)
    floating = dict(bp.report.placement(bp.prepare(Reasons(), config, example_inputs=x)).floating)
    assert "never called" in floating["unused"]
    assert "GroupNorm" in floating["norm"]
    assert "config" in floating["used"]


def test_a_composite_used_twice_shares_and_says_so():
    class Composite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(networks.conv(), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.block(x)) + x

    prepared = bp.prepare(Composite(), example_inputs=torch.randn(1, 4, 5, 5))
    assert any("2 times" in note for _, note in bp.report.placement(prepared).notes)


def test_a_concat_and_its_only_inputs_share_a_scale():
    class Concat(networks.Base):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.cat([self.a(x), F.relu(self.b(x))], 1)
            return F.max_pool2d(y, 2).flatten(1).relu() + 1

        def more(self) -> None: ...

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.concat, self.head = Concat(), nn.Linear(8 * 9, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.concat(x))

    x = torch.randn(2, 4, 6, 6)
    found = bp.report.placement(bp.prepare(Net(), example_inputs=x))
    shared = [name for name, note in found.notes if "its only reader" in note]
    assert len(shared) == 2
    assert not any(row.name in shared and row.role == "activation" for row in found.quantizers)


def test_fusion_gives_what_separate_modules_give(mobilenet):
    """Check that a hook on a BatchNorm turns fusion off, and that results agree within rounding."""
    _, prepared, x = mobilenet
    one, two = copy.deepcopy(prepared), copy.deepcopy(prepared)
    for model in (one, two):
        bp.calibrate(model, data=[x])
    for module in two.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda m, a, y: None)
    for training in (False, True):
        y1, y2 = one.train(training)(x), two.train(training)(x)
        torch.testing.assert_close(y1, y2, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_targets(target):
    x = torch.rand(2, 3, 16, 16)
    model = networks.SmallMobileNet()
    prepared = bp.prepare(model, bp.QConfig.int8(target=target), example_inputs=x)
    bp.calibrate(prepared, data=[x * 20])
    activations = [
        m for m in prepared.modules() if isinstance(m, Quantizer) and m.role == "activation"
    ]
    for q in activations:
        low, high = q.control[:2].tolist()
        assert (low, high) == ((0, 255) if target == "onnxruntime" else (-128, 127))
        if target == "tensorrt":
            assert q.zero_point is None
        elif q.limit == 6:
            assert int(q.zero_point) == 0
            assert q.scale.double().item() * 255 <= 6
    assert any(q.limit == 6 for q in activations) == (target == "onnxruntime")
    assert all(
        m.control[:2].tolist() == [-127, 127]
        for m in prepared.modules()
        if isinstance(m, Quantizer) and m.role == "weight"
    )


CONFIGS = {
    "int8": bp.QConfig.int8(),
    "int4": bp.QConfig.int4(),
    "int2": bp.QConfig.int2(),
    "binary": bp.QConfig.binary_weights(),
    "weight_only": bp.QConfig.weight_only(bits=4),
    "group": bp.QConfig.weight_only(bits=4, group=4),
    "dynamic": bp.QConfig.dynamic(),
    "token": bp.QConfig(activation=bp.QSpec(dynamic=True, granularity="token")),
    "fp8": bp.QConfig.fp8(),
    "lsq+": bp.QConfig(activation=bp.QSpec(bits=4, learn="lsq+"), weight=bp.QSpec(learn="lsq")),
    "pact": bp.QConfig(activation=bp.QSpec(bits=4, learn="pact")),
    "dorefa": bp.QConfig(
        weight=bp.QSpec(bits=4, learn="dorefa"), activation=bp.QSpec(bits=4, learn="dorefa")
    ),
    "ternary": bp.QConfig(weight=bp.QSpec(bits=2, learn="ternary")),
    "binary_lsq": bp.QConfig(weight=bp.QSpec(bits=1, learn="lsq"), activation=bp.QSpec(bits=1)),
    "ewgs": bp.QConfig(weight=bp.QSpec(bits=4, estimator="ewgs", delta=0.02)),
    "dsq": bp.QConfig(activation=bp.QSpec(bits=4, estimator="tanh", delta=2.0)),
    "power_of_two": bp.QConfig(
        weight=bp.QSpec(power_of_two=True), activation=bp.QSpec(symmetric=True, power_of_two=True)
    ),
    "per_tensor": bp.QConfig(weight=bp.QSpec(granularity="tensor")),
    "per_channel": bp.QConfig(activation=bp.QSpec(granularity="channel")),
    "stochastic": bp.QConfig(weight=bp.QSpec(rounding="stochastic")),
    "minmax": bp.QConfig(activation=bp.QSpec(range="minmax")),
    "percentile": bp.QConfig(activation=bp.QSpec(range="percentile", percentile=99.9)),
    "mse": bp.QConfig(weight=bp.QSpec(bits=4, range="mse"), activation=bp.QSpec(range="mse")),
    "entropy": bp.QConfig(activation=bp.QSpec(range="entropy")),
    "sigma": bp.QConfig(weight=bp.QSpec(range="sigma"), activation=bp.QSpec(range="sigma")),
    "given": bp.QConfig(activation=bp.QSpec(range=(-3.0, 3.0), stretch=1.5)),
    "tensorrt": bp.QConfig.int8(target="tensorrt"),
}


@pytest.mark.parametrize("network", networks.NETWORKS)
@pytest.mark.parametrize("name", CONFIGS)
def test_configs_train(name, network):
    torch.manual_seed(0)
    kind, shape = networks.NETWORKS[network]
    model, x, target = kind(), torch.randn(shape), torch.tensor([0, 1, 2, 3])
    prepared = bp.prepare(model, CONFIGS[name], example_inputs=(x,))
    bp.calibrate(prepared, data=[x, -x])
    assert torch.isfinite(prepared.eval()(x)).all()
    optimizer = torch.optim.SGD(bp.param_groups(prepared, weight_decay=1e-4), lr=0.02, momentum=0.9)
    prepared.train()
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = F.cross_entropy(prepared(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in prepared.parameters())
    assert min(losses[-3:]) < losses[0], losses
    again = bp.prepare(kind(), CONFIGS[name], example_inputs=(x,))
    again.load_state_dict(prepared.state_dict())
    assert torch.equal(prepared.eval()(x), again.eval()(x))
    assert torch.equal(copy.deepcopy(prepared)(x), prepared(x))


def test_bad_input():
    x = torch.randn(2, 3, 16, 16)
    model = networks.SmallMobileNet()
    with pytest.raises(ValueError, match=r"does not run on example_inputs \[\(2, 4, 16, 16\)\]"):
        bp.prepare(model, example_inputs=(torch.randn(2, 4, 16, 16),))
    with pytest.raises(ValueError, match=r"'featurs\.\*'.*near matches: features"):
        bp.prepare(
            model,
            bp.QConfig.int8().override("featurs.*", weight=bp.QSpec(bits=4)),
            example_inputs=(x,),
        )
    with pytest.raises(bp.Unsupported, match="no layer that can be quantized"):
        bp.prepare(nn.Sequential(nn.Softmax(1)), example_inputs=(x,))
    with pytest.raises(TypeError, match=r"config must be a bp\.QConfig, got str"):
        bp.prepare(model, "int8", example_inputs=(x,))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        bp.prepare(lambda x: x, example_inputs=(x,))
    prepared = bp.prepare(model, example_inputs=(x,))
    with pytest.raises(ValueError, match="prepared already"):
        bp.prepare(prepared, example_inputs=(x,))
    for untouched in model.modules():
        assert not isinstance(untouched, Quantizer) and not untouched._forward_pre_hooks
    other = bp.prepare(
        model, bp.QConfig.int8().override("classifier.1", weight=bp.FLOAT), example_inputs=(x,)
    )
    with pytest.raises(RuntimeError, match=r"Missing key.*bp_weight"):
        prepared.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="not prepared"):
        bp.report.placement(model)


def test_hardswish_joins_its_convolution_where_the_target_computes_both_at_once():
    """ONNX Runtime computes the convolution in integers and Hardswish by lookup, with two
    quantizers. On TensorRT's grid there is one, and training fuses BatchNorm, Hardswish and the
    quantizer in one op."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Hardswish(), nn.Conv2d(8, 4, 1))
    x = torch.randn(4, 3, 8, 8)
    counts = {}
    for target in ("onnxruntime", "tensorrt"):
        config = bp.QConfig.int8(target=target)
        qat = bp.prepare(model, config, example_inputs=(x,))
        bp.calibrate(qat, data=[x])
        qat.train()
        counts[target] = sum(
            isinstance(m, Quantizer) and m.role == "activation" for m in qat.modules()
        )
        with torch.profiler.profile(acc_events=True) as profile:
            y = qat(x)
        ran = {event.key for event in profile.key_averages()}
        assert "bitpare::bn_act_fake_quant" in ran
        assert ("aten::hardswish" not in ran) and y.isfinite().all()
        if target == "tensorrt":  # only the model's input has a separate quantizer
            assert profile.key_averages() and qat[1].bp_tail[1] == "hardswish"
    assert counts["onnxruntime"] == counts["tensorrt"] + 1


@dataclasses.dataclass
class Output(collections.OrderedDict):
    """A result as libraries return them, whose fields are also items."""

    logits: Tensor | None = None
    hidden: Tensor | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


class WithOutput(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.kind = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), kind

    def forward(self, x):
        hidden = torch.relu(self.a(x)).mean([2, 3])
        if self.kind == "fields":
            return Output(logits=self.b(hidden))
        return collections.OrderedDict(logits=self.b(hidden), hidden=hidden)


@pytest.mark.parametrize("kind", ["fields", "ordered"])
def test_results_keep_their_class(kind):
    x = torch.randn(2, 3, 8, 8)
    model = WithOutput(kind).eval()
    qat = bp.prepare(model, example_inputs=(x,))
    bp.calibrate(qat, data=[x])
    expected, got = model(x), qat.eval()(x)
    assert type(got) is type(expected) and list(got) == list(expected)
    assert torch.allclose(got["logits"], expected["logits"], atol=0.1)
    if kind == "fields":
        assert got.logits is got["logits"] and got.hidden is None
    assert not bp.report.placement(qat).floating, bp.report.placement(qat).floating
    again = pickle.loads(pickle.dumps(qat))
    assert type(again(x)) is type(expected)


class UserDict(dict):
    pass


def test_a_result_of_an_unknown_class_is_kept_by_an_island():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return UserDict(y=torch.relu(self.a(x)))

    x = torch.randn(2, 3, 8, 8)
    qat = bp.prepare(Model(), example_inputs=(x,))
    bp.calibrate(qat, data=[x])
    assert type(qat.eval()(x)) is UserDict
    assert "UserDict" in str(bp.report.placement(qat))


def test_another_number_of_dimensions_is_said():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 6)

        def forward(self, x):
            y = torch.relu(self.a(x))
            return y.view(*y.shape[:-1], 2, 3)

    x = torch.randn(2, 5, 4)
    qat = bp.prepare(Model(), example_inputs=(x,))
    bp.calibrate(qat, data=[x])
    assert qat.eval()(torch.randn(7, 9, 4)).shape == (7, 9, 2, 3)
    with pytest.raises(bp.Unsupported, match="prepared with example inputs of 2 dimensions here"):
        qat(torch.randn(5, 4))


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_encoder_is_traced_whole(norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model, x = nn.Sequential(nn.Linear(8, 16), encoder, nn.Linear(16, 3)), torch.randn(2, 5, 8)
    qat = bp.prepare(model, example_inputs=(x,))
    assert "keeps its own forward" not in str(bp.report.placement(qat))
    bp.calibrate(qat, data=[x])
    expected, got = model.eval()(x), qat.eval()(x)
    assert (got - expected).norm() < 0.1 * expected.norm()
    qat.train()(x).sum().backward()


def test_a_forward_that_counts_dimensions():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            x = torch.relu(self.a(x))
            assert x.ndim in (2, 3)
            if x.dim() == 3:
                x = x.mean(1)
            return self.a(x) if len(x.shape) == 2 else x

    x = torch.randn(2, 5, 4)
    qat = bp.prepare(Model(), example_inputs=(x,))
    assert not bp.report.placement(qat).floating
    bp.calibrate(qat, data=[x])
    assert qat.eval()(torch.randn(3, 9, 4)).shape == (3, 4)
    with pytest.raises(bp.Unsupported, match="inputs of 3 dimensions here, got 2: \\(3, 4\\)"):
        qat(torch.randn(3, 4))
