"""GBPO in the online learner: what its step's gradient is, what becomes of unwanted videos, and that they are no targets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import pytest
import torch

from model.grm import Grm, collate
from model.grm.fit import FitConfig
from model.online.step import LearnerConfig, OnlineLearner
from streaming.records import Labels, Sample
from tests.model.conftest import SmallWorld, small_config, small_world

SHARE = 2.0


def learner(gbpo: float = SHARE) -> OnlineLearner:
    config = LearnerConfig(FitConfig(lr=3e-3, warmup=5), window=10_000, beam=6, recall_share=0.0, gbpo=gbpo)
    return OnlineLearner(Grm(small_config()), small_world().vocabulary, config)


def answered(row: Sample, name: str, sid: Sequence[int] | None = None, policy_logprob: float | None = None, **labels: int) -> Sample:
    named = {"sample_id": name, "impression_id": name}
    return msgspec.structs.replace(
        row, labels=Labels(**labels), sid=None if sid is None else list(sid), policy_logprob=policy_logprob, **named
    )


def log_prob(target: OnlineLearner, rows: Sequence[Sample], world: SmallWorld) -> torch.Tensor:
    batch = collate(rows, world.vocabulary, target.model.config).with_targets([world.sids[row.item_id].tolist() for row in rows])
    with torch.no_grad():
        return target.model.log_prob(batch).double().sum(1)


def test_the_gradient_is_that_of_cross_entropy_and_policy_together(world: SmallWorld) -> None:
    rows = world.samples(5)
    own = [world.sids[row.item_id].tolist() for row in rows]
    batch = [
        answered(rows[0], "drawn by the policy", own[0], -0.5, click=1, long_view=1),
        answered(rows[1], "served instead of another", [0, 0, 0], -0.1, long_view=1),
        answered(rows[2], "popular", None, None, click=1, hate=1),
        answered(rows[3], "disliked although likely", own[3], -0.01, hate=1),
        answered(rows[4], "neither", own[4], -2.0, like=1),
    ]
    weight, advantage = [1.5, 1.0, 0.0, 0.0, 1.0], [1.0, 1.0, -1.0, -1.0, 0.0]
    old = [-0.5, None, None, -0.01, -2.0]
    target, reference = learner(), Grm(small_config())
    target.step(batch)
    scores = reference(collate(batch, world.vocabulary, reference.config).with_targets(own))
    by_token = torch.zeros(5, 3, dtype=torch.float64)
    for row, now in enumerate(scores.log_prob.detach().double().sum(1).tolist()):
        before = now if old[row] is None else old[row]
        bound = max(before, now if advantage[row] >= 0 else math.log1p(-math.exp(now)))
        by_token[row] = -weight[row] / (3 * sum(weight)) - SHARE * advantage[row] * math.exp(now - bound) / 5
    scores.log_prob.backward(by_token.float())
    dense = dict(reference.dense_parameters())
    torch.nn.utils.clip_grad_norm_(dense.values(), 1.0)
    assert target.counters.steps == 1
    for name, found in target.model.dense_parameters():
        if found.grad is not None:
            torch.testing.assert_close(found.grad, dense[name].grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_what_people_dislike_becomes_less_likely_and_is_no_target(world: SmallWorld) -> None:
    target, plain = learner(), learner(gbpo=0.0)
    liked = [row for row in world.samples(600) if row.labels.long_view]
    for each in (target, plain):
        for start in range(0, len(liked), 32):
            each.step(liked[start : start + 32])
    disliked = [answered(row, f"{again} {row.impression_id}", hate=1) for again in range(4) for row in liked[-64:]]
    followers = target.model.followers.table.clone()
    counted, floors, nll = target.counters.targets, target.floors.state(), len(target.metrics.open.nll)
    before = {each: log_prob(each, disliked, world) for each in (target, plain)}
    for each in (target, plain):
        for start in range(0, len(disliked), 32):
            each.step(disliked[start : start + 32])
    assert torch.equal(log_prob(plain, disliked, world), before[plain])
    assert (log_prob(target, disliked, world) - before[target]).mean() < -0.2
    assert torch.equal(target.model.followers.table, followers)
    assert (target.counters.targets, target.floors.state(), len(target.metrics.open.nll)) == (counted, floors, nll)


def test_a_window_of_dislikes_alone_has_no_loss_to_tell(world: SmallWorld) -> None:
    target = learner()
    target.step([answered(row, f"no {row.impression_id}", hate=1) for row in world.samples(100)])
    told = target.metrics.open.summary()
    assert target.counters.steps == 4
    assert (told["samples"], told["positives"], told["loss"], told["level_accuracy"]) == (100, 0, None, [])


def test_a_chance_above_one_teaches_no_more_than_cross_entropy(world: SmallWorld) -> None:
    row = world.samples(1)[0]
    sid = world.sids[row.item_id].tolist()
    target = learner()
    target.step([answered(row, "impossible", sid, 5.0, long_view=1)])
    assert target.counters.steps == 1
    assert all(torch.isfinite(parameter).all() for parameter in target.model.parameters())


def test_without_feedback_the_option_changes_no_step(world: SmallWorld) -> None:
    rows = [msgspec.structs.replace(row, labels=Labels(click=1)) for row in world.samples(40)]
    one, two = learner(), learner(gbpo=0.0)
    one.step(rows)
    two.step(rows)
    assert one.config.to_json()["gbpo"] == SHARE
    assert all(torch.equal(tensor, two.state().tensors[name]) for name, tensor in one.state().tensors.items())
    assert two.config.to_json().keys() == {"fit", "chunk", "recall_share", "beam", "window", "half_life", "rate_rows"}


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_a_samples_own_weight_multiplies_its_advantage(world: SmallWorld, weight: float) -> None:
    target = learner()
    rows = [answered(row, f"no {row.impression_id}", hate=1) for row in world.samples(3)]
    worths = [target.ledger.admit("initial", row.impression_id, row.labels, weight) for row in rows]
    assert [worth.advantage for worth in worths] == [-weight] * 3
