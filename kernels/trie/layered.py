"""A large trie, and beside it a small one of what came since: an append builds the small one anew and leaves the large one as it is.

As log-structured merge trees do (O'Neil et al., 1996). A search goes down both at once; `merged` makes one trie of them, which takes as
long as `Trie.append` and can be done beside the searches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from kernels.trie import Trie

HALF = 32
"""Bits of a node for the small trie's node, counted from 1; the large one's are above them."""


@dataclass(frozen=True)
class Layered:
    """Immutable, like the tries that it is made of; no SID is in both. Its nodes are numbers of its own, and it has no leaf numbers."""

    main: Trie
    recent: Trie

    @classmethod
    def of(cls, main: Trie) -> Layered:
        """With nothing in the small trie, which has lists alone: rows of bits would be larger than what they hold."""
        nothing = main.root(0).new_zeros(0, len(main.code_counts))
        return cls(main, Trie.build(nothing, main.code_counts, dense_levels=0))

    def append(self, sids: Tensor) -> Layered:
        """With more SIDs int[M, L], alive even if they were there and dead. Raises as `Trie.build`."""
        leaf = self.main.leaf(sids)
        known = leaf[leaf >= 0]
        main = self.main.set_alive(known, True) if len(known) else self.main
        return Layered(main, self.recent.append(sids[leaf < 0]))

    def set_alive(self, sids: Tensor, alive: bool) -> Layered:
        """In which the SIDs int[M, L] are alive, or are not; those that never were in it do not count."""
        layers = {}
        for name, layer in (("main", self.main), ("recent", self.recent)):
            leaf = layer.leaf(sids)
            if bool((leaf >= 0).any()):
                layers[name] = layer.set_alive(leaf[leaf >= 0], alive)
        return replace(self, **layers)

    def merged(self) -> Trie:
        """One trie of both, what is dead in the small one left out."""
        return self.main.append(self.recent.sids[self.recent.alive])

    @property
    def nbytes(self) -> int:
        return self.main.nbytes + self.recent.nbytes

    def root(self, batch: int) -> Tensor:
        """See `Trie.root`."""
        return _joined(self.main.root(batch), self.recent.root(batch))

    def child(self, node: Tensor, token: Tensor, level: int) -> Tensor:
        """See `Trie.child`."""
        main, recent = _halves(node)
        return _joined(self.main.child(main, token, level), self.recent.child(recent, token, level))

    def allowed(self, level: int) -> None:
        """No level has one bitmask for all its nodes: see `words`."""
        return

    def words(self, node: Tensor, level: int) -> Tensor:
        """See `Trie.words`."""
        main, recent = _halves(node)
        return self.main.words(main, level) | self.recent.words(recent, level)

    def contains(self, sids: Tensor) -> Tensor:
        """bool[M]: which of the SIDs int[M, L] are in the set."""
        return self.main.contains(sids) | self.recent.contains(sids)


def _joined(main: Tensor, recent: Tensor) -> Tensor:
    return ((main + 1) << HALF | (recent + 1)) - 1


def _halves(node: Tensor) -> tuple[Tensor, Tensor]:
    node = node + 1
    return (node >> HALF) - 1, (node & (1 << HALF) - 1) - 1


__all__ = ["Layered"]
