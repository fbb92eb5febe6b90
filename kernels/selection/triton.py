"""Triton kernel of the exact selection: one program per request descends the pyramid of maxima.

At every level the k first groups are kept, by (largest score descending, group ascending), and opened; `kernels.selection.cpu` says why
that loses nothing. So at most 16 k numbers are looked at per level, whatever the numbers are: no sampling, no buffer that could overflow.
The k-th largest is found by bisection on integers that are ordered like the floats; positions come from one prefix sum, never from an
atomic.
"""

# Arguments of kernels are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import config, overlap
from kernels.overlap import let_next_start, wait
from kernels.projection.reference import COARSE, FINE

# Fan-out of every level: logits, fine, coarse, and a fourth level that the kernel takes from the coarse maxima when they are too many.
FAN = tl.constexpr(16)
LOWEST = tl.constexpr(-(2**31))
# `_ordered` of -inf.
DEAD = tl.constexpr(-2139095041)


@triton.jit
def _ordered(x):
    """int32 ordered like the float32."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _float(key):
    """Inverse of `_ordered`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _offsets(cumulative_ptr, normalizer_ptr, offset_ptr, W: tl.constexpr, WP: tl.constexpr):
    """Store what each row's logits are raised by."""
    none: tl.constexpr = float("-inf")
    row = tl.arange(0, WP)
    offset = tl.load(cumulative_ptr + row, mask=row < W, other=none) - tl.load(normalizer_ptr + row, mask=row < W, other=0.0)
    # NaN compares false, so what is invalid falls to -inf.
    tl.store(offset_ptr + row, tl.where(offset < float("inf"), offset, none), mask=row < W)
    tl.debug_barrier()


@triton.jit
def _score_key(x, offset, there):
    """Ordered score of values in rows that are raised by an offset; LOWEST where there is none."""
    # What is invalid falls to -inf, and -inf + offset stays there; adding 0.0 makes -0.0 positive.
    x = tl.where(x < float("inf"), x, float("-inf"))
    return tl.where(there, _ordered(x + offset + 0.0), LOWEST)


@triton.jit
def _bounds(key, K: tl.constexpr):
    """Low with at least K keys ≥ low, and the highest key; there are at least K keys."""
    # At most 2^15 keys: neither half runs over.
    counts = tl.sum((key > DEAD).to(tl.int32) + ((key >= DEAD).to(tl.int32) << 16), axis=0)
    live = counts & 0xFFFF
    known = (counts >> 16) & 0xFFFF
    low = tl.min(tl.where(key > DEAD, key, 2147483647), axis=0)
    high = tl.max(key, axis=0)
    low = tl.where(live >= K, low, tl.where(known >= K, DEAD, LOWEST))
    return low, tl.maximum(low, high)


