"""Whether the features have caught up with the events: what a bounded run waits for before it looks at their values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition
from redis import RedisError

from streaming import topics
from streaming.kafka import consumer


@dataclass
class KnownTime:
    """The newest moment, in ms, at which an event became known that the features tell of: each event once, a label with its impression.

    Written again from what `docs/features.md` promises: an event is known at `max(its time, its append minus the disorder)`.
    """

    disorder_ms: int
    newest: int = 0
    _seen: set[str] = field(default_factory=set)
    _shown: set[str] = field(default_factory=set)
    _waiting: dict[str, int] = field(default_factory=dict)

    def add(self, topic: str, event_id: str, impression_id: str, ts: int, appended: int) -> None:
        if event_id in self._seen:
            return
        self._seen.add(event_id)
        known = max(ts, appended - self.disorder_ms)
        if topic == topics.IMPRESSIONS:
            self._shown.add(impression_id)
            known = max(known, self._waiting.pop(impression_id, 0))
        elif impression_id not in self._shown:
            self._waiting[impression_id] = max(known, self._waiting.get(impression_id, 0))
            return
        self.newest = max(self.newest, known)


class FeatureDrain:
    """Asks the feature topics how far the job is, and the online store how far the writer is.

    Args:
        client: librdkafka settings.
        views: names of the feature views.
        written: the next offset to write online, by `topic:partition`.
    """

    def __init__(self, client: Mapping[str, Any], views: Sequence[str], written: Callable[[], Mapping[str, int]]) -> None:
        self._reader: Consumer = consumer(client, "feature-drain", [], from_start=True)
        self._topics = [topics.feature_topic(view) for view in views]
        self._written = written

    def reached(self, moment_ms: int) -> bool:
        """Whether every view has rows as of `moment_ms` or later, and all rows are online; False while Kafka or Redis does not answer."""
        try:
            ends = {topic: self._ends(topic) for topic in self._topics}
            if any(self._newest(topic, of) < moment_ms for topic, of in ends.items()):
                return False
            written = self._written()
        except (KafkaException, RedisError):
            return False
        return all(written.get(f"{topic}:{partition}", 0) >= end for topic, of in ends.items() for partition, end in of.items())

    def close(self) -> None:
        self._reader.close()

    def _ends(self, topic: str) -> dict[int, int]:
        """Where each partition ends, by partition."""
        partitions = self._reader.list_topics(topic, timeout=5).topics[topic].partitions
        return {number: self._reader.get_watermark_offsets(TopicPartition(topic, number), timeout=5)[1] for number in partitions}

    def _newest(self, topic: str, ends: Mapping[int, int]) -> int:
        """Newest `event_timestamp` among the last rows of the partitions; 0 where there are none."""
        newest = 0
        for partition, end in ends.items():
            if not end:
                continue
            self._reader.assign([TopicPartition(topic, partition, end - 1)])
            for message in self._reader.consume(1, 2.0):
                if message.error() is None:
                    newest = max(newest, int(json.loads(message.value() or b"{}").get("event_timestamp", 0)))
        return newest
