"""Remove some residual blocks of a model."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from bitpare import graph as g
from bitpare.errors import Unsupported
from bitpare.graph.ops import op_of
from bitpare.models import Globs, unwrapped
from bitpare.prune.removal import Plan


def drop_layers(
    model: nn.Module,
    *,
    sparsity: float = 0.5,
    example_inputs: tuple[Any, ...] | Tensor,
    example_kwargs: dict[str, Any] | None = None,
    ignore: Sequence[str] = (),
) -> nn.Module:
    """Return a copy of ``model`` with identities in place of some residual blocks.

    A block can be removed if it is an item of an nn.Sequential or nn.ModuleList, is called once,
    returns a tensor of its input's shape and adds its input to its result. The input then takes
    the place of the result. The names of the other layers do not change.

    Args:
        model: the model; it is not changed.
        sparsity: the share of these blocks to remove, in [0, 1], evenly spread over the model.
        example_inputs: the positional arguments of a call of the model, or a single tensor.
        example_kwargs: the keyword arguments of that call.
        ignore: globs of blocks that stay.

    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.inner = nn.Linear(4, 4)
    ...     def forward(self, x):
    ...         return x + self.inner(x)
    >>> model = nn.Sequential(Block(), Block(), nn.Linear(4, 2))
    >>> [type(m).__name__ for m in drop_layers(model, example_inputs=torch.randn(1, 4))]
    ['Block', 'Identity', 'Linear']
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"drop_layers: sparsity must be from 0 to 1, got {sparsity}")
    call = g.call_with("drop_layers", example_inputs, example_kwargs)
    source = unwrapped(model)
    blocks = residual_blocks(source, call)
    ignored = Globs(ignore)
    blocks = [n for n in blocks if not ignored.matching(n)]
    if ignored.unused:
        raise ValueError(f"drop_layers: ignore {ignored.unused[0]!r} matches no block that may go")
    count = max(round(sparsity * len(blocks)), int(sparsity > 0))
    if not blocks:
        raise Unsupported("drop_layers: the model has no residual block that may go")
    small = Plan({}, dropped=_evenly(blocks, count)).apply(source)
    _verify(small, call)
    return small


def residual_blocks(model: nn.Module, call: g.Call) -> list[str]:
    """Return the names of the blocks that can be removed, in the order of the model."""
    found = []
    with g.without_hooks(model), g.quiet_state(model), torch.no_grad():
        calls = g.record_calls(model, call, False)
        results = {
            model.get_submodule(n): g.one_of([c.result for c in f]) for n, f in calls.items()
        }
        shapes = _shapes(model, call)
        for name, module in model.named_modules():
            if not isinstance(module, nn.Sequential | nn.ModuleList):
                continue
            for key, child in module.named_children():
                path = f"{name}.{key}" if name else key
                if shapes.get(path) == [True] and _adds_its_input(child, calls.get(path), results):
                    found.append(path)
    # Leave out blocks within other blocks.
    return [n for n in found if not any(n.startswith(f"{outer}.") for outer in found)]


def _shapes(model: nn.Module, call: g.Call) -> dict[str, list[bool]]:
    """Return for each module's calls whether its only input and its result are tensors of one
    shape."""
    found: dict[str, list[bool]] = {}
    hooks = []
    for name, module in model.named_modules():

        def note(m: nn.Module, args: Any, kwargs: Any, result: Any, name: str = name) -> None:
            alone = len(args) == 1 and not kwargs
            same = alone and isinstance(args[0], Tensor) and isinstance(result, Tensor)
            found.setdefault(name, []).append(same and args[0].shape == result.shape)

        hooks.append(module.register_forward_hook(note, with_kwargs=True))
    try:
        model.eval()(*call.args, **call.kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _adds_its_input(
    block: nn.Module, calls: list[g.Call] | None, results: dict[nn.Module, Any]
) -> bool:
    if isinstance(block, nn.TransformerEncoderLayer):
        return True
    if not g.is_owner(block) or not calls:
        return False
    try:
        graph = g.trace_owner(block, calls[0], results).graph
    except Unsupported:
        return False
    return any(op_of(block, n).name == "add" and _reads_input(n) for n in graph.nodes)


def _reads_input(node: fx.Node) -> bool:
    """Return whether an operation reads the block's input and a value that a layer computed."""
    inputs = node.all_input_nodes
    others = [n for n in inputs if n.op != "placeholder"]
    return len(others) < len(inputs) and any(_from_a_layer(n) for n in others)


def _from_a_layer(node: fx.Node) -> bool:
    seen, ahead = set(), [node]
    while ahead:
        n = ahead.pop()
        if n.op == "call_module":
            return True
        if n not in seen:
            seen.add(n)
            ahead += n.all_input_nodes
    return False


def _evenly(names: list[str], count: int) -> list[str]:
    """Choose ``count`` names, evenly spread, starting from the end of the list."""
    if count == 0:
        return []
    step = len(names) / count
    return [names[min(int((k + 1) * step) - 1, len(names) - 1)] for k in range(count)]


def _verify(model: nn.Module, call: g.Call) -> None:
    probe = copy.deepcopy(model).eval()
    g.clear_hooks(probe)
    try:
        with torch.no_grad():
            probe(*call.args, **call.kwargs)
    except Exception as error:
        text = str(error).split("\n")[0]
        raise Unsupported(
            f"drop_layers: the model's own code does not run without these blocks ({text}); name "
            "them in ignore="
        ) from error
