"""Make a smaller copy of a model, with whole channels removed."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bitpare import graph as g
from bitpare.errors import Unsupported
from bitpare.models import unwrapped
from bitpare.nn.quantizer import Quantizer, quantizers_off
from bitpare.prune.atoms import AtomTable
from bitpare.prune.families import Families, analysed
from bitpare.prune.pruner import Pruner
from bitpare.prune.removal import Plan
from bitpare.prune.units import ChannelUnits
from bitpare.spec.budget import Budget, least_that_fits

# The names that a plan uses for the costs of a budget.
_COST_NAMES = {"macs": "MACs", "parameters": "parameters", "bytes": "bytes"}


def shrink(
    model: nn.Module,
    *,
    sparsity: float | Mapping[str, float] | None = None,
    keep: Budget | None = None,
    example_inputs: tuple[Any, ...] | Tensor,
    example_kwargs: dict[str, Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scope: Literal["local", "global"] = "local",
    round_to: int = 1,
    min_channels: int = 1,
    ignore: Sequence[str] = (),
    not_understood: Literal["refuse", "leave"] = "refuse",
    pruner: Pruner | None = None,
) -> nn.Module:
    """Return a copy of ``model`` with fewer channels: an ordinary model of the same classes.

    The copy computes what ``model`` computes with the removed channels set to 0. The example inputs
    are used to check this.

    Args:
        model: the model; it is not changed.
        sparsity: the share of the channels to remove, in [0, 1), or {glob: sparsity}. Give one of
            ``sparsity``, ``keep`` and ``pruner``.
        keep: a `bp.Budget` to fit.
        example_inputs: the positional arguments of a call of the model, or a single tensor.
        example_kwargs: the keyword arguments of that call.
        optimizer: an optimizer of the model. On success it is moved to the copy, with its state and
            groups, and ``pruner`` is finalized.
        scope: "local" or "global", see `plan_shrink`.
        round_to: the number of channels in each family stays a multiple of it.
        min_channels: the number of channels that each family keeps at least.
        ignore: globs of layers that keep their channels.
        not_understood: "refuse" or "leave", see `plan_shrink`.
        pruner: a `Pruner` of pattern "channel", whose pruned channels are removed.

    >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> shrink(model, sparsity=0.5, example_inputs=torch.randn(1, 8))[0]
    Linear(in_features=8, out_features=3, bias=True)
    """
    call = g.call_with("shrink", example_inputs, example_kwargs)
    made = plan_shrink(
        model,
        sparsity=sparsity,
        keep=keep,
        example_inputs=call.args,
        example_kwargs=call.kwargs,
        scope=scope,
        round_to=round_to,
        min_channels=min_channels,
        ignore=ignore,
        not_understood=not_understood,
        pruner=pruner,
    )
    small = made.apply(model, optimizer=optimizer)
    if pruner is not None and optimizer is not None:
        pruner.finalize()  # the pruner counted the steps of this optimizer
    return small


def plan_shrink(
    model: nn.Module,
    *,
    sparsity: float | Mapping[str, float] | None = None,
    keep: Budget | None = None,
    example_inputs: tuple[Any, ...] | Tensor,
    example_kwargs: dict[str, Any] | None = None,
    scope: Literal["local", "global"] = "local",
    round_to: int = 1,
    min_channels: int = 1,
    ignore: Sequence[str] = (),
    not_understood: Literal["refuse", "leave"] = "refuse",
    order: Literal["importance", "index"] = "importance",
    pruner: Pruner | None = None,
) -> Plan:
    """Return the plan of what `shrink` would remove.

    Channels that an addition, a concatenation, a depthwise convolution or a reshape ties together
    are removed as a group. Groups along the same dimensions form a family.

    Args:
        model: the model; it is not changed.
        sparsity: the share of the channels to remove, in [0, 1); or {glob: sparsity} for the layers
            that produce them.
        keep: instead, a `bp.Budget` of macs, parameters and bytes. As few channels are removed as
            it allows.
        example_inputs: the positional arguments of a call of the model, or a single tensor.
        example_kwargs: the keyword arguments of that call.
        scope: "local" removes the share from each family; "global" ranks all channels together by
            importance.
        round_to: the number of channels in each family stays a multiple of it.
        min_channels: the number of channels that each family keeps at least.
        ignore: globs of layers that keep their channels.
        not_understood: what to do if shrink does not know an operation that reads the channels.
            "refuse" raises `Unsupported`; "leave" keeps these channels.
        order: "importance" removes the least important channels first, "index" the last ones,
            whatever their weights.
        pruner: instead, a `Pruner` of pattern "channel", whose pruned channels are removed. Scope
            and order have no effect. If round_to or min_channels need more channels, some pruned
            ones stay, with value 0.
    """
    source = unwrapped(model)
    _check_options(sparsity, keep, pruner, scope, round_to, min_channels, not_understood, order)
    call = g.call_with("shrink", example_inputs, example_kwargs)
    if pruner is not None:
        units = _units_of(pruner, source)
        if ignore:
            raise ValueError("shrink: with pruner= its masks say what is removed; omit ignore=")
        made = _plan(
            units.atoms,
            units.families,
            units.families.limited(units.removed(), round_to, min_channels),
            g.Cost(source, call),
        )
        _verify(source, call, made)
        return made
    channels = analysed(source, call, not_understood, "shrink")
    families = Families(channels, ignore, "shrink")
    cost = g.Cost(source, call)

    def plan_of(share: float | Mapping[str, float]) -> Plan:
        removed = families.removed(share, scope, round_to, min_channels, order)
        return _plan(channels, families, removed, cost)

    if keep is None:
        assert sparsity is not None
        made = plan_of(sparsity)
    else:
        made = _within(plan_of, keep)
    _verify(source, call, made)
    return made


def _within(plan_of: Callable[[float], Plan], keep: Budget) -> Plan:
    def costs(plan: Plan, at: str) -> dict[str, float]:
        return {name: plan.sizes[f"{told} {at}"] for name, told in _COST_NAMES.items()}

    def fits(plan: Plan) -> bool:
        return keep.fits(costs(plan, "before"), costs(plan, "after"))

    most = 1.0 - 1e-6
    made = least_that_fits(plan_of, fits, most, rounds=24)
    if made is None:
        smallest = costs(plan_of(most), "after")
        least = ", ".join(f"{smallest[name]} {_COST_NAMES[name]}" for name in keep.given())
        raise ValueError(
            f"shrink: keep={keep} cannot be met: with every removable channel removed, {least} "
            "remain"
        )
    return made


def _check_options(
    sparsity: float | Mapping[str, float] | None,
    keep: Budget | None,
    pruner: Pruner | None,
    scope: str,
    round_to: int,
    min_channels: int,
    not_understood: str,
    order: str,
) -> None:
    given = {"sparsity": sparsity, "keep": keep, "pruner": pruner}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        got = " and ".join(named) or "none of them"
        raise ValueError(f"shrink: give one of sparsity=, keep= and pruner=, got {got}")
    if keep is not None and not isinstance(keep, Budget):
        raise TypeError(f"shrink: keep must be a bp.Budget, got {type(keep).__name__}")
    if keep is not None and keep.latency_ms is not None:
        raise ValueError("shrink: a latency cannot be predicted from channels; give macs= instead")
    if scope not in ("local", "global"):
        raise ValueError(f"shrink: scope must be local or global, got {scope!r}")
    if round_to < 1 or min_channels < 1:
        raise ValueError(
            f"shrink: round_to and min_channels must be 1 or more, got {round_to}, {min_channels}"
        )
    if order not in ("importance", "index") or (order == "index" and scope == "global"):
        raise ValueError(
            f"shrink: order must be importance, or index with scope='local', got {order!r}"
        )
    if not_understood not in ("refuse", "leave"):
        raise ValueError(f"shrink: not_understood must be refuse or leave, got {not_understood!r}")


def _units_of(pruner: Pruner, model: nn.Module) -> ChannelUnits:
    if not isinstance(pruner.units, ChannelUnits):
        raise ValueError("shrink: the pruner has no channel masks; its pattern must be 'channel'")
    if pruner.model is not model:
        raise ValueError("shrink: the pruner works on another model")
    return pruner.units


def _plan(channels: AtomTable, families: Families, removed: set[int], cost: g.Cost) -> Plan:
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
    shapes = {
        name: list(held.shape)
        for name, held in [*cost.model.named_parameters(), *cost.model.named_buffers()]
    }
    for (name, dim), (_, stay) in kept.items():
        shapes[name][dim] = len(stay)
    costs = {"before": cost.of({}), "after": cost.of(shapes)}
    sizes = {
        f"{_COST_NAMES[n]} {at}": value for at, found in costs.items() for n, value in found.items()
    }
    depthwise = sorted(n for n in channels.depthwise if (f"{n}.weight", 0) in kept)
    return Plan(kept, depthwise, sizes, whole)


@torch.no_grad()
def _verify(model: nn.Module, call: g.Call, plan: Plan) -> None:
    """Check that the smaller model computes what the model does with the removed channels set
    to 0."""
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
        # Quantizers could hide a difference, or add one of a unit of their grid.
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
                f"shrink: an output would have shape {tuple(b.shape)} instead of {tuple(a.shape)}"
            )
        if not a.is_floating_point():
            continue  # compared through the values it depends on
        finite = a[a.isfinite()].abs()
        scale = float(finite.max().clamp(min=1)) if finite.numel() else 1.0
        if not torch.isclose(b, a, rtol=0, atol=1e-4 * scale, equal_nan=True).all():
            raise Unsupported(
                "shrink: the smaller model does not compute what the model does without these "
                f"channels (differs by {float((a - b).abs().max()):.2g}); name layers in ignore="
            )
