"""What is served when the model, the features or Redis are late or gone: the person's last good feed, else what is popular in the scene.

Kept in memory from live traffic, so that it needs nothing else to be up. `Popularity` also rates each video (mean reward, smoothed), which
orders the creatives of a content in the SID cache.
"""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from serving.cache import CachedVideo
from serving.recommend import Slot
from streaming.records import Engagement, Event, Impression, Watch

REWARDS: Final = {"click": 1.0, "like": 2.0, "follow": 3.0, "comment": 2.0, "share": 3.0, "hate": -4.0, "profile_visit": 0.5}
LONG_VIEW_MS: Final = 18_000  # as in the samples: a watch this long, or to the end of a shorter video, is a long view
LONG_VIEW_REWARD: Final = 1.0
PRIOR_VIEWS: Final = 5.0  # a video's rating starts at 0 as if it had been shown this often without reward
SCENES: Final = 64  # scenes come from outside, so their number needs a bound; later ones count in ANY only
ANY: Final = ""


@dataclass
class _Decayed:
    value: float = 0.0
    at_s: float = 0.0

    def add(self, amount: float, now_s: float, half_life_s: float) -> None:
        self.value = self.read(now_s, half_life_s) + amount
        self.at_s = now_s

    def read(self, now_s: float, half_life_s: float) -> float:
        return self.value * 0.5 ** (max(0.0, now_s - self.at_s) / half_life_s)


@dataclass
class _Scene:
    scores: dict[int, _Decayed] = field(default_factory=dict)
    top: list[int] = field(default_factory=list)
    top_at_s: float = -1e9


@dataclass
class _Rating:
    views: float = 0.0
    reward: float = 0.0

    @property
    def mean(self) -> float:
        return self.reward / (self.views + PRIOR_VIEWS)


