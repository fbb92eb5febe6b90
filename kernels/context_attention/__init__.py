"""Attention of all beams of a request to its one context: beams are the query sequence, so the context is never repeated."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import dispatch
from kernels.context_attention import cpu, reference


def context_attention(
    query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor | None = None, *, with_lse: bool = False, backend: str = "auto"
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention, scaled by D^-1/2, of W beams per request to the first `lengths[b]` positions of its context.

    Args:
        query: [B, W, H, D].
        keys: [B, S, G, D], a view of any strides whose last dimension is contiguous; head h reads group h // (H // G).
        values: the same for values; may be the keys.
        lengths: int32[B], valid positions; all S without it. A context of length 0 gives zeros.
        with_lse: also return float32[B, W, H], the log-sum-exp of the scaled scores (-inf at length 0), to merge with other attention.
        backend: see `kernels.dispatch.resolve`.

    Returns:
        [B, W, H, D] of the type of query; with_lse: and the log-sum-exp.

    Raises:
        ValueError: shapes that do not fit.
    """
    heads, groups = query.shape[2], keys.shape[2]
    fits = query.shape[0] == keys.shape[0] and query.shape[3] == keys.shape[3] and heads % groups == 0 and keys.shape[1] > 0
    if not fits or values.shape != keys.shape or (lengths is not None and lengths.shape != keys.shape[:1]):
        raise ValueError(
            f"query {list(query.shape)}, keys {list(keys.shape)}, values {list(values.shape)}, "
            f"lengths {None if lengths is None else list(lengths.shape)}: [B, W, H, D], [B, S, G, D] twice, [B] and G | H are expected"
        )
    if not with_lse and dispatch.direct(backend, query):
        return cpu.context_attention(query, keys, values, lengths)
    out, lse = _context_attention(query, keys, values, lengths, with_lse, backend)
    return (out, lse) if with_lse else out


@torch.library.custom_op("sidstream::context_attention", mutates_args=())
def _context_attention(
    query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor | None, with_lse: bool, backend: str
) -> tuple[Tensor, Tensor]:
    if dispatch.resolve(backend, query) == "triton":
        from kernels.context_attention.triton import context_attention as kernel

        return kernel(query, keys, values, lengths, with_lse)
    if with_lse:
        return reference.context_attention(query, keys, values, lengths)
    return cpu.context_attention(query, keys, values, lengths), query.new_empty(0, dtype=torch.float32)


@_context_attention.register_fake
def _(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor | None, with_lse: bool, backend: str) -> tuple[Tensor, Tensor]:
    lse = torch.float64 if query.dtype == torch.float64 and with_lse else torch.float32
    return torch.empty_like(query, memory_format=torch.contiguous_format), query.new_empty(query.shape[:3] if with_lse else (0,), dtype=lse)


__all__ = ["context_attention", "reference"]
