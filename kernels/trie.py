"""The set of semantic IDs that may be produced, as a prefix trie in flat arrays.

The edges of a level are sorted by (parent, token), and a node of the next level *is* the position of the edge that leads to it, so there is
no table of next states; a leaf is the rank of its SID among all, in lexicographic order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trie:
    """Immutable; `append` gives a new one, so a search that is under way keeps the set that it began with.

    code_counts: tokens of each level. leaves: int64[N], each SID as one number, sorted. edges: per level int64[E], parent * tokens + token,
    sorted. starts: per level int64[parents + 1], where the edges of each parent begin.
    """

    code_counts: tuple[int, ...]
    leaves: Tensor
    edges: tuple[Tensor, ...]
    starts: tuple[Tensor, ...]

    @classmethod
    def build(cls, sids: Tensor, code_counts: Sequence[int]) -> Trie:
        """The trie of SIDs int[N, L]; equal ones count once.

        Raises:
            ValueError: not L codes each, a code that its level does not have, or so many codes that a SID does not fit in 63 bits.
        """
        counts = tuple(code_counts)
        return cls._of(torch.unique(_pack(sids, counts)), counts)

    def append(self, sids: Tensor) -> Trie:
        """A trie with more SIDs int[M, L]; nodes are renumbered. Raises like build()."""
        return self._of(torch.unique(torch.cat([self.leaves, _pack(sids, self.code_counts).to(self.leaves.device)])), self.code_counts)

    def __len__(self) -> int:
        return len(self.leaves)

    @property
    def sids(self) -> Tensor:
        """All SIDs int64[N, L], in lexicographic order: row = leaf."""
        return (self.leaves.unsqueeze(-1) // self._radix) % torch.tensor(self.code_counts, device=self.leaves.device)

    def root(self, batch: int) -> Tensor:
        """The node that every search starts from, int64[batch, 1]."""
        return torch.zeros(batch, 1, dtype=torch.int64, device=self.leaves.device)

    def child(self, node: Tensor, token: Tensor, level: int) -> Tensor:
        """The node int64[...] that `token` int[...] leads to from `node` int64[...]; -1 where there is none (node -1 has none)."""
        tokens, edges = self.code_counts[level], self.edges[level]
        if not len(edges):
            return torch.full_like(node, -1)
        token = token.long()
        wanted = node * tokens + token
        place = torch.searchsorted(edges, wanted).clamp_(max=len(edges) - 1)
        there = (node >= 0) & (token >= 0) & (token < tokens) & (edges[place] == wanted)
        return torch.where(there, place, -1)

    def walk(self, prefixes: Tensor) -> Tensor:
        """The node int64[M] at the end of each prefix int[M, l ≤ L]; for a whole SID its leaf; -1 where there is no such SID."""
        node = torch.zeros(len(prefixes), dtype=torch.int64, device=self.leaves.device)
        for level in range(prefixes.shape[1]):
            node = self.child(node, prefixes[:, level], level)
        return node

    def contains(self, sids: Tensor) -> Tensor:
        """bool[M]: which of the SIDs int[M, L] are in the set."""
        return self.walk(sids) >= 0

    def children(self, node: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """What may follow each node int64[M]: tokens int64[T], ascending per node, those of node m at `offsets[m]:offsets[m + 1]`.

        Returns:
            offsets int64[M + 1], tokens int64[T].
        """
        offsets, edge = self._edges_of(node, level)
        return offsets, self.edges[level][edge] % self.code_counts[level]

    def mask(self, node: Tensor, level: int) -> Tensor:
        """What may follow each node int64[...], as bool[..., tokens of the level]; nothing follows node -1."""
        flat = node.reshape(-1)
        offsets, tokens = self.children(flat, level)
        allowed = torch.zeros(len(flat), self.code_counts[level], dtype=torch.bool, device=node.device)
        allowed[torch.repeat_interleave(offsets.diff()), tokens] = True
        return allowed.view(*node.shape, -1)

    def _edges_of(self, node: Tensor, level: int) -> tuple[Tensor, Tensor]:
        starts = self.starts[level]
        alive = node.clamp(min=0)
        count = (starts[alive + 1] - starts[alive]) * (node >= 0)
        offsets = torch.cat([count.new_zeros(1), count.cumsum(0)])
        owner = torch.repeat_interleave(count)
        edge = torch.arange(len(owner), device=node.device) - offsets[owner] + starts[alive[owner]]
        return offsets, edge

    @property
    def _radix(self) -> Tensor:
        return torch.tensor(_worth(self.code_counts), device=self.leaves.device)

    @classmethod
    def _of(cls, leaves: Tensor, counts: tuple[int, ...]) -> Trie:
        edges, starts = [], []
        parents = leaves.new_zeros(1)
        for tokens, worth in zip(counts, _worth(counts), strict=True):
            nodes = torch.unique_consecutive(leaves // worth)
            parent = torch.searchsorted(parents, nodes // tokens)
            edges.append(parent * tokens + nodes % tokens)
            starts.append(torch.searchsorted(parent, torch.arange(max(len(parents), 1) + 1, device=leaves.device)))
            parents = nodes
        return cls(counts, leaves, tuple(edges), tuple(starts))


def _worth(counts: Sequence[int]) -> list[int]:
    """What one code of each level is worth when a SID is written as one number."""
    worth = [1]
    for tokens in reversed(counts[1:]):
        worth.insert(0, worth[0] * tokens)
    return worth


def _pack(sids: Tensor, counts: tuple[int, ...]) -> Tensor:
    if sids.dim() != 2 or sids.shape[1] != len(counts):
        raise ValueError(f"SIDs {list(sids.shape)}: [N, {len(counts)}] is expected")
    if counts and _worth(counts)[0] * counts[0] >= 2**63:
        raise ValueError(f"{counts} codes per level make SIDs of more than 63 bits")
    codes = sids.long()
    outside = ((codes < 0) | (codes >= torch.tensor(counts, device=codes.device))).any(dim=1)
    if bool(outside.any()):
        row = int(outside.nonzero()[0, 0])
        raise ValueError(f"SID {codes[row].tolist()} (row {row}): codes in 0 ≤ code < {counts} are expected")
    return (codes * torch.tensor(_worth(counts), device=codes.device)).sum(dim=1)
