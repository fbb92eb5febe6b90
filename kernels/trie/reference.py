"""The definition of a trie's step: every child of a node is looked at. And how the arrays are read."""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 32
"""Bits of a word."""


def unsigned(values: Tensor) -> Tensor:
    """int64 of int16 that stand for 0 … 65,535."""
    return values.long() & 0xFFFF


def unpack(words: Tensor, bits: int) -> Tensor:
    """bool[M, bits] of int32[M, ceil(bits / 32)]: bit t % 32 of word t // 32 is column t."""
    place = torch.arange(WORD, dtype=torch.int32, device=words.device)
    return (words.unsqueeze(-1) >> place & 1).bool().flatten(1)[:, :bits]


def gather_start(base: Tensor, offset: Tensor, shift: int, node: Tensor) -> Tensor:
    """First edge int64[...] of each node int64[...]."""
    return base[node >> shift].long() + unsigned(offset[node])


def child_dense(
    node: Tensor, token: Tensor, bits: Tensor, rank: Tensor, live: Tensor, base: Tensor, offset: Tensor, shift: int, vocabulary: int
) -> Tensor:
    """See `ops.child_dense`. `rank` is not needed here: the bits are counted."""
    child = torch.full_like(node, -1)
    for place, (at, wanted) in enumerate(zip(node.flatten().tolist(), token.flatten().tolist(), strict=True)):
        if at < 0 or not 0 <= wanted < vocabulary or not unpack(live[at : at + 1], vocabulary)[0, wanted]:
            continue
        first = gather_start(base, offset, shift, torch.tensor([at], device=node.device))
        child.view(-1)[place] = int(first) + int(unpack(bits[at : at + 1], vocabulary)[0, :wanted].sum())
    return child


def child_sparse(
    node: Tensor, token: Tensor, tokens: Tensor, live: Tensor | None, base: Tensor, offset: Tensor, shift: int, most: int
) -> Tensor:
    """See `ops.child_sparse`. `most` is not needed here: all children are looked at."""
    child = torch.full_like(node, -1)
    alive = None if live is None else unpack(live.unsqueeze(0), len(tokens))[0]
    for place, (at, wanted) in enumerate(zip(node.flatten().tolist(), token.flatten().tolist(), strict=True)):
        if at < 0:
            continue
        first, last = gather_start(base, offset, shift, torch.tensor([at, at + 1], device=node.device)).tolist()
        for edge in range(first, last):
            if int(unsigned(tokens[edge])) == wanted and (alive is None or bool(alive[edge])):
                child.view(-1)[place] = edge
    return child
