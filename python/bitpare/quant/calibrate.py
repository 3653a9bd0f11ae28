"""calibrate: the ranges of activations from data, before training or for inference."""

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
def _calibrating(model: nn.Module, found: list[Quantizer]) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for q in found:
        q.calibrating = True
    try:
        yield
    finally:
        for q in found:
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
    """Run data through a prepared model in eval and set the ranges of its activations.

    Running statistics, modes and the ranges of frozen quantizers stay as they are. A second
    calibration starts anew.

    Args:
        model: a prepared model; it is changed and returned.
        data: an iterable of batches. The model is called with the first element of a tuple or list,
            or the "input" of a dict, on the model's device.
        batches: how many batches are taken; None takes all.
        forward: ``forward(model, batch)``, if the model is to be called in another way.
        microbatch: the most samples in one call; larger batches are cut.
        progress: whether a progress bar is shown; by default on a terminal.
    """
    inner = unwrapped(model)
    find_hub(inner, "calibrate")
    source = Data("calibrate", data, batches=batches, forward=forward, progress=progress)
    found = [m for m in inner.modules() if isinstance(m, Quantizer) and m.observing]
    saved = {q: q.snapshot() for q in found}
    for q in found:
        q.restart()
    try:
        with _calibrating(inner, found):
            for batch in source:
                source.call_in_parts(inner, batch, microbatch)
        for q in found:
            q.conclude()
        _check(found)
    except BaseException:  # nothing is half calibrated
        for q in found:
            q.put_back(saved[q])
        raise
    return model


def _check(found: list[Quantizer]) -> None:
    skipped = [q for q in found if q.skipped]
    empty = [q.name for q in found if q.role == "activation" and not q.calibrated]
    odd = [q.name for q in skipped if not q.calibrated]
    if odd:
        raise Uncalibrated(
            f"calibrate: every batch had NaN or infinite values at {', '.join(odd[:5])}"
        )
    if skipped:
        shown = ", ".join(f"{q.name} ({q.skipped})" for q in skipped[:5])
        warnings.warn(
            f"calibrate: batches with NaN or infinite values were left out at {shown}", stacklevel=3
        )
    if empty:
        warnings.warn(
            f"calibrate: no data reached {', '.join(empty[:5])}; they stay uncalibrated",
            stacklevel=3,
        )
