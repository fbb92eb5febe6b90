"""Duration-aware satisfaction: ranks that do not follow the duration, and what the learner makes of them."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from model.grm import Grm
from model.online.satisfaction import DurationRank
from model.online.step import LearnerConfig, LearnerState, OnlineLearner
from streaming.records import Labels, Sample
from tests.model.conftest import SmallWorld, small_config, small_world

CONFIG = LearnerConfig(window=100, beam=6, recall_share=0.0, satisfaction="duration")


def learner(config: LearnerConfig = CONFIG) -> OnlineLearner:
    return OnlineLearner(Grm(small_config()), small_world().vocabulary, config)


def watched(of: Sample, index: int, play_ms: int, duration_ms: int | None, **labels: int) -> Sample:
    """An impression that was watched and nothing else, of a video of its own length."""
    told = Labels(play_ms=play_ms, long_view=int(play_ms >= min(18_000, duration_ms or 18_000)), **labels)
    return msgspec.structs.replace(of, sample_id=f"{index}:watched", impression_id=f"watched {index}", labels=told, duration_ms=duration_ms)


def test_ranks_do_not_follow_the_duration() -> None:
    rng, ranked = np.random.default_rng(0), DurationRank()
    durations = rng.integers(5_000, 120_000, 4000)
    shares = rng.random(4000)
    found = [ranked.rank(int(duration * share), int(duration)) for duration, share in zip(durations, shares, strict=True)]
    known = [(duration, rank) for duration, rank in zip(durations, found, strict=True) if rank is not None]
    assert abs(np.corrcoef(np.array(known).T)[0, 1]) < 0.15  # a bucket holds durations up to a factor of 1.5
    assert found[:20] == [None] * 20
    assert ranked.rank(10, 0) is None
    with pytest.raises(ValueError, match="play_ms is -1"):
        ranked.rank(-1, 1000)


def test_restored_ranks_go_on_as_before() -> None:
    one, two = DurationRank(kept=30), DurationRank(kept=30)
    for play_ms in range(100):
        one.rank(play_ms * 100, 5_000 * (1 + play_ms % 2))
    two.restore(json.loads(json.dumps(one.state())))
    assert [one.rank(play_ms, 5_000) for play_ms in range(0, 9_000, 300)] == [two.rank(play_ms, 5_000) for play_ms in range(0, 9_000, 300)]


def test_a_target_is_a_watch_that_is_long_for_its_video(world: SmallWorld) -> None:
    base = world.samples(1)[0]
    common = [watched(base, index, 20_000 - index, 100_000) for index in range(40)]  # long views all, each shorter than the last
    best, short = watched(base, 40, 90_000, 100_000), watched(base, 41, 19_000, 100_000)
    unknown = watched(base, 42, 19_000, None)
    target, plain = learner(), learner(replace(CONFIG, satisfaction="long_view"))
    for each in (target, plain):
        each.step(common)
    before = target.counters.targets, plain.counters.targets
    assert before[0] < before[1] == 40
    gained = []
    for row in (best, short, unknown):
        counted = target.counters.targets
        target.step([row])
        gained.append(target.counters.targets - counted)
    assert gained == [1, 0, 1]  # where nothing is known of the duration, the label counts as it is


def test_a_repeated_initial_is_not_ranked_again(world: SmallWorld) -> None:
    rows = [watched(world.samples(1)[0], index, 1_000 * index, 30_000) for index in range(30)]
    target = learner()
    target.step(rows)
    before = target.state().facts["durations"]
    target.step(rows)
    assert target.counters.duplicates == 30
    assert target.state().facts["durations"] == before


def test_a_late_watch_is_learned_where_it_satisfies(world: SmallWorld) -> None:
    base = world.samples(1)[0]
    rows = [watched(base, index, 1_000 + index, 30_000) for index in range(30)]
    silent = [msgspec.structs.replace(watched(base, 50 + index, 0, 30_000), labels=Labels()) for index in range(2)]
    late = [
        msgspec.structs.replace(
            row, kind="correction", sample_id=f"{row.impression_id}:late", labels=Labels(play_ms=play_ms, long_view=long)
        )
        for row, play_ms, long in zip(silent, (17_000, 900), (0, 0), strict=True)
    ]
    target = learner()
    target.step([*rows, *silent])
    counted = target.counters.targets
    target.step(late)
    assert target.counters.targets - counted == 1


def test_a_state_with_ranks_continues_bit_for_bit(world: SmallWorld) -> None:
    rng = np.random.default_rng(3)
    rows = [
        watched(row, index, int(rng.integers(60_000)), int(rng.integers(5_000, 60_000))) for index, row in enumerate(world.samples(160))
    ]
    unbroken, first, second = learner(), learner(), learner()
    for start in range(0, 160, 32):
        unbroken.step(rows[start : start + 32])
    for start in range(0, 96, 32):
        first.step(rows[start : start + 32])
    state = first.state()
    second.restore(LearnerState(state.tensors, json.loads(json.dumps(state.facts))))
    for start in range(96, 160, 32):
        second.step(rows[start : start + 32])
    assert unbroken.counters.steps > 3
    one, two = unbroken.state(), second.state()
    assert one.facts == two.facts
    assert all(tensor.equal(two.tensors[name]) for name, tensor in one.tensors.items())
