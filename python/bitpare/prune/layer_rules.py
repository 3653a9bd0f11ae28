"""Rules for layers: which dimensions of their parameters belong to which channels."""

from typing import Any

from torch import fx, nn

from bitpare.graph.ops import Op
from bitpare.prune.atoms import Atoms, AtomTable, Dims, ParameterPlace


def _parameters(
    table: AtomTable, node: fx.Node, op: Op, names: tuple[str, ...]
) -> list[ParameterPlace | None] | None:
    """Return the module and attribute of each parameter of a layer, or None if one is computed."""
    if op.module is not None:
        return [(op.module, name) for name in names]
    found: list[ParameterPlace | None] = []
    for name in names:
        value = op.arguments.get(name)
        held = table.place_of(value)
        if held is None and isinstance(value, fx.Node):
            table.refuse(node, f"{name} is not a parameter")
            return None
        found.append(held)
    return found


def linear(table: AtomTable, node: fx.Node, op: Op) -> Any:
    x, found = table.operand_dims(node), _parameters(table, node, op, ("weight", "bias"))
    if not found or found[0] is None:
        return table.untracked(node)
    weight, bias = found[0], found[1]
    table.link(*weight, 1, x[-1])
    out = table.produced(*weight, 0)
    if bias is not None:
        table.link(*bias, 0, out)
    return [*x[:-1], out]


def norm_of_channels(table: AtomTable, node: fx.Node, op: Op) -> Dims:
    """Handle BatchNorm and InstanceNorm, whose parameters have one element per channel."""
    x = table.operand_dims(node)
    names = ("weight", "bias", "running_mean", "running_var")
    for held in _parameters(table, node, op, names) or ():
        if held is not None:
            table.link(*held, 0, x[1])
    return x


def prelu(table: AtomTable, node: fx.Node, op: Op) -> Any:
    x, module = table.operand_dims(node), op.module
    if not isinstance(module, nn.PReLU):
        table.refuse(node)
        return table.untracked(node)
    if module.num_parameters > 1:
        table.link(module, "weight", 0, x[1])
    return x


def convolution(table: AtomTable, node: fx.Node, op: Op) -> Any:
    if op.module is not None:
        return _convolution(table, node, op.module, table.operand_dims(node))
    found = _parameters(table, node, op, ("weight", "bias"))
    if found is None:
        return table.untracked(node)
    if found[0] is None or not isinstance(found[0][0], nn.modules.conv._ConvNd):
        table.refuse(node)
        return table.untracked(node)
    return _convolution(table, node, found[0][0], table.operand_dims(node))


def _convolution(table: AtomTable, node: fx.Node, conv: Any, x: Dims) -> Dims:
    transposed = isinstance(conv, nn.modules.conv._ConvTransposeNd)
    channel = len(x) - conv.weight.dim() + 1  # without a batch dimension the channels come first
    inputs, groups = x[channel], conv.groups
    if transposed and groups > 1:
        table.refuse(node, "a transposed convolution in groups")
        return table.untracked(node)  # type: ignore[no-any-return]
    out: Atoms
    if groups == 1:
        table.link(conv, "weight", 0 if transposed else 1, inputs)
        out = table.produced(conv, "weight", 1 if transposed else 0)
    elif groups == conv.in_channels:
        out = _depthwise(table, conv, inputs)
    else:
        if inputs is not None:
            size = len(inputs) // groups
            for k in range(groups):  # remove the same number of channels from each group
                table.join_all(inputs[:size], inputs[k * size : (k + 1) * size])
            table.link(conv, "weight", 1, inputs[:size])
        out = table.produced(conv, "weight", 0)
        size = len(out) // groups
        for k in range(groups):
            table.join_all(out[:size], out[k * size : (k + 1) * size])
    table.link(conv, "bias", 0, out)
    return [*x[:channel], out, *[None] * (conv.weight.dim() - 2)]


def _depthwise(table: AtomTable, conv: Any, inputs: Atoms) -> list[int] | None:
    if inputs is None:
        return None
    times = conv.out_channels // conv.in_channels
    out = [a for a in inputs for _ in range(times)]
    table.link(conv, "weight", 0, out)
    table.depthwise.add(table.names[id(conv.weight)].rpartition(".")[0])
    return out
