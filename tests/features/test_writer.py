"""Rows of feature topics on their way to Redis, without one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.layout import ViewLayout
from features.view import Feature
from features.writer import Row, RowError, decode, newest

COUNTERS = ViewLayout("user_counters", "user_id", (Feature("clicks_5m", "Int64"), Feature("mean", "Float64")))
HISTORY = ViewLayout("user_history", "user_id", (Feature("entries", "Json"),))
ROWS = st.lists(st.builds(Row, st.integers(0, 3), st.integers(0, 5), st.tuples(st.integers())))


def test_row_has_its_values_in_the_order_of_the_view() -> None:
    body = b'{"mean":null,"user_id":7,"clicks_5m":3,"event_timestamp":1650000000000,"more":1}'
    assert decode(COUNTERS, body) == Row(7, 1_650_000_000_000, (3, None))


def test_json_feature_keeps_its_bytes() -> None:
    row = decode(HISTORY, b'{"user_id":7,"event_timestamp":1,"entries":[{"item_id":-3, "kinds":["like"]}]}')
    assert row is not None
    assert bytes(row.values[0]) == b'[{"item_id":-3, "kinds":["like"]}]'


def test_row_of_a_heartbeat_is_no_row() -> None:
    assert decode(HISTORY, b'{"user_id":-1,"event_timestamp":1,"entries":[]}') is None


def test_item_with_a_negative_id_is_a_row() -> None:
    items = ViewLayout("item_counters", "item_id", (Feature("clicks_5m", "Int64"),))
    assert decode(items, b'{"item_id":-9,"event_timestamp":1,"clicks_5m":2}') == Row(-9, 1, (2,))


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"[]", b'{"user_id":1}', b'{"user_id":"1","event_timestamp":1}'])
def test_what_is_no_row_is_refused_with_its_topic(body: bytes) -> None:
    with pytest.raises(RowError, match=r"features\.user_counters"):
        decode(COUNTERS, body)


@given(ROWS)
def test_newest_keeps_of_each_entity_the_last_of_its_latest_rows(rows: list[Row]) -> None:
    kept = {row.entity: row for row in newest(rows)}
    for entity in {row.entity for row in rows}:
        mine = [row for row in rows if row.entity == entity]
        latest = max(row.event_timestamp for row in mine)
        assert kept[entity] is [row for row in mine if row.event_timestamp == latest][-1]
