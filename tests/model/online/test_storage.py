"""Checkpoints and versions: exact, whole or not there, and refused when damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from model.grm import Grm
from model.online.checkpoint import FACTS, POINTER, TENSORS, Checkpoint, CheckpointError, Checkpoints
from model.online.publish import FOLDER, TABLES, Publisher, PublishError, Reader, current_version, load, load_current
from model.online.step import LearnerConfig, LearnerState, OnlineLearner
from model.store import ModelStore
from tests.model.conftest import SmallWorld, small_config, small_world

IDENTITY = {"bundle": "b1", "model": {"codes": [6, 5, 4]}}
CONFIG = LearnerConfig(window=50, recall_share=1.0, beam=8)


def trained(world: SmallWorld, count: int = 128) -> OnlineLearner:
    learner = OnlineLearner(Grm(small_config()), small_world().vocabulary, CONFIG)
    learner.vocabulary.learn(-3, (1, 2, 3))
    samples = world.samples(count)
    for start in range(0, count, 32):
        learner.step(samples[start : start + 32])
    return learner


def checkpoint(state: LearnerState, offset: int) -> Checkpoint:
    return Checkpoint(state, {"samples": {0: offset, 1: offset + 1}}, IDENTITY)


@pytest.fixture
def learner(world: SmallWorld) -> OnlineLearner:
    return trained(world)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path, learner: OnlineLearner) -> None:
    Checkpoints(tmp_path).save(checkpoint(learner.state(), 7))
    found = Checkpoints(tmp_path).load(IDENTITY)
    assert found is not None
    assert found.offsets == {"samples": {0: 7, 1: 8}}
    state = learner.state()
    assert found.state.tensors.keys() == state.tensors.keys()
    assert all(torch.equal(found.state.tensors[name], tensor) for name, tensor in state.tensors.items())
    again = OnlineLearner(Grm(small_config()), small_world().vocabulary, CONFIG)
    again.restore(found.state)
    assert again.state().facts == state.facts
    assert again.vocabulary.sid_of(-3) == (1, 2, 3)


def test_a_later_checkpoint_replaces_an_earlier_one_and_old_ones_go(tmp_path: Path, learner: OnlineLearner) -> None:
    store = Checkpoints(tmp_path)
    for offset in range(4):
        store.save(checkpoint(learner.state(), offset))
    found = store.load(IDENTITY)
    assert found is not None
    assert found.offsets["samples"][0] == 3
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_a_checkpoint_cut_short_is_as_if_it_had_never_begun(tmp_path: Path, learner: OnlineLearner) -> None:
    store = Checkpoints(tmp_path)
    whole = store.save(checkpoint(learner.state(), 1))
    shutil.copytree(whole, tmp_path / ".0000000002.partial")
    (tmp_path / ".0000000002.partial" / TENSORS).write_bytes(b"half")
    found = store.load(IDENTITY)
    assert found is not None
    assert found.number == 1
    store.save(checkpoint(learner.state(), 2))
    assert not list(tmp_path.glob(".*.partial"))


def test_a_checkpoint_renamed_before_its_pointer_was_moved_is_used(tmp_path: Path, learner: OnlineLearner) -> None:
    store = Checkpoints(tmp_path)
    store.save(checkpoint(learner.state(), 1))
    store.save(checkpoint(learner.state(), 2))
    (tmp_path / POINTER).write_text("0000000001\n")
    found = store.load(IDENTITY)
    assert found is not None
    assert found.offsets["samples"][0] == 2


@pytest.mark.parametrize("name", [TENSORS, FACTS])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, learner: OnlineLearner, name: str) -> None:
    store = Checkpoints(tmp_path)
    store.save(checkpoint(learner.state(), 1))
    newest = store.save(checkpoint(learner.state(), 2))
    body = bytearray((newest / name).read_bytes())
    body[len(body) // 2] ^= 0xFF
    (newest / name).write_bytes(body)
    found = store.load(IDENTITY)
    assert found is not None
    assert found.offsets["samples"][0] == 1
    shutil.rmtree(tmp_path / "0000000001")
    with pytest.raises(CheckpointError, match="no checkpoint can be used"):
        store.load(IDENTITY)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, learner: OnlineLearner) -> None:
    Checkpoints(tmp_path).save(checkpoint(learner.state(), 1))
    with pytest.raises(CheckpointError, match="belongs to"):
        Checkpoints(tmp_path).load({**IDENTITY, "bundle": "b2"})


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "absent").load(IDENTITY) is None


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, learner: OnlineLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = Checkpoints(tmp_path)
    store.save(checkpoint(learner.state(), 1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match="No space left"):
            store.save(checkpoint(learner.state(), 2))
    found = store.load(IDENTITY)
    assert found is not None
    assert found.offsets["samples"][0] == 1


def publish(publisher: Publisher, learner: OnlineLearner, samples: int = 0) -> str:
    taken = publisher.take(learner.model, learner.fitter.take_touched(), learner.vocabulary.generated)
    manifest, uri = publisher.publish(
        taken, learner.model.config, offsets={"samples": {0: 5}}, watermark_ts=9, samples_trained=samples, metrics={"a": 1}
    )
    assert uri.endswith(f"{FOLDER}/{manifest.version}/manifest.json")
    return manifest.version


def assert_same(one: Grm, two: Grm) -> None:
    first, second = one.state_dict(), two.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_base_and_delta_are_the_model_bit_for_bit(tmp_path: Path, learner: OnlineLearner, world: SmallWorld) -> None:
    store = ModelStore(tmp_path)
    publisher = Publisher(store, "b1", full_share=0.9)
    base = publish(publisher, learner)
    reader = Reader(store)
    assert_same(reader.load().model, learner.model)
    more = world.samples(300)[128:]
    for start in (0, 40, 80):
        learner.step(more[start : start + 40])
        version = publish(publisher, learner)
        found = reader.load()
        assert (found.manifest.version, found.manifest.base) == (version, base)
        assert found.manifest.offsets == {"samples": {"0": 5}}
        assert found.generated == {-3: (1, 2, 3)}
        assert_same(found.model, learner.model)
        assert_same(load(store, version).model, learner.model)


def test_a_restored_trainer_begins_with_a_full_version_and_counts_on(tmp_path: Path, learner: OnlineLearner) -> None:
    store = ModelStore(tmp_path)
    assert publish(Publisher(store, "b1"), learner) == "v00000001"
    assert publish(Publisher(store, "b1"), learner) == "v00000002"
    assert load_current(store).manifest.base is None


def test_when_much_has_changed_the_next_version_is_full(tmp_path: Path, learner: OnlineLearner, world: SmallWorld) -> None:
    publisher = Publisher(ModelStore(tmp_path), "b1", full_share=0.05)
    publish(publisher, learner)
    learner.step(world.samples(300)[200:])
    assert load(ModelStore(tmp_path), publish(publisher, learner)).manifest.base is None


def test_old_versions_go_but_the_base_of_what_stays_does_not(tmp_path: Path, learner: OnlineLearner, world: SmallWorld) -> None:
    store = ModelStore(tmp_path)
    publisher = Publisher(store, "b1", kept=2, full_share=1.0)
    more = world.samples(300)
    versions = []
    for index in range(5):
        learner.step(more[130 + index * 10 : 140 + index * 10])
        versions.append(publish(publisher, learner))
    assert store.list(FOLDER) == [versions[0], *versions[-2:]]
    assert_same(load_current(store).model, learner.model)


@pytest.mark.parametrize("name", [TABLES, "dense.safetensors", "generated.json", "manifest.json"])
def test_a_damaged_file_is_refused_and_named(tmp_path: Path, learner: OnlineLearner, name: str) -> None:
    store = ModelStore(tmp_path)
    version = publish(Publisher(store, "b1"), learner)
    path = tmp_path / FOLDER / version / name
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 0xFF
    path.write_bytes(body)
    with pytest.raises(PublishError, match=name):
        load_current(store)


@pytest.mark.parametrize("table", ["item", "followers", "prefix"])
def test_a_row_that_is_no_number_is_refused_and_named(tmp_path: Path, learner: OnlineLearner, table: str) -> None:
    learner.model.tables()[table].view(len(learner.model.tables()[table]), -1)[5, 1] = float("nan")
    publish(Publisher(ModelStore(tmp_path), "b1"), learner)
    with pytest.raises(PublishError, match=f"{table}, row 5"):
        load_current(ModelStore(tmp_path))


def test_tensors_that_do_not_belong_to_the_configuration_are_refused(tmp_path: Path, learner: OnlineLearner) -> None:
    store = ModelStore(tmp_path)
    version = publish(Publisher(store, "b1"), learner)
    path = tmp_path / FOLDER / version / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["d_model"] = 16
    path.write_text(json.dumps(manifest))
    with pytest.raises(PublishError, match="not those of its configuration"):
        load_current(store)


def test_a_store_without_a_model_says_so(tmp_path: Path) -> None:
    assert current_version(ModelStore(tmp_path)) is None
    with pytest.raises(PublishError, match="no current model"):
        load_current(ModelStore(tmp_path))


def test_a_version_that_fails_to_be_written_is_followed_by_a_full_one(tmp_path: Path, learner: OnlineLearner, world: SmallWorld) -> None:
    store = ModelStore(tmp_path)
    publisher = Publisher(store, "b1", full_share=1.0)
    publisher.take(learner.model, learner.fitter.take_touched(), {})  # the write never happened
    learner.step(world.samples(160)[140:])
    publish(publisher, learner)
    assert load_current(store).manifest.base is None
    assert_same(load_current(store).model, learner.model)
