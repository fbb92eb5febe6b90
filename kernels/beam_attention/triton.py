"""Triton kernel of beam self-attention: gathers each beam's few ancestors, writes its newest keys and values once."""

# Arguments of kernels are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import overlap
from kernels.overlap import let_next_start, wait

# Beams per program: small, for a launch of few beams must still fill the GPU, and the gathers are latency, not bandwidth.
BEAMS = 16
# Slots per program of `advance`.
ADVANCED = 128


@triton.jit
def beam_self_attention_kernel(
    qkv_ptr, keys_ptr, values_ptr, ancestors_ptr, out_ptr, W, scale,
    STEP: tl.constexpr, L: tl.constexpr, S: tl.constexpr, H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    BW: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of beams, query heads, requests); the first head of a group writes the group's keys and values."""
    let_next_start(OVERLAP)
    wait(OVERLAP)
    head = tl.program_id(1)
    request = tl.program_id(2).to(tl.int64)
    group = head // (H // G)
    beam = tl.program_id(0) * BW + tl.arange(0, BW)
    width = tl.arange(0, DP)
    live = beam < W
    there = live[:, None] & (width < D)[None, :]
    source = qkv_ptr + (request * W + beam)[:, None] * ((H + 2 * G) * D) + width[None, :]
    query = tl.load(source + head * D, mask=there, other=0.0).to(tl.float32)
    key = tl.load(source + (H + group) * D, mask=there, other=0.0)
    value = tl.load(source + (H + G + group) * D, mask=there, other=0.0)
    if head % (H // G) == 0:
        place = (((request * L + STEP) * S + beam) * G + group)[:, None] * D + width[None, :]
        tl.store(keys_ptr + place, key, mask=there)
        tl.store(values_ptr + place, value, mask=there)
    peak = tl.sum(query * key.to(tl.float32), axis=1) * scale
    total = tl.full((BW,), 1.0, tl.float32)
    mixed = value.to(tl.float32)
    for time in tl.static_range(STEP):
        slot = tl.load(ancestors_ptr + (request * L + time) * S + beam, mask=live, other=0)
        place = (((request * L + time) * S + slot) * G + group)[:, None] * D + width[None, :]
        past = tl.load(keys_ptr + place, mask=there, other=0.0).to(tl.float32)
        seen = tl.load(values_ptr + place, mask=there, other=0.0).to(tl.float32)
        score = tl.sum(query * past, axis=1) * scale
        higher = tl.maximum(peak, score)
        shrink = tl.exp(peak - higher)
        weight = tl.exp(score - higher)
        mixed = mixed * shrink[:, None] + weight[:, None] * seen
        total = total * shrink + weight
        peak = higher
    mixed = mixed / total[:, None]
    place = ((request * W + beam) * H + head)[:, None] * D + width[None, :]
    tl.store(out_ptr + place, mixed.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def advance_kernel(
    ancestors_ptr, codes_ptr, parent_ptr, token_ptr, new_ancestors_ptr, new_codes_ptr, W, K,
    STEP: tl.constexpr, L: tl.constexpr, S: tl.constexpr, BW: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of slots, requests): what a beam carries along, its ancestors and its codes."""
    let_next_start(OVERLAP)
    wait(OVERLAP)
    request = tl.program_id(1).to(tl.int64)
    slot = tl.program_id(0) * BW + tl.arange(0, BW)
    kept = slot < K
    parent = tl.load(parent_ptr + request * K + slot, mask=kept, other=0)
    token = tl.load(token_ptr + request * K + slot, mask=kept, other=0)
    for time in tl.static_range(L):
        row = (request * L + time) * S
        # Slots that no beam has, and steps to come, stay as they were; after the last step nobody asks.
        source = tl.where(kept, parent, slot) if time < STEP and STEP + 1 < L else slot
        old = tl.load(ancestors_ptr + row + source, mask=slot < S, other=0)
        new = tl.where(kept, parent, old) if time == STEP and STEP + 1 < L else old
        tl.store(new_ancestors_ptr + row + slot, new, mask=slot < S)
    for time in tl.static_range(STEP):
        code = tl.load(codes_ptr + (request * W + parent) * STEP + time, mask=kept, other=0)
        tl.store(new_codes_ptr + (request * K + slot) * (STEP + 1) + time, code, mask=kept)
    # A beam that does not exist has token -1, and no code is negative.
    tl.store(new_codes_ptr + (request * K + slot) * (STEP + 1) + STEP, tl.maximum(token, 0).to(tl.int64), mask=kept)


def advance(ancestors: Tensor, codes: Tensor, parent: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """See `kernels.beam_attention.advance`."""
    batch, steps, slots = ancestors.shape
    beams, step = codes.shape[1:]
    kept = parent.shape[1]
    table = torch.empty_like(ancestors, memory_format=torch.contiguous_format)
    longer = codes.new_empty(batch, kept, step + 1)
    advance_kernel[(triton.cdiv(max(slots, kept), ADVANCED), batch)](
        ancestors.contiguous(), codes.contiguous(), parent.contiguous(), token.contiguous(), table, longer, beams, kept,
        STEP=step, L=steps, S=slots, BW=ADVANCED, num_warps=4, **overlap.options(codes.device),
    )  # fmt: skip
    return table, longer


def beam_self_attention(qkv: Tensor, keys: Tensor, values: Tensor, ancestors: Tensor, step: int) -> Tensor:
    """See `kernels.beam_attention.beam_self_attention`."""
    batch, beams, total = qkv.shape
    steps, slots, groups, width = keys.shape[1:]
    heads = total // width - 2 * groups
    out = qkv.new_empty(batch, beams, heads * width)
    beam_self_attention_kernel[(triton.cdiv(beams, BEAMS), heads, batch)](
        qkv.contiguous(), keys, values, ancestors.contiguous(), out, beams, width**-0.5,
        STEP=step, L=steps, S=slots, H=heads, G=groups, D=width, DP=triton.next_power_of_2(width), BW=BEAMS, num_warps=4,
        **overlap.options(qkv.device),
    )  # fmt: skip
    return out
