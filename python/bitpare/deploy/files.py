"""Integer models in files: safetensors, read by `load` and by C++ programs alike."""

import json
import operator
import os
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree

from bitpare.deploy.integer import IntegerModel, IntegerProgram
from bitpare.errors import Unsupported

_save = torch.ops.bitpare._save_integer.default
_load = torch.ops.bitpare._load_integer.default


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes what `convert` made to one file. It must be in integers from end to end.

    Weights take as few bits as hold them; pruned ones are stored as a bitmap and what is left. The
    file appears whole or not at all.
    """
    program, single = whole_program(model, "save")
    arguments = model.arguments  # type: ignore[attr-defined]
    spec = {**program.spec, "arguments": arguments, "single": single}
    held = {name: tensor.detach() for name, tensor in program.named_buffers()}
    _save(os.fspath(path), json.dumps(spec), list(held.values()), list(held))


def load(path: str | os.PathLike[str]) -> IntegerModel:
    """The model that `save` wrote; no class of the user's is needed. It is on the CPU."""
    text, tensors, names = _load(os.fspath(path))
    try:
        spec = json.loads(text)
        arguments, single = list(spec.pop("arguments")), bool(spec.pop("single"))
        program = IntegerProgram(spec, dict(zip(names, tensors, strict=True)))
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)}: spec: {error}") from error
    graph = fx.Graph()
    given = tuple(graph.placeholder(f"arg{i}") for i in range(len(spec["inputs"])))
    call = graph.call_module("program0", given)
    results = [
        graph.call_function(operator.getitem, (call, i)) for i in range(len(spec["outputs"]))
    ]
    graph.output(results[0] if single else tuple(results))
    holder = nn.Module()
    holder.add_module("program0", program)
    body = fx.GraphModule(holder, graph, "IntegerBody")
    form = _pytree.tree_structure({name: torch.empty(0) for name in arguments})
    return IntegerModel(body, form, [torch.empty(0)] * len(arguments), arguments, [])


def whole_program(model: nn.Module, caller: str) -> tuple[IntegerProgram, bool]:
    """The one program of a model that is nothing else, and whether it gives a tensor."""
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
