"""Attention of all beams of a request to its one context: beams are the query sequence, so the context is never repeated.

With few rows on a GPU the norm and projection of the queries are in the same kernel (`projected_attention`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import config, dispatch
from kernels.context_attention import cpu, reference
from kernels.linear import aligned, epsilon, fold, part_squares, rmsnorm_linear


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
    _check(query.shape, keys, values, lengths)
    if not with_lse and dispatch.direct(backend, query):
        return cpu.context_attention(query, keys, values, lengths)
    out, lse = _context_attention(query, keys, values, lengths, with_lse, backend)
    return (out, lse) if with_lse else out


def projected_attention(
    hidden: Tensor,
    gain: Tensor | None,
    weight: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor | None = None,
    *,
    heads: int,
    squares: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """`context_attention` of the queries `rmsnorm_linear(hidden, gain, weight, squares=squares)`.

    Args:
        hidden: [B * W, d]. gain: [d], or None where it is in the weight. weight: [H * D, d]. squares: see `rmsnorm_linear`.
        keys, values, lengths, backend: see `context_attention`.

    Returns:
        [B * W, H * D].

    Raises:
        ValueError: shapes that do not fit.
    """
    batch, width = len(keys), keys.shape[-1]
    if hidden.dim() != 2 or weight.shape != (heads * width, hidden.shape[1]) or len(hidden) % max(batch, 1):
        raise ValueError(f"hidden {list(hidden.shape)}, weight {list(weight.shape)}: [{batch} * W, d], [{heads * width}, d] are expected")
    shape = batch, len(hidden) // batch, heads, width
    _check(shape, keys, values, lengths)
    fused = len(hidden) <= config.FEW_ROWS and width in config.FUSED_WIDTHS and aligned(hidden)
    if not fused or dispatch.resolve(backend, hidden) == "torch":
        query = rmsnorm_linear(hidden, gain, weight, squares=squares, backend=backend)
        return context_attention(query.view(shape), keys, values, lengths, backend=backend).view(len(hidden), -1)  # type: ignore[union-attr]
    known = part_squares(hidden) if squares is None else squares
    folded = weight if gain is None else fold(gain, weight)
    return _projected_attention(hidden, known, folded, keys, values, lengths, heads, epsilon(hidden.dtype), backend)


def _check(shape: Sequence[int], keys: Tensor, values: Tensor, lengths: Tensor | None) -> None:
    """Raises ValueError: keys [B, S, G, D] and what goes with them do not fit queries of this shape [B, W, H, D]."""
    fits = shape[0] == keys.shape[0] and shape[3] == keys.shape[3] and shape[2] % keys.shape[2] == 0 and keys.shape[1] > 0
    if not fits or values.shape != keys.shape or (lengths is not None and lengths.shape != keys.shape[:1]):
        raise ValueError(
            f"query {list(shape)}, keys {list(keys.shape)}, values {list(values.shape)}, "
            f"lengths {None if lengths is None else list(lengths.shape)}: [B, W, H, D], [B, S, G, D] twice, [B] and G | H are expected"
        )


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


@torch.library.custom_op("sidstream::projected_attention", mutates_args=())
def _projected_attention(
    hidden: Tensor,
    squares: Tensor,
    weight: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor | None,
    heads: int,
    eps: float,
    backend: str,
) -> Tensor:
    if dispatch.resolve(backend, hidden) == "triton":
        from kernels.context_attention.triton import projected_attention as kernel

        return kernel(hidden.contiguous(), squares, weight.contiguous(), keys, values, lengths, heads, eps)
    query = rmsnorm_linear(hidden, None, weight, squares=squares, eps=eps, backend=backend)
    return cpu.context_attention(query.view(len(keys), -1, heads, keys.shape[-1]), keys, values, lengths).view(len(hidden), -1)


@_projected_attention.register_fake
def _(hidden: Tensor, squares: Tensor, weight: Tensor, *_: object) -> Tensor:
    return hidden.new_empty(len(hidden), len(weight))


__all__ = ["context_attention", "projected_attention", "reference"]
