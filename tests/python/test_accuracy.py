"""Test accuracy after quantization-aware training against float accuracy less a margin. The data
are real and composed digits with fixed seeds, averaged over runs if one run is too noisy."""

import copy
import pathlib
import sys

import bitpare as bp
import pytest
import torch
import torchvision

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

from bitpare_examples.data import composed_digits, digits
from bitpare_examples.networks import LeNet, MobileNetV2, SceneNet
from bitpare_examples.training import accuracy, train

pytestmark = pytest.mark.accuracy
SEEDS = range(5)


def finetuned(model, config, data, *, epochs, lr, seed, batch=64, weight_decay=1e-4):
    """Return the test accuracy of a prepared copy after some epochs."""
    x, y, test_x, test_y = data
    torch.manual_seed(seed)
    qat = bp.prepare(model.eval(), config, example_inputs=(x[:8],))
    bp.calibrate(qat, data=[x[i : i + 128] for i in range(0, 1024, 128)])
    groups = bp.param_groups(qat, weight_decay=weight_decay)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    steps = epochs * (len(y) // batch)
    bp.QatSchedule(qat, steps=steps, freeze_bn=0.8, freeze_ranges=0.9).attach(optimizer)
    train(qat, x, y, optimizer, epochs, batch=batch, seed=seed)
    return accuracy(qat, test_x, test_y)


@pytest.fixture(scope="module")
def lenets():
    found = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        data, model = digits(seed), LeNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
        train(model, *data[:2], optimizer, 30, seed=seed)
        found.append((model, data, accuracy(model, *data[2:])))
    return found


LENET = {  # config, epochs, learning rate, allowed percentage points below float
    "W8A8": (bp.QConfig.int8(), 5, 0.01, 0.2),
    "W4A4": (bp.QConfig.int4(), 15, 0.02, 0.3),
    "W2A2": (bp.QConfig.int2(), 30, 0.02, 0.6),
    "W1A4": (bp.QConfig.binary_weights(), 30, 0.02, 0.5),
}


@pytest.mark.parametrize("name", LENET)
def test_lenet_on_digits(lenets, name):
    config, epochs, lr, margin = LENET[name]
    float_mean = sum(a for _, _, a in lenets) / len(lenets)
    runs = [
        finetuned(copy.deepcopy(model), config, data, epochs=epochs, lr=lr, seed=seed)
        for seed, (model, data, _) in enumerate(lenets)
    ]
    mean = sum(runs) / len(runs)
    print(f"{name}: {mean:.2f}, float {float_mean:.2f}")
    assert float_mean > 97
    assert mean >= float_mean - margin, (runs, [a for _, _, a in lenets])


PRUNED = {0.9: 0.3, 0.95: 0.7, 0.98: 3.0}  # sparsity: allowed percentage points below float


@pytest.mark.parametrize("sparsity", PRUNED)
def test_pruned_lenet_on_digits(lenets, sparsity):
    float_mean = sum(a for _, _, a in lenets) / len(lenets)
    runs = []
    for seed, (trained, data, _) in enumerate(lenets):
        model, (x, y, test_x, test_y) = copy.deepcopy(trained), data
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        steps = 30 * (len(y) // 64)
        schedule = bp.prune.Schedule.cubic(sparsity, begin=0, end=steps // 2, every=20)
        pruner = bp.prune.Pruner(model, schedule).attach(optimizer)
        train(model, x, y, optimizer, 30, batch=64, seed=seed)
        weights = [t.value for t in pruner.targets]
        total = sum(w.numel() for w in weights)
        assert sum(int((w == 0).sum()) for w in weights) >= pruner.pruned() == int(sparsity * total)
        runs.append(accuracy(model, test_x, test_y))
    mean = sum(runs) / len(runs)
    print(f"{sparsity:.0%} pruned: {mean:.2f}, float {float_mean:.2f}")
    assert mean >= float_mean - PRUNED[sparsity], runs


def test_shrunk_lenet_on_digits(lenets):
    """Prune half of the channels during training, then remove them with the optimizer attached."""
    float_mean = sum(a for _, _, a in lenets) / len(lenets)
    runs = []
    for seed, (trained, data, _) in enumerate(lenets):
        model, (x, y, test_x, test_y) = copy.deepcopy(trained), data
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        steps = 15 * (len(y) // 64)
        pruner = bp.prune.Pruner(
            model,
            bp.prune.Schedule.cubic(0.5, begin=0, end=steps // 2, every=20),
            pattern="channel",
            scope="local",
            example_inputs=(x[:2],),
        ).attach(optimizer)
        train(model, x, y, optimizer, 15, batch=64, seed=seed)
        small = bp.prune.shrink(
            model.eval(), example_inputs=(x[:2],), pruner=pruner, optimizer=optimizer
        )
        assert torch.allclose(small.eval()(test_x), model(test_x), atol=1e-4)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = 0.1
        train(small, x, y, optimizer, 15, batch=64, seed=seed)
        runs.append(accuracy(small, test_x, test_y))
    mean = sum(runs) / len(runs)
    share = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    print(f"half of the channels, {share:.0%} of the weights: {mean:.2f}, float {float_mean:.2f}")
    assert mean >= float_mean - 0.3, runs


def test_pruned_and_quantized_lenet_on_digits(lenets):
    """Train with masks and 4 bits in one run."""
    trained, (x, y, test_x, test_y), float_accuracy = lenets[0]
    model = copy.deepcopy(trained)
    torch.manual_seed(0)
    qat = bp.prepare(model.eval(), bp.QConfig.int4(), example_inputs=(x[:8],))
    bp.calibrate(qat, data=[x[:256]])
    optimizer = torch.optim.SGD(bp.param_groups(qat, weight_decay=1e-4), lr=0.05, momentum=0.9)
    steps = 30 * (len(y) // 64)
    schedule = bp.prune.Schedule.cubic(0.8, begin=0, end=steps // 2, every=20)
    pruner = bp.prune.Pruner(qat, schedule).attach(optimizer)
    bp.QatSchedule(qat, steps=steps, freeze_ranges=0.9).attach(optimizer)
    train(qat, x, y, optimizer, 30, batch=64)
    found = accuracy(qat, test_x, test_y)
    print(f"80 % pruned at 4 bits: {found:.2f}, float {float_accuracy:.2f}")
    assert found >= float_accuracy - 1.0
    for target in pruner.targets:
        value = target.quantizer(target.value)
        assert (value[~pruner.kept(target.name)] == 0).all()


@pytest.fixture(scope="module")
def mobilenet():
    torch.manual_seed(0)
    data = composed_digits()
    model = MobileNetV2(width=0.5).to(memory_format=torch.channels_last)
    data = tuple(
        t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in data
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=4e-5)
    train(model, *data[:2], optimizer, 8)
    return model, data, accuracy(model, *data[2:])


MOBILENET = {
    "W8A8": (bp.QConfig.int8(), 0.3),
    "W4A8": (
        bp.QConfig(weight=bp.QSpec(bits=4, learn="lsq"), activation=bp.QSpec(bits=8), first_last=8),
        1.0,
    ),
}


@pytest.mark.parametrize("name", MOBILENET)
def test_mobilenet_on_composed_digits(mobilenet, name):
    model, data, float_accuracy = mobilenet
    config, margin = MOBILENET[name]
    found = finetuned(model, config, data, epochs=2, lr=0.02, seed=0, weight_decay=4e-5)
    print(f"{name}: {found:.2f}, float {float_accuracy:.2f}")
    assert float_accuracy > 94
    assert found >= float_accuracy - margin


@pytest.fixture(scope="module")
def scenes():
    """Return composed digits, a trained teacher and a student of a quarter of its width."""
    data = [d.contiguous(memory_format=torch.channels_last) if d.dim() == 4 else d
            for d in composed_digits(5000, 2000)]  # fmt: skip
    trained = []
    for width in (32, 8):
        torch.manual_seed(0)
        model = SceneNet(width).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        train(model, *data[:2], optimizer, 12)
        trained.append(model.eval())
    return trained, data


def test_a_quarter_width_student_learns_more_from_a_teacher(scenes):
    (teacher, _), (x, y, test_x, test_y) = scenes
    runs: dict[str, list[float]] = {"alone": [], "taught": []}
    for seed in SEEDS:
        for kind in runs:
            torch.manual_seed(seed)
            student = SceneNet(8).to(memory_format=torch.channels_last)
            optimizer = torch.optim.SGD(
                student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True
            )
            kd = bp.distill.Distiller(student, teacher, bp.distill.SoftTarget(4.0, 0.1))
            objective = kd if kind == "taught" else None
            train(student, x, y, optimizer, 8, seed=seed, objective=objective)
            runs[kind].append(accuracy(student, test_x, test_y))
    means = {kind: sum(found) / len(found) for kind, found in runs.items()}
    print(f"teacher {accuracy(teacher, test_x, test_y):.2f}, {means}")
    assert means["taught"] >= means["alone"] + 0.3, runs


def test_two_bits_with_the_float_model_as_teacher(scenes):
    (_, model), (x, y, test_x, test_y) = scenes
    runs: dict[str, list[float]] = {"alone": [], "taught": []}
    for seed in SEEDS:
        for kind in runs:
            torch.manual_seed(seed)
            qat = bp.prepare(model, bp.QConfig.int2(), example_inputs=(x[:8],))
            bp.calibrate(qat, data=[x[:512]])
            groups = bp.param_groups(qat, weight_decay=1e-4)
            optimizer = torch.optim.SGD(groups, lr=0.02, momentum=0.9)
            steps = 12 * (len(y) // 64)
            bp.QatSchedule(qat, steps=steps, freeze_bn=0.8, freeze_ranges=0.9).attach(optimizer)
            kd = bp.distill.Distiller(qat, model, bp.distill.SoftTarget(4.0, 0.5))
            objective = kd if kind == "taught" else None
            train(qat, x, y, optimizer, 12, seed=seed, objective=objective)
            runs[kind].append(accuracy(qat, test_x, test_y))
    means = {kind: sum(found) / len(found) for kind, found in runs.items()}
    print(f"float {accuracy(model, test_x, test_y):.2f}, {means}")
    # Distillation does not help here (docs/distillation.md says so), but a bug would cost more.
    assert means["taught"] >= means["alone"] - 0.7, runs


# -- in integers


def converted(model, config, data):
    """Prepare, calibrate and convert a model, and compare both over the test images."""
    x, _, test_x, _ = data
    qat = bp.prepare(model.eval(), config, example_inputs=(x[:1],))
    bp.calibrate(qat, data=[x[i : i + 128] for i in range(0, 1024, 128)])
    integer = bp.convert(qat.eval())
    batches = list(test_x.split(250))
    return qat, integer, bp.verify(qat, integer, data=batches, min_agreement=0.995)


@pytest.fixture(scope="module")
def resnet(scenes):
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    train(model, *scenes[1][:2], optimizer, 8)
    assert accuracy(model, *scenes[1][2:]) > 80
    return model


@pytest.mark.parametrize("config", [bp.QConfig.int8(), bp.QConfig.int8(target="tensorrt")])
def test_trained_models_in_integers(lenets, mobilenet, resnet, scenes, config):
    trained = (lenets[0][:2], mobilenet[:2], (resnet, scenes[1]))
    for model, found in trained:
        qat, integer, report = converted(model, config, found)
        print(report)
        assert report.lsb <= 1.001 and report.sqnr > 25, str(report)
        sums = [r for r in report.rows if r.op == "conv"]
        assert sum(r.unequal for r in sums) <= 1e-3 * sum(r.elements for r in sums), str(report)
        assert abs(accuracy(integer, *found[2:]) - accuracy(qat, *found[2:])) <= 0.3
