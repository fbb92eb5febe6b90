"""Managed tables: one owner a row, whatever comes; evicted rows forget; restored and published maps are the same map."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.grm import Grm, GrmConfig, Query, collate
from model.grm.managed import FREE, IdMap
from model.online.publish import Publisher, Reader
from model.online.step import LearnerConfig, LearnerState, OnlineLearner
from model.store import ModelStore
from streaming.records import Context, HistoryEntry
from tests.model.conftest import START_MS, SmallWorld, small_config, small_world

CONFIG = LearnerConfig(window=100, beam=6, recall_share=0.2)


def learner() -> OnlineLearner:
    return OnlineLearner(Grm(small_config(managed=True, user_rows=8, item_rows=16)), small_world().vocabulary, CONFIG)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.one_of(st.integers(0, 12), st.integers(0, FREE - 1)), max_size=12), min_size=1, max_size=8))
def test_a_row_has_one_owner_and_only_rows_told_as_changed_change_hands(batches: list[list[int]]) -> None:
    ids = IdMap(6)
    for batch in batches:
        before = ids.ids.clone()
        changed = ids.admit(torch.tensor(batch, dtype=torch.int64))
        assert (before != ids.ids).nonzero().squeeze(1).tolist() == changed.tolist()
        owned = ids.ids[ids.ids != FREE]
        assert len(owned.unique()) == len(owned) <= 5
        assert ids.ids[5] == FREE
        assert ids.lookup(owned).tolist() == (ids.ids != FREE).nonzero().squeeze(1).tolist()
        strangers = torch.tensor([id_ for id_ in batch if id_ not in owned.tolist()], dtype=torch.int64)
        assert ids.lookup(strangers).tolist() == [5] * len(strangers)
        other = IdMap(6)
        other.ids.copy_(ids.ids)
        other.reindex()
        asked = torch.tensor(batch, dtype=torch.int64)
        assert torch.equal(other.lookup(asked), ids.lookup(asked))


def test_who_is_met_often_stays_and_who_is_met_once_goes() -> None:
    ids = IdMap(4)
    for newcomer in range(100, 140):
        ids.admit(torch.tensor([7, 7, 8, 8, newcomer]))
    assert {7, 8} <= set(ids.ids.tolist())


def test_more_ids_than_the_module_buffers_are_all_met() -> None:
    ids = IdMap(100_001)
    ids.admit(torch.arange(100_000))
    assert sorted(ids.ids.tolist()) == [*range(100_000), FREE]


def test_a_row_that_changes_hands_forgets_embedding_optimizer_and_followers(world: SmallWorld) -> None:
    target = learner()
    target.step(world.samples(200))
    model = target.model
    before = {name: table.clone() for name, table in model.tables().items()}
    assert (before["item_ids"] != FREE).sum() == 15
    momenta = model.table_momenta()["item"].clone()
    strangers = [Query(1, START_MS, Context([HistoryEntry(1000 + place, START_MS - place, 900) for place in range(8)]))] * 40
    changed = model.admit(collate(strangers, world.vocabulary, model.config))
    assert len(changed["item"]) == 8
    assert momenta[changed["item"]].all()
    for rows in (model.tables()["item"][changed["item"]], model.table_momenta()["item"][changed["item"]]):
        assert not rows.any()
    assert not model.tables()["followers"][changed["followers"]].any()
    kept = torch.ones(16, dtype=torch.bool)
    kept[changed["item"]] = False
    assert torch.equal(model.tables()["item"][kept], before["item"][kept])


def test_deltas_with_evictions_are_the_model_bit_for_bit_to_a_late_server_too(tmp_path: Path, world: SmallWorld) -> None:
    target, store = learner(), ModelStore(tmp_path)
    publisher = Publisher(store, "b1", full_share=1.0)
    samples = world.samples(320)
    reader = Reader(store)
    for start in range(0, 320, 80):
        target.step(samples[start : start + 80])
        taken = publisher.take(target.model, target.fitter.take_touched(), {})
        publisher.publish(taken, target.model.config, offsets={}, watermark_ts=0, samples_trained=0, metrics={})
        found = reader.load().model
        for name, table in target.model.tables().items():
            assert torch.equal(found.tables()[name], table), name
        late = OnlineLearner(Reader(store).load().model, world.vocabulary, CONFIG)
        assert late.predict(samples[:6]) == target.predict(samples[:6])


def test_a_restored_learner_admits_and_evicts_as_one_that_was_never_stopped(world: SmallWorld) -> None:
    samples = world.samples(240)
    unbroken, first, second = learner(), learner(), learner()
    for start in range(0, 240, 40):
        unbroken.step(samples[start : start + 40])
    for start in range(0, 120, 40):
        first.step(samples[start : start + 40])
    state = first.state()
    second.restore(LearnerState(state.tensors, state.facts))
    for start in range(120, 240, 40):
        second.step(samples[start : start + 40])
    one, two = unbroken.state().tensors, second.state().tensors
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_options_not_taken_leave_a_configuration_as_it_was() -> None:
    assert "managed" not in small_config().to_json()
    assert GrmConfig.from_json(small_config(managed=True).to_json()).managed
