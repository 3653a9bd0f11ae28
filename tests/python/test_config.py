"""Test the errors of QSpec and QConfig, their text, and their files."""

import bitpare as bp
import networks
import pytest
import torch
from bitpare.spec.grid import grid_of
from torch import nn

IMPOSSIBLE = [
    (dict(bits=0), "bits must be 1 to 16, got 0"),
    (dict(bits=17), "bits must be 1 to 16"),
    (dict(rounding="up"), "rounding must be one of nearest"),
    (dict(estimator="straight"), "estimator must be one of"),
    (dict(learn="lsqq"), "learn must be one of lsq"),
    (dict(range="kl"), "range must be one of minmax"),
    (dict(range=(1.0, -1.0)), "low < high"),
    (dict(group=0), "group must be 1 or more"),
    (dict(group=8, granularity="channel"), "two ways"),
    (dict(symmetric=False, power_of_two=True), "power-of-two"),
    (dict(dynamic=True, learn="lsq"), "nothing to learn"),
    (dict(dynamic=True, range="mse"), "each batch's min and max"),
    (dict(learn="lsq", range="mse"), "leave range unset"),
    (dict(learn="lsq", estimator="ewgs"), "its own gradient"),
    (dict(learn="lsq", rounding="floor"), "rounds to the nearest"),
    (dict(learn="lsq", symmetric=False), "lsq\\+"),
    (dict(learn="ternary"), "ternary codes have 2 bits"),
    (dict(learn="binary"), "binary codes have 1 bit"),
    (dict(bits=1, learn="pact"), "1 bit is binary"),
    (dict(learn="pact", signed=True), "unsigned"),
    (dict(range="entropy", group=4), "histogram"),
    (dict(exponent=4), "go together"),
    (dict(granularity="token"), "dynamic=True"),
    (dict(momentum=0.0), "momentum must be in"),
    (dict(stretch=-1.0), "stretch must be positive"),
]


@pytest.mark.parametrize("options, message", IMPOSSIBLE)
def test_impossible_specs(options, message):
    with pytest.raises(ValueError, match=message):
        bp.QSpec(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(target="tvm"), "target must be one of onnxruntime, tensorrt"),
        (dict(weight=bp.QSpec(dynamic=True)), "dynamic has no meaning"),
        (dict(weight=bp.QSpec(learn="pact")), "pact clips activations"),
        (dict(weight=bp.QSpec(symmetric=False)), "zero point 0"),
        (dict(activation=bp.QSpec(group=8)), "activations have no groups"),
        (dict(activation=bp.QSpec(bits=2, learn="ternary")), "for weights"),
        (dict(activation=bp.QSpec(symmetric=False), target="tensorrt"), "grid is symmetric"),
        (dict(weight=8), "must be a QSpec or FLOAT, got 8"),
    ],
)
def test_impossible_configs(options, message):
    with pytest.raises(ValueError, match=message):
        bp.QConfig(**options)


def test_override_arguments():
    with pytest.raises(ValueError, match="give weight= or activation="):
        bp.QConfig.int8().override("a")
    with pytest.raises(ValueError, match="glob, a type or a predicate"):
        bp.QConfig.int8().override(3, weight=bp.FLOAT)


