"""Feature views as Flink SQL."""

from __future__ import annotations

import pytest

from features import compile as compiler
from features.view import Aggregate, Feature, View, ViewError

COUNTERS = View(
    "item_counters",
    "item_id",
    (Feature("clicks_5m", "Int64"), Feature("clicks_1h", "Int64"), Feature("mean_play_ms_1h", "Float64")),
    (
        Aggregate("clicks_5m", "sum", "click", 300.0),
        Aggregate("clicks_1h", "sum", "click", 3600.0),
        Aggregate("mean_play_ms_1h", "mean", "play_ms", 3600.0),
    ),
)
HISTORY = View("user_history", "user_id", (Feature("entries", "Json"),), (Aggregate("entries", "last", "interaction", None),))

COUNTERS_SQL = """\
WITH within_3600000_ms AS (
    SELECT `item_id`, `rt`, `click`,
    COALESCE(SUM(`click`) OVER w, 0) AS `clicks_1h`,
    AVG(CAST(`play_ms` AS DOUBLE)) OVER w AS `mean_play_ms_1h`
    FROM happened
    WINDOW w AS (PARTITION BY item_id ORDER BY rt RANGE BETWEEN INTERVAL '0 01:00:00.000' DAY(3) TO SECOND(3) PRECEDING AND CURRENT ROW)
), within_300000_ms AS (
    SELECT `item_id`, `rt`, `clicks_1h`, `mean_play_ms_1h`,
    COALESCE(SUM(`click`) OVER w, 0) AS `clicks_5m`
    FROM within_3600000_ms
    WINDOW w AS (PARTITION BY item_id ORDER BY rt RANGE BETWEEN INTERVAL '0 00:05:00.000' DAY(3) TO SECOND(3) PRECEDING AND CURRENT ROW)
)
SELECT CAST(item_id AS STRING) AS key_entity, item_id, \
CAST(TIMESTAMPDIFF(SECOND, TO_TIMESTAMP_LTZ(0, 3), rt) AS BIGINT) * 1000 + EXTRACT(MILLISECOND FROM rt) AS event_timestamp,
    CAST(`clicks_5m` AS BIGINT) AS `clicks_5m`,
    CAST(`clicks_1h` AS BIGINT) AS `clicks_1h`,
    CAST(`mean_play_ms_1h` AS DOUBLE) AS `mean_play_ms_1h`
FROM within_300000_ms"""


def view(*aggregates: Aggregate, join_key: str = "user_id") -> View:
    return View("view", join_key, tuple(Feature(a.name, "Int64") for a in aggregates), aggregates)


def test_counters_are_one_pass_a_window_the_longest_first() -> None:
    assert compiler.query(COUNTERS, 50) == COUNTERS_SQL


def test_columns_of_the_sink_are_those_of_the_query_in_their_order() -> None:
    assert compiler.sink_columns(COUNTERS) == (
        "key_entity STRING, item_id BIGINT, event_timestamp BIGINT, `clicks_5m` BIGINT, `clicks_1h` BIGINT, `mean_play_ms_1h` DOUBLE"
    )


def test_a_listing_keeps_more_rows_than_it_shows_so_that_peers_have_one_order() -> None:
    sql = compiler.query(HISTORY, 50)
    assert f"ROWS BETWEEN {50 + compiler.PEERS - 1} PRECEDING AND CURRENT ROW" in sql
    assert "ARRAY_SLICE(ARRAY_SORT(ARRAY_AGG(interaction) OVER w, FALSE), 1, 50)" in sql


def test_heartbeats_of_one_partition_reach_the_history_and_no_counters() -> None:
    assert "heartbeat/1" in compiler.query(HISTORY, 50)
    assert "kafka_partition = 0" in compiler.query(HISTORY, 50)
    assert "heartbeat" not in compiler.query(COUNTERS, 50)


def test_every_column_of_the_definitions_docstring_is_known() -> None:
    from features.repository import DEFINITIONS

    text = DEFINITIONS.read_text()
    assert all(column in text for column in (*compiler.COLUMNS, compiler.INTERACTION))


@pytest.mark.parametrize(
    ("aggregate", "reason"),
    [
        (Aggregate("f", "median", "click", 60.0), "function median is none of"),
        (Aggregate("f", "sum", "clicks", 60.0), "column clicks is none of"),
        (Aggregate("f", "sum", "click", None), "it needs a time_window"),
        (Aggregate("f", "last", "click", None), "last lists the column interaction"),
    ],
)
def test_an_aggregation_without_sql_is_refused_by_name_and_reason(aggregate: Aggregate, reason: str) -> None:
    with pytest.raises(ViewError, match=rf"view\.f: {reason}"):
        compiler.query(view(aggregate), 50)


def test_a_listing_has_its_view_to_itself() -> None:
    with pytest.raises(ViewError, match="must be the only feature"):
        compiler.query(view(Aggregate("f", "last", "interaction", None), Aggregate("g", "sum", "click", 60.0)), 50)


def test_an_entity_that_events_do_not_name_is_refused() -> None:
    with pytest.raises(ViewError, match="no author_id"):
        compiler.query(view(Aggregate("f", "sum", "click", 60.0), join_key="author_id"), 50)
