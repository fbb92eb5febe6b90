"""The inspector: an independent reader of the event topics that finds what Flink's SQL cannot see, and the only writer of dead letters.

Every raw record gets one verdict. What is a JSON object (or an array of them) becomes rows in Flink, whose SQL uses or rejects them by
partition and offset; what is neither is invisible there and found here. The inspector adds the raw bytes and a readable reason to both.
"""

from __future__ import annotations

import base64
import codecs
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from streaming import records, topics
from streaming.records import DeadLetter, RecordError

Verdict = Literal["row", "heartbeat", "invisible"]
HEARTBEAT_MARK: Final = b'"heartbeat/1"'
BOMS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


class Rejected(msgspec.Struct, frozen=True):
    """Flink's verdict on a record, from the topic `rejects`."""

    topic: str
    partition: int
    offset: int
    reason: str


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_reader = json.JSONDecoder(strict=False, parse_constant=_no_constant)
_strict = msgspec.json.Decoder()


def verdict(body: bytes | None) -> Verdict:
    """What Flink's JSON format makes of a body.

    It reads with Jackson's tree: the first JSON value counts and what follows is ignored, control characters in strings are allowed,
    UTF-16 and UTF-32 are recognised, an array gives a row for each of its objects, and only rows exist afterwards.
    """
    if not body:
        return "invisible"
    if HEARTBEAT_MARK in body and _is_heartbeat(body):
        return "heartbeat"
    try:
        value = _strict.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = _lenient(body)
    if isinstance(value, dict):
        return "row"
    return "row" if isinstance(value, list) and any(isinstance(item, dict) for item in value) else "invisible"


def _is_heartbeat(body: bytes) -> bool:
    try:
        return isinstance(records.decode(topics.IMPRESSIONS, body), records.Heartbeat)
    except (RecordError, UnicodeDecodeError):
        return False


def _lenient(body: bytes) -> Any:
    encoding = next((name for mark, name in BOMS if body.startswith(mark)), "utf-8")
    try:
        return _reader.raw_decode(body.decode(encoding).lstrip(" \t\r\n"))[0]
    except (ValueError, RecursionError):
        return None


def reason_of(topic: str, body: bytes | None, appended_ms: int) -> str:
    """Why a record cannot be used, for a person."""
    if not body:
        return "empty: a record needs a JSON object"
    try:
        event = records.decode(topic, body)
    except (RecordError, UnicodeDecodeError) as error:
        return str(error)
    return f"implausible time: ts is {iso(event.ts)}, the broker took it at {iso(appended_ms)}"


def iso(millis: int) -> str:
    """A time in milliseconds as people read it."""
    try:
        return datetime.fromtimestamp(millis / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"{millis} ms"


def dead_letter(topic: str, partition: int, offset: int, reason: str, body: bytes | None) -> DeadLetter:
    return DeadLetter(topic=topic, partition=partition, offset=offset, reason=reason, body_base64=base64.b64encode(body or b"").decode())


@dataclass
class Counters:
    """Records per `topic-partition`: read = rows + heartbeats + invisible; dead letters by their origin."""

    read: dict[str, int] = field(default_factory=dict)
    heartbeats: dict[str, int] = field(default_factory=dict)
    invisible: dict[str, int] = field(default_factory=dict)
    dead_letters: dict[str, int] = field(default_factory=dict)
    next_offsets: dict[str, int] = field(default_factory=dict)

    def saw(self, topic: str, partition: int, offset: int, what: Verdict) -> None:
        place = f"{topic}-{partition}"
        if offset < self.next_offsets.get(place, 0):
            return  # read again after a restart
        self.read[place] = self.read.get(place, 0) + 1
        self.next_offsets[place] = offset + 1
        if what == "heartbeat":
            self.heartbeats[place] = self.heartbeats.get(place, 0) + 1
        elif what == "invisible":
            self.invisible[place] = self.invisible.get(place, 0) + 1

    def buried(self, topic: str, partition: int) -> None:
        place = f"{topic}-{partition}"
        self.dead_letters[place] = self.dead_letters.get(place, 0) + 1

    def as_dict(self) -> dict[str, dict[str, int]]:
        return {name: dict(getattr(self, name)) for name in ("read", "heartbeats", "invisible", "dead_letters", "next_offsets")}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Counters:
        return cls(**{name: dict(saved.get(name, {})) for name in ("read", "heartbeats", "invisible", "dead_letters", "next_offsets")})