class Popularity:
    """Reward by scene and item with exponential decay, from the live event stream. Times are seconds of the wall clock."""

    def __init__(self, *, half_life_s: float = 600.0, items_per_scene: int = 5_000, impressions: int = 100_000) -> None:
        self._half_life_s = half_life_s
        self._items_per_scene = items_per_scene
        self._impressions_kept = impressions
        self._lock = threading.Lock()
        self._scenes: dict[str, _Scene] = {ANY: _Scene()}
        self._impressions: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._ratings: dict[int, _Rating] = {}
        self._changed: set[int] = set()

    def observe(self, event: Event, now_s: float) -> None:
        """Count one event; labels count for the item of their impression, if that is among the last ones seen."""
        with self._lock:
            if isinstance(event, Impression):
                self._impressions[event.impression_id] = (event.item_id, event.scene)
                if len(self._impressions) > self._impressions_kept:
                    self._impressions.popitem(last=False)
                self._ratings.setdefault(event.item_id, _Rating()).views += 1
                self._changed.add(event.item_id)
                return
            reward = _reward(event)
            known = self._impressions.get(getattr(event, "impression_id", ""))
            if known is None or not reward:
                return
            item, scene = known
            for name in (scene, ANY):
                counters = self._scene(name)
                if counters is not None:
                    counters.scores.setdefault(item, _Decayed()).add(reward, now_s, self._half_life_s)
            self._ratings.setdefault(item, _Rating()).reward += reward
            self._changed.add(item)

    def top(self, scene: str, now_s: float, count: int = 200) -> list[int]:
        """The most rewarded items of a scene (of all scenes where it has none), best first; at most a second old."""
        with self._lock:
            counters = self._scenes.get(scene)
            if counters is None or not counters.scores:
                counters = self._scenes[ANY]
            if now_s - counters.top_at_s >= 1.0 or len(counters.top) < count:
                self._rank(counters, now_s)
            return counters.top[:count]

    def scores(self, now_s: float, count: int = 200) -> dict[str, dict[int, float]]:
        """The best items of every scene with their scores, to be kept."""
        result = {}
        with self._lock:
            for scene, counters in self._scenes.items():
                self._rank(counters, now_s)
                result[scene] = {item: counters.scores[item].read(now_s, self._half_life_s) for item in counters.top[:count]}
        return result

    def restore(self, scores: Mapping[str, Mapping[int, float]], now_s: float) -> None:
        """Start from what an earlier server kept."""
        with self._lock:
            for scene, items in scores.items():
                counters = self._scene(scene)
                if counters is not None:
                    for item, score in items.items():
                        counters.scores.setdefault(item, _Decayed()).add(score, now_s, self._half_life_s)

    def changed_ratings(self) -> dict[int, float]:
        """Mean reward per view of the items that changed since the last call."""
        with self._lock:
            changed, self._changed = self._changed, set()
            return {item: self._ratings[item].mean for item in changed}

    def _scene(self, name: str) -> _Scene | None:
        counters = self._scenes.get(name)
        if counters is None and len(self._scenes) < SCENES:
            counters = self._scenes[name] = _Scene()
        return counters

    def _rank(self, counters: _Scene, now_s: float) -> None:
        scored = {item: score.read(now_s, self._half_life_s) for item, score in counters.scores.items()}
        counters.top = sorted((item for item in scored if scored[item] > 0), key=lambda item: (-scored[item], item))
        counters.top_at_s = now_s
        if len(scored) > self._items_per_scene:
            kept = set(counters.top[: self._items_per_scene // 2])
            counters.scores = {item: score for item, score in counters.scores.items() if item in kept}
            counters.top = counters.top[: self._items_per_scene // 2]


class RecentFeeds:
    """Each person's last good feed and the items they were served lately; the people served longest ago are forgotten."""

    def __init__(self, people: int = 20_000, items: int = 40) -> None:
        self._people = people
        self._items = items
        self._feeds: OrderedDict[int, tuple[tuple[CachedVideo, ...], tuple[int, ...]]] = OrderedDict()

    def keep(self, user_id: int, videos: Iterable[CachedVideo], *, good: bool) -> None:
        """Note what was served; a degraded feed counts as seen but not as good."""
        served = tuple(videos)
        last, seen = self._feeds.pop(user_id, ((), ()))
        self._feeds[user_id] = (served if good else last, (*(v.item_id for v in served), *seen)[: self._items])
        if len(self._feeds) > self._people:
            self._feeds.popitem(last=False)

    def keep_late(self, user_id: int, videos: Iterable[CachedVideo]) -> None:
        """Note a good feed that came too late to be served."""
        _, seen = self._feeds.get(user_id, ((), ()))
        self._feeds[user_id] = (tuple(videos), seen)

    def last_good(self, user_id: int) -> tuple[CachedVideo, ...]:
        return self._feeds.get(user_id, ((), ()))[0]

    def seen(self, user_id: int) -> tuple[int, ...]:
        """Items served lately, newest first."""
        return self._feeds.get(user_id, ((), ()))[1]

    def users(self, count: int) -> list[int]:
        """The people served last, newest first."""
        return list(self._feeds)[: -count - 1 : -1]


def fallback(
    last_good: Sequence[CachedVideo],
    popular: Sequence[CachedVideo],
    anything: Sequence[CachedVideo],
    *,
    count: int,
    exclude: Collection[int],
    seen: Collection[int],
    chance: random.Random,
) -> list[Slot]:
    """A feed without the model: the last good one, then what is popular, then anything that exists. At most `count` distinct items.

    What the person saw lately comes after everything else, in the same order.
    """
    sample = chance.sample(anything, min(len(anything), count + len(exclude) + len(seen)))
    sources = (("last_good", last_good), ("popular", popular), ("random", sample))
    slots: dict[int, Slot] = {}
    for again in (False, True):
        for pipeline, videos in sources:
            for video in videos:
                if len(slots) == count:
                    return list(slots.values())
                item = video.item_id
                if (item in seen) == again and item not in exclude and item not in slots:
                    slots[item] = Slot(video, None, None, None, pipeline)
    return list(slots.values())


def _reward(event: Event) -> float:
    if isinstance(event, Engagement):
        return REWARDS[event.kind]
    if isinstance(event, Watch) and event.play_ms >= min(LONG_VIEW_MS, event.duration_ms) > 0:
        return LONG_VIEW_REWARD
    return 0.0
