"""Values of impressions: buckets, people's worth, and what the learner makes of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from model.grm import Grm, collate
from model.grm.fit import FitConfig
from model.online.metrics import auc
from model.online.rank import Rank
from model.online.step import LearnerConfig, LearnerState, OnlineLearner
from model.online.worth import BOUND, SHRINK, UserWorth, ValueBuckets
from streaming.records import Labels, Sample
from tests.model.conftest import SmallWorld, published, small_config, small_world

CONFIG = LearnerConfig(FitConfig(lr=3e-3, warmup=5), window=400, beam=6, recall_share=0.1)


def learner(config: LearnerConfig = CONFIG, **changes: object) -> OnlineLearner:
    return OnlineLearner(Grm(small_config(value_buckets=4, **changes)), small_world().vocabulary, config)


def feed(target: OnlineLearner, rows: list[Sample], batch: int = 64) -> None:
    for start in range(0, len(rows), batch):
        target.step(rows[start : start + batch])


@pytest.mark.parametrize("kept", [1, 7, 50])
def test_a_rank_is_that_of_counting_the_latest_numbers(kept: int) -> None:
    rng, ranked, seen = np.random.default_rng(0), Rank(kept, 1), []
    for number in rng.integers(0, 10, 200).tolist():
        latest = seen[-kept:]
        expected = (
            (sum(other < number for other in latest) + sum(other == number for other in latest) / 2) / len(latest) if latest else None
        )
        assert ranked.of(number) == expected
        seen.append(number)
    assert ranked.state() == seen[-kept:]


def test_buckets_are_equally_full_where_values_differ() -> None:
    rng, buckets = np.random.default_rng(0), ValueBuckets(5)
    found = [buckets.bucket(float(value)) for value in rng.lognormal(size=4000)]
    assert found[:100] == [-1] * 100
    counts = np.bincount(found[100:], minlength=5)
    assert counts.max() < 1.15 * counts.min()
    assert (buckets.means().diff() > 0).all()
    known = sorted(buckets.state())
    assert buckets.means()[2].item() == pytest.approx(np.mean(known[800:1200]), rel=1e-5)


def test_equal_values_share_a_bucket_and_its_mean_is_theirs() -> None:
    buckets = ValueBuckets(8)
    values = [0.0, 0.0, 0.0, 1.5] * 500
    found = [buckets.bucket(value) for value in values][100:]
    zero, good = set(found[0::4]) | set(found[1::4]), set(found[3::4])
    assert len(zero) == len(good) == 1
    means = buckets.means()
    assert means[zero.pop()] == 0
    assert means[good.pop()] == 1.5
    assert (means.diff() >= 0).all()


def test_people_count_by_what_their_impressions_were_worth() -> None:
    people = UserWorth(0.5, 16)
    assert people.weight(1) == 1.0
    for _ in range(100):
        people.learn(1, 2.0, 1)
        people.learn(2, 0.0, 1)
    assert people.weight(3) == 1.0
    assert people.weight(1) == pytest.approx(((200 + SHRINK) / (100 + SHRINK)) ** 0.5)
    assert people.weight(2) == pytest.approx((SHRINK / (100 + SHRINK)) ** 0.5)
    assert people.weight(17) == people.weight(1)
    for _ in range(10_000):
        people.learn(2, 0.0, 1)
    people.learn(5, 1e9, 1)
    assert (people.weight(5), people.weight(2)) == (BOUND, 1 / BOUND)
    with pytest.raises(ValueError, match="expected 8"):
        UserWorth(0.5, 8).restore(people.state())


def _of_last_code(world: SmallWorld, row: Sample) -> Sample:
    """The same impression in a world where everybody likes the same half of all videos."""
    good = int(world.sids[row.item_id, -1] < 2)
    return msgspec.structs.replace(row, labels=Labels(click=good, long_view=good, play_ms=20_000 * good))


def test_the_value_of_what_is_shown_is_learned_also_where_it_is_none(world: SmallWorld) -> None:
    rows = [_of_last_code(world, row) for row in world.samples(1300)]
    target = learner()
    feed(target, rows[:1200])
    assert target.metrics.closed[-1]["auc"]["value"] > 0.9
    assert "value" not in target.metrics.closed[-1]["ne"]
    rows = rows[1200:]
    batch = collate(rows, world.vocabulary, target.model.config)
    expected = target.model.expected_value(batch, torch.tensor(world.sids[[row.item_id for row in rows]].astype("int64"))[:, None])[:, 0]
    good = np.array([row.labels.long_view for row in rows])
    assert auc(expected.double().numpy(), good) > 0.95
    assert expected.mean().item() == pytest.approx(1.5 * good.mean(), rel=0.25)  # a click and a long view each


def test_there_are_as_many_steps_as_without_it_and_codes_are_learned_of_the_same_targets(world: SmallWorld) -> None:
    valued, plain = learner(), OnlineLearner(Grm(small_config()), world.vocabulary, CONFIG)
    rows = world.samples(320)
    feed(valued, rows)
    feed(plain, rows)
    assert valued.counters == plain.counters
    assert len(valued.metrics.open.nll) == len(plain.metrics.open.nll)
    followers = [each.model.tables()["followers"] for each in (valued, plain)]
    assert torch.equal(*followers)


def test_a_value_that_nobody_knows_teaches_nothing(world: SmallWorld) -> None:
    target = learner()
    feed(target, world.samples(192))
    before = target.state()
    silent = [
        msgspec.structs.replace(row, sample_id=f"s{index}", impression_id=f"s{index}", labels=Labels())
        for index, row in enumerate(world.samples(32))
    ]
    target.step(silent)
    after = target.state()
    assert after.facts["values"] == before.facts["values"]
    assert after.facts["counters"]["steps"] == before.facts["counters"]["steps"]
    assert [name for name in before.tensors if name.startswith("model.") and not before.tensors[name].equal(after.tensors[name])] == []


def test_good_and_bad_come_in_the_same_proportion_in_every_step(world: SmallWorld) -> None:
    target = learner(replace(CONFIG, chunk=10))
    feed(target, world.samples(128))
    rows = [msgspec.structs.replace(row, impression_id=f"again {row.impression_id}") for row in world.samples(128)]
    initials, _, _ = target._triage(rows)
    good, bad = ([each for each in initials if (each.weight > 0) == wanted] for wanted in (True, False))
    chunks = target._chunks(good, bad)
    assert sorted(each.row.sample_id for chunk in chunks for each in chunk) == sorted(each.row.sample_id for each in initials)
    assert len(chunks) == -(-len(good) // 10)
    for chunk in chunks:
        taught = sum(each.weight > 0 for each in chunk)
        assert abs((len(chunk) - taught) - taught * len(bad) / len(good)) <= 1


def test_what_came_along_for_the_value_does_not_weaken_the_policy(world: SmallWorld) -> None:
    rows = world.samples(192)
    target = learner(replace(CONFIG, gbpo=0.5))
    initials, _, _ = target._triage(rows)
    good = [each for each in initials if target._teaches(each)]
    mixed = [*good, *(each for each in initials if not target._teaches(each))]
    alone, among = target._feedback(good), target._feedback(mixed)
    assert alone is not None
    assert among is not None
    assert alone.share == 0.5
    assert among.share * len(good) / len(mixed) == pytest.approx(0.5)


def test_weights_of_people_are_those_of_what_was_known_before(world: SmallWorld) -> None:
    target = OnlineLearner(Grm(small_config()), world.vocabulary, replace(CONFIG, user_weight=1.0))
    rows = world.samples(192)
    feed(target, rows)
    assert target.people is not None
    share = target.people.weight(rows[0].user_id)
    again = [msgspec.structs.replace(rows[0], sample_id="n", impression_id="n", labels=Labels(click=1, long_view=1), weight=3.0)]
    (found,), _, _ = target._triage(again)
    assert share != 1.0
    assert found.weight == pytest.approx(3.0 * share * 1.5)


@pytest.mark.parametrize("lazy_trunk", [0, 1])
def test_it_continues_bit_for_bit_and_what_is_published_expects_the_same(tmp_path: Path, world: SmallWorld, lazy_trunk: int) -> None:
    rows = world.samples(320)
    config = replace(CONFIG, user_weight=0.5)
    unbroken, first, second = (learner(config, lazy_trunk=lazy_trunk) for _ in range(3))
    feed(unbroken, rows)
    feed(first, rows[:192])
    state = first.state()
    feed(first, rows[192:256])  # what a killed trainer did after its checkpoint
    second.restore(LearnerState(state.tensors, json.loads(json.dumps(state.facts))))
    feed(second, rows[192:])
    one, two = unbroken.state(), second.state()
    assert one.facts == two.facts
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    served = published(unbroken, tmp_path)
    batch, sids = collate(rows[:4], world.vocabulary, served.config), torch.tensor(world.sids[:12].reshape(4, 3, 3).astype("int64"))
    expected = served.expected_value(batch, sids)
    assert torch.equal(expected, unbroken.model.expected_value(batch, sids))
    assert (expected > 0).all()


def test_a_state_without_values_is_one_of_another_learner(world: SmallWorld) -> None:
    plain = OnlineLearner(Grm(small_config()), world.vocabulary, CONFIG)
    with pytest.raises(ValueError, match="another model"):
        learner().restore(plain.state())
    with pytest.raises(ValueError, match="another model"):
        OnlineLearner(Grm(small_config()), world.vocabulary, replace(CONFIG, user_weight=0.5)).restore(plain.state())
    assert "user_weight" not in CONFIG.to_json()
