"""Ops of integer models: a program is made, run, and written to a file."""

import functools
import json
from typing import Any

import torch
from torch import Tensor

from ops.entry import TABLE, Arguments, OpEntry, floats


def parts() -> tuple[dict[str, Any], dict[str, Tensor]]:
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


def program() -> Arguments:
    spec, tensors = parts()
    text = json.dumps({**spec, "arguments": ["x"], "single": True})
    return {"spec": text, "tensors": list(tensors.values()), "names": list(tensors)}


@functools.cache
def number() -> int:
    return torch.ops.bitpare._new_program(**program())


def content() -> Tensor:
    return torch.ops.bitpare._encode_integer(**program())


TABLE["run_program"] = OpEntry(
    sample=lambda: {"inputs": [floats(2, 3, 6, 8).abs()], "program": number()},
)
TABLE["_new_program"] = OpEntry(sample=program, host="it keeps a program in this process")
TABLE["_release_program"] = OpEntry(
    sample=lambda: {"program": torch.ops.bitpare._new_program(**program())},
    host="it forgets a program of this process",
)
TABLE["_encode_integer"] = OpEntry(sample=program, host="it reads what tensors hold")
TABLE["_decode_integer"] = OpEntry(
    sample=lambda: {"content": content()}, host="it reads what tensors hold"
)
