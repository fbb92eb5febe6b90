"""Feature values of a historical log, by the SQL of the live job, as Parquet for point-in-time training data.

The log is put in the order in which it became known and then read as the live job reads Kafka: the same statements in the same
operators, so a value that differs from the online one is a defect and not a difference of engines. (Flink's batch mode has no RANGE
window over this kind of time.) Memory is bounded by the windows, not by the log.

A log is a folder with, for each of the five event topics, `<topic>.jsonl`, `<topic>.jsonl.gz`, `<topic>.parquet`, or a folder `<topic>`
of such files: one record a line or row, with the fields of the topic and, where they are known, `appended` (Kafka's record time, ms),
`partition` and `offset`. Without `appended` an event counts as appended at its own time.
"""

from __future__ import annotations

import gzip
import heapq
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from features.compile import is_listing, sink_columns, sink_name
from features.layout import layout_of
from features.view import View
from features.writer import Row, decode
from streaming import topics
from streaming.flink import tables
from streaming.flink.columns import quoted, wire_columns

SORTED_AT_ONCE = 200_000  # records sorted in memory; longer logs are merged from files
BATCH = 50_000  # rows a Parquet row group
KEY_DIGITS = 16  # of the time that a line of the ordered log begins with
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


class LogError(ValueError):
    """The log cannot be used; the message names the folder or file."""


@dataclass(frozen=True)
class Ordered:
    """What was put into the ordered log, and what was no record with a time."""

    records: int
    skipped: int


def files_of(folder: Path) -> dict[str, list[Path]]:
    """Files of each event topic.

    Raises:
        LogError: there is none at all.
    """
    found = {}
    for topic in topics.EVENT_TOPICS:
        inside = sorted(path for path in (folder / topic).glob("*") if path.name.endswith(SUFFIXES))
        found[topic] = [path for path in (folder / f"{topic}{suffix}" for suffix in SUFFIXES) if path.exists()] + inside
    if not any(found.values()):
        raise LogError(f"{folder}: no file of an event topic (looked for impressions.jsonl, watches.parquet, engagements/*.jsonl.gz, …)")
    return found


def records(path: Path) -> Iterator[dict[str, Any] | None]:
    """Records of a file; None for a line that is no JSON object."""
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
        return
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        for line in lines:
            if line.strip():
                try:
                    yield _decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    yield None


def prepared(topic: str, record: Mapping[str, Any], place: int, disorder_ms: int) -> tuple[int, bytes] | None:
    """Known-at in ms and the line of the ordered log; None where the record has no time."""
    ts = record.get("ts")
    try:
        ts_ms = int(ts) if ts is not None else None
        appended = int(record["appended"]) if record.get("appended") is not None else ts_ms
        if ts_ms is None or appended is None:
            return None
        moment = EPOCH + timedelta(milliseconds=appended)
    except (TypeError, ValueError, OverflowError):
        return None
    line = {
        **record,
        "topic": topic,
        "appended": f"{moment:%Y-%m-%dT%H:%M:%S}.{appended % 1000:03}Z",
        "kafka_partition": record.get("partition") or 0,
        "kafka_offset": record["offset"] if record.get("offset") is not None else place,
    }
    return max(ts_ms, appended - disorder_ms, 0), _encode(line)


def order(folder: Path, target: Path, disorder_ms: int) -> Ordered:
    """Write the records of a log to one file of JSON lines, in the order in which they became known."""
    counts = {"records": 0, "skipped": 0}
    with ExitStack() as stack:
        parts: list[Iterable[bytes]] = []
        chunk: list[bytes] = []

        def spill() -> None:
            chunk.sort()
            part = stack.enter_context(tempfile.TemporaryFile(dir=target.parent))
            part.writelines(chunk)
            part.seek(0)
            parts.append(part)
            chunk.clear()

        for topic, paths in files_of(folder).items():
            place = 0
            for path in paths:
                for record in records(path):
                    place += 1
                    known = prepared(topic, record, place, disorder_ms) if record is not None else None
                    if known is None:
                        counts["skipped"] += 1
                        continue
                    counts["records"] += 1
                    chunk.append(b"%0*d %s\n" % (KEY_DIGITS, known[0], known[1]))
                    if len(chunk) >= SORTED_AT_ONCE:
                        spill()
        spill()
        with target.open("wb") as out:
            out.writelines(line[KEY_DIGITS + 1 :] for line in heapq.merge(*parts))
    return Ordered(**counts)


