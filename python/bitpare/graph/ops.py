"""Name the operation of a graph node, whether it calls a module, a function or a method.

To add an operation, add a row here and a rule in each package that handles it."""

import ast
import dataclasses
from typing import Any

from torch import fx, nn

# The parameters of operations whose arguments are read, with the defaults of torch's functions.
# Modules have attributes of the same names.
_PARAMETERS = {
    "hardtanh": "input min_val=-1.0 max_val=1.0 inplace=False",
    "softmax log_softmax": "input dim=None",
    "dropout dropout1d dropout2d dropout3d alpha_dropout": "input p=0.5 training=True "
    "inplace=False",
    "stochastic_depth": "input p mode training=True",
    "flatten": "input start_dim=0 end_dim=-1",
    "mean sum amax": "input dim=None keepdim=False",
    "cat stack": "tensors dim=0",
    "chunk": "input chunks dim=0",
    "split": "input split_size dim=0",
    "unbind": "input dim=0",
    "transpose": "input dim0 dim1",
    "interpolate": "input size=None scale_factor=None mode='nearest' align_corners=None",
    "max_pool1d max_pool2d max_pool3d": "input kernel_size stride=None padding=0 dilation=1 "
    "ceil_mode=False return_indices=False",
    "avg_pool1d avg_pool2d avg_pool3d": "input kernel_size stride=None padding=0 ceil_mode=False "
    "count_include_pad=True divisor_override=None",
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d": "input output_size",
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d": "input output_size "
    "return_indices=False",
    "linear": "input weight bias=None",
    "conv1d conv2d conv3d": "input weight bias=None stride=1 padding=0 dilation=1 groups=1",
    "conv_transpose1d conv_transpose2d conv_transpose3d": "input weight bias=None stride=1 "
    "padding=0 output_padding=0 groups=1 dilation=1",
    "embedding": "input weight padding_idx=None",
    "batch_norm": "input running_mean running_var weight=None bias=None training=False",
    "instance_norm": "input running_mean=None running_var=None weight=None bias=None",
    "layer_norm": "input normalized_shape weight=None bias=None eps=1e-05",
    "rms_norm": "input normalized_shape weight=None eps=None",
    "group_norm": "input num_groups weight=None bias=None eps=1e-05",
    "pixel_shuffle": "input upscale_factor",
    "getitem": "input index",
}
_SIGNATURES = {
    name: {
        parameter: ast.literal_eval(default) if default else ...
        for parameter, _, default in (part.partition("=") for part in text.split())
    }
    for names, text in _PARAMETERS.items()
    for name in names.split()
}

# Other names of the same operation.
_ALIASES = {
    "iadd": "add", "radd": "add", "isub": "sub", "imul": "mul", "rmul": "mul", "truediv": "div",
    "concat": "cat", "concatenate": "cat", "swapaxes": "transpose", "upsample": "interpolate",
}  # fmt: skip

