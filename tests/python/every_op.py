"""Valid arguments for every registered op, public and private, by the names in its schema.

Tests of properties that all ops share, and the fuzzer, start from these."""

import functools
import json
import math
from collections.abc import Callable
from typing import Any

import bitpare  # noqa: F401 - it registers the ops
import torch
from torch import Tensor

Arguments = dict[str, Any]

GRID = {"quant_min": -8, "quant_max": 7}
SHAPE = (2, 3, 4, 16)
N = math.prod(SHAPE)
CONTIGUOUS = torch.contiguous_format


def schemas() -> dict[str, torch.FunctionSchema]:
    """Return the schema of every op of bitpare, by its name."""
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("bitpare::")]
    found = {}
    for name in names:
        plain = name.removeprefix("bitpare::")
        found[plain] = getattr(torch.ops.bitpare, plain).default._schema
    return dict(sorted(found.items()))


def floats(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator) * 2


def words(n: int, more: int = 0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + n)
    made = torch.randint(-(2**62), 2**62, ((n + 63) // 64,), generator=generator)
    return torch.cat([made, torch.ones(more, dtype=torch.int64)])  # 1: a weight was clipped


def control() -> Tensor:
    return torch.tensor([-8, 7, 1, 1, 0], dtype=torch.int32)


def pending() -> Tensor:
    return torch.tensor([[math.inf], [-math.inf]])


def rng() -> Tensor:
    return torch.tensor([11, 22])


def scale(n: int = 3) -> Tensor:
    return torch.linspace(0.2, 0.5, n)


def zero(n: int = 3) -> Tensor:
    return torch.arange(n, dtype=torch.int32) - 1


def _fake_quant() -> Arguments:
    quantizer = {"x": floats(*SHAPE), "scale": scale(), "zero_point": zero(), **GRID, "axis": 1}
    return {**quantizer, "group": None}


def _private_fake_quant() -> Arguments:
    more = {"rounding": 5, "rng": rng(), "memory_format": CONTIGUOUS}
    return {**_fake_quant(), **more, "floored": False, "save_inside": True}


def _gradient(made: Arguments, *without: str, **more: Any) -> Arguments:
    kept = {k: v for k, v in made.items() if k not in without}
    return {"dy": floats(*SHAPE, seed=1), **kept, **more}


def _act() -> Arguments:
    return {
        "x": floats(*SHAPE), "other": floats(*SHAPE, seed=2), "scale": torch.tensor([0.3]),
        "zero_point": torch.tensor([1], dtype=torch.int32), "control": control(),
        "pending": pending(),
    }  # fmt: skip


def _bn() -> Arguments:
    own = {
        "weight": floats(3), "bias": floats(3, seed=1), "running_mean": floats(3, seed=2),
        "running_var": torch.tensor([0.5, 1.0, 2.0]), "num_batches_tracked": torch.tensor([3]),
    }  # fmt: skip
    act = {k: v for k, v in _act().items() if k != "other"}
    return {"x": act.pop("x"), **own, **act, "training": True, "momentum": 0.1, "eps": 1e-5}


def _binarize() -> Arguments:
    return {"x": floats(*SHAPE), "scale": scale(), "axis": 1, "group": None}


def _levels() -> Arguments:
    more = {"threshold": scale() / 2, "levels": 3, "memory_format": CONTIGUOUS}
    return {**_binarize(), **more}


def _fake_float() -> Arguments:
    bits = {"exponent_bits": 4, "mantissa_bits": 3}
    return {"x": floats(*SHAPE), "scale": scale(), **bits, "axis": 1, "group": None, "rng": rng()}


def _masked() -> Arguments:
    return {**_fake_quant(), "mask": words(N)}


def _weights() -> Arguments:
    lists = {"x": [floats(6, 5), floats(4, 3, 2)], "scale": [torch.ones(6), torch.ones(1)]}
    return {**lists, "control": [control(), control()]}


def _logits() -> tuple[Tensor, Tensor]:
    return floats(5, 7), floats(5, 7, seed=3)


def _distill() -> Arguments:
    student, teacher = _logits()
    return {
        "student_logits": student, "teacher_logits": teacher[:, :4],
        "target": torch.tensor([0, 3, 6, -100, 2]), "row_weight": torch.rand(5) + 0.5,
        "teacher_indices": torch.tensor([[0, 2, 4, 6]] * 5),
        "teacher_logsumexp": floats(5, seed=4) + 3,
    }  # fmt: skip


def _private_distill() -> Arguments:
    names = ("student", "teacher", "target", "row_weight", "indices", "logsumexp")
    tensors = dict(zip(names, _distill().values(), strict=True))
    numbers = {
        "soft": 1, "temperature": 4.0, "hard_weight": 0.5, "soft_weight": 8.0, "smoothing": 0.1,
        "target_weight": 1.0, "others_weight": 1.0, "ignore_index": -100, "reduction": 1,
    }  # fmt: skip
    return {**tensors, "incoming": torch.tensor([1.5]), **numbers, "with_gradient": True}


def _taught(student: Tensor, teacher: Tensor, rows: int, **options: Any) -> Arguments:
    weights = {"row_weight": torch.rand(rows) + 0.5 if rows else None}
    incoming = {"incoming": torch.tensor([1.5])}
    return {
        "student": student,
        "teacher": teacher,
        **weights,
        **incoming,
        **options,
        "with_gradient": True,
    }


def _histogram() -> Arguments:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 50, (3, 64), generator=generator)
    return {"counts": counts, "limit": torch.tensor([1.0, 2.0, 4.0])}


def _observe() -> Arguments:
    return {**_histogram(), "skipped": torch.zeros(3, dtype=torch.int64), "x": floats(*SHAPE)}


def _track() -> Arguments:
    return {
        "weight": floats(3, 20), "scale": scale(), "control": control(),
        "code": torch.zeros(60, dtype=torch.int16), "turn": torch.ones(60, dtype=torch.int8),
        "frequency": torch.full((60,), 0.2), "mean": floats(60),
        "threshold": 0.1, "skip": torch.zeros(1),
    }  # fmt: skip


def _update() -> Arguments:
    return {
        "pending": [torch.tensor([[-1.0], [2.0]])], "range": [torch.zeros(2, 1)],
        "scale": [torch.ones(1)], "zero_point": [torch.zeros(1, dtype=torch.int32)],
        "count": [torch.zeros(2, dtype=torch.int64)], "control": [control()],
        "rule": "ema", "momentum": 0.1, "symmetric": False, "power_of_two": False, "limit": [],
    }  # fmt: skip


def program_parts() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a small integer model: a convolution, a maximum over pairs and a linear layer."""
    generator = torch.Generator().manual_seed(0)
    codes = lambda *shape: torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)  # noqa: E731
    single = {"stride": [1, 1], "dilation": [1, 1], "padding": [0, 0, 0, 0], "groups": 1}
    nodes = [
        {
            "op": "conv", "name": "first", "inputs": [0], "output": 1, **single, "kernel": [3, 3],
            "padding": [1, 1, 1, 1], "float": False, "zero": 10, "range": [-20, 200, 20],
            "weight": "first.weight", "bias": "first.bias", "multiplier": "first.multiplier",
        },
        {
            "op": "pool", "name": "most", "inputs": [1], "output": 2, "maximum": True, "least": 0,
            "adaptive": False, "kernel": [2, 2], "stride": [2, 2], "dilation": [1, 1],
            "padding": [0, 0, 0, 0], "ceil": False,
        },
        {
            "op": "conv", "name": "last", "inputs": [2], "output": 3, **single, "kernel": [1, 1],
            "float": True, "zero": 20, "weight": "last.weight", "bias": "last.bias",
            "multiplier": "last.multiplier",
        },
    ]  # fmt: skip
    spec = {
        "version": 1,
        "values": 4,
        "inputs": [
            {"value": 0, "channels": 3, "rows": False, "scale": 0.1, "range": [-10, 245, 10]}
        ],
        "nodes": nodes,
        "outputs": [{"value": 3, "rows": False, "floats": True}],
    }  # fmt: skip
    tensors = {
        "first.weight": codes(5, 3, 3, 3), "first.bias": torch.arange(5, dtype=torch.int32) * 100,
        "first.multiplier": torch.full((5,), 1e-3), "last.weight": codes(2, 5, 1, 1),
        "last.bias": torch.tensor([5, -5], dtype=torch.int32), "last.multiplier": torch.ones(2),
    }  # fmt: skip
    return spec, tensors


def _program() -> Arguments:
    spec, tensors = program_parts()
    text = json.dumps({**spec, "arguments": ["x"], "single": True})
    return {"spec": text, "tensors": list(tensors.values()), "names": list(tensors)}


def _content() -> Tensor:
    return torch.ops.bitpare._encode_integer(**_program())


@functools.cache
def program_number() -> int:
    return torch.ops.bitpare._new_program(**_program())


SAMPLES: dict[str, Callable[[], Arguments]] = {
    "act_fake_quant": lambda: {**_act(), "activation": "relu"},
    "_act_fake_quant": lambda: {
        **_act(), "activation": 1, "save_inside": True, "memory_format": CONTIGUOUS
    },
    "_act_fake_quant_gradient": lambda: {
        "dy": floats(*SHAPE), "x": floats(*SHAPE, seed=1), "inside": words(N), "activation": 3,
        "memory_format": CONTIGUOUS,
    },
    "apply_mask": lambda: {"x": floats(*SHAPE), "mask": words(N)},
    "_apply_mask": lambda: {"x": floats(*SHAPE), "mask": words(N), "memory_format": CONTIGUOUS},
    "attention_transfer": lambda: {"student": floats(*SHAPE), "teacher": floats(2, 5, 4, 16)},
    "_attention_transfer": lambda: _taught(floats(*SHAPE), floats(2, 5, 4, 16), 0),
    "binarize": _binarize,
    "ternarize": lambda: {**_binarize(), "threshold": scale() / 2},
    "_binarize": _levels,
    "_binarize_gradient": lambda: _gradient(_levels(), clipped=True),
    "bn_act_fake_quant": lambda: {**_bn(), "activation": "relu"},
    "_bn_act_fake_quant": lambda: {
        **_bn(), "activation": 1, "save_inside": True, "memory_format": CONTIGUOUS
    },
    "_bn_act_fake_quant_gradient": lambda: {
        "dy": floats(*SHAPE), "x": floats(*SHAPE, seed=1), "weight": floats(3), "inside": words(N),
        "statistics": torch.rand(13) + 0.5, "activation": 1, "memory_format": CONTIGUOUS,
    },
    "dist_loss": lambda: {
        **dict(zip(("student_logits", "teacher_logits"), _logits(), strict=True)),
        "row_weight": torch.rand(5) + 0.5,
    },
    "_dist_loss": lambda: _taught(*_logits(), 5, temperature=4.0, beta=2.0, gamma=2.0),
    "distill_loss": _distill,
    "dkd_loss": lambda: {
        **dict(zip(("student_logits", "teacher_logits"), _logits(), strict=True)),
        "target": torch.tensor([0, 3, 6, -100, 2]), "row_weight": torch.rand(5) + 0.5,
    },
    "_distill_loss": _private_distill,
    "fake_float": lambda: {**_fake_float(), "rounding": "stochastic"},
    "_fake_float": lambda: {
        **_fake_float(), "rounding": 5, "save_inside": True, "memory_format": CONTIGUOUS
    },
    "fake_quant": lambda: {**_fake_quant(), "rounding": "stochastic", "rng": rng()},
    "_fake_quant": _private_fake_quant,
    "_fake_quant_gradient": lambda: _gradient(
        _private_fake_quant(), "floored", "save_inside", estimator=2, delta=0.3
    ),
    "fake_quant_lsq": lambda: {**_fake_quant(), "grad_scale": 0.5},
    "_fake_quant_lsq_gradient": lambda: _gradient(
        _fake_quant(), grad_scale=0.5, memory_format=CONTIGUOUS
    ),
    "fake_quant_weights": _weights,
    "_weight_scales_": lambda: {**_weights(), "power_of_two": False},
    "_fake_quant_weights": _weights,
    "use_weight": lambda: {
        "weight": floats(6, 40), "value": floats(6, 40, seed=1), "inside": words(240, 1)
    },
    "feature_loss": lambda: {
        "student": floats(*SHAPE), "teacher": floats(*SHAPE, seed=1), "kind": "cosine"
    },
    "_feature_loss": lambda: _taught(
        floats(*SHAPE), floats(*SHAPE, seed=1), 0, kind=2, start_dim=1
    ),
    "histogram_range": lambda: {**_histogram(), **GRID, "method": "mse", "symmetric": True},
    "masked_fake_quant": _masked,
    "_masked_fake_quant": lambda: {
        **_masked(), "masks_gradient": True, "save_inside": True, "memory_format": CONTIGUOUS
    },
    "mean_magnitude": lambda: {"x": floats(*SHAPE), "threshold": scale(), "axis": 1},
    "_mean_magnitude": lambda: {
        "x": floats(*SHAPE), "threshold": scale(), "axis": 1, "group": None
    },
    "minmax": lambda: {"x": floats(*SHAPE), "axis": 1},
    "minmax_histogram": lambda: {
        "x": floats(*SHAPE), "low": -scale(), "high": 3 * scale(), "bins": 16, "axis": 1
    },
    "mse_range": lambda: {"x": floats(*SHAPE), **GRID, "axis": 1, "steps": 8},
    "observe_histogram_": lambda: {**_observe(), "axis": 1},
    "pack_bits": lambda: {"codes": torch.arange(30).view(5, 6).remainder(4).byte(), "bits": 2},
    "unpack_bits": lambda: {
        "packed": torch.arange(10, dtype=torch.uint8).view(5, 2), "shape": [5, 7], "bits": 2
    },
    "pack_mask": lambda: {"kept": floats(*SHAPE) > 0},
    "unpack_mask": lambda: {"mask": words(150), "shape": [3, 50]},
    "qparams": lambda: {"min": -scale(), "max": 2 * scale(), **GRID, "symmetric": False},
    "quantize": _fake_quant,
    "dequantize": lambda: {
        "q": torch.arange(N, dtype=torch.int16).view(SHAPE), "scale": scale(), "zero_point": zero(),
        "axis": 1,
    },
    "relation_loss": lambda: {"student": floats(5, 7), "teacher": floats(5, 9)},
    "_relation_loss": lambda: _taught(
        floats(5, 7), floats(5, 9), 0, distance=1.0, angle=2.0
    ),
    "remask_": lambda: {
        "tensors": [floats(*SHAPE), torch.arange(90).view(9, 10)], "masks": [words(N), words(90)]
    },
    "select_mask": lambda: {
        "scores": [floats(6, 8), floats(4, 12)], "sparsity": [0.5],
        "previous": [words(48), words(48)], "min_keep": [2],
    },
    "_select_mask": lambda: {
        "scores": [floats(6, 8), floats(4, 12)], "sparsity": [0.5], "together": True,
        "min_keep": [2], "previous": [words(48), words(48)],
    },
    "_select_n_of_m": lambda: {
        "scores": floats(6, 8), "keep": 2, "members": 4, "previous": words(48)
    },
    "_straight_through": lambda: {
        "dy": floats(*SHAPE), "inside": words(N), "memory_format": CONTIGUOUS
    },
    "track_oscillations_": _track,
    "update_ranges_": _update,
    "run_program": lambda: {
        "inputs": [floats(2, 3, 6, 8).abs()], "program": program_number()
    },
    "_new_program": _program,
    "_release_program": lambda: {"program": torch.ops.bitpare._new_program(**_program())},
    "_encode_integer": _program,
    "_decode_integer": lambda: {"content": _content()},
}  # fmt: skip


def call(op: str, arguments: Arguments) -> Any:
    return getattr(torch.ops.bitpare, op)(**arguments)
