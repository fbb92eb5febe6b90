"""Kafka clients as this system uses them: idempotent producers, committed reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, Producer

Client = Mapping[str, Any]  # librdkafka settings: `bootstrap.servers` and whatever the security of the cluster needs


def producer(client: Client, **settings: Any) -> Producer:
    """An idempotent producer; the queue is large enough for a replay at full speed."""
    return Producer(
        {
            **client,
            "enable.idempotence": True,
            "linger.ms": 5,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 500_000,
            **{key.replace("_", "."): value for key, value in settings.items()},
        }
    )


# A broker answers a reader when it has this much for it, or when this long has passed: at a hundred events a second, answers to each of
# ten readers for every single one were a third of a core.
GATHERED_BYTES = 64 * 1024
GATHERED_MS = 100


def consumer(client: Client, group: str, topics: Sequence[str], *, from_start: bool = True, **settings: Any) -> Consumer:
    """A consumer that sees committed records only, GATHERED_MS late at most, and never commits by itself."""
    reader = Consumer(
        {
            **client,
            "group.id": group,
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "fetch.min.bytes": GATHERED_BYTES,
            "fetch.wait.max.ms": GATHERED_MS,
            "auto.offset.reset": "earliest" if from_start else "latest",
            **{key.replace("_", "."): value for key, value in settings.items()},
        }
    )
    if topics:
        reader.subscribe(list(topics))
    return reader