@triton.jit
def _threshold(key, low, high, K: tl.constexpr, NEAR: tl.constexpr):
    """T in low ≤ T ≤ high with at least K keys ≥ T: the largest, or one with exactly K.

    Two pivots a round: a round is a sum over all threads, which takes as long for two counts in one number as for one.
    NEAR: the threshold of a level is little above the one before, so the first round looks there.
    """
    near = tl.full((), 1 if NEAR else 0, tl.int32)
    while low < high:
        # Thirds of what is left, rounded up; the distance of two int32 needs an unsigned one.
        span = high.to(tl.uint32) - low.to(tl.uint32)
        third = span // 3 + tl.where(span % 3 == 0, 0, 1).to(tl.uint32)
        step = tl.where(near == 1, span // 256 + 1, third)
        first = (low.to(tl.uint32) + step).to(tl.int32)
        second = (first.to(tl.uint32) + tl.where(near == 1, span // 16, (span - third + 1) // 2)).to(tl.int32)
        near = near * 0
        counts = tl.sum((key >= first).to(tl.int32) + ((key >= second).to(tl.int32) << 16), axis=0)
        more = counts & 0xFFFF
        fewer = (counts >> 16) & 0xFFFF
        if fewer >= K:
            low = second
            high = tl.where(fewer == K, second, high)
        elif more >= K:
            low = first
            high = tl.where(more == K, first, second - 1)
        else:
            high = first - 1
    return low


@triton.jit
def _keep(key, kept_ptr, low, high, K: tl.constexpr, GROUPS: tl.constexpr, NEAR: tl.constexpr):
    """Store the positions of the first K of keys [GROUPS, FAN] by (key descending, position ascending), in ascending order; the threshold.

    low, high, NEAR: see `_threshold`. K groups ≥ T have K members ≥ T, and none is above the highest group: the next level starts from
    both.

    Positions alone: what they stand for is looked up again for the few that stay, or it would take registers from all.
    """
    threshold = _threshold(_any_order(key, GROUPS), low, high, K, NEAR)
    above = (key > threshold).to(tl.int32)
    equal = (key == threshold).to(tl.int32)
    # One prefix sum for both: at most K < 2^15 are above, and at most 2^15 are equal. Within groups and then over them: a prefix sum of all
    # would add up every warp's part for every thread.
    both = (above << 16) | equal
    in_group = tl.sum(both, axis=1)
    ranks = tl.cumsum(both, axis=1) + (tl.cumsum(in_group, axis=0) - in_group)[:, None]
    room = K - (tl.sum(in_group, axis=0) >> 16)
    rank = ranks & 0xFFFF
    chosen = (above != 0) | ((equal != 0) & (rank <= room))
    tl.store(kept_ptr + (ranks >> 16) + tl.minimum(rank, room) - 1, _positions(GROUPS), mask=chosen)
    # The next level is read by other threads than those that wrote.
    tl.debug_barrier()
    return threshold


@triton.jit
def _positions(GROUPS: tl.constexpr):
    """0, 1, … as [GROUPS, FAN]."""
    return tl.arange(0, GROUPS)[:, None] * FAN + tl.arange(0, FAN)[None, :]


@triton.jit
def _any_order(x, GROUPS: tl.constexpr):
    """The numbers of [GROUPS, FAN] in whatever order costs nothing."""
    return tl.reshape(x, (GROUPS * FAN,), can_reorder=True)


@triton.jit
def _first_keys(values_ptr, offset_ptr, W: tl.constexpr, COUNT: tl.constexpr, GROUPS: tl.constexpr):
    """Keys [GROUPS, FAN] of all W rows of COUNT values; a position is row * COUNT + place."""
    index = _positions(GROUPS)
    row = index // COUNT
    none: tl.constexpr = float("-inf")
    x = tl.load(values_ptr + index, mask=row < W, other=none)
    return _score_key(x, tl.load(offset_ptr + row, mask=row < W, other=none), row < W)


@triton.jit
def _child_keys(values_ptr, offset_ptr, kept_ptr, K: tl.constexpr, GROUPS: tl.constexpr, PER_ROW: tl.constexpr, CHILDREN: tl.constexpr):
    """Keys [GROUPS, FAN] of the children of K kept groups, each row * PER_ROW + place, in rows of CHILDREN values."""
    slot = tl.arange(0, GROUPS)
    group = tl.load(kept_ptr + slot, mask=slot < K, other=0)
    row = group // PER_ROW
    place = ((group - row * PER_ROW) * FAN)[:, None] + tl.arange(0, FAN)[None, :]
    there = (slot < K)[:, None] & (place < CHILDREN)
    none: tl.constexpr = float("-inf")
    x = tl.load(values_ptr + (row * CHILDREN)[:, None] + place, mask=there, other=none)
    return _score_key(x, tl.load(offset_ptr + row, mask=slot < K, other=none)[:, None], there)


@triton.jit
def _child(index, kept_ptr, K: tl.constexpr, PER_ROW: tl.constexpr):
    """Row and place in the row of child `index % FAN` of kept group `index // FAN`, which is its row * PER_ROW + place."""
    group = tl.load(kept_ptr + index // FAN, mask=index < K * FAN, other=0)
    row = group // PER_ROW
    return row, (group - row * PER_ROW) * FAN + index % FAN


@triton.jit
def _settle(raw_ptr, kept_ptr, next_ptr, K: tl.constexpr, KP: tl.constexpr, PER_ROW: tl.constexpr, CHILDREN: tl.constexpr):
    """Turn kept positions into row * CHILDREN + place, for the next level to open."""
    slot = tl.arange(0, KP)
    row, place = _child(tl.load(raw_ptr + slot, mask=slot < K, other=0), kept_ptr, K, PER_ROW)
    tl.store(next_ptr + slot, row * CHILDREN + place, mask=slot < K)
    tl.debug_barrier()


@triton.jit
def beam_select_kernel(
    logits_ptr, fine_ptr, coarse_ptr, normalizer_ptr, cumulative_ptr, offset_ptr, kept_ptr, score_ptr, parent_ptr, token_ptr,
    W: tl.constexpr, WP: tl.constexpr, V: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, FINES: tl.constexpr, COARSES: tl.constexpr,
    TOPS: tl.constexpr, LEVEL: tl.constexpr, FIRST: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """LEVEL at which the descent starts (3 top, 2 coarse, 1 fine, 0 logits), with FIRST * FAN ≥ its groups; KP ≥ K."""
    let_next_start(OVERLAP)
    wait(OVERLAP)
    request = tl.program_id(0).to(tl.int64)
    logits_ptr += request * W * V
    fine_ptr += request * W * FINES
    coarse_ptr += request * W * COARSES
    normalizer_ptr += request * W
    cumulative_ptr += request * W
    offset_ptr += request * W
    _offsets(cumulative_ptr, normalizer_ptr, offset_ptr, W, WP)
    # Positions just kept, and the groups kept of the top, coarse and fine level.
    raw_ptr = kept_ptr + request * 4 * KP
    top_ptr = raw_ptr + KP
    coarse_kept_ptr = raw_ptr + 2 * KP
    fine_kept_ptr = raw_ptr + 3 * KP
    none: tl.constexpr = float("-inf")
    # At the level where the descent starts, a position is row * groups + place already.
    if LEVEL == 3:
        index = _positions(FIRST)
        row = index // TOPS
        place = index - row * TOPS
        x = tl.full((FIRST, FAN), none, tl.float32)
        for part in range(FAN):
            child = place * FAN + part
            x = tl.maximum(x, tl.load(coarse_ptr + row * COARSES + child, mask=(row < W) & (child < COARSES), other=none))
        key = _score_key(x, tl.load(offset_ptr + row, mask=row < W, other=none), row < W)
        low, high = _bounds(_any_order(key, FIRST), K)
        low = _keep(key, top_ptr, low, high, K, FIRST, False)
    if LEVEL == 2:
        key = _first_keys(coarse_ptr, offset_ptr, W, COARSES, FIRST)
        low, high = _bounds(_any_order(key, FIRST), K)
        low = _keep(key, coarse_kept_ptr, low, high, K, FIRST, False)
    if LEVEL == 3:
        key = _child_keys(coarse_ptr, offset_ptr, top_ptr, K, KP, TOPS, COARSES)
        low = _keep(key, raw_ptr, low, high, K, KP, True)
        _settle(raw_ptr, top_ptr, coarse_kept_ptr, K, KP, TOPS, COARSES)
    if LEVEL == 1:
        key = _first_keys(fine_ptr, offset_ptr, W, FINES, FIRST)
        low, high = _bounds(_any_order(key, FIRST), K)
        low = _keep(key, fine_kept_ptr, low, high, K, FIRST, False)
    if LEVEL >= 2:
        key = _child_keys(fine_ptr, offset_ptr, coarse_kept_ptr, K, KP, COARSES, FINES)
        low = _keep(key, raw_ptr, low, high, K, KP, True)
        _settle(raw_ptr, coarse_kept_ptr, fine_kept_ptr, K, KP, COARSES, FINES)
    slot = tl.arange(0, KP)
    if LEVEL == 0:
        key = _first_keys(logits_ptr, offset_ptr, W, V, FIRST)
        low, high = _bounds(_any_order(key, FIRST), K)
        low = _keep(key, raw_ptr, low, high, K, FIRST, False)
        flat = tl.load(raw_ptr + slot, mask=slot < K, other=0)
        row = flat // V
        there = (slot < K) & (row < W)
    else:
        key = _child_keys(logits_ptr, offset_ptr, fine_kept_ptr, K, KP, FINES, V)
        low = _keep(key, raw_ptr, low, high, K, KP, True)
        row, place = _child(tl.load(raw_ptr + slot, mask=slot < K, other=0), fine_kept_ptr, K, FINES)
        there = (slot < K) & (place < V)
        flat = row * V + place
    x = tl.load(logits_ptr + flat, mask=there, other=none)
    key = _score_key(x, tl.load(offset_ptr + row, mask=there, other=none), there)
    # Score and place in one number, the smaller place the larger: sorting it is the total order.
    packed = tl.sort((key.to(tl.int64) << 32) | (0x7FFFFFFF - flat).to(tl.int64), descending=True)
    key = (packed >> 32).to(tl.int32)
    flat = 0x7FFFFFFF - (packed & 0x7FFFFFFF).to(tl.int32)
    alive = key > DEAD
    out = request * K + slot
    tl.store(score_ptr + out, tl.where(alive, _float(key), none), mask=slot < K)
    tl.store(parent_ptr + out, tl.where(alive, flat // V, 0), mask=slot < K)
    tl.store(token_ptr + out, tl.where(alive, flat % V, -1), mask=slot < K)


def plan(beams: int, vocabulary: int, k: int) -> dict[str, int]:
    """Constants of the kernel for a shape: where the descent starts, and block sizes.

    Raises:
        ValueError: more candidates than one program can hold.
    """
    fines, coarses = triton.cdiv(vocabulary, FINE), triton.cdiv(vocabulary, COARSE)
    tops = triton.cdiv(coarses, 16)
    level, groups = 0, beams * vocabulary
    # Where the groups of a level are no more than k, all of them would be kept: start below it.
    for higher, count in enumerate((beams * fines, beams * coarses, beams * tops), 1):
        if count > k and groups > min(32 * k, config.FIRST_CANDIDATES):
            level, groups = higher, count
    padded = triton.next_power_of_2(k)
    first = max(triton.next_power_of_2(groups), 16 * triton.cdiv(padded, 16))
    if max(first, 16 * padded) > config.MOST_CANDIDATES or beams * vocabulary >= 2**31:
        raise ValueError(f'{beams} beams of {vocabulary} tokens, k {k}: too many for one program of the Triton kernel; use backend="torch"')
    return {
        "W": beams, "WP": triton.next_power_of_2(beams), "V": vocabulary, "K": k, "KP": padded,
        "FINES": fines, "COARSES": coarses, "TOPS": tops,
        "LEVEL": level, "FIRST": first // 16,
    }  # fmt: skip


def beam_select(
    logits: Tensor, fine: Tensor, coarse: Tensor, normalizer: Tensor, cumulative: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.selection.beam_select`."""
    batch, beams = cumulative.shape
    constants = plan(beams, logits.shape[1], k)
    kept = cumulative.new_empty(batch, 4 * constants["KP"], dtype=torch.int32)
    offset = cumulative.new_empty(batch, beams, dtype=torch.float32)
    score = cumulative.new_empty(batch, k, dtype=torch.float32)
    parent, token = (cumulative.new_empty(batch, k, dtype=torch.int32) for _ in range(2))
    beam_select_kernel[(batch,)](
        logits, fine, coarse, normalizer, cumulative.float().contiguous(), offset, kept, score, parent, token, **constants,
        num_warps=config.selection_warps(16 * max(constants["FIRST"], constants["KP"] if constants["LEVEL"] else 0)),
        **overlap.options(logits.device, early=False),
    )  # fmt: skip
    return score, parent, token
