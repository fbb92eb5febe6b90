"""Heartbeats: how a partition's time moves on although nothing happened in it.

Event time has one owner a run: the wall clock when live, the log's clock in a replay. The owner alone sends heartbeats, to every
partition of every event topic: an idle partition never holds the others back, one that is merely behind is never taken for idle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from confluent_kafka import Producer

from streaming import records, topics
from streaming.kafka import Client, consumer

EVERY_MS: Final = 250
LIVE_MS: Final = 3_600_000  # a record whose append time is this close to the wall clock is live traffic
CARRIER: Final = -1  # travels through the user views like a user, and so moves the time of their topics too


def partitions(client: Client) -> dict[str, int]:
    """Event topic → number of partitions, as the broker has them."""
    reader = consumer(client, "heartbeat-shape", [])
    try:
        known = reader.list_topics(timeout=10).topics
        return {topic: len(known[topic].partitions) for topic in topics.EVENT_TOPICS}
    finally:
        reader.close()


class Heartbeats:
    """Sends one heartbeat to every partition at a time.

    Args:
        producer: the clock owner's producer; heartbeats keep their order with its other records.
        shape: topic → number of partitions.
    """

    def __init__(self, producer: Producer, shape: Mapping[str, int]) -> None:
        self._producer, self._shape = producer, dict(shape)
        # While a producer does not know a topic's partitions, keyed records wait and ones to a named partition overtake them.
        for topic in shape:
            producer.list_topics(topic, timeout=10)
        self._encode: Callable[[object], bytes] = msgspec.json.Encoder().encode

    def send(self, ts: int, record_time: int | None = None) -> None:
        """Say everywhere that the clock stands at `ts`; `record_time` is Kafka's own (default: now), both in milliseconds UTC."""
        for topic, count in self._shape.items():
            for partition in range(count):
                beat = records.Heartbeat(event_id=f"heartbeat-{topic}-{partition}-{ts}", user_id=CARRIER, ts=ts)
                self._producer.produce(topic, self._encode(beat), partition=partition, timestamp=record_time or 0)
