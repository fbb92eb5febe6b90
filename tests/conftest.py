"""Real services for the integration tests, and where the shared data is.

One broker and one Redis serve the whole session; `services` gives a test its own pair, for tests that kill or that use the
system's own topic names.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.local import kafka, ports, redis
from jobs.process import write_json

DATA = Path(os.environ.get("SIDSTREAM_DATA", Path(__file__).parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Services:
    """A home with a real broker and a real Redis in it; `state.json` names them, so any process can start there."""

    home: Path
    kafka: dict[str, Any]
    redis_url: str

    @property
    def environment(self) -> dict[str, str]:
        """Environment in which `sidstream` commands use this home."""
        return {**os.environ, "SIDSTREAM_HOME": str(self.home)}


@contextmanager
def process(command: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that never outlives the test."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def await_true(condition: Callable[[], bool], what: str, seconds: float = 30, child: subprocess.Popen[Any] | None = None) -> None:
    """Poll until the condition holds; fail with a sentence when time is up or the child has died."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert child is None or child.poll() is None, f"{what}: the process ended with {child.returncode if child else None}"
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.05)


@contextmanager
def running_broker(folder: Path) -> Iterator[dict[str, Any]]:
    """A broker on a new folder; gives the librdkafka settings of a client."""
    broker = kafka.Broker(folder, *(ports.free_port() for _ in range(2)))
    broker.prepare()
    client = {"bootstrap.servers": broker.address}
    with process(broker.command(), folder / "broker.log", broker.environment()) as child:
        await_true(lambda: kafka.healthy(client), f"broker (see {folder}/broker.log)", 60, child)
        yield client


@contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """A Redis on a new folder; gives its URL."""
    server = redis.Server(folder, ports.free_port())
    server.prepare()
    with process(server.command(), folder / "redis.log") as child:
        await_true(lambda: redis.healthy(server.url), f"redis (see {folder}/redis.log)", 30, child)
        yield server.url


def describe(home: Path, client: dict[str, Any], redis_url: str) -> Services:
    """Write the `state.json` that `up` would have written."""
    port = ports.free_port()
    state = {"kafka": client["bootstrap.servers"], "redis": redis_url.split("/")[2], "http": f"http://127.0.0.1:{port}", "pids": {}}
    write_json(home / "state.json", {**state, "model_store": str(home / "models"), "feature_repo": str(home / "feature_repo")})
    return Services(home, client, redis_url)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """librdkafka settings of one real broker for the whole session; make topics of your own on it."""
    with running_broker(tmp_path_factory.mktemp("broker")) as client:
        yield client


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of one real Redis for the whole session; use keys of your own in it."""
    with running_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh SIDSTREAM_HOME without any service."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("SIDSTREAM_HOME", str(folder))
    return folder


@pytest.fixture
def services(home: Path) -> Iterator[Services]:
    """A fresh home with its own broker and Redis, for tests that use the system's own topics or kill something."""
    with ExitStack() as stack:
        client = stack.enter_context(running_broker(home / "broker"))
        url = stack.enter_context(running_redis(home / "redis"))
        yield describe(home, client, url)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real logs (`SIDSTREAM_DATA`, or `shared/data` beside the checkout)."""
    if not DATA.is_dir():
        pytest.skip(f"no shared data: set SIDSTREAM_DATA to its folder (looked for {DATA.name} beside the checkout)")
    return DATA


@pytest.fixture(scope="session")
def kuairand(data: Path) -> Path:
    """Folder of the KuaiRand-Pure log as its publisher ships it."""
    folder = data / "kuairand"
    if not folder.is_dir():
        pytest.skip("the shared data has no kuairand folder")
    return folder
