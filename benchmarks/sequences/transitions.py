"""The third head: what followed the items of a history, near and far, and what came before them; counts alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.sequences.floors import Counts

LAGS = 8
LATER = 0.7
"""What a pair counts for, per item in between."""
BACKWARDS = 0.3
"""What a pair counts for in the other direction."""
BACKWARDS_LAGS = 3
COMMON = 2.0
"""Counts of an item are divided by √(their sum + this)."""
OLDER = 0.5
"""What an item of the history counts for, per newer one."""
LEAST = 0.02
"""Added before the logarithm: what an item is worth that never followed; a single transition is worth some ten times that."""


class Transitions:
    def __init__(self, sequences: Sequence[Sequence[int]], items: int) -> None:
        pairs: list[tuple[int, int]] = []
        values: list[float] = []
        for lag in range(1, LAGS + 1):
            near = [pair for sequence in sequences for pair in zip(sequence, sequence[lag:], strict=False)]
            pairs += near
            values += [LATER ** (lag - 1)] * len(near)
            if lag <= BACKWARDS_LAGS:
                pairs += [(later, earlier) for earlier, later in near]
                values += [BACKWARDS * LATER ** (lag - 1)] * len(near)
        self._items = items
        self._counts = Counts(pairs, items, np.array(values, np.float32))
        row = np.repeat(np.arange(items + 1), np.diff(self._counts.start))
        total = np.bincount(row, self._counts.value, items + 1)
        self._counts.value /= np.sqrt(total[row] + COMMON).astype(np.float32)

    def log_score(self, histories: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """float32[B, items + 1]; not normalised."""
        found = np.full((len(histories), self._items + 1), LEAST, np.float32)
        for place, history in enumerate(histories):
            for age, item in enumerate(reversed(history[-LAGS:])):
                self._counts.add_row(item, OLDER**age, found[place])
        return np.log(found)
