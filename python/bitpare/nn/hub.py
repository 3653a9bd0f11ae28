"""What happens once for a whole model at the start of each forward: pending ranges are merged, and
all weights are fake-quantized in one op."""

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from bitpare.nn.learned import LearnedQuantizer
from bitpare.nn.quantizer import Quantizer
from bitpare.nn.ranges import RangeQuantizer, quantize_weights, update_ranges


class Hub:
    """Hooks on a prepared model's forward, and what prepare noted about it.

    notes: (name, reason, whether it is quantized all the same).
    """

    def __init__(self, config: dict[str, Any] | None) -> None:
        self.config = config
        self.notes: list[tuple[str, str, bool]] = []
        self._members: _Members | None = None

    def note(self, name: str, reason: str, quantized: bool = False) -> None:
        if (name, reason, quantized) not in self.notes:
            self.notes.append((name, reason, quantized))

    def attach(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self.begin)
        model.register_forward_hook(self.end)
        model.bp_hub = self  # type: ignore[assignment]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_members": None}

    def members(self, model: nn.Module) -> "_Members":
        """The model's quantizers, looked up once."""
        if self._members is None:
            self._members = _Members(model)
        return self._members

    def begin(self, model: nn.Module, args: Any) -> None:
        members = self.members(model)
        if torch.compiler.is_compiling():  # a graph knows best when to quantize each weight
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


class _Members:
    def __init__(self, model: nn.Module) -> None:
        found = [m for m in model.modules() if isinstance(m, Quantizer)]
        self.ranges = [q for q in found if isinstance(q, RangeQuantizer) and q.role == "activation"]
        self.limited = [q for q in found if isinstance(q, LearnedQuantizer) and q.limit > 0]
        owners = [
            (m, m.bp_weight)
            for m in model.modules()
            if isinstance(getattr(m, "bp_weight", None), RangeQuantizer)
        ]
        self.weights = [(m, q) for m, q in owners if q.batched]

    def merge(self) -> None:
        for q in self.limited:
            q.hold_limit()
        live = [q for q in self.ranges if not (q.calibrating or q.bypass)]
        if not live:
            return
        if _world_size() > 1:
            _share([q.pending for q in live])
        update_ranges(live)

    def quantize_weights(self) -> None:
        self.drop_weights()
        groups: dict[bool, list[tuple[Any, RangeQuantizer]]] = {}
        for module, q in self.weights:
            if q.bypass or q.calibrating or hasattr(module.weight, "_local_tensor"):
                continue  # a sharded weight is whole only in its own layer's forward
            groups.setdefault(q.spec.power_of_two, []).append((module, q))
        for members in groups.values():
            found = quantize_weights([m.weight for m, _ in members], [q for _, q in members])
            for (_, q), cached in zip(members, found, strict=True):
                q.passing.weight = cached

    def drop_weights(self) -> None:
        for _, q in self.weights:
            q.passing.weight = None


def _world_size() -> int:
    known = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if known else 1


def _share(pending: list[Tensor]) -> None:
    """The ranges that all processes saw, in one collective."""
    flat = torch.cat([torch.cat([-p[0], p[1]]) for p in pending])
    torch.distributed.all_reduce(flat, op=torch.distributed.ReduceOp.MAX)
    at = 0
    for p in pending:
        n = p.shape[1]
        p[0].copy_(-flat[at : at + n])
        p[1].copy_(flat[at + n : at + 2 * n])
        at += 2 * n
