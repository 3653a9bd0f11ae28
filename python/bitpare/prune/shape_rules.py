"""Rules for operations that change shapes or combine several values."""

import math
from collections.abc import Sequence
from typing import Any

from torch import fx

from bitpare.graph.ops import Op
from bitpare.prune.atoms import Atoms, AtomTable, Dims, flattened

# Functions that return sizes, and functions that compute with them.
OF_SIZES = frozenset(("getattr", "size", "dim", "require_rank", "len"))
_OF_NUMBERS = OF_SIZES | {"getitem", "floordiv", "add", "sub", "mul", "div"}
_OVER_GROUPS = ("group_norm", "local_response_norm")


def same_channels(table: AtomTable, node: fx.Node, op: Op) -> Dims:
    """Handle pools and pads, which do not change the order of channels."""
    x = table.operand_dims(node)
    shape = node.meta["shape"]
    before = node.args[0].meta["shape"] if isinstance(node.args[0], fx.Node) else shape
    kept = [a if a is None or i < 2 else None for i, a in enumerate(x)]
    changed = [a for i, a in enumerate(x) if a is not None and before[i] != shape[i]]
    table.freeze([*changed, *x[2:]], f"{table.path_of(node)}: pools or pads across channels")
    return [None if a in changed else a for a in kept]


def along(table: AtomTable, node: fx.Node, op: Op) -> Dims:
    """Handle operations that read a whole dimension at once, such as softmax."""
    x, dim = table.operand_dims(node), op["dim"]
    table.freeze(
        [x[dim]] if dim is not None else x, f"{table.path_of(node)}: reads all channels at once"
    )
    return x


def norm(table: AtomTable, node: fx.Node, op: Op) -> Dims:
    """Handle norms whose statistics run over channels."""
    x = table.operand_dims(node)
    over = op.arguments.get("normalized_shape", (1,))
    axes = [1] if op.name in _OVER_GROUPS else list(range(-len(over), 0))
    if any(x[a] is not None for a in axes):
        table.not_understood.append(
            f"{table.path_of(node)}: a norm over channels changes when one of them goes"
        )
    table.freeze([x[a] for a in axes], f"{table.path_of(node)}: a norm over these channels")
    return x


def pixel_shuffle(table: AtomTable, node: fx.Node, op: Op) -> Dims:
    x, factor = table.operand_dims(node), op["upscale_factor"]
    atoms = x[-3]
    if atoms is not None:
        size = factor * factor
        for start in range(0, len(atoms), size):
            for k in range(size):
                table.join(atoms[start], atoms[start + k])
        atoms = atoms[::size]
    return [*x[:-3], atoms, None, None]


def parts(table: AtomTable, node: fx.Node, op: Op) -> Any:
    """Handle sizes and functions that return several tensors."""
    name = op.name
    if name not in ("chunk", "split", "unbind"):
        tensors = any(n.meta.get("tensor") for n in node.all_input_nodes)
        if isinstance(node.target, type):  # the class of a result
            for value in node.all_input_nodes:
                table.freeze(flattened(table.values.get(value)), "it is an output of the model")
        elif tensors and name not in _OF_NUMBERS:
            table.refuse(node)
        return None
    x = table.dims(node)
    if x is None:
        return None
    dim = op["dim"] % len(x)
    atoms = x[dim]
    shapes = node.meta.get("shapes")
    if shapes is None:
        table.refuse(node)
        return None
    if name == "unbind":
        table.freeze([atoms], f"{table.path_of(node)}: taken apart")
        return tuple([a for i, a in enumerate(x) if i != dim] for _ in shapes)
    if name == "split" and atoms is not None:  # split into pieces of a fixed size
        table.freeze([atoms], f"{table.path_of(node)}: split into pieces of a fixed size")
    found, at = [], 0
    sizes = [s[dim] for s in shapes]
    if name == "chunk" and atoms is not None:
        if len(set(sizes)) > 1:
            table.freeze([atoms], f"{table.path_of(node)}: chunks of different sizes")
        else:  # remove the same number of channels from each chunk
            for k in range(len(sizes)):
                table.join_all(atoms[: sizes[0]], atoms[k * sizes[0] : (k + 1) * sizes[0]])
    for size in sizes:
        part = None if atoms is None else atoms[at : at + size]
        found.append([part if i == dim else a for i, a in enumerate(x)])
        at += size
    return tuple(found)


