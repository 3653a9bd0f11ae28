"""Read batches of the user's data, and pass them to a model."""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bitpare.models import device_of

Forward: TypeAlias = Callable[[nn.Module, Any], Any]


def first_of(batch: Any) -> Any:
    """Return the part of a batch that is passed to the model: the first element of a tuple or
    list, the "input" of a dict."""
    if isinstance(batch, dict | list | tuple) and not batch:
        raise ValueError(f"a batch must hold an input, got an empty {type(batch).__name__}")
    if isinstance(batch, dict):
        if "input" not in batch:
            names = ", ".join(repr(name) for name in batch)
            raise ValueError(
                f'a batch that is a dict must hold "input", got {names}; give forward= to say how '
                "the model is called"
            )
        return batch["input"]
    return batch[0] if isinstance(batch, list | tuple) else batch


def moved(value: Any, device: torch.device) -> Any:
    """Return a value with its tensors on a device."""
    return _pytree.tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, value)


class Data:
    """The batches of ``data``, and how to call a model with them.

    Args:
        caller: the function that errors name.
        data: an iterable of batches.
        batches: the number of batches to use; None uses all.
        forward: ``forward(model, batch)`` calls the model. By default the model is called with the
            first element of a tuple or list, or the "input" of a dict, on the model's device.
        progress: whether to show a progress bar; None shows one on a terminal.
    """

    def __init__(
        self,
        caller: str,
        data: Iterable[Any],
        *,
        batches: int | None = None,
        forward: Forward | None = None,
        progress: bool | None = False,
    ) -> None:
        if isinstance(data, Tensor):
            raise TypeError(
                f"{caller}: data must be an iterable of batches, got a tensor; give [tensor]"
            )
        if not isinstance(data, Iterable) or isinstance(data, str | bytes):
            raise TypeError(
                f"{caller}: data must be an iterable of batches, got {type(data).__name__}"
            )
        if batches is not None and (isinstance(batches, bool) or not isinstance(batches, int)):
            raise TypeError(f"{caller}: batches must be an int (their number), got {batches!r}")
        if batches is not None and batches < 1:
            raise ValueError(f"{caller}: batches must be 1 or more, got {batches}")
        if forward is not None and not callable(forward):
            raise TypeError(f"{caller}: forward must be a function (model, batch), got {forward!r}")
        self.caller, self.data, self.batches = caller, data, batches
        self.forward, self.progress = forward, progress

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches; raise ValueError at the end if there was none."""
        total = len(self.data) if isinstance(self.data, Sized) else None
        taken = self.data
        if self.batches is not None:
            total = self.batches if total is None else min(self.batches, total)
            taken = itertools.islice(self.data, self.batches)
        count = 0
        for batch in progress_over(taken, self.progress, self.caller, "batch", total):
            count += 1
            yield batch
        if count == 0:
            raise ValueError(f"{self.caller}: data gave no batch")

    def call(self, model: nn.Module, batch: Any) -> Any:
        """Call a model with a batch and return its result."""
        if self.forward is not None:
            return self.forward(model, batch)
        return model(moved(first_of(batch), device_of(model)))

    def call_in_parts(self, model: nn.Module, batch: Any, size: int | None) -> None:
        """Call a model with a batch, split into parts of at most ``size`` samples."""
        value = None if self.forward is not None or size is None else first_of(batch)
        if not isinstance(value, Tensor):
            self.call(model, batch)
            return
        for part in value.to(device_of(model)).split(size):  # type: ignore[no-untyped-call]
            model(part)


def data_or_none(
    caller: str, data: Iterable[Any] | None, batches: int | None, forward: Forward | None
) -> Data | None:
    """Return the data, or None without data; then batches and forward must be None too."""
    if data is not None:
        return Data(caller, data, batches=batches, forward=forward)
    if batches is not None or forward is not None:
        raise ValueError(f"{caller}: batches= and forward= need data=")
    return None


def progress_over(
    items: Iterable[Any], show: bool | None, what: str, unit: str, total: int | None = None
) -> Iterator[Any]:
    """Yield the items, with a progress bar if ``show`` is true, or None on a terminal."""
    if show or (show is None and sys.stderr.isatty()):
        try:
            from tqdm import tqdm
        except ImportError:
            pass
        else:
            items = tqdm(items, total=total, desc=what, unit=unit)
    yield from items
