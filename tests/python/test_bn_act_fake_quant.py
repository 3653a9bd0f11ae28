"""Compare bn_act_fake_quant with torch's modules: state, switches, statistics, the autograd
graph."""

import bitpare as bp
import pytest
import reference
import torch
from cuda_graphs import captured
from torch import Tensor

F = bp.functional
ACTIVATIONS = {
    "none": lambda v: v,
    "relu": torch.relu,
    "relu6": torch.nn.functional.relu6,
    "hardswish": torch.nn.functional.hardswish,
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def control(observe=1, quantize=1, freeze=0, low=-128, high=127) -> Tensor:
    return torch.tensor([low, high, observe, quantize, freeze], dtype=torch.int32)


def no_range() -> Tensor:
    return torch.tensor([[torch.inf], [-torch.inf]])


def batch_norm(channels: int) -> torch.nn.BatchNorm2d:
    module = torch.nn.BatchNorm2d(channels)
    with torch.no_grad():
        module.weight.normal_().add_(1.0)
        module.bias.normal_()
        module.running_mean.normal_()
        module.running_var.uniform_(0.5, 2.0)
    return module


def fused(module, x, flags, pending, activation="relu6", scale=0.05, training=None) -> Tensor:
    """Compute the op with a module's state, and update the state as the module would."""
    return F.bn_act_fake_quant(
        x, module.weight, module.bias, module.running_mean, module.running_var,
        module.num_batches_tracked, torch.tensor(scale), None, flags, pending,
        activation=activation, training=module.training if training is None else training,
        momentum=module.momentum, eps=module.eps,
    )  # fmt: skip


def copy_of(module):
    copied = batch_norm(module.num_features)
    copied.load_state_dict(module.state_dict())
    return copied.train(module.training)


def buffers(module) -> list[Tensor]:
    return [b.clone() for b in module.buffers()]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(32, 24, 8, 8), (4, 40, 7, 7), (6, 130, 5, 5), (9, 3, 20, 21)])
def test_without_quantizer_is_torchs_module(shape, training, activation, layout):
    torch.manual_seed(len(activation))
    theirs = batch_norm(shape[1]).train(training)
    mine = copy_of(theirs)
    start = (torch.randn(shape) * 2 + 1).contiguous(memory_format=LAYOUTS[layout])
    x1, x2 = (start.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2))
    pending = no_range()
    y = fused(mine, x1, control(quantize=0), pending, activation)
    expected = ACTIVATIONS[activation](theirs(x2))
    dy = torch.randn(shape)
    y.backward(dy)
    expected.backward(dy)
    # Both are float32 sums in a different order.
    assert torch.allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(x1.grad, x2.grad, rtol=1e-4, atol=2e-5)
    elements = start.numel() / shape[1]
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-5, atol=2e-6 * elements**0.5 * 10)
    for a, b in zip(mine.buffers(), theirs.buffers(), strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=1e-5, atol=1e-6)
    assert torch.equal(mine.num_batches_tracked, theirs.num_batches_tracked)
    assert torch.equal(pending.flatten(), torch.stack(y.aminmax()).detach())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_quantized_is_fake_quant_of_the_activation(activation):
    """Check that folding the activation into the integer clamp changes no bit."""
    x, module = torch.randn(4, 24, 9, 9) * 3, batch_norm(24)
    plain = fused(copy_of(module), x, control(quantize=0), no_range(), activation)
    for low, high, zero in ((-128, 127, 3), (0, 255, 0), (0, 15, 4), (-8, 7, -8), (-8, 7, 7)):
        zero_point, scale = torch.tensor(zero, dtype=torch.int32), torch.tensor(0.11)
        got = F.bn_act_fake_quant(
            x, module.weight, module.bias, module.running_mean.clone(),
            module.running_var.clone(), None, scale, zero_point,
            control(low=low, high=high), no_range(), activation=activation, training=True,
        )  # fmt: skip
        grid = {"quant_min": low, "quant_max": high}
        assert torch.equal(got, F.fake_quant(plain, scale, zero_point, **grid))


@pytest.mark.parametrize("observe", [0, 1])
@pytest.mark.parametrize("quantize", [0, 1])
@pytest.mark.parametrize("freeze", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_switches(training, freeze, quantize, observe):
    """Compare each switch with the float64 reference: values, gradients, buffers, pending."""
    torch.manual_seed(17)
    module, x = batch_norm(12), torch.randn(5, 12, 6, 7) * 2
    start, flags, pending = buffers(module), control(observe, quantize, freeze, -8, 7), no_range()
    expected = reference.BnActFakeQuant(
        x, module.weight.detach(), module.bias.detach(), *start, torch.tensor(0.4), None, flags,
        pending, activation="relu6", training=training,
    )  # fmt: skip
    x.requires_grad_()
    y = fused(module, x, flags, pending, scale=0.4, training=training)
    clear = ~expected.near_tie()
    assert clear.double().mean() > 0.99
    assert torch.allclose(y[clear].double(), expected.value[clear], atol=1e-5)
    dy = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, module.weight, module.bias], dy)
    for a, b in zip(got, expected.gradients(dy), strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-5, atol=1e-4)
    moves = training and not freeze
    assert torch.allclose(module.running_mean.double(), expected.running_mean, atol=1e-6)
    assert torch.allclose(module.running_var.double(), expected.running_var, atol=1e-5)
    for now, before in zip(module.buffers(), start, strict=True):
        assert torch.equal(now, before) != moves
    seen = torch.stack(expected.activated.aminmax()).float()
    assert torch.allclose(pending.flatten(), seen if observe else no_range().flatten(), atol=1e-5)


