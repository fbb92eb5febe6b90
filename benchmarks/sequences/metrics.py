"""Recall and NDCG at 5 and 10 of one right item among all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

DEPTH = 10


class Ranks:
    """Collects the place of each target, 0 = first; whoever is not among the first DEPTH has none."""

    def __init__(self) -> None:
        self._places: list[float] = []

    def scores(self, scores: npt.NDArray[np.float32], targets: Sequence[int]) -> None:
        """float32[B, items + 1] by item id, column 0 unused. Ties: the expected place among them, so that constant scores win nothing."""
        own = scores[np.arange(len(targets)), targets][:, None]
        rivals = scores[:, 1:]
        above, equal = (rivals > own).sum(1), (rivals == own).sum(1) - 1
        self._places += (above + equal / 2).tolist()

    def lists(self, found: Sequence[Sequence[int]], targets: Sequence[int]) -> None:
        """Item ids, best first."""
        for items, target in zip(found, targets, strict=True):
            self._places.append(float(items.index(target)) if target in items else float("inf"))

    def summary(self) -> dict[str, float]:
        """`r5`, `r10`, `n5`, `n10`."""
        place = np.array(self._places)
        gain = 1.0 / np.log2(place + 2.0)
        return {f"r{k}": float((place < k).mean()) for k in (5, DEPTH)} | {f"n{k}": float((gain * (place < k)).mean()) for k in (5, DEPTH)}
