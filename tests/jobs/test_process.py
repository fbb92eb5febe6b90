"""What every process shares: addresses, signals, exit codes, one-line errors."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.process import endpoints, explain, read_ready, ready, write_json
from jobs.settings import ConfigError, Kafka, Redis, Settings

PROGRAM = """
import sys
from pathlib import Path
from jobs.process import run, ready
def main(settings, where, stop):
    ready(where.home, "fake", rest="here")
    {body}
run("fake", main, Path(sys.argv[1]) if len(sys.argv) > 1 else None)
"""
ELSEWHERE = "kafka: {bootstrap: 'far:9092'}\nredis: {url: 'redis://far:6379/2'}\n"


def start(body: str, home: Path, config: str = ELSEWHERE) -> subprocess.Popen[str]:
    path = home / "config.yaml"
    path.write_text(config)
    return subprocess.Popen([sys.executable, "-c", PROGRAM.format(body=body), str(path)], stderr=subprocess.PIPE, text=True)


def finish(child: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = child.communicate(timeout=20)
    return child.returncode, said


def test_configured_addresses_win_over_the_home_s(home: Path) -> None:
    write_json(home / "state.json", {"kafka": "127.0.0.1:1", "redis": "127.0.0.1:2", "http": "http://127.0.0.1:3"})
    embedded = endpoints(Settings(), home)
    assert (embedded.kafka, embedded.redis_url) == ({"bootstrap.servers": "127.0.0.1:1"}, "redis://127.0.0.1:2/0")
    assert embedded.http == "http://127.0.0.1:3"
    far = Settings(kafka=Kafka(bootstrap="far:9092", security={"security.protocol": "SSL"}), redis=Redis(url="redis://far:6379/2"))
    configured = endpoints(far, home)
    assert configured.kafka == {"bootstrap.servers": "far:9092", "security.protocol": "SSL"}
    assert configured.redis_url == "redis://far:6379/2"


def test_a_home_in_which_no_broker_runs_is_one_line_that_says_what_to_do(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"kafka.bootstrap is not set.*sidstream up --detach --only broker"):
        endpoints(Settings(), home)


def test_a_home_without_redis_serves_what_needs_none_and_tells_what_does(home: Path) -> None:
    write_json(home / "state.json", {"kafka": "127.0.0.1:1"})
    with pytest.raises(ConfigError, match=r"redis.url is not set.*sidstream up --detach --only redis"):
        endpoints(Settings(), home).redis_url  # noqa: B018


def test_ready_names_the_process_and_its_facts(home: Path) -> None:
    ready(home, "part", rest="http://127.0.0.1:1")
    facts = read_ready(home, "part")
    assert (facts["pid"], facts["facts"]) == (os.getpid(), {"rest": "http://127.0.0.1:1"})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_process_cleanly(home: Path, number: signal.Signals) -> None:
    child = start("stop.wait(60)", home)
    deadline = time.monotonic() + 20
    while not read_ready(home, "fake"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(number)
    code, said = finish(child)
    assert code == 0
    assert "event=finished" in said


def test_a_broken_configuration_is_one_line_and_exit_code_2(home: Path) -> None:
    code, said = finish(start("pass", home, "kafka: {bootstrp: x}"))
    assert code == 2
    assert "kafka.bootstrp" in said
    assert len(said.strip().splitlines()) == 1


def test_a_full_disk_is_one_line(home: Path) -> None:
    code, said = finish(start("raise OSError(28, 'No space left on device', '/big')", home))
    assert code == 1
    assert "the disk is full: free some space" in said
    assert "Traceback" not in said


def test_a_defect_is_a_traceback(home: Path) -> None:
    code, said = finish(start("raise ValueError('defect')", home))
    assert code == 1
    assert "Traceback" in said


def test_a_port_in_use_says_what_to_do() -> None:
    assert "choose another in the configuration" in explain(OSError(errno.EADDRINUSE, "Address already in use"))
