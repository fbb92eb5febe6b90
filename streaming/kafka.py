"""Kafka clients as this system uses them: idempotent producers, committed reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

READ_AT_ONCE: Final = 5_000

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


def until_end(reader: Consumer, places: Sequence[TopicPartition]) -> Iterator[Message]:
    """Records from `places` to where each partition ends now, and some that come meanwhile; of a consumer with `enable_partition_eof`.

    A partition that grows all the time may never be said to end, and one that pauses ends several times.

    Raises:
        KafkaException: the connection cannot be used.
    """
    unread = {(place.topic, place.partition): reader.get_watermark_offsets(place, timeout=10)[1] for place in places}
    reader.assign(list(places))
    while unread:
        for message in reader.consume(READ_AT_ONCE, 1.0):
            error, place = message.error(), (message.topic() or "", message.partition() or 0)
            if error is None:
                yield message
                if (message.offset() or 0) + 1 >= unread.get(place, 0):
                    unread.pop(place, None)
            elif error.code() == KafkaError._PARTITION_EOF:  # the last records may be marks of transactions, which nobody is given
                unread.pop(place, None)
            elif error.fatal():
                raise KafkaException(error)
