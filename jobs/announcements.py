"""Which videos the `videos` topic has announced: so that a video that was made just before its worker died is not announced twice."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from streaming import topics
from streaming.kafka import consumer
from streaming.records import Video

TIMEOUT_S: Final = 10.0


class Announcements:
    """Every announced video by bundle and SID, read to the end of the topic whenever one is looked for.

    Raises (all methods):
        KafkaException, TimeoutError: the broker is away or late.
    """

    def __init__(self, client: Mapping[str, Any]) -> None:
        self._reader: Consumer = consumer(client, f"announcements-{uuid.uuid4()}", [], enable_partition_eof=True)
        self._admin = AdminClient(dict(client))
        self._videos: dict[tuple[str, tuple[int, ...]], Video] = {}
        self._next: dict[int, int] = {}
        self._decoder = msgspec.json.Decoder(Video)

    def find(self, bundle_version: str, sid: Sequence[int]) -> Video | None:
        """The announcement of a SID's video, if there is one by now."""
        self._read_to_end()
        return self._videos.get((bundle_version, tuple(sid)))

    def _read_to_end(self) -> None:
        if not self._next:
            partitions = self._admin.list_topics(topics.VIDEOS, timeout=TIMEOUT_S).topics[topics.VIDEOS].partitions
            self._next = self._offsets(partitions, OffsetSpec.earliest())
            self._reader.assign([TopicPartition(topics.VIDEOS, partition, offset) for partition, offset in self._next.items()])
        ends = self._offsets(self._next, OffsetSpec.latest())
        behind = {partition for partition, offset in self._next.items() if offset < ends[partition]}
        while behind:
            message = self._reader.poll(TIMEOUT_S)  # not consume(): that waits for its whole number of messages
            if message is None:
                raise TimeoutError(f"the broker did not send the {topics.VIDEOS} topic within {TIMEOUT_S:.0f} s")
            error = message.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                partition = int(message.partition() or 0)
                self._next[partition] = int(message.offset() or 0)
                if self._next[partition] >= ends[partition]:  # else it tells of an end that was reached before
                    behind.discard(partition)
                continue
            if error is not None:
                raise KafkaException(error)
            try:
                video = self._decoder.decode(message.value() or b"")
            except msgspec.DecodeError:
                continue  # somebody else's record says nothing about ours
            self._videos[(video.bundle_version, tuple(video.sid))] = video

    def _offsets(self, partitions: Iterable[int], spec: OffsetSpec) -> dict[int, int]:
        """Where partitions begin or end; not asked by the reader, whose connection waits half a second for what does not come."""
        asked = self._admin.list_offsets({TopicPartition(topics.VIDEOS, partition): spec for partition in partitions})
        return {place.partition: int(future.result(TIMEOUT_S).offset) for place, future in asked.items()}
