"""shrink: a smaller copy of a model, with whole channels removed."""

import contextlib
import copy
import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bitpare import graph as g
from bitpare.errors import Unsupported
from bitpare.nn.quantizer import Quantizer
from bitpare.prune.channels import Channels
from bitpare.prune.plan import Plan
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
    example_kwargs: dict[str, Any] | None = None,
) -> nn.Module:
    """A copy of ``model`` with fewer channels, made of the same classes: an ordinary model.

    See `plan_shrink` for the options. ``optimizer``: it goes over to the copy, with its state and
    groups, if all has worked. The copy computes what ``model`` computes with all that was removed
    set to 0, which is checked on the example inputs.

    >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> shrink(model, torch.randn(1, 8), 0.5)[0]
    Linear(in_features=8, out_features=3, bias=True)
    """
    call = _call(example_inputs, example_kwargs)
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
        example_kwargs=call.kwargs,
    )
    return made.apply(model, optimizer=optimizer)


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
    example_kwargs: dict[str, Any] | None = None,
) -> Plan:
    """What `shrink` removes: the channels of least importance, whole groups of those that an
    addition, a concatenation, a depthwise convolution or a reshape ties together.

    ratio: of the channels that go; or {glob: ratio} for the layers that produce them. scope:
    "local": of each family of channels; "global": of all of them, by importance. macs, parameters:
    instead, the share of the model's that stays at most. round_to: families keep a multiple of it.
    min_channels: at least so many of each stay. ignore: globs of layers whose channels stay.
    not_understood: "refuse" (`Unsupported`), or "leave" the channels whole that meet an operation
    shrink does not know.
    """
    source = unwrapped(model)
    _check_options(source, scope, round_to, min_channels, macs, parameters, not_understood)
    call = _call(example_inputs, example_kwargs)
    channels = _analysed(source, call, not_understood)
    families = _Families(channels, ignore)
    if not families.members:
        reasons = "; ".join(dict.fromkeys(channels.frozen.values()))
        raise Unsupported(f"shrink: no channels of the model can be removed: {reasons}")
    cost = _Cost(source, call, channels)

    def plan_of(share: float | Mapping[str, float]) -> Plan:
        removed = families.removed(share, scope, round_to, min_channels)
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
    model: nn.Module,
    scope: str,
    round_to: int,
    min_channels: int,
    macs: float | None,
    parameters: float | None,
    not_understood: str,
) -> None:
    if any(isinstance(m, Quantizer) for m in model.modules()):
        raise Unsupported("shrink: the model is prepared; shrink the float model, then prepare it")
    if scope not in ("local", "global"):
        raise ValueError(f"shrink: scope must be local or global, got {scope!r}")
    if round_to < 1 or min_channels < 1:
        raise ValueError(
            f"shrink: round_to and min_channels must be 1 or more, got {round_to}, {min_channels}"
        )
    for name, value in (("macs", macs), ("parameters", parameters)):
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"shrink: {name} must be in (0, 1], got {value}")
    if not_understood not in ("refuse", "leave"):
        raise ValueError(f"shrink: not_understood must be refuse or leave, got {not_understood!r}")


def _call(example_inputs: Any, example_kwargs: dict[str, Any] | None) -> g.Call:
    if isinstance(example_inputs, Tensor):
        example_inputs = (example_inputs,)
    if not isinstance(example_inputs, tuple | list):
        raise TypeError(
            "shrink: example_inputs must be a tuple of the model's arguments, got "
            f"{type(example_inputs).__name__}"
        )
    return g.Call(tuple(example_inputs), dict(example_kwargs or {}))


def _analysed(model: nn.Module, call: g.Call, not_understood: str) -> Channels:
    try:
        traces = [_traced(model, call, False)]
    except Unsupported as error:
        raise Unsupported(f"shrink: the model cannot be traced: {error}") from error
    except Exception as error:  # whatever a forward does with a proxy
        text = str(error).split("\n")[0]
        raise Unsupported(f"shrink: the model cannot be traced: {text}") from error
    with contextlib.suppress(Exception):  # as BatchNorm of one value: eval stands for both
        traces.append(_traced(model, call, True))
    channels = Channels(model, traces)
    if channels.not_understood and not_understood == "refuse":
        raise Unsupported(
            f"shrink: {'; '.join(dict.fromkeys(channels.not_understood))}. With "
            "not_understood='leave' the channels it reads stay whole"
        )
    return channels


def _traced(model: nn.Module, call: g.Call, training: bool) -> g.FlatTrace:
    with g.without_hooks(model), g.quiet_state(model):
        calls = g.record_calls(model, call, training)
        results = {
            model.get_submodule(name): g.one_of([c.result for c in found])
            for name, found in calls.items()
        }
        model.train(training)
        return g.trace_flat(model, call, set(), results)


