"""Find the quantizers that cost accuracy: turn each on alone, and all together."""

import dataclasses
import json
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bitpare.batches import Data, Forward, progress_over
from bitpare.errors import Unsupported
from bitpare.models import unwrapped
from bitpare.nn.hub import find_hub
from bitpare.nn.quantizer import Quantizer
from bitpare.nn.weights import quantized_weights
from bitpare.report.grids import decibels, power
from bitpare.report.layers import plain, probe_of, turn_on
from bitpare.text import table


@dataclasses.dataclass(frozen=True)
class EffectRow:
    """The SQNR in dB against the float model. here: of this layer's result with only this quantizer
    on. output: of the model's output with only this quantizer on. together: of this layer's result
    with all quantizers on, so it includes the errors of earlier layers."""

    name: str
    role: str
    here: float
    output: float
    together: float


@dataclasses.dataclass(frozen=True)
class Effects:
    """The result of `effects`. rows: in the order of the forward pass. output: the SQNR of the
    model's output with all quantizers on. skipped: quantizers that are not calibrated or were not
    reached."""

    rows: list[EffectRow]
    output: float
    skipped: list[str]

    def worst(self, count: int = 5) -> list[EffectRow]:
        """Return the quantizers that disturb the model's output most, the worst first."""
        return sorted(self.rows, key=lambda r: r.output)[:count]

    def __str__(self) -> str:
        head = ["quantizer of", "role", "here", "output", "together"]
        cells = [
            [r.name, r.role, *(f"{v:.1f}" for v in (r.here, r.output, r.together))]
            for r in self.rows
        ]
        lines = table(head, cells)
        return "\n".join([*lines, f"outputs with all quantizers on: SQNR {self.output:.1f} dB"])

    def to_json(self) -> str:
        return json.dumps(plain(dataclasses.asdict(self)), indent=1)


@torch.no_grad()
def effects(
    model: nn.Module,
    data: Iterable[Any],
    *,
    batches: int | None = None,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Effects:
    """Measure how much each quantizer alone disturbs its layer and the model's output.

    Use it to find the layer that loses accuracy. A low ``output`` means that this quantizer
    does harm by itself. If ``together`` falls from one row to the next, errors enter there. It
    runs one forward pass per quantizer and batch, so use a small batch. The model is not
    changed.

    Args:
        model: a prepared, calibrated model.
        data: an iterable of batches, as for `calibrate`.
        batches: the number of batches to use; None uses all.
        forward: ``forward(model, batch)``, to call the model in another way.
        progress: whether to show a progress bar; None shows one on a terminal.

    >>> import bitpare as bp
    >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(64, 4)
    >>> qat = bp.calibrate(bp.prepare(net, example_inputs=(x,)), [x], progress=False)
    >>> [row.name for row in effects(qat, [x]).rows]
    ['input', '0', '1', '2']
    """
    inner = unwrapped(model)
    find_hub(inner, "report.effects")
    source = Data("report.effects", data, batches=batches, forward=forward)
    watch = _Watch(probe_of(inner), source)
    sums: dict[str, Tensor] = {}
    for batch in source:
        exact = watch.run(batch, [])
        _note(sums, "all", exact, watch.run(batch, watch.usable), watch.reached)
        todo = [q for q in watch.usable if watch.names[q] in watch.reached]
        for q in progress_over(todo, progress, "effects", "quantizer", len(todo)):
            name = watch.names[q]
            _note(sums, name, exact, watch.run(batch, [q]), [name])
    if "all/" not in sums:
        raise Unsupported("report.effects: the model's output holds no floats to compare")
    return _result(watch, sums)


def _result(watch: "_Watch", sums: dict[str, Tensor]) -> Effects:
    def found(run: str, value: str) -> float:
        signal, noise = sums[f"{run}/{value}"].tolist()
        return decibels(signal, noise)

    by_name = {watch.names[q]: q for q in watch.usable}
    rows = [
        EffectRow(q.name, q.role, found(name, name), found(name, ""), found("all", name))
        for name in watch.reached
        if (q := by_name.get(name)) is not None
    ]
    skipped = [
        q.name for q, name in watch.names.items() if name not in watch.reached or not q.calibrated
    ]
    return Effects(rows, found("all", ""), skipped)


def _note(
    sums: dict[str, Tensor],
    run: str,
    exact: dict[str, Tensor],
    got: dict[str, Tensor],
    values: list[str],
) -> None:
    for value in ["", *values]:
        if value in exact and value in got:
            pair = torch.stack([power(exact[value]), power(exact[value] - got[value])])
            key = f"{run}/{value}"
            sums[key] = sums[key] + pair if key in sums else pair


class _Watch:
    """A copy of a model that records the result of each layer with a quantizer, under the
    quantizer's name, and its output under "". reached: the names in the order of the forward."""

    def __init__(self, probe: nn.Module, source: Data) -> None:
        self.probe, self.source = probe, source
        held = [m for m in probe.modules() if isinstance(m, Quantizer)]
        self.names = {q: f"{i}" for i, q in enumerate(held)}
        self.usable = [q for q in held if q.calibrated]
        self.reached: list[str] = []
        self.values: dict[str, Tensor] = {}
        for q in held:
            turn_on(q)
            if q.role == "activation":
                q.register_forward_hook(self._taker([self.names[q]]))
        of_layer: dict[nn.Module, list[str]] = {}
        for owner, q in ((w.owner, w.quantizer) for w in quantized_weights(probe)):
            of_layer.setdefault(owner, []).append(self.names[q])
        for owner, names in of_layer.items():
            owner.register_forward_hook(self._taker(names))
        probe.register_forward_hook(self._take_output)

    def _taker(self, names: list[str]) -> Callable[..., None]:
        def take(module: nn.Module, args: Any, result: Any) -> None:
            leaves = [v for v in _pytree.tree_leaves(result) if isinstance(v, Tensor)]
            if leaves and leaves[0].is_floating_point():
                for name in names:
                    if name not in self.values:
                        self.values[name] = (
                            leaves[0].detach().clone()
                        )  # later layers may overwrite it
                    if name not in self.reached:
                        self.reached.append(name)

        return take

    def _take_output(self, module: nn.Module, args: Any, result: Any) -> None:
        leaves = [v for v in _pytree.tree_leaves(result) if isinstance(v, Tensor)]
        floats = [v.detach().float().flatten() for v in leaves if v.is_floating_point()]
        if floats:
            self.values[""] = torch.cat(floats)

    def run(self, batch: Any, on: list[Quantizer]) -> dict[str, Tensor]:
        """Return the results with only these quantizers on."""
        for q in self.names:
            q.bypass = q not in on
        self.values = {}
        self.source.call(self.probe, batch)
        found, self.values = self.values, {}
        return found
