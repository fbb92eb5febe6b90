"""Feast's Redis layout, written by hand. The same bytes are compared with Feast's own writer in the integration tests."""

from __future__ import annotations

import math
import struct

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from features import layout
from features.layout import ViewLayout
from features.view import Feature

INT64 = st.integers(-(2**63), 2**63 - 1)
COUNTERS = ViewLayout("item_counters", "item_id", (Feature("clicks_5m", "Int64"), Feature("mean_play_ms_5m", "Float64")), packed=True)


def test_key_is_the_serialized_entity_followed_by_the_project() -> None:
    assert COUNTERS.key("sidstream", -5) == (
        b"\x01\x00\x00\x00\x02\x00\x00\x00\x07\x00\x00\x00item_id\x04\x00\x00\x00\x08\x00\x00\x00\xfb\xff\xff\xff\xff\xff\xff\xffsidstream"
    )


@pytest.mark.parametrize(
    ("kind", "value", "encoded"),
    [
        ("Int64", 0, b" \x00"),
        ("Int64", -1, b" \xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        ("Int64", 300, b" \xac\x02"),
        ("Float64", 0.0, b")\x00\x00\x00\x00\x00\x00\x00\x00"),
        ("Bool", False, b"8\x00"),
        ("String", "é", b"\x12\x02\xc3\xa9"),
        ("Json", b"[1]", b"\x82\x02\x03[1]"),
    ],
)
def test_value_is_its_protobuf_message_also_where_it_is_zero(kind: str, value: object, encoded: bytes) -> None:
    assert layout.ENCODERS[kind](value) == encoded


def test_null_is_an_empty_message() -> None:
    words = COUNTERS.encode(3, (None, 1.5))
    assert words == [COUNTERS.entity_field, b" \x03", COUNTERS.fields[0], b"", COUNTERS.fields[1], b")" + struct.pack("<d", 1.5)]


@given(st.integers(0, 4_102_444_800_000))
def test_timestamp_is_what_protobuf_writes_and_reads_back(ms: int) -> None:
    theirs = Timestamp()
    theirs.FromMilliseconds(ms)
    assert layout.timestamp(ms) == theirs.SerializeToString()
    assert layout.milliseconds(layout.timestamp(ms)) == ms


@given(INT64)
def test_integer_decodes_to_itself_from_ten_bytes_or_fewer(value: int) -> None:
    encoded = layout.int64_value(value)
    assert len(encoded) <= 11
    found = sum((byte & 0x7F) << (7 * n) for n, byte in enumerate(encoded[1:]))
    assert (found - (1 << 64) if found >= 1 << 63 else found) == value


@given(st.binary(max_size=300))
def test_text_comes_back_whole_whatever_its_length(text: bytes) -> None:
    assert layout.length_prefixed(layout.json_value(text), layout.JSON_TAG) == text


def test_text_of_another_type_is_not_taken_for_json() -> None:
    assert layout.length_prefixed(layout.string_value("x"), layout.JSON_TAG) == b""


def test_packed_copy_begins_with_its_time_and_holds_null_as_nan() -> None:
    packed = COUNTERS.pack(1_650_000_000_123, (7, None))
    stamp, clicks, mean = struct.unpack_from(">q", packed)[0], *struct.unpack_from("<2d", packed, 8)
    assert (stamp, clicks) == (1_650_000_000_123, 7.0)
    assert math.isnan(mean)


def test_packed_keys_change_with_the_order_and_type_of_the_features() -> None:
    other = ViewLayout("item_counters", "item_id", tuple(reversed(COUNTERS.features)), packed=True)
    assert COUNTERS.packed_key("sidstream", 1) != other.packed_key("sidstream", 1)
    assert COUNTERS.packed_key("sidstream", 1).startswith("sidstream:")
