"""What all layers of a decoder at one position of every beam mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from kernels.beam_attention.reference import beam_self_attention
from kernels.context_attention.reference import context_attention
from kernels.linear.reference import fused_linear, part_squares


class LayerWeights(NamedTuple):
    """Weights [out, in] of one layer; the gain of a norm is inside those that follow it: query, qkv and inner."""

    query: Tensor
    cross_out: Tensor
    qkv: Tensor
    self_out: Tensor
    inner: Tensor
    out: Tensor


def run(
    layers: Sequence[LayerWeights],
    contexts: Sequence[tuple[Tensor, Tensor]],
    past: Sequence[tuple[Tensor, Tensor]],
    hidden: Tensor,
    lengths: Tensor | None,
    ancestors: Tensor,
    step: int,
    heads: int,
    eps: float,
) -> Tensor:
    """States [B * W, d] after all layers: see `kernels.step.Steps`; in the type of its inputs, so float64 for a judge."""
    batch = len(ancestors)
    for weights, (keys, values), history in zip(layers, contexts, past, strict=True):
        query = fused_linear(hidden, part_squares(hidden), weights.query, None, None, None, eps)
        mixed, _ = context_attention(query.view(batch, -1, heads, keys.shape[-1]), keys, values, lengths)
        hidden = fused_linear(mixed.view_as(hidden), None, weights.cross_out, None, hidden, None, eps)
        qkv = fused_linear(hidden, part_squares(hidden), weights.qkv, None, None, None, eps)
        own = beam_self_attention(qkv.view(batch, -1, qkv.shape[1]), *history, ancestors, step)
        hidden = fused_linear(own.view_as(hidden), None, weights.self_out, None, hidden, None, eps)
        inner = fused_linear(hidden, part_squares(hidden), weights.inner, None, None, "relu2", eps)
        hidden = fused_linear(inner, None, weights.out, None, hidden, None, eps)
    return hidden
