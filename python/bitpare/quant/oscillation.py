"""Track weights that oscillate between two integers, and freeze them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitpare import functional as bpf
from bitpare.models import unwrapped
from bitpare.nn.hub import find_hub
from bitpare.nn.learned import LearnedQuantizer
from bitpare.nn.quantizer import Quantizer
from bitpare.nn.ranges import RangeQuantizer, refresh_scales
from bitpare.nn.weights import QuantizedWeight, is_sharded, quantized_weights
from bitpare.steps import Hooks, check_owned, found_inf_of

_STATE = {
    "code": torch.int16,
    "turn": torch.int8,
    "frequency": torch.float32,
    "mean": torch.float32,
}
_FROZEN = 2


@dataclasses.dataclass
class _Tracked:
    weight: QuantizedWeight
    state: dict[str, Tensor]
    limits: tuple[int, int] | None = None  # limits of the grid that the state belongs to

    def begins(self) -> bool:
        grid = self.weight.quantizer.grid
        before, self.limits = self.limits, (grid.quant_min, grid.quant_max)
        return before != self.limits


class Oscillations:
    """Track how often the integer of each weight oscillates, and freeze weights that oscillate too
    often (Nagel et al. 2022, alg. 1).

    A weight oscillates when its integer changes in the opposite direction to its last change. The
    frequency is a running mean of these events over the applied optimizer steps. A weight above
    ``freeze_above`` is frozen at its mean integer for the rest of the training. Usual thresholds
    are 0.01 to 0.04, lowered in the course of training:
    ``QatSchedule(freeze_oscillating={0.2: 0.04, ...})`` does so.

    Args:
        model: a prepared model.
        momentum: the momentum of the running mean, in (0, 1].
        freeze_above: the frequency above which a weight is frozen; None only tracks.


    Weights on a fixed symmetric integer grid are tracked, with scales from their range or learned
    (LSQ); ``untracked`` says why others are not. Tracking starts again after a change of bits and
    when a quantizer was off. It needs 11 bytes per weight, and one pass over the weights each step.

    >>> import bitpare as bp
    >>> qat = bp.prepare(nn.Sequential(nn.Linear(4, 2)), example_inputs=(torch.ones(1, 4),))
    >>> optimizer = torch.optim.SGD(qat.parameters(), lr=0.1)
    >>> oscillations = Oscillations(qat, freeze_above=0.02).attach(optimizer)
    >>> print(oscillations)
    1 weight tensors: 0.0 % of 8 weights oscillate, 0.0 % are frozen
    """

    def __init__(
        self, model: nn.Module, *, momentum: float = 0.01, freeze_above: float | None = None
    ) -> None:
        find_hub(model, "Oscillations")
        if not 0 < momentum <= 1:
            raise ValueError(f"Oscillations: momentum must be in (0, 1], got {momentum}")
        if freeze_above is not None and freeze_above < 0:
            raise ValueError(f"Oscillations: freeze_above must be 0 or more, got {freeze_above}")
        self._model, self.momentum, self.freeze_above = unwrapped(model), momentum, freeze_above
        self.untracked: dict[str, str] = {}
        self._tracked: list[_Tracked] = []
        self._attached = Hooks()
        seen: set[int] = set()
        for weight in quantized_weights(self._model):
            value = weight.value
            reason = "shared with a layer before" if id(value) in seen else _why_not(weight)
            seen.add(id(value))
            if reason is not None:
                self.untracked[weight.name] = reason
                continue
            state = {
                name: torch.zeros(value.numel(), dtype=dtype, device=value.device)
                for name, dtype in _STATE.items()
            }
            self._tracked.append(_Tracked(weight, state))

    def attach(self, optimizer: torch.optim.Optimizer) -> "Oscillations":
        """Track the weights after each step of the optimizer, and return this object."""
        check_owned(optimizer, self._model, "Oscillations")
        hook = optimizer.register_step_post_hook(lambda o, args, kwargs: self.step(found_inf_of(o)))
        self._attached.add(hook)
        return self

    def detach(self) -> None:
        """Stop tracking. Frozen weights are free to change again."""
        self._attached.remove()

    @torch.no_grad()
    def step(self, skip: Tensor | None = None) -> None:
        """Track the weights after an applied step. ``attach`` calls it by itself. ``skip``: a
        tensor that is above 0 if the step was skipped, as a GradScaler leaves it on the device."""
        on = []
        for tracked in self._tracked:
            if tracked.weight.quantizer.quantizing and tracked.weight.quantizer.calibrated:
                on.append(tracked)
            else:
                tracked.limits = None
        refresh_scales([t.weight for t in on])
        for tracked in on:
            quantizer: Any = tracked.weight.quantizer
            bpf.track_oscillations_(
                tracked.weight.value,
                quantizer.scale,
                quantizer.control,
                **tracked.state,
                momentum=self.momentum,
                threshold=self.freeze_above,
                first=tracked.begins(),
                skip=skip,
            )

    def shares(self, above: float = 0.005) -> dict[str, tuple[float, float]]:
        """Return for each weight two percentages: the part that oscillates with a frequency above
        ``above``, and the part that is frozen."""
        percentages = {}
        for tracked in self._tracked:
            state = tracked.state
            frozen = state["turn"] == _FROZEN
            moving = (state["frequency"] > above) & ~frozen
            count = max(frozen.numel(), 1)
            percentages[tracked.weight.name] = (
                100.0 * int(moving.sum()) / count,
                100.0 * int(frozen.sum()) / count,
            )
        return percentages

    def __str__(self) -> str:
        sizes = {t.weight.name: t.weight.value.numel() for t in self._tracked}
        total = max(sum(sizes.values()), 1)
        shares = self.shares()
        moving, frozen = (sum(shares[n][k] * size for n, size in sizes.items()) for k in (0, 1))
        return (
            f"{len(sizes)} weight tensors: {moving / total:.1f} % of {sum(sizes.values())} weights "
            f"oscillate, {frozen / total:.1f} % are frozen"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the tracking state of each weight, by the weight's name."""
        return {
            t.weight.name: {**{k: v.clone() for k, v in t.state.items()}, "limits": t.limits}
            for t in self._tracked
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that was saved for the same weights."""
        names = {t.weight.name for t in self._tracked}
        if names != set(state):
            odd = sorted(names ^ set(state))
            raise ValueError("Oscillations: the state is of other weights: " + ", ".join(odd[:5]))
        for t in self._tracked:
            theirs = state[t.weight.name]
            t.limits = None if theirs["limits"] is None else tuple(theirs["limits"])
            for name, value in t.state.items():
                value.copy_(theirs[name])


def _why_not(weight: QuantizedWeight) -> str | None:
    q: Quantizer = weight.quantizer
    value = weight.value
    if is_sharded(value):
        return "sharded"
    learned = isinstance(q, LearnedQuantizer) and q.kind == "lsq"
    if not (learned or isinstance(q, RangeQuantizer)) or q.spec.is_float:
        return f"{type(q).__name__} has no fixed integer grid"
    if not q.grid.symmetric:
        return "asymmetric"
    if q.grid.axis not in (None, 0):
        return "its scales do not lie along dimension 0"
    if q.grid.group is not None and not value.is_contiguous():
        return "groups of a weight that is not contiguous"
    return None
