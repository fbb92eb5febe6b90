"""Vocabulary projection that leaves behind what an exact selection needs: log-sum-exp and maxima of every 16 and every 256 columns.

Logits stay in float32 on purpose: near |8| bfloat16 has steps of 1/32, and thousands of candidates would tie. What is not allowed, NaN and
+inf count as -inf *before* the maxima are taken; the normalizer is over the whole vocabulary, as trained, or over what is allowed.
Rows do not depend on how many there are: no split along the inner dimension, and a fixed order of summation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels import dispatch
from kernels.linear import aligned, epsilon
from kernels.projection import cpu, reference
from kernels.projection.reference import COARSE, FINE


class Pyramid(NamedTuple):
    """Rows of logits and their maxima.

    Attributes:
        logits: float32[M, V]; -inf where a mask forbids. NaN and +inf may be left in it where there is no mask.
        fine: float32[M, ceil(V / 16)], largest valid and allowed logit of every 16 columns.
        coarse: float32[M, ceil(V / 256)], of every 256 columns.
        log_normalizer: float32[M], log-sum-exp.
    """

    logits: Tensor
    fine: Tensor
    coarse: Tensor
    log_normalizer: Tensor


def proj_pyramid(
    hidden: Tensor,
    weight: Tensor,
    *,
    squares: Tensor | None = None,
    bias: Tensor | None = None,
    extra: Tensor | None = None,
    node: Tensor | None = None,
    bitmask: Tensor | None = None,
    normalizer: str = "full",
    eps: float | None = None,
    backend: str = "auto",
) -> Pyramid:
    """Logits `hidden @ weight.T + bias + extra` with their pyramid, in one pass.

    Args:
        hidden: [M, d], bfloat16, float16 or float32 (float64 with torch).
        weight: [V, d], of the same type.
        squares: float32[M, parts], whose sum is each row's sum of squares: hidden is normed by it, as in `kernels.linear.rmsnorm_linear`,
            whose `eps` is the default here too. Without it hidden is multiplied as it is.
        bias: [V]. extra: [M, V], what other sources add to the logits.
        node: int32[M], row of `bitmask` of each beam; -1 where nothing is allowed.
        bitmask: int32[nodes, ceil(V / 32)]; bit `t % 32` of word `t // 32` is set where token t is allowed.
        normalizer: `"full"` sums over all tokens, `"allowed"` over those that the mask allows.
        backend: see `kernels.dispatch.resolve`.

    Raises:
        ValueError: shapes that do not fit, one of node and bitmask without the other, or no such normalizer.
    """
    check_projection(hidden, weight, bias, extra)
    check_mask(len(hidden), len(weight), node, bitmask, normalizer)
    if squares is not None and (squares.dim() != 2 or len(squares) != len(hidden)):
        raise ValueError(f"squares {list(squares.shape)}: [{len(hidden)}, parts] is expected")
    eps = epsilon(hidden.dtype) if eps is None else eps
    # What a GPU's copy engine cannot read is for plain torch, unless the kernel was asked for.
    backend = backend if backend != "auto" or aligned(hidden) else "torch"
    if dispatch.direct(backend, hidden):
        return Pyramid(*cpu.proj_pyramid(hidden, weight, squares, bias, extra, node, bitmask, normalizer, eps))
    return Pyramid(*_proj_pyramid(hidden, weight, squares, bias, extra, node, bitmask, normalizer, eps, backend))


def check_projection(hidden: Tensor, weight: Tensor, bias: Tensor | None, extra: Tensor | None) -> None:
    """Raises ValueError: shapes that do not fit; see `proj_pyramid`."""
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {list(hidden.shape)}, weight {list(weight.shape)}: [M, d] and [V, d] are expected")
    rows, vocabulary = len(hidden), len(weight)
    if bias is not None and bias.shape != (vocabulary,):
        raise ValueError(f"bias {list(bias.shape)}: [{vocabulary}] is expected")
    if extra is not None and extra.shape != (rows, vocabulary):
        raise ValueError(f"extra {list(extra.shape)}: [{rows}, {vocabulary}] is expected")


def pyramid(
    logits: Tensor, *, node: Tensor | None = None, bitmask: Tensor | None = None, normalizer: str = "full", backend: str = "auto"
) -> Pyramid:
    """The pyramid of logits [M, V] that exist already; see `proj_pyramid`. Without a mask the logits are not copied.

    Raises:
        ValueError: as `proj_pyramid`.
    """
    if logits.dim() != 2 or 0 in logits.shape:
        raise ValueError(f"logits {list(logits.shape)}: [M, V] with M, V ≥ 1 is expected")
    check_mask(logits.shape[0], logits.shape[1], node, bitmask, normalizer)
    values = reference.widen(logits).contiguous()
    if dispatch.direct(backend, values):
        return Pyramid(*cpu.pyramid(values, node, bitmask, normalizer))
    masked, fine, coarse, total = _pyramid(values, node, bitmask, normalizer, backend)
    return Pyramid(values if node is None else masked, fine, coarse, total)


def check_mask(rows: int, vocabulary: int, node: Tensor | None, bitmask: Tensor | None, normalizer: str) -> None:
    if normalizer not in ("full", "allowed"):
        raise ValueError(f'normalizer {normalizer!r}: "full" or "allowed" is expected')
    if (node is None) != (bitmask is None):
        raise ValueError("node and bitmask belong together: give both or neither")
    if node is not None and bitmask is not None and (node.shape != (rows,) or bitmask.shape[1:] != (-(-vocabulary // 32),)):
        raise ValueError(
            f"node {list(node.shape)}, bitmask {list(bitmask.shape)}: [{rows}] and [nodes, {-(-vocabulary // 32)}] are expected"
        )


@torch.library.custom_op("sidstream::proj_pyramid", mutates_args=())
def _proj_pyramid(
    hidden: Tensor,
    weight: Tensor,
    squares: Tensor | None,
    bias: Tensor | None,
    extra: Tensor | None,
    node: Tensor | None,
    bitmask: Tensor | None,
    normalizer: str,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if dispatch.resolve(backend, hidden) == "triton":
        from kernels.projection.triton import proj_pyramid as kernel

        return kernel(hidden.contiguous(), weight.contiguous(), squares, bias, extra, node, bitmask, normalizer, eps)
    return cpu.proj_pyramid(hidden, weight, squares, bias, extra, node, bitmask, normalizer, eps)


@_proj_pyramid.register_fake
def _(hidden: Tensor, weight: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, vocabulary = hidden.shape[0], weight.shape[0]
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    return hidden.new_empty(rows, vocabulary, dtype=dtype), *_empty(hidden, rows, vocabulary, dtype)


@torch.library.custom_op("sidstream::pyramid", mutates_args=())
def _pyramid(
    logits: Tensor, node: Tensor | None, bitmask: Tensor | None, normalizer: str, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if dispatch.resolve(backend, logits) == "triton":
        from kernels.projection.triton import pyramid as kernel

        return kernel(logits, node, bitmask, normalizer)
    masked, fine, coarse, total = cpu.pyramid(logits, node, bitmask, normalizer)
    return logits.new_empty(0, logits.shape[1]) if node is None else masked, fine, coarse, total


@_pyramid.register_fake
def _(logits: Tensor, node: Tensor | None, bitmask: Tensor | None, normalizer: str, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, vocabulary = logits.shape
    return logits.new_empty(0 if node is None else rows, vocabulary), *_empty(logits, rows, vocabulary, logits.dtype)


def _empty(like: Tensor, rows: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return (
        like.new_empty(rows, -(-vocabulary // FINE), dtype=dtype),
        like.new_empty(rows, -(-vocabulary // COARSE), dtype=dtype),
        like.new_empty(rows, dtype=dtype),
    )


__all__ = ["COARSE", "FINE", "Pyramid", "check_mask", "check_projection", "proj_pyramid", "pyramid", "reference"]
