"""Measure what each quantizer does to its values, layer by layer."""

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bitpare import functional as bpf
from bitpare import graph as g
from bitpare.batches import Data, Forward, data_or_none
from bitpare.errors import Unsupported
from bitpare.models import device_of, unwrapped
from bitpare.nn import layers as nn_layers
from bitpare.nn.hub import find_hub
from bitpare.nn.quantizer import Quantizer
from bitpare.nn.weights import is_sharded, quantized_weights
from bitpare.report.svg import percent
from bitpare.report.tally import Tally
from bitpare.text import table


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """The measurements of one quantizer; None if unknown.

    scale: the mean of its ``scales`` scales. learned: whether it is trained. clipped: the share
    of values beyond the grid. sqnr: the ratio of signal to quantization noise in dB, inf
    without rounding. gain: how many dB the range with the smallest squared error would improve
    this. best: that range, of the widest channel. levels: the share of the grid's levels in
    use. sparsity: the share of values that are 0. zeros: the share that quantization turns into
    0."""

    name: str
    role: str
    form: str
    bits: int
    scales: int
    scale: float | None
    learned: bool = False
    count: int = 0
    clipped: float | None = None
    sqnr: float | None = None
    gain: float | None = None
    best: tuple[float, float] | None = None
    levels: float | None = None
    sparsity: float | None = None
    zeros: float | None = None
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None


@dataclasses.dataclass(frozen=True)
class Layers:
    """The result of `layers`, with one row per quantizer. It prints as a table."""

    rows: list[LayerRow]

    def worst(self, count: int = 5) -> list[LayerRow]:
        """Return the rows with the lowest SQNR, lowest first."""
        known = [r for r in self.rows if r.sqnr is not None]
        return sorted(known, key=lambda r: r.sqnr or 0.0)[:count]

    def __str__(self) -> str:
        head = ["quantizer of", "role", "integers", "scales", "scale", "clipped", "SQNR dB", "gain",
                "levels", "0 before", "0 after", "min", "max", "mean", "std"]  # fmt: skip
        return "\n".join(table(head, [_cells(r) for r in self.rows]))

    def to_json(self) -> str:
        return json.dumps(plain([dataclasses.asdict(r) for r in self.rows]), indent=1)


