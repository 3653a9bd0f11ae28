"""shrink: a smaller copy of a model, with whole channels removed."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bitpare import graph as g
from bitpare.errors import Unsupported
from bitpare.nn.quantizer import Quantizer, quantizers_off
from bitpare.prune.channels import Channels
from bitpare.prune.coupled import Coupled
from bitpare.prune.families import Families, analysed
from bitpare.prune.plan import Plan
from bitpare.prune.pruner import Pruner
from bitpare.quant.names import unwrapped


def shrink(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | Tensor,
    ratio: float | Mapping[str, float] = 0.5,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    scope: str = "local",
    round_to: int = 1,
    min_channels: int = 1,
    ignore: Sequence[str] = (),
    macs: float | None = None,
    parameters: float | None = None,
    not_understood: str = "refuse",
    pruner: Pruner | None = None,
    example_kwargs: dict[str, Any] | None = None,
) -> nn.Module:
    """A copy of ``model`` with fewer channels, made of the same classes: an ordinary model.

    See `plan_shrink` for the options. ``optimizer``: it goes over to the copy, with its state and
    groups, if all has worked, and a ``pruner`` is done. The copy computes what ``model`` computes
    with all that was removed set to 0, which is checked on the example inputs.

    >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> shrink(model, torch.randn(1, 8), 0.5)[0]
    Linear(in_features=8, out_features=3, bias=True)
    """
    call = g.call_with("shrink", example_inputs, example_kwargs)
    made = plan_shrink(
        model,
        call.args,
        ratio,
        scope=scope,
        round_to=round_to,
        min_channels=min_channels,
        ignore=ignore,
        macs=macs,
        parameters=parameters,
        not_understood=not_understood,
        pruner=pruner,
        example_kwargs=call.kwargs,
    )
    small = made.apply(model, optimizer=optimizer)
    if pruner is not None and optimizer is not None:
        pruner.finalize()  # it counted this optimizer's steps
    return small


def plan_shrink(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | Tensor,
    ratio: float | Mapping[str, float] = 0.5,
    *,
    scope: str = "local",
    round_to: int = 1,
    min_channels: int = 1,
    ignore: Sequence[str] = (),
    macs: float | None = None,
    parameters: float | None = None,
    not_understood: str = "refuse",
    keep: str = "largest",
    pruner: Pruner | None = None,
    example_kwargs: dict[str, Any] | None = None,
) -> Plan:
    """Return what `shrink` would remove: the channels of least importance, whole groups of
    those that an addition, a concatenation, a depthwise convolution or a reshape ties together.

    ratio: of the channels that go; or {glob: ratio} for the layers that produce them. scope:
    "local": of each family of channels; "global": of all of them, by importance. macs, parameters:
    instead, the share of the model's that stays at most. round_to: families keep a multiple of it.
    min_channels: at least so many of each stay. ignore: globs of layers whose channels stay.
    not_understood: "refuse" (`Unsupported`), or "leave" the channels whole that meet an operation
    shrink does not know. keep: the channels that stay are the "largest", or the "first" of each
    family, whatever their weights. pruner: the channels that its masks prune (pattern "channel"),
    whatever ratio, scope and keep say; where round_to or min_channels want more, some of those stay
    and are 0.
    """
    source = unwrapped(model)
    _check_options(scope, round_to, min_channels, macs, parameters, not_understood, keep)
    call = g.call_with("shrink", example_inputs, example_kwargs)
    if pruner is not None:
        coupled = _coupled_of(pruner, source)
        for name, value in (("ignore", ignore), ("macs", macs), ("parameters", parameters)):
            if value:
                raise ValueError(f"shrink: with pruner= its masks say what goes; leave out {name}=")
        made = _plan(
            coupled.channels,
            coupled.families,
            coupled.families.limited(coupled.removed(), round_to, min_channels),
            _Cost(source, call, coupled.channels),
        )
        _verify(source, call, made)
        return made
    channels = analysed(source, call, not_understood, "shrink")
    families = Families(channels, ignore, "shrink")
    cost = _Cost(source, call, channels)

    def plan_of(share: float | Mapping[str, float]) -> Plan:
        removed = families.removed(share, scope, round_to, min_channels, keep)
        return _plan(channels, families, removed, cost)

    budget = {"MACs": macs, "parameters": parameters}
    if all(value is None for value in budget.values()):
        made = plan_of(ratio)
    else:
        low, high = 0.0, 1.0 - 1e-6
        made = plan_of(high)
        for _ in range(24):  # the least share that fits
            middle = (low + high) / 2
            tried = plan_of(middle)
            fits = all(
                share is None or tried.sizes[f"{k} after"] <= share * tried.sizes[f"{k} before"]
                for k, share in budget.items()
            )
            low, high = (low, middle) if fits else (middle, high)
            made = tried if fits else made
    _verify(source, call, made)
    return made


def _check_options(
    scope: str,
    round_to: int,
    min_channels: int,
    macs: float | None,
    parameters: float | None,
    not_understood: str,
    keep: str,
) -> None:
    if scope not in ("local", "global"):
        raise ValueError(f"shrink: scope must be local or global, got {scope!r}")
    if round_to < 1 or min_channels < 1:
        raise ValueError(
            f"shrink: round_to and min_channels must be 1 or more, got {round_to}, {min_channels}"
        )
    for name, value in (("macs", macs), ("parameters", parameters)):
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"shrink: {name} must be in (0, 1], got {value}")
    if keep not in ("largest", "first") or (keep == "first" and scope == "global"):
        raise ValueError(f"shrink: keep must be largest, or first with scope='local', got {keep!r}")
    if not_understood not in ("refuse", "leave"):
        raise ValueError(f"shrink: not_understood must be refuse or leave, got {not_understood!r}")


def _coupled_of(pruner: Pruner, model: nn.Module) -> Coupled:
    if pruner.coupled is None:
        raise ValueError("shrink: the pruner has no channel masks; its pattern must be 'channel'")
    if pruner.model is not model:
        raise ValueError("shrink: the pruner works on another model")
    return pruner.coupled


class _Cost:
    """MACs of convolutions and linear layers on the example inputs, and parameters."""

    def __init__(self, model: nn.Module, call: g.Call, channels: Channels) -> None:
        self.model = model
        self.positions: dict[str, int] = {}
        for node in channels.graph.nodes:
            if node.op != "call_module":
                continue
            module: Any = model.get_submodule(str(node.target))
            if not isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
                continue
            shape = node.meta["shape"]
            out = shape[1] if isinstance(module, nn.modules.conv._ConvNd) else shape[-1]
            name = channels.names.get(id(module.weight))
            if name is None:  # parametrized: it stays as it is
                continue
            self.positions[name] = self.positions.get(name, 0) + math.prod(shape) // out

    def of(self, kept: Mapping[tuple[str, int], tuple[int, list[int]]]) -> tuple[int, int]:
        macs = parameters = 0
        for name, held in self.model.named_parameters():
            shape = list(held.shape)
            for dim in range(len(shape)):
                if (name, dim) in kept:
                    shape[dim] = len(kept[name, dim][1])
            parameters += math.prod(shape)
            macs += math.prod(shape) * self.positions.get(name, 0)
        return macs, parameters


def _plan(channels: Channels, families: Families, removed: set[int], cost: _Cost) -> Plan:
    kept = {}
    for key, atoms in channels.links.items():
        stay = [i for i, atom in enumerate(atoms) if channels.root(atom) not in removed]
        if len(stay) < len(atoms):
            kept[key] = (len(atoms), stay)
    whole = {}
    for family, layers in families.layers.items():
        if family not in families.members:
            atoms = [a for a, r in channels.frozen.items() if channels.family(a) == family]
            whole[", ".join(layers)] = (
                channels.frozen[atoms[0]] if atoms else "no channels of its own"
            )
    before, after = cost.of({}), cost.of(kept)
    sizes = {
        "MACs before": before[0], "MACs after": after[0],
        "parameters before": before[1], "parameters after": after[1],
    }  # fmt: skip
    depthwise = sorted(n for n in channels.depthwise if (f"{n}.weight", 0) in kept)
    return Plan(kept, depthwise, sizes, whole)


@torch.no_grad()
def _verify(model: nn.Module, call: g.Call, plan: Plan) -> None:
    """The smaller model must compute what the model does with what it lacks set to 0."""
    with g.quiet_state(model):
        masked = copy.deepcopy(model).eval()
        held = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
        for (name, dim), (size, stay) in plan.kept.items():
            gone = sorted(set(range(size)) - set(stay))
            value, (owner, _, attribute) = held[name], name.rpartition(".")
            of_quantizer = isinstance(masked.get_submodule(owner), Quantizer)
            if "running" not in attribute and not of_quantizer:
                value.index_fill_(dim, torch.tensor(gone, device=value.device), 0)
        small = plan.apply(model).eval()
        for m in (masked, small):
            g.clear_hooks(m)
        # With quantizers a unit of a grid could hide a difference, or be one by itself.
        with quantizers_off(masked):
            expected = masked(*call.args, **call.kwargs)
        try:
            with quantizers_off(small):
                found = small(*call.args, **call.kwargs)
        except Exception as error:
            text = str(error).split("\n")[0]
            raise Unsupported(
                f"shrink: the model's own code does not run with fewer channels ({text}); it may "
                "hold sizes as numbers. Name the layers in ignore="
            ) from error
    for a, b in zip(_pytree.tree_leaves(expected), _pytree.tree_leaves(found), strict=True):
        if not isinstance(a, Tensor):
            continue
        if a.shape != b.shape:
            raise Unsupported(
                f"shrink: an output would have shape {tuple(b.shape)} for {tuple(a.shape)}"
            )
        if not a.is_floating_point():
            continue  # follows from what is
        finite = a[a.isfinite()].abs()
        scale = float(finite.max().clamp(min=1)) if finite.numel() else 1.0
        if not torch.isclose(b, a, rtol=0, atol=1e-4 * scale, equal_nan=True).all():
            raise Unsupported(
                "shrink: the smaller model does not compute what the model does without these "
                f"channels (differs by {float((a - b).abs().max()):.2g}); name layers in ignore="
            )
