"""What `features plan` and `features verify` conclude."""

from __future__ import annotations

from typing import Any

import pytest

from features.view import Aggregate, Feature, View
from jobs.feature_backfill import Comparison, judge, render
from jobs.feature_writing import Tally, percentiles
from jobs.features import changes, sql_difference


def view(name: str, **windows: float) -> View:
    aggregates = tuple(Aggregate(feature, "sum", "click", window) for feature, window in windows.items())
    return View(name, "user_id", tuple(Feature(feature, "Int64") for feature in windows), aggregates)


def test_plan_names_every_view_and_feature_that_changes() -> None:
    applied = [view("kept", a=60.0, b=60.0), view("old", a=60.0)]
    wanted = [view("kept", a=90.0, c=60.0), view("new", a=60.0)]
    assert changes(applied, wanted) == [
        "  + new: 1 features by user_id",
        "  - old: its values leave the online store",
        "  + kept.c",
        "  - kept.b",
        "  ~ kept.a",
    ]


def test_plan_of_what_is_applied_changes_nothing() -> None:
    assert changes([view("kept", a=60.0)], [view("kept", a=60.0)]) == ["  nothing changes"]
    assert list(sql_difference("SELECT 1\n", "SELECT 1\n")) == []


def judged(stamp: int, values: list[Any]) -> Comparison:
    result = Comparison("counters")
    wanted = {(7, 10): (1,), (7, 20): (2,)}
    judge(result, 7, stamp, 20, wanted, ["clicks"], values)
    return result


def test_the_latest_value_that_is_right_is_equal() -> None:
    found = judged(20, [2])
    assert (found.equal, found.behind, found.holds) == (1, 0, True)


def test_an_earlier_value_is_judged_as_of_its_time_and_is_behind() -> None:
    found = judged(10, [1])
    assert (found.equal, found.behind, found.holds) == (1, 1, True)


def test_a_value_newer_than_the_log_is_not_judged() -> None:
    found = judged(30, [9])
    assert (found.equal, found.ahead, found.holds) == (0, 1, True)


@pytest.mark.parametrize(
    ("stamp", "values", "said"),
    [
        (20, [3], "counters 7 as of 20: clicks is 3, recomputed 2"),
        (15, [1], "counters 7: online as of 15, when nothing happened by the log"),
        (0, [None], "counters 7: not online, recomputed as of 20"),
    ],
)
def test_a_difference_says_what_when_and_what_was_expected(stamp: int, values: list[Any], said: str) -> None:
    found = judged(stamp, values)
    assert found.differences == [said]
    assert not found.holds
    assert said in render([found])


def test_percentiles_of_one_row_are_that_row_and_of_none_are_nothing() -> None:
    assert percentiles([4.0]) == {"p50": 4.0, "p95": 4.0, "p99": 4.0, "max": 4.0}
    assert percentiles([]) == {}
    assert percentiles([float(n) for n in range(1, 101)])["p99"] == 100.0


def test_ages_of_a_replayed_log_are_not_ages_of_the_writer() -> None:
    from features.writer import Row, Written

    tally = Tally()
    tally.add({"counters": [Row(1, 1_650_000_000_000, (1,)), Row(2, 1_795_000_000_000, (1,))]}, Written(2, 2), 1_795_000_000_250)
    assert tally.report({})["event_to_written_ms"] == {"rows": 1, "p50": 250, "p95": 250, "p99": 250, "max": 250}
