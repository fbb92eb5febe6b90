"""Reading a topic to its end, with a consumer that is told what comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streaming.kafka import until_end


class Told:
    """One message or event of a partition."""

    def __init__(self, partition: int, value: bytes | None = None, offset: int = 0, error: KafkaError | None = None) -> None:
        self.place, self.body, self.at, self.fault = partition, value, offset, error

    def topic(self) -> str:
        return "t"

    def partition(self) -> int:
        return self.place

    def offset(self) -> int:
        return self.at

    def value(self) -> bytes | None:
        return self.body

    def error(self) -> KafkaError | None:
        return self.fault


class Script:
    """A consumer that gives what it was told, batch by batch, of partitions that held three records when it began."""

    def __init__(self, *batches: Sequence[Told]) -> None:
        self.batches = list(batches)

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        return 0, 3

    def assign(self, places: list[TopicPartition]) -> None:
        self.assigned = places

    def consume(self, count: int, wait_s: float) -> Sequence[Told]:
        return self.batches.pop(0)


def end(partition: int) -> Told:
    return Told(partition, error=KafkaError(KafkaError._PARTITION_EOF))


PLACES = [TopicPartition("t", 0, 0), TopicPartition("t", 1, 0)]


def bodies(script: Any) -> list[bytes | None]:
    return [message.value() for message in until_end(script, PLACES)]


def test_a_partition_that_ends_again_and_again_does_not_stand_for_another() -> None:
    script = Script([Told(0, b"a"), end(0), Told(0, b"b"), end(0), end(0)], [], [Told(1, b"c"), end(1)], [Told(1, b"never read")])
    assert bodies(script) == [b"a", b"b", b"c"]


def test_a_partition_that_never_pauses_ends_where_it_ended_at_first() -> None:
    grown = [Told(partition, b"%d" % offset, offset) for partition in (0, 1) for offset in range(3)]
    assert bodies(Script(grown, [Told(0, b"never read", 3)])) == [b"0", b"1", b"2"] * 2


def test_a_fault_that_passes_ends_nothing_and_one_that_does_not_is_raised() -> None:
    passing = Told(0, error=KafkaError(KafkaError._TRANSPORT))
    assert bodies(Script([passing, end(0), end(1)])) == []
    with pytest.raises(KafkaException):
        bodies(Script([Told(0, error=KafkaError(KafkaError._FATAL, "gone", fatal=True))]))
