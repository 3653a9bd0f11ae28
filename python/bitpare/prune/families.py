"""Group channels into families, which lie along the same dimensions, and rank them."""

import functools
import math
from collections.abc import Mapping, Sequence

from torch import nn

from bitpare import graph as g
from bitpare.errors import Unsupported
from bitpare.models import Globs
from bitpare.nn.quantizer import quantizers_off
from bitpare.prune.atoms import AtomTable
from bitpare.prune.channels import channels_of


def analysed(model: nn.Module, call: g.Call, not_understood: str, caller: str) -> AtomTable:
    """Return the atoms of a model, followed through its forward in eval and in training mode."""
    try:
        channels = channels_of(model, _traces(model, call, caller))
    except Unsupported as error:
        raise Unsupported(f"{caller}: the model cannot be traced: {error}") from error
    if channels.not_understood and not_understood == "refuse":
        raise Unsupported(
            f"{caller}: {'; '.join(dict.fromkeys(channels.not_understood))}. With "
            "not_understood='leave' the channels it reads are kept"
        )
    return channels


def _traces(model: nn.Module, call: g.Call, caller: str) -> list[g.FlatTrace]:
    """Return the traces of both modes, or only that of eval if training cannot be traced."""
    traces = []
    with g.without_hooks(model), g.quiet_state(model), quantizers_off(model):
        calls = g.record_both(model, call, caller)
        for training in (False, True):
            results = {
                model.get_submodule(name): g.one_of([c.result for c in found])
                for name, found in calls[training].items()
            }
            model.train(training)
            try:
                traces.append(g.trace_flat(model, call, set(), results))
            except Unsupported:
                if not training:
                    raise
    return traces


class Families:
    """The channels that can be removed. ``members[family]`` lists the roots of its atoms."""

    def __init__(self, channels: AtomTable, ignore: Sequence[str], caller: str) -> None:
        self.channels, self.caller = channels, caller
        self.layers: dict[int, list[str]] = {}
        ignored = Globs(ignore)
        for (name, dim), atoms in channels.links.items():
            held = channels.model.get_parameter(name) if is_parameter(channels, name) else None
            layer = name.rpartition(".")[0]
            owner = channels.model.get_submodule(layer)
            transposed = isinstance(owner, nn.modules.conv._ConvTransposeNd)
            produces = held is not None and held.dim() >= 2 and dim == int(transposed)
            if not produces or layer in channels.depthwise:
                continue
            if ignored.matching(layer, name):
                channels.freeze([atoms], f"{layer}: ignored")
            for atom in atoms:
                known = self.layers.setdefault(channels.family(atom), [])
                if layer not in known:
                    known.append(layer)
        if ignored.unused:
            raise ValueError(
                f"{caller}: ignore {ignored.unused[0]!r} matches no layer that makes channels"
            )
        self.members: dict[int, list[int]] = {}
        for atoms in channels.links.values():
            for atom in atoms:
                root, family = channels.root(atom), channels.family(atom)
                if root not in channels.frozen and family in self.layers:
                    held_roots = self.members.setdefault(family, [])
                    held_roots.append(root)
        self.members = {f: list(dict.fromkeys(roots)) for f, roots in self.members.items()}
        if not self.members:
            reasons = "; ".join(dict.fromkeys(channels.frozen.values()))
            raise Unsupported(f"{caller}: no channels of the model can be removed: {reasons}")

    @functools.cached_property
    def importance(self) -> dict[int, float]:
        """Return the importance of each channel. It is the root mean square of the channel's
        elements in each parameter, divided by that of the whole parameter, so that layers
        compare."""
        sums: dict[int, float] = {}
        counts: dict[int, int] = {}
        for (name, dim), atoms in self.channels.links.items():
            if not is_parameter(self.channels, name):
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
        self,
        sparsity: float | Mapping[str, float],
        scope: str,
        round_to: int,
        least: int,
        order: str = "importance",
    ) -> set[int]:
        """Return the roots of the channels to remove; see `plan_shrink` for the options."""
        wanted = self.sparsities(sparsity)
        if scope == "global" and not isinstance(sparsity, Mapping):
            every = sorted(
                (self.importance[r], r) for roots in self.members.values() for r in roots
            )
            gone = {r for _, r in every[: int(sparsity * len(every) + 1e-6)]}
            counts = {f: sum(r in gone for r in members) for f, members in self.members.items()}
        else:
            counts = {f: int(wanted[f] * len(r) + 1e-6) for f, r in self.members.items()}
        removed: set[int] = set()
        for family, roots in self.members.items():
            stay = _whole(len(roots) - counts[family], round_to, least)
            if order == "index":
                removed |= set(sorted(roots)[stay:])
                continue
            ranked = sorted((self.importance[r], r) for r in roots)
            removed |= {r for _, r in ranked[: max(len(roots) - stay, 0)]}
        return removed

    def limited(self, removed: set[int], round_to: int, least: int) -> set[int]:
        """Remove fewer channels, so that each family keeps a multiple of ``round_to``."""
        found: set[int] = set()
        for roots in self.members.values():
            gone = [r for r in roots if r in removed]
            stay = _whole(len(roots) - len(gone), round_to, least)
            found |= set(gone[: max(len(roots) - stay, 0)])
        return found

    def sparsities(self, sparsity: float | Mapping[str, float]) -> dict[int, float]:
        """Return the sparsity of each family. For {glob: sparsity} the last glob that matches one
        of its layers counts, or 0 if none does."""
        if isinstance(sparsity, Mapping):
            globs = Globs(sparsity)
            chosen = {family: globs.last(*layers) for family, layers in self.layers.items()}
            if globs.unused:
                raise ValueError(
                    f"{self.caller}: sparsity {globs.unused[0]!r} matches no layer that makes "
                    "channels"
                )
            levels: dict[str | None, float] = {None: 0.0}
            levels.update(sparsity)
            found = {family: float(levels[chosen[family]]) for family in self.members}
        else:
            found = dict.fromkeys(self.members, float(sparsity))
        for value in found.values():
            if not 0 <= value < 1:
                raise ValueError(f"{self.caller}: sparsity must be in [0, 1), got {value}")
        return found


def _whole(stay: int, round_to: int, least: int) -> int:
    return max(math.ceil(stay / round_to) * round_to, least, 1)


def is_parameter(channels: AtomTable, name: str) -> bool:
    owner, _, attribute = name.rpartition(".")
    return attribute in channels.model.get_submodule(owner)._parameters
