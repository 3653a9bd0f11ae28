"""Save and load prepared models, to continue training."""

import copy
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bitpare.files import Path, read_whole, shown, write_whole
from bitpare.models import plans_of, unwrapped
from bitpare.nn import layers
from bitpare.nn.hub import Hub
from bitpare.nn.quantizer import Quantizer
from bitpare.prune.removal import Plan
from bitpare.quant.prepare import prepare
from bitpare.spec.qconfig import QConfig

_FORMAT, _VERSION = "bitpare prepared model", 1
_LAYOUTS = {"channels_last": torch.channels_last, "channels_last_3d": torch.channels_last_3d}


def save(model: nn.Module, path: Path) -> None:
    """Write a prepared model to one safetensors file. `load` reads it to continue training.

    The file holds the state, the config, the shapes and types of the example inputs, and the
    `shrink` plans that were applied to the model. It appears only once it is complete. Save the
    state_dict of optimizers, schedules and pruners separately.

    Args:
        model: a prepared model. The patterns of its config must be globs or types, not functions.
        path: the file to write.
    """
    safetensors = _safetensors("save")
    inner = unwrapped(model)
    hub = vars(inner).get("bp_hub")
    if not isinstance(hub, Hub):
        raise ValueError("save: the model is not prepared; call bp.prepare first")
    if hub.config is None:
        raise ValueError(
            "save: the config has a function as a pattern, which cannot be written; use a glob "
            "or a type"
        )
    tensors, same = _state_of(inner)
    spec = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": type(inner).__module__ + "." + type(inner).__qualname__,
        "config": hub.config,
        "example": _encoded(hub.example, tensors),
        "plans": plans_of(inner),
        "plans_before": hub.plans_before,
        "same": same,
        "layouts": _layouts_of(inner),
        "eval": [name for name, m in inner.named_modules() if not m.training],
        "fixed": [name for name, p in inner.named_parameters() if not p.requires_grad],
        "frozen": [n for n, m in inner.named_modules() if getattr(m, "bp_frozen", False)],
    }
    written = safetensors.save(tensors, {"bitpare": json.dumps(spec)})
    write_whole(path, written)


def load(path: Path, *, model: Callable[[], nn.Module] | nn.Module) -> nn.Module:
    """Return the prepared model that `save` wrote, on the CPU. Training continues bit for bit.

    Args:
        path: a file that `save` wrote.
        model: the class of the float model, a function without arguments that makes one, or a float
            model, which is not changed.
    """
    safetensors = _safetensors("load")
    content = read_whole(path)
    try:
        spec = _spec_of(content)
        tensors = safetensors.load(content)
    except Exception as error:
        raise ValueError(f"{shown(path)}: {error}") from error
    net = copy.deepcopy(unwrapped(model)) if isinstance(model, nn.Module) else model()
    if not isinstance(net, nn.Module):
        raise TypeError(f"load: model must return a torch.nn.Module, got {type(net).__name__}")
    try:
        return _restored(net, spec, tensors)
    except (ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{shown(path)}: cannot be loaded into {type(net).__name__}; it was saved from "
            f"{spec['model']}: {error}"
        ) from error


def _safetensors(caller: str) -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(f"bp.{caller} needs safetensors: pip install safetensors") from error
    return safetensors.torch


# -- the contents of a file


