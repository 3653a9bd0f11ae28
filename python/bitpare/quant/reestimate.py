"""Recompute BatchNorm's running statistics for the current weights and quantizers."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bitpare.batches import Data, Forward
from bitpare.models import unwrapped


@contextmanager
def _batch_statistics(model: nn.Module, norms: list[Any]) -> Iterator[None]:
    """Set the model to eval, but let these norms take the statistics of each batch."""
    modes = {m: m.training for m in model.modules()}
    momenta = [(m, m.momentum, m.num_batches_tracked.clone()) for m in norms]
    fused = [(m, m.bp_tail, m.bp_frozen) for m in norms if hasattr(m, "bp_tail")]
    model.eval()
    for m in norms:
        m.training, m.momentum = True, 1.0
    for m, _, _ in fused:
        m.bp_tail, m.bp_frozen = None, False
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode
        for m, momentum, count in momenta:
            m.momentum = momentum
            m.num_batches_tracked.copy_(count)
        for m, tail, frozen in fused:
            m.bp_tail, m.bp_frozen = tail, frozen


@torch.no_grad()
def reestimate_bn(
    model: nn.Module,
    data: Iterable[Any],
    *,
    batches: int | None = None,
    forward: Forward | None = None,
) -> nn.Module:
    """Recompute the running statistics of BatchNorm as the plain mean over the batches.

    Weights and quantizers are used as they are; nothing else changes.

    Args:
        model: a model with BatchNorm; it is changed and returned.
        data: an iterable of batches, as for `calibrate`.
        batches: the number of batches to use; None uses all.
        forward: ``forward(model, batch)``, to call the model in another way.
    """
    inner = unwrapped(model)
    source = Data("reestimate_bn", data, batches=batches, forward=forward)
    norms: list[Any] = [
        m
        for m in inner.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    statistics = [s for m in norms for s in (m.running_mean, m.running_var)]
    estimates = [s.clone() for s in statistics]
    sums, count = [torch.zeros_like(s) for s in statistics], 0
    try:
        with _batch_statistics(inner, norms):
            for batch in source:
                source.call(inner, batch)
                torch._foreach_add_(sums, statistics)
                count += 1
        estimates = [s / count for s in sums]
    finally:
        for s, value in zip(statistics, estimates, strict=True):
            s.copy_(value)
    return model
