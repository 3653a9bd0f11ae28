"""Check that a prepared model with its quantizers off computes the same bits as the float model."""

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bitpare import graph as g
from bitpare.nn.quantizer import Quantizer, quantizers_off
from bitpare.quant.survey import EVAL, TRAIN, Plan


def first_difference(
    model: nn.Module, prepared: nn.Module, plan: Plan, call: g.Call
) -> tuple[str, str] | None:
    """Return the innermost rewritten module whose results differ from the float model's, and why.
    The quantizers are off. None means that no module differs."""
    rewritten = [
        n for n in plan.traces if hasattr(type(prepared.get_submodule(n)), "_bitpare_source")
    ]
    for training in (EVAL, TRAIN):
        if _same_results(model, prepared, call, training):
            continue
        for name in sorted(rewritten, key=lambda n: -n.count(".") - bool(n)):
            original, made = model.get_submodule(name), prepared.get_submodule(name)
            for inner in plan.calls[training].get(name, plan.calls[EVAL].get(name, []))[:2]:
                if not _same_results(original, made, inner, training):
                    return name, "its traced forward does not give the same results"
        if rewritten:
            return rewritten[0], "its traced forward does not give the same results"
    return None


@dataclasses.dataclass
class _Outcome:
    values: list[Any]
    error: str | None


def _outcome(model: nn.Module, call: g.Call, training: bool, seed: int) -> _Outcome:
    with g.quiet_state(model):
        probe = copy.deepcopy(model).train(training)
        g.clear_hooks(probe)
        torch.manual_seed(seed)
        with quantizers_off(probe):
            values = _pytree.tree_map(
                lambda v: v.detach().clone() if isinstance(v, Tensor) else v,
                (call.args, call.kwargs),
            )
            try:
                result = probe(*values[0], **values[1])
            except Exception as error:
                return _Outcome([], f"{type(error).__name__}: {error}")
            return _Outcome(_everything(probe, result), None)


def _everything(probe: nn.Module, result: Any) -> list[Any]:
    """Return outputs, gradients, buffers and the state of the random number generator."""
    outputs = [v for v in _pytree.tree_leaves(result) if isinstance(v, Tensor)]
    loss = sum(v.float().square().mean() for v in outputs if v.requires_grad)
    if isinstance(loss, Tensor):
        loss.backward()  # type: ignore[no-untyped-call]
    added = {id(b) for m in probe.modules() if isinstance(m, Quantizer) for b in m.buffers()}
    added |= {id(p) for m in probe.modules() if isinstance(m, Quantizer) for p in m.parameters()}
    gradients = [p.grad for p in probe.parameters() if id(p) not in added]
    names = [
        n for n, b in probe.named_buffers() if id(b) not in added and "_tensor_constant" not in n
    ]
    buffers = dict(probe.named_buffers())
    leaves, form = _pytree.tree_flatten(result)
    kinds = [form, *(type(v) for v in leaves)]
    return [kinds, *outputs, *gradients, *(buffers[n] for n in names), torch.get_rng_state()]


def _same_results(a: nn.Module, b: nn.Module, call: g.Call, training: bool) -> bool:
    for seed in (1, 2):
        first, second = _outcome(a, call, training, seed), _outcome(b, call, training, seed)
        if first.error is not None:
            return True  # the float model does not run in this mode either
        if second.error is not None or len(first.values) != len(second.values):
            return False
        for x, y in zip(first.values, second.values, strict=True):
            if (x is None) != (y is None) or (isinstance(x, list) and x != y):
                return False
            if isinstance(x, list):
                continue
            if x is not None and not (x.shape == y.shape and torch.equal(_bits(x), _bits(y))):
                return False
        with torch.random.fork_rng():
            if torch.equal(first.values[-1], torch.manual_seed(seed).get_state()):
                return (
                    True  # the model uses no random numbers, so another seed gives the same result
                )
    return True


def _bits(x: Tensor) -> Tensor:
    """Replace NaN by a number, so that NaN compares equal to NaN."""
    return torch.nan_to_num(x, nan=1.2345e30) if x.is_floating_point() else x
