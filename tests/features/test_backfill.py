"""A historical log, put in order for the live job's SQL, and what comes out as Parquet."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features import backfill
from features.backfill import LogError
from features.view import Aggregate, Feature, View
from features.writer import Row

COUNTERS = View(
    "item_counters",
    "item_id",
    (Feature("clicks_5m", "Int64"), Feature("mean", "Float64")),
    (Aggregate("clicks_5m", "sum", "click", 300.0), Aggregate("mean", "mean", "play_ms", 300.0)),
)
HISTORY = View("user_history", "user_id", (Feature("entries", "Json"),), (Aggregate("entries", "last", "interaction", None),))


def ordered(folder: Path, disorder_ms: int = 500) -> tuple[list[dict[str, object]], backfill.Ordered]:
    target = folder / "ordered.jsonl"
    done = backfill.order(folder, target, disorder_ms)
    return [json.loads(line) for line in target.read_bytes().splitlines()], done


def test_records_of_all_files_come_in_the_order_in_which_they_became_known(tmp_path: Path) -> None:
    (tmp_path / "impressions.jsonl").write_text('{"event_id": "a", "ts": 3000}\n{"event_id": "b", "ts": 1000, "appended": 9000}\n')
    (tmp_path / "watches").mkdir()
    with gzip.open(tmp_path / "watches" / "1.jsonl.gz", "wb") as file:
        file.write(b'{"event_id": "c", "ts": 2000}\n')
    pq.write_table(pa.table({"event_id": ["d"], "ts": [8600]}), tmp_path / "engagements.parquet")
    lines, done = ordered(tmp_path)
    assert [line["event_id"] for line in lines] == ["c", "a", "b", "d"]
    assert [line["topic"] for line in lines] == ["watches", "impressions", "impressions", "engagements"]
    assert [str(line["appended"])[-14:] for line in lines] == [f"T00:00:0{at}Z" for at in ("2.000", "3.000", "9.000", "8.600")]
    assert done == backfill.Ordered(records=4, skipped=0)


def test_lines_that_are_no_record_with_a_time_are_counted(tmp_path: Path) -> None:
    (tmp_path / "impressions.jsonl").write_bytes(b'{"event_id": "a", "ts": 1}\n\xff\n[1]\n{"ts": null}\n{"ts": "soon"}\n\n{"ts": 1e300}\n')
    assert ordered(tmp_path)[1] == backfill.Ordered(records=1, skipped=5)


def test_a_folder_without_a_log_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"impressions\.jsonl"):
        backfill.order(tmp_path, tmp_path / "out", 500)


@given(times=st.lists(st.integers(0, 10**13), min_size=1, max_size=40), at_once=st.integers(1, 7))
def test_order_does_not_depend_on_how_much_is_sorted_at_once(
    tmp_path_factory: pytest.TempPathFactory, times: list[int], at_once: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    (folder / "impressions.jsonl").write_text("".join(json.dumps({"ts": ts}) + "\n" for ts in times))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backfill, "SORTED_AT_ONCE", at_once)
        lines, _ = ordered(folder)
    assert [line["ts"] for line in lines] == sorted(times)


def test_of_peers_only_the_last_is_a_value(tmp_path: Path) -> None:
    part = tmp_path / "user_history" / "part-0"
    part.parent.mkdir()
    rows = [
        '{"user_id":1,"event_timestamp":5,"entries":[1]}',
        '{"user_id":1,"event_timestamp":5,"entries":[2,1]}',
        '{"user_id":-1,"event_timestamp":6,"entries":[]}',
        '{"user_id":1,"event_timestamp":7,"entries":[3,2,1]}',
    ]
    part.write_text("".join(json.dumps({"key_entity": "1", "body": row}) + "\n" for row in rows))
    found = [(row.event_timestamp, bytes(row.values[0])) for row in backfill.values(HISTORY, tmp_path)]
    assert found == [(5, b"[2,1]"), (7, b"[3,2,1]")]


def test_parquet_has_the_columns_that_feast_reads_and_keeps_null(tmp_path: Path) -> None:
    path = tmp_path / "item_counters.parquet"
    assert backfill.write_parquet(COUNTERS, [Row(4, 1_650_000_000_123, (2, None))], path) == 1
    table = pq.read_table(path)
    assert table.schema.field("event_timestamp").type == pa.timestamp("ms", "UTC")
    assert table.drop_columns(["event_timestamp"]).to_pylist() == [{"item_id": 4, "clicks_5m": 2, "mean": None}]
    assert table["event_timestamp"].cast(pa.int64()).to_pylist() == [1_650_000_000_123]


def test_parquet_of_nothing_can_be_read(tmp_path: Path) -> None:
    assert backfill.write_parquet(HISTORY, [], tmp_path / "empty.parquet") == 0
    assert pq.read_table(tmp_path / "empty.parquet").num_rows == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (3, 3, True),
        (3, 4, False),
        (None, None, True),
        (None, 0, False),
        (0.1 + 0.2, 0.3, True),
        (b"[1, 2]", [1, 2], True),
        (b"[1]", [2], False),
    ],
)
def test_values_are_equal_up_to_the_last_digits_of_floats_and_spaces_of_json(one: object, other: object, same: bool) -> None:
    assert backfill.equal(one, other) is same
