"""Extend bitpare with your own layers, quantizers and operations.

Each function registers a class or a rule for all models that are prepared afterwards.
docs/extending.md has an example of each."""

from collections.abc import Callable
from typing import Literal, TypeVar

from torch import nn

from bitpare.deploy import meaning
from bitpare.deploy.meaning import Activation, Meaning
from bitpare.errors import Unsupported
from bitpare.graph import ops, tracer
from bitpare.graph.ops import Op
from bitpare.nn import layers
from bitpare.nn import quantizer as quantizers
from bitpare.nn.layers import QuantizedLayer
from bitpare.nn.quantizer import Quantizer
from bitpare.prune import channels as channel_rules
from bitpare.prune.atoms import AtomTable
from bitpare.quant import kinds
from bitpare.spec import qspec
from bitpare.spec.grid import Grid

__all__ = [
    "Activation",
    "AtomTable",
    "Grid",
    "Meaning",
    "Op",
    "QuantizedLayer",
    "Quantizer",
    "Unsupported",
    "operation",
    "quantized_layer",
    "quantizer",
]

Layer = TypeVar("Layer", bound=type[nn.Module])
Kind = TypeVar("Kind", bound=type[Quantizer])
Rule = TypeVar("Rule")
_TORCH = {"linear": nn.Linear, "conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}


def quantized_layer(
    layer: type[nn.Module], *, op: Literal["linear", "conv1d", "conv2d", "conv3d"] | None = None
) -> Callable[[Layer], Layer]:
    """Register the quantized form of a layer class. Use it as a decorator of that form.

    `prepare` turns each module of exactly the class ``layer`` into the decorated class, with
    quantizers, and does not trace into its forward. The decorated class derives from
    `QuantizedLayer` and from ``layer``.

    Args:
        layer: a class of modules with a parameter ``weight``.
        op: the operation of torch that the layer computes with its own attributes, if it computes
            exactly one. `convert` and `shrink` then treat it as torch's layer, from which the class
            must derive.
    """
    if op is not None and (op not in _TORCH or not issubclass(layer, _TORCH[op])):
        raise ValueError(
            f"extend.quantized_layer: op must be one of {', '.join(_TORCH)} and {layer.__name__} "
            f"derive from torch's layer of it, got {op!r}"
        )

    def register(form: Layer) -> Layer:
        if not (issubclass(form, QuantizedLayer) and issubclass(form, layer)):
            raise TypeError(
                f"extend.quantized_layer: {form.__name__} must derive from "
                f"bp.extend.QuantizedLayer and {layer.__name__}"
            )
        layers.QUANTIZED[layer] = form
        tracer.LAYERS.add(layer)
        ops.name_module(layer, op or "product")
        return form

    return register


def quantizer(name: str) -> Callable[[Kind], Kind]:
    """Register a quantizer class under a name, for ``QSpec(learn=name)``. Use it as a decorator.

    The class derives from `Quantizer` and takes (spec, grid, name, role, scales, limit).
    ``scales`` is the number of scales; ``limit`` is the top of the activation before it, or 0.
    It must define ``quantize(x)``. If it has a tensor ``scale``, `convert` can use its codes."""
    if name in qspec.LEARNS and name not in quantizers.REGISTERED:
        raise ValueError(f"extend.quantizer: {name!r} is a built-in quantizer of bitpare")

    def register(kind: Kind) -> Kind:
        if not issubclass(kind, Quantizer):
            raise TypeError(
                f"extend.quantizer: {kind.__name__} must derive from bp.extend.Quantizer"
            )
        quantizers.REGISTERED[name] = kind
        if name not in qspec.LEARNS:
            qspec.LEARNS.append(name)
        return kind

    return register


def operation(
    module: type[nn.Module],
    name: str,
    *,
    kind: Literal["table", "same", "float"] | None = None,
    channel_rule: channel_rules.Rule | None = None,
    lowering: meaning.Rule | None = None,
) -> None:
    """Register a class of modules as an operation, with rules for it.

    Its modules are not traced into. If ``name`` is a known operation, such as "relu" or
    "softmax", they are treated like it. Otherwise the rules define the operation.

    Args:
        module: a class of modules.
        name: the operation's name.
        kind: "table" for any function of each value, which becomes a table of codes; "same" for one
            that moves values, which stay on their grid; "float" for one computed in floating point.
        channel_rule: ``rule(table, node, op)`` returns the atoms of the result, for `shrink`. By
            default a "table" passes on the atoms of its input, and other operations keep all
            channels.
        lowering: ``rule(node, op)`` returns a `Meaning` for `convert`, or None for float. It may
            raise `Unsupported` with the reason why the node stays in float.
    """
    if not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise TypeError(f"extend.operation: module must be a class of modules, got {module!r}")
    known = name in kinds.KINDS or name in channel_rules.RULES or name in meaning.RULES
    own = name in _OWN
    if known and not own:
        if kind is not None or channel_rule is not None or lowering is not None:
            raise ValueError(
                f"extend.operation: {name!r} has its own rules; use another name to set rules"
            )
    else:
        if kind not in ("table", "same", "float"):
            raise ValueError(
                f"extend.operation: kind must be table, same or float for the new operation "
                f"{name!r}, got {kind!r}"
            )
        _OWN.add(name)
        kinds.KINDS[name] = kind
        if channel_rule is None and kind == "table":
            channel_rule = channel_rules.unchanged
        _set(channel_rules.RULES, name, channel_rule)
        _set(meaning.RULES, name, lowering)
    tracer.LAYERS.add(module)
    ops.name_module(module, name)


_OWN: set[str] = set()  # names registered by users


def _set(rules: dict[str, Rule], name: str, rule: Rule | None) -> None:
    """Set or remove the rule of an operation."""
    rules.pop(name, None)
    if rule is not None:
        rules[name] = rule
