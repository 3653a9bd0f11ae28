"""The kinds of calls in a graph, as quantization sees them."""

import dataclasses
from typing import Any

from torch import fx, nn

# compute: sums of products, whose result is requantized. same: moves values, which stay on their
# grid. clamp: absorbed by the quantizer after it. table: any function of one value. float: computed
# in floating point.
COMPUTE, NORM, CLAMP, TABLE, ADD, MUL, CAT, POOL, SAME, FLOAT_OP = (
    "compute", "norm", "clamp", "table", "add", "mul", "cat", "pool", "same", "float",
)  # fmt: skip
INTEGER = frozenset({COMPUTE, NORM, TABLE, ADD, MUL, CAT, POOL})
STARTS = INTEGER | {CLAMP}


@dataclasses.dataclass(frozen=True)
class Kind:
    kind: str
    activation: str = ""  # the function of a clamp or table
    nonnegative: bool = False


_TABLES = {
    nn.Hardswish: "hardswish", nn.Hardsigmoid: "hardsigmoid", nn.SiLU: "silu", nn.GELU: "gelu",
    nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.Mish: "mish", nn.SELU: "selu", nn.ELU: "elu",
    nn.CELU: "celu", nn.Softplus: "softplus", nn.LeakyReLU: "leaky_relu", nn.Hardtanh: "hardtanh",
    nn.LogSigmoid: "logsigmoid", nn.Softsign: "softsign", nn.Tanhshrink: "tanhshrink",
}  # fmt: skip
_SAME_MODULES: tuple[type, ...] = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.UpsamplingNearest2d,
)  # fmt: skip
_POOL_MODULES = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)  # fmt: skip
_COMPUTE_MODULES = (
    nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.Bilinear, nn.MultiheadAttention,
)  # fmt: skip
_NORM_MODULES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_NONNEGATIVE = {"sigmoid", "hardsigmoid", "softplus"}

_NAMES = {
    COMPUTE: "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear "
    "matmul bmm mm einsum baddbmm embedding",
    ADD: "add iadd radd sub isub",
    MUL: "mul imul rmul",
    CAT: "cat concat concatenate stack",
    POOL: "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d mean interpolate upsample",
    SAME: "flatten reshape view permute transpose t swapaxes movedim squeeze unsqueeze expand "
    "expand_as repeat contiguous chunk split unbind getitem narrow select index_select roll flip "
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d amax max "
    "dropout dropout1d dropout2d dropout3d feature_dropout stochastic_depth drop_path drop_block2d "
    "drop_block3d clone detach to type_as float half bfloat16 pixel_shuffle pixel_unshuffle "
    "channel_shuffle unflatten view_as reshape_as tile repeat_interleave unfold mT T",
}
_CALLS = {name: Kind(kind) for kind, names in _NAMES.items() for name in names.split()}
_CALLS |= {name: Kind(CLAMP, name, True) for name in ("relu", "relu6")}
_CALLS |= {name: Kind(TABLE, name, name in _NONNEGATIVE) for name in (*_TABLES.values(), "prelu")}
_CALLS["softmax"] = Kind(FLOAT_OP, "", True)
_OWN_MODULES = ("torch", "_operator", "operator", "builtins", "torchvision", "math")


def _tensor_inputs(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if n.meta.get("float")]


def _of_module(module: nn.Module) -> Kind:
    if isinstance(module, _COMPUTE_MODULES):
        return Kind(COMPUTE)
    if isinstance(module, _NORM_MODULES):
        return Kind(NORM)
    if isinstance(module, nn.ReLU6):
        return Kind(CLAMP, "relu6", True)
    if isinstance(module, nn.ReLU):
        return Kind(CLAMP, "relu", True)
    if isinstance(module, _SAME_MODULES):
        return Kind(SAME)
    if isinstance(module, _POOL_MODULES):
        return Kind(POOL)
    if isinstance(module, nn.Upsample):
        return Kind(SAME if module.mode == "nearest" else POOL)
    if isinstance(module, nn.Softmax | nn.Softmax2d):
        return Kind(FLOAT_OP, "", True)
    for known, name in _TABLES.items():
        if isinstance(module, known):
            return Kind(TABLE, name, name in _NONNEGATIVE)
    return Kind(FLOAT_OP)


def kind_of(root: nn.Module, node: fx.Node) -> Kind:
    """Return what a node of a flat trace does to the values."""
    if node.op == "call_module":
        return _of_module(root.get_submodule(str(node.target)))
    if node.op not in ("call_function", "call_method"):
        return Kind(FLOAT_OP)
    target: Any = node.target
    if node.op == "call_function":
        home = (getattr(target, "__module__", None) or "torch").split(".")[0]
        if home not in _OWN_MODULES:
            return Kind(FLOAT_OP)
        target = getattr(target, "__name__", "")
    name = str(target).rstrip("_") if not str(target).startswith("_") else str(target)
    found = _CALLS.get(name, Kind(FLOAT_OP))
    inputs = _tensor_inputs(node)
    if found.kind in (ADD, MUL) and (len(node.args) < 2 or len(inputs) < 1 or _has_scalar(node)):
        return Kind(FLOAT_OP)
    if found.kind == POOL and name in ("interpolate", "upsample"):
        mode = node.kwargs.get("mode", node.args[3] if len(node.args) > 3 else "nearest")
        return Kind(SAME if mode == "nearest" else POOL)
    if name == "pad":
        return Kind(FLOAT_OP)
    if name == "max" and not node.meta.get("tensor"):
        return Kind(FLOAT_OP)
    return found


def _has_scalar(node: fx.Node) -> bool:
    """Return whether an operand of an addition or product is not a tensor of floats."""
    operands = node.args[:2]
    return any(not (isinstance(a, fx.Node) and a.meta.get("float")) for a in operands)


def is_fused_activation(name: str) -> bool:
    return name in ("relu", "relu6", "hardswish", "hardsigmoid")


def same_input(node: fx.Node) -> fx.Node | None:
    """Return the node that a node which only moves values takes them from."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first if isinstance(first, fx.Node) else None
