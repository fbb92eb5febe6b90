"""Recommenders without a model, asked and taught in the same order as the model; each has streaming freshness, the best it can have."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.prequential.stream import Histories, positive
from streaming.records import HistoryEntry, Sample
from streaming.sources.kuairand_events import LONG_VIEW_MS

Ints = npt.NDArray[np.int64]

HALF_LIVES_H: tuple[float, ...] = (3, 12, 48, math.inf)
NAMES = ("popularity", "last author", "last tag")
_FAR = 200
"""Half-lives after which weights are scaled down, before they overflow."""


class Popularity:
    """How often each video was watched positively, halved every `half_life_h` hours of the log."""

    def __init__(self, items: int, half_life_h: float) -> None:
        self.weight = np.zeros(items)
        self._half_life_ms = half_life_h * 3_600_000
        self._zero = 0

    def learn(self, item: int, ts: int) -> None:
        if not math.isfinite(self._half_life_ms):
            self.weight[item] += 1
            return
        age = (ts - self._zero) / self._half_life_ms
        if age > _FAR:
            self.weight *= 2.0**-age if age < 1000 else 0.0
            self._zero, age = ts, 0.0
        self.weight[item] += 2.0**age

    def order(self) -> Ints:
        """All videos, most wanted first."""
        return np.argsort(-self.weight, kind="stable")


class Floors:
    """`popularity`; `last author` and `last tag`: the most popular videos of the author or tag that the user last watched for 18 s
    (or, if none, met last), filled up with popular ones. Nobody is recommended what is in the history.

    The half-life is chosen by `choose`, before anything that is reported.
    """

    def __init__(self, item_ids: Ints, authors: Ints, tags: Ints) -> None:
        """int64[N] each; -1 = unknown."""
        self._place = {item: place for place, item in enumerate(item_ids.tolist())}
        self._ids = item_ids
        self._groups = {"last author": authors, "last tag": tags}
        self._candidates = {hours: Popularity(len(item_ids), hours) for hours in HALF_LIVES_H}
        self._tried: dict[float, int] = dict.fromkeys(HALF_LIVES_H, 0)
        self.half_life_h: float | None = None
        self._order: Ints | None = None

    def learn(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            place = self._place.get(sample.item_id)
            if place is not None and positive(sample):
                for popularity in self._candidates.values():
                    popularity.learn(place, sample.ts)
                self._order = None

    def attempt(self, sample: Sample) -> None:
        """Count for every half-life whether its ten most popular have the sample's video."""
        seen = self._seen(sample)
        for hours, popularity in self._candidates.items():
            self._tried[hours] += sample.item_id in self._ids[_without(popularity.order(), seen, 10)].tolist()

    def choose(self) -> None:
        """Keep the half-life that did best in all attempts; of equals, the longest."""
        self.half_life_h = max(HALF_LIVES_H, key=lambda hours: (self._tried[hours], hours))
        self._candidates = {self.half_life_h: self._candidates[self.half_life_h]}
        self._order = None

    def recommend(self, sample: Sample, count: int) -> dict[str, list[int]]:
        """`count` video ids by floor, best first."""
        assert self.half_life_h is not None, "choose() comes first"
        if self._order is None:
            self._order = self._candidates[self.half_life_h].order()
        order, seen = self._order, self._seen(sample)
        last = self._last(sample.context.history)
        found = {"popularity": order}
        for name, groups in self._groups.items():
            ours = groups[order] == groups[last] if last is not None and groups[last] >= 0 else np.zeros(len(order), bool)
            found[name] = np.concatenate([order[ours], order[~ours]])
        return {name: self._ids[_without(places, seen, count)].tolist() for name, places in found.items()}

    def _seen(self, sample: Sample) -> list[int]:
        return [place for entry in sample.context.history if (place := self._place.get(entry.item_id)) is not None]

    def _last(self, history: Sequence[HistoryEntry]) -> int | None:
        known = [entry for entry in history if entry.item_id in self._place]
        chosen = next((entry for entry in known if (entry.play_ms or 0) >= LONG_VIEW_MS), known[0] if known else None)
        return None if chosen is None else self._place[chosen.item_id]


class Rates:
    """Long-view probability from how often the user and the video had long views so far: logits add up, each shrunk to the whole's."""

    SHRINK = 10.0

    def __init__(self, before: Histories) -> None:
        self._user: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._item: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._all = [1.0, 2.0]
        for user, entries in before.items():
            for entry in entries:
                self._count(user, entry.item_id, int((entry.play_ms or 0) >= LONG_VIEW_MS))

    def learn(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            self._count(sample.user_id, sample.item_id, sample.labels.long_view or 0)

    def probability(self, sample: Sample) -> float:
        rate = self._all[0] / self._all[1]
        base = math.log(rate / (1 - rate))
        logit = base
        for positives, seen in (self._user[sample.user_id], self._item[sample.item_id]):
            share = (positives + self.SHRINK * rate) / (seen + self.SHRINK)
            logit += math.log(share / (1 - share)) - base
        return 1 / (1 + math.exp(-logit))

    def _count(self, user: int, item: int, long: int) -> None:
        for counted in (self._user[user], self._item[item], self._all):
            counted[0] += long
            counted[1] += 1


def _without(order: Ints, seen: Sequence[int], count: int) -> Ints:
    """The first `count` of `order` that are not in `seen`."""
    first = order[: count + 2 * len(seen) + 1]
    return first[~np.isin(first, seen)][:count] if seen else first[:count]
