"""The online and the offline trainer are one: the same samples in the same order give the same weights, bit for bit; so do options."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch

from jobs import train, train_offline
from jobs.learner import shape
from jobs.process import Endpoints, Stop
from jobs.settings import ConfigError, Model, Settings
from jobs.settings import Trainer as TrainerSettings
from jobs.train_input import SampleError, Source, from_files
from jobs.train_offline import Run
from model.grm.presets import PRESETS
from model.online.batches import Arrived
from model.online.checkpoint import Checkpoints
from model.online.publish import load_current
from model.online.step import OnlineLearner
from model.sid import bundle
from model.sid.bundle import Bundle
from model.store import ModelStore
from streaming import records, topics
from tests.model.conftest import SmallWorld, small_config, small_world

SAMPLES = 333
BATCH = 40
GROUPS_AND_THOUGHTS = {"long": 2, "long_events": 20, "cross": 2, "lazy_trunk": 1, "thinking": 3, "mtp": 1}
VALUE = {"value_buckets": 4, "value_weight": 0.5, "value_rank": 0.5, "lazy_trunk": 1}
THOUGHTS = {"thinking_tokens": True, "thinking": 3, "thinking_goal": 0.1, "value_buckets": 4}


@pytest.fixture(autouse=True)
def small_and_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(PRESETS, "laptop", small_config(codes=(8, 8, 8, 8)))
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def known() -> Bundle:
    rng = np.random.default_rng(0)
    count = 60
    columns = {name: list(rng.normal(size=(count, 8)).astype(np.float32)) for name in ("content", "creative")}
    ids = {"item_id": pa.array(range(count), pa.int64()), "author_id": pa.array(range(count), pa.int64())}
    vectors = {name: pa.array(values, pa.list_(pa.float32())) for name, values in columns.items()}
    return bundle.build(pa.table({**ids, "duration_ms": pa.array([30_000] * count, pa.int64()), **vectors}), codes=8)


def partitioned(world: SmallWorld, partitions: int) -> dict[int, list[Arrived]]:
    """Initial samples and late corrections, one record that is none in every partition, by partition in the order of their offsets."""
    rows = world.samples(SAMPLES)
    late = records.Labels(conversion_value=2.0)
    corrected = [
        msgspec.structs.replace(row, kind="correction", sample_id=f"{row.impression_id}:late", labels=late, ready_ts=row.ready_ts + 50_000)
        for row in rows[::7]
    ]
    lists: dict[int, list[Any]] = {partition: [None] for partition in range(partitions)}
    for row in sorted([*rows, *corrected], key=lambda row: row.ready_ts):
        lists[row.user_id % partitions].append(row)
    return {partition: [Arrived(partition, offset, row) for offset, row in enumerate(of)] for partition, of in lists.items()}


class Topic:
    """`SampleTopic` over lists: reads come in pieces of random size from random partitions."""

    undecodable = 0

    def __init__(self, content: dict[int, list[Arrived]], seed: int) -> None:
        self._left = {partition: list(of) for partition, of in content.items()}
        self._rng = np.random.default_rng(seed)
        self.partitions = list(content)

    def open(self, offsets: dict[int, int], stop: Stop) -> bool:
        self._left = {partition: [each for each in of if each.offset >= offsets.get(partition, 0)] for partition, of in self._left.items()}
        return True

    def read(self, wait_s: float) -> list[Arrived]:
        partition = int(self._rng.choice(self.partitions))
        count = int(self._rng.integers(90))
        found, self._left[partition] = self._left[partition][:count], self._left[partition][count:]
        return found

    def ended(self) -> bool:
        return not any(self._left.values())

    def lag(self) -> int:
        return 0

    def commit(self, offsets: dict[int, int]) -> None: ...

    def close(self) -> None: ...


class Silent:
    """A producer without a broker."""

    def produce(self, topic: str, body: bytes, key: str) -> None: ...

    def poll(self, wait_s: float) -> None: ...

    def flush(self, wait_s: float) -> None: ...


def settings(deterministic: bool, options: dict[str, Any] | None = None) -> Settings:
    model = Model(deterministic=deterministic, options=options or {})
    weighed = 0.5 * ("value_buckets" in model.options)
    return Settings(model=model, trainer=TrainerSettings(batch=BATCH, max_wait_ms=3_600_000, user_weight=weighed))


def online(
    monkeypatch: pytest.MonkeyPatch, home: Path, known: Bundle, content: dict[int, list[Arrived]], given: Settings, seed: int = 1
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The last checkpoint of `sidstream train --until-end`: tensors (weights, optimizers, ledger, random state) and facts."""
    monkeypatch.setattr(train, "SampleTopic", lambda *given: Topic(content, seed))
    monkeypatch.setattr(train, "producer", lambda client: Silent())
    store = ModelStore(home / "models")
    known.save(store)
    store.point(bundle.POINTER, known.version)
    ends = Endpoints(home, {}, None, None, str(home / "models"), home / "feature_repo")
    train.main(given, ends, Stop(), until_end=True)
    last = sorted((home / "trainer").glob("*/[0-9]*"))[-1]
    facts = json.loads((last / "state.json").read_text())
    return safetensors.torch.load_file(last / "tensors.safetensors"), facts


