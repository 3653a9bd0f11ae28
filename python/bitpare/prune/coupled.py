"""Channels that go together, as a pruner's units: with the columns that read them, biases and
norms."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitpare import functional as bpf
from bitpare import graph as g
from bitpare.nn.weights import quantized_weights
from bitpare.prune.families import Families, analysed
from bitpare.prune.targets import Target


class Coupled:
    """The channels of a model that may go, and those that are gone.

    units: [family] -> its channels; masks: packed, one bit a channel, as `select_mask` gives them.
    """

    def __init__(self, model: nn.Module, call: g.Call, ignore: Sequence[str]) -> None:
        self.model, self.call = model, call
        self.channels = analysed(model, call, "leave", "Pruner")
        self.families = Families(self.channels, ignore, "Pruner")
        self.units = list(self.families.members.values())
        place = {root: (f, i) for f, roots in enumerate(self.units) for i, root in enumerate(roots)}
        # (parameter, dimension) -> of each index the family and the place in it, or None
        self.links = {
            (name, dim): [place.get(self.channels.root(a)) for a in atoms]
            for (name, dim), atoms in self.channels.links.items()
            if name in dict(model.named_parameters())
        }
        self.links = {key: at for key, at in self.links.items() if any(p is not None for p in at)}
        self.masks = [bpf.pack_mask(torch.ones(len(u), dtype=torch.bool)) for u in self.units]

    def targets(self) -> list[Target]:
        quantizers = {(w.owner, w.attribute): w.quantizer for w in quantized_weights(self.model)}
        found = {}
        for name, _ in self.links:
            prefix, _, attribute = name.rpartition(".")
            owner = self.model.get_submodule(prefix)
            found[name] = Target(name, owner, attribute, quantizers.get((owner, attribute)))
        return list(found.values())

    def ratios(self, scope: Mapping[str, float]) -> list[float]:
        """For each family that of the last glob that matches one of its layers, else 0."""
        families = list(self.families.members)
        found = []
        for family in families:
            layers = self.families.layers[family]
            fits = [r for x, r in scope.items() if any(fnmatch.fnmatch(n, x) for n in layers)]
            found.append(fits[-1] if fits else 0.0)
        return found

    def select(
        self, scores: Mapping[str, Tensor], shares: float | list[float], **options: Any
    ) -> None:
        """Takes more channels out, by the mean of what their elements score, relative to the mean
        of each parameter's, so that layers compare."""
        vectors = [torch.zeros(len(units), dtype=torch.float64) for units in self.units]
        counts = [torch.zeros(len(units), dtype=torch.float64) for units in self.units]
        for (name, dim), at in self.links.items():
            if name not in scores:
                continue
            score = scores[name].double()
            others = [d for d in range(score.dim()) if d != dim]
            means = (score.mean(others) if others else score).cpu()
            means = means / means.abs().mean().clamp(min=1e-30)
            for place, value in zip(at, means, strict=True):
                if place is not None:
                    vectors[place[0]][place[1]] += value
                    counts[place[0]][place[1]] += 1
        found = [(v / c.clamp(min=1)).float() for v, c in zip(vectors, counts, strict=True)]
        self.masks = bpf.select_mask(found, shares, previous=self.masks, **options)

    def element_masks(self) -> dict[str, Tensor]:
        kept = [bpf.unpack_mask(m, [len(u)]) for m, u in zip(self.masks, self.units, strict=True)]
        parameters = dict(self.model.named_parameters())
        masks: dict[str, Tensor] = {}
        for (name, dim), at in self.links.items():
            value = parameters[name]
            mask = masks.setdefault(name, torch.ones(value.shape, dtype=torch.bool))
            gone = [i for i, p in enumerate(at) if p is not None and not kept[p[0]][p[1]]]
            mask.index_fill_(dim, torch.tensor(gone, dtype=torch.int64), False)
        return {n: bpf.pack_mask(m.to(parameters[n].device)) for n, m in masks.items()}

    def removed(self) -> set[int]:
        """The roots of the atoms that are gone."""
        kept = [bpf.unpack_mask(m, [len(u)]) for m, u in zip(self.masks, self.units, strict=True)]
        return {
            r
            for u, k in zip(self.units, kept, strict=True)
            for r, stays in zip(u, k, strict=True)
            if not stays
        }
