"""Flink's view of the topics: columns, predicates and options are generated from the records."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
import pytest

from streaming import records, topics
from streaming.flink import columns, tables

CLIENT = {"bootstrap.servers": "broker:9092"}


def test_columns_follow_the_structs() -> None:
    found = columns.columns([records.Impression, records.Watch])
    assert found["sid"] == "ARRAY<BIGINT>"
    assert found["policy_logprob"] == "DOUBLE"
    assert found["finished"] == "BOOLEAN"
    assert found["context"].startswith("ROW<`history` ARRAY<ROW<`item_id` BIGINT")
    assert set(found) >= {field for record in (records.Impression, records.Watch) for field in record.__struct_fields__}


def test_one_name_with_two_types_is_refused() -> None:
    class Odd(msgspec.Struct):
        play_ms: str

    with pytest.raises(TypeError, match="play_ms is STRING, elsewhere BIGINT"):
        columns.columns([records.Watch, Odd])


def test_every_required_field_and_every_bound_is_in_the_predicate() -> None:
    class Odd(msgspec.Struct, tag="odd/1", tag_field="schema"):
        name: Annotated[str, msgspec.Meta(min_length=2, pattern="^a'b")]
        level: Annotated[int, msgspec.Meta(gt=0, lt=9)]
        note: Annotated[int, msgspec.Meta(ge=3)] | None = None

    assert columns.usable(Odd) == (
        "`schema` = 'odd/1' AND `name` IS NOT NULL AND CHAR_LENGTH(`name`) >= 2 AND REGEXP(`name`, '^a''b') "
        "AND `level` IS NOT NULL AND `level` > 0 AND `level` < 9 AND (`note` IS NULL OR (`note` >= 3))"
    )


@pytest.mark.parametrize(
    ("seconds", "sql"),
    [
        (0.001, "INTERVAL '0 00:00:00.001' DAY(3) TO SECOND(3)"),
        (65, "INTERVAL '0 00:01:05.000' DAY(3) TO SECOND(3)"),
        (7 * 86_400 - 0.001, "INTERVAL '6 23:59:59.999' DAY(3) TO SECOND(3)"),
    ],
)
def test_intervals_of_any_length_parse_in_flink(seconds: float, sql: str) -> None:
    assert tables.interval(seconds) == sql


def test_the_event_table_reads_all_event_topics_committed_and_keeps_place_and_record_time() -> None:
    ddl = tables.event_table(CLIENT, "group", row_time=tables.IMPRESSION_TIME, watermark_lag_s=65, attribution_s=3600)
    assert f"'topic' = '{';'.join(topics.EVENT_TOPICS)}'" in ddl
    assert "'properties.isolation.level' = 'read_committed'" in ddl
    for metadata in ("topic", "partition", "offset", "timestamp"):
        assert f"METADATA FROM '{metadata}' VIRTUAL" in ddl
    watermark = re.search(r"WATERMARK FOR rt AS (.*)\n", ddl)
    assert watermark is not None
    assert "appended" in watermark[1]  # a time ahead of the broker's never moves it


def test_security_reaches_flink_in_the_words_of_javas_client() -> None:
    client = {**CLIENT, "security.protocol": "SASL_SSL", "sasl.mechanisms": "SCRAM-SHA-512", "sasl.username": "me", "sasl.password": "s"}
    options = tables.java_client({**client, "ssl.ca.location": "/ca.pem"})
    assert options["properties.sasl.mechanism"] == "SCRAM-SHA-512"
    assert options["properties.sasl.jaas.config"] == (
        'org.apache.kafka.common.security.scram.ScramLoginModule required username="me" password="s";'
    )
    assert options["properties.ssl.truststore.location"] == "/ca.pem"


def test_a_setting_without_counterpart_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match=r"enable\.ssl\.certificate\.verification"):
        tables.java_client({**CLIENT, "enable.ssl.certificate.verification": False})


def test_quotes_in_options_are_escaped() -> None:
    assert tables.options({"key": "it's"}) == "'key' = 'it''s'"
