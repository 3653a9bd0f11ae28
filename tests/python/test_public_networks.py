"""Test networks from public libraries: prepare, calibrate, train, save, resume."""

import io

import bitpare as bp
import pytest
import torch
import torch.nn.functional as F

torchvision = pytest.importorskip("torchvision")
models = torchvision.models
pytestmark = pytest.mark.slow

NETWORKS = {
    "resnet18": (models.resnet18, 64),
    "resnext50_32x4d": (models.resnext50_32x4d, 32),
    "mobilenet_v2": (models.mobilenet_v2, 64),
    "mobilenet_v3_small": (models.mobilenet_v3_small, 64),
    "densenet121": (models.densenet121, 64),
    "googlenet": (
        lambda num_classes: models.googlenet(num_classes=num_classes, init_weights=False),
        64,
    ),
    "shufflenet_v2_x0_5": (models.shufflenet_v2_x0_5, 64),
    "squeezenet1_0": (models.squeezenet1_0, 64),
    "mnasnet0_5": (models.mnasnet0_5, 64),
    "efficientnet_b0": (models.efficientnet_b0, 64),
    "regnet_y_400mf": (models.regnet_y_400mf, 32),
    "convnext_tiny": (models.convnext_tiny, 32),
    "swin_t": (models.swin_t, 64),
}


def loss_of(outputs, labels):
    """Return the loss. GoogLeNet returns a tuple of logits in training."""
    found = outputs if isinstance(outputs, tuple) else (outputs,)
    return sum(F.cross_entropy(logits, labels) for logits in found)


def trained(model, optimizer, x, labels, seed):
    torch.manual_seed(seed)  # for dropout
    model.train()
    optimizer.zero_grad()
    loss_of(model(x), labels).backward()
    optimizer.step()


def new_optimizer(model):
    return torch.optim.SGD(bp.param_groups(model, weight_decay=1e-4), lr=0.001, momentum=0.9)


def with_statistics(model, x):
    """Set running statistics as after training. Without them, inputs of late layers are almost
    0."""
    model.train()
    with torch.no_grad():
        for _ in range(30):
            model(x)
    return model.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_prepare_calibrate_train_save_and_go_on(name):
    build, size = NETWORKS[name]
    torch.manual_seed(0)
    x, labels = torch.randn(4, 3, size, size), torch.randint(0, 10, (4,))
    model = with_statistics(build(num_classes=10), x)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    qat = bp.prepare(model, example_inputs=(x,))
    placed = str(bp.report.placement(qat))
    assert "keeps its own forward" not in placed
    bp.calibrate(qat, data=[x])
    with torch.no_grad():
        expected, got = model(x).double(), qat.eval()(x).double()
    noise = (got - expected).norm() / expected.norm()
    assert noise < 0.35, f"8 bits change the outputs by {noise:.3f} of their size"
    optimizer = new_optimizer(qat)
    trained(qat, optimizer, x, labels, 1)
    file = io.BytesIO()
    torch.save([qat.state_dict(), optimizer.state_dict()], file)
    trained(qat, optimizer, x, labels, 2)
    file.seek(0)
    fresh = bp.prepare(model, example_inputs=(x,))
    state, optimizer_state = torch.load(file)
    fresh.load_state_dict(state)
    again = new_optimizer(fresh)
    again.load_state_dict(optimizer_state)
    trained(fresh, again, x, labels, 2)
    for key, value in qat.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key]), key
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
