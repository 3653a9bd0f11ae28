"""Save integer models to safetensors files, which `load` and C++ programs read."""

import ctypes
import json
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from bitpare.deploy.integer import Body, IntegerModel, IntegerProgram
from bitpare.errors import Unsupported
from bitpare.files import Path, read_whole, shown, write_whole

_encode = torch.ops.bitpare._encode_integer.default
_decode = torch.ops.bitpare._decode_integer.default
_NO_BYTES = torch.empty(0, dtype=torch.uint8)


def save(model: nn.Module, path: Path) -> None:
    """Write a converted model to one file. The whole model must be in integers.

    Weights are stored with as few bits as their values need. Pruned weights are stored as a
    bitmap and the remaining values. The file appears only once it is complete."""
    program, single = whole_program(model, "save")
    spec = {**program.spec, "arguments": _arguments_of(model), "single": single}
    held = {name: tensor.detach() for name, tensor in program.named_buffers()}
    content = _encode(json.dumps(spec), list(held.values()), list(held))
    write_whole(path, ctypes.string_at(content.data_ptr(), content.numel()))


def _arguments_of(model: Any) -> list[str]:
    """Return the names of the tensor arguments; all others were fixed when the model was
    converted."""
    values = _pytree.tree_unflatten(model._constants, model._form)
    for name, value in values.items():
        if not isinstance(value, Tensor) and _tensors_in(value):
            raise Unsupported(f"save: argument {name} must be a tensor, not several")
    return [name for name, value in values.items() if isinstance(value, Tensor)]


def _tensors_in(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in _pytree.tree_leaves(value))


def load(path: Path) -> IntegerModel:
    """Return the model that `save` wrote, on the CPU. The original class is not needed."""
    try:
        return _decoded(read_whole(path))
    except OSError:
        raise
    except MemoryError as error:
        raise MemoryError(f"{shown(path)}: not enough memory to read it") from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{shown(path)}: {error}") from error


def _decoded(content: bytes) -> IntegerModel:
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else _NO_BYTES
    text, tensors, names = _decode(data)
    try:
        spec = json.loads(text)
        arguments, single = _python_fields(spec)
        program = IntegerProgram(spec, dict(zip(names, tensors, strict=True)))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"spec: {error}") from error
    graph = fx.Graph()
    given = tuple(graph.placeholder(f"arg{i}") for i in range(len(spec["inputs"])))
    call = graph.call_module("program0", given)
    results = [
        graph.call_function(operator.getitem, (call, i)) for i in range(len(spec["outputs"]))
    ]
    graph.output(results[0] if single else tuple(results))
    holder = nn.Module()
    holder.add_module("program0", program)
    form = _pytree.tree_structure({name: torch.empty(0) for name in arguments})
    body = Body(holder, graph, "IntegerBody")
    return IntegerModel(body, form, [torch.empty(0)] * len(arguments), arguments, [])


def _python_fields(spec: Any) -> tuple[list[str], bool]:
    """Remove the fields that only Python reads from a spec and return them. C++ checks the
    others."""
    if not isinstance(spec, dict) or not isinstance(spec.get("inputs"), list):
        raise ValueError("inputs must be a list")
    arguments, single = spec.pop("arguments", None), spec.pop("single", None)
    texts = isinstance(arguments, list) and all(isinstance(a, str) for a in arguments)
    if not texts or len({*arguments}) != len(spec["inputs"]) or len(arguments) != len({*arguments}):
        raise ValueError(f"arguments must be {len(spec['inputs'])} names, one for each input")
    if not all(a.isidentifier() and a != "self" for a in arguments):
        raise ValueError(f"arguments must be Python identifiers, got {arguments}")
    outputs = spec.get("outputs")
    if not isinstance(single, bool) or (single and isinstance(outputs, list) and len(outputs) != 1):
        raise ValueError("single must be true or false, and false unless there is one output")
    return arguments, single


def whole_program(model: nn.Module, caller: str) -> tuple[IntegerProgram, bool]:
    """Return the only program of a model that has no float part, and whether it returns one
    tensor."""
    if not isinstance(model, IntegerModel):
        raise TypeError(
            f"{caller}: the model must come from bp.convert, got {type(model).__name__}"
        )
    nodes = list(model.body.graph.nodes)
    inputs = [n for n in nodes if n.op == "placeholder"]
    calls = [n for n in nodes if n.op == "call_module"]
    others = [n for n in nodes if n.op != "placeholder" and n.target is not operator.getitem]
    if model.floating or len(model.programs) != 1 or len(others) != len(calls) + 1:
        parts = [name for name, _ in model.floating]
        parts += [str(n.target) for n in others if not _is_program(model, n) and n.op != "output"]
        where = ", ".join(parts) or "between its programs"
        raise Unsupported(f"{caller}: parts of the model are in float ({where})")
    result: Any = nodes[-1].args[0]
    results = [result] if isinstance(result, fx.Node) else list(result)
    plain = isinstance(result, fx.Node | tuple) and all(
        isinstance(n, fx.Node) and n.target is operator.getitem and n.args == (calls[0], i)
        for i, n in enumerate(results)
    )
    if not plain or list(calls[0].args) != inputs:
        raise Unsupported(
            f"{caller}: the model must take tensors, and return one or a tuple of them"
        )
    return model.programs[0], isinstance(result, fx.Node)


def _is_program(model: IntegerModel, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(
        model.body.get_submodule(str(node.target)), IntegerProgram
    )