def combined(table: AtomTable, node: fx.Node, op: Op) -> Dims:
    """Handle elementwise operations on two tensors."""
    shape = node.meta["shape"]
    given = [*node.args[:2], node.kwargs.get("other")]
    operands = [a for a in given if isinstance(a, fx.Node) and a.meta.get("tensor")]
    result: Dims = [None] * len(shape)
    for operand in operands:
        dims = table.values[operand]
        for back in range(1, len(dims) + 1):
            if dims[-back] is not None and operand.meta["shape"][-back] == shape[-back]:
                known = result[-back]
                result[-back] = dims[-back] if known is None else table.join_all(known, dims[-back])
    for operand in operands:
        _agree(table, node, operand, result)
    return result


def _agree(table: AtomTable, node: fx.Node, operand: fx.Node, result: Dims) -> None:
    """Link or freeze operands without atoms in a dimension where the result has some."""
    dims, shape = table.values[operand], operand.meta["shape"]
    for back in range(1, len(dims) + 1):
        if result[-back] is None or dims[-back] is not None or shape[-back] == 1:
            continue
        place = table.place_of(operand)
        if place is not None:
            table.link(*place, len(dims) - back, result[-back])
            continue
        why = f"{table.path_of(node)}: meets a value whose channels stay"
        table.freeze([result[-back]], why)


def concatenated(table: AtomTable, node: fx.Node, op: Op) -> Dims:
    tensors: Sequence[Any] = op["tensors"]
    values = [table.values[t] for t in tensors]
    shape = node.meta["shape"]
    dim = op["dim"] % len(shape)
    result: Dims = [None] * len(shape)
    for i in range(len(shape)):
        if i == dim:
            continue
        known = [value[i] for value in values if value[i] is not None]
        for atoms in known[1:]:
            table.join_all(known[0], atoms)
        result[i] = known[0] if known else None
        if len(known) < len(values):
            why = f"{table.path_of(node)}: meets a value whose channels stay"
            table.freeze([result[i]], why)
    along: list[int] = []
    tracked = any(value[dim] is not None for value in values)
    for tensor, value in zip(tensors, values, strict=True):
        if value[dim] is None and tracked:
            fixed = table.new(tensor.meta["shape"][dim])
            table.freeze([fixed], f"{table.path_of(node)}: a part of it stays")
            along += fixed
        else:
            along += value[dim] or []
    result[dim] = along if tracked else None
    return result


def stacked(table: AtomTable, node: fx.Node, op: Op) -> Dims:
    tensors: Sequence[Any] = op["tensors"]
    values = [table.values[t] for t in tensors]
    result: Dims = []
    for along in zip(*values, strict=True):
        known = [atoms for atoms in along if atoms is not None]
        for atoms in known[1:]:
            table.join_all(known[0], atoms)
        result.append(known[0] if known else None)
        if len(known) < len(along):
            table.freeze([result[-1]], f"{table.path_of(node)}: meets a value whose channels stay")
    dim = op["dim"] % len(node.meta["shape"])
    return [*result[:dim], None, *result[dim:]]


def product(table: AtomTable, node: fx.Node, op: Op) -> Any:
    x, y = table.dims(node), table.dims(node, 1)
    if x is None or y is None or len(x) < 2 or len(y) < 2:
        table.refuse(node)
        return table.untracked(node)
    inner, outer = x[-1], y[-2]
    if inner is not None and outer is not None:
        table.join_all(inner, outer)
    else:
        table.freeze([inner, outer], f"{table.path_of(node)}: meets a value whose channels stay")
    table.freeze([*x[:-2], *y[:-2]], f"{table.path_of(node)}: a product in batches")
    return [*[None] * (len(node.meta["shape"]) - 2), x[-2], y[-1]]


def permuted(table: AtomTable, node: fx.Node, op: Op) -> Dims:
    x = table.operand_dims(node)
    order = node.args[1:]
    if len(order) == 1 and isinstance(order[0], list | tuple):
        order = tuple(order[0])
    if not order:
        order = tuple(node.kwargs["dims"])  # type: ignore[arg-type]
    return [x[i] for i in order]  # type: ignore[index]


