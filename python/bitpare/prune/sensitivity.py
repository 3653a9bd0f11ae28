"""Measure how much accuracy each layer loses when it alone is pruned."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitpare import functional as bpf
from bitpare import graph as g
from bitpare.batches import progress_over
from bitpare.files import write_whole
from bitpare.models import unwrapped
from bitpare.prune.criteria import scores_of
from bitpare.prune.targets import Target, find_targets, fits
from bitpare.prune.units import ChannelUnits
from bitpare.spec.budget import least_that_fits

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclasses.dataclass
class Sensitivity:
    """The result of `sensitivity`.

    found: layer -> sparsity -> the result of ``evaluate`` with that share of the layer pruned.
    baseline: the result with nothing pruned. sizes: the number of weights of each layer."""

    baseline: float
    found: dict[str, dict[float, float]]
    sizes: dict[str, int]

    def sparsity_at(self, layer: str, drop: float) -> float:
        """Return the largest sparsity of a layer at which it loses no more than ``drop``. Losses
        between the measured sparsities are interpolated."""
        before, lost_before = 0.0, 0.0
        for ratio, value in sorted(self.found[layer].items()):
            lost = max(self.baseline - value, lost_before)
            if lost > drop:
                share = 0.0 if lost == lost_before else (drop - lost_before) / (lost - lost_before)
                return before + max(share, 0.0) * (ratio - before)
            before, lost_before = ratio, lost
        return before

    def sparsities(
        self, *, max_drop: float | None = None, sparsity: float | None = None
    ) -> dict[str, float]:
        """Return a sparsity for each layer, as `Pruner` and `shrink` take them.

        Args:
            max_drop: the largest loss of each layer by itself, in the units of ``evaluate``.
            sparsity: instead, the share of all weights to prune, with the least loss per layer.
        """
        if (max_drop is None) == (sparsity is None):
            raise ValueError("Sensitivity.sparsities: give max_drop= or sparsity=")
        if max_drop is not None:
            return {layer: self.sparsity_at(layer, max_drop) for layer in self.found}
        assert sparsity is not None
        values = [v for layer in self.found.values() for v in layer.values()]
        high = max(self.baseline - min(values), 0.0)
        most = self._sparsity(high)
        if most < sparsity:
            raise ValueError(
                f"Sensitivity.sparsities: the scan covers a sparsity of {most:.3f} at most, got "
                f"sparsity={sparsity}"
            )
        drop = least_that_fits(float, lambda d: self._sparsity(d) >= sparsity, high, rounds=60)
        assert drop is not None
        return {layer: self.sparsity_at(layer, drop) for layer in self.found}

    def _sparsity(self, drop: float) -> float:
        total = max(sum(self.sizes.values()), 1)
        return sum(n * self.sparsity_at(layer, drop) for layer, n in self.sizes.items()) / total

    def __str__(self) -> str:
        ratios = sorted({r for layer in self.found.values() for r in layer})
        width = max(len(name) for name in (*self.found, "layer"))
        lines = [f"{'layer':{width}s}  weights  " + "  ".join(f"{r:6.0%}" for r in ratios)]
        lines.append("-" * len(lines[0]))
        for layer, values in self.found.items():
            cells = "  ".join(f"{values[r]:6.2f}" if r in values else " " * 6 for r in ratios)
            lines.append(f"{layer:{width}s}  {self.sizes[layer]:7d}  {cells}")
        lines.append(f"nothing pruned: {self.baseline:.2f}")
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Save a picture with a line for each layer. It needs matplotlib."""
        try:
            import matplotlib
        except ImportError as error:
            raise ImportError(
                "Sensitivity.plot needs matplotlib: pip install matplotlib"
            ) from error
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 5), layout="constrained")
        axes = figure.subplots()
        colours = matplotlib.colormaps["viridis"]
        order = sorted(self.found, key=lambda layer: -self.sparsity_at(layer, 1.0))
        for index, layer in enumerate(order):
            values = sorted(self.found[layer].items())
            axes.plot(
                [0.0, *(r for r, _ in values)],
                [self.baseline, *(v for _, v in values)],
                color=colours(index / max(len(order) - 1, 1)),
                marker="o",
                markersize=3,
                label=layer,
            )
        axes.axhline(self.baseline, color="grey", linewidth=0.8, linestyle=":")
        axes.set_xlabel("share of the layer that is pruned")
        axes.set_ylabel("result with this layer alone pruned")
        axes.grid(alpha=0.3)
        shown = axes.get_legend_handles_labels()
        if len(order) <= 30:
            figure.legend(*shown, loc="outside right upper", fontsize="small")
        figure.savefig(path, dpi=120)