CONFIGS = [
    bp.QConfig.int8(),
    bp.QConfig.int8(target="tensorrt"),
    bp.QConfig.int4(activation_bits=8),
    bp.QConfig.int2(),
    bp.QConfig.binary_weights(),
    bp.QConfig.weight_only(bits=4, group=64),
    bp.QConfig.dynamic(),
    bp.QConfig.fp8(activation="e5m2"),
    bp.QConfig(activation=bp.QSpec(range=(0.0, 6.0), stretch=1.1)),
    bp.QConfig.int8()
    .override("features.0.*", weight=bp.QSpec(bits=4, learn="lsq"))
    .override(nn.Linear, activation=bp.FLOAT),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_round_trips(config):
    assert bp.QConfig.from_dict(config.to_dict()) == config
    assert bp.QConfig.from_yaml(config.to_yaml()) == config
    assert str(config).startswith("QConfig for ")


def test_predicates_cannot_be_written():
    config = bp.QConfig.int8().override(lambda name, module: True, weight=bp.FLOAT)
    with pytest.raises(ValueError, match=r"predicate .* cannot be written"):
        config.to_dict()


def test_unknown_keys_are_named():
    with pytest.raises(ValueError, match="unknown key wieght"):
        bp.QConfig.from_dict({"wieght": {"bits": 8}})
    with pytest.raises(ValueError, match="unknown option bit"):
        bp.QConfig.from_dict({"weight": {"bit": 8}})


def bits_by_layer(model: nn.Module) -> dict[str, int]:
    rows = bp.report.placement(model).quantizers
    return {r.name: int(r.form[1:]) for r in rows if r.role == "weight"}


def test_overrides_by_glob_type_and_predicate():
    x = torch.randn(2, 3, 16, 16)
    config = (
        bp.QConfig.int8()
        .override("features.1.*", weight=bp.QSpec(bits=4))
        .override(nn.Linear, weight=bp.QSpec(bits=6))
        .override(lambda name, m: getattr(m, "groups", 1) > 1, weight=bp.QSpec(bits=5))
    )
    bits = bits_by_layer(bp.prepare(networks.SmallMobileNet(), config, example_inputs=x))
    assert bits["features.0.0"] == 8
    assert bits["features.1.conv.0"] == 4 and bits["features.1.conv.3"] == 5
    assert bits["features.2.conv.3"] == 5 and bits["classifier.1"] == 6


def test_first_and_last_layers_keep_8_bits():
    x = torch.randn(2, 3, 16, 16)
    prepared = bp.prepare(networks.SmallMobileNet(), bp.QConfig.int2(), example_inputs=x)
    bits = bits_by_layer(prepared)
    assert {n for n, b in bits.items() if b == 8} == {"features.0.0", "classifier.1"}
    assert set(bits.values()) == {2, 8}
    forms = {r.name: r.form for r in bp.report.placement(prepared).quantizers if r.role[0] == "a"}
    assert forms["input"] == "u8"
    assert sum(form == "u8" for form in forms.values()) == 2  # also the input of the last layer


def test_float_activations_of_some_layers():
    x = torch.randn(2, 3, 16, 16)
    config = bp.QConfig.int8().override("features.0.*", activation=bp.FLOAT)
    found = bp.report.placement(bp.prepare(networks.SmallMobileNet(), config, example_inputs=x))
    assert not any(r.name == "features.0.2" for r in found.quantizers)
    assert dict(found.floating)["features.0.2"].startswith("the config")


@pytest.mark.parametrize(
    "spec, role, options, limits",
    [
        (bp.QSpec(), "weight", {}, (-127, 127)),
        (bp.QSpec(bits=4), "weight", {}, (-8, 7)),
        (bp.QSpec(bits=4, narrow=True), "weight", {}, (-7, 7)),
        (bp.QSpec(bits=2), "weight", {}, (-2, 1)),
        (bp.QSpec(), "activation", {}, (0, 255)),
        (bp.QSpec(), "activation", {"target": "tensorrt"}, (-128, 127)),
        (bp.QSpec(bits=4, learn="lsq"), "activation", {}, (-8, 7)),
        (bp.QSpec(bits=4, learn="lsq"), "activation", {"nonnegative": True}, (0, 15)),
        (bp.QSpec(bits=4, learn="pact"), "activation", {}, (0, 15)),
        (bp.QSpec(symmetric=True, signed=True), "activation", {}, (-128, 127)),
        (bp.QSpec.float(4, 3), "weight", {}, (-448, 448)),
        (bp.QSpec.float(5, 2), "weight", {}, (-57344, 57344)),
    ],
)
def test_grids(spec, role, options, limits):
    grid = grid_of(spec, role, **options)
    assert (grid.quant_min, grid.quant_max) == limits
