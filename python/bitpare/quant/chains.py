"""Find the places where the values of a traced model are quantized, from one flat trace."""

import dataclasses

from torch import fx, nn

from bitpare.graph import FlatTrace
from bitpare.graph.ops import PRODUCTS, first_input
from bitpare.quant.kinds import (
    ADD,
    CAT,
    CLAMP,
    COMPUTE,
    INTEGER,
    MUL,
    NORM,
    POOL,
    SAME,
    STARTS,
    TABLE,
    Kind,
    kind_of,
)


@dataclasses.dataclass
class Point:
    """A value that is quantized: the result of ``node``, which is the last node of ``chain``.

    operand: the (consumer, input index) if the value is a parameter that the consumer reads,
    else None."""

    node: fx.Node
    chain: list[fx.Node]
    nonnegative: bool
    limit: float
    model_input: bool = False
    feeds_last: bool = False
    operand: tuple[fx.Node, int] | None = None


class Analysis:
    """The points of one flat trace, and the layers at the start and end of the model.

    target: the runtime whose kernels decide what is computed together. ONNX Runtime fuses a
    convolution or linear with a clamp into one integer kernel. TensorRT and cuDNN fuse a
    Hardswish too."""

    def __init__(self, root: nn.Module, trace: FlatTrace, target: str) -> None:
        self.root, self.graph, self.target = root, trace.graph, target
        self.kinds: dict[fx.Node, Kind] = {n: kind_of(root, n) for n in trace.graph.nodes}
        self._reach: dict[fx.Node, bool] = {}
        self.points: list[Point] = []
        self.shared: dict[fx.Node, fx.Node] = {}  # chain end -> the concat whose scale it takes
        self.first: set[fx.Node] = set()
        self.last: set[fx.Node] = set()
        self._find_chains()
        self._find_sources()
        self._find_ends()

    def kind(self, node: fx.Node) -> str:
        return self.kinds[node].kind

    def _reaches_integer(self, node: fx.Node) -> bool:
        """Return whether an integer operation reads this value, directly or through other nodes."""
        if node not in self._reach:
            self._reach[node] = False
            self._reach[node] = any(
                self.kind(user) in INTEGER or (user.op != "output" and self._reaches_integer(user))
                for user in node.users
            )
        return self._reach[node]

    def _find_chains(self) -> None:
        taken: set[fx.Node] = set()
        ends: dict[fx.Node, list[fx.Node]] = {}
        for node in self.graph.nodes:
            if node in taken or self.kind(node) not in STARTS or not node.meta.get("float"):
                continue
            chain = self._chain_from(node)
            taken.update(chain)
            ends[chain[-1]] = chain
        for end, chain in ends.items():
            if not self._reaches_integer(end):
                continue
            users = list(end.users)
            concat = users[0] if len(users) == 1 and self.kind(users[0]) == CAT else None
            if concat is not None and self._reaches_integer(concat) and self.kind(end) != TABLE:
                self.shared[end] = concat
                continue
            limit = 6.0 if self.kinds[end].activation == "relu6" else 0.0
            self.points.append(Point(end, chain, self._nonnegative(end), limit))
        self.quantized = {point.node for point in self.points}

    def _chain_from(self, node: fx.Node) -> list[fx.Node]:
        chain = [node]
        while self.kind(chain[-1]) not in (CAT, CLAMP, TABLE) and len(chain[-1].users) == 1:
            after = next(iter(chain[-1].users))
            is_norm = self.kind(after) == NORM and self.kind(chain[-1]) == COMPUTE
            joins = is_norm or self.kind(after) == CLAMP or self._joins_kernel(chain[-1], after)
            if not joins or first_input(after) is not chain[-1]:
                break
            chain.append(after)
        return chain

    def _joins_kernel(self, before: fx.Node, after: fx.Node) -> bool:
        hardswish = self.kinds[after].activation == "hardswish"
        return self.target == "tensorrt" and hardswish and self.kind(before) in (COMPUTE, NORM)

    def _nonnegative(self, node: fx.Node) -> bool:
        node_kind = self.kinds[node]
        if node_kind.nonnegative:
            return True
        inputs = [n for n in node.all_input_nodes if n.meta.get("float")]
        if node_kind.kind in (SAME, POOL, CAT, ADD, MUL) and inputs:
            return node_kind.op.name != "sub" and all(self._nonnegative(n) for n in inputs)
        return False

    def source(self, node: fx.Node) -> fx.Node:
        """Return the node that computed this value, skipping operations that only move values."""
        while self.kind(node) == SAME:
            before = first_input(node)
            if before is None or not before.meta.get("tensor", True):
                if before is not None and self.kind(before) == SAME:
                    node = before
                    continue
                return node
            node = before
        return node

    def _find_sources(self) -> None:
        """Add the values that integer operations read but no chain produced: inputs, parameters and
        results of floating-point operations."""
        added: set[fx.Node] = set()
        for consumer in list(self.graph.nodes):
            if self.kind(consumer) not in INTEGER:
                continue
            for value in consumer.all_input_nodes:
                if not value.meta.get("float"):
                    continue
                source = self.source(value)
                if source in self.quantized or source in self.shared or source in added:
                    continue
                if source.op not in ("placeholder", "get_attr") and self.kind(source) in STARTS:
                    continue  # inside a chain
                if source.op == "get_attr":
                    if self.kind(consumer) in (ADD, MUL, CAT, COMPUTE) and not self._is_weight(
                        consumer, value
                    ):
                        self._add_operand(consumer, value, source)
                    continue
                if not source.meta.get("float"):
                    continue
                added.add(source)
                is_input = source.op == "placeholder"
                self.points.append(
                    Point(source, [source], self._nonnegative(source), 0.0, model_input=is_input)
                )
        self.quantized |= added

    def _is_weight(self, consumer: fx.Node, value: fx.Node) -> bool:
        """Return whether a parameter is the weight or bias of a functional convolution or
        linear."""
        return (
            self.kind(consumer) == COMPUTE
            and self.kinds[consumer].op.name not in PRODUCTS
            and (first_input(consumer) is not value)
        )

    def _add_operand(self, consumer: fx.Node, value: fx.Node, source: fx.Node) -> None:
        """Add a point for a parameter that is used as a value; it is quantized where it is read."""
        node = value if value.op != "get_attr" else consumer
        if value.op != "get_attr":
            if any(point.node is value for point in self.points):
                return
            self.points.append(Point(value, [value], False, 0.0))
            return
        index = consumer.all_input_nodes.index(source)
        self.points.append(Point(node, [consumer], False, 0.0, operand=(consumer, index)))

    def _find_ends(self) -> None:
        """Find the layers that read the model's inputs, and the layers that no layer follows."""
        weighted = [n for n in self.graph.nodes if self.kind(n) == COMPUTE]
        for node in weighted:
            inputs = [self.source(v) for v in node.all_input_nodes if v.meta.get("float")]
            if any(v.op == "placeholder" for v in inputs):
                self.first.add(node)
            if not self._reaches_compute(node):
                self.last.add(node)
        for point in self.points:
            consumers = self._compute_consumers(point.node)
            point.feeds_last = bool(consumers) and consumers <= self.last

    def _reaches_compute(self, node: fx.Node, seen: set[fx.Node] | None = None) -> bool:
        seen = set() if seen is None else seen
        for user in node.users:
            if user in seen:
                continue
            seen.add(user)
            if self.kind(user) == COMPUTE or self._reaches_compute(user, seen):
                return True
        return False

    def _compute_consumers(self, node: fx.Node) -> set[fx.Node]:
        consumers: set[fx.Node] = set()
        stack = [node]
        while stack:
            for user in stack.pop().users:
                if self.kind(user) == SAME:
                    stack.append(user)
                else:
                    consumers.add(user)
        return consumers
