"""The set of semantic IDs that may be produced, as a prefix trie in flat arrays; its SIDs can be switched off and on.

A node is the position of the edge that leads to it, among the edges of its level sorted by (parent, token): no next state is stored. A leaf
is the rank of its SID among all, in lexicographic order. Levels of few nodes are dense: a bitmask row per node, the child by popcount. The
others have a list of 16-bit tokens per node.

Which SIDs are alive is a snapshot. `set_alive` and `append` answer with a new trie and leave the old one as it was, so a search that is
under way ends with the set it began with. `set_alive` copies one bit per edge (and the bitmask rows) and shares the rest; node and leaf
numbers stay. `append` renumbers and writes everything anew; `kernels.trie.layered` is for SIDs that keep coming.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from kernels.trie.levels import Dense, Sparse
from kernels.trie.reference import WORD

DENSE_BYTES = 32 << 20
"""A level has a bitmask while its arrays (ten bytes for every 32 tokens of every node) are no larger: it is read faster than lists."""


class Prefixes(Protocol):
    """What a search asks of a set of SIDs: see the methods of `Trie`."""

    def root(self, batch: int) -> Tensor: ...

    def child(self, node: Tensor, token: Tensor, level: int) -> Tensor: ...

    def allowed(self, level: int) -> Tensor | None: ...

    def words(self, node: Tensor, level: int) -> Tensor: ...


@dataclass(frozen=True)
class Trie:
    """Immutable; only what is alive can be reached, unless a method says otherwise.

    code_counts: tokens of each level. levels: their arrays.
    """

    code_counts: tuple[int, ...]
    levels: tuple[Dense | Sparse, ...]

    @classmethod
    def build(cls, sids: Tensor, code_counts: Sequence[int], dense_levels: int | None = None) -> Trie:
        """The trie of SIDs int[N, L], all alive; equal ones count once.

        Args:
            dense_levels: the first levels, with a bitmask; by default whichever stay within `DENSE_BYTES`.

        Raises:
            ValueError: not L codes each, a code that its level does not have, a level of more than 65,536 codes, or so many codes that a
                SID does not fit in 63 bits.
        """
        counts = tuple(code_counts)
        dense = None if dense_levels is None else [index < dense_levels for index in range(len(counts))]
        return cls._of(torch.unique(_pack(sids, counts)), counts, dense)

    def append(self, sids: Tensor) -> Trie:
        """A trie with more SIDs int[M, L], alive even if they were there and dead; nodes and leaves are renumbered. Raises like build()."""
        mine, fresh = self._packed(), _pack(sids, self.code_counts)
        packed = torch.unique(torch.cat([mine, fresh.to(mine.device)]))
        grown = self._of(packed, self.code_counts, [isinstance(level, Dense) for level in self.levels])
        dead = mine[~self.alive]
        dead = dead[~torch.isin(dead, fresh.to(mine.device))]
        return grown.set_alive(torch.searchsorted(packed, dead), False) if len(dead) else grown

    def set_alive(self, leaf_ids: Tensor, alive: bool) -> Trie:
        """A trie in which the leaves int[M] are alive, or are not; a prefix that no live SID has left is not allowed either.

        Shares everything but one bit per edge with this one, which does not change.

        Raises:
            ValueError: a leaf that there is none of.
        """
        leaves = leaf_ids.long().unique()
        if len(leaves) and not 0 <= int(leaves[0]) <= int(leaves[-1]) < len(self):
            wrong = int(leaves[0]) if int(leaves[0]) < 0 else int(leaves[-1])
            raise ValueError(f"leaf {wrong}: 0 ≤ leaf < {len(self)} is expected")
        levels = list(self.levels)
        edges = leaves
        for index in reversed(range(len(levels))):
            level, changed = self.levels[index].set_alive(edges, alive)
            levels[index] = level  # type: ignore[call-overload]  # a level of the same kind
            edges = level.starts.parent(changed).unique_consecutive()
            if not alive:
                edges = edges[~levels[index].any_alive(edges)]
            if not len(edges):
                break
        return replace(self, levels=tuple(levels))

    def __len__(self) -> int:
        """Leaves, alive or not."""
        return self.levels[-1].edges

    @property
    def sids(self) -> Tensor:
        """All SIDs int64[N, L], alive or not, in lexicographic order: row = leaf."""
        packed = self._packed()
        worth = torch.tensor(_worth(self.code_counts), device=packed.device)
        return (packed.unsqueeze(-1) // worth) % torch.tensor(self.code_counts, device=packed.device)

    @property
    def alive(self) -> Tensor:
        """bool[N]: which leaves are alive."""
        return self.levels[-1].alive(torch.arange(len(self), device=self._device))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays; what two of them share counts once."""
        tensors = {tensor.data_ptr(): tensor for level in self.levels for tensor in level.tensors()}
        return sum(tensor.nbytes for tensor in tensors.values())

    def root(self, batch: int) -> Tensor:
        """The node that every search starts from, int64[batch, 1]."""
        return torch.zeros(batch, 1, dtype=torch.int64, device=self._device)

    def child(self, node: Tensor, token: Tensor, level: int) -> Tensor:
        """The node int64[...] that `token` int[...] leads to from `node` int64[...]; -1 where there is none (node -1 has none)."""
        return self._child(node, token, level, dead=False)

    def walk(self, prefixes: Tensor) -> Tensor:
        """The node int64[M] at the end of each prefix int[M, l ≤ L]; for a whole SID its leaf; -1 where there is no such SID."""
        return self._walk(prefixes, dead=False)

    def contains(self, sids: Tensor) -> Tensor:
        """bool[M]: which of the SIDs int[M, L] are in the set."""
        return self.walk(sids) >= 0

    def leaf(self, sids: Tensor) -> Tensor:
        """The leaf int64[M] of each SID int[M, L], alive or not; -1 where there never was such a SID."""
        return self._walk(sids, dead=True)

    def expand(self, node: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """What may follow each node int64[M]: those of node m at `offsets[m]:offsets[m + 1]`, by ascending token.

        Returns:
            offsets int64[M + 1], tokens int64[T], and the nodes int64[T] that they lead to.
        """
        if not self.levels[level].edges:
            nothing = node.new_zeros(0, dtype=torch.int64)
            return node.new_zeros(len(node) + 1, dtype=torch.int64), nothing, nothing
        return self.levels[level].children(node.long())

    def allowed(self, level: int) -> Tensor | None:
        """What may follow each node of a dense level, int32[nodes, ceil(tokens / 32)]: bit t % 32 of word t // 32 is token t.

        None for a sparse level. Not to be written to.
        """
        found = self.levels[level]
        return found.live if isinstance(found, Dense) else None

    def words(self, node: Tensor, level: int) -> Tensor:
        """What may follow each node int64[M], packed as `allowed` packs it: int32[M, ceil(tokens / 32)]; nothing follows node -1.

        On a GPU it asks for no synchronisation, so a CUDA graph can hold it.
        """
        if not self.levels[level].edges:
            return torch.zeros(len(node), -(-self.code_counts[level] // WORD), dtype=torch.int32, device=node.device)
        return self.levels[level].words(node.long())

    def _child(self, node: Tensor, token: Tensor, level: int, dead: bool) -> Tensor:
        if not self.levels[level].edges:
            return torch.full_like(node, -1, dtype=torch.int64)
        return self.levels[level].child(node.long(), token.long(), dead)

    def _walk(self, prefixes: Tensor, dead: bool) -> Tensor:
        node = torch.zeros(len(prefixes), dtype=torch.int64, device=self._device)
        for level in range(prefixes.shape[1]):
            node = self._child(node, prefixes[:, level], level, dead)
        return node

    @property
    def _device(self) -> torch.device:
        return self.levels[0].live.device

    def _packed(self) -> Tensor:
        """Each SID as one number int64[N], ascending."""
        packed = torch.zeros(1, dtype=torch.int64, device=self._device)
        for level in self.levels:
            packed = packed.repeat_interleave(level.starts.all().diff()[: len(packed)]) * level.vocabulary + level.tokens()
        return packed

    @classmethod
    def _of(cls, packed: Tensor, counts: tuple[int, ...], dense: Sequence[bool] | None) -> Trie:
        levels: list[Dense | Sparse] = []
        prefixes = packed
        for index in reversed(range(len(counts))):
            tokens = counts[index]
            token = prefixes % tokens
            prefixes, children = torch.unique_consecutive(prefixes // tokens, return_counts=True)
            if index == 0 and not len(prefixes):
                children = packed.new_zeros(1)  # the root is there, with nothing below
            small = 10 * len(children) * -(-tokens // WORD) <= DENSE_BYTES
            kind = Dense if (small if dense is None else dense[index]) else Sparse
            levels.insert(0, kind.of(token, children, tokens))
        return cls(counts, tuple(levels))


def _worth(counts: Sequence[int]) -> list[int]:
    """What one code of each level is worth when a SID is written as one number."""
    worth = [1]
    for tokens in reversed(counts[1:]):
        worth.insert(0, worth[0] * tokens)
    return worth


def _pack(sids: Tensor, counts: tuple[int, ...]) -> Tensor:
    if sids.dim() != 2 or sids.shape[1] != len(counts) or not counts:
        raise ValueError(f"SIDs {list(sids.shape)}: [N, {len(counts)}] with at least one level is expected")
    if _worth(counts)[0] * counts[0] >= 2**63:
        raise ValueError(f"{counts} codes per level make SIDs of more than 63 bits")
    if max(counts) > 1 << 16:
        raise ValueError(f"{counts} codes per level: at most 65,536 are expected")
    packed = torch.zeros(len(sids), dtype=torch.int64, device=sids.device)
    outside = torch.zeros(len(sids), dtype=torch.bool, device=sids.device)
    for code, tokens in zip(sids.unbind(1), counts, strict=True):
        packed = packed * tokens + code
        outside |= (code < 0) | (code >= tokens)
    if bool(outside.any()):
        row = int(outside.nonzero()[0, 0])
        raise ValueError(f"SID {sids[row].tolist()} (row {row}): codes in 0 ≤ code < {counts} are expected")
    return packed


__all__ = ["Prefixes", "Trie"]
