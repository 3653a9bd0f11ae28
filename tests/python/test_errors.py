"""Test each documented error by its message."""

import importlib.util
import math
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import bitpare as bp
import pytest
import torch

F = bp.functional
X = torch.randn(4, 6)
ONE = torch.tensor(1.0)
GRID = {"quant_min": -8, "quant_max": 7}
CONTROL = torch.tensor([-8, 7, 1, 1, 0], dtype=torch.int32)
PENDING = torch.tensor([[math.inf], [-math.inf]])


def states(**changes):
    """Return the arguments of update_ranges_ for one quantizer."""
    right = {
        "pending": [PENDING],
        "range": [torch.zeros(2, 1)],
        "scale": [torch.ones(1)],
        "zero_point": [],
        "count": [torch.zeros(2, dtype=torch.int64)],
        "control": [CONTROL],
    }
    return tuple((right | changes).values())


COUNTS, ZERO = torch.zeros(1, 64, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
LIMIT = torch.zeros(1)
RANGE = {**GRID, "method": "mse", "symmetric": True}


def bn(x=X, **changed):
    """Return valid arguments of bn_act_fake_quant, with some changed."""
    c = x.shape[1] if x.dim() > 1 else 6
    right = {
        "weight": torch.ones(c), "bias": torch.zeros(c), "running_mean": torch.zeros(c),
        "running_var": torch.ones(c), "num_batches_tracked": torch.tensor(0), "scale": ONE,
        "zero_point": None, "control": torch.tensor([-8, 7, 1, 1, 0], dtype=torch.int32),
        "pending": torch.zeros(2, 1),
    }  # fmt: skip
    return (x, *{**right, **changed}.values())


def track(weight=X, **changed):
    """Return valid arguments of track_oscillations_, with some changed."""
    n = weight.numel()
    right = {
        "scale": ONE, "control": torch.tensor([-8, 7, 1, 1, 0], dtype=torch.int32),
        "code": torch.zeros(n, dtype=torch.int16), "turn": torch.zeros(n, dtype=torch.int8),
        "frequency": torch.zeros(n), "mean": torch.zeros(n),
    }  # fmt: skip
    return (weight, *{**right, **changed}.values())


TRAIN = {"training": True}

WRONG = [
    # op, arguments, keyword arguments, message
    (F.fake_quant, (X.double(), ONE), GRID, "fake_quant: x must be float32, float16 or bfloat16, got Double"),
    (F.fake_quant, (X.long(), ONE), GRID, "fake_quant: x must be float32, float16 or bfloat16, got Long"),
    (F.fake_quant, (X.to_sparse(), ONE), GRID, "fake_quant: x must be a dense tensor, got layout Sparse"),
    (F.fake_quant, (X, ONE.half()), GRID, "fake_quant: scale must be float32, got Half"),
    (F.fake_quant, (X, torch.ones(3)), GRID, "fake_quant: scale must have 1 element (give axis or group for more), got 3"),
    (F.fake_quant, (X, torch.ones(4)), {**GRID, "axis": 1}, "fake_quant: scale must have 6 elements (channels of x along axis 1), got 4"),
    (F.fake_quant, (X, torch.ones(6, 1)), {**GRID, "axis": 1}, "fake_quant: scale must have one dimension, got shape [6, 1]"),
    (F.fake_quant, (X, torch.ones(4, 6)), {**GRID, "group": 3}, "fake_quant: scale must have shape [4, 2] (groups of 3 along the last dimension of x), got [4, 6]"),
    (F.fake_quant, (X, ONE), {**GRID, "axis": 2}, "fake_quant: axis must be in [-2, 1] for x with 2 dimensions, got 2"),
    (F.fake_quant, (X, ONE), {**GRID, "axis": -3}, "fake_quant: axis must be in [-2, 1] for x with 2 dimensions, got -3"),
    (F.fake_quant, (X, ONE), {**GRID, "group": 4}, "fake_quant: group must divide the last dimension of x (6), got 4"),
    (F.fake_quant, (X, ONE), {**GRID, "group": 0}, "fake_quant: group must be at least 1, got 0"),
    (F.fake_quant, (ONE, ONE), {**GRID, "group": 1}, "fake_quant: group needs x with at least one dimension"),
    (F.fake_quant, (X, ONE), {**GRID, "axis": 0, "group": 2}, "fake_quant: axis and group cannot be given together, got axis=0 and group=2"),
    (F.fake_quant, (X, ONE), {"quant_min": 3, "quant_max": 3}, "fake_quant: quant_min must be below quant_max, got 3 and 3"),
    (F.fake_quant, (X, ONE), {"quant_min": 0, "quant_max": 65536}, "fake_quant: quant_min and quant_max must span at most 16 bits, got 0 and 65536"),
    (F.fake_quant, (X, torch.tensor(0.0)), GRID, "fake_quant: scale must be positive and finite, got 0 at index 0"),
    (F.fake_quant, (X, torch.tensor(-2.0)), GRID, "fake_quant: scale must be positive and finite, got -2 at index 0"),
    (F.fake_quant, (X, torch.tensor(math.nan)), GRID, "fake_quant: scale must be positive and finite, got nan at index 0"),
    (F.fake_quant, (X, torch.tensor([1.0, 1.0, math.inf, 1.0])), {**GRID, "axis": 0}, "fake_quant: scale must be positive and finite, got inf at index 2"),
    (F.fake_quant, (X, ONE.to("meta")), GRID, "fake_quant: scale must be on cpu like x, got meta"),
    (F.fake_quant, (X, ONE, torch.tensor(0)), GRID, "fake_quant: zero_point must be int32, or float32 where it is learned, got Long"),
    (F.fake_quant, (X, ONE, torch.tensor(9, dtype=torch.int32)), GRID, "fake_quant: zero_point must be in [-8, 7], got 9 at index 0"),
    (F.fake_quant, (X, ONE, torch.zeros(2, dtype=torch.int32)), GRID, "fake_quant: zero_point must have 1 element"),
    (F.fake_quant, (X, ONE), {**GRID, "rounding": "up"}, "fake_quant: rounding must be one of 'nearest', 'half_up', 'floor', 'ceil', 'toward_zero', 'stochastic', got 'up'"),
    (F.fake_quant, (X, ONE), {**GRID, "estimator": "soft"}, "fake_quant: estimator must be one of 'ste', 'identity', 'ewgs', 'tanh', got 'soft'"),
    (F.fake_quant, (X, ONE), {**GRID, "estimator": "tanh"}, "fake_quant: delta must be positive with estimator='tanh' (the sharpness of its steps), got 0"),
    (F.fake_quant, (X, ONE), {**GRID, "estimator": "ewgs", "delta": -1.0}, "fake_quant: delta must be 0 or more, got -1"),
    (F.fake_quant, (X, ONE), {**GRID, "rounding": "stochastic"}, "fake_quant: rounding='stochastic' needs rng, an int64 tensor of a seed and a step"),
    (F.fake_quant, (X, ONE), {**GRID, "rounding": "stochastic", "rng": torch.tensor([1])}, "fake_quant: rng must be an int64 tensor of 2 elements, seed and step, got Long of 1"),
    (F.fake_quant, (X, ONE), {**GRID, "rounding": "stochastic", "rng": torch.zeros(2, dtype=torch.int64, device="meta")}, "fake_quant: rng must be on cpu like x, got meta"),
    (F.act_fake_quant, (X, None, ONE, None, CONTROL, PENDING), {"activation": "gelu"}, "act_fake_quant: activation must be one of 'none', 'relu', 'relu6', 'hardswish', 'hardsigmoid', got 'gelu'"),
    (F.act_fake_quant, (X, X[0], ONE, None, CONTROL, PENDING), {}, "act_fake_quant: other must have shape [4, 6] like x (it is not broadcast), got [6]"),
    (F.act_fake_quant, (X, X.half(), ONE, None, CONTROL, PENDING), {}, "act_fake_quant: other must be Float like x, got Half"),
    (F.act_fake_quant, (X, X.to("meta"), ONE, None, CONTROL, PENDING), {}, "act_fake_quant: other must be on cpu like x, got meta"),
    (F.act_fake_quant, (X, X, ONE, None, CONTROL, PENDING), {"activation": "hardswish"}, "act_fake_quant: other needs activation 'none', 'relu' or 'relu6'"),
    (F.act_fake_quant, (X, None, torch.ones(2), None, CONTROL, PENDING), {}, "act_fake_quant: scale must have 1 element"),
    (F.act_fake_quant, (X, None, torch.zeros(1), None, CONTROL, PENDING), {}, "act_fake_quant: scale must be positive and finite, got 0 at index 0"),
    (F.act_fake_quant, (X, None, ONE, ONE, CONTROL, PENDING), {}, "act_fake_quant: zero_point must be int32, got Float"),
    (F.act_fake_quant, (X, None, ONE, torch.tensor(9, dtype=torch.int32), CONTROL, PENDING), {}, "act_fake_quant: zero_point must be in [-8, 7], got 9 at index 0"),
    (F.act_fake_quant, (X, None, ONE, None, CONTROL.long(), PENDING), {}, "act_fake_quant: control must be an int32 tensor of 5 elements, got Long of 5"),
    (F.act_fake_quant, (X, None, ONE, None, CONTROL.to("meta"), PENDING), {}, "act_fake_quant: control must be on cpu like x, got meta"),
    (F.act_fake_quant, (X, None, ONE, None, -CONTROL, PENDING), {}, "act_fake_quant: quant_min must be below quant_max, got 8 and -7"),
    (F.act_fake_quant, (X, None, ONE, None, CONTROL, torch.ones(3)), {}, "act_fake_quant: pending must be a tensor of 2 elements of type Float, got 3 of Float"),
    (F.act_fake_quant, (X, None, ONE, None, CONTROL, torch.ones(4)[::2]), {}, "act_fake_quant: pending must be contiguous"),
    (F.act_fake_quant, (X, None, ONE, None, CONTROL, PENDING.to("meta")), {}, "act_fake_quant: pending must be on cpu like x, got meta"),
    (F.fake_quant_lsq, (X, torch.tensor(math.nan)), GRID, "fake_quant_lsq: scale must be finite, got nan at index 0"),
    (F.fake_quant_lsq, (X, torch.ones(5)), {**GRID, "axis": 0}, "fake_quant_lsq: scale must have 4 elements (channels of x along axis 0), got 5"),
    (F.fake_quant_lsq, (X, ONE), {**GRID, "grad_scale": math.inf}, "fake_quant_lsq: grad_scale must be finite, got inf"),
    (F.pack_mask, (X,), {}, "pack_mask: kept must be a tensor of bool, got Float"),
    (F.unpack_mask, (torch.zeros(2).long(), [64]), {}, "unpack_mask: mask must be an int64 tensor of 1 words for 64 elements, as pack_mask gives, got 2 of Long"),
    (F.unpack_mask, (torch.zeros(1), [64]), {}, "unpack_mask: mask must be an int64 tensor of 1 words for 64 elements, as pack_mask gives, got 1 of Float"),
    (F.unpack_mask, (torch.zeros(1).long(), [-1]), {}, "unpack_mask: shape must not be negative, got [-1]"),
    (F.apply_mask, (X.double(), torch.zeros(1).long()), {}, "apply_mask: x must be float32, float16 or bfloat16, got Double"),
    (F.apply_mask, (X, torch.zeros(9).long()), {}, "apply_mask: mask must be an int64 tensor of "),
    (F.apply_mask, (X, torch.zeros((X.numel() + 63) // 64, dtype=torch.long, device="meta")), {}, "apply_mask: mask must be on cpu like x, got meta"),
    (F.apply_mask, (X, torch.zeros((X.numel() + 63) // 64, dtype=torch.long)), {"mode": "soft"}, "apply_mask: mode must be one of 'hard', 'ste', got 'soft'"),
    (F.track_oscillations_, track(X.double()), {}, "track_oscillations_: x must be float32, float16 or bfloat16, got Double"),
    (F.track_oscillations_, track(X.t()), {}, "track_oscillations_: weight must be contiguous or channels_last, since it is written, got strides [1, "),
    (F.track_oscillations_, track(scale=torch.ones(5)), {}, "track_oscillations_: scale must have a number of elements that divides weight's "),
    (F.track_oscillations_, track(scale=ONE.double()), {}, "track_oscillations_: scale must be float32, got Double"),
    (F.track_oscillations_, track(code=torch.zeros(3, dtype=torch.int16)), {}, "track_oscillations_: code must be a tensor of "),
    (F.track_oscillations_, track(turn=torch.zeros(X.numel())), {}, "track_oscillations_: turn must be a tensor of "),
    (F.track_oscillations_, track(mean=torch.zeros(2 * X.numel())[::2]), {}, "track_oscillations_: mean must be contiguous, since it is written, got strides [2]"),
    (F.track_oscillations_, track(control=torch.tensor([3, -3, 1, 1, 0], dtype=torch.int32)), {}, "track_oscillations_: quant_min must be below quant_max, got 3 and -3"),
    (F.track_oscillations_, track(), {"momentum": 0.0}, "track_oscillations_: momentum must be in (0, 1], got 0"),
    (F.track_oscillations_, track(), {"threshold": -1.0}, "track_oscillations_: threshold must be 0 or more, got -1"),
    (F.track_oscillations_, track(), {"skip": torch.zeros(2)}, "track_oscillations_: skip must be a tensor of 1 elements of type Float, got 2 of Float"),
    (F.bn_act_fake_quant, bn(X.double()), TRAIN, "bn_act_fake_quant: x must be float32, float16 or bfloat16, got Double"),
    (F.bn_act_fake_quant, bn(X[0]), TRAIN, "bn_act_fake_quant: x must have at least 2 dimensions, got shape [6]"),
    (F.bn_act_fake_quant, bn(X[:1]), TRAIN, "bn_act_fake_quant: x must have more than 1 value per channel in training, got shape [1, 6]"),
    (F.bn_act_fake_quant, bn(X[:1, :, None]), TRAIN, "bn_act_fake_quant: x must have more than 1 value per channel in training, got shape [1, 6, 1]"),
    (F.bn_act_fake_quant, bn(weight=torch.ones(5)), TRAIN, "bn_act_fake_quant: weight must have 6 elements (channels of x along axis 1), got 5"),
    (F.bn_act_fake_quant, bn(bias=torch.ones(6).half()), TRAIN, "bn_act_fake_quant: bias must be float32, got Half"),
    (F.bn_act_fake_quant, bn(running_mean=torch.ones(12)[::2]), TRAIN, "bn_act_fake_quant: running_mean must be contiguous, since it is written, got strides [2]"),
    (F.bn_act_fake_quant, bn(running_var=torch.ones(6, device="meta")), TRAIN, "bn_act_fake_quant: running_var must be on cpu like x, got meta"),
    (F.bn_act_fake_quant, bn(num_batches_tracked=ONE), TRAIN, "bn_act_fake_quant: num_batches_tracked must be a tensor of 1 elements of type Long, got 1 of Float"),
    (F.bn_act_fake_quant, bn(scale=torch.ones(6)), TRAIN, "bn_act_fake_quant: scale must have 1 element"),
    (F.bn_act_fake_quant, bn(scale=-ONE), TRAIN, "bn_act_fake_quant: scale must be positive and finite, got -1 at index 0"),
    (F.bn_act_fake_quant, bn(zero_point=ONE), TRAIN, "bn_act_fake_quant: zero_point must be int32, got Float"),
    (F.bn_act_fake_quant, bn(zero_point=torch.tensor(9, dtype=torch.int32)), TRAIN, "bn_act_fake_quant: zero_point must be in [-8, 7], got 9 at index 0"),
    (F.bn_act_fake_quant, bn(control=torch.zeros(4, dtype=torch.int32)), TRAIN, "bn_act_fake_quant: control must be an int32 tensor of 5 elements, got Int of 4"),
    (F.bn_act_fake_quant, bn(control=torch.tensor([7, -8, 1, 1, 0], dtype=torch.int32)), TRAIN, "bn_act_fake_quant: quant_min must be below quant_max, got 7 and -8"),
    (F.bn_act_fake_quant, bn(pending=torch.zeros(3)), TRAIN, "bn_act_fake_quant: pending must be a tensor of 2 elements of type Float, got 3 of Float"),
    (F.bn_act_fake_quant, bn(), {**TRAIN, "activation": "gelu"}, "bn_act_fake_quant: activation must be one of 'none', 'relu', 'relu6', 'hardswish', got 'gelu'"),
    (F.binarize, (X,), {"levels": "two"}, "binarize: levels must be one of 'sign', 'zero_one', 'minus_one_zero', got 'two'"),
    (F.binarize, (X, ONE), {"estimator": "ewgs"}, "binarize: estimator must be one of 'ste', 'identity', got 'ewgs'"),
    (F.binarize, (X, torch.ones(2)), {"axis": 0}, "binarize: scale must have 4 elements (channels of x along axis 0), got 2"),
    (F.ternarize, (X, ONE, torch.ones(2)), {}, "ternarize: threshold must have 1 element"),
    (F.ternarize, (X, ONE, ONE.double()), {}, "ternarize: threshold must be float32, got Double"),
    (F.mean_magnitude, (X.int(),), {}, "mean_magnitude: x must be float32, float16 or bfloat16, got Int"),
    (F.fake_float, (X,), {"exponent_bits": 1, "mantissa_bits": 3}, "fake_float: exponent_bits must be in [2, 8], got 1"),
    (F.fake_float, (X,), {"exponent_bits": 4, "mantissa_bits": 24}, "fake_float: mantissa_bits must be in [0, 23], got 24"),
    (F.fake_float, (X,), {"exponent_bits": 4, "mantissa_bits": 3, "axis": 0}, "fake_float: axis and group need a scale"),
    (F.quantize, (torch.tensor([1.0, math.nan]), ONE), GRID, "quantize: x holds NaN, which has no integer code"),
    (F.quantize, (X, torch.zeros(())), GRID, "quantize: scale must be positive and finite, got 0 at index 0"),
    (F.dequantize, (X, ONE), {}, "dequantize: q must be int8, uint8, int16 or int32, got Float"),
    (F.dequantize, (X.char(), ONE), {"dtype": torch.float64}, "dequantize: dtype must be float32, float16 or bfloat16, got Double"),
    (F.qparams, (ONE, torch.ones(2)), GRID, "qparams: max must have shape [] like min, got [2]"),
    (F.qparams, (ONE, ONE.double()), GRID, "qparams: max must be float32, got Double"),
    (F.qparams, (ONE, -ONE), GRID, "qparams: min and max must be finite with min <= max, got 1 and -1 at index 0"),
    (F.qparams, (-ONE, ONE * math.nan), GRID, "qparams: min and max must be finite with min <= max, got -1 and nan at index 0"),
    (F.qparams, (-ONE, ONE), {"quant_min": -1, "quant_max": 0}, "qparams: quant_max must be positive with symmetric=True, got 0"),
    (F.update_ranges_, states(), {"rule": "mean", "symmetric": True}, "update_ranges_: rule must be one of 'minmax', 'ema', 'last', got 'mean'"),
    (F.update_ranges_, states(), {"rule": "ema", "symmetric": True, "momentum": 0.0}, "update_ranges_: momentum must be in (0, 1] with rule='ema', got 0"),
    (F.update_ranges_, states(range=[]), {"rule": "minmax", "symmetric": True}, "update_ranges_: range must have 1 entries like pending, got 0"),
    (F.update_ranges_, states(), {"rule": "last", "symmetric": False}, "update_ranges_: zero_point must have 1 entries like pending, got 0"),
    (F.update_ranges_, states(), {"rule": "last", "symmetric": True, "limit": [6.0, 6.0]}, "update_ranges_: limit must have 1 entries like pending, or none, got 2"),
    (F.update_ranges_, states(pending=[torch.ones(3)]), {"rule": "minmax", "symmetric": True}, "update_ranges_: pending must be a tensor of 2 elements of type Float, got 3 of Float"),
    (F.update_ranges_, states(range=[torch.ones(2).double()]), {"rule": "minmax", "symmetric": True}, "update_ranges_: range must be a tensor of 2 elements of type Float, got 2 of Double"),
    (F.update_ranges_, states(scale=[torch.ones(1).half()]), {"rule": "minmax", "symmetric": True}, "update_ranges_: scale must be a tensor of 1 elements of type Float, got 1 of Half"),
    (F.update_ranges_, states(count=[torch.ones(2)]), {"rule": "minmax", "symmetric": True}, "update_ranges_: count must be a tensor of 2 elements of type Long, got 2 of Float"),
    (F.update_ranges_, states(zero_point=[torch.ones(1)]), {"rule": "minmax", "symmetric": True}, "update_ranges_: zero_point must be a tensor of 1 elements of type Int, got 1 of Float"),
    (F.update_ranges_, states(control=[CONTROL[1:]]), {"rule": "minmax", "symmetric": True}, "update_ranges_: control must be an int32 tensor of 5 elements, got Int of 4"),
    (F.update_ranges_, states(control=[-CONTROL]), {"rule": "minmax", "symmetric": True}, "update_ranges_: quant_min must be below quant_max, got 8 and -7"),
    (F.update_ranges_, states(control=[CONTROL * torch.tensor([1, 0, 1, 1, 1], dtype=torch.int32)]), {"rule": "minmax", "symmetric": True}, "update_ranges_: quant_max must be positive with symmetric=True, got 0"),
    (F.fake_quant_weights, ([X], [], [CONTROL]), {}, "fake_quant_weights: scale must have 1 entries like x, got 0"),
    (F.fake_quant_weights, ([X], [ONE], []), {}, "fake_quant_weights: control must have 1 entries like x, got 0"),
    (F.fake_quant_weights, ([X.double()], [ONE], [CONTROL]), {}, "fake_quant_weights: x must be float32, float16 or bfloat16, got Double"),
    (F.fake_quant_weights, ([X, X.to("meta")], [ONE, ONE], [CONTROL, CONTROL]), {}, "fake_quant_weights: x must be on one device, got cpu and meta"),
    (F.fake_quant_weights, ([X], [torch.ones(6)], [CONTROL]), {}, "fake_quant_weights: scale must have 1 element or one for each index of dimension 0 of x, got 6 for x of shape [4, 6]"),
    (F.fake_quant_weights, ([X], [torch.ones(1).half()], [CONTROL]), {}, "fake_quant_weights: scale must be a tensor of 1 elements of type Float, got 1 of Half"),
    (F.fake_quant_weights, ([X], [torch.ones(8)[::2]], [CONTROL]), {}, "fake_quant_weights: scale must be contiguous"),
    (F.fake_quant_weights, ([X], [ONE], [CONTROL.long()]), {}, "fake_quant_weights: control must be an int32 tensor of 5 elements, got Long of 5"),
    (F.fake_quant_weights, ([X], [ONE], [-CONTROL]), {}, "fake_quant_weights: quant_min must be below quant_max, got 8 and -7"),
    (F.fake_quant_weights, ([X], [ONE], [CONTROL * torch.tensor([1, 0, 1, 1, 1], dtype=torch.int32)]), {}, "fake_quant_weights: quant_max must be positive, got 0"),
    (F.use_weight, (X, X[0], torch.zeros(2).long()), {}, "use_weight: value must have shape [4, 6] like weight, got [6]"),
    (F.use_weight, (X, X, torch.zeros(1).long()), {}, "use_weight: inside must have 2 words of int64, as fake_quant_weights gives, got 1 of Long"),
    (F.minmax, (X,), {"axis": 5}, "minmax: axis must be in [-2, 1] for x with 2 dimensions, got 5"),
    (F.minmax_histogram, (X, ONE, ONE), {"bins": 0}, "minmax_histogram: bins must be in [1, 1048576], got 0"),
    (F.minmax_histogram, (X, ONE.double(), ONE), {}, "minmax_histogram: low must be float32, got Double"),
    (F.minmax_histogram, (X, torch.ones(2), ONE), {}, "minmax_histogram: low must have 1 element"),
    (F.observe_histogram_, (COUNTS, LIMIT, ZERO, X.int()), {}, "observe_histogram_: x must be float32, float16 or bfloat16, got Int"),
    (F.observe_histogram_, (COUNTS, LIMIT, ZERO, X), {"axis": 2}, "observe_histogram_: axis must be in [-2, 1] for x with 2 dimensions, got 2"),
    (F.observe_histogram_, (COUNTS.int(), LIMIT, ZERO, X), {}, "observe_histogram_: counts must be int64, got Int"),
    (F.observe_histogram_, (COUNTS, LIMIT.double(), ZERO, X), {}, "observe_histogram_: limit must be float32, got Double"),
    (F.observe_histogram_, (COUNTS, LIMIT, LIMIT, X), {}, "observe_histogram_: skipped must be int64, got Float"),
    (F.observe_histogram_, (COUNTS, LIMIT, ZERO.to("meta"), X), {}, "observe_histogram_: skipped must be on cpu like counts, got meta"),
    (F.observe_histogram_, (COUNTS, LIMIT, ZERO, X), {"axis": 0}, "observe_histogram_: counts must have shape [4, bins] (channels of x along axis), got [1, 64]"),
    (F.observe_histogram_, (COUNTS[0], LIMIT, ZERO, X), {}, "observe_histogram_: counts must have shape [1, bins], got [64]"),
    (F.observe_histogram_, (COUNTS, torch.zeros(2), ZERO, X), {}, "observe_histogram_: limit must have shape [1], got [2]"),
    (F.observe_histogram_, (COUNTS, LIMIT, ZERO[0], X), {}, "observe_histogram_: skipped must have shape [1], got []"),
    (F.observe_histogram_, (COUNTS[:, :48].clone(), LIMIT, ZERO, X), {}, "observe_histogram_: bins of counts must be a power of two in [64, 65536], got 48"),
    (F.observe_histogram_, (torch.zeros(64, 4, dtype=torch.int64).t(), torch.zeros(4), ZERO.expand(4).clone(), X), {"axis": 0}, "observe_histogram_: counts must be contiguous, got strides [1, 4]"),
    (F.observe_histogram_, (COUNTS, LIMIT + 3, ZERO, X), {}, "observe_histogram_: limit must be 0 or a power of two, got 3 at index 0"),
    (F.observe_histogram_, (COUNTS, LIMIT * math.nan, ZERO, X), {}, "observe_histogram_: limit must be 0 or a power of two, got nan at index 0"),
    (F.histogram_range, (COUNTS.int(), LIMIT), RANGE, "histogram_range: counts must be int64, got Int"),
    (F.histogram_range, (COUNTS, ZERO), RANGE, "histogram_range: limit must be float32, got Long"),
    (F.histogram_range, (COUNTS, LIMIT.to("meta")), RANGE, "histogram_range: limit must be on cpu like counts, got meta"),
    (F.histogram_range, (COUNTS[0], LIMIT), RANGE, "histogram_range: counts must have shape [n, bins], got [64]"),
    (F.histogram_range, (COUNTS, torch.zeros(2)), RANGE, "histogram_range: limit must have shape [1], got [2]"),
    (F.histogram_range, (COUNTS[:, :63], LIMIT), RANGE, "histogram_range: bins of counts must be a power of two in [64, 65536], got 63"),
    (F.histogram_range, (COUNTS, LIMIT), {**RANGE, "percentile": 0.0}, "histogram_range: percentile must be in (0, 100], got 0"),
    (F.histogram_range, (COUNTS, LIMIT), {**RANGE, "method": "best"}, "histogram_range: method must be one of 'percentile', 'mse', 'entropy', got 'best'"),
    (F.histogram_range, (COUNTS, LIMIT), {**RANGE, "quant_max": -9}, "histogram_range: quant_min must be below quant_max, got -8 and -9"),
    (F.histogram_range, (COUNTS, LIMIT), {**RANGE, "quant_max": 0}, "histogram_range: quant_max must be positive with symmetric=True, got 0"),
    (F.mse_range, (X.double(),), GRID, "mse_range: x must be float32, float16 or bfloat16, got Double"),
    (F.mse_range, (X,), {**GRID, "axis": 3}, "mse_range: axis must be in [-2, 1] for x with 2 dimensions, got 3"),
    (F.mse_range, (X,), {**GRID, "steps": 0}, "mse_range: steps must be in [1, 4096], got 0"),
    (F.mse_range, (X,), {"quant_min": -1, "quant_max": 0}, "mse_range: quant_max must be positive with symmetric=True, got 0"),
    (F.pack_bits, (X.byte(),), {"bits": 3}, "pack_bits: bits must be 1, 2 or 4, got 3"),
    (F.pack_bits, (X,), {"bits": 4}, "pack_bits: codes must be int8 (signed) or uint8, got Float"),
    (F.pack_bits, (torch.tensor(1, dtype=torch.uint8),), {"bits": 4}, "pack_bits: codes must have at least one dimension"),
    (F.pack_bits, (torch.tensor([4], dtype=torch.uint8),), {"bits": 2}, "pack_bits: codes must fit 2 bits, got one that does not"),
    (F.pack_bits, (torch.tensor([2], dtype=torch.int8),), {"bits": 2}, "pack_bits: codes must fit 2 signed bits, got one that does not"),
    (F.unpack_bits, (torch.zeros(2, dtype=torch.uint8), [9]), {"bits": 4}, "unpack_bits: packed must have shape [5] for shape [9] at 4 bits, got [2]"),
    (F.unpack_bits, (torch.zeros(2), [4]), {"bits": 4}, "unpack_bits: packed must be uint8, got Float"),
    (F.unpack_bits, (torch.zeros(2, dtype=torch.uint8), []), {"bits": 4}, "unpack_bits: shape must have at least one dimension"),
    (F.unpack_bits, (torch.zeros(2, dtype=torch.uint8), [-4]), {"bits": 4}, "unpack_bits: shape must not be negative, got [-4]"),
]  # fmt: skip


@pytest.mark.parametrize("op, args, kwargs, message", WRONG, ids=[w[3][:60] for w in WRONG])
@pytest.mark.parametrize("grad", [False, True])
def test_message(op, args, kwargs, message, grad):
    if grad:
        if isinstance(args[0], list) or not args[0].is_floating_point() or args[0].is_sparse:
            pytest.skip("has no gradient")
        args = (args[0].clone().requires_grad_(), *args[1:])
    with pytest.raises(RuntimeError) as caught:
        op(*args, **kwargs)
    assert message in str(caught.value)


def test_cpu_only_build_says_how_to_rebuild():
    from bitpare import _build_info

    if _build_info.with_cuda:
        pytest.skip("this build has CUDA")
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    op = torch.ops.bitpare._straight_through.default
    with pytest.raises(RuntimeError, match=r"built without CUDA.*BITPARE_CUDA=ON pip install"):
        op.redispatch(cuda, X, torch.zeros(1, dtype=torch.int64), torch.contiguous_format)


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}
    )


def test_unknown_cpu_capability():
    ran = run_python(
        "import bitpare; print(bitpare._load); from bitpare import _C; _C.cpu_capability()",
        BITPARE_CPU_CAPABILITY="mmx",
    )
    assert ran.returncode != 0
    assert "BITPARE_CPU_CAPABILITY must be default, avx2 or avx512" in ran.stderr


@pytest.mark.parametrize("built", [("2.9.1+cu130", "13.0"), (torch.__version__, "12.8")])
def test_build_for_another_torch(built):
    from bitpare import _load

    with pytest.raises(ImportError) as caught:
        _load.check_build(*built)
    assert built[0] in str(caught.value) and torch.__version__ in str(caught.value)
    assert _load.REBUILD in str(caught.value)


def test_source_that_was_not_built():
    ran = run_python("import sys; sys.modules['bitpare._build_info'] = None; import bitpare")
    assert ran.returncode != 0
    assert "bitpare has not been built yet" in ran.stderr and "pip install" in ran.stderr


def build_backend():
    backend = pathlib.Path(__file__).parents[2] / "cmake" / "build_backend.py"
    spec = importlib.util.spec_from_file_location("build_backend", backend)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_build_backend_with_an_old_setuptools(monkeypatch, kind):
    module = build_backend()
    module.require_setuptools()
    monkeypatch.setattr(module.setuptools, "__version__", "66.1.1")
    with pytest.raises(SystemExit, match=r'has 66\.1\.1:\s+pip install "setuptools>=77,<82"'):
        getattr(module, f"prepare_metadata_for_build_{kind}")("unused")


def test_build_backend_without_torch_says_what_to_install(monkeypatch):
    module = build_backend()
    module.require_torch()  # torch is installed here
    monkeypatch.setattr(module.subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1))
    with pytest.raises(SystemExit, match=r"pip install torch==[\s\S]*--no-build-isolation \."):
        module.build_wheel("unused")
