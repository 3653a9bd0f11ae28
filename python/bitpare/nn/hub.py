"""Do what a whole model needs once per forward: merge pending ranges, and fake-quantize all weights
in one op."""

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils import _pytree

from bitpare.distributed import world_size
from bitpare.graph import Call
from bitpare.models import device_of, plans_of, unwrapped
from bitpare.nn.learned import LearnedQuantizer
from bitpare.nn.quantizer import Quantizer
from bitpare.nn.ranges import (
    RangeQuantizer,
    grouped_by_rule,
    quantize_weights,
    update_ranges,
)
from bitpare.nn.weights import is_sharded, quantized_weights


class Hub:
    """The hooks on a prepared model's forward, and notes that prepare made about it.

    notes: (name, reason, whether the layer is quantized anyway). islands: modules that keep
    their own forward; "" is the model itself. example: the call that the model was prepared
    with; float tensors keep only their shape."""

    def __init__(self, config: dict[str, Any] | None, example: Call) -> None:
        self.config = config
        self.example = _pytree.tree_map(_without_values, (example.args, example.kwargs))
        # The number of pruning plans that had changed each part before the model was prepared.
        self.plans_before: dict[str, int] = {}
        self.notes: list[tuple[str, str, bool]] = []
        self.islands: list[str] = []
        self._members: _Members | None = None

    def example_call(self, model: nn.Module) -> Call:
        """Return a call like the one the model was prepared with, on the model's device. Float
        tensors are zeros."""
        device = device_of(model)
        args, kwargs = _pytree.tree_map(
            lambda v: v.to(device).contiguous() if isinstance(v, Tensor) else v, self.example
        )
        return Call(args, kwargs)

    def note(self, name: str, reason: str, quantized: bool = False) -> None:
        if (name, reason, quantized) not in self.notes:
            self.notes.append((name, reason, quantized))

    def attach(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self.begin)
        model.register_forward_hook(self.end)
        self.plans_before = {path: len(plans) for path, plans in plans_of(model).items()}
        model.bp_hub = self  # type: ignore[assignment]
        self._members = _Members(model)

    def begin(self, model: nn.Module, args: Any) -> None:
        members = self._members
        assert members is not None
        if torch.compiler.is_compiling():  # the compiler schedules each weight by itself
            if model.training:
                members.merge()
            return
        recomputing = torch._C._current_graph_task_id() != -1  # activation checkpointing
        if model.training and not recomputing:
            members.merge()
        members.quantize_weights()

    def end(self, model: nn.Module, args: Any, result: Any) -> None:
        if self._members is not None:
            self._members.drop_weights()


def hub_of(model: nn.Module) -> Hub | None:
    """Return the hub of a prepared model, or of the only prepared part of a larger model."""
    held = (getattr(m, "bp_hub", None) for m in unwrapped(model).modules())
    return next((hub for hub in held if isinstance(hub, Hub)), None)


def find_hub(model: nn.Module, caller: str) -> Hub:
    """Return the hub of a model, or raise ValueError if the model is not prepared."""
    hub = hub_of(model)
    if hub is None:
        raise ValueError(f"{caller}: the model is not prepared; call bp.prepare first")
    return hub


def _without_values(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if not value.is_floating_point():
        return value.detach().cpu()
    return torch.zeros((), dtype=value.dtype).expand(value.shape)


class _Members:
    def __init__(self, model: nn.Module) -> None:
        found = [m for m in model.modules() if isinstance(m, Quantizer)]
        ranges = [q for q in found if isinstance(q, RangeQuantizer) and q.role == "activation"]
        self.limited = [q for q in found if isinstance(q, LearnedQuantizer) and q.limit > 0]
        weights = [
            (owner, attribute, q)
            for _, owner, attribute, q in quantized_weights(model)
            if isinstance(q, RangeQuantizer) and q.batched
        ]
        self.passing = [q.passing for _, _, q in weights]
        self.rules = grouped_by_rule(ranges)
        self.powers = [
            [held for held in weights if held[2].spec.power_of_two == power]
            for power in (False, True)
        ]

    def merge(self) -> None:
        for q in self.limited:
            q.hold_limit()
        rules = [[q for q in alike if not (q.calibrating or q.bypass)] for alike in self.rules]
        if world_size() > 1:
            _share([q.pending for alike in rules for q in alike])
        for alike in rules:
            if alike:
                update_ranges(alike)

    def quantize_weights(self) -> None:
        self.drop_weights()
        for alike in self.powers:
            weights: list[Tensor] = []
            quantizers: list[RangeQuantizer] = []
            for owner, attribute, q in alike:
                weight = owner._parameters.get(attribute)
                if weight is None:  # parametrized
                    weight = getattr(owner, attribute)
                if q.bypass or q.calibrating or q.mask is not None or is_sharded(weight):
                    continue
                weights.append(weight)
                quantizers.append(q)
            if weights:
                found = quantize_weights(weights, quantizers)
                for q, cached in zip(quantizers, found, strict=True):
                    q.passing.weight = cached

    def drop_weights(self) -> None:
        for passing in self.passing:
            passing.weight = None


def _share(pending: list[Tensor]) -> None:
    """Reduce the pending ranges over all processes, in one collective."""
    if not pending:
        return
    flat = torch.cat([torch.cat([-p[0], p[1]]) for p in pending])
    torch.distributed.all_reduce(flat, op=torch.distributed.ReduceOp.MAX)
    at = 0
    for p in pending:
        n = p.shape[1]
        p[0].copy_(-flat[at : at + n])
        p[1].copy_(flat[at + n : at + 2 * n])
        at += 2 * n
