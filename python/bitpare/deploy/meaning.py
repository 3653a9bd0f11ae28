"""Determine what each node of a prepared model's flat trace means for integer lowering."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from bitpare.graph.ops import Op, op_of
from bitpare.nn import layers
from bitpare.nn.quantizer import Quantizer
from bitpare.quant.kinds import TABLE, kind_of

# The computation of a node before its quantizer. value: passes its input on. float: anything else.
CONV, NORM, ADD, MUL, CAT, MAX_POOL, MEAN_POOL, FLATTEN, VALUE, FLOAT = (
    "conv", "norm", "add", "mul", "cat", "max_pool", "mean_pool", "flatten", "value", "float",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Activation:
    """A function of each value: a clamp, or a function that is stored as a table."""

    low: float | None = None
    high: float | None = None
    table: Any = None


@dataclasses.dataclass
class Meaning:
    """The computation of a node. before, after: the quantizers of its input and result. window: the
    window of a pool, as in the spec."""

    core: str
    inputs: list[fx.Node]
    module: Any = None
    before: Quantizer | None = None
    activation: Activation | None = None
    after: Quantizer | None = None
    window: dict[str, Any] = dataclasses.field(default_factory=dict)


# Activations that quantizers compute; see `nn.quantizer.ACTIVATIONS`.
_NAMED = {
    "relu": Activation(low=0.0),
    "relu6": Activation(low=0.0, high=6.0),
    "hardswish": Activation(table=F.hardswish),
    "hardsigmoid": Activation(table=F.hardsigmoid),
}


def _pair(value: Any) -> list[int]:
    return list(value) if isinstance(value, tuple | list) else [value, value]


def _window(kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> dict[str, Any]:
    top, left = _pair(padding)
    return {
        "kernel": _pair(kernel),
        "stride": _pair(kernel if stride is None or stride == [] else stride),
        "padding": [top, left, top, left],
        "dilation": _pair(dilation),
    }


def _adaptive(size: Any) -> dict[str, Any]:
    return {"adaptive": True, "size": [0 if s is None else int(s) for s in _pair(size)]}


def conv_window(layer: Any) -> dict[str, Any] | None:
    """Return a convolution's window, or None if it does not pad with a number of zeros."""
    if isinstance(layer, nn.Linear):
        return _window(1, 1, 0)
    if layer.padding_mode != "zeros":
        return None
    kernel, dilation = layer.kernel_size, layer.dilation
    if layer.padding == "same":
        # If the sum is odd, the larger part goes to the end.
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        first = [t // 2 for t in total]
        padding = [*first, *(t - f for t, f in zip(total, first, strict=True))]
    elif layer.padding == "valid":
        padding = [0, 0, 0, 0]
    else:
        padding = [*layer.padding, *layer.padding]
    return {
        "kernel": list(kernel),
        "stride": list(layer.stride),
        "padding": padding,
        "dilation": list(dilation),
    }


# -- one rule per operation, which returns None if it is computed in float

Rule = Callable[[fx.Node, Op], Meaning | None]


def _first(node: fx.Node) -> list[fx.Node]:
    first = node.args[0] if node.args else None
    return [first] if isinstance(first, fx.Node) else []


def _clamp(node: fx.Node, op: Op) -> Meaning:
    if op.name == "hardtanh":
        bounds = Activation(low=float(op["min_val"]), high=float(op["max_val"]))
    else:
        bounds = _NAMED[op.name]
    return Meaning(VALUE, _first(node), activation=bounds)


def _of_two(node: fx.Node, op: Op) -> Meaning | None:
    inputs = [a for a in node.args[:2] if isinstance(a, fx.Node)]
    both = len(inputs) == 2 and all(n.meta.get("float") for n in inputs)
    return Meaning(MUL if op.name == "mul" else ADD, inputs) if both and not node.kwargs else None


def _concat(node: fx.Node, op: Op) -> Meaning | None:
    parts = op.arguments.get("tensors")
    if not isinstance(parts, tuple | list) or not all(isinstance(p, fx.Node) for p in parts):
        return None
    rank = len(parts[0].meta.get("shape") or ())
    rows = bool(rank) and op["dim"] % rank == rank - 1
    if not rows and not (rank == 4 and op["dim"] % rank == 1):
        return None
    return Meaning(CAT, list(parts), window={"rows": rows})


def _max_pool(node: fx.Node, op: Op) -> Meaning | None:
    if op["return_indices"]:
        return None
    window = _window(op["kernel_size"], op["stride"], op["padding"], op["dilation"])
    window_fields = {"adaptive": False, **window, "ceil": bool(op["ceil_mode"])}
    return Meaning(MAX_POOL, _first(node), window=window_fields)


def _adaptive_pool(node: fx.Node, op: Op) -> Meaning | None:
    if op.arguments.get("return_indices"):
        return None
    core = MAX_POOL if "max" in op.name else MEAN_POOL
    return Meaning(core, _first(node), window=_adaptive(op["output_size"]))


def _mean_pool(node: fx.Node, op: Op) -> Meaning:
    window = {
        "adaptive": False,
        **_window(op["kernel_size"], op["stride"], op["padding"]),
        "ceil": bool(op["ceil_mode"]),
        "count_padding": bool(op["count_include_pad"]),
        "divisor": int(op["divisor_override"] or 0),
    }
    return Meaning(MEAN_POOL, _first(node), window=window)


def _mean(node: fx.Node, op: Op) -> Meaning | None:
    """Treat a mean over height and width as a pool."""
    first, dims = _first(node), op["dim"]
    image = first and len(first[0].meta.get("shape") or ()) == 4
    if not image or not isinstance(dims, tuple | list) or sorted(d % 4 for d in dims) != [2, 3]:
        return None
    return Meaning(MEAN_POOL, first, window={**_adaptive(1), "drops": not op["keepdim"]})


def _flatten(node: fx.Node, op: Op) -> Meaning | None:
    first, after = _first(node), node.meta.get("shape")
    before = first[0].meta.get("shape") if first else None
    if before is None or after is None:
        return None
    flat = len(after) == 2 and after[0] == before[0] and len(before) in (2, 4)
    return Meaning(FLATTEN, first) if flat else None


def _same(node: fx.Node, op: Op) -> Meaning:
    return Meaning(VALUE, _first(node))


def _dropped(node: fx.Node, op: Op) -> Meaning | None:
    return Meaning(VALUE, _first(node)) if op.arguments.get("training") is False else None


_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "stochastic_depth")
RULES: dict[str, Rule] = {
    **dict.fromkeys(("relu", "relu6", "hardtanh"), _clamp),
    **dict.fromkeys(("add", "mul"), _of_two),
    **dict.fromkeys(("flatten", "view", "reshape"), _flatten),
    **dict.fromkeys(("identity", "contiguous"), _same),
    **dict.fromkeys(_DROPOUTS, _dropped),
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive_pool),
    "cat": _concat,
    "max_pool2d": _max_pool,
    "avg_pool2d": _mean_pool,
    "mean": _mean,
}


