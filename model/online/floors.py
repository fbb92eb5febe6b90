"""What a recommender without a model would have recommended: the floors that recall is printed beside, on exactly the same samples.

Like the model they are prequential: asked before they learn. They learn from the same targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.grm.inputs import Row, Vocabulary

Sid = tuple[int, ...]


class Popularity:
    """How often each SID was wanted, halved every `half_life` targets (None = never forgotten)."""

    def __init__(self, half_life: float | None) -> None:
        self.half_life = half_life
        self._index: dict[Sid, int] = {}
        self._sids: list[Sid] = []
        self._weight = np.zeros(1024)
        self._unit = 1.0  # what one more target adds; grows instead of everything else shrinking

    def learn(self, sids: Sequence[Sid]) -> None:
        for sid in sids:
            index = self._index.setdefault(sid, len(self._sids))
            if index == len(self._sids):
                self._sids.append(sid)
                if index == len(self._weight):
                    self._weight = np.concatenate([self._weight, np.zeros(index)])
            self._weight[index] += self._unit
            if self.half_life is not None:
                self._unit *= 2.0 ** (1.0 / self.half_life)
        if self._unit > 1e100:
            self._weight /= self._unit
            self._unit = 1.0

    def top(self, count: int) -> list[Sid]:
        """The `count` most wanted, most wanted first; the earlier known of equals first."""
        known = len(self._sids)
        order = np.argsort(-self._weight[:known], kind="stable")[:count]
        return [self._sids[index] for index in order]

    def weight(self, sid: Sid) -> float:
        index = self._index.get(sid)
        return 0.0 if index is None else float(self._weight[index])

    def state(self) -> dict[str, Any]:
        known = len(self._sids)
        return {"sids": [list(sid) for sid in self._sids], "weight": self._weight[:known].tolist(), "unit": self._unit}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._sids = [tuple(sid) for sid in state["sids"]]
        self._index = {sid: index for index, sid in enumerate(self._sids)}
        self._weight = np.zeros(max(1024, len(self._sids)))
        self._weight[: len(self._sids)] = state["weight"]
        self._unit = state["unit"]


class Floors:
    """`popularity` (fading), `popularity_all_time`, and `last_author`: the most wanted SIDs of the author whom the user met last,
    filled up with popular ones."""

    NAMES = ("popularity", "popularity_all_time", "last_author")

    def __init__(self, vocabulary: Vocabulary, half_life: float) -> None:
        self._vocabulary = vocabulary
        self._fading = Popularity(half_life)
        self._all_time = Popularity(None)
        self._by_author = vocabulary.sids_by_author()

    def recommend(self, rows: Sequence[Row], count: int) -> list[dict[str, list[Sid]]]:
        """What each floor would show each user, best first."""
        fading, all_time = self._fading.top(count), self._all_time.top(count)
        return [
            {"popularity": fading, "popularity_all_time": all_time, "last_author": self._of_last_author(row, fading, count)} for row in rows
        ]

    def learn(self, sids: Sequence[Sid]) -> None:
        self._fading.learn(sids)
        self._all_time.learn(sids)

    def state(self) -> dict[str, Any]:
        return {"fading": self._fading.state(), "all_time": self._all_time.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._fading.restore(state["fading"])
        self._all_time.restore(state["all_time"])

    def _of_last_author(self, row: Row, popular: list[Sid], count: int) -> list[Sid]:
        author = next((found for entry in row.context.history if (found := self._vocabulary.author_of(entry.item_id)) >= 0), -1)
        theirs = sorted(self._by_author.get(author, []), key=lambda sid: (-self._fading.weight(sid), sid))[:count]
        return theirs + [sid for sid in popular if sid not in theirs][: count - len(theirs)]
