"""Compute the scores by which a Pruner compares weights."""

import zlib
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from bitpare.distributed import world_size
from bitpare.prune.coupled import Coupled
from bitpare.prune.criteria import (
    FROM_GRADIENTS,
    Criterion,
    active_share,
    added_by_step,
    scores_of,
)
from bitpare.prune.targets import Target


class Scoring:
    """The scores of a criterion. ``sums`` holds, for each weight (for "apoz": each layer), what was
    summed up since the last reset."""

    def __init__(
        self, criterion: Criterion, seed: int, targets: list[Target], coupled: Coupled | None
    ) -> None:
        self.criterion, self.seed, self.targets, self.coupled = criterion, seed, targets, coupled
        self.from_gradients = criterion in FROM_GRADIENTS
        self.sums: dict[str, Tensor] = {}

    def watch(self, model: nn.Module) -> list[Any]:
        """Add hooks to the layers whose activations the criterion needs, and return the hooks."""
        if self.criterion != "apoz" or self.coupled is None:
            return []
        return [self._watch(name, model.get_submodule(name)) for name in self.coupled.activated]

    def _watch(self, name: str, module: nn.Module) -> Any:
        """Sum up how active each channel of a layer's result is during training."""

        def after(layer: nn.Module, args: Any, result: Tensor) -> None:
            if layer.training:
                share = active_share(result)
                held = self.sums.get(name)
                self.sums[name] = share if held is None else held.to(share.device).add_(share)

        return module.register_forward_hook(after)

    def sum_up(self) -> None:
        """Add the gradients of a step to the sums, once they are reduced over all processes."""
        for target in self.targets:
            gradient = target.value.grad
            if gradient is None:
                continue
            assert isinstance(self.criterion, str)
            added = added_by_step(self.criterion, target.value, gradient)
            held = self.sums.get(target.name)
            self.sums[target.name] = added if held is None else held.add_(added)

    def _scored(self) -> list[Target]:
        """Return the weights whose scores are compared."""
        if self.coupled is None:
            return self.targets
        if self.criterion == "bn_gamma":
            norms = nn.modules.batchnorm._NormBase
            return [
                t for t in self.targets if isinstance(t.owner, norms) and t.attribute == "weight"
            ]
        return [t for t in self.targets if t.value.dim() > 1]

    def of_channels(self, step: int) -> dict[str, Tensor]:
        names = [t.name for t in self._scored()]
        if self.criterion != "apoz":
            return dict(zip(names, shared(self._scores(step)), strict=True))
        assert self.coupled is not None
        layers = [name for name in self.coupled.activated if name in self.sums]
        if not layers:
            raise RuntimeError("Pruner: criterion 'apoz' has seen no activations before a ReLU yet")
        return dict(zip(layers, shared([self.sums[n] for n in layers]), strict=True))

    def of_weights(self, step: int) -> list[Tensor]:
        """Return a score for each element of each weight, the same on every process."""
        return shared(self._scores(step))

    def _scores(self, step: int) -> list[Tensor]:
        if self.from_gradients:
            missing = [t.name for t in self._scored() if t.name not in self.sums]
            if missing:
                raise RuntimeError(
                    f"Pruner: {missing[0]} got no gradient yet, which criterion "
                    f"{self.criterion!r} needs; call attach(optimizer), or sum_gradients() before "
                    "each optimizer step"
                )
            return [self.sums[t.name] for t in self._scored()]
        found = []
        for target in self._scored():
            seed = zlib.crc32(f"{self.seed} {step} {target.name}".encode())
            found.append(scores_of(self.criterion, target, seed))
        return found


def shared(scores: list[Tensor]) -> list[Tensor]:
    """Return the sum of the scores over all processes."""
    if world_size() == 1:
        return scores
    found = [s.contiguous().clone() for s in scores]
    for s in found:
        torch.distributed.all_reduce(s)
    return found
