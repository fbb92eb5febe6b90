"""The online writer as a process: `features.<view>` from Kafka into Redis, resumed from the offsets that lie beside the values."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from redis import Redis, RedisError

from features.layout import ViewLayout, layout_of
from features.repository import PROJECT
from features.view import View
from features.writer import FeatureWriter, Row, RowError, Written, decode
from jobs.process import Endpoints, Stop, ready, write_json
from streaming import kafka, topics

NAME = "writer"
GROUP = "sidstream-features-writer"
BATCH = 2000  # rows a trip to Redis
POLL_S = 0.02  # how long a row may wait for company
REPORT_S = 1.0
AUDIT_S = 5.0  # how often the offsets in Redis are compared with ours
LIVE_MS = 3_600_000  # ages beyond this are those of a replayed log, not of the writer
RECENT = 20_000  # rows that the percentiles look back on

log = logging.getLogger("sidstream.writer")


def percentiles(ages: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the largest, in the unit given; empty for none."""
    ordered = sorted(ages)
    if not ordered:
        return {}
    at = {f"p{p}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 95, 99)}
    return {**at, "max": ordered[-1]}


@dataclass
class Tally:
    """What the writer did since it started; ages are from `event_timestamp` to the wall clock after the write, in ms."""

    written: Written = field(default_factory=Written)
    faulty: int = 0
    by_view: Counter[str] = field(default_factory=Counter)
    newest: dict[str, int] = field(default_factory=dict)
    ages: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def add(self, batches: dict[str, list[Row]], written: Written, wall_ms: float) -> None:
        self.written += written
        for view, rows in batches.items():
            if not rows:
                continue
            self.by_view[view] += len(rows)
            self.newest[view] = max(self.newest.get(view, 0), max(row.event_timestamp for row in rows))
            self.ages.extend(age for age in (wall_ms - row.event_timestamp for row in rows) if abs(age) < LIVE_MS)

    def report(self, lag: dict[str, int]) -> dict[str, Any]:
        done = self.written
        return {
            "at": time.time(),
            "rows": done.rows,
            "set": done.set,
            "stale": done.stale,
            "replaced": done.replaced,
            "faulty": self.faulty,
            "rows_by_view": dict(self.by_view),
            "newest_event_timestamp": self.newest,
            "lag": lag,
            "event_to_written_ms": {"rows": len(self.ages), **percentiles(self.ages)},
        }


def place(topic: str, partition: int) -> str:
    return f"{topic}:{partition}"


class WriterProcess:
    """Reads, writes, remembers. Redis away: the batch waits and is written again. Redis emptied: the topics are read again."""

    def __init__(self, ends: Endpoints, views: Sequence[View], stop: Stop, freshness: Path | None = None) -> None:
        self._ends, self._stop, self._freshness = ends, stop, freshness
        self._layouts: dict[str, ViewLayout] = {topics.feature_topic(view.name): layout_of(view) for view in views}
        self._redis = Redis.from_url(ends.redis_url, socket_timeout=5, socket_connect_timeout=5)
        self._positions: dict[str, int] = {}  # next offset by place, as written
        self._tally = Tally()
        self._ready = False
        self._due = self._audit_due = 0.0

    def run(self) -> None:
        writer = self._patiently(lambda: FeatureWriter(self._redis, PROJECT, list(self._layouts.values())))
        if writer is None:
            return
        # Partitions are assigned by hand: a group would make a writer wait for its killed predecessor to time out. Two writers at once
        # do no harm, they write the same values.
        consumer = kafka.consumer(self._ends.kafka, GROUP, [])
        try:
            while not self._stop.is_set():
                self._step(consumer, writer)
                self._report(consumer, writer)
            self._report(consumer, writer, final=True)
        finally:
            consumer.close()

    def _patiently(self, action: Any) -> Any:
        """The result of an action on Redis, tried until it answers; None when stopped before."""
        pause = 0.1
        while not self._stop.is_set():
            try:
                return action()
            except RedisError as error:
                log.warning('event=redis_away retry_s=%.1f error="%s"', pause, error)
                self._stop.wait(pause)
                pause = min(2.0, pause * 2)
        return None

    def _assign(self, consumer: Consumer, writer: FeatureWriter) -> None:
        """Take the partitions that are not read yet, from where the values in Redis end; from the beginning where there are none."""
        try:
            known = consumer.list_topics(timeout=10).topics
        except KafkaException as error:
            log.warning('event=kafka_away error="%s"', error.args[0].str())
            return
        places = [(topic, partition) for topic in self._layouts if topic in known for partition in known[topic].partitions]
        new = [TopicPartition(topic, partition) for topic, partition in places if place(topic, partition) not in self._positions]
        if not new:
            return
        stored = self._patiently(writer.offsets)
        if stored is None:
            return
        for partition in new:
            partition.offset = stored.get(place(partition.topic, partition.partition), 0)
        consumer.incremental_assign(new)
        self._positions |= {place(p.topic, p.partition): p.offset for p in new}
        log.info("event=assigned offsets=%s", self._positions)
        if not self._ready and {topic for topic, _ in places} == set(self._layouts):
            self._ready = True
            ready(self._ends.home, NAME, offsets=self._positions)

    def _step(self, consumer: Consumer, writer: FeatureWriter) -> None:
        messages = consumer.consume(BATCH, POLL_S)
        if not messages:
            return
        batches, positions = self._decode(messages)
        written = self._patiently(lambda: writer.write(batches, positions))
        if written is not None:
            self._positions |= positions
            self._tally.add(batches, written, time.time() * 1000)

    def _decode(self, messages: Sequence[Message]) -> tuple[dict[str, list[Row]], dict[str, int]]:
        """Rows by view, and the next offsets once they are written."""
        batches: dict[str, list[Row]] = {layout.view: [] for layout in self._layouts.values()}
        positions: dict[str, int] = {}
        for message in messages:
            error = message.error()
            if error is not None:
                if error.fatal() or error.code() == KafkaError._FATAL:
                    raise KafkaException(error)
                if error.code() != KafkaError._PARTITION_EOF:
                    log.warning('event=kafka_error error="%s"', error.str())
                continue
            topic, partition, offset, body = message.topic(), message.partition(), message.offset(), message.value()
            assert topic is not None and partition is not None and offset is not None
            positions[place(topic, partition)] = offset + 1
            layout = self._layouts[topic]
            try:
                row = decode(layout, body or b"")
            except RowError as fault:
                self._tally.faulty += 1
                log.warning('event=faulty_row partition=%d offset=%d reason="%s"', partition, offset, fault)
                continue
            if row is not None:
                batches[layout.view].append(row)
        return batches, positions

    def _report(self, consumer: Consumer, writer: FeatureWriter, final: bool = False) -> None:
        now = time.monotonic()
        if now >= self._audit_due:
            self._audit_due = now + AUDIT_S
            self._assign(consumer, writer)
            self._reread_what_redis_lost(consumer, writer)
        if now < self._due and not final:
            return
        self._due = now + REPORT_S
        report = self._tally.report(self._lag(consumer))
        write_json(self._ends.home / "run" / "writer.json", report)
        if self._freshness is not None:
            write_json(self._freshness, report["event_to_written_ms"])
        self._inform_lag_tools(consumer)

    def _lag(self, consumer: Consumer) -> dict[str, int]:
        """Messages not written yet, by partition, as of the last fetch."""
        lag = {}
        for where, position in self._positions.items():
            topic, _, partition = where.rpartition(":")
            _, high = consumer.get_watermark_offsets(TopicPartition(topic, int(partition)), cached=True)
            lag[where] = max(0, high - position)
        return lag

    def _reread_what_redis_lost(self, consumer: Consumer, writer: FeatureWriter) -> None:
        """Go back where Redis knows less than was written: it was emptied, or lost its last second with its machine."""
        if not self._positions:
            return
        try:
            stored = writer.offsets()
            lost = {where: stored.get(where, 0) for where, position in self._positions.items() if stored.get(where, 0) < position}
            if lost:
                writer.prepare()
        except RedisError:
            return
        for where, kept in lost.items():
            topic, _, partition = where.rpartition(":")
            log.warning("event=redis_lost_values place=%s written=%d kept=%d", where, self._positions[where], kept)
            consumer.seek(TopicPartition(topic, int(partition), kept))
            self._positions[where] = kept

    def _inform_lag_tools(self, consumer: Consumer) -> None:
        """Commit to Kafka what is written; nothing reads it back but tools."""
        offsets = [
            TopicPartition(topic, int(partition), position)
            for (topic, _, partition), position in ((where.rpartition(":"), position) for where, position in self._positions.items())
        ]
        if offsets:
            try:
                consumer.commit(offsets=offsets, asynchronous=True)
            except KafkaException as error:
                log.debug("event=commit_refused error=%s", error)