@torch.no_grad()
def sensitivity(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float],
    *,
    sparsities: Sequence[float] = SPARSITIES,
    criterion: str = "l1",
    pattern: str = "element",
    ignore: Sequence[str] = (),
    example_inputs: Any = None,
    cache: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Sensitivity:
    """Prune each layer alone at each sparsity, evaluate the model, and restore the weights.

    Args:
        model: the model; it is unchanged at the end.
        evaluate: ``evaluate(model)`` returns a number; larger is better.
        sparsities: the sparsities to try, each in (0, 1).
        criterion: how weights are scored, as for `Pruner`.
        pattern: what is pruned together, as for `Pruner`. "channel" prunes groups of coupled
            channels, which have the name of their first layer.
        ignore: globs of weights that are not pruned.
        example_inputs: the arguments of a call of the model, for pattern "channel".
        cache: a file for the results, from which an interrupted scan continues. A scan of other
            weights or options starts again.
        progress: whether to show a progress bar; None shows one on a terminal.

    >>> model = nn.Linear(4, 2)
    >>> scan = sensitivity(model, lambda m: -float((m.weight == 0).sum()), sparsities=[0.25, 0.5])
    >>> scan.found
    {'weight': {0.25: -2.0, 0.5: -4.0}}
    """
    inner = unwrapped(model)
    for sparsity in sparsities:
        if not 0 < sparsity < 1:
            raise ValueError(f"sensitivity: sparsities must be in (0, 1), got {sparsity}")
    units = _units(inner, criterion, pattern, ignore, example_inputs)
    key = _fingerprint(inner, [criterion, pattern, sorted(units)])
    store = _Store(cache, key)
    modes = {m: m.training for m in inner.modules()}
    inner.eval()
    try:
        if store.baseline is None:
            store.baseline = float(evaluate(model))
            store.save()
        known = store.found
        tasks = [(n, s) for n in units for s in sparsities if s not in known.get(n, {})]
        for name, sparsity in progress_over(
            tasks, progress, "sensitivity", "evaluation", len(tasks)
        ):
            masks = units[name][1](sparsity)
            held = [(p, p.detach().clone()) for p, _ in masks]
            try:
                bpf.remask_([p for p, _ in masks], [m for _, m in masks])
                value = float(evaluate(model))
            finally:
                for parameter, before in held:
                    parameter.copy_(before)
            store.found.setdefault(name, {})[sparsity] = value
            store.save()
    finally:
        for module, mode in modes.items():
            module.training = mode
    found = {n: {s: store.found[n][s] for s in sparsities} for n in units}
    return Sensitivity(store.baseline, found, {n: size for n, (size, _) in units.items()})


Masks = Callable[[float], list[tuple[Tensor, Tensor]]]


def _units(
    model: nn.Module, criterion: str, pattern: str, ignore: Sequence[str], example_inputs: Any
) -> dict[str, tuple[int, Masks]]:
    """Return for each layer, or group of channels, its size and a function from sparsity to
    masks."""
    if pattern != "channel":
        return {
            t.name: (t.value.numel(), _of_weight(t, criterion, pattern))
            for t in find_targets(model, ignore)
            if fits(t, pattern, "sensitivity")
        }
    if example_inputs is None:
        raise ValueError("sensitivity: pattern 'channel' needs example_inputs=")
    units = ChannelUnits(model, g.call_with("sensitivity", example_inputs, None), ignore)
    scores = {t.name: scores_of(criterion, t, 0) for t in units.targets if t.value.dim() > 1}
    parameters = dict(model.named_parameters())
    none = units.masks

    def of_family(index: int) -> Masks:
        def masks(sparsity: float) -> list[tuple[Tensor, Tensor]]:
            units.masks = none
            shares = [sparsity if i == index else 0.0 for i in range(len(none))]
            units.select(scores, shares, scope="local", min_keep=1)
            return [(parameters[n], m) for n, m in units.element_masks().items()]

        return masks

    found = {}
    for index, family in enumerate(units.families.members):
        size = sum(
            scores[name].numel() // len(at) * int((at < units.total).sum())
            for (name, dim), at in units.links.items()
            if name in scores and units.holds(index, at)
        )
        found[units.families.layers[family][0]] = (size, of_family(index))
    return found


def _of_weight(target: Target, criterion: str, pattern: str) -> Masks:
    def masks(sparsity: float) -> list[tuple[Tensor, Tensor]]:
        score = scores_of(criterion, target, 0)
        return [(target.value, bpf.select_mask([score], sparsity, pattern=pattern)[0])]

    return masks


def _fingerprint(model: nn.Module, options: Any) -> str:
    digest = hashlib.sha256(json.dumps(options).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class _Store:
    """The results so far, in a file that is written after each evaluation."""

    def __init__(self, path: str | os.PathLike[str] | None, key: str) -> None:
        self.path, self.key = None if path is None else pathlib.Path(path), key
        self.baseline: float | None = None
        self.found: dict[str, dict[float, float]] = {}
        if self.path is None or not self.path.exists():
            return
        data: Mapping[str, Any] = json.loads(self.path.read_text())
        if data.get("key") == key:
            self.baseline = data["baseline"]
            self.found = {
                n: {float(r): v for r, v in values.items()} for n, values in data["found"].items()
            }

    def save(self) -> None:
        if self.path is None:
            return
        data = {"key": self.key, "baseline": self.baseline, "found": self.found}
        write_whole(self.path, (json.dumps(data, indent=1) + "\n").encode())
