"""The inspector: an independent reader of the event topics that finds what Flink's SQL cannot see, and the only writer of dead letters.

Every raw record gets one verdict. What is a JSON object (or an array of them) becomes rows in Flink, whose SQL uses or rejects them by
partition and offset; what is neither is invisible there and found here. The inspector adds the raw bytes and a readable reason to both.
"""

from __future__ import annotations

import base64
import codecs
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from streaming import records, topics
from streaming.plausible import implausible
from streaming.records import DeadLetter, RecordError

Verdict = Literal["row", "heartbeat", "invisible"]
NOT_USABLE: Final = "not a usable record"  # Flink's verdict on what breaks its schema; the inspector finds out how
HEARTBEAT_MARK: Final = b'"heartbeat/1"'
MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)


class Rejected(msgspec.Struct, frozen=True):
    """Flink's verdict on a record, from the topic `rejects`."""

    topic: str
    partition: int
    offset: int
    reason: str


# What Flink's Jackson refuses beyond the grammar of JSON (its StreamReadConstraints).
MAX_DEPTH: Final = 1_000
MAX_NUMBER: Final = 1_000
MAX_NAME: Final = 50_000
_long_number = re.compile(rb"[0-9]{%d}" % MAX_NUMBER)
# Jackson checks that a character has the bytes that its first byte announces, not which character it is.
_utf8 = re.compile(rb"(?:[\x00-\x7f]|[\xc0-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf7][\x80-\xbf]{3})*")


def _number(digits: str) -> int:
    if sum(map(str.isdigit, digits)) > MAX_NUMBER:
        raise ValueError("number too long")
    return 0


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if any(len(name) > MAX_NAME for name, _ in pairs):
        raise ValueError("name too long")
    return dict(pairs)


_reader = json.JSONDecoder(strict=False, parse_constant=_no_constant, parse_int=_number, parse_float=_number, object_pairs_hook=_object)
_strict = msgspec.json.Decoder()


def verdict(body: bytes | None) -> Verdict:
    """What Flink's JSON format makes of a body.

    It reads with Jackson's tree: the first JSON value counts and what follows is ignored, control characters in strings are allowed,
    UTF-16 and UTF-32 are recognised, an array gives a row for each of its objects.
    """
    if not body:
        return "invisible"
    if HEARTBEAT_MARK in body and _is_heartbeat(body):
        return "heartbeat"
    if len(body) > MAX_NAME or body.count(b"[") + body.count(b"{") > MAX_DEPTH // 2 or _long_number.search(body):
        value = _lenient(body)
    else:
        try:
            value = _strict.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            value = _lenient(body)
    objects = value if isinstance(value, list) else [value]
    return "row" if any(isinstance(each, dict) for each in objects) else "invisible"


def _is_heartbeat(body: bytes) -> bool:
    try:
        return isinstance(records.decode(topics.IMPRESSIONS, body), records.Heartbeat)
    except RecordError:
        return False


def _lenient(body: bytes) -> Any:
    """The first JSON value of a body as Jackson finds it, its strings and numbers left unread; None where it finds none."""
    encoding, mark = next(((name, mark) for mark, name in MARKS if body.startswith(mark)), (json.detect_encoding(body[:4]), b""))
    body = body[len(mark) :]
    eight_bit = encoding.startswith("utf-8")
    text = body.decode("latin-1") if eight_bit else body.decode(encoding, "replace")
    text = text.lstrip(" \t\r\n")
    depth = _depth(text)
    if depth > MAX_DEPTH:
        return None
    limit = sys.getrecursionlimit()
    if depth > limit // 4:
        sys.setrecursionlimit(limit + 2 * MAX_DEPTH)
    try:
        value, end = _reader.raw_decode(text)
    except ValueError:
        return None
    finally:
        sys.setrecursionlimit(limit)
    if eight_bit and not _utf8.fullmatch(text[:end].encode("latin-1")):
        return None
    return value


def _depth(text: str) -> int:
    """Deepest nesting of brackets outside strings."""
    deepest = depth = 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', text, re.DOTALL):
        first = token.group()[0]
        if first in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in "]}":
            depth -= 1
            if depth <= 0:
                break
    return deepest


def fault_of(topic: str, body: bytes | None) -> str | None:
    """Why a record cannot be used, as far as its own bytes tell; None if they do not."""
    if not body:
        return "empty: a record needs a JSON object"
    try:
        records.decode(topic, body)
    except RecordError as error:
        return str(error)
    return None


def reason_of(topic: str, body: bytes | None, appended_ms: int, attribution_ms: int) -> str:
    """Why a record that was refused cannot be used, for a person."""
    fault = fault_of(topic, body)
    if fault is not None:
        return fault
    event = records.decode(topic, body or b"")
    head = f"{type(event).__name__} {event.event_id[:8]}…: "
    try:
        (body or b"").decode()
    except UnicodeDecodeError as error:
        return f"{head}not UTF-8 at byte {error.start}"
    return head + (implausible(event, appended_ms, attribution_ms) or "Flink's JSON reader takes no number or name of that length")


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
