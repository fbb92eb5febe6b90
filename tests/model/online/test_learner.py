"""The online learner: scores before it learns, learns everything once, and continues exactly where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import msgspec
import pytest
import torch

from model.grm import Grm, collate
from model.grm.fit import FitConfig, Precision
from model.online.step import LearnerConfig, LearnerState, OnlineLearner
from streaming.records import Labels, Sample
from tests.model.conftest import SmallWorld, small_config, small_world

CONFIG = LearnerConfig(FitConfig(lr=3e-3, warmup=5), window=100, beam=12, recall_share=1.0, chunk=32)


def learner(config: LearnerConfig = CONFIG) -> OnlineLearner:
    return OnlineLearner(Grm(small_config()), small_world().vocabulary, config)


def feed(target: OnlineLearner, samples: Sequence[Sample], batch: int = 32) -> None:
    for start in range(0, len(samples), batch):
        target.step(samples[start : start + batch])


def weights(target: OnlineLearner) -> dict[str, torch.Tensor]:
    return target.state().tensors


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def correction(of: Sample, **labels: float) -> Sample:
    return msgspec.structs.replace(of, kind="correction", sample_id=f"{of.impression_id}:late", labels=Labels(**labels))


def test_recall_rises_above_popularity_where_people_differ(world: SmallWorld) -> None:
    target = learner()
    feed(target, world.samples(1600), batch=64)
    last = target.metrics.closed[-4:]
    model = sum(window["recall_at_10"] for window in last) / 4
    popularity = sum(window["floors"]["popularity"] for window in last) / 4
    assert model > popularity + 0.2
    assert last[-1]["loss"] < target.metrics.closed[0]["loss"]


def test_a_sample_is_scored_before_it_is_learned(world: SmallWorld) -> None:
    samples = [sample for sample in world.samples(200) if sample.labels.long_view][:20]
    target = learner(LearnerConfig(window=20, chunk=64))
    target.step(samples)
    untrained = Grm(small_config())
    batch = collate(samples, world.vocabulary, untrained.config).with_targets([world.sids[sample.item_id].tolist() for sample in samples])
    assert target.counters.steps == 1
    assert target.metrics.closed[0]["loss"] == pytest.approx(-untrained.log_prob(batch).mean().item(), rel=1e-5)


@pytest.mark.parametrize("precision", get_args(Precision))
def test_a_state_continues_bit_for_bit(world: SmallWorld, precision: Precision) -> None:
    samples = world.samples(240)
    unbroken, first, second = (learner(replace(CONFIG, precision=precision)) for _ in range(3))
    feed(unbroken, samples)
    feed(first, samples[:128])
    state = first.state()
    feed(first, samples[128:192])  # what a killed trainer did after its checkpoint
    second.restore(LearnerState(state.tensors, json.loads(json.dumps(state.facts))))
    feed(second, samples[128:])
    assert unbroken.counters.steps > 5
    assert same(weights(unbroken), weights(second))
    assert unbroken.state().facts == second.state().facts


def test_a_learner_in_bfloat16_learns_and_keeps_float32_and_says_so(world: SmallWorld) -> None:
    samples = world.samples(640)
    half, whole = learner(replace(CONFIG, precision="bfloat16")), learner()
    for target in (half, whole):
        feed(target, samples)
    told = [target.metrics.closed[-1]["loss"] for target in (half, whole)]
    first = whole.metrics.closed[0]["loss"]
    assert told[0] != told[1]
    assert told[1] < 0.9 * first and told[0] == pytest.approx(told[1], abs=0.1 * (first - told[1]))
    kinds = {name: tensor.dtype for name, tensor in weights(whole).items()}
    assert {name: tensor.dtype for name, tensor in weights(half).items()} == kinds
    assert half.config.to_json() == whole.config.to_json() | {"precision": "bfloat16"}
    assert "precision" not in whole.config.to_json()


def test_the_state_of_another_model_is_refused(world: SmallWorld) -> None:
    other = OnlineLearner(Grm(small_config(d_model=16)), world.vocabulary, CONFIG)
    with pytest.raises(ValueError, match="another model"):
        learner().restore(other.state())


def test_a_repeated_initial_teaches_nothing(world: SmallWorld) -> None:
    samples = world.samples(64)
    target = learner()
    feed(target, samples)
    before = weights(target)
    feed(target, samples)
    assert target.counters.duplicates == 64
    assert same(before, weights(target))


def test_a_correction_is_learned_only_for_what_its_initial_had_not(world: SmallWorld) -> None:
    liked = next(sample for sample in world.samples(50) if sample.labels.long_view)
    target = learner()
    target.step([liked])
    assert target.counters.targets == 1
    target.step([correction(liked, long_view=1)])
    assert (target.counters.targets, target.counters.corrections) == (1, 1)
    target.step([correction(liked, conversion_value=3.5)])
    assert (target.counters.targets, target.counters.corrections) == (2, 2)


def test_what_was_shown_without_success_is_scored_and_not_learned(world: SmallWorld) -> None:
    disliked = [sample for sample in world.samples(80) if not sample.labels.long_view][:32]
    target = learner()
    before = {name: tensor for name, tensor in weights(target).items() if name.startswith("model.")}
    target.step(disliked)
    after = {name: tensor for name, tensor in weights(target).items() if name.startswith("model.")}
    assert same(before, after)
    assert target.metrics.open.samples == 32
    assert len(target.metrics.open.predictions["click"]["outcome"]) == 32


def test_every_row_is_counted_once_whatever_it_is(world: SmallWorld) -> None:
    good, *rest = world.samples(6)
    strange = [
        msgspec.structs.replace(rest[0], weight=float("nan")),
        msgspec.structs.replace(rest[1], weight=-1.0),
        msgspec.structs.replace(rest[2], item_id=10**9),
        msgspec.structs.replace(rest[3], item_id=-7, served_sid=[99, 0, 0]),
        msgspec.structs.replace(rest[4], item_id=-8, served_sid=[1, 2, 3], labels=Labels(click=1)),
    ]
    target = learner()
    target.step([good, *strange, good])
    counters = target.counters
    assert (counters.rows, counters.initials, counters.duplicates, counters.unknown_items, counters.invalid) == (7, 2, 1, 1, 3)
    assert target.vocabulary.sid_of(-8) == (1, 2, 3)
    assert all(torch.isfinite(tensor.double()).all() for tensor in weights(target).values())


def test_an_empty_batch_is_no_step(world: SmallWorld) -> None:
    target = learner()
    before = weights(target)
    target.step([])
    assert same(before, weights(target))


def test_weights_that_broke_are_not_made_worse(world: SmallWorld) -> None:
    target = learner()
    with torch.no_grad():
        target.model.decoder.start.fill_(float("nan"))
    before = weights(target)
    target.step([sample for sample in world.samples(40) if sample.labels.long_view])
    assert target.counters.skipped_steps > 0
    assert target.counters.steps == 0
    assert torch.equal(before["model.decoder.position"], weights(target)["model.decoder.position"])


def test_touched_rows_are_the_rows_that_changed(world: SmallWorld) -> None:
    target = learner()
    feed(target, world.samples(64))
    target.fitter.take_touched()
    before = {name: table.clone() for name, table in target.model.tables().items()}
    feed(target, [msgspec.structs.replace(sample, impression_id=f"again {sample.impression_id}") for sample in world.samples(32)])
    touched = target.fitter.take_touched()
    for name, table in target.model.tables().items():
        changed = set((table != before[name]).flatten(1).any(1).nonzero().squeeze(1).tolist())
        assert changed <= set(touched[name].tolist())
    assert len(touched["item"]) < len(target.model.tables()["item"])
    assert all(len(rows) == 0 for rows in target.fitter.take_touched().values())