def test_what_the_forward_pass_used_is_remembered():
    """Check that freezing between forward and backward changes nothing."""
    x, module = torch.randn(8, 16, 5, 5, requires_grad=True), batch_norm(16)
    dy, grads = torch.randn(8, 16, 5, 5), []
    for freeze_before_backward in (0, 1):
        flags = control()
        y = fused(copy_of(module), x, flags, no_range())
        flags[4] = freeze_before_backward
        grads.append(torch.autograd.grad(y, x, dy)[0])
    assert torch.equal(*grads)
    frozen = fused(copy_of(module), x, control(freeze=1), no_range())
    assert not torch.equal(torch.autograd.grad(frozen, x, dy)[0], grads[0])


def test_mean_far_from_zero():
    """Check mean / std = 1000, where sums are shifted so that only x's own rounding is lost."""
    module = torch.nn.BatchNorm2d(24)
    x = (torch.randn(16, 24, 12, 12) * 0.1 + 100).contiguous(memory_format=torch.channels_last)
    exact = torch.var_mean(x.double(), (0, 2, 3), correction=1)
    x.requires_grad_()
    y = fused(module, x, control(quantize=0), no_range(), "none")
    mean = module.running_mean.double() / 0.1
    var = (module.running_var.double() - 0.9) / 0.1
    assert (mean - exact[1]).abs().max() < 1e-4  # the float32 rounding of a tenth of 100
    assert (var / exact[0] - 1).abs().max() < 1e-3  # 0.9 + 0.001 has 6e-8 to spare
    normal = (x.double() - exact[1].reshape(1, -1, 1, 1)) / exact[0].sqrt().reshape(1, -1, 1, 1)
    expected = normal / (1 + 1e-5 / exact[0].reshape(1, -1, 1, 1)).sqrt() * (1 + 1 / 4606) ** 0.5
    assert (y - expected).abs().max() < 1e-3  # x is known to 4e-5 of its std
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    wide = x.detach().double().requires_grad_()
    reference_y = torch.nn.functional.batch_norm(wide, None, None, training=True)
    (exact_dx,) = torch.autograd.grad(reference_y, wide, dy.double())
    assert (dx - exact_dx).abs().max() < 1e-4 * exact_dx.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(32, 24, 16, 16), (16, 200, 14, 14), (64, 96, 7, 7)])
