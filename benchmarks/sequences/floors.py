"""What needs no learning: popularity, transitions, neighbours. Any claim is printed beside these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from benchmarks.sequences.data import HISTORY, Data
from benchmarks.sequences.metrics import Ranks

BATCH = 500
TIE_BREAK = 1e-3  # what the most popular item gets for it, where a single transition or neighbour is worth about 1
Scores = Callable[[Sequence[Sequence[int]]], npt.NDArray[np.float32]]


class Counts:
    """A sparse matrix of counts: row → columns and values."""

    def __init__(self, pairs: Iterable[tuple[int, int]], items: int, values: npt.NDArray[np.float32] | None = None) -> None:
        table = np.array(list(pairs), np.int64).reshape(-1, 2)
        key, inverse = np.unique(table[:, 0] * (items + 1) + table[:, 1], return_inverse=True)
        self.value = np.bincount(inverse, values, len(key)).astype(np.float32)
        self.column = key % (items + 1)
        self.start = np.searchsorted(key // (items + 1), np.arange(items + 2))

    def add_row(self, row: int, weight: float, into: npt.NDArray[np.float32]) -> None:
        span = slice(self.start[row], self.start[row + 1])
        into[self.column[span]] += weight * self.value[span]


def popularity(sequences: Sequence[Sequence[int]], items: int) -> npt.NDArray[np.float32]:
    return np.bincount(np.concatenate([np.array(sequence) for sequence in sequences]), minlength=items + 1).astype(np.float32)


def most_popular(data: Data) -> Scores:
    counts = popularity(data.train(), data.items)
    return lambda histories: np.repeat(counts[None], len(histories), 0)


def markov(data: Data, sequences: Sequence[Sequence[int]]) -> Scores:
    """Counts of what followed the last item directly."""
    follows = Counts((pair for sequence in sequences for pair in pairwise(sequence)), data.items)
    usual = popularity(data.train(), data.items)
    usual *= TIE_BREAK / usual.max()

    def score(histories: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        found = np.repeat(usual[None], len(histories), 0)
        for row, history in enumerate(histories):
            follows.add_row(history[-1], 1.0, found[row])
        return found

    return score


def item_knn(data: Data, sequences: Sequence[Sequence[int]]) -> Scores:
    """Cosine of the items' sets of users, summed over the history."""
    sets = [sorted(set(sequence)) for sequence in sequences]
    counts = Counts(((left, right) for items in sets for left in items for right in items if left != right), data.items)
    size = popularity(sets, data.items)
    row = np.repeat(np.arange(data.items + 1), np.diff(counts.start))
    counts.value /= np.sqrt(size[row] * size[counts.column])
    usual = popularity(data.train(), data.items)
    usual *= TIE_BREAK / usual.max()

    def score(histories: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        found = np.repeat(usual[None], len(histories), 0)
        for place, history in enumerate(histories):
            for item in history[-HISTORY:]:
                counts.add_row(item, 1.0, found[place])
        return found

    return score


def without_seen(score: Scores) -> Scores:
    """The same, with what the history holds at the very end."""

    def masked(histories: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        found = score(histories)
        for place, history in enumerate(histories):
            found[place, history] = -1.0
        return found

    return masked


FLOORS: dict[str, Callable[[Data], Scores]] = {
    "most popular": most_popular,
    "markov": lambda data: markov(data, data.train()),
    "markov + validation transitions": lambda data: markov(data, data.until_validation()),
    "item-kNN": lambda data: item_knn(data, data.train()),
    "item-kNN + validation": lambda data: item_knn(data, data.until_validation()),
}


def best(data: Data, score: Scores) -> Scores:
    """With or without items of the history, whichever is better on the validation targets: some shops sell a thing once, some again."""
    choices = (score, without_seen(score))
    return max(choices, key=lambda choice: measure(choice, data.validation())["n10"])


def measure(score: Scores, pairs: Sequence[tuple[Sequence[int], int]]) -> dict[str, float]:
    ranks = Ranks()
    for start in range(0, len(pairs), BATCH):
        part = pairs[start : start + BATCH]
        ranks.scores(score([history for history, _ in part]), [target for _, target in part])
    return ranks.summary()
