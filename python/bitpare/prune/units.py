"""The units that a Pruner keeps or prunes: elements of weights, or channels that go together."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitpare import functional as bpf
from bitpare import graph as g
from bitpare.models import Globs
from bitpare.nn.weights import quantized_weights
from bitpare.prune.channels import before_relu
from bitpare.prune.families import Families, analysed
from bitpare.prune.scoring import Scoring
from bitpare.prune.targets import Target, find_targets, fits


class Units:
    """The units that a Pruner keeps or prunes: elements of weights, or channels.

    targets: the weights with a mask. dense: those that the pattern does not fit.
    """

    targets: list[Target]
    dense: list[str]

    def sparsities(self, scope: Mapping[str, float]) -> list[float]:
        """Return the sparsity of each group of units; weights that no glob matches may go from the
        targets."""
        raise NotImplementedError

    def masks_for(
        self,
        scoring: Scoring,
        step: int,
        sparsity: float | list[float],
        previous: list[Tensor] | None,
        **options: Any,
    ) -> list[Tensor]:
        """Return the packed mask of each target at a step; see `select_mask` for the options."""
        raise NotImplementedError

    def watch(self, scoring: Scoring, model: nn.Module) -> list[Any]:
        """Return hooks on the layers whose results the scores need."""
        return []

    def state(self) -> dict[str, Any]:
        """Return what a Pruner saves beside its masks."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` returned."""


class ElementUnits(Units):
    """Elements, blocks or filters of weights, each weight with its own mask."""

    def __init__(self, model: nn.Module, pattern: str, ignore: Sequence[str]) -> None:
        self.pattern = pattern
        weights = find_targets(model, ignore)
        self.targets = [t for t in weights if fits(t, pattern, "Pruner")]
        self.dense = [t.name for t in weights if not any(t is other for other in self.targets)]
        if not self.targets:
            raise ValueError(f"Pruner: pattern {pattern!r} fits no weight of the model")

    def sparsities(self, scope: Mapping[str, float]) -> list[float]:
        globs = Globs(scope)
        chosen = []
        for target in self.targets:
            glob = globs.last(target.name, target.name.rpartition(".")[0])
            if glob is not None:
                chosen.append((target, scope[glob]))
        if globs.unused:
            names = ", ".join(t.name for t in self.targets[:5])
            raise ValueError(
                f"Pruner: scope {globs.unused[0]!r} matches no weight; there are {names}, ..."
            )
        if not all(0 <= sparsity < 1 for _, sparsity in chosen):
            raise ValueError(f"Pruner: sparsities of scope must be in [0, 1), got {dict(scope)}")
        self.targets = [target for target, _ in chosen]
        return [sparsity for _, sparsity in chosen]

    def masks_for(
        self,
        scoring: Scoring,
        step: int,
        sparsity: float | list[float],
        previous: list[Tensor] | None,
        **options: Any,
    ) -> list[Tensor]:
        return bpf.select_mask(
            scoring.of(self.targets, step),
            sparsity,
            previous=previous,
            pattern=self.pattern,
            **options,
        )


