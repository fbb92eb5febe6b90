"""Records: what travels is what was meant, and what does not fit is said in words that a person can act on."""

from __future__ import annotations

import json

import msgspec
import msgspec.inspect
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming import records, topics
from streaming.flink import columns

WATCH = {
    "schema": "watch/1",
    "event_id": "8f3c2a11-9d",
    "user_id": 7,
    "ts": 1_650_000_000_500,
    "impression_id": "imp",
    "impression_ts": 1_650_000_000_000,
    "play_ms": 4_000,
    "duration_ms": 9_000,
}


def body(**changes: object) -> bytes:
    return json.dumps({**WATCH, **changes}).encode()


@given(
    identity=st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable()),
    user=st.integers(0, 2**63 - 1),
    ts=st.integers(0, 2**53),
    play=st.integers(0, 2**40),
    finished=st.none() | st.booleans(),
)
def test_a_record_comes_back_as_it_was_sent(identity: str, user: int, ts: int, play: int, finished: bool | None) -> None:
    watch = records.Watch(
        event_id=identity, user_id=user, ts=ts, impression_id=identity, impression_ts=ts, play_ms=play, duration_ms=1, finished=finished
    )
    assert records.decode("watches", records.encode(watch)) == watch


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"play_ms": -4}, "Watch 8f3c2a11…: play_ms is -4 (expected ≥ 0)"),
        ({"play_ms": 10**30}, f"Watch 8f3c2a11…: play_ms is {10**30} (expected ≤ 9007199254740992)"),
        ({"duration_ms": 10**30}, f"Watch 8f3c2a11…: duration_ms is {10**30} (expected ≤ 9007199254740992)"),
        ({"play_ms": "long"}, 'Watch 8f3c2a11…: play_ms is "long" (expected int, got str)'),
        ({"ts": None}, "Watch 8f3c2a11…: ts is null (expected int, got null)"),
        ({"schema": "watch/2"}, 'Watch 8f3c2a11…: schema is "watch/2" (expected watch/1)'),
        ({"schema": "impression/1"}, 'Watch 8f3c2a11…: schema is "impression/1" (expected watch/1)'),
        ({"event_id": ""}, 'Watch: event_id is "" (expected str of length ≥ 1)'),
        ({"event_id": "short", "user_id": -1}, "Watch short: user_id is -1 (expected ≥ 0)"),
    ],
)
def test_a_broken_bound_names_the_record_the_field_and_what_was_expected(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(records.RecordError) as caught:
        records.decode("watches", body(**changes))
    assert str(caught.value) == reason


def test_every_required_integer_of_an_event_fits_the_int64_column_that_flink_reads_it_into() -> None:
    for record in topics.EVENT_SCHEMAS.values():
        for field in columns.fields(record):
            if field.required and isinstance(field.type, msgspec.inspect.IntType):
                assert field.type.le is not None and field.type.le < 2**63, f"{record.__name__}.{field.name}"


def test_a_missing_field_is_named() -> None:
    with pytest.raises(records.RecordError, match=r"^Watch 8f3c2a11…: play_ms is missing$"):
        records.decode("watches", json.dumps({k: v for k, v in WATCH.items() if k != "play_ms"}).encode())


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[1]", b"5", b"null", b"[" * 5000])
def test_what_is_no_json_object_is_refused_without_a_crash(raw: bytes) -> None:
    with pytest.raises(records.RecordError, match="not a JSON object"):
        records.decode("watches", raw)


def test_a_fault_deep_inside_is_found_by_its_path() -> None:
    shown = {"schema": "impression/1", "event_id": "e", "user_id": 1, "ts": 1, "impression_id": "i", "request_id": "r", "item_id": 1}
    shown |= {"position": 0, "scene": "s", "duration_ms": 1, "context": {"history": [{"item_id": 1, "ts": 2}, {"item_id": 1, "ts": "x"}]}}
    with pytest.raises(records.RecordError, match=r'context\.history\[1\]\.ts is "x"'):
        records.decode("impressions", json.dumps(shown).encode())


@pytest.mark.parametrize(("found", "said"), [(b"null", "null"), (b"[1]", "an array"), (b'"x"', "a string"), (b"5", "a number")])
def test_what_is_no_object_is_called_by_its_name_in_json(found: bytes, said: str) -> None:
    with pytest.raises(records.RecordError, match=f"^Watch: not a JSON object but {said}$"):
        records.decode("watches", found)


@pytest.mark.parametrize("field", ["replays", "stalls", "play_ms", "user_id"])
def test_a_number_beyond_64_bits_is_refused_in_fields_that_may_be_missing_too(field: str) -> None:
    with pytest.raises(records.RecordError, match=f"{field} is {2**63}"):
        records.decode("watches", body(**{field: 2**63}))


def test_unknown_fields_are_tolerated() -> None:
    watch = records.decode("watches", body(tomorrow=1))
    assert isinstance(watch, records.Watch)
    assert watch.play_ms == 4_000


SAMPLE = {
    "sample_id": "i:initial", "kind": "initial", "impression_id": "i", "user_id": 1, "item_id": 2, "ts": 9, "ready_ts": 10, "labels": {},
    "context": {"history": []}, "sid": [1, 2], "served_sid": [3, 4],
}  # fmt: skip


def test_nulls_in_what_an_impression_logged_do_not_cost_its_sample() -> None:
    whole = {"item_id": 7, "ts": 5, "play_ms": 3, "kinds": ["like"]}
    entries = [whole, None, {"item_id": None, "ts": 5}, {"item_id": 7, "ts": None}, {"item_id": 8, "ts": 4, "play_ms": None, "kinds": None}]
    sample = records.decode_sample(json.dumps({**SAMPLE, "context": {"history": entries}, "served_sid": [3, None]}).encode())
    assert sample.context.history == [records.HistoryEntry(7, 5, 3, ["like"]), records.HistoryEntry(8, 4)]
    assert (sample.sid, sample.served_sid) == ([1, 2], None)


@pytest.mark.parametrize("fault", [{"user_id": None}, {"context": None}, {"context": 5}, {"sid": "x"}, {"labels": {"click": "x"}}])
def test_what_is_no_sample_is_still_refused(fault: dict[str, object]) -> None:
    assert records.decode_sample(json.dumps(SAMPLE).encode()).user_id == 1
    for raw in (json.dumps({**SAMPLE, **fault}).encode(), b"5", b"{", b"{}"):
        with pytest.raises(msgspec.DecodeError):
            records.decode_sample(raw)


def test_a_heartbeat_is_welcome_in_every_event_topic() -> None:
    beat = records.Heartbeat(event_id="b", user_id=-1, ts=5)
    assert [records.decode(topic, records.encode(beat)) for topic in records.EVENTS] == [beat] * 5


def test_every_topic_with_records_has_a_json_schema_that_names_its_fields() -> None:
    schemas = records.json_schemas()
    assert set(schemas) == {*records.EVENTS, *records.OUTPUTS}
    watch = schemas["watches"]["$defs"]["Watch"]
    assert watch["properties"]["schema"] == {"enum": ["watch/1"]}
    assert watch["properties"]["play_ms"] == {"type": "integer", "minimum": 0, "maximum": 2**53}
    assert "finished" not in watch["required"]
    msgspec.json.encode(schemas)