def test_threads_change_nothing(shape, layout):
    x = torch.randn(shape).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    module, dy, results = batch_norm(shape[1]), torch.randn(shape), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        mine, pending = copy_of(module), no_range()
        y = fused(mine, x, control(), pending)
        grads = torch.autograd.grad(y, [x, mine.weight, mine.bias], dy)
        results.append((y, pending, *grads, *buffers(mine)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_versions_tell_what_changed():
    module, pending = batch_norm(3), no_range()
    x = torch.randn(2, 3, 4, 4)
    changed = [module.running_mean, module.running_var, module.num_batches_tracked, pending]
    for run, others in ((fused, [x]), (torch.no_grad()(fused), [x, module.weight, module.bias])):
        before = [t._version for t in changed], [t._version for t in others]
        run(module, x, control(), pending)
        assert all(t._version > v for t, v in zip(changed, before[0], strict=True))
        assert [t._version for t in others] == before[1]
    before = [t._version for t in changed]
    fused(module, x, control(), pending, training=False)
    assert [t._version for t in changed[:3]] == before[:3] and pending._version > before[3]


def test_a_kept_buffer_that_changes_is_noticed():
    module, x = batch_norm(3), torch.randn(2, 3, 4, 4)
    scale = torch.ones(3, requires_grad=True)
    kept = (module.running_mean * scale).sum()
    fused(module, x, control(), no_range())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


def test_pending_is_folded_once_for_the_same_batch():
    module, x, pending = batch_norm(3), torch.randn(2, 3, 4, 4), no_range()
    fused(module, x, control(), pending, "none")
    once = pending.clone()
    fused(module, x, control(), pending, "none")
    assert torch.equal(pending, once)
    fused(module, x * 5, control(freeze=1), pending, "none")
    assert pending[0] < once[0] and pending[1] > once[1]
    fused(module, x * torch.nan, control(freeze=1), pending)
    assert pending.isnan().all()


def test_graph_used_twice_and_hooks():
    """Check that the incoming gradient is not changed if others hold it."""
    module, x = batch_norm(24), torch.randn(8, 24, 8, 8, requires_grad=True)
    y = fused(module, x, control(), no_range())
    dy = torch.randn_like(y)
    kept, seen = dy.clone(), []
    y.register_hook(seen.append)
    first = torch.autograd.grad(y, x, dy, retain_graph=True)[0]
    second = torch.autograd.grad(y, x, dy, retain_graph=True)[0]
    assert torch.equal(first, second) and torch.equal(dy, kept) and torch.equal(seen[0], kept)
    doubled = torch.autograd.grad(y + y, x, dy)[0]
    assert torch.allclose(doubled, 2 * first, rtol=1e-5, atol=1e-5)


def test_second_derivative_raises():
    module, x = batch_norm(3), torch.randn(2, 3, 4, 4, requires_grad=True)
    y = fused(module, x, control(), no_range())
    dy = torch.randn_like(y, requires_grad=True)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        dx.sum().backward()


def test_gradients_of_some():
    """Check that inputs without requires_grad get no gradient, and the others the same one."""
    x, dy = torch.randn(4, 6, 5, 5), torch.randn(4, 6, 5, 5)
    module = batch_norm(6)
    x.requires_grad_()
    y = fused(copy_of(module), x, control(), no_range())
    (expected,) = torch.autograd.grad(y, x, dy)
    for t in module.parameters():
        t.requires_grad_(False)
    y = fused(module, x, control(), no_range())
    assert torch.equal(torch.autograd.grad(y, x, dy)[0], expected)
    module.bias.requires_grad_()
    y = fused(module, x.detach(), control(), no_range())
    y.backward(dy)
    assert module.bias.grad is not None and module.weight.grad is None


def test_empty_batch_changes_nothing():
    module, pending = batch_norm(3), no_range()
    start, x = buffers(module), torch.randn(0, 3, 4, 4, requires_grad=True)
    y = fused(module, x, control(), pending)
    y.sum().backward()
    assert y.shape == x.shape and x.grad.shape == x.shape
    assert torch.equal(module.weight.grad, torch.zeros(3))
    for now, before in zip(module.buffers(), start, strict=True):
        assert torch.equal(now, before)
    assert torch.equal(pending, no_range())


def test_scale_is_not_looked_at_before_it_is_used():
    module, x = batch_norm(3), torch.randn(2, 3, 4, 4)
    assert fused(module, x, control(quantize=0), no_range(), scale=0.0).isfinite().all()
    with pytest.raises(RuntimeError, match="scale must be positive and finite, got 0 at index 0"):
        fused(module, x, control(), no_range(), scale=0.0)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_steps_move_the_same_state(backend):
    """Run three compiled steps, each with the state that the last one left."""
    torch._dynamo.reset()
    step = torch.compile(fused, fullgraph=True, backend=backend)
    module = batch_norm(8)
    other, mine, theirs = copy_of(module), no_range(), no_range()
    for _ in range(3):
        x1 = torch.randn(4, 8, 6, 6).contiguous(memory_format=torch.channels_last)
        x2 = x1.clone(memory_format=torch.preserve_format)
        x1.requires_grad_(), x2.requires_grad_()
        y1, y2 = fused(module, x1, control(), mine), step(other, x2, control(), theirs)
        y1.sum().backward()
        y2.sum().backward()
        assert torch.equal(y1, y2) and torch.equal(x1.grad, x2.grad)
    for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(mine, theirs) and module.num_batches_tracked == 3


@pytest.mark.cuda
@pytest.mark.parametrize("freeze", [0, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cuda_state_has_the_same_bits_and_a_graph_holds_a_step(layout, freeze):
    x = torch.randn(8, 24, 9, 9).contiguous(memory_format=LAYOUTS[layout])
    results = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(3)
        module, pending = batch_norm(24).to(device), no_range().to(device)
        flags, here = control(freeze=freeze).to(device), x.to(device).requires_grad_()
        scale = torch.tensor(0.05, device=device)

        def step(module=module, pending=pending, flags=flags, here=here, scale=scale):
            y = F.bn_act_fake_quant(
                here, module.weight, module.bias, module.running_mean, module.running_var,
                module.num_batches_tracked, scale, None, flags, pending, activation="relu",
                training=True,
            )  # fmt: skip
            wanted = [here, module.weight, module.bias]
            return y, *torch.autograd.grad(y, wanted, torch.ones_like(y))

        if device == "cpu":
            step()
            got = step()
        else:
            graph, got = captured(step)
            graph.replay()
        results.append([t.cpu() for t in (*got, *module.buffers(), pending)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
