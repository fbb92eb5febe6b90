"""The whole loop as a user starts it, undisturbed, killed part by part, and on the real log: the report's invariants hold each time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.whole_machine

SMALL = 1_500
KILLED = ("trainer", "server", "generator-0", "writer", "inspector", "flink-features", "flink-samples", "redis", "broker", "supervisor")


def data_folder() -> Path:
    return Path(os.environ.get("SIDSTREAM_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def start_demo(home: Path, *arguments: str) -> subprocess.Popen:
    report = home.parent / "report.json"
    command = [sys.executable, "-m", "jobs.cli", "demo", "--headless", "--home", str(home), "--report", str(report), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(demo: subprocess.Popen, home: Path, seconds: float = 420) -> dict:
    """The report of a demo that ends in time."""
    output, _ = demo.communicate(timeout=seconds)
    path = home.parent / "report.json"
    assert path.exists(), f"the demo ended with {demo.returncode} and without a report:\n{output[-4000:]}"
    return json.loads(path.read_text())


def broken(report: dict) -> list[str]:
    return [f"{item['name']}: {item['detail']}" for item in report["invariants"] if not item["holds"]]


def pids(home: Path) -> dict[str, int]:
    try:
        return json.loads((home / "state.json").read_text())["pids"]
    except (OSError, ValueError, KeyError):
        return {}


def wait_until(what: str, true, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.3)


@pytest.mark.integration
def test_every_invariant_holds_on_simulated_users(tmp_path):
    home = tmp_path / "home"
    demo = start_demo(home, "--impressions", str(SMALL), "--seed", "11")
    report = finished(demo, home)
    assert broken(report) == []
    assert demo.returncode == 0
    assert report["samples"]["initial"] >= SMALL
    assert report["serving"]["errors"] == 0
    assert report["generation"]["generated"] > 0
    assert report["training"]["versions_published"] > 1
    assert [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get("SIDSTREAM_HOME") == str(home)] == []


@pytest.mark.integration
@pytest.mark.skipif(not (data_folder() / "kuairand").is_dir(), reason="the KuaiRand log is not here (set SIDSTREAM_DATA to its parent)")
def test_every_invariant_holds_on_the_real_log(tmp_path):
    home = tmp_path / "home"
    demo = start_demo(home, "--source", "kuairand", "--dir", str(data_folder() / "kuairand"), "--impressions", "5000")
    report = finished(demo, home)
    assert broken(report) == []
    assert demo.returncode == 0
    assert report["samples"]["initial"] >= 5000


@pytest.mark.fault
def test_every_invariant_holds_after_every_process_was_killed(tmp_path):
    home = tmp_path / "home"
    demo = start_demo(home, "--impressions", "6000", "--seed", "12")
    wait_until("traffic", lambda: "supervisor" in pids(home) and (home / "run" / "traffic.json").exists(), 120)
    killed = []
    for name in KILLED:
        time.sleep(4)
        pid = pids(home).get(name)
        assert pid, f"{name} is not in state.json: {pids(home)}"
        os.kill(pid, signal.SIGKILL)
        killed.append(name)
        if name == "supervisor":
            environment = {**os.environ, "SIDSTREAM_HOME": str(home)}
            up = [sys.executable, "-m", "jobs.cli", "up", "--detach", "--config", str(home / "demo.yaml")]
            subprocess.run(up, env=environment, check=True, timeout=120)
        else:
            wait_until(f"{name} coming back", lambda n=name, p=pid: pids(home).get(n) not in (None, p), 60)
    report = finished(demo, home)
    assert killed == list(KILLED)
    clean = "every process exited cleanly"
    assert [fault for fault in broken(report) if not fault.startswith(clean)] == []
    exits = json.loads((home / "run" / "exits.json").read_text())
    assert {name for name, code in exits.items() if code} <= {f"{name}#1" for name in KILLED}, "another one died, or one of them twice"
