"""List every quantizer of a model, the integer form of each layer, and what stays in float."""

import dataclasses
from typing import Any

from torch import nn

from bitpare.deploy.run_time import no_form
from bitpare.models import unwrapped
from bitpare.nn import layers
from bitpare.nn.attention import QMultiheadAttention
from bitpare.nn.hub import find_hub
from bitpare.nn.quantizer import Quantizer
from bitpare.nn.ranges import RangeQuantizer
from bitpare.text import table


@dataclasses.dataclass(frozen=True)
class Row:
    """A quantizer. name: the name of the layer or value. where: the path of the quantizer in the
    model."""

    name: str
    role: str
    form: str
    scales: int
    calibrated: bool
    where: str


@dataclasses.dataclass(frozen=True)
class Placement:
    """The result of `placement`: ``quantizers``, ``integer`` (layer, form) and ``floating`` (layer,
    reason). It prints as a table."""

    quantizers: list[Row]
    integer: list[tuple[str, str]]
    floating: list[tuple[str, str]]
    notes: list[tuple[str, str]]

    def __str__(self) -> str:
        lines = table(
            ["quantizer of", "role", "integers", "scales", "calibrated"],
            [
                [r.name, r.role, r.form, r.scales, "yes" if r.calibrated else "no"]
                for r in self.quantizers
            ],
        )
        sections = (
            ("layer", "integer form", self.integer),
            ("in float", "reason", self.floating),
            ("note", "", self.notes),
        )
        for first, second, rows in sections:
            if rows:
                lines += ["", *table([first, second], [list(row) for row in rows])]
        return "\n".join(lines)


def _form(name: str, module: Any) -> str:
    weight = module.bp_weight
    kind = type(module).__name__[1:]
    return f"{kind}, {weight.integer_form()} weights" if weight is not None else f"{kind} in float"


def placement(model: nn.Module) -> Placement:
    """List every quantizer with its integer form, and everything that stays in float with the
    reason."""
    model = unwrapped(model)
    hub = find_hub(model, "report.placement")
    quantizers, integer = [], []
    no_integers: list[tuple[str, str]] = []
    for where, module in model.named_modules():
        if isinstance(module, Quantizer):
            if module.role == "activation" and (reason := no_form(module)) is not None:
                no_integers.append((module.name, f"convert leaves it in float: {reason}"))
            scales = module.scales if isinstance(module, RangeQuantizer) else 1
            scale = getattr(module, "scale", None)
            scales = scales if scale is None else scale.numel()
            quantizers.append(
                Row(
                    module.name,
                    module.role,
                    module.integer_form(),
                    scales,
                    module.calibrated,
                    where,
                )
            )
        elif isinstance(module, layers.QuantizedLayer) and module.bp_weight is not None:
            integer.append((where, _form(where, module)))
        elif isinstance(module, QMultiheadAttention):
            integer.append((where, "attention; its products in integers, softmax in float"))
        elif isinstance(module, layers.NORMS):
            fused = module.bp_tail is not None
            integer.append(
                (
                    where,
                    "BatchNorm, into the requantization"
                    + ("; one op with its activation and quantizer in training" if fused else ""),
                )
            )
    floating = [(name, reason) for name, reason, quantized in hub.notes if not quantized]
    notes = [(name, reason) for name, reason, quantized in hub.notes if quantized]
    return Placement(quantizers, integer, floating, [*notes, *no_integers])
