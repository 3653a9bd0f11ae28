"""Set the ranges of activations from data, before training or for inference."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bitpare.batches import Data, Forward
from bitpare.errors import Uncalibrated
from bitpare.models import unwrapped
from bitpare.nn.hub import find_hub
from bitpare.nn.quantizer import Quantizer


@contextmanager
def _calibrating(model: nn.Module, quantizers: list[Quantizer]) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for q in quantizers:
        q.calibrating = True
    try:
        yield
    finally:
        for q in quantizers:
            q.calibrating = False
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def calibrate(
    model: nn.Module,
    data: Iterable[Any],
    *,
    batches: int | None = None,
    forward: Forward | None = None,
    microbatch: int | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Run data through a prepared model in eval mode and set the ranges of its activations.

    Running statistics, modes and the ranges of frozen quantizers stay unchanged. A second call
    discards the ranges of the first.

    Args:
        model: a prepared model; it is changed and returned.
        data: an iterable of batches. The model is called with the first element of a tuple or list,
            or the "input" of a dict, on the model's device.
        batches: the number of batches to use; None uses all.
        forward: ``forward(model, batch)``, to call the model in another way.
        microbatch: the largest number of samples in one call; larger batches are split.
        progress: whether to show a progress bar; None shows one on a terminal.
    """
    inner = unwrapped(model)
    find_hub(inner, "calibrate")
    source = Data("calibrate", data, batches=batches, forward=forward, progress=progress)
    quantizers = [m for m in inner.modules() if isinstance(m, Quantizer) and m.observing]
    saved = {q: q.snapshot() for q in quantizers}
    for q in quantizers:
        q.restart()
    try:
        with _calibrating(inner, quantizers):
            for batch in source:
                source.call_in_parts(inner, batch, microbatch)
        for q in quantizers:
            q.conclude()
        _check(quantizers)
    except BaseException:  # restore the old ranges, so that no model is left half calibrated
        for q in quantizers:
            q.put_back(saved[q])
        raise
    return model


def _check(quantizers: list[Quantizer]) -> None:
    skipped = [q for q in quantizers if q.skipped]
    empty = [q.name for q in quantizers if q.role == "activation" and not q.calibrated]
    odd = [q.name for q in skipped if not q.calibrated]
    if odd:
        raise Uncalibrated(
            f"calibrate: every batch had NaN or infinite values at {', '.join(odd[:5])}"
        )
    if skipped:
        places = ", ".join(f"{q.name} ({q.skipped})" for q in skipped[:5])
        warnings.warn(
            f"calibrate: batches with NaN or infinite values were left out at {places}",
            stacklevel=3,
        )
    if empty:
        warnings.warn(
            f"calibrate: no data reached {', '.join(empty[:5])}; they stay uncalibrated",
            stacklevel=3,
        )