class _Families:
    """The channels that may go: members[family] lists the roots of its atoms."""

    def __init__(self, channels: Channels, ignore: Sequence[str]) -> None:
        self.channels = channels
        self.layers: dict[int, list[str]] = {}
        used: set[str] = set()
        for (name, dim), atoms in channels.links.items():
            held = channels.model.get_parameter(name) if _is_parameter(channels, name) else None
            layer = name.rpartition(".")[0]
            owner = channels.model.get_submodule(layer)
            transposed = isinstance(owner, nn.modules.conv._ConvTransposeNd)
            produces = held is not None and held.dim() >= 2 and dim == int(transposed)
            if not produces or layer in channels.depthwise:
                continue
            matches = [x for x in ignore if fnmatch.fnmatch(layer, x) or fnmatch.fnmatch(name, x)]
            if matches:
                used |= set(matches)
                channels.freeze([atoms], f"{layer}: ignored")
            for atom in atoms:
                known = self.layers.setdefault(channels.family(atom), [])
                if layer not in known:
                    known.append(layer)
        unknown = [x for x in ignore if x not in used]
        if unknown:
            raise ValueError(f"shrink: ignore {unknown[0]!r} matches no layer that makes channels")
        self.members: dict[int, list[int]] = {}
        for atoms in channels.links.values():
            for atom in atoms:
                root, family = channels.root(atom), channels.family(atom)
                if root not in channels.frozen and family in self.layers:
                    held_roots = self.members.setdefault(family, [])
                    held_roots.append(root)
        self.members = {f: list(dict.fromkeys(roots)) for f, roots in self.members.items()}
        self.importance = self._importance()

    def _importance(self) -> dict[int, float]:
        """Of each channel: the root mean square of what it has in each parameter, relative to the
        parameter's own, so that layers compare."""
        sums: dict[int, float] = {}
        counts: dict[int, int] = {}
        for (name, dim), atoms in self.channels.links.items():
            if not _is_parameter(self.channels, name):
                continue
            value = self.channels.model.get_parameter(name).detach().float()
            if value.dim() < 2:
                continue
            others = [d for d in range(value.dim()) if d != dim]
            squares = value.square().mean(others)
            relative = (squares / squares.mean().clamp(min=1e-30)).tolist()
            for atom, score in zip(atoms, relative, strict=True):
                root = self.channels.root(atom)
                sums[root] = sums.get(root, 0.0) + score
                counts[root] = counts.get(root, 0) + 1
        return {root: sums[root] / counts[root] for root in sums}

    def removed(
        self, ratio: float | Mapping[str, float], scope: str, round_to: int, least: int
    ) -> set[int]:
        wanted = {f: self._ratio(f, ratio) for f in self.members}
        if scope == "global" and not isinstance(ratio, Mapping):
            every = sorted(
                (self.importance[r], r) for roots in self.members.values() for r in roots
            )
            gone = {r for _, r in every[: int(ratio * len(every) + 1e-6)]}
            counts = {f: sum(r in gone for r in members) for f, members in self.members.items()}
        else:
            counts = {f: int(wanted[f] * len(r) + 1e-6) for f, r in self.members.items()}
        removed: set[int] = set()
        for family, roots in self.members.items():
            keep = len(roots) - counts[family]
            keep = max(math.ceil(keep / round_to) * round_to, least, 1)
            order = sorted((self.importance[r], r) for r in roots)
            removed |= {r for _, r in order[: max(len(roots) - keep, 0)]}
        return removed

    def _ratio(self, family: int, ratio: float | Mapping[str, float]) -> float:
        value = ratio
        if isinstance(ratio, Mapping):
            found = [
                v
                for x, v in ratio.items()
                if any(fnmatch.fnmatch(n, x) for n in self.layers[family])
            ]
            value = found[-1] if found else 0.0
        assert isinstance(value, int | float)
        if not 0 <= value < 1:
            raise ValueError(f"shrink: ratio must be in [0, 1), got {value}")
        return float(value)


def _is_parameter(channels: Channels, name: str) -> bool:
    owner, _, attribute = name.rpartition(".")
    return attribute in channels.model.get_submodule(owner)._parameters


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
            name = channels._names[id(module.weight)]
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


def _plan(channels: Channels, families: _Families, removed: set[int], cost: _Cost) -> Plan:
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
            value = held[name]
            if "running" not in name.rpartition(".")[2]:
                value.index_fill_(dim, torch.tensor(gone, device=value.device), 0)
        small = plan.apply(model).eval()
        for m in (masked, small):
            g.clear_hooks(m)
        expected = masked(*call.args, **call.kwargs)
        try:
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
        scale = float(a.abs().max().clamp(min=1)) if a.numel() else 1.0
        if a.numel() and float((a - b).abs().max()) > 1e-4 * scale:
            raise Unsupported(
                "shrink: the smaller model does not compute what the model does without these "
                f"channels (differs by {float((a - b).abs().max()):.2g}); name layers in ignore="
            )
