"""`torchrun` trains offline what one process trains, says so once, and never leaves a process hanging."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner

from jobs import settings, train, train_offline
from jobs.settings import ConfigError
from jobs.train_input import from_files
from jobs.train_processes import same
from model.online.checkpoint import Checkpoints
from model.online.publish import load_current
from model.online.step import OnlineLearner
from model.sid import bundle
from model.sid.bundle import Bundle
from model.store import ModelStore
from streaming import records
from tests.model.conftest import small_world

BATCH, SAMPLES = 40, 200
CONFIG = f"model: {{options: {{managed: true}}}}\ntrainer: {{batch: {BATCH}, placement: table_wise, delayed_feedback: fnw}}\n"


@pytest.fixture(autouse=True)
def torch_as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def known(home: Path) -> Bundle:
    """The bundle of a home that can train, with its configuration and its samples beside it."""
    rng = np.random.default_rng(0)
    vectors = {
        name: pa.array(list(rng.normal(size=(60, 8)).astype(np.float32)), pa.list_(pa.float32())) for name in ("content", "creative")
    }
    made = bundle.build(pa.table({"item_id": pa.array(range(60), pa.int64()), **vectors}), codes=8)
    store = ModelStore(str(home / "models"))
    made.save(store)
    store.point(bundle.POINTER, made.version)
    (home / "config.yaml").write_text(CONFIG)
    (home / "samples.jsonl").write_bytes(b"\n".join(records.encode(row) for row in small_world().samples(SAMPLES)))
    return made


def one_process(home: Path, known: Bundle, limit: int | None = None, kept: Path | None = None) -> OnlineLearner:
    given, source = settings.load(home / "config.yaml"), from_files([home / "samples.jsonl"])
    return train_offline.learn(given, known, source, limit, None if kept is None else Checkpoints(kept)).learner


def torchrun(home: Path, *options: str) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "jobs.cli", "train", "--offline"]
    return [*command, "--config", str(home / "config.yaml"), "--samples", str(home / "samples.jsonl"), *options]


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "SIDSTREAM_HOME": str(home)}


@pytest.mark.integration
def test_training_goes_from_one_process_to_two_and_back(home: Path, known: Bundle) -> None:
    kept, report, store = home / "kept", home / "report.json", home / "published"
    one_process(home, known, 2 * BATCH, kept)
    options = ["--limit", str(BATCH), "--checkpoint", str(kept), "--report", str(report), "--store", str(store)]
    ran = subprocess.run(torchrun(home, *options), capture_output=True, text=True, timeout=300, check=False, env=environment(home))
    assert ran.returncode == 0, ran.stderr[-5000:]
    assert ran.stdout.count("/s, recall@10 ") == 1
    assert [ran.stderr.count(f"event={said} ") for said in ("restored", "spread", "checkpoint")] == [1, 1, 1]
    facts = json.loads(report.read_text())
    assert facts["counters"]["rows"] == 3 * BATCH
    published = load_current(ModelStore(str(store))).model

    last, whole = one_process(home, known, None, kept), one_process(home, known)
    assert last.counters == whole.counters
    assert last.counters.rows == SAMPLES
    tensors = last.state().tensors
    del tensors["rng"]  # nothing is drawn; it is where the process began
    for name, tensor in whole.state().tensors.items():
        if name in tensors:
            torch.testing.assert_close(tensors[name], tensor, rtol=1e-5, atol=2e-6, msg=lambda said, name=name: f"{name}: {said}")
    at_three = one_process(home, known, 3 * BATCH).model
    for name, table in at_three.tables().items():
        torch.testing.assert_close(published.tables()[name], table, rtol=1e-5, atol=2e-6)


@pytest.mark.integration
def test_a_sample_that_is_none_ends_both_processes_and_is_named_once(home: Path, known: Bundle) -> None:
    with (home / "samples.jsonl").open("a") as file:
        file.write("\n{}\n")
    ran = subprocess.run(torchrun(home), capture_output=True, text=True, timeout=120, check=False, env=environment(home))
    assert ran.returncode == 1
    assert ran.stderr.count(f"samples.jsonl, line {SAMPLES + 1}: ") == 1
    assert 'event=failed rank=1 reason="process 0 cannot read on' in ran.stderr
    assert "recall@10" not in ran.stdout


@pytest.mark.integration
def test_a_process_that_is_killed_takes_the_other_with_it(home: Path, known: Bundle) -> None:
    """The samples come through a pipe, so that both are in the middle of it."""
    os.mkfifo(home / "endless")
    with (home / "log").open("wb") as log:
        command = torchrun(home, "--samples", str(home / "endless"))
        child = subprocess.Popen(command, stdout=log, stderr=log, env=environment(home))
    pipe = os.open(home / "endless", os.O_RDWR)
    try:
        deadline = time.monotonic() + 120
        while "event=spread" not in (home / "log").read_text():
            assert child.poll() is None and time.monotonic() < deadline, (home / "log").read_text()[-3000:]
            time.sleep(0.2)
        workers = [worker for worker in psutil.Process(child.pid).children() if "RANK" in worker.environ()]
        next(worker for worker in workers if worker.environ()["RANK"] == "1").kill()
        assert child.wait(60) != 0
        assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    finally:
        os.close(pipe)
        if child.poll() is None:
            child.terminate()
            child.wait(30)


def test_samples_as_they_come_are_refused_to_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "some", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    said = CliRunner().invoke(train.command, [])
    assert said.exit_code == 2
    assert "torchrun goes with --offline" in said.output


def test_a_process_of_another_configuration_does_not_begin() -> None:
    class Second:
        rank = 1

        def tell(self, body: bytes) -> bytes:
            return b"a"

    same(Second(), "a")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="process 1 would train b, process 0 a"):
        same(Second(), "b")  # type: ignore[arg-type]