# -- nodes


def meaning_of(root: nn.Module, node: fx.Node) -> Meaning:
    """Return the meaning of a node in a flat trace of eval mode."""
    if node.op not in ("call_module", "call_function", "call_method"):
        return Meaning(FLOAT, [])
    op = op_of(root, node)
    made = _of_layer(node, op)
    if made is None and op.name in RULES:
        made = RULES[op.name](node, op)
    if made is None:
        made = Meaning(FLOAT, [n for n in node.all_input_nodes if n.meta.get("float")])
    if op.module is not None:
        if not _first(node):
            return Meaning(FLOAT, [])
        made.module, made.after = op.module, made.after or _output_of(op.module)
    if made.core == FLOAT and len(made.inputs) == 1 and kind_of(root, node).kind == TABLE:
        made.core, made.activation = VALUE, Activation(table=table_of(op.module, node))
    if node.target is operator.getitem:
        made.core = FLOAT
    return made


def _output_of(module: nn.Module) -> Any:
    return module._modules.get("bp_output")


def _of_layer(node: fx.Node, op: Op) -> Meaning | None:
    """Return the meaning of a call of a quantizer or quantized layer, or None."""
    inputs, module = _first(node), op.module
    if isinstance(module, Quantizer):
        other, name = node.kwargs.get("other"), str(node.kwargs.get("activation", "none"))
        adds = isinstance(other, fx.Node)
        return Meaning(
            ADD if adds else VALUE,
            [*inputs, other] if adds else inputs,  # type: ignore[list-item]
            activation=None if name == "none" else _NAMED[name],
            after=module,
        )
    if isinstance(module, layers.QuantizedLayer) and op.name in ("conv2d", "linear"):
        return Meaning(CONV, inputs, before=module.bp_input)
    if isinstance(module, layers.QBatchNorm2d | layers.QBatchNorm1d):
        return Meaning(NORM if module.running_mean is not None else FLOAT, inputs)
    return None


def table_of(module: Any, node: fx.Node) -> Any:
    """Return the function of one value that a node computes, without its quantizers."""
    if module is not None:
        base = getattr(type(module), "_bitpare_source", (type(module), ""))[0]
        return lambda x: base.forward(module, x)
    others = node.args[1:]
    if any(isinstance(a, fx.Node) for a in (*others, *node.kwargs.values())):
        return None
    if node.op == "call_method":
        return lambda x: getattr(x, str(node.target))(*others, **node.kwargs)
    return lambda x: node.target(x, *others, **node.kwargs)  # type: ignore[operator]
