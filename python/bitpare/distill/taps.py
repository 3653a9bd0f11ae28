"""Record the results of layers with hooks."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bitpare.models import near_names, plain_name


class Taps:
    """The last result of each named layer. The hooks are objects, so that a copy of a model with
    its taps works by itself."""

    def __init__(self, model: nn.Module, names: Iterable[str], owner: str) -> None:
        self.values: dict[str, Tensor] = {}
        self.active = False
        modules = dict(model.named_modules())
        self._handles = []
        for name in dict.fromkeys(names):
            layer = name if name in modules else plain_name(name)
            if layer not in modules or layer == "":
                near = near_names(name, modules)
                raise ValueError(f"Distiller: the {owner} has no layer {name!r}{near}")
            self._handles.append(modules[layer].register_forward_hook(_Tap(self, name)))

    def take(self) -> dict[str, Tensor]:
        """Return the results since the last call."""
        found, self.values = self.values, {}
        return found

    def release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class _Tap:
    def __init__(self, taps: Taps, name: str) -> None:
        self.taps, self.name = taps, name

    def __call__(self, module: nn.Module, args: Any, result: Any) -> None:
        if self.taps.active:
            # Copy the result, because later layers such as nn.ReLU(inplace=True) may overwrite it.
            self.taps.values[self.name] = first_tensor(result).clone()


def first_tensor(value: Any) -> Tensor:
    """Return the first tensor of a layer's or a model's result."""
    while not isinstance(value, Tensor):
        if isinstance(value, dict):
            value = next(iter(value.values()))
        elif isinstance(value, tuple | list) and value:
            value = value[0]
        else:
            raise TypeError(f"Distiller: a layer gave {type(value).__name__}, not a tensor")
    return value


def is_compiled(model: nn.Module) -> bool:
    return any(
        hasattr(m, "_orig_mod") or m.__dict__.get("_compiled_call_impl") is not None
        for m in [model, *model.modules()]
    )


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the results of micro-batches."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
