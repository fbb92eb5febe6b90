"""What passes through Kafka now, as serving needs it: popularity, new videos, and rates for the page. Fed by one listener."""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from serving.cache import Codes
from serving.degrade import Popularity
from serving.metrics import Metrics
from streaming import records, topics

log = logging.getLogger(f"sidstream.{__name__}")

LISTENED: Final = (
    *topics.EVENT_TOPICS,
    topics.SAMPLES,
    topics.GENERATION_REQUESTS,
    topics.VIDEOS,
    topics.MODEL_PUBLISHED,
    topics.DEAD_LETTERS,
)
QUEUE_KEPT: Final = 20_000
LONGEST_LAG_MS: Final = 3_600_000  # more is no lag: a replayed log's times are not those of Kafka's records


class _SampleTimes(msgspec.Struct):
    kind: str
    ready_ts: int


_sample_times = msgspec.json.Decoder(_SampleTimes)
_request = msgspec.json.Decoder(records.GenerationRequest)
_video = msgspec.json.Decoder(records.Video)


@dataclass
class Wish:
    """A SID that waits for its video: how often it was asked, since when (ms UTC)."""

    demand: int
    reason: str
    since: int


@dataclass
class LiveView:
    """The listener's state. `on_video` and `on_model` are called from the listener's thread."""

    popularity: Popularity
    metrics: Metrics
    on_video: Callable[[records.Video], None]
    on_model: Callable[[], None]
    wishes: OrderedDict[Codes, Wish] = field(default_factory=OrderedDict)
    newest: deque[tuple[records.Video, int]] = field(default_factory=lambda: deque(maxlen=60))
    users: OrderedDict[int, None] = field(default_factory=OrderedDict)
    sample_lag_ms: deque[int] = field(default_factory=lambda: deque(maxlen=500))
    seen: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def observe(self, topic: str, body: bytes, appended_ms: int, now_ms: int) -> None:
        """Take in one record; one that cannot be read counts as `faulty` and changes nothing (the inspector dead-letters it).

        Args:
            appended_ms: the record's time in Kafka, which in a replay is the log's time.
            now_ms: the wall clock, which rates and popularity go by.
        """
        try:
            self._observe(topic, body, appended_ms, now_ms)
        except (records.RecordError, msgspec.DecodeError):
            self._count("faulty", now_ms)

    def most_wanted(self, count: int) -> list[dict[str, Any]]:
        """The SIDs that wait, most wanted first."""
        with self._lock:
            best = sorted(self.wishes.items(), key=lambda one: (-one[1].demand, one[1].since))[:count]
        return [{"sid": list(sid), "demand": wish.demand, "reason": wish.reason, "since": wish.since} for sid, wish in best]

    def _observe(self, topic: str, body: bytes, appended_ms: int, now_ms: int) -> None:
        if topic in topics.EVENT_SCHEMAS:
            event = records.decode(topic, body)
            if isinstance(event, records.Event):
                self.popularity.observe(event, now_ms / 1000)
                self.users[event.user_id] = None
                self.users.move_to_end(event.user_id)
                if len(self.users) > 500:
                    self.users.popitem(last=False)
                self._count(topic, now_ms)
        elif topic == topics.SAMPLES:
            sample = _sample_times.decode(body)
            self._count("samples" if sample.kind == "initial" else "corrections", now_ms)
            lag_ms = appended_ms - sample.ready_ts
            if sample.kind == "initial" and 0 <= lag_ms < LONGEST_LAG_MS:
                self.sample_lag_ms.append(lag_ms)
        elif topic == topics.GENERATION_REQUESTS:
            request = _request.decode(body)
            self._wish(request, now_ms)
            self._count(topic, now_ms)
        elif topic == topics.VIDEOS:
            video = _video.decode(body)
            with self._lock:
                self.wishes.pop(tuple(video.sid), None)
                if all(known.item_id != video.item_id for known, _ in self.newest):
                    self.newest.appendleft((video, now_ms))
            self._count(topic, now_ms)
            self.on_video(video)
        elif topic == topics.MODEL_PUBLISHED:
            self.on_model()
            self._count(topic, now_ms)
        else:
            self._count(topic, now_ms)

    def _wish(self, request: records.GenerationRequest, now_ms: int) -> None:
        with self._lock:
            wish = self.wishes.setdefault(tuple(request.sid), Wish(0, request.reason, now_ms))
            wish.demand += max(1, request.demand)
            wish.reason = request.reason
            if len(self.wishes) > QUEUE_KEPT:
                self.wishes.popitem(last=False)

    def _count(self, name: str, now_ms: int) -> None:
        self.seen[name] += 1
        self.metrics.tick(now_ms / 1000, **{f"in_{name}": 1})
