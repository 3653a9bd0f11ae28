"""The meaning of each node of a prepared model's flat trace, as far as integers are concerned."""

import dataclasses
import operator
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from bitpare.nn import layers
from bitpare.nn.quantizer import Quantizer
from bitpare.quant.kinds import TABLE, kind_of

# The work of a node before its quantizer. value: hands its input on; float: anything else.
CONV, NORM, ADD, MUL, CAT, MAX_POOL, MEAN_POOL, FLATTEN, VALUE, FLOAT = (
    "conv", "norm", "add", "mul", "cat", "max_pool", "mean_pool", "flatten", "value", "float",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Activation:
    """A function of each value: a clamp, or one that a table holds."""

    low: float | None = None
    high: float | None = None
    table: Any = None


@dataclasses.dataclass
class Meaning:
    core: str
    inputs: list[fx.Node]
    module: Any = None
    before: Quantizer | None = None  # of the input
    activation: Activation | None = None
    after: Quantizer | None = None
    window: dict[str, Any] = dataclasses.field(default_factory=dict)


RELU, RELU6 = Activation(low=0.0), Activation(low=0.0, high=6.0)
_NAMED = {
    "relu": RELU,
    "relu6": RELU6,
    "hardswish": Activation(table=F.hardswish),
    "hardsigmoid": Activation(table=F.hardsigmoid),
}
_SAME = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
# The position of their argument `training`, which is on unless given.
_RANDOM = {"dropout": 2, "dropout1d": 2, "dropout2d": 2, "dropout3d": 2, "stochastic_depth": 3}
_FLATTENING = ("flatten", "view", "reshape")


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


def _average(m: Any) -> dict[str, Any]:
    return {
        "adaptive": False,
        **_window(m.kernel_size, m.stride, m.padding),
        "ceil": bool(m.ceil_mode),
        "count_padding": bool(m.count_include_pad),
        "divisor": int(m.divisor_override or 0),
    }


def conv_window(layer: Any) -> dict[str, Any] | None:
    """None where the padding is not one of zeros, given as numbers."""
    if isinstance(layer, nn.Linear):
        return _window(1, 1, 0)
    if layer.padding_mode != "zeros":
        return None
    kernel, dilation = layer.kernel_size, layer.dilation
    if layer.padding == "same":
        # An odd number's rest goes to the end.
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


def _of_module(module: Any, node: fx.Node) -> Meaning:
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node):
        return Meaning(FLOAT, [])
    after = module._modules.get("bp_output")
    made = Meaning(FLOAT, [first], module, after=after)
    if isinstance(module, Quantizer):
        other = node.kwargs.get("other")
        name = node.kwargs.get("activation", "none")
        made.after = module
        made.core = VALUE
        if isinstance(other, fx.Node):
            made.core, made.inputs = ADD, [first, other]
        if name != "none":
            made.activation = _NAMED[str(name)]
    elif isinstance(module, layers.QConv2d | layers.QLinear):
        made.core, made.before = CONV, module.bp_input
    elif isinstance(module, layers.QBatchNorm2d | layers.QBatchNorm1d):
        made.core = NORM if module.running_mean is not None else FLOAT
    elif isinstance(module, nn.ReLU | nn.ReLU6 | nn.Hardtanh):
        made.core, made.activation = VALUE, RELU
        if isinstance(module, nn.Hardtanh):  # ReLU6 is one
            made.activation = Activation(low=module.min_val, high=module.max_val)
    elif isinstance(module, nn.MaxPool2d) and not module.return_indices:
        window = _window(module.kernel_size, module.stride, module.padding, module.dilation)
        made.core = MAX_POOL
        made.window = {"adaptive": False, **window, "ceil": bool(module.ceil_mode)}
    elif isinstance(module, nn.AdaptiveMaxPool2d) and not module.return_indices:
        made.core, made.window = MAX_POOL, _adaptive(module.output_size)
    elif isinstance(module, nn.AvgPool2d):
        made.core, made.window = MEAN_POOL, _average(module)
    elif isinstance(module, nn.AdaptiveAvgPool2d):
        made.core, made.window = MEAN_POOL, _adaptive(module.output_size)
    elif isinstance(module, _SAME):
        made.core = VALUE
    elif isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
        made.core = FLATTEN
    return made


