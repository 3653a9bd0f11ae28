"""Record the state of a model every few steps of its training."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitpare import functional as bpf
from bitpare.errors import Unsupported
from bitpare.models import unwrapped
from bitpare.nn.quantizer import Quantizer
from bitpare.nn.weights import QuantizedWeight, is_sharded, quantized_weights
from bitpare.prune.targets import Target, find_targets
from bitpare.quant.oscillation import Oscillations
from bitpare.quant.qat_schedule import QatSchedule
from bitpare.report.grids import place, power
from bitpare.report.history import History, Record, records_of
from bitpare.report.layers import on_weight
from bitpare.steps import Attached, StepCounter

KINDS = ("scale", "clipped", "sqnr", "sparsity", "oscillating", "frozen", "scalars")
_STEADY = 2.0**-40


class EveryFew(StepCounter):
    """Calls ``apply(step)`` at each multiple of ``every``."""

    def __init__(self, every: int, apply: Callable[[int], None]) -> None:
        super().__init__([], apply)
        self.every = every

    def _next(self, after: int | None = None) -> int | None:
        after = self._applied if after is None else after
        return (after // self.every + 1) * self.every

    def reset(self, step: int) -> None:
        super().reset(step)
        self._applied = step - step % self.every


class Recorder(Attached, History):
    """Record a model's state every few applied steps, for plots over time.

    For each quantizer it records the mean scale. For each weight it records the clipped share,
    the SQNR in dB and the share of zeros. With ``oscillations`` it records the shares of
    oscillating and frozen weights. It also records the numbers given to ``log``. Steps between
    records only count, and do not read from the device. A float model that is being pruned is
    recorded by its sparsity.

    Attach it after the pruner and the schedule, so that it sees their changes of the same step.

    Args:
        model: a prepared model, or a float one that is being pruned.
        every: the number of steps between records.
        oscillations: an `Oscillations`, or a `QatSchedule` that has one.

    >>> model = nn.Linear(4, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> recorder = Recorder(model, every=2).attach(optimizer)
    >>> for step in range(4):
    ...     loss = model(torch.ones(1, 4)).square().sum()
    ...     recorder.log(loss=loss)
    ...     loss.backward(); optimizer.step()
    >>> [record.step for record in recorder.records], recorder.names("sparsity")
    ([2, 4], ['weight'])
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 10,
        *,
        oscillations: Oscillations | QatSchedule | None = None,
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"Recorder: every must be 1 or more, got {every}")
        if isinstance(oscillations, QatSchedule):
            if oscillations.oscillations is None:
                raise ValueError("Recorder: the schedule has no freeze_oscillating")
            oscillations = oscillations.oscillations
        self.model, self.every, self.oscillations = unwrapped(model), every, oscillations
        try:
            self._targets = find_targets(self.model, ())
        except (ValueError, Unsupported):  # no weights to prune, or they are sharded
            self._targets = []
        self.counter = EveryFew(every, self._record)
        self._pending: dict[str, tuple[Any, int]] = {}
        self.listeners: list[Callable[[Record], None]] = []

    def log(self, **scalars: Tensor | float) -> None:
        """Add numbers of this step. A record holds their mean since the last record. Tensors stay
        on the device until then."""
        for name, value in scalars.items():
            if isinstance(value, Tensor):
                if value.numel() != 1:
                    raise ValueError(
                        f"Recorder.log: {name} must be one number, got shape {tuple(value.shape)}"
                    )
                value = value.detach().reshape(()).double()
            total, count = self._pending.get(name, (0.0, 0))
            self._pending[name] = (total + value, count + 1)

    def now(self) -> Record:
        """Add a record of the current model, and return it."""
        self._record(self.counter.count())
        return self.records[-1]

    @torch.no_grad()
    def _record(self, step: int) -> None:
        found: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
        self._note_quantizers(found)
        for target in self._targets:
            found["sparsity"][target.name] = _sparsity(target)
        for name, (total, count) in self._pending.items():
            found["scalars"][name] = total / count
        self._pending = {}
        read = _read(found)
        if self.oscillations is not None:
            for name, (moving, frozen) in self.oscillations.shares().items():
                read["oscillating"][name], read["frozen"][name] = moving / 100, frozen / 100
        for name, noise in read.pop("noise").items():
            read["sqnr"][name] = noise
        if self.records and self.records[-1].step == step:
            self.records.pop()
        self.records.append(Record(step, {k: v for k, v in read.items() if v}))
        for listener in self.listeners:
            listener(self.records[-1])

    def _note_quantizers(self, found: dict[str, dict[str, Any]]) -> None:
        found["noise"] = {}
        seen: set[str] = set()
        for weight in quantized_weights(self.model):
            if not is_sharded(weight.value) and weight.name not in seen:
                seen.add(weight.name)
                self._note_weight(weight, found)
        for q in (m for m in self.model.modules() if isinstance(m, Quantizer)):
            scale = getattr(q, "scale", None)
            if q.role == "activation" and q.calibrated and isinstance(scale, Tensor):
                name = q.name if q.name not in found["scale"] else f"{q.name} (activation)"
                found["scale"][name] = scale.double().mean()

    def _note_weight(self, weight: QuantizedWeight, found: dict[str, dict[str, Any]]) -> None:
        q, value = on_weight(weight.quantizer, weight.value)
        if not q.calibrated:
            return
        placed = place(q, value)
        scale = getattr(q, "scale", None)
        if isinstance(scale, Tensor):
            found["scale"][weight.name] = scale.double().mean()
        if placed.clipped is not None:
            found["clipped"][weight.name] = placed.clipped.double() / max(value.numel(), 1)
        signal, noise = power(placed.wanted), power(placed.wanted - placed.got)
        if value.numel():
            ratio = (signal + _STEADY**2) / noise.clamp(min=_STEADY**2)
            found["noise"][weight.name] = 10 * torch.log10(ratio)

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.counter.count(),
            "every": self.every,
            "records": [dataclasses.asdict(r) for r in self.records],
            "pending": {n: (float(total), count) for n, (total, count) in self._pending.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.records = records_of(state)
        self._pending = {n: (total, count) for n, (total, count) in state["pending"].items()}
        self.counter.reset(int(state["step"]))


def _sparsity(target: Target) -> Tensor:
    value, q = target.value.detach(), target.quantizer
    if q is not None and q.mask is not None:
        value = bpf.apply_mask(value, q.mask, mode=q.mask_mode)
    return (value == 0).double().mean()


def _read(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Read the values from the devices, with one read per device."""
    places = [(k, n, v) for k, held in found.items() for n, v in held.items()]
    made: dict[str, dict[str, float]] = {kind: {} for kind in found}
    by_device: dict[torch.device, list[tuple[str, str, Tensor]]] = {}
    for kind, name, value in places:
        if isinstance(value, Tensor):
            by_device.setdefault(value.device, []).append((kind, name, value))
        else:
            made[kind][name] = float(value)
    for held in by_device.values():
        numbers = torch.stack([v.double() for _, _, v in held]).tolist()
        for (kind, name, _), number in zip(held, numbers, strict=True):
            made[kind][name] = number
    return {k: {n: made[k][n] for n in found[k]} for k in found}
