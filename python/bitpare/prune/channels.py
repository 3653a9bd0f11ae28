"""Which channels of which parameters must go together.

Every index along a dimension that may shrink is an *atom*. Following a flat trace, each value has,
for each of its dimensions, the atoms along it, or None where nothing may be removed. A layer links
the dimensions of its parameters to them; an addition makes the atoms of both sides one. Where an
operation is not understood, the atoms it reads are frozen, with the reason.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from bitpare import graph as g
from bitpare.nn.quantizer import PER_SCALE, Quantizer
from bitpare.nn.weights import quantized_weights

Atoms = list[int] | None  # along one dimension
Dims = list[Atoms]  # of one value
Held = tuple[nn.Module, str]  # a parameter or buffer

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
    "sizes": "getattr size dim require_rank len",
    "arithmetic": "getitem floordiv add sub mul truediv",
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


class Channels:
    """links: (parameter's or buffer's name, dimension) -> its atoms."""

    def __init__(self, model: nn.Module, traces: Sequence[g.FlatTrace]) -> None:
        self.model, self.graph = model, traces[0].graph
        self._parents: list[int] = []
        self._families: list[int] = []
        self.frozen: dict[int, str] = {}
        self.links: dict[tuple[str, int], list[int]] = {}
        self.depthwise: set[str] = set()  # whose groups are their input channels
        self.not_understood: list[str] = []
        self._names = _first_names(model)
        self._quantizers: dict[str, list[Quantizer]] = {}  # of a weight, for each that shares it
        for weight in quantized_weights(model):
            known = self._quantizers.setdefault(self._names.get(id(weight.value), ""), [])
            known.append(weight.quantizer)
        self.values: dict[fx.Node, Any] = {}
        for trace in traces:  # the same parameters have the same atoms in all of them
            for node in trace.graph.nodes:
                self.values[node] = self._follow(node)

    # -- atoms

    def _new(self, count: int) -> list[int]:
        start = len(self._parents)
        self._parents += range(start, start + count)
        self._families += [start] * count
        return list(range(start, start + count))

    def root(self, atom: int) -> int:
        while self._parents[atom] != atom:
            self._parents[atom] = self._parents[self._parents[atom]]
            atom = self._parents[atom]
        return atom

    def family(self, atom: int) -> int:
        """Atoms of one family lie along the same dimensions."""
        at = self._families[atom]
        while self._families[at] != at:
            self._families[at] = self._families[self._families[at]]
            at = self._families[at]
        return at

    def _join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        if a == b:
            return
        first, second = self.family(a), self.family(b)
        self._families[max(first, second)] = min(first, second)
        reason = self.frozen.get(a) or self.frozen.get(b)
        self._parents[max(a, b)] = min(a, b)
        if reason:
            self.frozen[min(a, b)] = reason

    def _join_all(self, a: list[int], b: list[int]) -> list[int]:
        for x, y in zip(a, b, strict=True):
            self._join(x, y)
        return a

    def freeze(self, dims: Iterable[Atoms], reason: str) -> None:
        for atoms in dims:
            for atom in atoms or ():
                self.frozen.setdefault(self.root(atom), reason)

    def _not_understood(self, node: fx.Node, why: str = "") -> None:
        what = f"{self._path(node)}: {why or 'an operation that shrink does not know'}"
        atoms = [a for n in node.all_input_nodes for a in _flat(self.values.get(n))]
        if any(a is not None for a in atoms):
            self.not_understood.append(what)
        self.freeze(atoms, what)

    def _path(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return str(node.target)
        owner = node.meta.get("site", ("", 0, 0))[0]
        name = _name_of(node)
        return f"{owner}.{name}" if owner else name

    def before_relu(self) -> list[fx.Node]:
        """The calls of layers whose result goes through a ReLU and nowhere else."""

        def is_relu(node: fx.Node) -> bool:
            if node.op == "call_module":
                module = self.model.get_submodule(str(node.target))
                return isinstance(module, nn.ReLU | nn.ReLU6)
            return _name_of(node) in ("relu", "relu6")

        return [
            node
            for node in self.graph.nodes
            if node.op == "call_module"
            and node.users
            and all(is_relu(user) for user in node.users)
            and isinstance(self.values[node], list)
            and len(self.values[node]) > 1
        ]

    # -- links to parameters

    def _link(self, owner: nn.Module, attribute: str, dim: int, atoms: Atoms) -> None:
        held = getattr(owner, attribute, None)
        if atoms is None or not isinstance(held, Tensor):
            return
        key = (self._names[id(held)], dim)
        known = self.links.setdefault(key, atoms)
        if known is not atoms:
            self._join_all(known, atoms)
        for quantizer in self._quantizers.get(key[0], ()):
            self._link_scales(quantizer, dim, atoms, key[0])

    def _link_scales(self, quantizer: Quantizer, dim: int, atoms: list[int], what: str) -> None:
        """What a quantizer keeps for each index along a dimension of what it quantizes."""
        if quantizer.grid.group is not None:
            self.freeze([atoms], f"{what}: quantized in groups")
        if quantizer.grid.axis != dim:
            return
        for name in PER_SCALE:
            held = getattr(quantizer, name, None)
            if isinstance(held, Tensor) and held.shape[-1] == len(atoms):
                self._link(quantizer, name, held.dim() - 1, atoms)

    def _link_values(self, node: fx.Node, quantizer: Any, x: Any) -> None:
        """The quantizer of a value with these dimensions."""
        if not isinstance(quantizer, Quantizer) or not isinstance(x, list):
            return
        for dim, atoms in enumerate(x):
            if atoms is not None:
                self._link_scales(quantizer, dim, atoms, self._path(node))
        if not quantizer.holds_zero:
            self.freeze(x, f"{self._path(node)}: quantized on a grid without 0")

    def _produced(self, owner: nn.Module, attribute: str, dim: int) -> list[int]:
        """The atoms that a dimension of a parameter makes; the same ones at every use."""
        held = getattr(owner, attribute)
        key = (self._names[id(held)], dim)
        if key not in self.links:
            self._link(owner, attribute, dim, self._new(held.shape[dim]))
        return self.links[key]

    # -- operations

    def _follow(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._untracked(node)
        if node.op == "output":
            for value in node.all_input_nodes:
                self.freeze(_flat(self.values.get(value)), "it is an output of the model")
            return None
        if node.op == "get_attr":
            return self._untracked(node)
        if node.op == "call_module":
            return self._module(node, self.model.get_submodule(str(node.target)))
        return self._function(node, _name_of(node))

    def _untracked(self, node: fx.Node) -> Any:
        shape = node.meta.get("shape")
        return None if shape is None else [None] * len(shape)

    def _dims(self, node: fx.Node, index: int = 0) -> Dims | None:
        """Of an operand that is a tensor."""
        value = node.args[index] if len(node.args) > index else None
        if value is None and index == 0:
            value = node.kwargs.get("input", node.kwargs.get("x"))
        found = self.values.get(value) if isinstance(value, fx.Node) else None
        return found if isinstance(found, list) else None

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
        value = _argument(node, index, name)
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        owner, _, attribute = str(value.target).rpartition(".")
        module = self.model.get_submodule(owner)
        known = id(getattr(module, attribute, None)) in self._names
        return (module, attribute) if known else None

    def _functional(self, node: fx.Node, x: Dims, arguments: Sequence[str]) -> list[Held | None]:
        """The parameters that a function takes after x; none where one is made on the way."""
        found = []
        for index, name in enumerate(arguments, 1):
            held, value = self._held(node, index, name), _argument(node, index, name)
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
        self.depthwise.add(self._names[id(conv.weight)].rpartition(".")[0])
        return out

    def _same_channels(self, node: fx.Node, x: Dims) -> Dims:
        shape = node.meta["shape"]
        before = node.args[0].meta["shape"] if isinstance(node.args[0], fx.Node) else shape
        kept = [a if a is None or i < 2 else None for i, a in enumerate(x)]
        changed = [a for i, a in enumerate(x) if a is not None and before[i] != shape[i]]
        self.freeze([*changed, *x[2:]], f"{self._path(node)}: pools or pads across channels")
        return [None if a in changed else a for a in kept]

    def _along(self, node: fx.Node, x: Dims, dim: int | None) -> Dims:
        """Something that reads all of a dimension at once."""
        self.freeze(
            [x[dim]] if dim is not None else x, f"{self._path(node)}: reads all channels at once"
        )
        return x

    def _norm(self, node: fx.Node, x: Dims, axes: Iterable[int]) -> Dims:
        axes = list(axes)
        if any(x[a] is not None for a in axes):
            self.not_understood.append(
                f"{self._path(node)}: a norm over channels changes when one of them goes"
            )
        self.freeze([x[a] for a in axes], f"{self._path(node)}: a norm over these channels")
        return x

    def _pixel_shuffle(self, node: fx.Node, x: Dims, factor: int) -> Dims:
        atoms = x[-3]
        if atoms is not None:
            size = factor * factor
            for start in range(0, len(atoms), size):
                for k in range(size):
                    self._join(atoms[start], atoms[start + k])
            atoms = atoms[::size]
        return [*x[:-3], atoms, None, None]

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
            "softmax": lambda: self._along(node, x, _argument(node, 1, "dim")),
            "log_softmax": lambda: self._along(node, x, _argument(node, 1, "dim")),
            "layer_norm": lambda: self._norm(
                node, x, range(-len(_argument(node, 1, "") or (1,)), 0)
            ),
            "group_norm": lambda: self._norm(node, x, [1]),
            "batch_norm": lambda: self._functional_norm(node, x),
            "instance_norm": lambda: self._functional_norm(node, x),
            "linear": lambda: self._functional_linear(node, x),
            "conv1d": lambda: self._functional_convolution(node, x),
            "conv2d": lambda: self._functional_convolution(node, x),
            "conv3d": lambda: self._functional_convolution(node, x),
            "pixel_shuffle": lambda: self._pixel_shuffle(node, x, _argument(node, 1, "")),
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

    def _parts(self, node: fx.Node, name: str) -> Any:
        """Sizes, and functions that give several tensors."""
        if name not in ("chunk", "split", "unbind"):
            tensors = any(n.meta.get("tensor") for n in node.all_input_nodes)
            if isinstance(node.target, type):  # the class of a result
                for value in node.all_input_nodes:
                    self.freeze(_flat(self.values.get(value)), "it is an output of the model")
            elif tensors and name not in _IS["sizes"] | _IS["arithmetic"]:
                self._not_understood(node)
            return None
        x = self._dims(node)
        if x is None:
            return None
        dim = _argument(node, 2, "dim") if name != "unbind" else _argument(node, 1, "dim")
        dim = (dim or 0) % len(x)
        atoms = x[dim]
        shapes = node.meta.get("shapes")
        if shapes is None:
            self._not_understood(node)
            return None
        if name == "unbind":
            self.freeze([atoms], f"{self._path(node)}: taken apart")
            return tuple([a for i, a in enumerate(x) if i != dim] for _ in shapes)
        if name == "split" and atoms is not None:  # pieces of a fixed size
            self.freeze([atoms], f"{self._path(node)}: split into pieces of a fixed size")
        found, at = [], 0
        sizes = [s[dim] for s in shapes]
        if name == "chunk" and atoms is not None:
            if len(set(sizes)) > 1:
                self.freeze([atoms], f"{self._path(node)}: chunks of different sizes")
            else:  # as many of each chunk
                for k in range(len(sizes)):
                    self._join_all(atoms[: sizes[0]], atoms[k * sizes[0] : (k + 1) * sizes[0]])
        for size in sizes:
            part = None if atoms is None else atoms[at : at + size]
            found.append([part if i == dim else a for i, a in enumerate(x)])
            at += size
        return tuple(found)

    def _combined(self, node: fx.Node) -> Dims:
        shape = node.meta["shape"]
        given = [*node.args[:2], node.kwargs.get("other")]
        operands = [a for a in given if isinstance(a, fx.Node) and a.meta.get("tensor")]
        result: Dims = [None] * len(shape)
        for operand in operands:
            dims = self.values[operand]
            for back in range(1, len(dims) + 1):
                if dims[-back] is not None and operand.meta["shape"][-back] == shape[-back]:
                    known = result[-back]
                    result[-back] = (
                        dims[-back] if known is None else self._join_all(known, dims[-back])
                    )
        for operand in operands:
            self._agree(node, operand, result)
        return result

    def _agree(self, node: fx.Node, operand: fx.Node, result: Dims) -> None:
        """Operands that have no atoms of their own where the result has some."""
        dims, shape = self.values[operand], operand.meta["shape"]
        for back in range(1, len(dims) + 1):
            if result[-back] is None or dims[-back] is not None or shape[-back] == 1:
                continue
            if operand.op == "get_attr":
                owner, _, attribute = str(operand.target).rpartition(".")
                module = self.model.get_submodule(owner)
                if id(getattr(module, attribute, None)) in self._names:
                    self._link(module, attribute, len(dims) - back, result[-back])
                    continue
            why = f"{self._path(node)}: meets a value whose channels stay"
            self.freeze([result[-back]], why)

    def _concatenated(self, node: fx.Node) -> Dims:
        tensors: Sequence[Any] = node.args[0] if node.args else node.kwargs["tensors"]  # type: ignore[assignment]
        values = [self.values[t] for t in tensors]
        shape = node.meta["shape"]
        dim = (_argument(node, 1, "dim") or 0) % len(shape)
        result: Dims = [None] * len(shape)
        for i in range(len(shape)):
            if i == dim:
                continue
            known = [value[i] for value in values if value[i] is not None]
            for atoms in known[1:]:
                self._join_all(known[0], atoms)
            result[i] = known[0] if known else None
            if len(known) < len(values):
                why = f"{self._path(node)}: meets a value whose channels stay"
                self.freeze([result[i]], why)
        along: list[int] = []
        tracked = any(value[dim] is not None for value in values)
        for tensor, value in zip(tensors, values, strict=True):
            if value[dim] is None and tracked:
                fixed = self._new(tensor.meta["shape"][dim])
                self.freeze([fixed], f"{self._path(node)}: a part of it stays")
                along += fixed
            else:
                along += value[dim] or []
        result[dim] = along if tracked else None
        return result

    def _stacked(self, node: fx.Node) -> Dims:
        tensors: Sequence[Any] = node.args[0] if node.args else node.kwargs["tensors"]  # type: ignore[assignment]
        values = [self.values[t] for t in tensors]
        result: Dims = []
        for along in zip(*values, strict=True):
            known = [atoms for atoms in along if atoms is not None]
            for atoms in known[1:]:
                self._join_all(known[0], atoms)
            result.append(known[0] if known else None)
            if len(known) < len(along):
                self.freeze([result[-1]], f"{self._path(node)}: meets a value whose channels stay")
        dim = (_argument(node, 1, "dim") or 0) % len(node.meta["shape"])
        return [*result[:dim], None, *result[dim:]]

    def _product(self, node: fx.Node) -> Any:
        x, y = self._dims(node), self._dims(node, 1)
        if x is None or y is None or len(x) < 2 or len(y) < 2:
            self._not_understood(node)
            return self._untracked(node)
        inner, outer = x[-1], y[-2]
        if inner is not None and outer is not None:
            self._join_all(inner, outer)
        else:
            self.freeze([inner, outer], f"{self._path(node)}: meets a value whose channels stay")
        self.freeze([*x[:-2], *y[:-2]], f"{self._path(node)}: a product in batches")
        return [*[None] * (len(node.meta["shape"]) - 2), x[-2], y[-1]]

    def _permuted(self, node: fx.Node, x: Dims) -> Dims:
        order = node.args[1:]
        if len(order) == 1 and isinstance(order[0], list | tuple):
            order = tuple(order[0])
        if not order:
            order = tuple(node.kwargs["dims"])  # type: ignore[arg-type]
        return [x[i] for i in order]  # type: ignore[index]

    def _swapped(self, node: fx.Node, x: Dims) -> Dims:
        a, b = _argument(node, 1, "dim0"), _argument(node, 2, "dim1")
        x = list(x)
        x[a], x[b] = x[b], x[a]
        return x

    def _reduced(self, node: fx.Node, x: Dims) -> Any:
        dims = _argument(node, 1, "dim")
        keep = bool(_argument(node, 2, "keepdim"))
        if dims is None:
            self.freeze(x, f"{self._path(node)}: reads all channels at once")
            return self._untracked(node)
        gone = {d % len(x) for d in (dims if isinstance(dims, list | tuple) else [dims])}
        self.freeze([x[d] for d in gone], f"{self._path(node)}: reads all channels at once")
        if keep:
            return [None if i in gone else a for i, a in enumerate(x)]
        return [a for i, a in enumerate(x) if i not in gone]

    def _indexed(self, node: fx.Node, x: Dims) -> Any:
        index = node.args[1]
        items = list(index) if isinstance(index, tuple) else [index]
        if Ellipsis in items:
            at = items.index(Ellipsis)
            real = sum(i is not None for i in items) - 1
            items[at : at + 1] = [slice(None)] * (len(x) - real)
        result: Dims = []
        rest = list(x)
        for item in items:
            if item is None:
                result.append(None)
                continue
            atoms = rest.pop(0)
            if isinstance(item, slice) and item == slice(None):
                result.append(atoms)
            elif isinstance(item, slice) and all(
                v is None or isinstance(v, int) for v in (item.start, item.stop, item.step)
            ):
                self.freeze([atoms], f"{self._path(node)}: a slice of fixed bounds")
                result.append(None)
            elif isinstance(item, int):
                self.freeze([atoms], f"{self._path(node)}: one index of it")
            else:
                self._not_understood(node)
                return self._untracked(node)
        return [*result, *rest]

    # -- shapes

    def _reshaped(self, node: fx.Node, x: Dims) -> Any:
        """Row-major order stays: runs of dimensions merge into one, or one splits into several."""
        source = node.args[0] if node.args else node.kwargs["input"]
        before, after = list(source.meta["shape"]), list(node.meta["shape"])  # type: ignore[union-attr]
        fixed = _literal_sizes(node, len(after))
        result: Dims = []
        i = j = 0
        while i < len(before) or j < len(after):
            old, new = [i] if i < len(before) else [], [j] if j < len(after) else []
            a = before[i] if old else 1
            b = after[j] if new else 1
            while a != b:
                if a < b:
                    i += 1
                    if i >= len(before):
                        break
                    old.append(i)
                    a *= before[i]
                else:
                    j += 1
                    if j >= len(after):
                        break
                    new.append(j)
                    b *= after[j]
            if a != b:
                self._not_understood(node)
                return self._untracked(node)
            result += self._regrouped(node, [(x[k], before[k]) for k in old], new, after, fixed)
            i, j = i + 1, j + 1
        return result

    def _regrouped(
        self,
        node: fx.Node,
        old: list[tuple[Atoms, int]],
        new: list[int],
        after: list[int],
        fixed: list[bool],
    ) -> Dims:
        tracked = [k for k, (atoms, _) in enumerate(old) if atoms is not None]
        if not tracked or not new:
            self.freeze([a for a, _ in old], f"{self._path(node)}: a dimension goes")
            return [None] * len(new)
        if len(tracked) > 1:
            self.freeze([a for a, _ in old], f"{self._path(node)}: several of them merge")
            return [None] * len(new)
        inside = math.prod(size for _, size in old[tracked[0] + 1 :])
        outside = math.prod(size for _, size in old[: tracked[0]])
        atoms = old[tracked[0]][0] or []
        flat = [a for a in atoms for _ in range(inside)] * outside
        sizes = [after[k] for k in new]
        wide = [k for k, size in enumerate(sizes) if size > 1]
        if len(wide) <= 1:
            at = wide[0] if wide else 0
            if fixed[new[at]]:
                self.freeze([atoms], f"{self._path(node)}: reshaped to a fixed size")
            return [flat if k == at else None for k in range(len(new))]
        # Of the dimensions it splits into, the last one that is not written as a number shrinks.
        free = [k for k in wide if not fixed[new[k]]]
        if not free:
            self.freeze([atoms], f"{self._path(node)}: reshaped to a fixed size")
            return [None] * len(new)
        at = self._shrinking(flat, sizes, free)
        stride = math.prod(sizes[at + 1 :])
        along = [flat[k * stride] for k in range(sizes[at])]
        for index, atom in enumerate(flat):
            self._join(along[index // stride % sizes[at]], atom)
        return [along if k == at else None for k in range(len(new))]

    def _shrinking(self, flat: list[int], sizes: list[int], free: list[int]) -> int:
        """The dimension along which atoms already differ, or the last one that may shrink."""
        for k in free:
            stride = math.prod(sizes[k + 1 :])
            if all(flat[i] == flat[i // stride % sizes[k] * stride] for i in range(len(flat))):
                return k
        return free[-1]


def _flat(value: Any) -> list[Atoms]:
    if isinstance(value, tuple):
        return [atoms for part in value for atoms in _flat(part)]
    return list(value) if isinstance(value, list) else []


def _name_of(node: fx.Node) -> str:
    name = str(getattr(node.target, "__name__", node.target))
    return name.rstrip("_") if not name.startswith("_") else name.strip("_")


def _argument(node: fx.Node, index: int, name: str) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name)


def _literal_sizes(node: fx.Node, count: int) -> list[bool]:
    """Of the new dimensions, which are written as numbers (other than -1)."""
    if node.op == "call_module" or _name_of(node) not in ("reshape", "view", "unflatten"):
        return [False] * count
    sizes = list(node.args[1:]) or list(node.kwargs.get("shape", ()))  # type: ignore[arg-type]
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = list(sizes[0])
    if _name_of(node) == "unflatten" or len(sizes) != count:
        return [True] * count
    return [isinstance(s, int) and s != -1 for s in sizes]


def _first_names(model: nn.Module) -> dict[int, str]:
    """The first name of each parameter and buffer, by identity."""
    found: dict[int, str] = {}
    for name, held in [*model.named_parameters(), *model.named_buffers()]:
        found.setdefault(id(held), name)
    return found
