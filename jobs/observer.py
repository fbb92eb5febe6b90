"""What a bystander sees of a running loop: freshness in wall-clock time, memory, served versions.

All three freshness figures start at *completion*: the moment at which the record that lets the result be final had been appended,
as this observer received it. An event is complete for the features when the features' watermark has passed it, an impression is complete
for the samples when the label window's has; watermarks are recomputed here from the raw topics, so a replay at any speed is measured
by the same rule as live traffic.

* event → feature: until the interaction is in the user's history as read from Redis (sampled users);
* event → sample: until the initial sample is visible to a `read_committed` consumer;
* event → served model: until the server answers with a version whose manifest's offsets include that sample.
"""

from __future__ import annotations

import bisect
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import psutil
from confluent_kafka import Consumer, Message, TopicPartition

from jobs.drain import KnownTime
from model.store import ModelStore, StoreError
from streaming import topics
from streaming.kafka import consumer

PERCENTILES = (50, 95, 99)
PROBES = 8  # users whose history is watched at the same time
HistoryOf = Callable[[int], Sequence[Any]]


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p95 and p99 by the nearest rank; None where there is nothing to rank."""
    ranked = sorted(values)
    return {f"p{p}": round(ranked[min(len(ranked) - 1, -(-p * len(ranked) // 100) - 1)], 1) if ranked else None for p in PERCENTILES}


class EventTime(msgspec.Struct):
    """The part of an input record that moves time."""

    ts: int = 0
    user_id: int = -1
    schema: str = ""
    event_id: str = ""
    impression_id: str = ""


@dataclass
class Clock:
    """The watermark of the input topics (before any delay is subtracted) and when each of its steps was reached.

    The watermark of several partitions is their minimum, and there is none until each of them has spoken.
    """

    partitions: int
    reached: dict[tuple[str, int], int] = field(default_factory=dict)
    marks: list[int] = field(default_factory=list)
    walls: list[float] = field(default_factory=list)

    def advance(self, partition: tuple[str, int], mark: int, wall: float) -> None:
        if mark <= self.reached.get(partition, -1):
            return
        self.reached[partition] = mark
        if len(self.reached) < self.partitions:
            return
        low = min(self.reached.values())
        if not self.marks or low > self.marks[-1]:
            self.marks.append(low)
            self.walls.append(wall)

    def when(self, mark: int) -> float | None:
        """Wall-clock seconds at which the watermark reached `mark`; None = not yet."""
        index = bisect.bisect_left(self.marks, mark)
        return self.walls[index] if index < len(self.marks) else None


@dataclass(frozen=True)
class Freshness:
    """Milliseconds from completion to effect."""

    event_to_feature: list[float]
    event_to_sample: list[float]
    event_to_served_model: list[float]

    def report(self) -> dict[str, dict[str, float | None]]:
        return {name: percentiles(getattr(self, name)) for name in ("event_to_feature", "event_to_sample", "event_to_served_model")}


class Observer:
    """Threads that watch a running system; `close` ends them and `freshness` sums up.

    Args:
        client: librdkafka settings.
        history: reads a user's history as serving does, newest first, entries with `ts`.
        http: address of the server, None where none runs.
        store: the model store, for the offsets in manifests.
        label_delay_ms: label window plus disorder of the samples job.
        feature_delay_ms: disorder of the features job.
        supervised: pid whose process tree is the system, for memory.
    """

    def __init__(
        self,
        client: Mapping[str, Any],
        history: HistoryOf,
        http: str | None,
        store: ModelStore,
        *,
        label_delay_ms: int,
        feature_delay_ms: int,
        supervised: int | None,
    ) -> None:
        self._client, self._history, self._http, self._store = client, history, http, store
        self._label_delay, self._feature_delay, self._supervised = label_delay_ms, feature_delay_ms, supervised
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._samples: list[tuple[int, int, int, float]] = []  # partition, offset, impression's ts, wall of receipt
        self._unserved: dict[int, deque[tuple[int, int, float]]] = {}  # partition → offset, impression's ts, wall of receipt
        self._served: list[tuple[int, float]] = []  # impression's ts, wall
        self._candidates: deque[tuple[int, int, float]] = deque(maxlen=256)  # user, label's ts, wall of receipt
        self._features: list[tuple[int, float, float]] = []  # known-at time, wall of receipt, wall of reading
        self.known = KnownTime(feature_delay_ms)
        self.peak_bytes = 0
        self.initial_samples = 0
        self.last_sample = 0.0  # wall-clock seconds at which the last sample of any kind was received
        self.impressions = 0
        reader = consumer(client, "observer-shape", [])
        self.clock = Clock(sum(len(reader.list_topics(t, timeout=10).topics[t].partitions) for t in topics.EVENT_TOPICS))
        reader.close()
        work = (self._watch_events, self._watch_samples, self._watch_features, self._watch_versions, self._watch_memory)
        self._threads = [threading.Thread(target=target, name=target.__name__, daemon=True) for target in work]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=10)

    def _tail(self, names: Sequence[str], handle: Callable[[Message, float], None]) -> None:
        reader: Consumer = consumer(self._client, f"observer-{names[0]}", [])
        parts = [TopicPartition(n, p, 0) for n in names for p in reader.list_topics(n, timeout=10).topics[n].partitions]
        reader.assign(parts)
        while not self._stop.is_set():
            for message in reader.consume(2000, 0.2):
                if message.error() is None:
                    handle(message, time.time())
        reader.close()

    def _watch_events(self) -> None:
        decoder = msgspec.json.Decoder(EventTime)

        def handle(message: Message, wall: float) -> None:
            try:
                event = decoder.decode(message.value() or b"{}")
            except (msgspec.DecodeError, UnicodeDecodeError):
                return
            appended = message.timestamp()[1]
            place = (message.topic() or "", message.partition() or 0)
            self.clock.advance(place, min(event.ts, appended), wall)
            if event.impression_id:
                self.known.add(place[0], event.event_id, event.impression_id, event.ts, appended)
            if place[0] == topics.IMPRESSIONS and event.schema == "impression/1":
                self.impressions += 1
            elif place[0] == topics.WATCHES and event.schema == "watch/1":
                self._candidates.append((event.user_id, event.ts, wall))

        self._tail(topics.EVENT_TOPICS, handle)

    def _watch_samples(self) -> None:
        class Sample(msgspec.Struct):
            ts: int
            kind: str

        decoder = msgspec.json.Decoder(Sample)

        def handle(message: Message, wall: float) -> None:
            sample = decoder.decode(message.value() or b"{}")
            self.last_sample = wall
            if sample.kind != "initial":
                return
            partition, offset = message.partition() or 0, message.offset() or 0
            with self._lock:
                self.initial_samples += 1
                self._samples.append((partition, offset, sample.ts, wall))
                self._unserved.setdefault(partition, deque()).append((offset, sample.ts, wall))

        self._tail([topics.SAMPLES], handle)

    def _watch_features(self) -> None:
        open_probes: list[tuple[int, int, float]] = []
        while not self._stop.wait(0.05):
            while self._candidates and len(open_probes) < PROBES:
                open_probes.append(self._candidates.pop())
            self._candidates.clear()
            still: list[tuple[int, int, float]] = []
            for user, ts, wall in open_probes:
                try:
                    seen = any(entry.ts == ts for entry in self._history(user))
                except Exception:  # Redis may be gone for a moment: the probe waits, and its wait counts
                    seen = False
                if seen:
                    self._features.append((ts, wall, time.time()))
                elif time.time() - wall < 60:
                    still.append((user, ts, wall))
                else:
                    self._features.append((ts, wall, float("inf")))
            open_probes = still

    def _watch_versions(self) -> None:
        if self._http is None:
            return
        current = ""
        with httpx.Client(base_url=self._http, timeout=2) as http:
            while not self._stop.wait(0.25):
                try:
                    version = http.get("/readyz").json().get("model_version") or ""
                    if version == current:
                        continue
                    manifest = json.loads(self._store.read(f"versions/{version}/manifest.json"))
                except (httpx.HTTPError, ValueError, StoreError):
                    continue
                current, wall = version, time.time()
                self._mark_served(manifest.get("offsets") or {}, wall)

    def _mark_served(self, offsets: Mapping[str, Any], wall: float) -> None:
        by_partition = offsets.get(topics.SAMPLES, offsets)
        with self._lock:
            for partition, waiting in self._unserved.items():
                limit = int(by_partition.get(str(partition), 0))
                while waiting and waiting[0][0] < limit:
                    _, ts, _ = waiting.popleft()
                    self._served.append((ts, wall))

    def _watch_memory(self) -> None:
        if self._supervised is None:
            return
        while not self._stop.wait(5):
            self.peak_bytes = max(self.peak_bytes, resident_bytes(self._supervised))

    def freshness(self) -> Freshness:
        with self._lock:
            samples, served, features = list(self._samples), list(self._served), list(self._features)

        def since(mark: int, wall: float) -> list[float]:
            complete = self.clock.when(mark)
            return [] if complete is None else [max(0.0, wall - complete) * 1000]

        return Freshness(
            [ms for ts, wall, read in features for ms in since(ts + self._feature_delay, read)],
            [ms for _, _, ts, wall in samples for ms in since(ts + self._label_delay, wall)],
            [ms for ts, wall in served for ms in since(ts + self._label_delay, wall)],
        )


def resident_bytes(root: int) -> int:
    """Proportional set size of a process and all its descendants (shared pages counted once)."""
    total = 0
    try:
        processes = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total
