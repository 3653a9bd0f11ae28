"""Test that a backward pass overwrites the incoming gradient only if nobody else holds it."""

import bitpare as bp
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

F = bp.functional
SCALE = torch.full((1,), 0.05)
CONTROL = torch.tensor([-20, 20, 1, 1, 0], dtype=torch.int32)


def fake_quant(x: Tensor) -> Tensor:
    return F.fake_quant(x, SCALE, quant_min=-20, quant_max=20)


def act(x: Tensor, activation: str = "relu6", other: Tensor | None = None) -> Tensor:
    return F.act_fake_quant(x, other, SCALE, None, CONTROL, None, activation=activation)


def hardswish(x: Tensor) -> Tensor:
    return act(x, "hardswish")


def norm(x: Tensor, activation: str = "relu") -> Tensor:
    c = x.shape[1]
    return F.bn_act_fake_quant(
        x, None, None, torch.zeros(c), torch.ones(c), None, SCALE, None, CONTROL, None,
        activation=activation, training=True,
    )  # fmt: skip


def weight(x: Tensor) -> Tensor:
    (value,), (inside,) = F.fake_quant_weights([x.detach()], [SCALE.clone()], [CONTROL * 0 + FIXED])
    return F.use_weight(x, value, inside)


FIXED = torch.tensor([-20, 20, 0, 1, 0], dtype=torch.int32)  # so some values are clamped
OPS = [fake_quant, act, hardswish, norm, weight]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Producer(torch.autograd.Function):
    """Gives its input the gradient make(dy)."""

    @staticmethod
    def forward(context, y, make):
        context.make = make
        return y.clone()

    @staticmethod
    def backward(context, dy):
        return context.make(dy), None


def writes_over(run) -> bool:
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True
    ) as profile:
        run()
    return any(event.key.endswith(" in place") for event in profile.key_averages())


def inputs(layout: str = "contiguous") -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x, dy = torch.randn(2, 4, 16, 8, 8).contiguous()
    return (t.contiguous(memory_format=LAYOUTS[layout]) for t in (x, dy))


def held(op, x, dy):
    """Return the gradient if the caller holds the incoming one."""
    x = x.detach().requires_grad_()
    y, kept = op(x), dy.clone()
    (dx,) = torch.autograd.grad(y, x, dy)
    assert torch.equal(dy, kept)
    return dx


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_a_gradient_nobody_holds_is_written_over_with_the_same_values(op, layout):
    x, dy = inputs(layout)
    leaf = x.requires_grad_()
    loss = (op(leaf) * dy).sum()
    assert writes_over(loss.backward)
    assert torch.equal(leaf.grad, held(op, x, dy))


KEPT: list = []
HOLDERS = {
    "a reference": lambda d: KEPT.append(d.clone()) or KEPT[-1],
    "an alias": lambda d: KEPT.append((fresh := d.clone()).detach()) or fresh,
    "a view": lambda d: KEPT.append((fresh := d.clone()).view(-1)[3:]) or fresh,
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("op", OPS)
def test_a_gradient_somebody_holds_is_left_alone(op, holder):
    x, dy = inputs()
    KEPT.clear()
    leaf = x.detach().requires_grad_()
    loss = (Producer.apply(op(leaf), HOLDERS[holder]) * dy).sum()
    assert not writes_over(loss.backward)
    assert torch.equal(KEPT[0].flatten(), dy.flatten()[-KEPT[0].numel() :])
    assert torch.equal(leaf.grad, held(op, x, dy))


@pytest.mark.parametrize("op", OPS)
def test_other_strides_are_not_written_over(op):
    x, dy = inputs()
    leaf = x.detach().requires_grad_()
    loss = (op(leaf) * dy.contiguous(memory_format=torch.channels_last)).sum()
    assert not writes_over(loss.backward)
    assert torch.equal(leaf.grad, held(op, x, dy))
    leaf.grad = None
    assert not writes_over(op(leaf).sum().backward)  # one value, expanded
    assert torch.equal(leaf.grad, held(op, x, torch.ones_like(x)))


@pytest.mark.parametrize("op", OPS)
def test_hooks_and_retained_gradients_see_what_came_in(op):
    x, dy = inputs()
    for keep in ("hook", "retain", "pre-hook"):
        leaf, seen = x.detach().requires_grad_(), []
        y = op(leaf * 1.0)
        if keep == "hook":
            y.register_hook(seen.append)
        elif keep == "retain":
            y.retain_grad()
        else:
            y.grad_fn.register_prehook(lambda grads, seen=seen: seen.append(grads[0]))
        (y * dy).sum().backward()
        assert torch.equal(y.grad if keep == "retain" else seen[0], dy)
        assert torch.equal(leaf.grad, held(op, x, dy))


@pytest.mark.parametrize("op", OPS)
def test_several_readers_of_one_gradient(op):
    """Test an addition, which gives both operands the same gradient, and a value that is used
    twice."""
    x, dy = inputs()
    expected = held(op, x, dy)
    a, b = x.detach().requires_grad_(), x.detach().requires_grad_()
    ((op(a) + op(b)) * dy).sum().backward()
    assert torch.equal(a.grad, expected) and torch.equal(b.grad, expected)
    c = x.detach().requires_grad_()
    y = op(c)
    ((y + y * 1.0) * dy).sum().backward()
    assert torch.equal(c.grad, held(op, x, 2 * dy))
    residual = x.detach().requires_grad_()
    ((op(residual) + residual) * dy).sum().backward()
    assert torch.equal(residual.grad, expected + dy)


@pytest.mark.parametrize("op", OPS)
def test_graphs_that_are_kept(op):
    x, dy = inputs()
    expected = held(op, x, dy)
    leaf = x.detach().requires_grad_()
    loss = (op(leaf) * dy).sum()
    for _ in range(3):
        assert torch.equal(torch.autograd.grad(loss, leaf, retain_graph=True)[0], expected)
    (dx,) = torch.autograd.grad(loss, leaf, create_graph=True)
    assert torch.equal(dx, expected)
    leaf.grad = None
    torch.utils.checkpoint.checkpoint(
        lambda v: (op(v) * dy).sum(), leaf, use_reentrant=False
    ).backward()
    assert torch.equal(leaf.grad, expected)


def test_both_addends_get_the_gradient():
    x, dy = inputs()
    a, b = x.detach().requires_grad_(), (x + 0.3).requires_grad_()
    (act(a, "relu", b) * dy).sum().backward()
    c, d = x.detach().requires_grad_(), (x + 0.3).requires_grad_()
    expected = torch.autograd.grad(act(c, "relu", d), [c, d], dy)
    assert torch.equal(a.grad, expected[0]) and torch.equal(b.grad, expected[1])
    a.grad.zero_()  # two tensors, not one
    assert torch.equal(b.grad, expected[1])


def test_a_leaf_s_gradient_may_be_accumulated():
    """Check that the tensor in .grad belongs to the leaf alone."""
    x, dy = inputs()
    leaf = x.detach().requires_grad_()
    for _ in range(2):
        y = act(leaf, "relu") + act(leaf, "relu")
        (y * dy).sum().backward()
    assert torch.allclose(leaf.grad, 4 * held(lambda v: act(v, "relu"), x, dy))
