"""Triton kernel of context attention: one pass over the context per tile of queries, lengths on the device, no work on padding.

The queries of one tile are beams times the query heads of one key group, so grouped queries fill a matrix product even for few beams
(online softmax: arXiv 1805.02867, tiling as in arXiv 2307.08691).
"""

# Arguments of kernels are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import config

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _attend(
    query, keys_ptr, values_ptr, start, length, peak, total, mixed, key_position, value_position, scale,
    D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, SHARED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One block of positions; those from `length` on are left out where MASKED."""
    at = start + tl.arange(0, BN)
    width = tl.arange(0, DP)
    key_at = keys_ptr + at[:, None] * key_position + width[None, :]
    value_at = values_ptr + at[:, None] * value_position + width[None, :]
    if MASKED or D != DP:
        there = (at < length)[:, None] & (width < D)[None, :]
        key = tl.load(key_at, mask=there, other=0.0)
    else:
        key = tl.load(key_at)
    score = tl.dot(query, tl.trans(key), input_precision="ieee")
    none: tl.constexpr = float("-inf")
    if MASKED:
        score = tl.where((at < length)[None, :], score, none)
    higher = tl.maximum(peak, tl.max(score, axis=1) * scale)
    # Every step sees at least one position, but a score may be -inf itself.
    pivot = tl.where(higher == none, 0.0, higher)
    weight = tl.exp2(score * scale - pivot[:, None])
    shrink = tl.exp2(peak - pivot)
    total = total * shrink + tl.sum(weight, axis=1)
    if SHARED:
        value = key
    elif MASKED or D != DP:
        value = tl.load(value_at, mask=there, other=0.0)
    else:
        value = tl.load(value_at)
    mixed = tl.dot(weight.to(value.dtype), value, mixed * shrink[:, None], input_precision="ieee")
    return higher, total, mixed


@triton.jit
def context_attention_kernel(
    query_ptr, keys_ptr, values_ptr, lengths_ptr, out_ptr, lse_ptr, W, S, scale,
    key_batch, key_position, key_group, value_batch, value_position, value_group,
    H: tl.constexpr, R: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    VARIABLE: tl.constexpr, SHARED: tl.constexpr, LSE: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of W * R queries, groups, requests); `scale` includes log2(e); SHARED: the values are the keys."""
    group = tl.program_id(1)
    request = tl.program_id(2).to(tl.int64)
    index = tl.program_id(0) * BM + tl.arange(0, BM)
    live = index < W * R
    width = tl.arange(0, DP)
    # Row of [B, W, H]: beam index // R, head index % R of the group.
    row = (request * W + index // R) * H + group * R + index % R
    place = row[:, None] * D + width[None, :]
    query = tl.load(query_ptr + place, mask=live[:, None] & (width < D)[None, :], other=0.0)
    length = S
    if VARIABLE:
        length = tl.minimum(tl.load(lengths_ptr + request), S)
    none: tl.constexpr = float("-inf")
    peak = tl.full((BM,), none, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    mixed = tl.zeros((BM, DP), tl.float32)
    keys_ptr += request * key_batch + group * key_group
    values_ptr += request * value_batch + group * value_group
    whole = length // BN * BN
    for start in range(0, whole, BN):
        peak, total, mixed = _attend(
            query, keys_ptr, values_ptr, start, length, peak, total, mixed, key_position, value_position, scale, D, DP, BN, SHARED, False
        )
    if whole < length:
        peak, total, mixed = _attend(
            query, keys_ptr, values_ptr, whole, length, peak, total, mixed, key_position, value_position, scale, D, DP, BN, SHARED, True
        )
    mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out_ptr + place, mixed.to(out_ptr.dtype.element_ty), mask=live[:, None] & (width < D)[None, :])
    if LSE:
        tl.store(lse_ptr + row, tl.where(total == 0.0, none, (peak + tl.log2(total)) * LN2), mask=live)


def context_attention(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor | None, with_lse: bool) -> tuple[Tensor, Tensor]:
    """See `kernels.context_attention.context_attention`."""
    batch, beams, heads, width = query.shape
    positions, groups = keys.shape[1:3]
    query = query.contiguous()
    keys, values = (side if side.stride(3) == 1 else side.contiguous() for side in (keys, values))
    tile = config.attention(query.element_size(), width)
    out = torch.empty_like(query)
    lse = query.new_empty((batch, beams, heads) if with_lse else (0,), dtype=torch.float32)
    ratio = heads // groups
    context_attention_kernel[(triton.cdiv(beams * ratio, tile.rows), groups, batch)](
        query, keys, values, out if lengths is None else lengths.int(), out, lse, beams, positions, width**-0.5 / 0.6931471805599453,
        *keys.stride()[:3], *values.stride()[:3],
        H=heads, R=ratio, D=width, DP=max(16, triton.next_power_of_2(width)), BM=tile.rows, BN=tile.columns,
        VARIABLE=lengths is not None, SHARED=_same(keys, values), LSE=with_lse, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out, lse


def _same(keys: Tensor, values: Tensor) -> bool:
    return keys.data_ptr() == values.data_ptr() and keys.stride() == values.stride()