def event_table(log: Path, disorder_s: float, attribution_s: float) -> str:
    """The ordered log as the table `event`, with the columns and the row time of the live one."""
    lines = [f"{quoted(column)} {kind}" for column, kind in wire_columns(tables.EVENT_RECORDS).items()]
    lines += [
        "topic STRING",
        "kafka_partition INT",
        "kafka_offset BIGINT",
        "appended TIMESTAMP_LTZ(3)",
        f"usable AS {tables.usable_event(attribution_s)}",
        f"rt AS COALESCE({tables.known_time(disorder_s)}, {tables.EPOCH})",
        # The log is in order, so its time stands one millisecond behind the row just read.
        f"WATERMARK FOR rt AS rt - {tables.interval(0.001)}",
    ]
    options = {
        "connector": "filesystem",
        "path": log.resolve().as_uri(),
        "format": "json",
        "json.ignore-parse-errors": "true",
        "json.timestamp-format.standard": "ISO-8601",
        "json.decode.json-parser.enabled": "false",
    }
    body = ",\n    ".join(lines)
    return f"CREATE TABLE event (\n    {body}\n) WITH ({tables.options(options)})"


class Listed(msgspec.Struct):
    """A line of a listing's sink."""

    body: str


def file_sink(view: View, folder: Path) -> str:
    """A folder of JSON lines with a view's values: as in its topic, or, of a listing, with what the topic holds as a text named `body`."""
    options = {
        "connector": "filesystem",
        "path": (folder / view.name).resolve().as_uri(),
        "format": "json",
        "sink.rolling-policy.file-size": "1 gb",
    }
    declared = sink_columns(view)
    return f"CREATE TABLE {sink_name(view)} ({declared}) WITH ({tables.options(options)})"


def values(view: View, folder: Path) -> Iterator[Row]:
    """What a run wrote for a view, in its order; of the peers of one entity and moment only the last."""
    layout, listed, bodies = layout_of(view), is_listing(view), msgspec.json.Decoder(Listed)

    def rows() -> Iterator[Row]:
        for path in sorted(path for path in (folder / view.name).rglob("part-*") if path.is_file()):
            with path.open("rb") as lines:
                for line in lines:
                    row = decode(layout, bodies.decode(line).body.encode() if listed else line)
                    if row is not None:
                        yield row

    for _, peers in groupby(rows(), key=lambda row: (row.entity, row.event_timestamp)):
        *_, last = peers
        yield last


def arrow_schema(view: View) -> pa.Schema:
    """Columns of a view's Parquet file, as Feast's file source reads them."""
    types = {"Int64": pa.int64(), "Float64": pa.float64(), "Float32": pa.float32(), "Bool": pa.bool_()}
    features = [(feature.name, types.get(feature.type, pa.string())) for feature in view.features]
    return pa.schema([(view.join_key, pa.int64()), ("event_timestamp", pa.timestamp("ms", "UTC")), *features])


def write_parquet(view: View, rows: Iterable[Row], path: Path) -> int:
    """Write a view's values to one Parquet file, replaced in one step; returns how many rows."""
    schema, count = arrow_schema(view), 0
    partial = path.with_name(f".{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(partial, schema) as out:
        batch: list[Row] = []
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH:
                out.write_table(table(schema, batch))
                count += len(batch)
                batch.clear()
        out.write_table(table(schema, batch))
        count += len(batch)
    partial.replace(path)
    return count


def table(schema: pa.Schema, rows: list[Row]) -> pa.Table:
    by_feature = list(zip(*(row.values for row in rows), strict=True)) or [()] * (len(schema) - 2)
    texts = [[bytes(v).decode() if isinstance(v, msgspec.Raw) else v for v in column] for column in by_feature]
    data = [[row.entity for row in rows], [row.event_timestamp for row in rows], *texts]
    return pa.Table.from_arrays([pa.array(column, kind) for column, kind in zip(data, schema.types, strict=True)], schema=schema)


def equal(one: Any, other: Any) -> bool:
    """Whether two values of a feature are the same; sums of floats may differ in their last digits, JSON in its spaces."""
    if isinstance(one, msgspec.Raw | bytes | str) and isinstance(other, msgspec.Raw | bytes | str | list):
        left = msgspec.json.decode(one)
        return bool(left == (other if isinstance(other, list) else msgspec.json.decode(other)))
    if isinstance(one, float) or isinstance(other, float):
        return one is not None and other is not None and math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)
    return bool(one == other)
