"""A trie's step for all beams at once in plain torch: one popcount in a dense level, bisection in a sparse one."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.trie.reference import WORD, gather_start, unsigned


def popcount(words: Tensor) -> Tensor:
    """Bits that are set in each int32, as int32 (Warren, "Hacker's Delight", figure 5-2)."""
    # The shifts of a negative number fill with ones; every mask clears them.
    words = words - (words >> 1 & 0x55555555)
    words = (words & 0x33333333) + (words >> 2 & 0x33333333)
    return ((words + (words >> 4) & 0x0F0F0F0F) * 0x01010101) >> 24


def child_dense(
    node: Tensor, token: Tensor, bits: Tensor, rank: Tensor, live: Tensor, base: Tensor, offset: Tensor, shift: int, vocabulary: int
) -> Tensor:
    """See `ops.child_dense`."""
    known = (node >= 0) & (token >= 0) & (token < vocabulary)
    node, token = torch.where(known, node, 0), torch.where(known, token, 0)
    word = node * bits.shape[1] + token // WORD
    bit = (token % WORD).int()
    there = known & (live.view(-1)[word] >> bit & 1).bool()
    before = bits.view(-1)[word] & ((torch.ones_like(bit) << bit) - 1)
    child = gather_start(base, offset, shift, node) + unsigned(rank.view(-1)[word]) + popcount(before)
    return torch.where(there, child, -1)


def child_sparse(
    node: Tensor, token: Tensor, tokens: Tensor, live: Tensor | None, base: Tensor, offset: Tensor, shift: int, most: int
) -> Tensor:
    """See `ops.child_sparse`."""
    at = node.clamp(min=0)
    edge, last = gather_start(base, offset, shift, at), gather_start(base, offset, shift, at + 1)
    # The number of tokens below the wanted one, bit by bit from the highest.
    for step in (1 << power for power in reversed(range(most.bit_length()))):
        beyond = edge + step
        below = (beyond <= last) & (unsigned(tokens[(beyond - 1).clamp_(max=len(tokens) - 1)]) < token)
        edge = torch.where(below, beyond, edge)
    place = edge.clamp(max=len(tokens) - 1)
    there = (node >= 0) & (edge < last) & (unsigned(tokens[place]) == token)
    if live is not None:
        there &= (live[place // WORD] >> (place % WORD).int() & 1).bool()
    return torch.where(there, edge, -1)


def edges_of(node: Tensor, base: Tensor, offset: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """The row int64[T] of each edge int64[T], alive or not, of the nodes int64[M] of a sparse level."""
    known = node.clamp(min=0)
    first = gather_start(base, offset, shift, known)
    count = (gather_start(base, offset, shift, known + 1) - first) * (node >= 0)
    owner = torch.repeat_interleave(count)
    # From the position among all to that among the edges of the level, per node.
    back = first - count.cumsum(0) + count
    return owner, torch.arange(len(owner), device=node.device).add_(back[owner])


def words_sparse(node: Tensor, tokens: Tensor, live: Tensor, base: Tensor, offset: Tensor, shift: int, vocabulary: int) -> Tensor:
    """See `ops.words_sparse`."""
    owner, edge = edges_of(node, base, offset, shift)
    words = -(-vocabulary // WORD)
    token = unsigned(tokens[edge])
    there = live[edge // WORD] >> (edge % WORD).int() & 1
    found = torch.zeros(len(node) * words, dtype=torch.int32, device=node.device)
    # No bit is added twice, so a sum of bits is their union.
    found.index_add_(0, owner * words + token // WORD, there << (token % WORD).int())
    return found.view(len(node), words)
