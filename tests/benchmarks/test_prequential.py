"""The prequential pass on a small world: who knows what when, and that a killed pass ends as one that was never killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks.prequential import report, statistics
from benchmarks.prequential.floors import Floors, Rates
from benchmarks.prequential.run import STEP_MS, WARM_UP_H, Pass, Plan
from benchmarks.prequential.snapshots import HOUR_MS, INTERVALS, Catalogue, Interval
from benchmarks.prequential.stream import LABEL_WINDOW_MS, earlier, samples
from model.grm import Grm, GrmConfig, Vocabulary
from model.online.checkpoint import Checkpoints
from model.online.metrics import auc
from model.online.step import LearnerConfig, OnlineLearner
from streaming.records import Context, HistoryEntry, Labels, Sample
from streaming.sources.kuairand import LOG_COLUMNS
from streaming.sources.kuairand_events import Exposures

pytestmark = pytest.mark.integration  # a whole run of the program

START = 1_700_000_000_000 - 1_700_000_000_000 % HOUR_MS
ITEMS = 20
CODES = (4, 5)


def exposures(*rows: dict[str, int]) -> Exposures:
    return Exposures({name: np.array([row.get(name, 0) for row in rows], np.int64) for name in LOG_COLUMNS})


def test_a_context_has_only_what_was_over_before_the_impression() -> None:
    first = {"time_ms": START, "user_id": 1, "video_id": 5, "play_time_ms": 30_000, "duration_ms": 60_000, "is_click": 1}
    during = {"time_ms": START + 30_000, "user_id": 1, "video_id": 6}
    after = {"time_ms": START + 30_001, "user_id": 1, "video_id": 7}
    found = [[(entry.item_id, entry.play_ms) for entry in row.context.history] for row in samples(exposures(first, during, after), {})]
    assert found == [[], [(5, None)], [(6, 0), (5, 30_000), (5, None)]]


def test_a_sample_is_ready_when_no_label_can_come_any_more() -> None:
    short = {"time_ms": START, "user_id": 1, "video_id": 5, "play_time_ms": 1_000}
    long = {"time_ms": START, "user_id": 2, "video_id": 5, "play_time_ms": 90_000}
    assert [row.ready_ts - row.ts for row in samples(exposures(short, long), {})] == [LABEL_WINDOW_MS, 90_000]


def test_what_was_watched_before_the_log_opens_the_history(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user_id": [1, 2],
            "last_time_ms": [START - 5, START + 5],
            "video_ids": [[3, 4]] * 2,
            "long_watch": [[1, 0]] * 2,
            "like": [[0, 1]] * 2,
        }
    )
    pa.parquet.write_table(table, tmp_path / "history_x.parquet")
    found = earlier(tmp_path, START)
    assert list(found) == [1]
    assert [(entry.item_id, entry.play_ms, entry.kinds) for entry in found[1]] == [(3, 18_000, ["watch"]), (4, None, ["watch", "like"])]


def test_versions_are_due_at_multiples_of_their_interval_and_the_frozen_one_once() -> None:
    due = {interval.name: [hour for hour in range(73) if interval.due(hour * HOUR_MS)] for interval in INTERVALS}
    assert due["streaming"] == []
    assert due["daily"] == [0, 24, 48, 72]
    assert due["frozen"] == [0]
    assert not Interval("hourly", 1).due(STEP_MS)


def sample(number: int, user: int, item: int, ts: int, history: list[HistoryEntry], long: int = 1) -> Sample:
    labels = Labels(click=long, long_view=long, like=0, play_ms=20_000 * long)
    return Sample(
        sample_id=f"{number}:initial", kind="initial", impression_id=str(number), user_id=user, item_id=item, ts=ts,
        ready_ts=ts + LABEL_WINDOW_MS, labels=labels, context=Context(history),
    )  # fmt: skip


def test_floors_prefer_the_last_author_and_the_last_tag_and_leave_out_the_history() -> None:
    floors = Floors(np.arange(6), np.array([0, 0, 1, 1, 2, 2]), np.array([7, 8, 7, 8, 7, 8]))
    floors.learn([sample(number, 1, item, START, []) for number, item in enumerate([5, 5, 5, 4, 4, 1, 3])])
    floors.choose()
    asked = sample(99, 1, 0, START, [HistoryEntry(5, START - 1, 500), HistoryEntry(2, START - 2, 20_000)])
    found = floors.recommend(asked, 3)
    assert found == {"popularity": [4, 1, 3], "last author": [3, 4, 1], "last tag": [4, 0, 1]}


def test_rates_start_at_even_odds_and_follow_the_user() -> None:
    rates = Rates({})
    asked = sample(0, 1, 0, START, [])
    assert rates.probability(asked) == pytest.approx(0.5)
    rates.learn([sample(number, 1, number, START, [], long=0) for number in range(1, 20)])
    other = sample(0, 2, 0, START, [])
    assert rates.probability(asked) < rates.probability(other) < 0.5


def test_videos_that_share_an_sid_share_its_place() -> None:
    sids = np.array([[0, 1]] * 12 + [[1, 1]], np.int32)
    known = Catalogue(np.arange(13), sids, (2, 2))
    assert known.hits([(1, 1), (0, 1)], 12, set()) == [1.0, 1.0]
    assert known.hits([(1, 1), (0, 1)], 3, set()) == pytest.approx([9 / 12, 1.0])
    assert known.hits([(0, 1), (1, 1)], 12, set()) == [0.0, 1.0]
    assert known.hits([(0, 1), (1, 1)], 12, {0, 1, 2}) == [1.0, 1.0]
    assert known.hits([(0, 1), (1, 1)], 0, {0}) == [0.0, 0.0]


def test_weighted_auc_of_ones_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    outcome, probability = rng.integers(0, 2, 200).astype(float), rng.integers(0, 9, 200) / 9
    owner = rng.integers(0, 30, 200)
    monkeypatch.setattr(statistics, "resamples", lambda users, rounds: iter([np.ones((2, users))]))
    found = statistics.auc_rounds(probability, outcome, owner, 30)
    assert found == pytest.approx([auc(probability, outcome.astype(np.int64))] * 2)


def test_a_difference_without_noise_has_an_interval_without_width() -> None:
    owner = np.arange(50)
    hits = np.arange(50) % 3 == 0
    rounds = {
        "streaming": statistics.mean_rounds(hits * 1.0, owner, 50, 100),
        "other": statistics.mean_rounds(hits * 1.0 + 0.5, owner, 50, 100),
    }
    found = statistics.compared({"streaming": hits.mean(), "other": hits.mean() + 0.5}, rounds, "streaming")
    assert found["other"]["difference_interval"] == pytest.approx([0.5, 0.5])
    low, high = found["streaming"]["interval"]
    assert low < hits.mean() < high


class World:
    """Four people, an impression every hour."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.ids = np.arange(ITEMS)
        self.sids = np.stack([self.ids % 4, self.ids // 4], 1).astype(np.int32)
        self.plan = Plan(START, WARM_UP_H + 14, 1.0, 0)

    def samples(self) -> Iterator[Sample]:
        rng = np.random.default_rng(3)
        for number, ts in enumerate(range(START, START + self.plan.hours * HOUR_MS, HOUR_MS)):
            user, item = int(rng.integers(4)), int(rng.integers(ITEMS))
            yield sample(number, user, item, ts + 1, [HistoryEntry((item + 4) % ITEMS, ts - 9, 20_000)], int(item % 4 == user))

    def begin(self) -> Pass:
        config = GrmConfig(
            codes=CODES, d_model=16, layers=1, heads=2, self_groups=1, ffn=16, context_hidden=16, d_sparse=8, user_rows=16, item_rows=32,
            prefix_rows=32, d_prefix=4, history=4,
        )  # fmt: skip
        vocabulary = Vocabulary(self.ids, self.sids, self.ids * 0, self.ids % 7, CODES)
        learner = OnlineLearner(Grm(config), vocabulary, LearnerConfig(recall_share=0.0))
        floors = Floors(self.ids, self.ids % 7, self.ids % 4)
        return Pass(self.plan, learner, Catalogue(self.ids, self.sids, CODES), floors, Rates({}))


class Killed(Exception):
    pass


def test_a_killed_pass_ends_as_one_that_was_never_killed_and_versions_differ_by_age(tmp_path: Path) -> None:
    world = World()
    whole = world.begin()
    whole.run(world.samples(), Checkpoints(tmp_path / "whole"), {}, lambda count: None)

    steps = 0

    def killing(count: int) -> None:
        nonlocal steps
        steps += 1
        if steps == (WARM_UP_H + 13) * HOUR_MS // STEP_MS:
            raise Killed

    with pytest.raises(Killed):
        world.begin().run(world.samples(), Checkpoints(tmp_path / "killed"), {}, killing)
    resumed = world.begin()
    resumed.run(world.samples(), Checkpoints(tmp_path / "killed"), {}, lambda count: None)
    assert resumed.records == whole.records
    assert len(whole.records) == 14

    by_name: dict[str, Any] = {name: [record["probability"][name] for record in whole.records] for name in whole.versions}
    streaming = np.array(by_name["streaming"])
    assert [by_name["frozen"][0], by_name["hourly"][0]] == pytest.approx([streaming[0]] * 2), "nothing was learned in between"
    assert by_name["daily"] == pytest.approx(by_name["frozen"])
    assert np.abs(np.array(by_name["frozen"]) - by_name["every 6 hours"]).max() > 1e-4
    assert np.abs(streaming - by_name["every 6 hours"]).max() > 1e-4
    result = report.summary(whole.records, world.plan)
    assert set(result["recall_at_10"]) == {"popularity", "last author", "last tag", *whole.versions}
    assert "frozen" in report.table(result | {"seconds": 1, "peak_bytes": 1})
