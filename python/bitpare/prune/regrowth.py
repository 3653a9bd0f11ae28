"""Let some pruned weights come back at certain steps, and prune as many others."""

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from bitpare import functional as bpf
from bitpare.prune.targets import Target
from bitpare.steps import check_steps, step_at


@dataclasses.dataclass
class Regrowth:
    """The times at which some pruned weights come back with value 0, and as many others are pruned.

    Args:
        kind: "rigl" brings back the weights with the largest gradients (Evci et al. 2020), "set"
            random ones (Mocanu et al. 2018).
        when: the times; a float is a fraction of the run, an int an applied step.
        steps: the length of the run in applied steps; fractions in ``when`` need it.
        fraction: the share of the kept weights that is swapped at the first time. It falls to 0
            along a cosine.
    """

    kind: Literal["rigl", "set"]
    when: Sequence[float]
    fraction: float = 0.3
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("rigl", "set"):
            raise ValueError(f"Regrowth: kind must be rigl or set, got {self.kind!r}")
        if not 0 < self.fraction < 1:
            raise ValueError(f"Regrowth: fraction must be in (0, 1), got {self.fraction}")
        length = None if self.steps is None else check_steps("Regrowth", self.steps)
        self.events = sorted(step_at("Regrowth", "when", at, length) for at in self.when)
        if not self.events or self.events[0] < 1:
            raise ValueError("Regrowth: when must hold times after step 0")

    def wants(self, after: int, upto: int) -> bool:
        """Return whether weights come back at one of the steps after + 1 ... upto."""
        return any(after < step <= upto for step in self.events)

    def share_at(self, step: int) -> float:
        """Return the share of the kept weights that is swapped at this step."""
        first, last = self.events[0], self.events[-1]
        span = last - first + 1
        return self.fraction / 2 * (1 + math.cos(math.pi * (step - first) / span))

    def masks(
        self,
        targets: Sequence[Target],
        masks: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        step: int,
        seed: int,
    ) -> list[Tensor]:
        """Return new masks that keep as many weights as before in each layer. "rigl" needs dense
        gradients."""
        return [self._mask(t, masks[t.name], gradients.get(t.name), step, seed) for t in targets]

    def _mask(
        self, target: Target, mask: Tensor, gradient: Tensor | None, step: int, seed: int
    ) -> Tensor:
        weight = target.value.detach()
        kept = bpf.unpack_mask(mask, weight.shape)
        n, held = weight.numel(), int(kept.sum())
        change = min(int(self.share_at(step) * held), n - held)
        if change == 0:
            return mask
        # Prune the weights of the smallest magnitude, then let the best of the pruned ones come
        # back.
        stay = bpf.select_mask(
            [weight.abs()], _share(n - held + change, n), previous=[mask], min_keep=0
        )[0]
        staying = bpf.unpack_mask(stay, weight.shape)
        if self.kind == "rigl" and gradient is not None:
            score = gradient.abs()
        else:
            generator = torch.Generator().manual_seed(
                zlib.crc32(f"{seed} {step} {target.name}".encode())
            )
            score = torch.rand(weight.shape, generator=generator).to(weight.device)
        score = torch.where(kept, -1.0, score.float())
        coming = bpf.select_mask([score], _share(n - change, n), min_keep=0)[0]
        return bpf.pack_mask(staying | bpf.unpack_mask(coming, weight.shape))


def _share(count: int, n: int) -> float:
    """Return a sparsity for which select_mask prunes exactly ``count`` of n weights."""
    return min(count / n, math.nextafter(1.0, 0.0))
