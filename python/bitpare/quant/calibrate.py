"""calibrate: the ranges of activations from data, before training or for inference."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bitpare.errors import Uncalibrated
from bitpare.nn.quantizer import Quantizer
from bitpare.quant.batches import batches_of, run
from bitpare.quant.names import find_hub, unwrapped


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
    loader: Iterable[Any],
    *,
    batches: int | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    microbatch: int | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Runs data through a prepared model in eval and sets the ranges of its activations.

    The first element of a tuple or dict batch goes to the model, on the model's device, unless
    ``forward(model, batch)`` says otherwise. ``microbatch`` cuts batches into smaller ones.
    Running statistics, modes and the ranges of frozen quantizers stay as they are. A second
    calibration starts anew. Returns the model.
    """
    inner = unwrapped(model)
    find_hub(inner, "calibrate")
    found = [m for m in inner.modules() if isinstance(m, Quantizer) and m.observing]
    device = next((p.device for p in inner.parameters()), torch.device("cpu"))
    saved = {q: q.snapshot() for q in found}
    for q in found:
        q.restart()
    count = 0
    try:
        with _calibrating(inner, found):
            for batch in batches_of(loader, batches, progress, "calibrate"):
                run(inner, batch, forward, microbatch, device)
                count += 1
        if count == 0:
            raise ValueError("calibrate: the loader gave no batch")
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
