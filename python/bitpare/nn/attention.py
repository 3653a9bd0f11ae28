"""Compute multi-head attention step by step, so that its products can be quantized."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitpare.nn.quantizer import Quantizer

VALUES = ("query", "key", "value", "probabilities", "context")


class QMultiheadAttention(nn.MultiheadAttention):
    """A multi-head attention with quantized weights and products. Parameter names are unchanged.

    bp_in: quantizers of the input projections' weights. bp_out: quantizer of the output
    projection's weight. bp_values: quantizers of the tensors that the matrix products read."""

    _bitpare_layer = True
    bp_in: nn.ModuleDict
    bp_out: Quantizer | None
    bp_values: nn.ModuleDict

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if any(q.bypass for q in self.modules() if isinstance(q, Quantizer)):
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask,
                average_attn_weights, is_causal,
            )  # fmt: skip
        batched = query.dim() == 3
        if not batched:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        y, weights = self._attend(query, key, value, key_padding_mask, attn_mask)
        if not batched:
            y, weights = y.squeeze(0), weights.squeeze(0)
        elif not self.batch_first:
            y = y.transpose(0, 1)
        if not need_weights:
            return y, None
        return y, weights.mean(-3) if average_attn_weights else weights

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding: Tensor | None,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        q, k, v = self._project(query, key, value)
        batch, extra = q.shape[0], 0
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(batch, 1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(batch, 1, -1)], 1)
            extra += 1
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        if self.add_zero_attn:
            k, v = (F.pad(t, (0, 0, 0, 1)) for t in (k, v))
            extra += 1
        q, k, v = self._value("query", q), self._value("key", k), self._value("value", v)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        added = self._mask(padding, mask, scores, extra)
        if added is not None:
            scores = scores + added
        weights = scores.softmax(-1)
        dropped = F.dropout(weights, self.dropout, self.training) if self.dropout else weights
        context = self._value("probabilities", dropped) @ v
        return self._output(context.transpose(1, 2).flatten(2)), weights

    def _output(self, context: Tensor) -> Tensor:
        out = self.out_proj.weight
        out = out if self.bp_out is None else self.bp_out(out)
        return F.linear(self._value("context", context), out, self.out_proj.bias)

    def _value(self, name: str, x: Tensor) -> Tensor:
        return self.bp_values[name](x) if name in self.bp_values else x

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        def weight(name: str) -> Tensor:
            parameter: Tensor = getattr(self, name)
            return self.bp_in[name](parameter) if name in self.bp_in else parameter

        if self.in_proj_weight is not None:
            weights = weight("in_proj_weight").chunk(3)
        else:
            weights = tuple(weight(f"{n}_proj_weight") for n in ("q", "k", "v"))
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        inputs = (query, key, value)
        return [F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]

    def _mask(
        self, padding: Tensor | None, mask: Tensor | None, scores: Tensor, extra: int
    ) -> Tensor | None:
        """Return the sum of both masks, which is added to the scores. A true value in a boolean
        mask becomes -inf."""
        total: Tensor | None = None
        if mask is not None:
            added = _as_addend(mask, scores)
            if added.dim() == 3:
                added = added.view(-1, self.num_heads, *added.shape[-2:])
            total = F.pad(added, (0, extra))
        if padding is not None:
            added = F.pad(_as_addend(padding, scores), (0, extra))[:, None, None, :]
            total = added if total is None else total + added
        return total


def _as_addend(mask: Tensor, scores: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(scores.dtype)
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, -math.inf)


def upgrade_attention(
    module: nn.MultiheadAttention,
    weight: Callable[[str, Tensor], Quantizer | None],
    value: Callable[[str, bool], Quantizer | None],
) -> None:
    """Turn an attention into its quantized subclass, with quantizers from ``weight`` and
    ``value``."""
    attention: Any = module
    attention.__class__ = QMultiheadAttention
    names = ["in_proj_weight"] if attention.in_proj_weight is not None else []
    names = names or [f"{n}_proj_weight" for n in ("q", "k", "v")]
    found = {name: weight(name, getattr(attention, name)) for name in names}
    attention.bp_in = nn.ModuleDict({name: q for name, q in found.items() if q is not None})
    attention.register_module("bp_out", weight("out_proj.weight", attention.out_proj.weight))
    made = {name: value(name, name == "probabilities") for name in VALUES}
    attention.bp_values = nn.ModuleDict({name: q for name, q in made.items() if q is not None})