def offline(known: Bundle, content: dict[int, list[Arrived]], given: Settings, limit: int | None = None) -> OnlineLearner:
    """`sidstream train --offline` over the same partitions, one after the other."""
    source = Source(list(content), (arrived for of in content.values() for arrived in of))
    return train_offline.learn(given, known, source, limit).learner


def assert_same(one: tuple[dict[str, torch.Tensor], dict[str, Any]], learner: OnlineLearner) -> None:
    tensors, facts = one
    state = learner.state()
    assert tensors.keys() == state.tensors.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], state.tensors[name])] == []
    assert facts["facts"] == json.loads(json.dumps(state.facts))
    assert state.facts["counters"]["steps"] > 5
    assert state.facts["counters"]["corrections"] > 40


# seed: in what order partitions are read
@pytest.mark.parametrize(("seed", "options"), [(1, {}), (2, {}), (1, GROUPS_AND_THOUGHTS), (1, VALUE), (1, THOUGHTS)])
def test_deterministic_training_online_is_offline_training_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, home: Path, known: Bundle, seed: int, options: dict[str, Any]
) -> None:
    content, given = partitioned(small_world(), 3), settings(True, options)
    streamed = online(monkeypatch, home, known, content, given, seed)
    assert sum(streamed[1]["offsets"]["samples"].values()) == sum(map(len, content.values()))
    assert_same(streamed, offline(known, content, given))
    served = load_current(ModelStore(home / "models"))
    assert {name: getattr(served.model.config, name) for name in options} == options


def test_training_on_what_has_arrived_is_offline_training_on_that_order_while_batches_are_full(
    monkeypatch: pytest.MonkeyPatch, home: Path, known: Bundle
) -> None:
    content = partitioned(small_world(), 1)
    given = settings(False)
    assert_same(online(monkeypatch, home, known, content, given), offline(known, content, given))


def test_another_order_gives_other_weights(known: Bundle) -> None:
    content = partitioned(small_world(), 1)
    turned = {0: [Arrived(0, place, arrived.row) for place, arrived in enumerate(reversed(content[0]))]}
    one, two = offline(known, content, settings(True)).state().tensors, offline(known, turned, settings(True)).state().tensors
    assert not torch.equal(one["model.decoder.start"], two["model.decoder.start"])


def test_a_limit_cuts_the_last_batch(known: Bundle) -> None:
    content = partitioned(small_world(), 3)
    learner = offline(known, content, settings(True), limit=BATCH + 10)
    assert learner.counters.rows == BATCH + 10 - 3  # the three records that are none come first


