"""Write the new forward of an owner, with a call of a quantizer at each of its sites."""

import operator

from torch import fx, nn
from torch.fx.graph_module import _format_import_block  # type: ignore[attr-defined]
from torch.package import sys_importer

from bitpare import graph as g
from bitpare.graph.ops import CONVOLUTIONS, op_of
from bitpare.nn.layers import QuantizedLayer
from bitpare.quant.survey import EVAL, TRAIN, Site

_FUNCTIONS = {EVAL: "_bitpare_eval", TRAIN: "_bitpare_train"}


def own_weights(owner: nn.Module, trace: g.OwnerTrace) -> list[str]:
    """Return the owner's own parameters that its forward passes to a convolution or linear as
    weight."""
    weights = []
    for node in trace.graph.nodes:
        op = op_of(owner, node)
        weighted = op.name in CONVOLUTIONS or op.name in ("linear", "embedding")
        if op.module is not None or not weighted:
            continue
        weight = op.arguments.get("weight")
        if isinstance(weight, fx.Node) and weight.op == "get_attr":
            target = str(weight.target)
            if "." not in target and isinstance(getattr(owner, target, None), nn.Parameter):
                weights.append(target)
    return list(dict.fromkeys(weights))


class _Editor:
    """Edits the graph of one owner."""

    def __init__(self, owner: nn.Module, trace: g.OwnerTrace) -> None:
        self.owner, self.trace, self.graph = owner, trace, trace.graph
        self.events = trace.events

    def insert_site(self, index: int, site: Site, mode: bool) -> None:
        target = f"bp_sites.{index}"
        if site.placeholder is not None:
            nodes = [n for n in self.graph.nodes if n.op == "placeholder"]
            node = nodes[self.trace.entry.paths.index(site.placeholder)]
            with self.graph.inserting_after(nodes[-1]):
                self._replace(node, self.graph.call_module(target, (node,)))
            return
        if mode not in site.positions:
            return
        node = self.events[site.positions[mode]]
        if site.operand is not None:
            value = node.all_input_nodes[site.operand]
            with self.graph.inserting_before(node):
                node.replace_input_with(value, self.graph.call_module(target, (value,)))
            return
        self._insert_after(target, node, site)

    def _insert_after(self, target: str, node: fx.Node, site: Site) -> None:
        """Insert q(node). If the quantizer can compute the activation or addition itself, it
        replaces them."""
        args, kwargs, replaced = (node,), {}, []
        activated = site.activation != "none" and isinstance(node.args[0], fx.Node)
        if activated:
            args, replaced = (node.args[0],), [node]
            kwargs["activation"] = site.activation
        addition = args[0] if activated else node
        if site.add and (not activated or len(addition.users) == 1):
            args, replaced = (addition.args[0],), [*replaced, addition]
            kwargs["other"] = addition.args[1]
        with self.graph.inserting_after(node):
            if activated and node.op == "call_module":
                plain = self.graph.get_attr(str(node.target))
                kwargs["plain"] = plain
                with self.graph.inserting_after(plain):
                    quantized = self.graph.call_module(target, args, kwargs)
            else:
                quantized = self.graph.call_module(target, args, kwargs)
        self._replace(node, quantized)
        for old in replaced:
            self.graph.erase_node(old)

    def _replace(self, node: fx.Node, quantized: fx.Node) -> None:
        node.replace_all_uses_with(quantized, delete_user_cb=lambda user: user is not quantized)

    def read_weights(self, own: list[str]) -> bool:
        """Quantize the weights that the forward reads by itself. Return whether there are any."""
        changed = False
        for node in list(self.graph.nodes):
            if node.op != "get_attr":
                continue
            target = str(node.target)
            layer, _, name = target.rpartition(".")
            if layer and name == "weight":
                module = self.owner.get_submodule(layer)
                if not isinstance(module, QuantizedLayer) or module.bp_weight is None:
                    continue
                quantizer = f"{layer}.bp_weight"
            elif target in own:
                quantizer = f"bp_weights.{target}"
            else:
                continue
            with self.graph.inserting_after(node):
                self._replace(node, self.graph.call_module(quantizer, (node,)))
            changed = True
        return changed

    def source(self, name: str) -> str:
        self.graph._owning_module = None
        for node in reversed(list(self.graph.nodes)):
            if node.target is operator.getitem and not node.users:
                self.graph.erase_node(node)  # nothing reads this part of a child's result
        code = self.graph.python_code("self")
        imports = _format_import_block(code.globals, sys_importer)
        return f"{imports}\n{code.src.replace('def forward(self', f'def {name}(self', 1)}"


def _header(trace: g.OwnerTrace, kind: str) -> str:
    entry = trace.entry
    lines = [f"def forward({entry.header}):"]
    if entry.guards:
        lines += [
            f"    if not ({' and '.join(entry.guards)}):",
            f"        raise _Unsupported('{kind}: prepared with example inputs of other arguments, "
            "which its forward treats differently; prepare with arguments like these')",
        ]
    return "\n".join(lines)


def _frozen(trace: g.OwnerTrace) -> str:
    """Return a ``__setattr__`` that warns when a number is assigned that the forward has as a
    constant."""
    if not trace.frozen:
        return ""
    return f"""
_FROZEN = {trace.frozen!r}
def __setattr__(self, name, value):
    if name in _FROZEN and value != _FROZEN[name]:
        import warnings
        warnings.warn(f"{{type(self).__name__}}.{{name}} is part of the forward that "
                      "bitpare.prepare wrote; the new value has no effect", stacklevel=2)
    _bitpare_base.__setattr__(self, name, value)
"""


def emit(
    owner: nn.Module, traces: dict[bool, g.OwnerTrace], sites: list[Site], own: list[str]
) -> str | None:
    """Return the source of the owner's new functions, or None if nothing changes."""
    bodies, changed = {}, bool(sites)
    for mode in (EVAL, TRAIN):
        editor = _Editor(owner, traces[mode])
        # Replace later calls first, because a replacement keeps the positions of the calls before
        # it.
        for index, site in reversed(list(enumerate(sites))):
            editor.insert_site(index, site, mode)
        changed = editor.read_weights(own) or changed
        bodies[mode] = editor.source(_FUNCTIONS[mode])
    if not changed:
        return None
    entry = traces[EVAL].entry
    call = f"({', '.join(entry.paths)})"
    same = bodies[TRAIN].replace(_FUNCTIONS[TRAIN], _FUNCTIONS[EVAL]) == bodies[EVAL]
    choose = [] if same else [f"    if self.training: return self._bitpare_train{call}"]
    parts = [
        "from bitpare.errors import Unsupported as _Unsupported",
        bodies[EVAL],
        *([] if same else [bodies[TRAIN]]),
        _frozen(traces[EVAL]),
        "\n".join(
            [
                _header(traces[EVAL], type(owner).__name__),
                *choose,
                f"    return self._bitpare_eval{call}",
            ]
        ),
    ]
    return "\n".join(part for part in parts if part) + "\n"