class ChannelUnits(Units):
    """Whole channels, in the groups that must go together.

    groups: [family] -> its channels. masks: packed, one bit a channel, as `select_mask` returns
    them.
    """

    def __init__(self, model: nn.Module, call: g.Call, ignore: Sequence[str]) -> None:
        self.model = model
        self.dense = []  # channels fit every weight
        self.atoms = analysed(model, call, "leave", "Pruner")
        self.families = Families(self.atoms, ignore, "Pruner")
        self.groups = list(self.families.members.values())
        # Channels one after the other, and behind them one that stands for all that stays.
        place = {root: i for i, root in enumerate(r for units in self.groups for r in units)}
        self.total = len(place)
        parameters = dict(model.named_parameters())
        self.links: dict[tuple[str, int], Tensor] = {}
        for (name, dim), atoms in self.atoms.links.items():
            at = torch.tensor([place.get(self.atoms.root(a), self.total) for a in atoms])
            if name in parameters and bool((at < self.total).any()):
                self.links[name, dim] = at
        # Layers whose result a ReLU reads -> the channels of that result.
        self.activated: dict[str, Tensor] = {}
        for node in before_relu(self.atoms):
            atoms = self.atoms.values[node][1]
            if atoms is not None:
                at = torch.tensor([place.get(self.atoms.root(a), self.total) for a in atoms])
                self.activated[str(node.target)] = at
        self.masks = [bpf.pack_mask(torch.ones(len(u), dtype=torch.bool)) for u in self.groups]
        self.targets = self._targets()

    def holds(self, family: int, at: Tensor) -> bool:
        """Return whether channels of a family lie along a dimension."""
        first = sum(len(units) for units in self.groups[:family])
        return bool(((at >= first) & (at < first + len(self.groups[family]))).any())

    def _targets(self) -> list[Target]:
        quantizers = {(w.owner, w.attribute): w.quantizer for w in quantized_weights(self.model)}
        found = {}
        for name, _ in self.links:
            prefix, _, attribute = name.rpartition(".")
            owner = self.model.get_submodule(prefix)
            found[name] = Target(name, owner, attribute, quantizers.get((owner, attribute)))
        return list(found.values())

    def sparsities(self, scope: Mapping[str, float]) -> list[float]:
        return list(self.families.sparsities(scope).values())

    def watch(self, scoring: Scoring, model: nn.Module) -> list[Any]:
        if scoring.criterion != "apoz":
            return []
        return [scoring.watch(name, model.get_submodule(name)) for name in self.activated]

    def masks_for(
        self,
        scoring: Scoring,
        step: int,
        sparsity: float | list[float],
        previous: list[Tensor] | None,
        **options: Any,
    ) -> list[Tensor]:
        self.select(self._scores(scoring, step), sparsity, **options)
        masks = self.element_masks()
        return [masks[t.name] for t in self.targets]

    def _scores(self, scoring: Scoring, step: int) -> dict[str, Tensor]:
        """Return the scores of the weights, or of the activated layers, that decide."""
        if scoring.criterion == "apoz":
            return scoring.seen(list(self.activated))
        norms = nn.modules.batchnorm._NormBase
        if scoring.criterion == "bn_gamma":
            scored = [
                t for t in self.targets if isinstance(t.owner, norms) and t.attribute == "weight"
            ]
        else:
            scored = [t for t in self.targets if t.value.dim() > 1]
        return dict(zip((t.name for t in scored), scoring.of(scored, step), strict=True))

    def state(self) -> dict[str, Any]:
        return {"channels": [mask.clone() for mask in self.masks]}

    def load(self, state: Mapping[str, Any]) -> None:
        self.masks = [mask.clone() for mask in state["channels"]]

    def select(
        self, scores: Mapping[str, Tensor], shares: float | list[float], **options: Any
    ) -> None:
        """Takes more channels out, by the mean of what their elements score, relative to the mean
        of each parameter's, so that layers compare."""
        sums = torch.zeros(self.total + 1, dtype=torch.float64)
        counts = torch.zeros_like(sums)

        def add(at: Tensor, values: Tensor) -> None:
            sums.index_add_(0, at, values / values.abs().mean().clamp(min=1e-30))
            counts.index_add_(0, at, torch.ones_like(values))

        for (name, dim), at in self.links.items():
            if name in scores:
                score = scores[name].double()
                others = [d for d in range(score.dim()) if d != dim]
                add(at, (score.mean(others) if others else score).cpu())
        for name, at in self.activated.items():
            if name in scores:
                add(at, scores[name].double().cpu())
        # Channels without a score stay.
        means = torch.where(counts > 0, sums / counts.clamp(min=1), torch.inf).float()[:-1]
        found = list(means.split([len(units) for units in self.groups]))
        if options.get("scope") == "local":
            each = shares if isinstance(shares, list) else [shares] * len(found)
            shares = [0.0 if f.isinf().all() else s for s, f in zip(each, found, strict=True)]
        self.masks = bpf.select_mask(found, shares, previous=self.masks, **options)

    def _kept(self) -> Tensor:
        """Return for each channel whether it stays, and True at the end."""
        parts = zip(self.masks, self.groups, strict=True)
        return torch.cat([*(bpf.unpack_mask(m, [len(u)]) for m, u in parts), torch.ones(1).bool()])

    def element_masks(self) -> dict[str, Tensor]:
        kept = self._kept()
        parameters = dict(self.model.named_parameters())
        masks: dict[str, Tensor] = {}
        for (name, dim), at in self.links.items():
            value = parameters[name]
            shape = [-1 if d == dim else 1 for d in range(value.dim())]
            along = kept[at].to(value.device).view(shape)
            masks[name] = masks[name] & along if name in masks else along
        return {n: bpf.pack_mask(m.expand(parameters[n].shape)) for n, m in masks.items()}

    def removed(self) -> set[int]:
        """The roots of the atoms that are gone."""
        roots = [root for units in self.groups for root in units]
        return {roots[i] for i in (~self._kept()).nonzero().flatten().tolist()}
