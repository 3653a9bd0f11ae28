"""Which channels of which parameters must go together.

Every index along a dimension that may shrink is an *atom*. Following a flat trace, each value has,
for each of its dimensions, the atoms along it, or None where nothing may be removed. A layer links
the dimensions of its parameters to them; an addition makes the atoms of both sides one. Where an
operation is not understood, the atoms it reads are frozen, with the reason.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from bitpare import graph as g
from bitpare.nn.quantizer import Quantizer
from bitpare.prune.atoms import Atoms, Dims, Held, argument_of, flattened, name_of
from bitpare.prune.shape_rules import ShapeRules

_NAMES = {
    "elementwise": "relu relu6 hardswish hardsigmoid silu gelu sigmoid tanh mish selu elu celu "
    "softplus leaky_relu hardtanh logsigmoid softsign tanhshrink dropout dropout1d dropout2d "
    "dropout3d feature_dropout alpha_dropout stochastic_depth drop_path clone detach contiguous to "
    "float half bfloat16 clamp type_as abs neg square sqrt exp log pow identity",
    "binary": "add iadd radd sub isub mul imul rmul truediv div maximum minimum",
    "pool": "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d interpolate upsample pad",
    "reshape": "flatten reshape view squeeze unsqueeze unflatten",
    "concatenate": "cat concat concatenate",
    "product": "matmul bmm",
}
_IS = {kind: frozenset(names.split()) for kind, names in _NAMES.items()}
_ELEMENTWISE_MODULES = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.GELU, nn.Sigmoid,
    nn.Tanh, nn.Mish, nn.SELU, nn.ELU, nn.CELU, nn.Softplus, nn.LeakyReLU, nn.Hardtanh,
    nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.modules.dropout._DropoutNd,
)  # fmt: skip
_POOL_MODULES = (
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd, nn.Upsample,
    nn.modules.padding._ConstantPadNd, nn.ZeroPad2d, nn.modules.padding._ReflectionPadNd,
    nn.modules.padding._ReplicationPadNd,
)  # fmt: skip
_PER_CHANNEL = (nn.modules.batchnorm._NormBase,)


class Channels(ShapeRules):
    """The atoms of a model, from its traces: the same parameters have the same atoms in all."""

    def __init__(self, model: nn.Module, traces: Sequence[g.FlatTrace]) -> None:
        super().__init__(model, traces)
        for trace in traces:
            for node in trace.graph.nodes:
                self.values[node] = self._follow(node)

    def before_relu(self) -> list[fx.Node]:
        """The calls of layers whose result goes through a ReLU and nowhere else."""

        def is_relu(node: fx.Node) -> bool:
            if node.op == "call_module":
                module = self.model.get_submodule(str(node.target))
                return isinstance(module, nn.ReLU | nn.ReLU6)
            return name_of(node) in ("relu", "relu6")

        return [
            node
            for node in self.graph.nodes
            if node.op == "call_module"
            and node.users
            and all(is_relu(user) for user in node.users)
            and isinstance(self.values[node], list)
            and len(self.values[node]) > 1
        ]

    # -- operations

    def _follow(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._untracked(node)
        if node.op == "output":
            for value in node.all_input_nodes:
                self.freeze(flattened(self.values.get(value)), "it is an output of the model")
            return None
        if node.op == "get_attr":
            return self._untracked(node)
        if node.op == "call_module":
            return self._module(node, self.model.get_submodule(str(node.target)))
        return self._function(node, name_of(node))

    def _module(self, node: fx.Node, module: Any) -> Any:
        found = self._layer(node, module)
        held = module.__dict__.get("_modules", {})
        self._link_values(node, held.get("bp_input"), self._dims(node))
        self._link_values(node, held.get("bp_output"), found)
        return found

    def _layer(self, node: fx.Node, module: Any) -> Any:
        x = self._dims(node)
        if x is None:
            self._not_understood(node)
            return self._untracked(node)
        if isinstance(module, Quantizer):
            combined = self._combined(node)
            self._link_values(node, module, combined)
            return combined
        if isinstance(module, nn.modules.conv._ConvNd):
            return self._convolution(node, module, x)
        if isinstance(module, nn.Linear):
            return self._linear((module, "weight"), (module, "bias"), x)
        if isinstance(module, _PER_CHANNEL):
            for name in ("weight", "bias", "running_mean", "running_var"):
                self._link(module, name, 0, x[1])
            return x
        if isinstance(module, nn.PReLU):
            if module.num_parameters > 1:
                self._link(module, "weight", 0, x[1])
            return x
        if isinstance(module, _ELEMENTWISE_MODULES):
            return x
        if isinstance(module, _POOL_MODULES):
            return self._same_channels(node, x)
        if isinstance(module, nn.Flatten):
            return self._reshaped(node, x)
        if isinstance(module, nn.PixelShuffle):
            return self._pixel_shuffle(node, x, module.upscale_factor)
        if isinstance(module, nn.Softmax | nn.LogSoftmax):
            return self._along(node, x, module.dim)
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.LocalResponseNorm | nn.RMSNorm):
            axes = [1] if isinstance(module, nn.GroupNorm | nn.LocalResponseNorm) else None
            return self._norm(node, x, axes or range(-len(module.normalized_shape), 0))
        self._not_understood(
            node, f"{type(module).__name__} mixes its channels in a way of its own"
        )
        return self._untracked(node)

    def _linear(self, weight: Held, bias: Held | None, x: Dims) -> Dims:
        self._link(*weight, 1, x[-1])
        out = self._produced(*weight, 0)
        if bias is not None:
            self._link(*bias, 0, out)
        return [*x[:-1], out]

    def _held(self, node: fx.Node, index: int, name: str) -> Held | None:
        """The module and attribute that an argument of a function is, if it is one."""
        value = argument_of(node, index, name)
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        owner, _, attribute = str(value.target).rpartition(".")
        module = self.model.get_submodule(owner)
        known = id(getattr(module, attribute, None)) in self.names
        return (module, attribute) if known else None

    def _functional(self, node: fx.Node, x: Dims, arguments: Sequence[str]) -> list[Held | None]:
        """The parameters that a function takes after x; none where one is made on the way."""
        found = []
        for index, name in enumerate(arguments, 1):
            held, value = self._held(node, index, name), argument_of(node, index, name)
            if held is None and isinstance(value, fx.Node):
                self._not_understood(node, f"{name} is not a parameter")
                return []
            found.append(held)
        return found

    def _functional_linear(self, node: fx.Node, x: Dims) -> Any:
        found = self._functional(node, x, ("weight", "bias"))
        if not found or found[0] is None:
            return self._untracked(node)
        return self._linear(found[0], found[1], x)

    def _functional_convolution(self, node: fx.Node, x: Dims) -> Any:
        found = self._functional(node, x, ("weight", "bias"))
        if not found:
            return self._untracked(node)
        if found[0] is None or not isinstance(found[0][0], nn.modules.conv._ConvNd):
            self._not_understood(node)
            return self._untracked(node)
        return self._convolution(node, found[0][0], x)

    def _functional_norm(self, node: fx.Node, x: Dims) -> Any:
        names = ("running_mean", "running_var", "weight", "bias")
        for held in self._functional(node, x, names):
            if held is not None:
                self._link(*held, 0, x[1])
        return x

    def _convolution(self, node: fx.Node, conv: Any, x: Dims) -> Dims:
        transposed = isinstance(conv, nn.modules.conv._ConvTransposeNd)
        channel = len(x) - conv.weight.dim() + 1  # without a batch it comes first
        inputs, groups = x[channel], conv.groups
        if transposed and groups > 1:
            self._not_understood(node, "a transposed convolution in groups")
            return self._untracked(node)  # type: ignore[no-any-return]
        out: Atoms
        if groups == 1:
            self._link(conv, "weight", 0 if transposed else 1, inputs)
            out = self._produced(conv, "weight", 1 if transposed else 0)
        elif groups == conv.in_channels:
            out = self._depthwise(conv, inputs)
        else:
            if inputs is not None:
                size = len(inputs) // groups
                for k in range(groups):  # as many channels of each group
                    self._join_all(inputs[:size], inputs[k * size : (k + 1) * size])
                self._link(conv, "weight", 1, inputs[:size])
            out = self._produced(conv, "weight", 0)
            size = len(out) // groups
            for k in range(groups):
                self._join_all(out[:size], out[k * size : (k + 1) * size])
        self._link(conv, "bias", 0, out)
        return [*x[:channel], out, *[None] * (conv.weight.dim() - 2)]

    def _depthwise(self, conv: Any, inputs: Atoms) -> list[int] | None:
        if inputs is None:
            return None
        times = conv.out_channels // conv.in_channels
        out = [a for a in inputs for _ in range(times)]
        self._link(conv, "weight", 0, out)
        self.depthwise.add(self.names[id(conv.weight)].rpartition(".")[0])
        return out

    def _function(self, node: fx.Node, name: str) -> Any:
        if (
            name in ("getattr", "size", "dim", "require_rank", "len")
            or node.meta.get("shape") is None
        ):
            return self._parts(node, name)
        x = self._dims(node)
        if name in _IS["concatenate"]:
            return self._concatenated(node)
        if name == "stack":
            return self._stacked(node)
        if name in _IS["product"]:
            return self._product(node)
        if name in _IS["binary"]:
            return self._combined(node)
        if x is None:
            value = self.values.get(node.args[0]) if node.args else None  # type: ignore[arg-type]
            if name == "getitem" and isinstance(value, tuple) and isinstance(node.args[1], int):
                return value[node.args[1]]
            self._not_understood(node)
            return self._untracked(node)
        return self._single(node, name, x)

    def _single(self, node: fx.Node, name: str, x: Dims) -> Any:
        rules: dict[str, Callable[[], Any]] = {
            "softmax": lambda: self._along(node, x, argument_of(node, 1, "dim")),
            "log_softmax": lambda: self._along(node, x, argument_of(node, 1, "dim")),
            "layer_norm": lambda: self._norm(
                node, x, range(-len(argument_of(node, 1, "") or (1,)), 0)
            ),
            "group_norm": lambda: self._norm(node, x, [1]),
            "batch_norm": lambda: self._functional_norm(node, x),
            "instance_norm": lambda: self._functional_norm(node, x),
            "linear": lambda: self._functional_linear(node, x),
            "conv1d": lambda: self._functional_convolution(node, x),
            "conv2d": lambda: self._functional_convolution(node, x),
            "conv3d": lambda: self._functional_convolution(node, x),
            "pixel_shuffle": lambda: self._pixel_shuffle(node, x, argument_of(node, 1, "")),
            "permute": lambda: self._permuted(node, x),
            "transpose": lambda: self._swapped(node, x),
            "swapaxes": lambda: self._swapped(node, x),
            "mean": lambda: self._reduced(node, x),
            "sum": lambda: self._reduced(node, x),
            "amax": lambda: self._reduced(node, x),
            "getitem": lambda: self._indexed(node, x),
        }
        if name in rules:
            return rules[name]()
        if name in _IS["elementwise"]:
            return x
        if name in _IS["pool"]:
            return self._same_channels(node, x)
        if name in _IS["reshape"]:
            return self._reshaped(node, x)
        self._not_understood(node)
        return self._untracked(node)