def test_offline_training_that_was_cut_and_continued_is_the_whole_bit_for_bit(known: Bundle, tmp_path: Path) -> None:
    content, kept = partitioned(small_world(), 3), Checkpoints(tmp_path / "kept")

    def continued(limit: int | None, name: str = "log") -> Run:
        source = Source(list(content), (arrived for of in content.values() for arrived in of), name)
        return train_offline.learn(settings(True), known, source, limit, kept)

    assert continued(3 * BATCH).rows == 3 * BATCH - 3  # the three records that are none come first
    last, whole = continued(None).learner, offline(known, content, settings(True))
    one, two = last.state(), whole.state()
    assert [name for name in two.tensors if name != "rng" and not torch.equal(one.tensors[name], two.tensors[name])] == []
    assert one.facts == two.facts
    assert continued(None).rows == 0
    assert continued(None, "another log").learner.counters.duplicates == SAMPLES


def test_the_online_trainer_goes_on_from_a_backlog_that_was_learned_offline(
    monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path, known: Bundle
) -> None:
    content, given = partitioned(small_world(), 3), settings(True)
    streamed = online(monkeypatch, home, known, content, given)
    (folder,) = (home / "trainer").iterdir()
    kept = tmp_path / "another" / "trainer" / folder.name
    backlog = Source(list(content), (arrived for of in content.values() for arrived in of), topics.SAMPLES)
    assert train_offline.learn(given, known, backlog, 3 * BATCH, Checkpoints(kept)).rows == 3 * BATCH - 3
    tensors, facts = online(monkeypatch, tmp_path / "another", known, content, given)
    assert facts["facts"] == streamed[1]["facts"]
    assert facts["offsets"] == streamed[1]["offsets"]
    assert [name for name in tensors if name != "rng" and not torch.equal(tensors[name], streamed[0][name])] == []


def test_a_long_offline_run_keeps_checkpoints_on_its_way(known: Bundle, tmp_path: Path) -> None:
    rows = [arrived.row for arrived in partitioned(small_world(), 1)[0] if arrived.row is not None]
    given = settings(True)
    given = given.model_copy(update={"trainer": given.trainer.model_copy(update={"checkpoint_s": 1e-9})})

    def broken() -> Iterator[records.Sample]:
        yield from rows[: 2 * BATCH + 1]
        raise SampleError("no sample")

    kept = Checkpoints(tmp_path)
    with pytest.raises(SampleError):
        train_offline.learn(given, known, Source.of(broken(), "log"), None, kept)
    last, whole = train_offline.learn(given, known, Source.of(rows, "log"), None, kept), train_offline.learn(given, known, Source.of(rows))
    assert last.rows == len(rows) - 2 * BATCH
    assert torch.equal(last.learner.state().tensors["model.decoder.start"], whole.learner.state().tensors["model.decoder.start"])


def test_files_are_one_partition_in_the_order_of_their_lines(known: Bundle, tmp_path: Path) -> None:
    rows = [arrived.row for arrived in partitioned(small_world(), 1)[0] if arrived.row is not None]
    paths = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for path, part in zip(paths, (rows[:100], rows[100:]), strict=True):
        path.write_bytes(b"\n".join(records.encode(row) for row in part))
    from_file = train_offline.learn(settings(True), known, from_files(paths)).learner.state()
    from_memory = train_offline.learn(settings(True), known, Source.of(rows)).learner.state()
    assert all(torch.equal(from_file.tensors[name], from_memory.tensors[name]) for name in from_memory.tensors)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"wide": 2}, r"model\.options\.wide: there is no such option \(there are managed, "),
        ({"long": 2.5}, r"model\.options\.long is 2\.5: expected int"),
        ({"cross": -1}, r"model\.options: .*cross -1"),
    ],
)
def test_options_that_no_model_can_have_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        shape(settings(True, options), (8, 8))
