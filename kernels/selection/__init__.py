"""Exact selection of the best continuations over all beams of a request.

Contract of every selection, on every backend:

* `score[b, w, v] = offset[b, w] + logit[b, w, v]` in float32 (float64 where the logits are), `offset` rounded once per row.
* The order is total: score descending, then parent ascending, then token ascending. `-0.0` counts and is returned as `0.0`.
* A logit that is NaN or +inf is invalid: as if it were -inf. A row whose `cumulative` is NaN or +inf is dead.
* What scores -inf is never returned: a missing slot has score -inf, parent 0, token -1.
* The same numbers give the same bits, run after run, and a request alone those that it has in a batch.

Not promised: gradients, and equal bits of the *log-normalizer* on a CPU and a GPU (both are within 2e-5 of the float64 value).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import dispatch
from kernels.projection import Pyramid, check_mask, check_projection, proj_pyramid, pyramid
from kernels.selection import cpu, native, reference

Selection = tuple[Tensor, Tensor, Tensor]


def beam_topk(logits: Tensor, cumulative: Tensor, k: int, normalize: bool = True, *, backend: str = "auto") -> Selection:
    """The k best continuations of each request, best first.

    Args:
        logits: floating [B, W, V], a row per beam; float32 is computed unless it is float64. A token that is not allowed is -inf.
        cumulative: [B, W], score of each beam so far; -inf for a beam that does not exist.
        k: results per request, ≥ 1.
        normalize: subtract each row's log-sum-exp, so that scores are log-probabilities.
        backend: see `kernels.dispatch.resolve`.

    Returns:
        score float32[B, k] (float64 for such logits), parent int32[B, k] (the beam continued), token int32[B, k].

    Raises:
        ValueError: shapes that do not fit, or k < 1.
    """
    if logits.dim() != 3 or cumulative.shape != logits.shape[:2] or 0 in logits.shape[1:] or k < 1:
        raise ValueError(
            f"logits {list(logits.shape)}, cumulative {list(cumulative.shape)}, k {k}: [B, W, V], [B, W] and W, V, k ≥ 1 are expected"
        )
    if dispatch.direct(backend, logits):
        return cpu.beam_topk(logits, cumulative, k, normalize)
    if dispatch.resolve(backend, logits) == "torch":
        return _beam_topk(logits, cumulative, k, normalize)
    rows = pyramid(logits.flatten(0, 1), backend=backend)
    if not normalize:
        rows = rows._replace(log_normalizer=torch.zeros_like(rows.log_normalizer))
    return beam_select(rows, cumulative, k, backend=backend)


def beam_select(rows: Pyramid, cumulative: Tensor, k: int, *, backend: str = "auto") -> Selection:
    """The k best continuations of each request from a pyramid of maxima: `beam_topk` for logits whose maxima are known already.

    `offset = cumulative - log_normalizer`.

    Args:
        rows: of all beams of all requests, M = B * W rows.
        cumulative: float32[B, W]; -inf for a beam that does not exist.
        k: results per request, ≥ 1.
        backend: see `kernels.dispatch.resolve`.

    Returns:
        score float32[B, k], parent int32[B, k], token int32[B, k].

    Raises:
        ValueError: shapes that do not fit, or k < 1.
    """
    _check_beams(len(rows.logits), cumulative, k)
    if dispatch.direct(backend, rows.logits):
        return cpu.beam_select(rows.logits, rows.fine, rows.coarse, rows.log_normalizer, cumulative, k)
    return _beam_select(rows.logits, rows.fine, rows.coarse, rows.log_normalizer, cumulative, k, backend)


def logits_select(
    logits: Tensor, cumulative: Tensor, k: int, *, node: Tensor | None = None, bitmask: Tensor | None = None, backend: str = "auto"
) -> Selection:
    """`beam_select` of the `pyramid` of logits [M, V] that exist already, normalised over all tokens.

    Arguments, result and errors are those of the two.
    """
    check_mask(len(logits), logits.shape[1], node, bitmask, "full")
    _check_beams(len(logits), cumulative, k)
    if native.fits(logits) and dispatch.direct(backend, logits):
        return native.select(logits, cumulative, k, node, bitmask)
    return beam_select(pyramid(logits, node=node, bitmask=bitmask, backend=backend), cumulative, k, backend=backend)


def proj_select(
    hidden: Tensor,
    weight: Tensor,
    cumulative: Tensor,
    k: int,
    *,
    squares: Tensor | None = None,
    bias: Tensor | None = None,
    extra: Tensor | None = None,
    node: Tensor | None = None,
    bitmask: Tensor | None = None,
    backend: str = "auto",
) -> Selection:
    """`beam_select` of the `proj_pyramid` that is normalised over all tokens; on a CPU few candidates are ranked without a pyramid.

    Arguments, result and errors are those of the two.
    """
    few = squares is None and cumulative.dim() == 2 and cumulative.shape[1] * len(weight) <= cpu.FEW
    if few and dispatch.direct(backend, hidden):
        check_projection(hidden, weight, bias, extra)
        check_mask(len(hidden), len(weight), node, bitmask, "full")
        _check_beams(len(hidden), cumulative, k)
        return cpu.proj_select(hidden, weight, cumulative, k, bias, extra, node, bitmask)
    rows = proj_pyramid(hidden, weight, squares=squares, bias=bias, extra=extra, node=node, bitmask=bitmask, backend=backend)
    return beam_select(rows, cumulative, k, backend=backend)


def _check_beams(rows: int, cumulative: Tensor, k: int) -> None:
    if cumulative.dim() != 2 or cumulative.numel() != rows or cumulative.numel() == 0 or k < 1:
        raise ValueError(f"{rows} rows, cumulative {list(cumulative.shape)}, k {k}: B * W rows, [B, W] and B, W, k ≥ 1 are expected")


@torch.library.custom_op("sidstream::beam_topk", mutates_args=())
def _beam_topk(logits: Tensor, cumulative: Tensor, k: int, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    return cpu.beam_topk(logits, cumulative, k, normalize)


@_beam_topk.register_fake
def _(logits: Tensor, cumulative: Tensor, k: int, normalize: bool) -> Selection:
    return _empty(cumulative, k, torch.float64 if logits.dtype == torch.float64 else torch.float32)


@torch.library.custom_op("sidstream::beam_select", mutates_args=())
def _beam_select(
    logits: Tensor, fine: Tensor, coarse: Tensor, log_normalizer: Tensor, cumulative: Tensor, k: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    if dispatch.resolve(backend, logits) == "triton":
        from kernels.selection.triton import beam_select as kernel

        return kernel(logits, fine, coarse, log_normalizer, cumulative, k)
    return cpu.beam_select(logits, fine, coarse, log_normalizer, cumulative, k)


@_beam_select.register_fake
def _(
    logits: Tensor, fine: Tensor, coarse: Tensor, log_normalizer: Tensor, cumulative: Tensor, k: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(cumulative, k, logits.dtype)


def _empty(cumulative: Tensor, k: int, dtype: torch.dtype) -> Selection:
    shape = (len(cumulative), k)
    return (
        cumulative.new_empty(shape, dtype=dtype),
        cumulative.new_empty(shape, dtype=torch.int32),
        cumulative.new_empty(shape, dtype=torch.int32),
    )


__all__ = ["Pyramid", "beam_select", "beam_topk", "logits_select", "proj_select", "reference"]
