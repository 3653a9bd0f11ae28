"""The lowering of a traced model: its values, and what becomes of its nodes."""

from torch import fx, nn

from bitpare.deploy.items import Expression, Item, Layout
from bitpare.deploy.meaning import CONV, FLATTEN, FLOAT, MAX_POOL, NORM, VALUE, Meaning, meaning_of
from bitpare.deploy.numbers import Codes, codes_of
from bitpare.errors import Unsupported
from bitpare.graph.ops import first_input
from bitpare.nn import layers
from bitpare.nn.quantizer import Quantizer
from bitpare.quant.kinds import SAME, kind_of

# Operations that hand values on in training or of one type, and change them otherwise.
_CHANGING = frozenset(
    ("to", "type_as", "half", "bfloat16", "feature_dropout", "drop_path", "dropout", "dropout1d",
     "dropout2d", "dropout3d", "alpha_dropout", "stochastic_depth")
)  # fmt: skip


def rank_of(node: fx.Node) -> int:
    return len(node.meta.get("shape") or ())


class Lowering:
    """A graph on its way to integers: how its values lie, which grids they are on, and what becomes
    of its nodes.

    items: what is computed in integers. inside: nodes that are part of such. reasons: why nodes
    stay in float. The rules in `lower` and `products` fill them in.
    """

    def __init__(
        self, root: nn.Module, graph: fx.Graph, known: dict[fx.Node, Codes] | None = None
    ) -> None:
        """known: grids of values that come from elsewhere."""
        self.root, self.graph, self.known = root, graph, known or {}
        self.reasons: dict[fx.Node, str] = {}
        self.meanings = {node: self._meaning(node) for node in graph.nodes}
        self.varies: set[fx.Node] = set()  # what depends on the model's inputs
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
        """The nodes whose values a node, or what it became, is made of."""
        item = self.items.get(node)
        if item is None or item.raw:
            return list(node.all_input_nodes)
        return [item.source] if item.source is not None else item.inputs

    @property
    def floating(self) -> list[tuple[str, str]]:
        """The layers with quantized weights that stay in float, with the reason."""
        found = []
        for node, meaning in self.meanings.items():
            weighted = isinstance(meaning.module, layers.QuantizedLayer)
            item = self.items.get(node)
            in_float = item is None or item.raw
            if weighted and in_float and node not in self.inside:
                found.append((str(node.target), self.reasons.get(node, "it has no integer form")))
        return found

    # -- how values lie

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

    # -- what is on a grid

    def grid(self, node: fx.Node) -> Codes | None:
        """The codes of a node's value."""
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
        """The quantizer that finds a value's grid at run time."""
        return self.items[node].found if node in self.items else None

    def _moves(self, node: fx.Node) -> bool:
        """Return whether a node in float hands on values of one tensor, as they are."""
        floats = [n for n in node.all_input_nodes if n.meta.get("float")]
        kind = kind_of(self.root, node)
        return kind.kind == SAME and kind.op.name not in _CHANGING and len(floats) <= 1

    def open(self, node: fx.Node) -> Expression | None:
        """The expression of a value that nothing else reads and that is on no grid."""
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