_MODULES: dict[type, str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Hardswish: "hardswish", nn.Hardsigmoid: "hardsigmoid",
    nn.SiLU: "silu", nn.GELU: "gelu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.Mish: "mish",
    nn.SELU: "selu", nn.ELU: "elu", nn.CELU: "celu", nn.Softplus: "softplus",
    nn.LeakyReLU: "leaky_relu", nn.Hardtanh: "hardtanh", nn.LogSigmoid: "logsigmoid",
    nn.Softsign: "softsign", nn.Tanhshrink: "tanhshrink", nn.PReLU: "prelu",
    nn.Softmax: "softmax", nn.Softmax2d: "softmax", nn.LogSoftmax: "log_softmax",
    nn.Identity: "identity", nn.Flatten: "flatten", nn.Unflatten: "unflatten",
    nn.PixelShuffle: "pixel_shuffle", nn.PixelUnshuffle: "pixel_unshuffle",
    nn.ChannelShuffle: "channel_shuffle", nn.Dropout: "dropout", nn.Dropout1d: "dropout1d",
    nn.Dropout2d: "dropout2d", nn.Dropout3d: "dropout3d", nn.AlphaDropout: "alpha_dropout",
    nn.FeatureAlphaDropout: "feature_alpha_dropout",
    nn.MaxPool1d: "max_pool1d", nn.MaxPool2d: "max_pool2d", nn.MaxPool3d: "max_pool3d",
    nn.AvgPool1d: "avg_pool1d", nn.AvgPool2d: "avg_pool2d", nn.AvgPool3d: "avg_pool3d",
    nn.AdaptiveMaxPool1d: "adaptive_max_pool1d", nn.AdaptiveMaxPool2d: "adaptive_max_pool2d",
    nn.AdaptiveMaxPool3d: "adaptive_max_pool3d", nn.AdaptiveAvgPool1d: "adaptive_avg_pool1d",
    nn.AdaptiveAvgPool2d: "adaptive_avg_pool2d", nn.AdaptiveAvgPool3d: "adaptive_avg_pool3d",
    nn.Upsample: "interpolate", nn.ZeroPad1d: "zero_pad", nn.ZeroPad2d: "zero_pad",
    nn.ZeroPad3d: "zero_pad", nn.modules.padding._ConstantPadNd: "pad",
    nn.modules.padding._ReflectionPadNd: "pad", nn.modules.padding._ReplicationPadNd: "pad",
    nn.Linear: "linear", nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d", nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d", nn.Embedding: "embedding", nn.Bilinear: "bilinear",
    nn.MultiheadAttention: "attention", nn.modules.batchnorm._BatchNorm: "batch_norm",
    nn.modules.instancenorm._InstanceNorm: "instance_norm", nn.LayerNorm: "layer_norm",
    nn.GroupNorm: "group_norm", nn.RMSNorm: "rms_norm",
    nn.LocalResponseNorm: "local_response_norm",
}  # fmt: skip

# Functions of these packages do what their names say; other packages may use the same name for
# something else.
_HOMES = ("torch", "_operator", "operator", "builtins", "torchvision", "math", "bitpare")

CONVOLUTIONS = frozenset(f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3))
PRODUCTS = frozenset(("matmul", "bmm", "mm", "einsum", "baddbmm"))


@dataclasses.dataclass(frozen=True)
class Op:
    """The operation of a node. name: "" if it has no known name. arguments: the known arguments, by
    parameter. module: the module that is called."""

    name: str
    arguments: dict[str, Any]
    module: nn.Module | None = None

    def __getitem__(self, parameter: str) -> Any:
        return self.arguments[parameter]


def function_name(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls, without leading and trailing
    underscores."""
    return str(getattr(node.target, "__name__", node.target)).strip("_")


def first_input(node: fx.Node) -> fx.Node | None:
    """Return the node that is a node's first argument, or None."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first if isinstance(first, fx.Node) else None


def name_module(kind: type, name: str) -> None:
    """Set the name of the operation that a class of modules computes."""
    _MODULES[kind] = name


def op_of(root: nn.Module, node: fx.Node) -> Op:
    """Return the operation of a node in a graph of ``root``."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        name = next((_MODULES[kind] for kind in type(module).__mro__ if kind in _MODULES), "")
        return Op(name, _module_arguments(module, name), module)
    if node.op not in ("call_function", "call_method"):
        return Op("", {})
    if node.op == "call_function":
        home = (getattr(node.target, "__module__", None) or "torch").split(".")[0]
        if home not in _HOMES:
            return Op("", {})
    name = function_name(node)
    name = _ALIASES.get(name, name)
    return Op(name, _call_arguments(node, name))


def _module_arguments(module: nn.Module, name: str) -> dict[str, Any]:
    """Return the arguments of an operation that a module has as attributes."""
    found = _defaults(name)
    for parameter in _SIGNATURES.get(name, ()):
        if parameter in module.__dict__ or hasattr(type(module), parameter):
            found[parameter] = getattr(module, parameter)
    return found | ({"dim": -3} if isinstance(module, nn.Softmax2d) else {})


def _call_arguments(node: fx.Node, name: str) -> dict[str, Any]:
    """Return the arguments of a call, with defaults for those left out."""
    given = dict(zip(_SIGNATURES.get(name, ("input",)), node.args, strict=False))
    return _defaults(name) | given | dict(node.kwargs)


def _defaults(name: str) -> dict[str, Any]:
    return {p: v for p, v in _SIGNATURES.get(name, {}).items() if v is not ...}
