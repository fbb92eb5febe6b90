"""The supervisor, with small real processes that stand for the system's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from jobs.local.ledger import Ledger, find
from jobs.local.parts import Part, never
from jobs.local.supervisor import StartFailed, State, Supervisor
from jobs.process import read_json

pytestmark = pytest.mark.integration  # real processes

SLEEPER = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('runs', flush=True); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('runs', flush=True); time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPER!r}]); {SLEEPER}"


def fake(name: str, code: str = SLEEPER, **options: object) -> Part:
    """A process that runs `code`; well once it has said something."""
    return Part(name, [sys.executable, "-c", code], **options)  # type: ignore[arg-type]


def said(home: Path, name: str) -> Callable[[], bool]:
    return lambda: "runs" in (home / "logs" / f"{name}.log").read_text()


@pytest.fixture
def supervisors(home: Path) -> Iterator[Callable[[], Supervisor]]:
    """Makes supervisors of one home; everything that they started is stopped at the end."""
    made: list[Supervisor] = []

    def make() -> Supervisor:
        made.append(Supervisor(home, {"kafka": None}))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.stop()


def tick_until(supervisor: Supervisor, condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {supervisor.runners}"
        supervisor.tick()
        time.sleep(0.02)


def test_a_part_starts_after_those_that_it_needs_and_stops_before_them(
    supervisors: Callable[[], Supervisor], home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = supervisors()
    order: list[str] = []
    step = fake("step", "pass", needs=["first"], once=True)
    supervisor.want([fake("second", needs=["step"], healthy=said(home, "second")), step, fake("first", healthy=said(home, "first"))])
    supervisor.bring_up(changed=lambda runner: order.append(runner.part.name) if runner.well else None)
    assert order == ["first", "step", "second"]
    with caplog.at_level("INFO", "sidstream.supervisor"):
        exits = supervisor.stop()
    said_so = [record.getMessage().split()[:2] for record in caplog.records if "event=stop" in record.getMessage()]
    assert said_so == [[f"part={name}", f"event={event}"] for name in ("second", "first") for event in ("stopping", "stopped")]
    assert exits == {"first": 0, "second": 0, "step": 0}
    assert read_json(home / "run" / "exits.json") == exits
    assert read_json(home / "state.json")["pids"] == {}


def test_a_killed_part_is_started_again_after_a_pause_and_its_death_is_kept(supervisors: Callable[[], Supervisor], home: Path) -> None:
    supervisor = supervisors()
    supervisor.want([fake("part", healthy=said(home, "part"))])
    supervisor.bring_up()
    runner = supervisor.runners["part"]
    assert runner.entry is not None
    first = runner.entry.pid
    os.kill(first, signal.SIGKILL)
    tick_until(supervisor, lambda: runner.state is State.RESTARTING)
    assert runner.backoff == 1.0
    tick_until(supervisor, lambda: runner.state is State.HEALTHY and (home / "logs" / "part.log").read_text().count("runs") == 2)
    assert runner.entry.pid != first
    assert supervisor.stop() == {"part#1": -signal.SIGKILL, "part": 0}


def test_the_pause_doubles_with_every_death_up_to_its_limit(supervisors: Callable[[], Supervisor]) -> None:
    supervisor = supervisors()
    supervisor.want([fake("part", "raise SystemExit(3)", healthy=never)])
    runner, pauses = supervisor.runners["part"], []
    for _ in range(9):
        tick_until(supervisor, lambda: runner.state is State.RESTARTING)
        pauses.append(runner.backoff)  # the next one
        runner.next_try = 0
        supervisor.tick()
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30, 30]


def test_a_part_that_never_gets_well_fails_the_start_with_its_last_words(supervisors: Callable[[], Supervisor]) -> None:
    supervisor = supervisors()
    supervisor.want([fake("part", "import sys; sys.exit('the port is in use')", healthy=never)])
    with pytest.raises(StartFailed, match=r"part did not start \(exit code 1\): the port is in use; see .*part.log"):
        supervisor.bring_up()


def test_a_broken_configuration_is_not_tried_twice(supervisors: Callable[[], Supervisor]) -> None:
    supervisor = supervisors()
    supervisor.want([fake("part", "raise SystemExit(2)", healthy=never)])
    with pytest.raises(StartFailed, match="exit code 2"):
        supervisor.bring_up()
    assert supervisor.runners["part"].deaths == 1


def test_a_step_runs_once_and_not_at_all_when_its_result_is_there(supervisors: Callable[[], Supervisor], home: Path) -> None:
    supervisor = supervisors()
    write = f"open({str(home / 'steps')!r}, 'a').write('x')"
    supervisor.want([fake("new", write, once=True), fake("old", write, once=True, finished=lambda: True)])
    supervisor.bring_up()
    assert (home / "steps").read_text() == "x"


def test_a_part_that_ignores_the_signal_is_killed_when_its_time_is_up(supervisors: Callable[[], Supervisor], home: Path) -> None:
    supervisor = supervisors()
    supervisor.want([fake("part", STUBBORN, healthy=said(home, "part"), grace_s=0.3)])
    supervisor.bring_up()
    assert supervisor.stop() == {"part": -signal.SIGKILL}


def test_what_a_killed_part_had_started_goes_before_its_successor_comes(supervisors: Callable[[], Supervisor], home: Path) -> None:
    supervisor = supervisors()
    log = home / "logs" / "part.log"
    supervisor.want([fake("part", PARENT, healthy=lambda: log.read_text().count("runs") >= 2)])
    supervisor.bring_up()
    runner = supervisor.runners["part"]
    assert runner.entry is not None
    (grandchild,) = psutil.Process(runner.entry.pid).children()
    os.kill(runner.entry.pid, signal.SIGKILL)
    tick_until(supervisor, lambda: runner.state is State.RESTARTING)
    tick_until(supervisor, lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE)


def test_a_pid_that_has_come_round_again_is_a_stranger() -> None:
    me = psutil.Process()
    assert find(me.pid, me.create_time()) is not None
    assert find(me.pid, me.create_time() - 60) is None


# -- a supervisor that was killed -----------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from jobs.local.parts import Part, never
from jobs.local.supervisor import Supervisor
supervisor = Supervisor(Path(sys.argv[1]), {})
supervisor.want([Part("kept", [sys.executable, "-c", sys.argv[2]]), Part("changed", [sys.executable, "-c", sys.argv[2], "old"])])
supervisor.bring_up()
os.kill(os.getpid(), signal.SIGKILL)
"""


