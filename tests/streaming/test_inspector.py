"""The inspector's verdicts: what Flink's JSON format sees of a body, and how a refusal reads."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming import records
from streaming.inspector import Counters, dead_letter, reason_of, verdict

WEEK_MS = 7 * 86_400_000
OBJECT = b'{"schema": "watch/1", "play_ms": 5}'


@pytest.mark.parametrize(
    "body",
    [
        OBJECT,
        b"{}",
        OBJECT + b" trailing \xff bytes",
        b"\xef\xbb\xbf" + OBJECT,
        OBJECT.decode().encode("utf-16"),
        OBJECT.decode().encode("utf-16-be"),
        OBJECT.decode().encode("utf-32"),
        b'{"text": "control \x01 characters"}',
        b'{"text": "\\ud800"}',
        b'{"text": "\xc0\x80 overlong"}',
        b'{"twice": 1, "twice": 2}',
        b"[null, 1, {}]",
        b'{"deep": ' + b"[" * 999 + b"]" * 999 + b"}",
        b'{"long": ' + b"1" * 1000 + b"}",
    ],
)
def test_what_jackson_reads_is_a_row(body: bytes) -> None:
    assert verdict(body) == "row"


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"",
        b"  ",
        b"garbage",
        OBJECT[:-1],
        b"5",
        b'"text"',
        b"null",
        b"[]",
        b"[1, 2]",
        b"[[{}]]",
        b'{"a": NaN}',
        b'{"a": 01}',
        b'{"a": 1,}',
        b"{'a': 1}",
        b"/* comment */ {}",
        b'{"text": "\xff"}',
        b'{"text": "\xc3"}',
        b'{"deep": ' + b"[" * 1000 + b"]" * 1000 + b"}",
        b'{"deep": ' + b"[" * 100_000,
        b'{"long": ' + b"1" * 1001 + b"}",
    ],
)
def test_what_jackson_refuses_is_invisible(body: bytes | None) -> None:
    assert verdict(body) == "invisible"


def test_a_heartbeat_is_told_from_a_record_that_only_mentions_one() -> None:
    assert verdict(records.encode(records.Heartbeat(event_id="h", user_id=-1, ts=1))) == "heartbeat"
    assert verdict(b'{"schema": "heartbeat/1"}') == "row"
    assert verdict(b'{"text": "heartbeat/1"}') == "row"


@given(st.binary(max_size=200))
def test_no_bytes_are_without_a_verdict(body: bytes) -> None:
    assert verdict(body) in ("row", "invisible")


@given(st.binary(max_size=60), st.integers(0, len(OBJECT)))
def test_bytes_after_an_object_change_nothing(after: bytes, _: int) -> None:
    assert verdict(OBJECT + b" " + after) == "row"


def test_a_refused_time_is_said_as_people_read_it() -> None:
    watch = records.Watch(
        event_id="watch-77", user_id=1, ts=4_102_444_800_000, impression_id="i", impression_ts=4_102_444_800_000, play_ms=1, duration_ms=1
    )
    reason = reason_of("watches", records.encode(watch), 1_650_000_000_000, WEEK_MS)
    assert reason == (
        "Watch watch-77…: implausible time: ts is 2100-01-01T00:00:00.000+00:00, the broker took it at 2022-04-15T05:20:00.000+00:00"
    )


def test_an_impression_time_that_cannot_be_is_the_reason_when_the_label_itself_is_in_time() -> None:
    label = records.Watch(event_id="w", user_id=1, ts=1_650_000_000_000, impression_id="i", impression_ts=1, play_ms=1, duration_ms=1)
    assert "impression_ts is 1970-01-01" in reason_of("watches", records.encode(label), 1_650_000_000_000, WEEK_MS)


def test_what_is_no_utf8_in_a_field_that_nobody_knows_is_said_so() -> None:
    body = records.encode(records.Watch(event_id="w", user_id=1, ts=5, impression_id="i", impression_ts=5, play_ms=1, duration_ms=1))
    assert reason_of("watches", body[:-1] + b',"more":"\xff"}', 5, WEEK_MS) == f"Watch w…: not UTF-8 at byte {len(body) + 8}"


def test_a_number_too_long_for_flink_is_no_matter_of_time() -> None:
    body = records.encode(records.Watch(event_id="w", user_id=1, ts=5, impression_id="i", impression_ts=5, play_ms=1, duration_ms=1))
    assert "implausible" not in reason_of("watches", body[:-1] + b',"more":' + b"1" * 1001 + b"}", 5, WEEK_MS)


def test_a_dead_letter_holds_the_raw_bytes() -> None:
    assert base64.b64decode(dead_letter("watches", 1, 2, "why", b"\x00\xff").body_base64) == b"\x00\xff"


def test_records_read_again_after_a_restart_are_counted_once() -> None:
    counters = Counters()
    for offset in (0, 1, 2):
        counters.saw("watches", 0, offset, "row")
    again = Counters.from_dict(counters.as_dict())
    for offset in (1, 2, 3):
        again.saw("watches", 0, offset, "heartbeat" if offset == 3 else "row")
    assert (again.read, again.heartbeats, again.next_offsets) == ({"watches-0": 4}, {"watches-0": 1}, {"watches-0": 4})
