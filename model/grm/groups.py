"""The videos of a history by what they have in common: one content cluster, or one author, is one position of the context.

What somebody watched long ago matters as a taste, not as single videos. OneRec (arXiv 2506.13695) keeps a lifelong history as
representatives of its clusters, by hierarchical k-means of the videos' embeddings; the first content code *is* such a cluster, fitted once
for all videos. The same counts by author are the cross feature of user and author that ranking models are fed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_COUNTS: Final = np.array([1, 2, 3, 4, 6, 9, 14, 21, 32, 64])
COUNT_ROWS: Final = len(_COUNTS) + 1


@dataclass(frozen=True)
class Groups:
    """G groups of videos of B rows: by row, in each row those with the most liked videos first, then those with the most, then the newest.

    Attributes:
        row: int64[G].
        rank: int64[G], place among the groups of its row.
        newest: int64[G], index of its newest video among those that were given.
        count: int64[G], its videos; `liked`: int64[G], those of them that were liked.
    """

    row: Ints
    rank: Ints
    newest: Ints
    count: Ints
    liked: Ints

    @classmethod
    def of(cls, row: Ints, key: Ints, liked: NDArray[np.bool_], most: int) -> Groups:
        """The first `most` groups of each row.

        Args:
            row: int64[N], ascending; within a row the newest video comes first.
            key: int64[N], what a group has in common; < 0 = the video is in none.
            liked: bool[N].
        """
        known = np.flatnonzero(key >= 0)
        if not most or not len(known):
            none = np.zeros(0, np.int64)
            return cls(none, none, none, none, none)
        by_key = known[np.lexsort((key[known], row[known]))]  # stable: within a group still newest first
        first = np.flatnonzero(np.concatenate([[True], (np.diff(row[by_key]) != 0) | (np.diff(key[by_key]) != 0)]))
        newest = by_key[first]
        count = np.diff(np.append(first, len(by_key)))
        likes = np.add.reduceat(liked[by_key].astype(np.int64), first)
        order = np.lexsort((newest, -count, -likes, row[newest]))
        rows = row[newest][order]
        rank = np.arange(len(order)) - np.searchsorted(rows, rows)
        kept = rank < most
        chosen = order[kept]
        return cls(rows[kept], rank[kept], newest[chosen], count[chosen], likes[chosen])


def count_bucket(counts: Ints) -> Ints:
    """0 for none, single numbers as long as they are small, then ranges."""
    return np.digitize(counts, _COUNTS).astype(np.int64)
