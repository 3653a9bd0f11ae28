"""Write the numbers of a report to TensorBoard during training."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitpare.batches import Forward, data_or_none
from bitpare.nn.quantizer import Quantizer
from bitpare.nn.weights import quantized_weights
from bitpare.quant.oscillation import Oscillations
from bitpare.quant.qat_schedule import QatSchedule
from bitpare.report.grids import place
from bitpare.report.history import Record
from bitpare.report.layers import measured, on_weight
from bitpare.report.placement import placement
from bitpare.report.recorder import Recorder


class TensorBoard:
    """Write the records of a `Recorder` and histograms to TensorBoard every few applied steps.

    Scalars are ``scale/...``, ``clipped/...``, ``sqnr/...``, ``sparsity/...``,
    ``oscillating/...``, ``frozen/...`` and the numbers given to ``log``. Histograms show the
    weights in steps of their grid.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or a directory for a new one, which
            needs the package tensorboard.
        model: a prepared model, or a float one that is being pruned.
        every: the number of steps between records.
        oscillations: an `Oscillations`, or a `QatSchedule` that has one.
        data: a few batches, as for `calibrate`. They add the clip rate, SQNR and histogram of each
            activation, which takes one more forward pass per record.
        forward: ``forward(model, batch)``, to call the model in another way.

    >>> class Writer:
    ...     def add_scalar(self, tag, value, step): print(step, tag, value)
    ...     def add_histogram(self, tag, values, step): pass
    >>> model = nn.Linear(2, 2)
    >>> board = TensorBoard(Writer(), model, every=2).attach(torch.optim.SGD(model.parameters()))
    >>> board.log(loss=3.0)
    >>> board.step(); board.step()
    2 sparsity/weight 0.0
    2 loss 3.0
    """

    def __init__(
        self,
        writer: Any,
        model: nn.Module,
        every: int = 100,
        *,
        oscillations: Oscillations | QatSchedule | None = None,
        data: Iterable[Any] | None = None,
        forward: Forward | None = None,
    ) -> None:
        self.recorder = Recorder(model, every, oscillations=oscillations)
        self.recorder.listeners.append(self._write)
        self._owned = isinstance(writer, str | os.PathLike)
        self.writer = _new_writer(writer) if self._owned else writer
        for method in ("add_scalar", "add_histogram"):
            if not hasattr(self.writer, method):
                raise TypeError(
                    "report.TensorBoard: writer must be a SummaryWriter or a directory, got "
                    f"{type(writer).__name__} without {method}"
                )
        self.model = self.recorder.model
        few = None if data is None else list(data)  # the batches are read at each record
        self._source = data_or_none("report.TensorBoard", few, None, forward)
        self._prepared = any(isinstance(m, Quantizer) for m in self.model.modules())
        if self._prepared and hasattr(self.writer, "add_text"):
            self.writer.add_text("placement", f"<pre>{placement(self.model)}</pre>", 0)

    def attach(self, optimizer: torch.optim.Optimizer) -> "TensorBoard":
        """Count the optimizer's applied steps from now on, and return this object."""
        self.recorder.attach(optimizer)
        return self

    def step(self) -> None:
        """Count one applied optimizer step. ``attach`` calls it by itself."""
        self.recorder.step()

    def log(self, **scalars: Tensor | float) -> None:
        """Add numbers of this step. Their mean is written with the next record."""
        self.recorder.log(**scalars)

    @torch.no_grad()
    def _write(self, record: Record) -> None:
        step = record.step
        for kind, held in record.found.items():
            for name, value in held.items():
                tag = name if kind == "scalars" else f"{kind}/{name}"
                self.writer.add_scalar(tag, value, step)
        for weight in quantized_weights(self.model):
            q, value = on_weight(weight.quantizer, weight.value)
            if value.numel() and q.calibrated:
                steps = place(q, value).steps
                self.writer.add_histogram(f"weight/{weight.name}", steps.flatten().cpu(), step)
        if self._source is not None and self._prepared:
            self._write_activations(step)

    def _write_activations(self, step: int) -> None:
        for found in measured(self.model, self._source, "report.TensorBoard"):
            if found.q.role != "activation" or found.tally is None or not found.tally.count:
                continue
            numbers = found.tally.numbers()
            for kind in ("clipped", "sqnr"):
                if numbers[kind] is not None:
                    tag = f"{kind}/activation {found.name}"
                    self.writer.add_scalar(tag, numbers[kind], step)
            values = torch.cat(found.tally.sample).cpu()
            self.writer.add_histogram(f"activation/{found.name}", values, step)

    def detach(self) -> None:
        """Stop counting the optimizer's steps."""
        self.recorder.detach()

    def close(self) -> None:
        """Close the writer, if it was created here."""
        if self._owned:
            self.writer.close()

    def state_dict(self) -> dict[str, Any]:
        return self.recorder.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.recorder.load_state_dict(state)


def _new_writer(directory: Any) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "report.TensorBoard needs tensorboard: pip install tensorboard"
        ) from error
    return SummaryWriter(os.fspath(directory))
