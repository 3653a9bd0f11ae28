"""Check that a converted model computes what the trained model does."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bitpare.batches import Data, Forward
from bitpare.deploy.checks import LayerRow, all_checks, decibels, values_of
from bitpare.deploy.integer import IntegerModel, IntegerProgram
from bitpare.deploy.traced import Traced, prepared_trace
from bitpare.errors import Differs
from bitpare.graph import cloned
from bitpare.models import unwrapped
from bitpare.text import table


@dataclasses.dataclass
class Verification:
    """The result of `verify`.

    rows: one for each integer operation. zeros: (layer, number of weights that are 0 in only
    one of the models). samples, agreeing: the number of samples, and of those with the same
    largest output, if the outputs are classes."""

    rows: list[LayerRow]
    zeros: list[tuple[str, int]]
    samples: int = 0
    agreeing: int = 0
    signal: float = 0.0
    noise: float = 0.0

    @property
    def lsb(self) -> float:
        return max((r.lsb for r in self.rows), default=0.0)

    @property
    def differing(self) -> float:
        return max((r.differing for r in self.rows), default=0.0)

    @property
    def agreement(self) -> float:
        return self.agreeing / self.samples if self.samples else 1.0

    @property
    def sqnr(self) -> float:
        return decibels(self.signal, self.noise)

    def __str__(self) -> str:
        rows = [
            [r.name, r.op, r.elements, f"{r.lsb:.3g}", f"{r.differing:.2g}", f"{r.sqnr:.1f}"]
            for r in self.rows
        ]
        head = ["operation", "", "elements", "max LSB", "differing", "SQNR dB"]
        lines = table(head, rows)
        agreement = f", same class {self.agreement:.2%} of {self.samples}" if self.samples else ""
        lines.append(f"outputs: SQNR {self.sqnr:.1f} dB{agreement}")
        other = [f"{name} {count}" for name, count in self.zeros if count]
        lines.append("zero weights: " + (f"differ in {', '.join(other)}" if other else "the same"))
        return "\n".join(lines)


def verify(
    model: nn.Module,
    integer: nn.Module,
    data: Iterable[Any],
    *,
    batches: int | None = None,
    forward: Forward | None = None,
    max_lsb: float = 1.0,
    max_differing: float = 0.05,
    min_agreement: float = 0.99,
) -> Verification:
    """Compare a converted model with the prepared one in eval mode, each operation and the outputs.

    Each operation gets the codes that the prepared model has there, so every difference is its
    own. It may be one unit if float rounding puts a value on the other side of a tie.

    Args:
        model: the prepared model.
        integer: the result of `convert`.
        data: an iterable of batches, as for `calibrate`.
        batches: the number of batches to use; None uses all.
        forward: ``forward(model, batch)``, to call the models in another way.
        max_lsb: the largest allowed difference of an operation's result, in units of its codes.
        max_differing: the largest allowed share of an operation's elements that differ.
        min_agreement: the smallest allowed share of samples with the same largest output.

    Raises:
        Differs: a bound is exceeded; the message holds the table. ``math.inf`` disables a bound.
        ValueError: the data hold no sample.
    """
    source = Data("verify", data, batches=batches, forward=forward)
    model = unwrapped(model)
    if not isinstance(integer, IntegerModel):
        raise TypeError(
            f"verify: the second model must come from bp.convert, got {type(integer).__name__}"
        )
    traced = prepared_trace(model, "verify")
    checks = all_checks(traced, integer)
    found = Verification([], _zeros(traced, integer))
    was_training = model.training
    model.eval()
    seen = False
    given: list[Any] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(cloned((args, kwargs))),
        with_kwargs=True,
    )
    try:
        with torch.no_grad():
            for batch in source:
                given.clear()
                _compare_outputs(source.call(model, batch), source.call(integer, batch), found)
                for call in given:
                    leaves = _pytree.tree_leaves(call)
                    seen = seen or any(isinstance(v, Tensor) and v.numel() for v in leaves)
                    values = values_of(traced, call)
                    for check in checks:
                        check.run(values)
    finally:
        hook.remove()
        model.train(was_training)
    if not seen:
        raise ValueError("verify: the data hold no sample, so nothing was compared")
    found.rows = [row for check in checks for row in check.rows]
    _raise_past(found, max_lsb, max_differing, min_agreement)
    return found


def _raise_past(
    found: Verification, max_lsb: float, max_differing: float, min_agreement: float
) -> None:
    why = []
    if found.lsb > max_lsb + 1e-3:
        why.append(
            f"an operation differs by {found.lsb:.3g} units, at most {max_lsb:g} are allowed"
        )
    if found.differing > max_differing:
        why.append(f"a share of {found.differing:.2g} of an operation's elements differ")
    if found.agreement < min_agreement:
        why.append(f"only {found.agreement:.2%} of the samples have the same class")
    if any(count for _, count in found.zeros):
        why.append("some weights are 0 in only one of the models")
    if why:
        raise Differs(f"verify: {'; '.join(why)}\n{found}")


def _compare_outputs(expected: Any, got: Any, found: Verification) -> None:
    pairs = zip(
        _pytree.tree_leaves(expected),
        _pytree.tree_leaves(got),
        strict=True,
    )
    for a, b in pairs:
        if not isinstance(a, Tensor) or not a.is_floating_point():
            continue
        found.signal += float(a.double().square().sum())
        found.noise += float((a.double() - b.double()).square().sum())
        if a.dim() == 2 and a.shape[1] > 1:
            found.samples += a.shape[0]
            found.agreeing += int((a.argmax(1) == b.argmax(1)).sum())


def _zeros(traced: Traced, integer: IntegerModel) -> list[tuple[str, int]]:
    """Return for each layer how many weights are 0 in only one of the models."""
    found = []
    for path, program in integer.body.named_modules():
        if not isinstance(program, IntegerProgram):
            continue
        prefix = path.rpartition(".")[0].removesuffix(".body")  # part prefix
        for node, weight in program.weighted():
            name = node["name"]
            layer: Any = _layer(traced.root, f"{prefix}.{name}" if prefix else name)
            layer = layer or _layer(traced.root, prefix)
            if layer is None:
                continue
            value = layer.quantized_weight().detach()
            codes = weight.reshape(value.shape)
            if node.get("zeros"):
                zeros = program.get_buffer(node["zeros"]).repeat_interleave(node["group"], 1)
                codes = codes.short() - zeros[:, : codes.shape[1]]
            lost = (value == 0) & (codes != 0)  # BatchNorm may scale a code to 0
            found.append((f"{prefix}.{name}" if prefix else name, int(lost.sum())))
    return found


def _layer(root: nn.Module, name: str) -> Any:
    for candidate in (name, name.rpartition("_")[0]):
        try:
            module = root.get_submodule(candidate)
        except AttributeError:
            continue
        if hasattr(module, "quantized_weight"):
            return module
    return None
