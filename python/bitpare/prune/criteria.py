"""Score the importance of each weight; the lowest scores are pruned first."""

from collections.abc import Callable

import torch
from torch import Tensor

from bitpare.prune.targets import Target

# Criteria that sum up scores from the gradients of every step.
FROM_GRADIENTS = ("taylor", "movement")
# Criteria for the pattern "channel" only.
OF_CHANNELS = ("bn_gamma", "apoz")
CRITERIA = ("l1", "l2", "lamp", "random", "fpgm", *OF_CHANNELS, *FROM_GRADIENTS)
Criterion = str | Callable[[str, Tensor], Tensor]


def added_by_step(criterion: str, weight: Tensor, gradient: Tensor) -> Tensor:
    """Return what one step adds to the score.

    taylor: the square of the first-order change of the loss (Molchanov et al. 2019, eq. 8).
    movement: how far the step moves the weight away from 0 (Sanh et al. 2020, eq. 4)."""
    change = weight.detach().float() * gradient.float()
    return change.square() if criterion == "taylor" else -change


def active_share(result: Tensor) -> Tensor:
    """Return how often each channel's activation is above 0 after a ReLU (Hu et al. 2016, eq.
    1)."""
    dims = [d for d in range(result.dim()) if d != 1]
    return (result.detach() > 0).double().mean(dims)


def scores_of(criterion: Criterion, target: Target, seed: int) -> Tensor:
    """Return a score for each element, computed from the weight alone."""
    weight = target.value.detach()
    if weight.dtype == torch.float64:
        weight = weight.float()
    if callable(criterion):
        found = criterion(target.name, weight)
        if found.shape != weight.shape:
            raise ValueError(
                f"Pruner: criterion gave {tuple(found.shape)} scores for {target.name} of shape "
                f"{tuple(weight.shape)}"
            )
        return found.detach()
    if criterion in ("l1", "bn_gamma"):
        return weight.abs()
    if criterion == "l2":
        return weight.float().square()
    if criterion == "lamp":
        return _lamp_scores(weight)
    if criterion == "fpgm":
        return _distances(weight)
    generator = torch.Generator().manual_seed(seed)  # the same on every device
    return torch.rand(weight.shape, generator=generator).to(weight.device)


def _distances(weight: Tensor) -> Tensor:
    """Return the sum of each filter's distances to the others (He et al. 2019, eq. 4)."""
    rows = weight.float().flatten(1)
    sums = torch.cdist(rows, rows).sum(1)
    return sums.view(-1, *[1] * (weight.dim() - 1)).expand(weight.shape)


def _lamp_scores(weight: Tensor) -> Tensor:
    """Return the square of each weight divided by the sum of all squares that are not smaller (Lee
    et al. 2021, eq. 4). With these scores a global threshold suits every layer."""
    squares, order = weight.flatten().float().square().sort(stable=True)
    above = squares.double().flip(0).cumsum(0).flip(0).clamp(min=1e-300)
    scores = torch.empty_like(squares)
    scores[order] = (squares / above).float()
    return scores.view(weight.shape)