def _argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _of_call(node: fx.Node) -> Meaning:
    target: Any = node.target
    name = str(getattr(target, "__name__", target)).rstrip("_")
    inputs = [a for a in node.args[:2] if isinstance(a, fx.Node)]
    first = inputs[:1]
    if not first and not (name in ("cat", "concat") and node.args):
        return Meaning(FLOAT, [])
    shape = first[0].meta.get("shape") if first else None
    if name in ("add", "iadd", "mul", "imul"):
        both = len(inputs) == 2 and all(n.meta.get("float") for n in inputs)
        if both and not node.kwargs:
            return Meaning(MUL if "mul" in name else ADD, inputs)
    elif name in ("cat", "concat", "concatenate"):
        parts = node.args[0]
        if isinstance(parts, tuple | list) and all(isinstance(p, fx.Node) for p in parts):
            dim = _argument(node, 1, "dim", 0)
            rank = len(parts[0].meta.get("shape") or ())
            rows = bool(rank) and dim % rank == rank - 1
            if rows or (rank == 4 and dim % rank == 1):
                return Meaning(CAT, list(parts), window={"rows": rows})
    elif name in ("relu", "relu6"):
        return Meaning(VALUE, first, activation=_NAMED[name])
    elif name == "hardtanh":
        low, high = _argument(node, 1, "min_val", -1.0), _argument(node, 2, "max_val", 1.0)
        return Meaning(VALUE, first, activation=Activation(low=float(low), high=float(high)))
    elif name in _FLATTENING and shape is not None:
        made = node.meta.get("shape")
        if made is not None and len(made) == 2 and made[0] == shape[0] and len(shape) in (2, 4):
            return Meaning(FLATTEN, first)
    elif name == "mean" and shape is not None and len(shape) == 4:
        dims = _argument(node, 1, "dim", None)
        keep = bool(_argument(node, 2, "keepdim", False))
        if isinstance(dims, tuple | list) and sorted(d % 4 for d in dims) == [2, 3]:
            window = _adaptive(1)
            return Meaning(MEAN_POOL, first, window={**window, "drops": not keep})
    elif name == "adaptive_avg_pool2d":
        return Meaning(MEAN_POOL, first, window=_adaptive(_argument(node, 1, "output_size")))
    elif name == "avg_pool2d":
        padding = _argument(node, 3, "padding", 0)
        window = _window(_argument(node, 1, "kernel_size"), _argument(node, 2, "stride"), padding)
        options = {
            "ceil": bool(_argument(node, 4, "ceil_mode", False)),
            "count_padding": bool(_argument(node, 5, "count_include_pad", True)),
            "divisor": int(_argument(node, 6, "divisor_override") or 0),
        }
        return Meaning(MEAN_POOL, first, window={"adaptive": False, **window, **options})
    elif name == "max_pool2d" and not node.kwargs.get("return_indices", False):
        window = _window(
            _argument(node, 1, "kernel_size"),
            _argument(node, 2, "stride"),
            _argument(node, 3, "padding", 0),
            _argument(node, 4, "dilation", 1),
        )
        ceil = bool(_argument(node, 5, "ceil_mode", False))
        return Meaning(MAX_POOL, first, window={"adaptive": False, **window, "ceil": ceil})
    elif name == "contiguous" or _argument(node, _RANDOM.get(name, 0), "training", True) is False:
        return Meaning(VALUE, first)
    return Meaning(FLOAT, [n for n in node.all_input_nodes if n.meta.get("float")])


def meaning_of(root: nn.Module, node: fx.Node) -> Meaning:
    """Return the meaning of a node of a flat trace in eval."""
    if node.op not in ("call_module", "call_function", "call_method"):
        return Meaning(FLOAT, [])
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        made = _of_module(module, node)
    else:
        module, made = None, _of_call(node)
    if made.core == FLOAT and len(made.inputs) == 1 and kind_of(root, node).kind == TABLE:
        made.core, made.activation = VALUE, Activation(table=table_of(module, node))
    if node.target is operator.getitem:
        made.core = FLOAT
    return made


def table_of(module: Any, node: fx.Node) -> Any:
    """The function of one value that a node computes, without quantizers."""
    if module is not None:
        base = getattr(type(module), "_bitpare_source", (type(module), ""))[0]
        return lambda x: base.forward(module, x)
    others = node.args[1:]
    if any(isinstance(a, fx.Node) for a in (*others, *node.kwargs.values())):
        return None
    if node.op == "call_method":
        return lambda x: getattr(x, str(node.target))(*others, **node.kwargs)
    return lambda x: node.target(x, *others, **node.kwargs)  # type: ignore[operator]
