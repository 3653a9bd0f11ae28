"""Track atoms: the indices of dimensions that may shrink, and which of them belong together."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from torch import Tensor, fx, nn

from bitpare import graph as g
from bitpare.graph.ops import function_name
from bitpare.nn.quantizer import PER_SCALE, Quantizer
from bitpare.nn.weights import quantized_weights

Atoms: TypeAlias = list[int] | None  # the atoms along one dimension
Dims: TypeAlias = list[Atoms]  # the atoms along each dimension of a value
ParameterPlace: TypeAlias = tuple[
    nn.Module, str
]  # the module and attribute of a parameter or buffer


class AtomTable:
    """The atoms of a model.

    links: (name of a parameter or buffer, dimension) -> its atoms. values: node of a trace ->
    the atoms along each dimension of its value."""

    def __init__(self, model: nn.Module, traces: Sequence[g.FlatTrace]) -> None:
        self.model, self.graph = model, traces[0].graph
        self._parents: list[int] = []
        self._families: list[int] = []
        self.frozen: dict[int, str] = {}
        self.links: dict[tuple[str, int], list[int]] = {}
        self.depthwise: set[str] = set()  # layers whose groups are their input channels
        self.not_understood: list[str] = []
        self.names = _first_names(model)
        self._quantizers: dict[str, list[Quantizer]] = {}  # by weight; a shared weight has several
        for weight in quantized_weights(model):
            known = self._quantizers.setdefault(self.names.get(id(weight.value), ""), [])
            known.append(weight.quantizer)
        self.values: dict[fx.Node, Any] = {}

    # -- atoms

    def new(self, count: int) -> list[int]:
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
        """Return the family of an atom. Atoms of one family lie along the same dimensions."""
        at = self._families[atom]
        while self._families[at] != at:
            self._families[at] = self._families[self._families[at]]
            at = self._families[at]
        return at

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        if a == b:
            return
        first, second = self.family(a), self.family(b)
        self._families[max(first, second)] = min(first, second)
        reason = self.frozen.get(a) or self.frozen.get(b)
        self._parents[max(a, b)] = min(a, b)
        if reason:
            self.frozen[min(a, b)] = reason

    def join_all(self, a: list[int], b: list[int]) -> list[int]:
        for x, y in zip(a, b, strict=True):
            self.join(x, y)
        return a

    def freeze(self, dims: Iterable[Atoms], reason: str) -> None:
        for atoms in dims:
            for atom in atoms or ():
                self.frozen.setdefault(self.root(atom), reason)

    def refuse(self, node: fx.Node, why: str = "") -> None:
        what = f"{self.path_of(node)}: {why or 'an operation that shrink does not know'}"
        atoms = [a for n in node.all_input_nodes for a in flattened(self.values.get(n))]
        if any(a is not None for a in atoms):
            self.not_understood.append(what)
        self.freeze(atoms, what)

    def path_of(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return str(node.target)
        owner = node.meta.get("site", ("", 0, 0))[0]
        name = function_name(node)
        return f"{owner}.{name}" if owner else name

    # -- links to parameters

    def place_of(self, value: Any) -> ParameterPlace | None:
        """Return the module and attribute of the parameter or buffer that a node reads, or None."""
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        owner, _, attribute = str(value.target).rpartition(".")
        module = self.model.get_submodule(owner)
        known = id(getattr(module, attribute, None)) in self.names
        return (module, attribute) if known else None

    def link(self, owner: nn.Module, attribute: str, dim: int, atoms: Atoms) -> None:
        tensor = getattr(owner, attribute, None)
        if atoms is None or not isinstance(tensor, Tensor):
            return
        if id(tensor) not in self.names:
            self.freeze([atoms], f"{attribute} of {type(owner).__name__} is parametrized")
            return
        key = (self.names[id(tensor)], dim)
        known = self.links.setdefault(key, atoms)
        if known is not atoms:
            self.join_all(known, atoms)
        for quantizer in self._quantizers.get(key[0], ()):
            self.link_scales(quantizer, dim, atoms, key[0])

    def link_scales(self, quantizer: Quantizer, dim: int, atoms: list[int], what: str) -> None:
        """Link the per-channel state of a quantizer to the atoms of the dimension that it
        quantizes."""
        if quantizer.grid.group is not None:
            self.freeze([atoms], f"{what}: quantized in groups")
        if quantizer.grid.axis != dim:
            return
        for name in PER_SCALE:
            tensor = getattr(quantizer, name, None)
            if isinstance(tensor, Tensor) and tensor.shape[-1] == len(atoms):
                self.link(quantizer, name, tensor.dim() - 1, atoms)

    def link_values(self, node: fx.Node, quantizer: Any, x: Any) -> None:
        """Link the quantizer of a value to the atoms along the value's dimensions."""
        if not isinstance(quantizer, Quantizer) or not isinstance(x, list):
            return
        for dim, atoms in enumerate(x):
            if atoms is not None:
                self.link_scales(quantizer, dim, atoms, self.path_of(node))
        if not quantizer.holds_zero:
            self.freeze(x, f"{self.path_of(node)}: quantized on a grid without 0")

    def produced(self, owner: nn.Module, attribute: str, dim: int) -> list[int]:
        """Return the atoms that a layer's output gets from a dimension of its parameter. Every call
        returns the same ones."""
        tensor = getattr(owner, attribute)
        if id(tensor) not in self.names:
            atoms = self.new(tensor.shape[dim])
            self.freeze([atoms], f"{attribute} of {type(owner).__name__} is parametrized")
            return atoms
        key = (self.names[id(tensor)], dim)
        if key not in self.links:
            self.link(owner, attribute, dim, self.new(tensor.shape[dim]))
        return self.links[key]

    def untracked(self, node: fx.Node) -> Any:
        shape = node.meta.get("shape")
        return None if shape is None else [None] * len(shape)

    def dims(self, node: fx.Node, index: int = 0) -> Dims | None:
        """Return the atoms along each dimension of an operand, or None if it is no tensor."""
        value = node.args[index] if len(node.args) > index else None
        if value is None and index == 0:
            value = node.kwargs.get("input", node.kwargs.get("x"))
        atoms = self.values.get(value) if isinstance(value, fx.Node) else None
        return atoms if isinstance(atoms, list) else None

    def operand_dims(self, node: fx.Node) -> Dims:
        """Return the atoms along each dimension of the first operand, which must be a tensor."""
        dims = self.dims(node)
        assert dims is not None
        return dims


def flattened(value: Any) -> list[Atoms]:
    if isinstance(value, tuple):
        return [atoms for part in value for atoms in flattened(part)]
    return list(value) if isinstance(value, list) else []


def _first_names(model: nn.Module) -> dict[int, str]:
    """Return the first name of each parameter and buffer, by identity."""
    names: dict[int, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        names.setdefault(id(tensor), name)
    return names
