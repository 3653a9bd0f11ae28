"""Find out which channels of which parameters must be removed together.

Every index along a dimension that may shrink is an *atom*. A flat trace is followed node by node.
Each value has a list of atoms along each of its dimensions, or None if nothing may be removed
there. A layer links the dimensions of its parameters to atoms. An addition merges the atoms of its
operands. If an operation is not understood, the atoms that it reads are frozen, and the reason is
noted."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from bitpare import graph as g
from bitpare.graph.ops import CONVOLUTIONS, Op, op_of
from bitpare.nn.quantizer import Quantizer
from bitpare.prune import layer_rules, shape_rules
from bitpare.prune.atoms import AtomTable, Dims, flattened

Rule = Callable[[AtomTable, fx.Node, Op], Any]


def unchanged(table: AtomTable, node: fx.Node, op: Op) -> Dims:
    """Handle elementwise operations on one value: the atoms stay."""
    return table.operand_dims(node)


_ELEMENTWISE = (
    "relu relu6 hardswish hardsigmoid silu gelu sigmoid tanh mish selu elu celu softplus "
    "leaky_relu hardtanh logsigmoid softsign tanhshrink dropout dropout1d dropout2d dropout3d "
    "feature_dropout alpha_dropout feature_alpha_dropout stochastic_depth drop_path clone detach "
    "contiguous to float half bfloat16 clamp type_as abs neg square sqrt exp log pow identity"
)
_POOLS = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d interpolate pad zero_pad"
)
_RESHAPES = ("flatten", "reshape", "view", "squeeze", "unsqueeze", "unflatten")
_NORMS = ("layer_norm", "group_norm", "local_response_norm", "rms_norm")
# Rules for operations on one value with known atoms.
RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), unchanged),
    **dict.fromkeys(_POOLS.split(), shape_rules.same_channels),
    **dict.fromkeys(_RESHAPES, shape_rules.reshaped),
    **dict.fromkeys(("softmax", "log_softmax"), shape_rules.along),
    **dict.fromkeys(_NORMS, shape_rules.norm),
    **dict.fromkeys(("mean", "sum", "amax"), shape_rules.reduced),
    **dict.fromkeys(CONVOLUTIONS, layer_rules.convolution),
    **dict.fromkeys(("batch_norm", "instance_norm"), layer_rules.norm_of_channels),
    "linear": layer_rules.linear,
    "prelu": layer_rules.prelu,
    "pixel_shuffle": shape_rules.pixel_shuffle,
    "permute": shape_rules.permuted,
    "transpose": shape_rules.swapped,
    "getitem": shape_rules.indexed,
}
# Rules for operations on several values.
_OF_SEVERAL: dict[str, Rule] = {
    "cat": shape_rules.concatenated,
    "stack": shape_rules.stacked,
    **dict.fromkeys(("matmul", "bmm"), shape_rules.product),
    **dict.fromkeys(("add", "sub", "mul", "div", "maximum", "minimum"), shape_rules.combined),
}


def channels_of(model: nn.Module, traces: Sequence[g.FlatTrace]) -> AtomTable:
    """Return the atoms of a model from its traces. A parameter has the same atoms in all traces."""
    table = AtomTable(model, traces)
    for trace in traces:
        for node in trace.graph.nodes:
            table.values[node] = _follow(table, node)
    return table


def before_relu(table: AtomTable) -> list[fx.Node]:
    """Return the calls of layers whose result is read only by ReLUs."""
    return [
        node
        for node in table.graph.nodes
        if node.op == "call_module"
        and node.users
        and all(op_of(table.model, user).name in ("relu", "relu6") for user in node.users)
        and isinstance(table.values[node], list)
        and len(table.values[node]) > 1
    ]


def _follow(table: AtomTable, node: fx.Node) -> Any:
    if node.op in ("placeholder", "get_attr"):
        return table.untracked(node)
    if node.op == "output":
        for value in node.all_input_nodes:
            table.freeze(flattened(table.values.get(value)), "it is an output of the model")
        return None
    op = op_of(table.model, node)
    if op.module is None:
        return _function(table, node, op)
    result = _layer(table, node, op)
    children = op.module.__dict__.get("_modules", {})
    table.link_values(node, children.get("bp_input"), table.dims(node))
    table.link_values(node, children.get("bp_output"), result)
    return result


def _layer(table: AtomTable, node: fx.Node, op: Op) -> Any:
    if table.dims(node) is None:
        table.refuse(node)
        return table.untracked(node)
    if isinstance(op.module, Quantizer):
        combined = shape_rules.combined(table, node, op)
        table.link_values(node, op.module, combined)
        return combined
    if op.name in RULES:
        return RULES[op.name](table, node, op)
    table.refuse(node, f"{type(op.module).__name__} mixes its channels in a way of its own")
    return table.untracked(node)


def _function(table: AtomTable, node: fx.Node, op: Op) -> Any:
    if op.name in shape_rules.OF_SIZES or node.meta.get("shape") is None:
        return shape_rules.parts(table, node, op)
    if op.name in _OF_SEVERAL:
        return _OF_SEVERAL[op.name](table, node, op)
    if table.dims(node) is None:
        value = table.values.get(node.args[0]) if node.args else None  # type: ignore[arg-type]
        if op.name == "getitem" and isinstance(value, tuple) and isinstance(node.args[1], int):
            return value[node.args[1]]
    elif op.name in RULES:
        return RULES[op.name](table, node, op)
    table.refuse(node)
    return table.untracked(node)