def swapped(table: AtomTable, node: fx.Node, op: Op) -> Dims:
    x, a, b = list(table.operand_dims(node)), op["dim0"], op["dim1"]
    x[a], x[b] = x[b], x[a]
    return x


def reduced(table: AtomTable, node: fx.Node, op: Op) -> Any:
    """Handle means, sums and maxima over dimensions."""
    x, dims, keep = table.operand_dims(node), op["dim"], bool(op["keepdim"])
    if dims is None:
        table.freeze(x, f"{table.path_of(node)}: reads all channels at once")
        return table.untracked(node)
    gone = {d % len(x) for d in (dims if isinstance(dims, list | tuple) else [dims])}
    table.freeze([x[d] for d in gone], f"{table.path_of(node)}: reads all channels at once")
    if keep:
        return [None if i in gone else a for i, a in enumerate(x)]
    return [a for i, a in enumerate(x) if i not in gone]


def indexed(table: AtomTable, node: fx.Node, op: Op) -> Any:
    x, index = table.operand_dims(node), node.args[1]
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
            table.freeze([atoms], f"{table.path_of(node)}: a slice of fixed bounds")
            result.append(None)
        elif isinstance(item, int):
            table.freeze([atoms], f"{table.path_of(node)}: one index of it")
        else:
            table.refuse(node)
            return table.untracked(node)
    return [*result, *rest]


# -- shapes


def reshaped(table: AtomTable, node: fx.Node, op: Op) -> Any:
    """Handle reshapes. They keep row-major order, so dimensions merge into one or one is split."""
    x, source = table.operand_dims(node), node.args[0] if node.args else node.kwargs["input"]
    before, after = list(source.meta["shape"]), list(node.meta["shape"])  # type: ignore[union-attr]
    fixed = _literal_sizes(node, op, len(after))
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
            table.refuse(node)
            return table.untracked(node)
        result += _regrouped(table, node, [(x[k], before[k]) for k in old], new, after, fixed)
        i, j = i + 1, j + 1
    return result


def _regrouped(
    table: AtomTable,
    node: fx.Node,
    old: list[tuple[Atoms, int]],
    new: list[int],
    after: list[int],
    fixed: list[bool],
) -> Dims:
    tracked = [k for k, (atoms, _) in enumerate(old) if atoms is not None]
    if not tracked or not new:
        table.freeze([a for a, _ in old], f"{table.path_of(node)}: a dimension goes")
        return [None] * len(new)
    if len(tracked) > 1:
        table.freeze([a for a, _ in old], f"{table.path_of(node)}: several of them merge")
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
            table.freeze([atoms], f"{table.path_of(node)}: reshaped to a fixed size")
        return [flat if k == at else None for k in range(len(new))]
    # Several dimensions come from one: the last that is not written as a number shrinks.
    free = [k for k in wide if not fixed[new[k]]]
    if not free:
        table.freeze([atoms], f"{table.path_of(node)}: reshaped to a fixed size")
        return [None] * len(new)
    at = _shrinking(table, flat, sizes, free)
    stride = math.prod(sizes[at + 1 :])
    along = [flat[k * stride] for k in range(sizes[at])]
    for index, atom in enumerate(flat):
        table.join(along[index // stride % sizes[at]], atom)
    return [along if k == at else None for k in range(len(new))]


def _shrinking(table: AtomTable, flat: list[int], sizes: list[int], free: list[int]) -> int:
    """Return the dimension along which atoms already differ, or else the last that may shrink."""
    for k in free:
        stride = math.prod(sizes[k + 1 :])
        if all(flat[i] == flat[i // stride % sizes[k] * stride] for i in range(len(flat))):
            return k
    return free[-1]


def _literal_sizes(node: fx.Node, op: Op, count: int) -> list[bool]:
    """Return which of the new dimensions are written as numbers other than -1."""
    if op.module is not None or op.name not in ("reshape", "view", "unflatten"):
        return [False] * count
    sizes = list(node.args[1:]) or list(node.kwargs.get("shape", ()))  # type: ignore[arg-type]
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = list(sizes[0])
    if op.name == "unflatten" or len(sizes) != count:
        return [True] * count
    return [isinstance(s, int) and s != -1 for s in sizes]
