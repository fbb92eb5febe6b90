"""`sidstream up` and its kin, from outside, on a real broker and a real Redis."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from redis import Redis

from jobs.local import kafka, redis
from jobs.local.ledger import Ledger
from jobs.process import read_json
from jobs.status import collect
from streaming.kafka import consumer
from tests.conftest import await_true

pytestmark = pytest.mark.integration


class Home:
    """A home and its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        applied = folder / "feature_repo" / "data"  # a repository without views: importing Feast is another test's business
        applied.mkdir(parents=True)
        (applied / "registry.db").touch()
        (applied / "views.json").write_text("[]")

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "jobs.cli", *arguments],
            env={**os.environ, "SIDSTREAM_HOME": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )

    def up(self, only: str) -> None:
        done = self.call("up", "--detach", "--only", only)
        assert done.returncode == 0, done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        return json.loads(self.call("status", "--json").stdout)

    def state(self) -> dict[str, Any]:
        return read_json(self.folder / "state.json")

    def is_well(self) -> bool:
        """What `status` says, without its start-up."""
        return bool(collect(self.folder)["healthy"])

    @property
    def client(self) -> dict[str, Any]:
        return {"bootstrap.servers": self.state()["kafka"]}

    @property
    def redis_url(self) -> str:
        return f"redis://{self.state()['redis']}/0"


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "one")
    yield made
    made.call("down")
    assert Ledger(made.folder).alive() == {}


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "two")
    yield made
    made.call("down")


def put(client: dict[str, Any], body: bytes) -> None:
    admin = AdminClient(client)
    if "kept" not in admin.list_topics(timeout=10).topics:
        admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result()
    producer = Producer(client)
    producer.produce("kept", body)
    assert producer.flush(10) == 0


def read(client: dict[str, Any], count: int) -> list[bytes | None]:
    reader = consumer(client, f"reader-{time.time()}", ["kept"])
    try:
        return [message.value() for message in reader.consume(count, 20)]
    finally:
        reader.close()


def test_data_and_addresses_survive_kill_9_of_services_and_supervisor_and_a_stop(one: Home) -> None:
    one.up("redis")
    alone = one.state()
    one.up("broker")  # added to the supervisor that runs
    state = one.state()
    assert alone["kafka"] is None
    assert {name: state["pids"][name] for name in alone["pids"]} == alone["pids"]
    put(one.client, b"first")
    with Redis.from_url(one.redis_url) as client:
        client.set("sidstream:kept", "yes")

    # the services die: the supervisor starts them again
    for name in ("broker", "redis"):
        os.kill(state["pids"][name], signal.SIGKILL)
    await_true(lambda: one.state()["pids"].get("broker") not in (None, state["pids"]["broker"]), "broker is started again")
    await_true(lambda: kafka.healthy(one.client) and redis.healthy(one.redis_url), "both answer again", 60)
    put(one.client, b"second")
    await_true(one.is_well, "the supervisor sees it", 30)
    status = one.status()
    assert status["healthy"]
    assert status["parts"]["broker"]["restarts"] == 1

    # the supervisor dies: what it started goes on, and the next one takes it over
    pids = one.state()["pids"]
    os.kill(pids["supervisor"], signal.SIGKILL)
    await_true(lambda: collect(one.folder)["phase"] == "killed", "status sees it")
    assert one.status()["parts"]["redis"]["state"] == "orphaned"
    assert read(one.client, 2) == [b"first", b"second"]
    one.up("broker,redis")
    assert {name: one.state()["pids"][name] for name in ("broker", "redis")} == {name: pids[name] for name in ("broker", "redis")}

    # a stop, a start: the same addresses, the same data
    assert one.call("down").returncode == 0
    assert Ledger(one.folder).alive() == {}
    assert one.state()["pids"] == {}
    one.up("broker,redis")
    assert [one.state()[key] for key in ("kafka", "redis")] == [state[key] for key in ("kafka", "redis")]
    assert read(one.client, 2) == [b"first", b"second"]
    with Redis.from_url(one.redis_url) as client:
        assert client.get("sidstream:kept") == b"yes"
    one.call("down")
    assert json.loads((one.folder / "run" / "exits.json").read_text()) == {"broker": 0, "topics": 0, "redis": 0}


def test_two_homes_run_side_by_side_and_each_refuses_a_second_supervisor(one: Home, two: Home) -> None:
    one.up("redis")
    two.up("redis")
    assert one.state()["redis"] != two.state()["redis"]
    two.call("down")
    assert redis.healthy(one.redis_url)
    done = one.call("up", "--only", "redis")
    assert done.returncode == 1
    assert f"is already run by supervisor {one.state()['pids']['supervisor']}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_up_in_the_foreground_stops_everything(one: Home, number: signal.Signals) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "up", "--only", "redis"],
        env={**os.environ, "SIDSTREAM_HOME": str(one.folder)},
        stdout=subprocess.PIPE,
        text=True,
    )
    await_true(one.is_well, "it is up", 60)
    url = one.redis_url
    child.send_signal(number)
    said, _ = child.communicate(timeout=30)
    assert child.returncode == 0
    assert said.strip().endswith("stopped")
    assert not redis.healthy(url)


def test_a_demo_that_is_ended_stops_what_it_has_started(one: Home) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "demo"], env={**os.environ, "SIDSTREAM_HOME": str(one.folder)}, stdout=subprocess.PIPE, text=True
    )

    def family() -> list[psutil.Process]:
        supervisor = one.state().get("pids", {}).get("supervisor")
        return [] if supervisor is None else [psutil.Process(supervisor), *psutil.Process(supervisor).children(recursive=True)]

    await_true(lambda: len(family()) > 1, "parts are starting", 60)
    started = family()
    child.terminate()
    child.communicate(timeout=60)
    assert psutil.wait_procs(started, timeout=10)[1] == []


def test_a_configured_port_in_use_is_one_line(one: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = one.folder / "config.yaml"
        config.write_text(f"http: {{port: {port}}}\n")
        done = one.call("up", "--detach", "--config", str(config))
    assert done.returncode == 1
    assert done.stderr.strip() == f"Error: port {port} (http.port) is in use: choose another in the configuration, or 0 for a free one"


def test_a_broken_configuration_is_one_line_and_exit_code_2(one: Home) -> None:
    config = one.folder / "config.yaml"
    config.write_text("samples: {label_window: 3}\n")
    done = one.call("up", "--config", str(config))
    assert done.returncode == 2
    assert "samples.label_window" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_doctor_says_which_server_does_not_answer(one: Home) -> None:
    config = one.folder / "config.yaml"
    config.write_text("kafka: {bootstrap: '127.0.0.1:1'}\nredis: {url: 'redis://:secret@127.0.0.1:1/0'}\n")
    done = one.call("doctor", "--config", str(config))
    assert done.returncode == 1
    assert "127.0.0.1:1 does not answer → start it, or correct kafka.bootstrap" in done.stdout
    assert "secret" not in done.stdout
