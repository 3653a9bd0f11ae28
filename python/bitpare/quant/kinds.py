"""Classify operations by how quantization treats them."""

import dataclasses

from torch import fx, nn

from bitpare.graph.ops import CONVOLUTIONS, PRODUCTS, Op, op_of

# compute: sums of products; the result is requantized. same: moves values, which stay on their
# grid. clamp: part of the quantizer that follows. table: any function of one value. float: computed
# in floating point.
COMPUTE, NORM, CLAMP, TABLE, ADD, MUL, CAT, POOL, SAME, FLOAT_OP = (
    "compute", "norm", "clamp", "table", "add", "mul", "cat", "pool", "same", "float",
)  # fmt: skip
INTEGER = frozenset({COMPUTE, NORM, TABLE, ADD, MUL, CAT, POOL})
STARTS = INTEGER | {CLAMP}

_NAMES = {
    COMPUTE: " ".join((*CONVOLUTIONS, *PRODUCTS, "linear embedding bilinear attention product")),
    NORM: "batch_norm",
    CLAMP: "relu relu6",
    TABLE: "hardswish hardsigmoid silu gelu sigmoid tanh mish selu elu celu softplus leaky_relu "
    "hardtanh logsigmoid softsign tanhshrink prelu",
    ADD: "add sub",
    MUL: "mul",
    CAT: "cat stack",
    POOL: "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d mean",
    SAME: "identity flatten reshape view permute transpose t movedim squeeze unsqueeze expand "
    "expand_as repeat contiguous chunk split unbind getitem narrow select index_select roll flip "
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "amax dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout stochastic_depth "
    "drop_path drop_block2d drop_block3d clone detach to type_as float half bfloat16 pixel_shuffle "
    "pixel_unshuffle channel_shuffle unflatten view_as reshape_as tile repeat_interleave unfold mT "
    "T zero_pad",
}
KINDS = {name: kind for kind, names in _NAMES.items() for name in names.split()}
# The function of each of these differs from the module of the same name, and is computed in float.
_MODULES_ONLY = frozenset(("batch_norm", "bilinear", "attention", "identity", "zero_pad"))
_NONNEGATIVE = frozenset(("relu", "relu6", "sigmoid", "hardsigmoid", "softplus", "softmax"))
FUSED_ACTIVATIONS = frozenset(("relu", "relu6", "hardswish", "hardsigmoid"))


@dataclasses.dataclass(frozen=True)
class Kind:
    """The kind of a node's operation. ``activation`` is the name of a clamp or table, else ""."""

    kind: str
    op: Op
    nonnegative: bool = False

    @property
    def activation(self) -> str:
        return self.op.name if self.kind in (CLAMP, TABLE) else ""


def kind_of(root: nn.Module, node: fx.Node) -> Kind:
    """Return the kind of the operation of a node of a flat trace."""
    op = op_of(root, node)
    return Kind(_kind(node, op), op, op.name in _NONNEGATIVE)


def _kind(node: fx.Node, op: Op) -> str:
    is_module = op.module is not None
    if op.name == "interpolate":
        return SAME if op["mode"] == "nearest" else POOL
    if op.name == "max":
        return SAME if node.meta.get("tensor") else FLOAT_OP
    kind = KINDS.get(op.name, FLOAT_OP)
    if (op.name in _MODULES_ONLY and not is_module) or (op.name == "prelu" and is_module):
        return FLOAT_OP
    if kind in (ADD, MUL) and not _of_two_tensors(node):
        return FLOAT_OP
    return kind


def _of_two_tensors(node: fx.Node) -> bool:
    """Return whether both operands of an addition or product are tensors of floats."""
    operands = node.args[:2]
    floats = [isinstance(a, fx.Node) and a.meta.get("float") for a in operands]
    return len(floats) == 2 and all(floats)
