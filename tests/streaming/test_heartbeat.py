"""Heartbeats reach every partition, and are what readers take for one."""

from __future__ import annotations

from typing import Any

from streaming import records
from streaming.heartbeat import CARRIER, Heartbeats
from streaming.inspector import verdict


class Recorder:
    """Takes what a producer would send."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int, bytes, int]] = []
        self.known: list[str] = []

    def list_topics(self, topic: str, timeout: float) -> None:
        self.known.append(topic)

    def produce(self, topic: str, body: bytes, partition: int, timestamp: int) -> None:
        self.sent.append((topic, partition, body, timestamp))


def sent(ts: int, record_time: int | None = None) -> tuple[Recorder, list[tuple[str, int, bytes, int]]]:
    recorder: Any = Recorder()
    Heartbeats(recorder, {"impressions": 2, "watches": 3}).send(ts, record_time)
    return recorder, recorder.sent


def test_every_partition_gets_one() -> None:
    _, beats = sent(5)
    assert [(topic, partition) for topic, partition, _, _ in beats] == [
        ("impressions", 0),
        ("impressions", 1),
        ("watches", 0),
        ("watches", 1),
        ("watches", 2),
    ]


def test_readers_take_them_for_heartbeats_of_the_carrier() -> None:
    for topic, _, body, _ in sent(1_650_000_000_000)[1]:
        beat = records.decode(topic, body)
        assert (beat.user_id, beat.ts, verdict(body)) == (CARRIER, 1_650_000_000_000, "heartbeat")


def test_a_replay_stamps_them_with_its_own_clock() -> None:
    assert {stamp for *_, stamp in sent(7, record_time=7)[1]} == {7}


def test_the_producer_knows_the_partitions_before_the_first_record() -> None:
    assert sent(1)[0].known == ["impressions", "watches"]