def _state_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state, each tensor once, and {name: the first name of the same tensor}."""
    tensors: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(f"save: the state {name} must be a tensor, got {type(value).__name__}")
        key = (value.data_ptr(), tuple(value.shape), tuple(value.stride()), value.dtype)
        if value.numel() and key in first:
            same[name] = first[key]
            continue
        first[key] = name
        tensors[name] = value.detach().cpu().contiguous().clone()
    return tensors, same


def _layouts_of(model: nn.Module) -> dict[str, str]:
    """Return the memory formats of parameters that do not have the default format."""
    found = {}
    for name, value in model.named_parameters():
        for layout, form in _LAYOUTS.items():
            fits = value.dim() == (5 if layout.endswith("3d") else 4)
            if fits and not value.is_contiguous() and value.is_contiguous(memory_format=form):
                found[name] = layout
    return found


def _encoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return an argument of the example call as plain values. Integer tensors are added to
    ``tensors``."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        if value.is_floating_point():
            return {"zeros": list(value.shape), "dtype": kind}
        name = f"bitpare.example{sum(key.startswith('bitpare.example') for key in tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _encoded(v, tensors)] for key, v in value.items()]}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_encoded(v, tensors) for v in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise ValueError(f"save: an example input is a {type(value).__name__}, which cannot be written")


def _decoded(value: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    ((kind, held),) = [(k, v) for k, v in value.items() if k != "dtype"]
    if kind == "zeros":
        return torch.zeros(held, dtype=getattr(torch, value["dtype"]))
    if kind == "tensor":
        return tensors.pop(held)
    if kind == "dict":
        return {key: _decoded(v, tensors) for key, v in held}
    if kind in ("list", "tuple"):
        parts = [_decoded(v, tensors) for v in held]
        return parts if kind == "list" else tuple(parts)
    return held


def _spec_of(content: bytes) -> dict[str, Any]:
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > len(content) - 8:
        raise ValueError("not a safetensors file")
    header = json.loads(content[8 : 8 + size])
    text = header.get("__metadata__", {}).get("bitpare") if isinstance(header, dict) else None
    spec = json.loads(text) if isinstance(text, str) else None
    if not isinstance(spec, dict) or spec.get("format") != _FORMAT:
        raise ValueError("not a prepared model; bp.deploy.load reads integer models")
    if spec.get("version") != _VERSION:
        raise ValueError(
            f"the format has version {spec.get('version')}, but version {_VERSION} is supported"
        )
    return spec


# -- from a file to a model


def _restored(net: nn.Module, spec: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    if any(isinstance(m, Quantizer) for m in net.modules()):
        raise ValueError("model must be the float model, not a prepared one")
    args, kwargs = _decoded(spec["example"], tensors)
    for name, first in spec["same"].items():
        tensors[name] = tensors[first]
    before, plans = spec["plans_before"], spec["plans"]
    early = {path: held[: before.get(path, 0)] for path, held in plans.items()}
    late = {path: held[before.get(path, 0) :] for path, held in plans.items()}
    net = _changed(net, early)
    for name, value in (*net.named_parameters(), *net.named_buffers()):
        if name in tensors and value.dtype != tensors[name].dtype:
            value.data = value.data.to(tensors[name].dtype)
    made = prepare(
        net, QConfig.from_dict(spec["config"]), example_inputs=args, example_kwargs=kwargs
    )
    made = _changed(made, late)
    made.load_state_dict(tensors)
    modules, parameters = dict(made.named_modules()), dict(made.named_parameters())
    for name, layout in spec["layouts"].items():
        value = parameters[name]
        value.data = value.data.contiguous(memory_format=_LAYOUTS[layout])
    for name in spec["fixed"]:
        parameters[name].requires_grad_(False)
    for module in modules.values():
        module.training = True
        if isinstance(module, layers.NORMS):
            module.bp_frozen = False  # type: ignore[assignment]
    for name in spec["eval"]:
        modules[name].training = False
    for name in spec["frozen"]:
        modules[name].bp_frozen = True  # type: ignore[assignment]
    return made


def _changed(model: nn.Module, plans: dict[str, list[dict[str, Any]]]) -> nn.Module:
    """Return a model with pruning plans applied to its parts."""
    holder = nn.Module()
    holder.model = model
    for path, held in plans.items():
        where = f"model.{path}" if path else "model"
        for plan in held:
            holder.set_submodule(where, Plan.from_dict(plan).apply(holder.get_submodule(where)))
    made: nn.Module = holder.model
    return made
