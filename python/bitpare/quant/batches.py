"""Running a user's data through a model."""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree


def first_of(batch: Any) -> Any:
    """Return the part of a batch that is passed to the model: the first element of a tuple,
    list or dict."""
    if isinstance(batch, dict | list | tuple) and not batch:
        raise ValueError(f"a batch must hold an input, got an empty {type(batch).__name__}")
    if isinstance(batch, dict):
        return next(iter(batch.values()))
    return batch[0] if isinstance(batch, list | tuple) else batch


def _parts(value: Any, size: int | None) -> Iterator[Any]:
    if size is None or not isinstance(value, Tensor):
        yield value
    else:
        yield from value.split(size)


def run(
    model: nn.Module,
    batch: Any,
    forward: Callable[[nn.Module, Any], Any] | None,
    microbatch: int | None,
    device: torch.device,
) -> None:
    if forward is not None:
        forward(model, batch)
        return
    value = _pytree.tree_map(
        lambda v: v.to(device) if isinstance(v, Tensor) else v, first_of(batch)
    )
    for part in _parts(value, microbatch):
        model(part)


def batches_of(
    loader: Iterable[Any], batches: int | None, show: bool | None, caller: str
) -> Iterator[Any]:
    """The first batches of a loader; ``show`` a progress bar, by default on a terminal."""
    if batches is not None and batches < 1:
        raise ValueError(f"{caller}: batches must be 1 or more, got {batches}")
    total = len(loader) if isinstance(loader, Sized) else None
    if batches is not None:
        total = batches if total is None else min(batches, total)
    limited = loader if batches is None else itertools.islice(loader, batches)
    yield from progress_over(limited, show, caller, "batch", total)


def progress_over(
    items: Iterable[Any], show: bool | None, what: str, unit: str, total: int | None = None
) -> Iterator[Any]:
    """The items, under a progress bar where that is shown: by default on a terminal."""
    if show or (show is None and sys.stderr.isatty()):
        try:
            from tqdm import tqdm
        except ImportError:
            pass
        else:
            items = tqdm(items, total=total, desc=what, unit=unit)
    yield from items
