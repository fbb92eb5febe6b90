"""The arrays of one level of a trie.

The edges of a level are sorted by (parent, token), and a node of the next level *is* the position of the edge that leads to it: there is
no table of next states. What exists (the structure) never changes; which edges are alive is one bit each, beside it. A level that has lost
edges shares the structure of the one that it was made from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.bits import unpack
from kernels.trie import ops
from kernels.trie.cpu import edges_of, popcount
from kernels.trie.reference import WORD, gather_start, unsigned

SHIFT = 3
"""At most 2**SHIFT nodes share an int32 start; each adds 16 bits of its own."""
ROWS = 1024
"""Rows of a dense level that are unpacked at once."""


@dataclass(frozen=True)
class Starts:
    """Where the edges of each node begin, at 2.5 bytes a node: the start of node n is `base[n >> shift] + offset[n]`.

    base: int32[ceil((nodes + 1) / 2**shift)], strictly ascending but for a last one. offset: int16[nodes + 1], unsigned.
    """

    base: Tensor
    offset: Tensor
    shift: int

    @classmethod
    def of(cls, counts: Tensor, vocabulary: int) -> Starts:
        """From the number of edges of each node, int64[nodes], none above `vocabulary`."""
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        shift = SHIFT
        while ((1 << shift) - 1) * vocabulary > 0xFFFF:
            shift -= 1
        base = starts[:: 1 << shift]
        return cls(base.int(), (starts - base.repeat_interleave(1 << shift)[: len(starts)]).to(torch.int16), shift)

    def __getitem__(self, node: Tensor) -> Tensor:
        """First edge int64[...] of each node int64[...]; for the number of nodes, the number of edges."""
        return gather_start(self.base, self.offset, self.shift, node)

    def all(self) -> Tensor:
        """int64[nodes + 1]."""
        return self.base.repeat_interleave(1 << self.shift)[: len(self.offset)].long() + unsigned(self.offset)

    def parent(self, edge: Tensor) -> Tensor:
        """The node int64[M] that each edge int64[M] starts from."""
        node = (torch.searchsorted(self.base, edge.int(), right=True) - 1) << self.shift
        for step in (1 << power for power in reversed(range(self.shift))):
            beyond = (node + step).clamp_(max=len(self.offset) - 1)
            node = torch.where(self[beyond] <= edge, beyond, node)
        return node

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.base, self.offset


@dataclass(frozen=True)
class Level(ABC):
    """What both kinds of level have.

    vocabulary: tokens of the level. nodes: those that its edges start from. edges: their number, alive or not. most: children of a node, at
    most. live: int32 words, one bit per edge; where an edge's bit is, the kind of level says.
    """

    vocabulary: int
    nodes: int
    edges: int
    most: int
    starts: Starts
    live: Tensor

    def alive(self, edge: Tensor) -> Tensor:
        """bool[M]: which of the edges int64[M] are alive."""
        return _bit(self.live, self._place(edge))

    def set_alive(self, edge: Tensor, alive: bool) -> tuple[Level, Tensor]:
        """The level with other edges int64[M] (all different) alive or dead, and those of them that were not so before."""
        place = self._place(edge)
        changes = _bit(self.live, place) != alive
        place = place[changes]
        bit = torch.ones_like(place, dtype=torch.int32) << (place % WORD).int()
        # A bit that is 0 is set by adding it, one that is 1 is cleared by subtracting it: no two edges disturb each other in a word.
        live = self.live.flatten().index_add(0, place // WORD, bit if alive else -bit)
        return replace(self, live=live.view(self.live.shape)), edge[changes]

    @abstractmethod
    def words(self, node: Tensor) -> Tensor:
        """What may follow each node int64[M], int32[M, ceil(vocabulary / 32)]; nothing follows node -1."""

    @abstractmethod
    def _place(self, edge: Tensor) -> Tensor:
        """The bit of `live` int64[M] of each edge int64[M]."""


@dataclass(frozen=True)
class Dense(Level):
    """A row of bits per node: the child of a token is the number of bits before its own.

    bits: int32[nodes, ceil(vocabulary / 32)], what exists; bit t % 32 of word t // 32 is token t. live: the same of what is alive.
    rank: int16[nodes, ceil(vocabulary / 32)], unsigned: bits set in the row before each word.
    """

    bits: Tensor
    rank: Tensor

    @classmethod
    def of(cls, token: Tensor, counts: Tensor, vocabulary: int) -> Dense:
        """From the tokens int64[edges], ascending per node, and the number of edges of each node int64[nodes]."""
        nodes, words = len(counts), -(-vocabulary // WORD)
        owner = torch.repeat_interleave(counts)
        bits = torch.zeros(nodes * words, dtype=torch.int32, device=token.device)
        bits.index_add_(0, owner * words + token // WORD, torch.ones_like(token, dtype=torch.int32) << (token % WORD).int())
        bits = bits.view(nodes, words)
        in_word = popcount(bits)
        rank = (in_word.cumsum(1) - in_word).to(torch.int16)
        return cls(vocabulary, nodes, len(token), _most(counts), Starts.of(counts, vocabulary), bits, bits, rank)

    def child(self, node: Tensor, token: Tensor, dead: bool) -> Tensor:
        live = self.bits if dead else self.live
        return ops.child_dense(node, token, self.bits, self.rank, live, *self.starts.tensors, self.starts.shift, self.vocabulary)

    def words(self, node: Tensor) -> Tensor:
        return torch.where((node >= 0).unsqueeze(-1), self.live[node.clamp(min=0)], 0)

    def children(self, node: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = unpack(self.words(node), self.vocabulary)
        owner, token = rows.nonzero(as_tuple=True)
        offsets = torch.cat([owner.new_zeros(1), rows.sum(1).cumsum(0)])
        return offsets, token, self.child(node[owner], token, dead=False)

    def any_alive(self, node: Tensor) -> Tensor:
        return (self.live[node] != 0).any(1)

    def tokens(self) -> Tensor:
        """Token int64[edges] of every edge, alive or not."""
        parts = [unpack(self.bits[row : row + ROWS], self.vocabulary).nonzero()[:, 1] for row in range(0, self.nodes, ROWS)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=self.bits.device)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.bits, self.live, self.rank, *self.starts.tensors

    def _place(self, edge: Tensor) -> Tensor:
        node = self.starts.parent(edge)
        nth = edge - self.starts[node]
        words = self.bits.shape[1]
        # The last word of the row that has at most `nth` bits before it, then the last bit of it of which that is true.
        word, last = node * words, (node + 1) * words - 1
        for step in (1 << power for power in reversed(range(words.bit_length()))):
            beyond = torch.minimum(word + step, last)
            word = torch.where(unsigned(self.rank.view(-1)[beyond]) <= nth, beyond, word)
        nth -= unsigned(self.rank.view(-1)[word])
        bits = self.bits.view(-1)[word]
        bit = torch.zeros_like(bits)
        for step in (16, 8, 4, 2, 1):
            beyond = bit + step
            bit = torch.where(popcount(bits & ((torch.ones_like(bits) << beyond) - 1)) <= nth, beyond, bit)
        return word * WORD + bit


@dataclass(frozen=True)
class Sparse(Level):
    """Children in a list per node, found by bisection.

    token: int16[edges], unsigned. live: int32[ceil(edges / 32)], bit e % 32 of word e // 32 is edge e.
    """

    token: Tensor

    @classmethod
    def of(cls, token: Tensor, counts: Tensor, vocabulary: int) -> Sparse:
        """As `Dense.of`."""
        edges = len(token)
        live = torch.full((-(-edges // WORD),), -1, dtype=torch.int32, device=token.device)
        return cls(vocabulary, len(counts), edges, _most(counts), Starts.of(counts, vocabulary), live, token.to(torch.int16))

    def child(self, node: Tensor, token: Tensor, dead: bool) -> Tensor:
        live = None if dead else self.live
        return ops.child_sparse(node, token, self.token, live, *self.starts.tensors, self.starts.shift, self.most)

    def children(self, node: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        owner, edge = edges_of(node, self.starts.base, self.starts.offset, self.starts.shift)
        alive = self.alive(edge)
        owner, edge = owner[alive], edge[alive]
        offsets = torch.searchsorted(owner, torch.arange(len(node) + 1, device=node.device))
        return offsets, unsigned(self.token[edge]), edge

    def words(self, node: Tensor) -> Tensor:
        return ops.words_sparse(node, self.token, self.live, *self.starts.tensors, self.starts.shift, self.vocabulary)

    def any_alive(self, node: Tensor) -> Tensor:
        found = torch.zeros(len(node), dtype=torch.bool, device=node.device)
        first, last = self.starts[node], self.starts[node + 1] - 1
        todo = torch.arange(len(node), device=node.device)
        word = first // WORD
        # Nearly every node has a living child in its first word or two; only what is still open is looked at again.
        while len(todo):
            begin = (first[todo] - word * WORD).clamp(min=0)
            end = (last[todo] - word * WORD).clamp(max=WORD - 1)
            within = ((1 << (end + 1)) - (1 << begin)) & (self.live[word].long() & 0xFFFFFFFF)
            found[todo] = within != 0
            open_ = (within == 0) & (word < last[todo] // WORD)
            todo, word = todo[open_], word[open_] + 1
        return found

    def tokens(self) -> Tensor:
        """Token int64[edges] of every edge, alive or not."""
        return unsigned(self.token)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.token, self.live, *self.starts.tensors

    def _place(self, edge: Tensor) -> Tensor:
        return edge


def _bit(words: Tensor, place: Tensor) -> Tensor:
    return (words.view(-1)[place // WORD] >> (place % WORD).int() & 1).bool()


def _most(counts: Tensor) -> int:
    return int(counts.max()) if len(counts) else 0
