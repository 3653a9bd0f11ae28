"""Groups of channels that a pruner removes as one unit, with the columns that read them, their
biases and norms."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitpare import functional as bpf
from bitpare import graph as g
from bitpare.nn.weights import quantized_weights
from bitpare.prune.channels import before_relu
from bitpare.prune.families import Families, analysed
from bitpare.prune.targets import Target


class Coupled:
    """The channels of a model that may be pruned, and those that are pruned.

    units: [family] -> its channels. masks: [family] -> a packed mask with one bit per channel,
    as `select_mask` returns it."""

    def __init__(self, model: nn.Module, call: g.Call, ignore: Sequence[str]) -> None:
        self.model, self.call = model, call
        self.channels = analysed(model, call, "leave", "Pruner")
        self.families = Families(self.channels, ignore, "Pruner")
        self.units = list(self.families.members.values())
        # Number all channels; the last index stands for everything that is never pruned.
        place = {root: i for i, root in enumerate(r for units in self.units for r in units)}
        self.total = len(place)
        parameters = dict(model.named_parameters())
        self.links: dict[tuple[str, int], Tensor] = {}
        for (name, dim), atoms in self.channels.links.items():
            at = torch.tensor([place.get(self.channels.root(a), self.total) for a in atoms])
            if name in parameters and bool((at < self.total).any()):
                self.links[name, dim] = at
        # Layers that feed a ReLU -> the channels of their result.
        self.activated: dict[str, Tensor] = {}
        for node in before_relu(self.channels):
            atoms = self.channels.values[node][1]
            if atoms is not None:
                at = torch.tensor([place.get(self.channels.root(a), self.total) for a in atoms])
                self.activated[str(node.target)] = at
        self.masks = [bpf.pack_mask(torch.ones(len(u), dtype=torch.bool)) for u in self.units]

    def holds(self, family: int, at: Tensor) -> bool:
        """Return whether channels of a family lie along a dimension."""
        first = sum(len(units) for units in self.units[:family])
        return bool(((at >= first) & (at < first + len(self.units[family]))).any())

    def targets(self) -> list[Target]:
        quantizers = {(w.owner, w.attribute): w.quantizer for w in quantized_weights(self.model)}
        found = {}
        for name, _ in self.links:
            prefix, _, attribute = name.rpartition(".")
            owner = self.model.get_submodule(prefix)
            found[name] = Target(name, owner, attribute, quantizers.get((owner, attribute)))
        return list(found.values())

    def sparsities(self, scope: Mapping[str, float]) -> list[float]:
        """Return the sparsity of each family; see `Families.sparsities`."""
        return list(self.families.sparsities(scope).values())

    def select(
        self, scores: Mapping[str, Tensor], shares: float | list[float], **options: Any
    ) -> None:
        """Prune more channels, those with the lowest scores. A channel's score is the mean score of
        its elements, after each parameter's scores are divided by their mean, so that layers
        compare."""
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
        # Channels without a score are kept.
        means = torch.where(counts > 0, sums / counts.clamp(min=1), torch.inf).float()[:-1]
        found = list(means.split([len(units) for units in self.units]))
        if options.get("scope") == "local":
            each = shares if isinstance(shares, list) else [shares] * len(found)
            shares = [0.0 if f.isinf().all() else s for s, f in zip(each, found, strict=True)]
        self.masks = bpf.select_mask(found, shares, previous=self.masks, **options)

    def _kept(self) -> Tensor:
        """Return for each channel whether it is kept, followed by True for everything else."""
        parts = zip(self.masks, self.units, strict=True)
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
        """Return the roots of the atoms that are pruned."""
        roots = [root for units in self.units for root in units]
        return {roots[i] for i in (~self._kept()).nonzero().flatten().tolist()}
