"""Rules for atoms where shapes change and values meet."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx

from bitpare.prune.atoms import Atoms, AtomTable, Dims, argument_of, flattened, name_of

# The functions of sizes, and of numbers made of them.
_OF_SIZES = {
    "getattr", "size", "dim", "require_rank", "len",
    "getitem", "floordiv", "add", "sub", "mul", "truediv",
}  # fmt: skip


class ShapeRules(AtomTable):
    """Reshaping, reducing, indexing, taking apart and putting together."""

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

    def _parts(self, node: fx.Node, name: str) -> Any:
        """Sizes, and functions that give several tensors."""
        if name not in ("chunk", "split", "unbind"):
            tensors = any(n.meta.get("tensor") for n in node.all_input_nodes)
            if isinstance(node.target, type):  # the class of a result
                for value in node.all_input_nodes:
                    self.freeze(flattened(self.values.get(value)), "it is an output of the model")
            elif tensors and name not in _OF_SIZES:
                self._not_understood(node)
            return None
        x = self._dims(node)
        if x is None:
            return None
        dim = argument_of(node, 2, "dim") if name != "unbind" else argument_of(node, 1, "dim")
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
                if id(getattr(module, attribute, None)) in self.names:
                    self._link(module, attribute, len(dims) - back, result[-back])
                    continue
            why = f"{self._path(node)}: meets a value whose channels stay"
            self.freeze([result[-back]], why)

    def _concatenated(self, node: fx.Node) -> Dims:
        tensors: Sequence[Any] = node.args[0] if node.args else node.kwargs["tensors"]  # type: ignore[assignment]
        values = [self.values[t] for t in tensors]
        shape = node.meta["shape"]
        dim = (argument_of(node, 1, "dim") or 0) % len(shape)
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
        dim = (argument_of(node, 1, "dim") or 0) % len(node.meta["shape"])
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
        a, b = argument_of(node, 1, "dim0"), argument_of(node, 2, "dim1")
        x = list(x)
        x[a], x[b] = x[b], x[a]
        return x

    def _reduced(self, node: fx.Node, x: Dims) -> Any:
        dims = argument_of(node, 1, "dim")
        keep = bool(argument_of(node, 2, "keepdim"))
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
        # It splits into several dimensions: the last one that is not written as a number shrinks.
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


def _literal_sizes(node: fx.Node, count: int) -> list[bool]:
    """Return which of the new dimensions are written as numbers (other than -1)."""
    if node.op == "call_module" or name_of(node) not in ("reshape", "view", "unflatten"):
        return [False] * count
    sizes = list(node.args[1:]) or list(node.kwargs.get("shape", ()))  # type: ignore[arg-type]
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = list(sizes[0])
    if name_of(node) == "unflatten" or len(sizes) != count:
        return [True] * count
    return [isinstance(s, int) and s != -1 for s in sizes]
