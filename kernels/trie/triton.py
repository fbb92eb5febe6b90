"""Triton kernels of a trie's step: one beam a lane. Many beams on a node read the same row, which the cache serves."""

# Arguments of kernels are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128
"""Beams of one program."""


@triton.jit
def _popcount(word):
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    return (((word + (word >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24


@triton.jit
def _start(base_ptr, offset_ptr, node, known, SHIFT: tl.constexpr):
    base = tl.load(base_ptr + (node >> SHIFT), mask=known, other=0)
    return base + (tl.load(offset_ptr + node, mask=known, other=0).to(tl.int32) & 0xFFFF)


@triton.jit
def child_dense_kernel(
    child_ptr, node_ptr, token_ptr, bits_ptr, rank_ptr, live_ptr, base_ptr, offset_ptr, M,
    V: tl.constexpr, WORDS: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < M
    node = tl.load(node_ptr + row, mask=inside, other=-1)
    token = tl.load(token_ptr + row, mask=inside, other=-1)
    known = (node >= 0) & (token >= 0) & (token < V)
    token = tl.where(known, token, 0).to(tl.int32)
    word = node * WORDS + token // 32
    bit = token % 32
    there = known & (((tl.load(live_ptr + word, mask=known, other=0) >> bit) & 1) == 1)
    before = tl.load(bits_ptr + word, mask=known, other=0) & ((tl.full((BLOCK,), 1, tl.int32) << bit) - 1)
    rank = tl.load(rank_ptr + word, mask=known, other=0).to(tl.int32) & 0xFFFF
    child = _start(base_ptr, offset_ptr, node, known, SHIFT) + rank + _popcount(before)
    tl.store(child_ptr + row, tl.where(there, child, -1).to(tl.int64), mask=inside)


@triton.jit
def child_sparse_kernel(
    child_ptr, node_ptr, token_ptr, tokens_ptr, live_ptr, base_ptr, offset_ptr, M,
    STEPS: tl.constexpr, LIVE: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < M
    node = tl.load(node_ptr + row, mask=inside, other=-1)
    token = tl.load(token_ptr + row, mask=inside, other=-1)
    known = node >= 0
    edge = _start(base_ptr, offset_ptr, node, known, SHIFT)
    last = _start(base_ptr, offset_ptr, node + 1, known, SHIFT)
    # The number of tokens below the wanted one, bit by bit from the highest.
    for power in tl.static_range(STEPS):
        beyond = edge + (1 << (STEPS - 1 - power))
        within = known & (beyond <= last)
        other = tl.load(tokens_ptr + beyond - 1, mask=within, other=0).to(tl.int32) & 0xFFFF
        edge = tl.where(within & (other < token), beyond, edge)
    there = known & (edge < last)
    there = there & ((tl.load(tokens_ptr + edge, mask=there, other=0).to(tl.int32) & 0xFFFF) == token)
    if LIVE:
        there = there & (((tl.load(live_ptr + edge // 32, mask=there, other=0) >> (edge % 32)) & 1) == 1)
    tl.store(child_ptr + row, tl.where(there, edge, -1).to(tl.int64), mask=inside)


@triton.jit
def words_sparse_kernel(
    words_ptr, node_ptr, tokens_ptr, live_ptr, base_ptr, offset_ptr, WORDS: tl.constexpr, PADDED: tl.constexpr, SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (rows): the bits of a node's living children. Bits are joined by atomic or, whose result no order changes."""
    row = tl.program_id(0).to(tl.int64)
    node = tl.load(node_ptr + row)
    known = node >= 0
    node = tl.where(known, node, 0)
    place = tl.arange(0, PADDED)
    tl.store(words_ptr + row * WORDS + place, tl.zeros((PADDED,), tl.int32), mask=place < WORDS)
    # Other threads join bits than those that cleared the words.
    tl.debug_barrier()
    first = _start(base_ptr, offset_ptr, node, known, SHIFT)
    last = _start(base_ptr, offset_ptr, node + 1, known, SHIFT)
    for begin in range(first, last, BLOCK):
        edge = begin + tl.arange(0, BLOCK)
        there = edge < last
        there = there & (((tl.load(live_ptr + edge // 32, mask=there, other=0) >> (edge % 32)) & 1) == 1)
        token = tl.load(tokens_ptr + edge, mask=there, other=0).to(tl.int32) & 0xFFFF
        bit = tl.full((BLOCK,), 1, tl.int32) << (token % 32)
        tl.atomic_or(words_ptr + row * WORDS + token // 32, bit, mask=there)


def words_sparse(node: Tensor, tokens: Tensor, live: Tensor, base: Tensor, offset: Tensor, shift: int, vocabulary: int) -> Tensor:
    """See `ops.words_sparse`."""
    words = -(-vocabulary // 32)
    found = node.new_empty(len(node), words, dtype=torch.int32)
    if len(node):
        words_sparse_kernel[(len(node),)](
            found,
            node.contiguous(),
            tokens,
            live,
            base,
            offset,
            WORDS=words,
            PADDED=triton.next_power_of_2(words),
            SHIFT=shift,
            BLOCK=BLOCK,
        )
    return found


def child_dense(
    node: Tensor, token: Tensor, bits: Tensor, rank: Tensor, live: Tensor, base: Tensor, offset: Tensor, shift: int, vocabulary: int
) -> Tensor:
    """See `ops.child_dense`."""
    child = torch.empty_like(node, memory_format=torch.contiguous_format)
    if child.numel():
        child_dense_kernel[(triton.cdiv(child.numel(), BLOCK),)](
            child, node.contiguous(), token.contiguous(), bits, rank, live, base, offset, child.numel(),
            V=vocabulary, WORDS=bits.shape[1], SHIFT=shift, BLOCK=BLOCK,
        )  # fmt: skip
    return child


def child_sparse(
    node: Tensor, token: Tensor, tokens: Tensor, live: Tensor | None, base: Tensor, offset: Tensor, shift: int, most: int
) -> Tensor:
    """See `ops.child_sparse`."""
    child = torch.empty_like(node, memory_format=torch.contiguous_format)
    if child.numel():
        child_sparse_kernel[(triton.cdiv(child.numel(), BLOCK),)](
            child, node.contiguous(), token.contiguous(), tokens, tokens if live is None else live, base, offset, child.numel(),
            STEPS=most.bit_length(), LIVE=live is not None, SHIFT=shift, BLOCK=BLOCK,
        )  # fmt: skip
    return child
