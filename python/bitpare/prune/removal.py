"""Describe the channels to remove as a Plan, and apply it."""

import copy
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitpare.errors import Unsupported
from bitpare.files import write_whole
from bitpare.models import note_plan, unwrapped
from bitpare.nn.weights import quantized_weights


@dataclasses.dataclass
class Plan:
    """The channels and blocks that `shrink` and `drop_layers` remove from a model.

    kept: (name of a parameter or buffer, dimension) -> size before, and the kept indices.
    depthwise: convolutions whose groups are their input channels. sizes: MACs, parameters and
    bytes before and after. whole: layers that keep all channels, and why. dropped: blocks that
    become identities.

    Save the plan beside a checkpoint of the smaller model. ``Plan.load(path).apply(model)`` then
    makes the smaller model from a model of the original class."""

    kept: dict[tuple[str, int], tuple[int, list[int]]]
    depthwise: list[str] = dataclasses.field(default_factory=list)
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    whole: dict[str, str] = dataclasses.field(default_factory=dict)
    dropped: list[str] = dataclasses.field(default_factory=list)

    def apply(
        self, model: nn.Module, *, optimizer: torch.optim.Optimizer | None = None
    ) -> nn.Module:
        """Return a smaller copy of the model. ``optimizer`` is moved to the copy with its state,
        after everything else succeeded."""
        source = unwrapped(model)
        self._check(source)
        replaced: dict[int, nn.Parameter] = {}
        small = copy.deepcopy(source)
        names = dict(source.named_parameters())
        for name, parameter in small.named_parameters():
            replaced[id(names[name])] = parameter
        self._slice(small, replaced, names)
        for name in self.dropped:
            small.set_submodule(name, nn.Identity())
        for name, parameter in names.items():
            if parameter.grad is not None:
                replaced[id(parameter)].grad = _kept_part(parameter.grad, self.dims_of(name))
        if optimizer is not None:
            _repoint(optimizer, self._states(optimizer, names), replaced)
        note_plan(small, source, self.to_dict())
        return small

    def _check(self, model: nn.Module) -> None:
        for name in self.dropped:
            if name not in dict(model.named_modules()):
                raise ValueError(f"Plan: the model has no {name}; it is of another architecture")
        held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        sliced = {id(held[name]) for name, _ in self.kept if name in held}
        for (name, dim), (size, _) in self.kept.items():
            if name not in held:
                raise ValueError(f"Plan: the model has no {name}; it is of another architecture")
            shape = tuple(held[name].shape)
            if dim >= len(shape) or shape[dim] != size:
                raise ValueError(
                    f"Plan: {name} has shape {shape}, but the plan is for {size} along dimension "
                    f"{dim}; it is of another architecture, or the plan was applied already"
                )

        for weight in quantized_weights(model):
            grid, quantizer = weight.quantizer.grid, weight.quantizer
            scale = getattr(quantizer, "scale", None)
            if grid.axis is None or (weight.name, grid.axis) not in self.kept:
                continue
            if scale is not None and scale.numel() > 1 and id(scale) not in sliced:
                raise ValueError(
                    f"Plan: {weight.name} is quantized with a scale for each channel in this "
                    "model, but not in the model that the plan is for"
                )

    def dims_of(self, name: str) -> dict[int, list[int]]:
        """Return dimension -> kept indices for a parameter or buffer."""
        return {dim: kept for (n, dim), (_, kept) in self.kept.items() if n == name}

    def _slice(
        self, small: nn.Module, replaced: dict[int, nn.Parameter], names: Mapping[str, nn.Parameter]
    ) -> None:
        done: dict[int, Tensor] = {}  # cut tied parameters once
        first = {id(held): name for name, held in _held_tensors(small)[::-1]}
        old_of = {id(new): names[name] for name, new in small.named_parameters()}
        for prefix, module in small.named_modules():
            for table in (module._parameters, module._buffers):
                for attribute, held in table.items():
                    if held is None:
                        continue
                    if id(held) not in done:
                        dims = self.dims_of(first[id(held)])
                        if not dims:
                            continue
                        done[id(held)] = _sliced(held, dims)
                        if isinstance(held, nn.Parameter):
                            old = old_of[id(held)]
                            made = done[id(held)]
                            assert isinstance(made, nn.Parameter)
                            replaced[id(old)] = made
                    table[attribute] = done[id(held)]  # type: ignore[assignment]
            _renumber(module, prefix in self.depthwise)
            if isinstance(module, nn.RNNBase):
                module._flat_weights = [getattr(module, n) for n in module._flat_weights_names]

    def _states(
        self, optimizer: torch.optim.Optimizer, names: Mapping[str, nn.Parameter]
    ) -> dict[int, dict[str, Any]]:
        """Return the optimizer's state for the smaller parameters. Raise before anything is
        changed."""
        by_id = {id(p): name for name, p in names.items()}
        found: dict[int, dict[str, Any]] = {}
        for group in optimizer.param_groups:
            for p in group["params"]:
                if id(p) not in by_id:
                    raise ValueError(
                        f"shrink: the optimizer holds a parameter of shape {tuple(p.shape)} that "
                        "is not the model's"
                    )
        for p, state in optimizer.state.items():
            dims = self.dims_of(by_id[id(p)])
            found[id(p)] = {
                key: _kept_state(by_id[id(p)], key, value, p, dims) for key, value in state.items()
            }
        return found

    # -- to and from data

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, which ``save`` writes."""
        return {
            "version": 1,
            "kept": [[n, d, size, kept] for (n, d), (size, kept) in self.kept.items()],
            "depthwise": self.depthwise,
            "sizes": self.sizes,
            "whole": self.whole,
            "dropped": self.dropped,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Plan":
        """Return the plan from the values of ``to_dict``."""
        if data.get("version") != 1 or "kept" not in data:
            raise ValueError("Plan: not a plan of this version")
        kept = {(str(n), int(d)): (int(size), list(k)) for n, d, size, k in data["kept"]}
        return Plan(
            kept,
            list(data["depthwise"]),
            dict(data["sizes"]),
            dict(data["whole"]),
            list(data.get("dropped", ())),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a JSON file."""
        write_whole(path, (json.dumps(self.to_dict()) + "\n").encode())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Plan":
        """Read a plan that ``save`` wrote."""
        return Plan.from_dict(json.loads(pathlib.Path(path).read_text()))

    def __str__(self) -> str:
        lines = [
            f"{what}: {self.sizes[f'{what} before']} -> {self.sizes[f'{what} after']}"
            for what in ("parameters", "MACs")
            if f"{what} before" in self.sizes
        ]
        for (name, dim), (size, kept) in self.kept.items():
            if dim == 0 and name.endswith("weight"):
                lines.append(f"  {name}: {size} -> {len(kept)}")
        lines += [f"  {name} becomes an identity" for name in self.dropped]
        for name, reason in self.whole.items():
            lines.append(f"  {name} stays whole: {reason}")
        return "\n".join(lines)


