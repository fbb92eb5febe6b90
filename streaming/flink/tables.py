"""Flink's view of the topics: one table over all event topics, shared by every job, and what its sources and sinks have in common.

    event     one row per record that is a JSON object: the columns of every event type, `topic`, `kafka_partition`, `kafka_offset`,
              `appended` (Kafka's record time), `usable`, the row time `rt` and the processing time `proc`

A job chooses what the row time of an event is and how far the watermark lags. The watermark never follows a time ahead of the broker's
own (`LEAST(ts, appended)`) nor an implausible one, so a record dated next year moves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from streaming import records, topics
from streaming.flink.columns import quoted, text, usable, wire_columns
from streaming.kafka import GATHERED_BYTES, GATHERED_MS

DAY_S = 86_400
EVENT_RECORDS: tuple[type[msgspec.Struct], ...] = (*topics.EVENT_SCHEMAS.values(), records.Heartbeat)
HEARTBEAT = "heartbeat/1"

EVENT_TIME = "TO_TIMESTAMP_LTZ(ts, 3)"
IMPRESSION_TS = "CASE WHEN `schema` = 'impression/1' THEN ts ELSE COALESCE(impression_ts, ts) END"
IMPRESSION_TIME = f"TO_TIMESTAMP_LTZ({IMPRESSION_TS}, 3)"
EPOCH = "TO_TIMESTAMP_LTZ(0, 3)"  # row time of what has none; such rows are never usable


def interval(seconds: float) -> str:
    """An interval of whole milliseconds, below 1,000 days (Flink reads no more than three digits of days)."""
    minutes, millis = divmod(round(seconds * 1000), 60_000)
    days, minutes = divmod(minutes, 1440)
    return f"INTERVAL '{days} {minutes // 60:02}:{minutes % 60:02}:{millis // 1000:02}.{millis % 1000:03}' DAY(3) TO SECOND(3)"


def options(settings: Mapping[str, str]) -> str:
    """The WITH clause of a table."""
    return ", ".join(f"{text(key)} = {text(value)}" for key, value in settings.items())


def java_client(client: Mapping[str, Any]) -> dict[str, str]:
    """librdkafka's settings as the properties of Java's client, for a table.

    Raises:
        ValueError: a setting that has no counterpart here.
    """
    properties = {"bootstrap.servers": str(client["bootstrap.servers"])}
    user, password = client.get("sasl.username"), client.get("sasl.password")
    for key, value in client.items():
        if key in ("bootstrap.servers", "sasl.username", "sasl.password") or key.startswith(("log", "debug", "socket.", "client.")):
            continue
        if key in ("security.protocol", "ssl.endpoint.identification.algorithm", "ssl.key.password", "sasl.jaas.config"):
            properties[key] = str(value)
        elif key in ("sasl.mechanism", "sasl.mechanisms"):
            mechanism = properties["sasl.mechanism"] = str(value)
            module = "scram.ScramLoginModule" if mechanism.startswith("SCRAM") else "plain.PlainLoginModule"
            login = f'org.apache.kafka.common.security.{module} required username="{user}" password="{password}";'
            properties.setdefault("sasl.jaas.config", login)
        elif key == "ssl.ca.location":
            properties |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": str(value)}
        elif key == "ssl.keystore.location":
            properties |= {"ssl.keystore.location": str(value)}
        else:
            raise ValueError(f"kafka.security: {key} is not known to the Flink jobs; name it as Kafka's Java client does or leave it out")
    return {f"properties.{key}": value for key, value in properties.items()}


def source(client: Mapping[str, Any], group: str, names: Sequence[str]) -> dict[str, str]:
    """Options of a table that reads topics from their beginning (or from a checkpoint), committed records only."""
    return {
        "connector": "kafka",
        "topic": ";".join(names),
        **java_client(client),
        "properties.group.id": group,
        "properties.isolation.level": "read_committed",
        "properties.fetch.min.bytes": str(GATHERED_BYTES),
        "properties.fetch.max.wait.ms": str(GATHERED_MS),
        "scan.startup.mode": "earliest-offset",
        "value.format": "json",
        "value.json.ignore-parse-errors": "true",
        # Jackson's tree, not its token stream: the stream takes truncated objects for whole ones and loses its place in a nested fault.
        "value.json.decode.json-parser.enabled": "false",
    }


def sink(client: Mapping[str, Any], topic: str, *, exactly_once: str | None = None) -> dict[str, str]:
    """Options of a table that appends JSON to a topic; `exactly_once` is the prefix of its transactions, unique to job and topic."""
    delivery = {"sink.delivery-guarantee": "at-least-once"}
    if exactly_once is not None:
        delivery = {
            "sink.delivery-guarantee": "exactly-once",
            "sink.transactional-id-prefix": exactly_once,
            # The broker's limit is 15 minutes; an unfinished transaction holds readers back at most this long.
            "properties.transaction.timeout.ms": "600000",
        }
    return {
        "connector": "kafka",
        "topic": topic,
        **java_client(client),
        "properties.compression.type": "lz4",
        "properties.linger.ms": "50",
        "value.format": "json",
        **delivery,
    }


def keyed(column: str) -> dict[str, str]:
    """Options that make a STRING column `key_<name>` the plain Kafka key and keep it out of the value."""
    return {"key.format": "raw", "key.fields": column, "key.fields-prefix": "key_", "value.fields-include": "EXCEPT_KEY"}


def plausible(attribution_s: float) -> str:
    """Condition on an event's time against Kafka's record time."""
    return f"ts IS NOT NULL AND {EVENT_TIME} >= appended - {interval(attribution_s)} AND {EVENT_TIME} <= appended + {interval(DAY_S)}"


def usable_event(attribution_s: float) -> str:
    """Condition under which a row is used; everything else is rejected with its partition and offset."""
    day, attribution = DAY_S * 1000, round(attribution_s * 1000)
    label = f" AND impression_ts >= ts - {attribution} AND impression_ts <= ts + {day}"
    kinds = " OR ".join(
        f"(topic = {text(topic)} AND {usable(record)}{label if issubclass(record, records.Label) else ''})"
        for topic, record in topics.EVENT_SCHEMAS.items()
    )
    return f"(({kinds}) OR ({usable(records.Heartbeat)})) AND {plausible(attribution_s)}"


def event_table(
    client: Mapping[str, Any],
    group: str,
    *,
    row_time: str,
    watermark_lag_s: float,
    attribution_s: float,
    name: str = "event",
    scan: Mapping[str, str] | None = None,
) -> str:
    """CREATE TABLE over all event topics.

    Args:
        client: librdkafka settings.
        group: consumer group; Flink's offsets live in its checkpoints, committing them only informs lag tools.
        row_time: expression for `rt`, e.g. `EVENT_TIME`, `IMPRESSION_TIME` or `known_time(…)`.
        watermark_lag_s: how far the watermark lags behind the event's own time.
        attribution_s: how much older than its append an event may be.
        scan: further options, e.g. to bound the scan.
    """
    lines = [f"{quoted(column)} {kind}" for column, kind in wire_columns(EVENT_RECORDS).items()]
    lines += [
        "topic STRING METADATA FROM 'topic' VIRTUAL",
        "kafka_partition INT METADATA FROM 'partition' VIRTUAL",
        "kafka_offset BIGINT METADATA FROM 'offset' VIRTUAL",
        "appended TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL",
        f"usable AS {usable_event(attribution_s)}",
        f"rt AS COALESCE({row_time}, {EPOCH})",
        "proc AS PROCTIME()",
        f"WATERMARK FOR rt AS CASE WHEN {plausible(attribution_s)} "
        f"THEN {earlier(EVENT_TIME, 'appended')} - {interval(watermark_lag_s)} END",
    ]
    body = ",\n    ".join(lines)
    with_clause = options({**source(client, group, topics.EVENT_TOPICS), **(scan or {})})
    return f"CREATE TABLE {quoted(name)} (\n    {body}\n) WITH ({with_clause})"


def earlier(one: str, other: str) -> str:
    """The earlier of two times that are not NULL."""
    return f"CASE WHEN {one} < {other} THEN {one} ELSE {other} END"


def known_time(disorder_s: float) -> str:
    """Row time by which no event is late: its own time, or, where it came later than the disorder allows, when it came."""
    came = f"appended - {interval(disorder_s)}"
    return f"CASE WHEN {EVENT_TIME} > {came} THEN {EVENT_TIME} ELSE {came} END"
