"""Test the reference formulas against values worked out by hand and torch's own ops."""

import math

import bitpare as bp
import pytest
import reference
import torch


def quantized(x, scale, zero_point=None, low=-4, high=3, rounding="nearest"):
    z = None if zero_point is None else torch.tensor(zero_point)
    return reference.Quantized(
        torch.tensor(x), torch.tensor(scale), z, low, high, None, None, rounding
    )


def test_fake_quant_by_hand():
    q = quantized([0.25, 0.26, 9.0, -9.0], 0.5, 1)
    assert q.code.tolist() == [1, 2, 3, -4]
    assert q.value.tolist() == [0.0, 0.5, 1.0, -2.5]
    assert q.inside.tolist() == [True, True, False, False]
    assert quantized([2.5, -2.5], 1.0, rounding="half_up").code.tolist() == [3, -2]
    assert quantized([1.9, -1.9], 1.0, rounding="toward_zero").code.tolist() == [1, -1]


def test_fake_quant_is_torchs():
    x = torch.randn(50, 7, dtype=torch.float64).float()
    scale, zero = torch.rand(7) + 0.1, torch.randint(-4, 4, (7,), dtype=torch.int32)
    q = reference.Quantized(x, scale, zero, -8, 7, 1, None)
    expected = torch.fake_quantize_per_channel_affine(x, scale, zero, 1, -8, 7)
    clear = ~q.near_tie()
    assert torch.allclose(q.value[clear].float(), expected[clear], rtol=1e-6)


def test_lsq_gradient_is_torchs():
    x, scale = torch.randn(200, requires_grad=True), torch.tensor([0.3], requires_grad=True)
    zero = torch.tensor([2.0], requires_grad=True)
    dy = torch.randn(200)
    y = torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero, -8, 7, 0.5)
    expected = torch.autograd.grad(y, [x, scale, zero], dy)
    q = reference.Quantized(x.detach(), scale.detach(), zero.detach(), -8, 7, None, None)
    got = reference.lsq_gradients(q, dy, scale.detach(), zero.detach(), None, None, 0.5)
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a.float(), b, rtol=1e-4, atol=1e-5)


def test_estimators_by_hand():
    q = quantized([0.25], 1.0)
    dy = torch.tensor([2.0])
    assert reference.fake_quant_gradient(q, dy, "ewgs", 0.5).item() == pytest.approx(2.25)
    middle = quantized([0.5], 1.0)
    steepest = reference.fake_quant_gradient(middle, dy, "tanh", 4.0).item()
    assert steepest == pytest.approx(2 * 2 / 0.9640275800758169)


def test_float_values_are_the_formats():
    assert reference.float_values(2, 1) == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert reference.float_values(4, 3)[-1] == 448
    assert reference.float_values(5, 2)[-1] == 57344
    assert reference.float_values(5, 10)[-1] == 65504
    assert reference.float_values(3, 2)[-1] == 28


@pytest.mark.parametrize("bits", [(4, 3, torch.float8_e4m3fn), (5, 2, torch.float8_e5m2)])
def test_fake_float_is_torchs_fp8(bits):
    exponent, mantissa, dtype = bits
    x = torch.randn(4000) * 10.0 ** torch.linspace(-4, 2, 4000)
    x = x.clamp(-440, 440)
    expected = x.to(dtype).float()
    assert torch.equal(reference.fake_float(x, exponent, mantissa).float(), expected)
    assert torch.equal(
        bp.functional.fake_float(x, exponent_bits=exponent, mantissa_bits=mantissa), expected
    )


def test_levels_and_means_by_hand():
    x = torch.tensor([-2.0, 0.0, 1.0])
    assert reference.levels(x, "sign").tolist() == [-1, 1, 1]
    assert reference.levels(x, "zero_one").tolist() == [0, 0, 1]
    assert reference.levels(x, "ternary", torch.tensor(1.0)).tolist() == [-1, 0, 0]
    assert reference.mean_magnitude(x, None, None, None).item() == 1
    assert reference.mean_magnitude(x, torch.tensor(1.0), None, None).item() == 2


def test_qparams_by_hand():
    assert reference.qparams(-1.0, 3.0, 0, 4, False) == (1.0, 1)
    assert reference.qparams(-1.0, 2.54, -127, 127, True) == (0.02, 0)


def test_pack_bits_by_hand():
    codes = torch.tensor([[1, 2, 3], [-1, 0, 0]])
    assert reference.pack_bits(codes, 4).tolist() == [[0x21, 0x3], [0xF, 0x0]]
    assert reference.pack_bits(codes, 2).tolist() == [[0b111001], [0b11]]


def test_histogram_by_hand():
    x = torch.tensor([-9.0, 0.1, 0.6, 0.9, 9.0, float("nan")])
    assert reference.histogram(x, 0.0, 1.0, 2).tolist() == [2, 3]


def test_symmetric_histogram_by_hand():
    x = torch.tensor([0.0, 0.1, 0.5, 0.51, -0.5, -0.51, 1.0, -1.0, float("inf")])
    assert reference.symmetric_histogram(x, 1.0, 4).tolist() == [2, 1, 3, 2]


def test_spans_by_hand():
    counts = torch.tensor([0, 0, 1, 9, 80, 9, 0, 1])
    assert reference.outermost(counts, False) == (2, 4)
    assert reference.outermost(counts, True) == (4, 4)
    assert reference.percentile_span(counts, 100, False) == (2, 4)
    assert reference.percentile_span(counts, 98, False) == (1, 2)
    assert reference.percentile_span(counts, 98, True) == (2, 2)
    assert reference.candidate_spans(counts, False) == [(1, 1), (2, 2), (2, 3), (2, 4)]


def test_histogram_costs_by_hand():
    counts = torch.tensor([0, 0, 1, 3])  # centres 0.25 and 0.75 of a limit of 1
    # levels 0 and 1: 0.25 becomes 0, 0.75 becomes 1
    assert reference.histogram_error(counts, 1.0, (2, 2), -1, 1, True) == pytest.approx(0.0625)
    # one level for both bins: P = (1/4, 3/4), Q = (1/2, 1/2)
    divergence = reference.histogram_divergence(counts, (2, 2), -1, 0, False)
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert divergence == pytest.approx(expected)
    # the outer bin is added to the inner one, the only one left
    assert reference.histogram_divergence(counts, (1, 1), -1, 0, False) == pytest.approx(0.0)