def left_behind(home: Path) -> dict[str, psutil.Process]:
    """Processes of a supervisor that killed itself with -9."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(home), SLEEPER], check=False)
    assert done.returncode == -signal.SIGKILL
    found = {name: entry.process() for name, entry in Ledger(home).alive().items()}
    assert set(found) == {"kept", "changed"}
    return {name: process for name, process in found.items() if process}


def test_the_next_supervisor_adopts_what_it_would_start_alike_and_stops_the_rest(supervisors: Callable[[], Supervisor], home: Path) -> None:
    orphans = left_behind(home)
    supervisor = supervisors()
    supervisor.want([fake("kept"), fake("changed")])
    supervisor.bring_up()
    entries = {name: runner.entry.pid for name, runner in supervisor.runners.items() if runner.entry}
    assert entries["kept"] == orphans["kept"].pid
    assert entries["changed"] != orphans["changed"].pid
    assert not orphans["changed"].is_running() or orphans["changed"].status() == psutil.STATUS_ZOMBIE
    supervisor.stop()
    assert Ledger(home).alive() == {}


def test_an_adopted_part_that_dies_is_started_again(supervisors: Callable[[], Supervisor], home: Path) -> None:
    orphans = left_behind(home)
    supervisor = supervisors()
    supervisor.want([fake("kept")])
    supervisor.bring_up()
    orphans["kept"].kill()
    runner = supervisor.runners["kept"]
    tick_until(supervisor, lambda: runner.deaths == 1)
    tick_until(supervisor, lambda: runner.state is State.HEALTHY)


def test_down_stops_what_a_killed_supervisor_left(home: Path) -> None:
    left_behind(home)
    done = subprocess.run([sys.executable, "-m", "jobs.cli", "down"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "stopped 2 parts" in done.stdout
    assert Ledger(home).alive() == {}
