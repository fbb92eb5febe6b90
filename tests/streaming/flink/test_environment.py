"""The mini cluster's configuration and where a job resumes; the cluster itself is in the integration tests."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from streaming.flink import environment


def checkpoint(folder: Path, job: str, number: int, complete: bool = True) -> Path:
    path = folder / job / f"chk-{number}"
    path.mkdir(parents=True)
    if complete:
        (path / "_metadata").write_bytes(b"x")
    return path


def test_a_job_resumes_from_the_newest_complete_checkpoint_of_any_run(tmp_path: Path) -> None:
    checkpoint(tmp_path, "a", 90)
    time.sleep(0.01)
    newest = checkpoint(tmp_path, "b", 2)
    checkpoint(tmp_path, "b", 3, complete=False)
    assert environment.newest_checkpoint(tmp_path) == newest


def test_nothing_to_resume_from_is_none(tmp_path: Path) -> None:
    checkpoint(tmp_path, "a", 1, complete=False)
    assert environment.newest_checkpoint(tmp_path) is None


def test_pruning_keeps_only_what_is_resumed_from(tmp_path: Path) -> None:
    checkpoint(tmp_path, "a", 90)
    kept = checkpoint(tmp_path, "b", 2)
    checkpoint(tmp_path, "b", 3, complete=False)
    environment.prune(tmp_path, kept)
    assert [path.relative_to(tmp_path) for path in tmp_path.glob("*/*")] == [kept.relative_to(tmp_path)]


def test_everything_listens_on_this_machine_only(tmp_path: Path) -> None:
    settings = environment.configuration(environment.MiniCluster("n", tmp_path, []), 1234, None)
    for key in ("rest.bind-address", "rest.address", "jobmanager.bind-host", "taskmanager.bind-host"):
        assert settings[key] == "127.0.0.1"
    assert settings["rest.port"] == "1234"


def test_a_partition_is_never_taken_for_idle_and_a_lost_broker_never_ends_the_job(tmp_path: Path) -> None:
    settings = environment.configuration(environment.MiniCluster("n", tmp_path, []), 1, None)
    assert settings["table.exec.source.idle-timeout"] == "0 ms"
    assert settings["restart-strategy.type"] == "exponential-delay"
    assert not any(key.endswith("attempts-before-reset-backoff") for key in settings)


def test_options_of_the_caller_win_and_the_checkpoint_is_named(tmp_path: Path) -> None:
    cluster = environment.MiniCluster("n", tmp_path, [], options={"parallelism.default": "4"})
    settings = environment.configuration(cluster, 1, tmp_path / "chk-1")
    assert settings["parallelism.default"] == "4"
    assert settings["execution.state-recovery.path"] == (tmp_path / "chk-1").as_uri()


def test_a_stop_while_planning_does_not_wait_for_the_plan() -> None:
    stop, planned = threading.Event(), threading.Event()

    def plan() -> environment.Job:
        planned.wait(10)
        raise AssertionError("nobody waits for this")

    threading.Timer(0.05, stop.set).start()
    started = time.monotonic()
    assert environment.start(plan, stop) is None
    assert time.monotonic() - started < 5
    planned.set()


def test_a_failure_while_planning_is_the_callers() -> None:
    def plan() -> environment.Job:
        raise environment.JobFailed("no such table")

    with pytest.raises(environment.JobFailed, match="no such table"):
        environment.start(plan, threading.Event())
