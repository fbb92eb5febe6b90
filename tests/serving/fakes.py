"""Stand-ins for what serving stands on: a model, features, the cache in Redis, Kafka. Each does the least that its callers rely on."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from serving.agreement import Agreement
from serving.app import Parts
from serving.batching import Batcher
from serving.cache import CachedVideo, CacheGone, Codes, Lookup, catalogue_videos
from serving.candidates import Shelf
from serving.cards import Cards
from serving.degrade import Popularity
from serving.engine import Answered, Ask, Engine
from serving.events import EventLog
from serving.live import LiveView
from serving.metrics import Metrics
from serving.model import Codebook, ModelSlot, Person, Serving
from serving.service import Recommender
from serving.stats import Stats
from serving.widths import WidthPolicy, Widths, ladder
from streaming.records import HistoryEntry
from streaming.topics import DAY_MS

CODES = (4, 4, 4, 4)


def video(item_id: int, sid: Codes, *, generated: bool = False, uri: str | None = None) -> CachedVideo:
    return CachedVideo(item_id, sid, uri or f"/posters/{item_id}.svg", 9_000, generated, 1_000)


class FakeBundle:
    """A catalogue of `items` videos with random SIDs, as the cache is seeded from."""

    def __init__(self, items: int, version: str = "sid-fake", seed: int = 3) -> None:
        chance = np.random.default_rng(seed)
        self.version = version
        self.content_levels = 2
        self.code_counts = CODES
        self.item_ids = np.arange(100, 100 + items)
        self.sids = chance.integers(0, 4, (items, 4)).astype(np.int32)
        self.catalogue = pa.table(
            {
                "item_id": self.item_ids,
                "duration_ms": chance.integers(4_000, 60_000, items),
                "author_id": chance.integers(1, 40, items),
                "tag": chance.integers(1, 12, items),
            }
        )


def place(sids: np.ndarray) -> np.ndarray:
    """SIDs as points: content codes weigh more than creative codes, first levels more than second ones."""
    return sids.astype(np.float32) * np.array([100, 10, 3, 1], np.float32)


class FakePolicy:
    """Answers random SIDs that depend on the person and the version; can be told to fail or to be slow."""

    def __init__(self, version: str = "v00000001", *, slow_s: float = 0.0) -> None:
        self.version = version
        self.slow_s = slow_s
        self.failure: Exception | None = None
        self.answers: Callable[[Person, int], tuple[list[Codes], list[float]]] = self._random
        self.learnt: dict[int, Codes] = {}

    def beam(self, people: Sequence[Person], widths: Widths) -> tuple[np.ndarray, np.ndarray]:
        time.sleep(self.slow_s)
        if self.failure is not None:
            raise self.failure
        rows = [self.answers(person, widths[-1]) for person in people]
        return np.array([sids for sids, _ in rows], np.int64), np.array([scores for _, scores in rows], np.float32)

    def learn(self, item_id: int, sid: Codes) -> None:
        self.learnt[item_id] = sid

    def _random(self, person: Person, width: int) -> tuple[list[Codes], list[float]]:
        chance = random.Random(f"{self.version}:{person.user_id}:{len(person.context.history)}")
        flat = chance.sample(range(4**4), width)
        return [(n >> 6, n >> 4 & 3, n >> 2 & 3, n & 3) for n in flat], [-2.0 - 0.1 * n for n in range(width)]


class FakeFeatures:
    def __init__(self) -> None:
        self.known: dict[int, list[HistoryEntry]] = {}
        self.failure: Exception | None = None

    def histories(self, user_ids: Sequence[int]) -> list[list[HistoryEntry]]:
        if self.failure is not None:
            raise self.failure
        return [self.known.get(user_id, []) for user_id in user_ids]


class FakeCache:
    """The SID cache without Redis."""

    def __init__(self, videos: Sequence[CachedVideo]) -> None:
        self.stock = list(videos)
        self.gone = False

    def lookup(self, bundle: str, sids: Sequence[Codes]) -> list[Lookup]:
        if self.gone:
            raise CacheGone("switched off")
        return [self._one(sid) for sid in sids]

    def _one(self, sid: Codes) -> Lookup:
        exact = tuple(v for v in self.stock if v.sid == sid)
        return Lookup(sid, exact, () if exact else tuple(v for v in self.stock if v.sid[:2] == sid[:2]))


class FakeProducer:
    """Keeps what was produced; delivers at `poll`, with `error` if there is one."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, bytes]] = []
        self.error: str | None = None
        self.full = False
        self._reports: list[Callable[[Any, Any], None]] = []

    def produce(self, topic: str, value: bytes, key: bytes, *, on_delivery: Callable[[Any, Any], None]) -> None:
        if self.full:
            raise BufferError("Local: Queue full")
        self.sent.append((topic, key, value))
        self._reports.append(on_delivery)

    def poll(self, timeout: float) -> int:
        reports, self._reports = self._reports, []
        for report in reports:
            report(self.error, None)
        if not reports:
            time.sleep(min(timeout, 0.002))
        return len(reports)

    def flush(self, timeout: float) -> int:
        self.poll(0)
        return 0

    def topic(self, name: str) -> list[bytes]:
        return [value for topic, _, value in self.sent if topic == name]


