"""The embedded broker and Redis are the real things."""

from __future__ import annotations

import time
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from redis import Redis

from streaming import kafka, topics

pytestmark = pytest.mark.integration
OLD = 1_650_000_000_000  # ms: April 2022, the time of the replayed log


def create(client: dict[str, Any], topic: NewTopic) -> None:
    admin = AdminClient(client)
    for done in admin.create_topics([topic]).values():
        done.result()


def test_broker_keeps_records_whose_time_is_years_ago(broker: dict[str, Any]) -> None:
    create(broker, NewTopic("services.old", 1, 1, config={"segment.ms": "100"}))
    producer = kafka.producer(broker)
    for n in range(10):
        producer.produce("services.old", str(n), timestamp=OLD + n * 86_400_000)
        producer.flush()
    reader = kafka.consumer(broker, "services.old", ["services.old"])
    try:
        times = [message.timestamp()[1] for message in reader.consume(10, 10)]
        assert times == [OLD + n * 86_400_000 for n in range(10)]
        assert reader.get_watermark_offsets(TopicPartition("services.old", 0)) == (0, 10)
    finally:
        reader.close()


def test_broker_shows_a_transaction_only_when_it_is_committed(broker: dict[str, Any]) -> None:
    create(broker, NewTopic("services.transactions", 1, 1))
    producer = kafka.producer(broker, transactional_id="services", transaction_timeout_ms=3_600_000)
    producer.init_transactions(30)
    for body, commit in (("aborted", False), ("committed", True)):
        producer.begin_transaction()
        producer.produce("services.transactions", body)
        producer.flush()
        if commit:
            producer.commit_transaction(10)
        else:
            producer.abort_transaction(10)
    reader = kafka.consumer(broker, "services.transactions", ["services.transactions"])
    try:
        assert [message.value() for message in reader.consume(1, 10)] == [b"committed"]
    finally:
        reader.close()


def test_redis_answers(redis_url: str) -> None:
    with Redis.from_url(redis_url) as client:
        client.set("sidstream:test", "1")
        assert client.get("sidstream:test") == b"1"


def test_live_topics_are_stamped_by_the_broker_so_that_no_record_is_older_than_the_one_before(broker: dict[str, Any]) -> None:
    create(broker, NewTopic("services.live", 1, 1, config={"message.timestamp.type": "CreateTime"}))
    topics.stamp_on_append(broker, ["services.live"])
    producer, now = kafka.producer(broker), time.time_ns() // 1_000_000
    for held_back_ms in (0, 5_000, 0):
        producer.produce("services.live", b"{}", timestamp=now - held_back_ms)
        producer.flush()
    reader = kafka.consumer(broker, "services.live", ["services.live"])
    try:
        times = [message.timestamp()[1] for message in reader.consume(3, 10)]
        assert times == sorted(times)
        assert min(times) >= now
    finally:
        reader.close()
