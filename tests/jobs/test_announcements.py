"""Announced videos are found at once, whatever else is in the topic."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
import pytest
from confluent_kafka import Producer

from jobs.announcements import Announcements
from streaming import topics
from streaming.records import Video


@pytest.fixture
def log() -> Iterator[Producer]:
    """A producer that carries librdkafka's mock broker: enough for a topic without transactions."""
    yield Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1})


def announce(log: Producer, sid: list[int]) -> Video:
    video = Video(
        sid=sid, bundle_version="b", uri="/videos/v.mp4", item_id=-1, duration_ms=6000, scores={}, generator="workflow/1", origin_ts=1
    )
    log.produce(topics.VIDEOS, msgspec.json.encode(video))
    assert log.flush(10) == 0
    return video


def test_a_video_is_found_as_soon_as_it_is_announced_and_not_before(log: Producer) -> None:
    brokers = log.list_topics(topics.VIDEOS, timeout=10).brokers.values()
    announced = Announcements({"bootstrap.servers": ",".join(f"{broker.host}:{broker.port}" for broker in brokers)})
    assert announced.find("b", [1, 2]) is None
    log.produce(topics.VIDEOS, b"\xff not a video")
    for sid in ([1, 2], [3, 4]):
        video = announce(log, sid)
        began = time.monotonic()
        assert announced.find("b", sid) == video
        assert announced.find("another", sid) is None
        assert time.monotonic() - began < 5  # a tenth of a second, on a machine that is not busy