class World:
    """A serving process on fakes."""

    def __init__(self, folder: Path, *, items: int = 80, deadline_ms: int = 150, published: bool = True) -> None:
        self.bundle = FakeBundle(items)
        stock = catalogue_videos(self.bundle, now_ms=1_000)
        self.codebook = Codebook(self.bundle.version, 2, CODES, Shelf(place, stock))
        self.cache = FakeCache(stock)
        self.features = FakeFeatures()
        self.policy = FakePolicy()
        self.current: str | None = self.policy.version if published else None
        self.metrics = Metrics()
        self.popularity = Popularity()
        self.slot = ModelSlot(lambda: self.current, self.load, widest=16)
        self.confirmed, self.lasting = FakeProducer(), FakeProducer()
        self.log = EventLog(self.confirmed, self.lasting, self.metrics, attribution_ms=7 * DAY_MS)
        self.live = LiveView(self.popularity, self.metrics, lambda made: None, lambda: None)
        engine = Engine(self.slot, self.features, self.cache, self.popularity, self.metrics, random.Random(5))
        rungs = ladder(16)
        self.agreement = Agreement(rungs, least=0.9, share=0.1, recent=lambda: engine.recent)
        widths = WidthPolicy(rungs, self.agreement.verdicts, self.agreement.shares, max_batch=8)
        self.metrics.ladder(widths, self.agreement)
        self.batcher: Batcher[Ask, Answered] = Batcher(engine.answer, widths=widths, spare=self.agreement.step)
        self.recommender = Recommender(
            self.batcher,
            lambda: self.codebook,
            self.popularity,
            self.log,
            self.metrics,
            deadline_ms=deadline_ms,
            log_impressions=True,
            chance=random.Random(7),
        )
        self.health = {"redis": True, "kafka": True}
        self.run = folder / "run"
        self.run.mkdir()
        self.videos = folder / "videos"
        self.videos.mkdir()
        cards = Cards(self.codebook, self.bundle.catalogue)
        stats = Stats(self.run, self.metrics, self.live, self.slot, lambda: self.codebook, self.health, time.time())
        self.parts = Parts(self.recommender, self.log, self.features, lambda: cards, stats, self.metrics, self.videos)
        self.slot.refresh()

    def load(self, version: str) -> Serving:
        if self.policy.version != version:
            self.policy = FakePolicy(version, slow_s=self.policy.slow_s)
        return Serving(self.policy, self.codebook, {"watermark_ts": 1_000, "samples_trained": 128})

    def start(self) -> World:
        self.batcher.start()
        self.log.start()
        return self

    def stop(self) -> None:
        self.batcher.stop()
        self.log.stop(0.1)