def plain(value: Any) -> Any:
    """Return a value that JSON can hold, with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cells(row: LayerRow) -> list[str]:
    def shown(value: float | None, form: Callable[[float], str]) -> str:
        return "-" if value is None else form(value)

    def general(value: float) -> str:
        return f"{value:.4g}"

    def tenths(value: float) -> str:
        return f"{value:.1f}"

    return [
        row.name,
        row.role,
        row.form,
        str(row.scales),
        shown(row.scale, general),
        shown(row.clipped, percent),
        shown(row.sqnr, tenths),
        shown(row.gain, tenths),
        *(shown(v, percent) for v in (row.levels, row.sparsity, row.zeros)),
        *(shown(v, general) for v in (row.min, row.max, row.mean, row.std)),
    ]


def layers(
    model: nn.Module,
    data: Iterable[Any] | None = None,
    *,
    batches: int | None = None,
    forward: Forward | None = None,
) -> Layers:
    """Measure each quantizer of a prepared model: scale, clip rate, SQNR, used levels, zeros,
    range.

    Weights are measured as they are. Activations need ``data``. Each quantizer gets the values
    of the float model, so that its error is its own. The model is not changed.

    Args:
        model: a prepared model.
        data: an iterable of batches, as for `calibrate`; without it activations are not measured.
        batches: the number of batches to use; None uses all.
        forward: ``forward(model, batch)``, to call the model in another way.

    >>> import bitpare as bp
    >>> qat = bp.prepare(nn.Sequential(nn.Linear(4, 2)), example_inputs=(torch.ones(1, 4),))
    >>> [(row.name, row.form, row.clipped) for row in layers(qat).rows]
    [('0', 's8', 0.0), ('input', 'u8', None)]
    """
    source = data_or_none("report.layers", data, batches, forward)
    return Layers([m.row() for m in measured(model, source, "report.layers")])


@dataclasses.dataclass
class Measured:
    """A quantizer and the counts of its values. position: its place in the order of the forward
    pass, if known. learned: whether its scale is trained."""

    name: str
    q: Any
    tally: Tally | None
    position: int
    learned: bool = False
    _row: LayerRow | None = None

    def row(self) -> LayerRow:
        if self._row is None:
            self._row = self._made()
        return self._row

    def _made(self) -> LayerRow:
        q = self.q
        scale = getattr(q, "scale", None)
        known = isinstance(scale, Tensor) and q.calibrated
        start = LayerRow(
            name=self.name,
            role=q.role,
            form=form_of(q),
            bits=q.bits,
            scales=scale.numel() if isinstance(scale, Tensor) else 1,
            scale=float(scale.detach().mean()) if known else None,  # type: ignore[union-attr]
            learned=self.learned or isinstance(scale, nn.Parameter),
        )
        if self.tally is None or self.tally.count == 0:
            return start
        gain = self.tally.gain()
        return dataclasses.replace(
            start,
            count=self.tally.count,
            gain=None if gain is None else gain[0],
            best=None if gain is None else gain[1:],
            **self.tally.numbers(),  # type: ignore[arg-type]
        )


def form_of(q: Quantizer) -> str:
    if q.spec.is_float:
        return f"e{q.spec.exponent}m{q.spec.mantissa}"
    return q.integer_form()


def measured(model: nn.Module, source: Data | None, caller: str) -> list[Measured]:
    """Measure the weights in the order of the modules, then the activations in that of the
    forward."""
    inner = unwrapped(model)
    find_hub(inner, caller)
    found = [_of_weight(w.name, w.value, w.quantizer, caller) for w in quantized_weights(inner)]
    activations = _of_activations(inner, source)
    return _named([*found, *activations])


def _of_weight(name: str, value: Tensor, quantizer: Quantizer, caller: str) -> Measured:
    if is_sharded(value):
        raise Unsupported(f"{caller}: {name} is sharded; measure a model that is whole")
    q, value = on_weight(quantizer, value)
    tally = Tally(q, value.device)
    if value.numel():
        tally.add(value)
    return Measured(q.name, q, tally, 0)


@torch.no_grad()
def on_weight(quantizer: Quantizer, value: Tensor) -> tuple[Any, Tensor]:
    """Return a calibrated copy of a weight's quantizer in eval, switched on, and the masked weight.
    A weight with NaN leaves the copy uncalibrated."""
    q: Any = copy.deepcopy(quantizer).eval()
    turn_on(q)
    value = value.detach()
    if q.mask is not None:
        value = bpf.apply_mask(value, q.mask, mode=q.mask_mode)
    if bool(torch.isfinite(value).all()):
        q.quantize(value)
    else:
        q.calibrated = False
    return q, value


def turn_on(q: Quantizer) -> None:
    q.bypass = q.calibrating = False
    q.set_flags(quantize=True)


def _of_activations(model: nn.Module, source: Data | None) -> list[Measured]:
    if source is None:
        return [Measured(q.name, q, None, i) for i, q in enumerate(_activations_of(model))]
    probe = probe_of(model)
    held = _activations_of(probe)
    for q in held:
        turn_on(q)
    device = device_of(probe)
    found = {q: Measured(q.name, q, Tally(q, device), len(held) + i) for i, q in enumerate(held)}
    reached: list[Quantizer] = []

    def look_at(q: Quantizer) -> Callable[[Tensor], None]:
        def look(x: Tensor) -> None:
            if q not in reached:
                found[q].position = len(reached)
                reached.append(q)
            tally = found[q].tally
            if tally is not None and x.numel():
                q.calibrating = False
                tally.add(x)
                q.calibrating = True

        return look

    for q in probe.modules():
        if isinstance(q, Quantizer):
            q.calibrating = True  # passes values on unchanged, and shows them to ``observe``
            q.observe = look_at(q) if q.role == "activation" else _ignore  # type: ignore
    with torch.no_grad():
        for batch in source:
            source.call(probe, batch)
    return sorted(found.values(), key=lambda m: m.position)


def _activations_of(model: nn.Module) -> list[Quantizer]:
    return [m for m in model.modules() if isinstance(m, Quantizer) and m.role == "activation"]


def _ignore(x: Tensor) -> None:
    """Do nothing, because weights are measured elsewhere."""


def probe_of(model: nn.Module) -> nn.Module:
    """Return a copy to measure: in eval, without hooks, each layer computed by itself."""
    probe = copy.deepcopy(model).eval()
    g.clear_hooks(probe)
    for module in probe.modules():
        if isinstance(module, nn_layers.NORMS):
            module.bp_tail = None  # type: ignore[assignment]
    return probe


def _named(found: list[Measured]) -> list[Measured]:
    """Make the names within a role unique by adding a number."""
    seen: dict[tuple[str, str], int] = {}
    for m in found:
        key = (m.q.role, m.name)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] > 1:
            m.name = f"{m.name} ({seen[key]})"
    return found
