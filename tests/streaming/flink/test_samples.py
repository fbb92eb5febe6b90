"""The samples job's SQL as text; what it does is in the integration tests."""

from __future__ import annotations

import re

from streaming import records
from streaming.flink import samples

WINDOWS = samples.Windows(label_s=60, attribution_s=3600, disorder_s=5)


def test_every_label_of_a_sample_is_filled_in_the_order_of_its_struct() -> None:
    labels = [name for name in samples.columns([records.Labels]) if name != "schema"]
    filled = re.search(r"CAST\(ROW\((CASE.*?)\) AS ROW<(.*?)>\) AS labels", samples.sample(WINDOWS), re.DOTALL)
    assert filled is not None
    assert re.findall(r"`(\w+)`", filled[2]) == labels


def test_samples_have_the_columns_of_their_record() -> None:
    assert set(samples.SAMPLE_COLUMNS) == set(records.Sample.__struct_fields__)


def test_corrections_keep_their_place_behind_the_initial_by_the_users_key() -> None:
    ddl = samples.sample_sink({"bootstrap.servers": "b:1"}, "job")
    assert "'key.fields' = 'key_user'" in ddl
    assert "'sink.delivery-guarantee' = 'exactly-once'" in ddl


def test_a_version_of_the_history_is_valid_only_after_the_millisecond_in_which_it_was_known() -> None:
    assert "TO_TIMESTAMP_LTZ(event_timestamp + 1, 3)" in samples.history_table({"bootstrap.servers": "b:1"}, "g", 10)


def test_without_the_history_only_logged_contexts_are_used() -> None:
    assert "JOIN" not in samples.insert_samples(history=False)