def _held_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _kept_part(value: Tensor, dims: Mapping[int, list[int]]) -> Tensor:
    """Return a copy of the kept indices, in the same memory format."""
    layout = _layout_of(value)
    found = value.detach()
    for dim, kept in dims.items():
        found = found.index_select(dim, torch.tensor(kept, device=value.device))
    return found.clone(memory_format=layout)


def _layout_of(value: Tensor) -> torch.memory_format:
    for layout, dims in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        plain = value.is_contiguous() or value.dim() != dims
        if not plain and value.is_contiguous(memory_format=layout):
            return layout
    return torch.contiguous_format


def _sliced(held: Tensor, dims: Mapping[int, list[int]]) -> Tensor:
    value = _kept_part(held, dims)
    if isinstance(held, nn.Parameter):
        return nn.Parameter(value, requires_grad=held.requires_grad)
    return value


def _renumber(module: Any, depthwise: bool) -> None:
    """Update the sizes that a layer stores as attributes."""
    weight = module._parameters.get("weight")
    if weight is None and isinstance(module, nn.modules.conv._ConvNd | nn.Linear | nn.PReLU):
        return  # leave a parametrized layer as it is
    if isinstance(module, nn.modules.conv._ConvNd):
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        if depthwise:
            times = module.out_channels // module.in_channels
            module.out_channels = weight.shape[0]
            module.in_channels = module.groups = weight.shape[0] // times
        elif transposed:
            module.in_channels, module.out_channels = weight.shape[0], weight.shape[1]
        else:
            module.out_channels = weight.shape[0]
            module.in_channels = weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        held = module.weight if module.weight is not None else module.running_mean
        if held is not None:
            module.num_features = held.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.numel()


def _kept_state(
    name: str, key: str, value: Any, parameter: Tensor, dims: Mapping[int, list[int]]
) -> Any:
    """Return the part of a parameter's optimizer state that belongs to the kept indices."""
    if not isinstance(value, Tensor) or value.numel() <= 1 or not dims:
        return value
    if value.shape == parameter.shape:
        return _kept_part(value, dims)
    matching: dict[int, list[int]] = {}
    for d, size in enumerate(value.shape):
        if size == 1:
            continue
        if value.dim() == parameter.dim() and size == parameter.shape[d]:  # by position
            if d in dims:
                matching[d] = dims[d]
            continue
        fits = [k for k, s in enumerate(parameter.shape) if s == size]
        if len(fits) != 1:
            raise Unsupported(
                f"shrink: the optimizer's state {key!r} of {name} has shape {tuple(value.shape)}, "
                f"which matches no unique dimension of {tuple(parameter.shape)}"
            )
        if fits[0] in dims:
            matching[d] = dims[fits[0]]
    return _kept_part(value, matching)


def _repoint(
    optimizer: torch.optim.Optimizer,
    states: Mapping[int, dict[str, Any]],
    replaced: Mapping[int, nn.Parameter],
) -> None:
    """Move the optimizer's groups and state to the smaller parameters."""
    old = [p for group in optimizer.param_groups for p in group["params"]]
    for group in optimizer.param_groups:
        group["params"] = [replaced[id(p)] for p in group["params"]]
    optimizer.state.clear()
    for p in old:
        if id(p) in states:
            optimizer.state[replaced[id(p)]] = states[id(p)]
