"""The trainer as a process on a real broker: killed with -9 in the middle, it ends with the weights of a trainer that never was."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import yaml
from confluent_kafka import Consumer

from model.online.publish import load_current
from model.sid import bundle
from model.store import ModelStore
from streaming import records, topics
from streaming.kafka import producer
from tests.conftest import Services, await_true

pytestmark = pytest.mark.integration

SAMPLES = 800
BATCH = 50


def catalogue() -> pa.Table:
    rng = np.random.default_rng(0)
    vectors = {name: list(rng.normal(size=(200, 8)).astype(np.float32)) for name in ("content", "creative")}
    return pa.table(
        {
            "item_id": pa.array(range(200), pa.int64()),
            "author_id": pa.array([item % 20 for item in range(200)], pa.int64()),
            "duration_ms": pa.array([30_000] * 200, pa.int64()),
            **{name: pa.array(values, pa.list_(pa.float32())) for name, values in vectors.items()},
        }
    )


def samples() -> list[records.Sample]:
    rng = np.random.default_rng(1)
    found = []
    for index in range(SAMPLES):
        user, item, ts = int(rng.integers(40)), int(rng.integers(200)), 1_700_000_000_000 + index * 100
        history = [records.HistoryEntry(int(rng.integers(200)), ts - 1000 * age, int(rng.integers(30_000))) for age in range(1, 6)]
        labels = records.Labels(click=int(rng.random() < 0.4), like=0, long_view=int(rng.random() < 0.4))
        found.append(
            records.Sample(
                sample_id=f"{index}:initial",
                kind="initial",
                impression_id=str(index),
                user_id=user,
                item_id=item,
                ts=ts,
                ready_ts=ts + 60_000,
                labels=labels,
                context=records.Context(history),
            )
        )
    return found


def send(services: Services, rows: list[records.Sample]) -> None:
    out = producer(services.kafka)
    for row in rows:
        out.produce(topics.SAMPLES, records.encode(row), key=str(row.user_id), partition=row.user_id % 3)
    assert out.flush(30) == 0


@pytest.fixture
def prepared(services: Services) -> Services:
    topics.create(services.kafka, topics.specs(partitions=3, retention_ms=-1, retention_bytes=-1, views=[]))
    return services


def home_of(services: Services, name: str, **changes: Any) -> dict[str, str]:
    """A second home that uses the same broker, with a model store, a bundle and a configuration of its own; its environment."""
    home = services.home.parent / name
    home.mkdir()
    (home / "state.json").write_text((services.home / "state.json").read_text())
    store = ModelStore(home / "models")
    built = bundle.build(catalogue(), codes=8)
    built.save(store)
    store.point(bundle.POINTER, built.version)
    configuration = {
        "model": {"deterministic": True},
        "trainer": {"batch": BATCH, "checkpoint_s": 0.2},
        "publish": {"every_s": 0.5},
        "model_store": str(home / "models"),
        **changes,
    }
    (home / "config.yaml").write_text(yaml.safe_dump(configuration))
    return {**os.environ, "SIDSTREAM_HOME": str(home)}


@contextmanager
def trainer(environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    home = Path(environment["SIDSTREAM_HOME"])
    with (home / "trainer.log").open("ab") as log:
        command = [sys.executable, "-m", "jobs.cli", "train", "--config", str(home / "config.yaml"), *arguments]
        child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()


def status(environment: dict[str, str]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((Path(environment["SIDSTREAM_HOME"]) / "run" / "trainer.json").read_text())
    except (OSError, ValueError):
        return {}
    return found


def log_of(environment: dict[str, str]) -> str:
    return (Path(environment["SIDSTREAM_HOME"]) / "trainer.log").read_text()


def weights(environment: dict[str, str]) -> tuple[int, dict[str, bytes]]:
    """Samples trained and every tensor of the newest published version."""
    published = load_current(ModelStore(Path(environment["SIDSTREAM_HOME"]) / "models"))
    return published.manifest.samples_trained, {name: value.numpy().tobytes() for name, value in published.model.state_dict().items()}


def answered(rows: list[records.Sample]) -> list[records.Sample]:
    """The same impressions with watches, some dislikes, and conversions of which half come later, in the order of their readiness."""
    found = []
    for index, row in enumerate(rows):
        play_ms, hate, early = 137 * index % 40_000, int(index % 11 == 0), 1.0 if index % 6 == 0 else None
        labels = msgspec.structs.replace(row.labels, play_ms=play_ms, hate=hate, conversion_value=early)
        found.append(msgspec.structs.replace(row, labels=labels, duration_ms=30_000))
        if index % 6 == 3:
            late = {
                "sample_id": f"{index}:late",
                "ready_ts": row.ready_ts + 50 * index % 9_000,
                "labels": records.Labels(conversion_value=2.0),
            }
            found.append(msgspec.structs.replace(row, kind="correction", context=records.Context([]), **late))
    return sorted(found, key=lambda row: row.ready_ts)


PLAIN: dict[str, Any] = {}
EVERY_OPTION = {"delayed_feedback": "defer", "satisfaction": "duration", "gbpo": 0.5, "precision": "bfloat16"}


@pytest.mark.fault
@pytest.mark.parametrize("options", [PLAIN, EVERY_OPTION], ids=["plain", "every option"])
def test_killed_again_and_again_the_weights_are_those_of_an_unbroken_run(prepared: Services, options: dict[str, Any]) -> None:
    rows = answered(samples()) if options else samples()
    send(prepared, rows)
    given = {"trainer": {"batch": BATCH, "checkpoint_s": 0.2, **options}, "samples": {"label_window_s": 5, "attribution_window_s": 20}}
    unbroken, broken = home_of(prepared, "unbroken", **given), home_of(prepared, "broken", **given)
    with trainer(unbroken, "--until-end") as child:
        assert child.wait(400) == 0, log_of(unbroken)

    moments = random.Random(7)
    for kill in range(2):
        with trainer(broken, "--until-end") as child:
            wanted = (kill + 1) * SAMPLES // 3
            await_true(lambda wanted=wanted: trained_in_checkpoints(broken) >= wanted, f"{wanted} samples in a checkpoint", 400, child)
            time.sleep(moments.random() * 0.3)
            child.send_signal(signal.SIGKILL)
    with trainer(broken, "--until-end") as child:
        assert child.wait(400) == 0, log_of(broken)

    (count, expected), (found_count, found) = weights(unbroken), weights(broken)
    assert "event=restored" in log_of(broken)  # how often depends on where the kills fell: one may come before anything was restored
    assert count == found_count == len(rows)
    assert found == expected
    assert checkpointed(broken) == checkpointed(unbroken)
    assert ("pending.inputs" in checkpointed(broken)) == bool(options)


def checkpointed(environment: dict[str, str]) -> dict[str, bytes]:
    """Every tensor of the newest checkpoint but the state of the random numbers, which another process begins with another seed."""
    (folder,) = (Path(environment["SIDSTREAM_HOME"]) / "trainer").iterdir()
    newest = folder / (folder / "CURRENT").read_text().strip()
    tensors = safetensors.torch.load_file(newest / "tensors.safetensors")
    return {name: value.numpy().tobytes() for name, value in tensors.items() if name != "rng"}


def trained_in_checkpoints(environment: dict[str, str]) -> int:
    """Rows in the newest checkpoint, from its file."""
    states = sorted((Path(environment["SIDSTREAM_HOME"]) / "trainer").glob("*/[0-9]*/state.json"))
    try:
        return sum(json.loads(states[-1].read_text())["offsets"]["samples"].values()) if states else 0
    except (OSError, ValueError):
        return 0  # pruned between the listing and the reading


def test_what_comes_live_is_learned_published_and_announced(prepared: Services) -> None:
    environment = home_of(prepared, "live", model={}, trainer={"max_wait_ms": 200, "checkpoint_s": 2, "delayed_feedback": "es_dfm"})
    rows = samples()[:300]
    with trainer(environment) as child:
        await_true(lambda: "version" in status(environment), "the first version", 120, child)
        first = load_current(ModelStore(Path(environment["SIDSTREAM_HOME"]) / "models")).manifest
        assert (first.samples_trained, first.base) == (0, None)

        strange = producer(prepared.kafka)  # before the rest: versions are published for what was learned, not for what was skipped
        strange.produce(topics.SAMPLES, b"{not json", partition=1)
        strange.flush(10)
        send(prepared, rows)
        late = records.Labels(conversion_value=2.5)
        send(prepared, [msgspec.structs.replace(rows[0], kind="correction", sample_id="0:late", labels=late)])
        await_true(lambda: (status(environment).get("samples"), status(environment).get("lag")) == (301, 0), "all learned", 120, child)
        await_true(lambda: newest(environment).samples_trained == 301, "a version with all of them", 60, child)
        manifest = newest(environment)
        assert manifest.base == first.version
        assert sum(manifest.offsets["samples"].values()) == 302
        facts = status(environment)
        assert facts["counters"]["undecodable"] == 1
        assert facts["conversions"] == {"pending": 300, "forgotten": 0}
        child.terminate()
        assert child.wait(60) == 0, log_of(environment)

    announced = [msgspec.json.decode(body, type=records.ModelPublished) for body in read(prepared, topics.MODEL_PUBLISHED)]
    assert [each.version for each in announced] == sorted(each.version for each in announced)
    assert announced[-1].samples_trained == 301
    (letter,) = (msgspec.json.decode(body, type=records.DeadLetter) for body in read(prepared, topics.DEAD_LETTERS))
    assert (letter.topic, letter.partition) == (topics.SAMPLES, 1)


def newest(environment: dict[str, str]) -> Any:
    return load_current(ModelStore(Path(environment["SIDSTREAM_HOME"]) / "models")).manifest


def read(services: Services, topic: str) -> list[bytes]:
    """All messages of a topic."""
    reader = Consumer({**services.kafka, "group.id": "test", "auto.offset.reset": "earliest", "enable.partition.eof": True})
    reader.subscribe([topic])
    found: list[bytes] = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        message = reader.poll(1)
        if message is None:
            continue
        if message.error():
            break
        found.append(message.value() or b"")
    reader.close()
    return found


def test_without_a_bundle_one_line_says_what_to_do(prepared: Services) -> None:
    command = [sys.executable, "-m", "jobs.cli", "train"]
    done = subprocess.run(command, env=prepared.environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "sidstream sids build" in done.stderr
    assert "Traceback" not in done.stderr


def test_offline_training_reads_json_lines_and_prints_the_floors(prepared: Services, tmp_path: Path) -> None:
    environment = home_of(prepared, "offline")
    lines = tmp_path / "samples.jsonl"
    lines.write_bytes(b"\n".join(records.encode(row) for row in samples()[:400]))
    home = Path(environment["SIDSTREAM_HOME"])
    command = [sys.executable, "-m", "jobs.cli", "train", "--config", str(home / "config.yaml"), "--offline", "--samples", str(lines)]
    extra = ["--report", str(tmp_path / "report.json"), "--store", str(tmp_path / "store")]
    done = subprocess.run([*command, *extra], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "popularity" in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["samples"] == 400
    assert load_current(ModelStore(tmp_path / "store")).manifest.samples_trained == 400
    lines.write_text('{"sample_id": 3}\n')
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 1
    assert "line 1" in refused.stderr
    assert "Traceback" not in refused.stderr
