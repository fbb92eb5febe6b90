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
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels import config, overlap
from kernels.linear.triton import inverse_rms
from kernels.overlap import fetch, let_next_start, wait

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
def _attend_all(
    query, keys_ptr, values_ptr, length, key_position, value_position, scale,
    BM: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Largest score, sum of weights and weighted values of BM queries over the first `length` positions."""
    peak = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    mixed = tl.zeros((BM, DP), tl.float32)
    whole = length // BN * BN
    for start in range(0, whole, BN):
        peak, total, mixed = _attend(
            query, keys_ptr, values_ptr, start, length, peak, total, mixed, key_position, value_position, scale, D, DP, BN, SHARED, False
        )
    if whole < length:
        peak, total, mixed = _attend(
            query, keys_ptr, values_ptr, whole, length, peak, total, mixed, key_position, value_position, scale, D, DP, BN, SHARED, True
        )
    return peak, total, mixed


@triton.jit
def context_attention_kernel(
    query_ptr, keys_ptr, values_ptr, lengths_ptr, out_ptr, lse_ptr, W, S, scale,
    key_batch, key_position, key_group, value_batch, value_position, value_group,
    H: tl.constexpr, R: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    VARIABLE: tl.constexpr, SHARED: tl.constexpr, LSE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of W * R queries, groups, requests); `scale` includes log2(e); SHARED: the values are the keys."""
    let_next_start(OVERLAP)
    wait(OVERLAP)
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
    keys_ptr += request * key_batch + group * key_group
    values_ptr += request * value_batch + group * value_group
    peak, total, mixed = _attend_all(
        query, keys_ptr, values_ptr, length, key_position, value_position, scale, BM, D, DP, BN, SHARED
    )  # fmt: skip
    none: tl.constexpr = float("-inf")
    mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out_ptr + place, mixed.to(out_ptr.dtype.element_ty), mask=live[:, None] & (width < D)[None, :])
    if LSE:
        tl.store(lse_ptr + row, tl.where(total == 0.0, none, (peak + tl.log2(total)) * LN2), mask=live)


@triton.jit
def projected_attention_kernel(
    hidden_desc, weight_desc, weight_ptr, squares_ptr, keys_ptr, values_ptr, lengths_ptr, out_ptr, W, S, K, eps, scale,
    key_batch, key_position, key_group, value_batch, value_position, value_group,
    H: tl.constexpr, R: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr,
    PADDED: tl.constexpr, VARIABLE: tl.constexpr, SHARED: tl.constexpr, ITEM: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of W beams, heads, requests). K, the width of hidden, is no constant, or the loop over it would be unrolled."""
    head = tl.program_id(1)
    group = head // R
    request = tl.program_id(2)
    tile = tl.program_id(0)
    let_next_start(OVERLAP)
    if OVERLAP:
        shares = tl.num_programs(0) * tl.num_programs(2)
        fetch(weight_ptr + head * D * K, D * K, request * tl.num_programs(0) + tile, shares, 128, ITEM)
    wait(OVERLAP)
    beam = tile * BM + tl.arange(0, BM)
    live = beam < W
    row = request * W + beam
    inverse = inverse_rms(squares_ptr, row.to(tl.int64), live, K, eps, PARTS, PADDED)
    length = S
    if VARIABLE:
        length = tl.minimum(tl.load(lengths_ptr + request), S)
    query = tl.zeros((BM, D), tl.float32)
    for start in range(0, K, BK):
        a = hidden_desc.load([request * W + tile * BM, start])
        b = weight_desc.load([head * D, start])
        query = tl.dot(a, b.T, query, input_precision="ieee")
    query = (query * inverse[:, None]).to(out_ptr.dtype.element_ty)
    keys_ptr += request.to(tl.int64) * key_batch + group * key_group
    values_ptr += request.to(tl.int64) * value_batch + group * value_group
    _, total, mixed = _attend_all(
        query, keys_ptr, values_ptr, length, key_position, value_position, scale, BM, D, D, BN, SHARED
    )  # fmt: skip
    mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    place = row.to(tl.int64)[:, None] * (H * D) + (head * D + tl.arange(0, D))[None, :]
    tl.store(out_ptr + place, mixed.to(out_ptr.dtype.element_ty), mask=live[:, None])


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
        **overlap.options(query.device),
    )  # fmt: skip
    return out, lse


def projected_attention(
    hidden: Tensor, squares: Tensor, weight: Tensor, keys: Tensor, values: Tensor, lengths: Tensor | None, heads: int, eps: float
) -> Tensor:
    """See `kernels.context_attention.projected_attention`."""
    batch, positions, groups, width = keys.shape
    keys, values = (side if side.stride(3) == 1 else side.contiguous() for side in (keys, values))
    tile = config.projected_attention(hidden.element_size())
    out = hidden.new_empty(len(hidden), len(weight))
    beams, known = len(hidden) // batch, squares.shape[1]
    projected_attention_kernel[(triton.cdiv(beams, tile.rows), heads, batch)](
        TensorDescriptor.from_tensor(hidden, [tile.rows, tile.depth]), TensorDescriptor.from_tensor(weight, [width, tile.depth]),
        weight, squares, keys, values, out if lengths is None else lengths.int(), out, beams, positions, hidden.shape[1], eps,
        width**-0.5 / 0.6931471805599453, *keys.stride()[:3], *values.stride()[:3],
        H=heads, R=heads // groups, D=width, BM=tile.rows, BN=tile.columns, BK=tile.depth, PARTS=known,
        PADDED=triton.next_power_of_2(known), VARIABLE=lengths is not None, SHARED=_same(keys, values), ITEM=hidden.element_size(),
        num_warps=tile.warps, num_stages=tile.stages, **overlap.options(hidden.device),
    )  # fmt: skip
    return out


def _same(keys: Tensor, values: Tensor) -> bool:
    return keys.data_ptr() == values.data_ptr() and keys.stride() == values.stride()
