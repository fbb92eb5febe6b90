"""Clusters of the older history and authors as positions: what they hold, that they are learned, published and searched like the rest."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.grm import Grm, GrmBatch, GrmConfig, Query, collate
from model.grm.graph import BeamGraph
from model.grm.groups import Groups, count_bucket
from model.grm.inputs import hash_rows
from model.online.publish import Publisher, load_current
from model.online.step import LearnerConfig, LearnerState, OnlineLearner
from model.store import ModelStore
from streaming.records import Context, HistoryEntry
from tests.model.conftest import SmallWorld, small_config, small_world

NOW = 1_700_000_000_000
LONG_VIEW, SKIPPED = 60_000, 100
CONFIG = small_config(history=3, events=4, long=2, long_events=20, cross=3, author_rows=32)
LEARNING = LearnerConfig(window=100, beam=6, recall_share=0.2)


def watched(item: int, age: int, play_ms: int = SKIPPED) -> HistoryEntry:
    return HistoryEntry(item, NOW - age * 1000, play_ms)


def query(*history: HistoryEntry) -> Query:
    return Query(3, NOW, Context(list(history)))


def bags(batch: GrmBatch, feature: str) -> list[list[int]]:
    """Values of a feature, one list per token."""
    jagged = batch.features[feature]
    return [part.tolist() for part in torch.split(jagged.values(), jagged.lengths().tolist())]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 4), st.booleans()), max_size=30), st.integers(0, 4))
def test_groups_are_those_that_counting_by_hand_finds(videos: list[tuple[int, int, bool]], most: int) -> None:
    videos.sort(key=lambda video: video[0])
    row, key, liked = (np.array([video[column] for video in videos], np.int64) for column in range(3))
    found = Groups.of(row, key, liked.astype(bool), most)
    expected = []
    for user in range(4):
        members = defaultdict(list)
        for index, (of, name, _) in enumerate(videos):
            if of == user and name >= 0:
                members[name].append(index)
        groups = [(-sum(liked[each] for each in of), -len(of), of[0]) for of in members.values()]
        expected += [(user, rank, newest, -count, -likes) for rank, (likes, count, newest) in enumerate(sorted(groups)[:most])]
    assert list(zip(*(getattr(found, name).tolist() for name in ("row", "rank", "newest", "count", "liked")), strict=True)) == expected


def test_videos_behind_the_newest_are_clusters_and_all_videos_are_authors(world: SmallWorld) -> None:
    # Codes 0 of the small world are item % 6, its authors item % 12.
    old = [watched(6, 50), watched(12, 60, LONG_VIEW), watched(1, 70), watched(7, 80), watched(13, 90), watched(2, 100, LONG_VIEW)]
    batch = collate([query(watched(0, 1), watched(3, 2), watched(24, 3, LONG_VIEW), *old)], world.vocabulary, CONFIG)
    assert batch.mask.tolist() == [[True] * (1 + 3 + 2 + 3)]
    assert bags(batch, "code_0") == [[], [0], [3], [0], [0], [2], [], [], []]  # one liked of two before one of one
    items = hash_rows(np.array([0, 3, 24, 6, 2]), CONFIG.item_rows).tolist()
    assert bags(batch, "item") == [[], *([item] for item in items), [], [], []]
    assert bags(batch, "count") == [[]] * 4 + [[2], [1], [3], [1], [2]]
    assert bags(batch, "liked") == [[]] * 4 + [[1], [1], [2], [1], [0]]
    assert bags(batch, "author") == [[]] * 6 + [[value] for value in hash_rows(np.array([0, 2, 1]), 32).tolist()]
    assert bags(batch, "rank") == [[], [0], [1], [2], [], [], [], [], []]
    assert batch.memory.codes.shape == (1, 3, 3)


def test_events_beyond_those_read_are_in_no_group(world: SmallWorld) -> None:
    history = [watched(item, item + 1) for item in range(60)]
    few, many = (collate([query(*history[:count])], world.vocabulary, CONFIG) for count in (24, 60))
    assert torch.equal(few.features.values(), many.features.values())
    assert torch.equal(few.features.lengths(), many.features.lengths())


def test_the_newest_videos_are_what_they_are_without_groups(world: SmallWorld) -> None:
    rows = [query(*(watched(item, item + 1) for item in range(count))) for count in (0, 2, 4)]
    plain = collate(rows, world.vocabulary, small_config(history=3, events=4))
    grouped = collate(rows, world.vocabulary, CONFIG)
    for name in plain.features.keys():  # noqa: SIM118
        short = [bag for bag, other in zip(bags(grouped, name), bags(grouped, "count"), strict=True) if not other]
        assert short == bags(plain, name), name
    for name in ("codes", "liked", "items"):
        assert torch.equal(getattr(plain.memory, name), getattr(grouped.memory, name))


@pytest.mark.parametrize("history", [[], [watched(10**9, 5)], [watched(-7, 5)] * 9])
def test_a_history_without_known_videos_has_no_groups(world: SmallWorld, history: list[HistoryEntry]) -> None:
    batch = collate([query(*history), query()], world.vocabulary, CONFIG)
    assert bags(batch, "count") == [[]] * int(batch.mask.sum())
    found = Grm(CONFIG).beam(batch, [6, 8, 8])
    assert torch.isfinite(found.log_prob).all()


def test_counts_are_single_as_long_as_they_are_small_and_never_leave_their_table() -> None:
    assert count_bucket(np.array([0, 1, 2, 3, 4, 5, 6, 63, 64, 10**9])).tolist() == [0, 1, 2, 3, 4, 4, 5, 9, 10, 10]


def learner(**changes: object) -> OnlineLearner:
    config = small_config(history=3, events=4, long=2, long_events=20, cross=3, author_rows=32, **changes)
    return OnlineLearner(Grm(config), small_world().vocabulary, LEARNING)


def feed(target: OnlineLearner, world: SmallWorld, start: int, stop: int) -> None:
    samples = small_world().samples(stop)
    for first in range(start, stop, 32):
        target.step(samples[first : first + 32])


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("changes", [{}, {"managed": True, "user_rows": 8, "item_rows": 16}, {"lazy_trunk": 1, "experts": 3}])
def test_a_model_with_groups_continues_bit_for_bit_and_is_published_and_searched_as_it_is(
    tmp_path: Path, world: SmallWorld, changes: dict[str, object]
) -> None:
    target, resumed = learner(**changes), learner(**changes)
    feed(target, world, 0, 96)
    resumed.restore(LearnerState(**vars(target.state())))
    publisher = Publisher(ModelStore(tmp_path), "b1", full_share=1.0)
    for begin, end in ((96, 96), (96, 192)):  # a full version, then a delta
        feed(target, world, begin, end)
        taken = publisher.take(target.model, target.fitter.take_touched(), {})
        publisher.publish(taken, target.model.config, offsets={}, watermark_ts=0, samples_trained=0, metrics={})
    feed(resumed, world, 96, 192)
    one, two = target.state().tensors, resumed.state().tensors
    assert all(torch.equal(one[name], two[name]) for name in one)
    served = load_current(ModelStore(tmp_path)).model
    assert served.config == target.model.config
    asked = [query(*(watched(item, item + 1) for item in range(count))) for count in (0, 3, 30)]
    batch = collate(asked, world.vocabulary, served.config)
    mine, theirs = target.model.eval().beam(batch, [4, 8, 8]), served.beam(batch, [4, 8, 8])
    assert torch.equal(mine.sids, theirs.sids)
    assert torch.equal(mine.log_prob, theirs.log_prob)
    if not served.config.experts:
        torch.testing.assert_close(BeamGraph(served)(batch, [4, 8, 8]).log_prob, theirs.log_prob, rtol=1e-5, atol=1e-5)


def test_tastes_that_only_the_older_history_shows_are_learned_through_clusters() -> None:
    """Whether code 0 is 1 or 2 depends on what was watched long ago; the newest videos and the user say nothing of it."""
    world = small_world()

    def loss_after(config: GrmConfig) -> float:
        rng = np.random.default_rng(0)
        rows, sids = [], []
        for _ in range(64):
            taste = int(rng.integers(1, 3))
            newest = [watched(int(item), age + 1) for age, item in enumerate(rng.permutation(60)[:3] // 6 * 6)]
            older = [watched(6 * place + taste, 50 + place, LONG_VIEW) for place in range(4)]
            rows.append(Query(0, NOW, Context([*newest, *older])))
            sids.append(world.sids[6 * int(rng.integers(10)) + taste].tolist())
        model = Grm(config)
        batch = collate(rows, world.vocabulary, config).with_targets(sids)
        optimizer = torch.optim.AdamW([parameter for _, parameter in model.dense_parameters()], lr=3e-3)
        for _ in range(40):
            optimizer.zero_grad()
            model.loss(batch, torch.ones(64)).backward()
            optimizer.step()
        return -float(model.log_prob(batch)[:, 0].mean())

    sizes = {"history": 3, "events": 20, "followers": 2}
    assert loss_after(small_config(**sizes, long=2)) < 0.1
    assert loss_after(small_config(**sizes)) > 0.3


def test_options_not_taken_leave_model_and_configuration_as_they_were() -> None:
    plain = small_config()
    assert not {"long", "long_events", "cross", "author_rows"} & plain.to_json().keys()
    assert not {"count", "liked", "author"} & Grm(plain).tables().keys()
    assert GrmConfig.from_json(CONFIG.to_json()) == CONFIG


@pytest.mark.parametrize("changes", [{"long": -1}, {"cross": -1}, {"long": 2, "long_events": -1}, {"long_events": 5}])
def test_groups_that_cannot_be_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"long(_events)? is"):
        small_config(**changes)
