"""Collect facts about the values of a traced model: their layouts and grids."""

from torch import fx, nn

from bitpare.deploy.items import Expression, Item, Layout
from bitpare.deploy.meaning import CONV, FLATTEN, FLOAT, MAX_POOL, NORM, VALUE, Meaning, meaning_of
from bitpare.deploy.numbers import Codes, codes_of
from bitpare.errors import Unsupported
from bitpare.graph.ops import first_input
from bitpare.nn.quantizer import Quantizer
from bitpare.quant.kinds import SAME, kind_of

# Operations that pass values on in some modes or for some types, and change them otherwise.
_CHANGING = frozenset(
    ("to", "type_as", "half", "bfloat16", "feature_dropout", "drop_path", "dropout", "dropout1d",
     "dropout2d", "dropout3d", "alpha_dropout", "stochastic_depth")
)  # fmt: skip


def rank_of(node: fx.Node) -> int:
    return len(node.meta.get("shape") or ())


class Values:
    """The values of a graph. items: integer forms. inside: nodes that are part of an item. reasons:
    why nodes stay in float."""

    def __init__(
        self, root: nn.Module, graph: fx.Graph, known: dict[fx.Node, Codes] | None = None
    ) -> None:
        """Analyse the graph. ``known``: grids of values that come from outside the graph."""
        self.root, self.graph, self.known = root, graph, known or {}
        self.reasons: dict[fx.Node, str] = {}
        self.meanings = {node: self._meaning(node) for node in graph.nodes}
        self.varies: set[fx.Node] = set()  # nodes that depend on the model's inputs
        for node in graph.nodes:
            if node.op == "placeholder" or any(n in self.varies for n in node.all_input_nodes):
                self.varies.add(node)
        self.order = {n: i for i, n in enumerate(graph.nodes)}
        self.items: dict[fx.Node, Item] = {}
        self.layouts: dict[fx.Node, Layout] = {}
        self.inside: set[fx.Node] = set()

    def _meaning(self, node: fx.Node) -> Meaning:
        try:
            return meaning_of(self.root, node)
        except Unsupported as error:
            self.reasons[node] = str(error)
            return Meaning(FLOAT, list(node.all_input_nodes))

    def reads(self, node: fx.Node) -> list[fx.Node]:
        """Return the nodes that a node, or its integer form, reads."""
        item = self.items.get(node)
        if item is None or item.raw:
            return list(node.all_input_nodes)
        return [item.source] if item.source is not None else item.inputs

    # -- layouts of values

    def layout(self, node: fx.Node) -> Layout:
        if node not in self.layouts:
            self.layouts[node] = Layout(None if rank_of(node) == 4 else True)
        return self.layouts[node]

    def rows(self, node: fx.Node) -> bool:
        """Return whether a value's channels are its last dimension."""
        return bool(self.layout(node).rows)

    def require(self, node: fx.Node, rows: bool) -> None:
        if not rows and rank_of(node) != 4:
            raise Unsupported(f"a value of shape {node.meta.get('shape')}")
        self.layout(node).join(Layout(rows))

    def alike(self, first: fx.Node, *others: fx.Node) -> None:
        for other in others:
            self.layout(first).join(self.layout(other))

    # -- grids of values

    def grid(self, node: fx.Node) -> Codes | None:
        """Return the codes of a node's value."""
        if node in self.known:
            return self.known[node]
        if node in self.items:
            return self.items[node].codes
        meaning = self.meanings[node]
        if meaning.after is not None:
            return codes_of(meaning.after)
        moved = meaning.core in (FLATTEN, MAX_POOL) or (
            meaning.core == VALUE and meaning.activation is None
        )
        if moved:
            return self.grid(meaning.inputs[0])
        before = first_input(node) if self._moves(node) else None
        return self.grid(before) if before is not None else None

    def found(self, node: fx.Node) -> Quantizer | None:
        """Return the quantizer that computes the dynamic grid of a value, or None."""
        return self.items[node].found if node in self.items else None

    def _moves(self, node: fx.Node) -> bool:
        """Return whether a float node passes the values of one tensor on unchanged."""
        floats = [n for n in node.all_input_nodes if n.meta.get("float")]
        kind = kind_of(self.root, node)
        return kind.kind == SAME and kind.op.name not in _CHANGING and len(floats) <= 1

    def open(self, node: fx.Node) -> Expression | None:
        """Return the expression of a value with a single reader and no grid, or None."""
        meaning = self.meanings[node]
        if len(node.users) != 1 or meaning.core == FLOAT or self.grid(node) is not None:
            return None
        if meaning.after is not None:
            return None
        found = self.expression(node)
        found.inside.append(node)
        return found

    def expression(self, node: fx.Node) -> Expression:
        meaning = self.meanings[node]
        if meaning.core not in (VALUE, NORM):
            return Expression(node, activation=meaning.activation)
        source = meaning.inputs[0]
        found = self.open(source)
        if found is not None:
            if meaning.core == VALUE and (meaning.activation is None or found.activation is None):
                found.activation = meaning.activation or found.activation
                return found
            core = found.core and self.meanings[found.core].core
            if core == CONV and found.norm is None and found.activation is None:
                found.norm = meaning.module
                return found
        norm = meaning.module if meaning.core == NORM else None
        return Expression(None, source, norm, meaning.activation)
