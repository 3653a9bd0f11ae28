"""The scores by which a Pruner compares weights, and what they are summed up from."""

import zlib
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from bitpare.distributed import world_size
from bitpare.prune.criteria import (
    FROM_GRADIENTS,
    Criterion,
    active_share,
    added_by_step,
    scores_of,
)
from bitpare.prune.targets import Target


class Scoring:
    """The scores of a criterion.

    sums: of each weight (of each layer, for "apoz") what was added up since it was last cleared.
    """

    def __init__(self, criterion: Criterion, seed: int) -> None:
        self.criterion, self.seed = criterion, seed
        self.from_gradients = criterion in FROM_GRADIENTS
        self.sums: dict[str, Tensor] = {}

    def watch(self, name: str, module: nn.Module) -> Any:
        """Sum up how active each channel of a layer's result is, in training; return the hook."""

        def after(layer: nn.Module, args: Any, result: Tensor) -> None:
            if layer.training:
                share = active_share(result)
                before = self.sums.get(name)
                self.sums[name] = share if before is None else before.to(share.device).add_(share)

        return module.register_forward_hook(after)

    def sum_up(self, targets: list[Target]) -> None:
        """Add the gradients of a step, when they are those of all processes."""
        for target in targets:
            gradient = target.value.grad
            if gradient is None:
                continue
            assert isinstance(self.criterion, str)
            added = added_by_step(self.criterion, target.value, gradient)
            before = self.sums.get(target.name)
            self.sums[target.name] = added if before is None else before.add_(added)

    def seen(self, layers: list[str]) -> dict[str, Tensor]:
        """Return what was summed up of these layers' results, on every process the same."""
        names = [name for name in layers if name in self.sums]
        if not names:
            raise RuntimeError("Pruner: criterion 'apoz' has seen no activations before a ReLU yet")
        return dict(zip(names, shared([self.sums[n] for n in names]), strict=True))

    def of(self, targets: list[Target], step: int) -> list[Tensor]:
        """Return a score for each element of each weight, on every process the same."""
        return shared(self._own(targets, step))

    def _own(self, targets: list[Target], step: int) -> list[Tensor]:
        if self.from_gradients:
            missing = [t.name for t in targets if t.name not in self.sums]
            if missing:
                raise RuntimeError(
                    f"Pruner: {missing[0]} got no gradient yet, which criterion "
                    f"{self.criterion!r} needs; call attach(optimizer), or sum_gradients() before "
                    "each optimizer step"
                )
            return [self.sums[t.name] for t in targets]
        seeds = [zlib.crc32(f"{self.seed} {step} {t.name}".encode()) for t in targets]
        return [scores_of(self.criterion, t, s) for t, s in zip(targets, seeds, strict=True)]


def shared(scores: list[Tensor]) -> list[Tensor]:
    """The same scores on every process: their sum."""
    if world_size() == 1:
        return scores
    found = [s.contiguous().clone() for s in scores]
    for s in found:
        torch.distributed.all_reduce(s)
    return found
