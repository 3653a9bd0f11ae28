"""calibrate: the ranges of activations from data, before training or for inference."""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bitpare.errors import Uncalibrated
from bitpare.nn.quantizer import Quantizer
from bitpare.quant.names import find_hub, unwrapped


def _first(batch: Any) -> Any:
    """What of a batch the model takes: the first element of a tuple, list or dict."""
    if isinstance(batch, dict):
        return next(iter(batch.values()))
    return batch[0] if isinstance(batch, list | tuple) else batch


def _parts(value: Any, size: int | None) -> Iterator[Any]:
    if size is None or not isinstance(value, Tensor):
        yield value
    else:
        yield from value.split(size)


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
            for batch in _progress(loader, batches, progress):
                _run(inner, batch, forward, microbatch, device)
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


def _run(
    model: nn.Module,
    batch: Any,
    forward: Callable[[nn.Module, Any], Any] | None,
    microbatch: int | None,
    device: torch.device,
) -> None:
    if forward is not None:
        forward(model, batch)
        return
    value = _pytree.tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, _first(batch))
    for part in _parts(value, microbatch):
        model(part)


def _progress(loader: Iterable[Any], batches: int | None, show: bool | None) -> Iterator[Any]:
    if batches is not None and batches < 1:
        raise ValueError(f"calibrate: batches must be 1 or more, got {batches}")
    total = len(loader) if isinstance(loader, Sized) else None
    if batches is not None:
        total = batches if total is None else min(batches, total)
    bar = None
    if show or (show is None and sys.stderr.isatty()):
        try:
            from tqdm import tqdm
        except ImportError:
            pass
        else:
            bar = tqdm(total=total, desc="calibrate", unit="batch")
    for index, batch in enumerate(loader):
        if batches is not None and index >= batches:
            break
        yield batch
        if bar is not None:
            bar.update()
    if bar is not None:
        bar.close()


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
