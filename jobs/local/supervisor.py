"""Starts the parts of a home, keeps them running, and stops them; it never touches a process that it did not start.

One loop in one thread: `tick` looks at every part once and acts. What it knows lies in the home, where `status` and the next
supervisor read it: `state.json` (addresses), `run/processes.json` (pids and start times), `run/status.json` (health).
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

from jobs.local import ledger, logfiles
from jobs.local.ledger import MARK, Entry, Ledger
from jobs.local.parts import Part
from jobs.process import BROKEN_CONFIGURATION, explain, read_json, read_ready, write_json

log = logging.getLogger("sidstream.supervisor")

TICK_S = 0.1
CHECK_S = 3.0  # between health checks of a part that is well
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.5, 30.0
STEADY_S = 60.0  # a part that lived this long is tried again at once
TRIES = 3  # deaths before a part was ever well that make a start fail


class State(StrEnum):
    WAITING = "waiting"  # for what it needs
    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"  # lives, but its check fails
    RESTARTING = "restarting"  # died, and waits for its next try
    DONE = "done"  # a step that is finished
    STOPPED = "stopped"


class StartFailed(RuntimeError):
    """A part cannot be brought up; the message is one line with its reason and its log."""


def be_nice(pid: int, level: int) -> None:
    """Give way to the others: the process and, where Linux schedules each session as a group (`sched_autogroup`), its group."""
    psutil.Process(pid).nice(level)
    try:
        Path(f"/proc/{pid}/autogroup").write_text(str(level))
    except OSError as error:
        log.debug("pid=%d event=no_autogroup error=%r", pid, str(error))


@dataclass
class Runner:
    """What the supervisor knows of one part."""

    part: Part
    state: State = State.WAITING
    child: subprocess.Popen[bytes] | None = None  # None as well while an adopted process runs
    entry: Entry | None = None
    since: float = 0.0  # monotonic, of the last start
    next_check: float = 0.0
    next_try: float = 0.0
    backoff: float = FIRST_BACKOFF_S
    deaths: int = 0
    deaths_unwell: int = 0  # in a row, without having been well
    reason: str | None = None
    exits: dict[str, int | None] = field(default_factory=dict)

    @property
    def well(self) -> bool:
        return self.state in (State.HEALTHY, State.DONE)

    def exit_code(self) -> int | None:
        """Exit code of a process that has ended (unknown, -1, for an adopted one); None while it lives."""
        if self.child is not None:
            return self.child.poll()
        return None if self.entry and self.entry.process() else -1


class Supervisor:
    """Runs parts in a home.

    Args:
        home: folder of data, logs and state.
        addresses: what `state.json` says beside the pids.
        now: monotonic seconds; an argument so that tests need not wait.
    """

    def __init__(self, home: Path, addresses: Mapping[str, Any], now: Callable[[], float] = time.monotonic) -> None:
        self.home = home
        self.addresses = dict(addresses)
        self.runners: dict[str, Runner] = {}
        self.ledger = Ledger(home)
        self.phase = "starting"
        self.reason: str | None = None
        self._answer: dict[str, Any] | None = None
        self._now = now
        self._mark = uuid.uuid4().hex
        self._me = psutil.Process()
        self._written: tuple[Any, Any] = (None, None)
        self._next_rotation = 0.0

    # -- what it runs -----------------------------------------------------------------------------------------------

    def want(self, parts: Sequence[Part]) -> None:
        """Add parts; those that an earlier supervisor of this home left running are adopted if they would be started alike."""
        left = self.ledger.alive()
        strangers = []
        for part in parts:
            if part.name in self.runners:
                continue
            runner = self.runners[part.name] = Runner(part)
            entry = left.pop(part.name, None)
            if entry is None:
                continue
            if entry.process() and entry.command == list(part.command) and not part.once:
                runner.entry, runner.state, runner.since = entry, State.STARTING, self._now()
                log.info("part=%s event=adopted pid=%d", part.name, entry.pid)
            else:
                strangers.append(entry)
        ours = {entry.name for entry in self._entries()}
        strangers += [entry for name, entry in left.items() if name not in ours and name not in self.runners]
        for entry in ledger.end(strangers):
            log.info("part=%s event=stopped pid=%d reason=left_by_an_earlier_supervisor", entry.name, entry.pid)
        self._record()

    def bring_up(self, stopping: Callable[[], bool] = lambda: False, changed: Callable[[Runner], None] = lambda runner: None) -> bool:
        """Tick until all wanted parts are well; False when `stopping` said so before.

        Raises:
            StartFailed: a part cannot be brought up.
        """
        seen: dict[str, State] = {}
        while not all(runner.well for runner in self.runners.values()):
            if stopping():
                return False
            self.tick()
            for name, runner in self.runners.items():
                if seen.get(name) != runner.state:
                    seen[name] = runner.state
                    changed(runner)
                self._give_up(runner)
            time.sleep(TICK_S)
        self.phase = "up"
        self._record()
        return True

    def _give_up(self, runner: Runner) -> None:
        part = runner.part
        code = runner.exits.get("last")
        if code == BROKEN_CONFIGURATION or runner.deaths_unwell >= (1 if part.once else TRIES):
            raise StartFailed(f"{part.name} did not start (exit code {code}): {runner.reason}; see {self.log_of(part.name)}")
        if not part.once and runner.state is State.STARTING and self._now() - runner.since > part.start_s:
            raise StartFailed(f"{part.name} was not well within {part.start_s:.0f} s; see {self.log_of(part.name)}")

    # -- one look at everything ---------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Start what may start, notice what died, check health, cap logs, write down what changed."""
        now = self._now()
        for runner in self.runners.values():
            if runner.state is State.WAITING:
                if all(self.runners[need].well for need in runner.part.needs if need in self.runners):
                    self._start(runner)
            elif runner.state is State.RESTARTING:
                if now >= runner.next_try:
                    self._start(runner)
            elif runner.state in (State.STARTING, State.HEALTHY, State.UNHEALTHY):
                code = runner.exit_code()
                if code is not None:
                    self._ended(runner, code)
                elif not runner.part.once and now >= runner.next_check:
                    self._check(runner)
        if now >= self._next_rotation:
            self._next_rotation = now + 5
            logfiles.cap(self.home / "logs")
        self._record()

    def _start(self, runner: Runner) -> None:
        part = runner.part
        if part.once and part.finished():
            runner.state = State.DONE
            return
        runner.state, runner.since, runner.next_check = State.STARTING, self._now(), 0.0
        (self.home / "run" / f"{part.name}.ready").unlink(missing_ok=True)
        try:
            part.prepare()
            runner.child = self._spawn(part)
        except OSError as error:
            runner.child = runner.entry = None
            self._retry(runner, None, explain(error))
            return
        started = psutil.Process(runner.child.pid).create_time()
        runner.entry = Entry(part.name, runner.child.pid, started, self._mark, list(part.command))
        self._record()
        log.info("part=%s event=started pid=%d", part.name, runner.child.pid)

    def _spawn(self, part: Part) -> subprocess.Popen[bytes]:
        path = self.log_of(part.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        base = part.environment or os.environ
        environment = {**base, MARK: self._mark, "SIDSTREAM_HOME": str(self.home), "PYTHONUNBUFFERED": "1"}
        with path.open("ab") as file:  # append mode: the child goes on after its log was capped, and after this process died
            child = subprocess.Popen(
                part.command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        if part.nice:
            be_nice(child.pid, part.nice)
        return child

    def _check(self, runner: Runner) -> None:
        healthy = runner.part.healthy()
        if healthy and runner.state is not State.HEALTHY:
            log.info("part=%s event=healthy after_s=%.1f", runner.part.name, self._now() - runner.since)
            runner.state, runner.deaths_unwell, runner.reason = State.HEALTHY, 0, None
        elif not healthy and runner.state is State.HEALTHY:
            log.warning("part=%s event=unhealthy pid=%d", runner.part.name, runner.entry.pid if runner.entry else -1)
            runner.state = State.UNHEALTHY
        runner.next_check = self._now() + (CHECK_S if runner.state is State.HEALTHY else 0.2)

    def _ended(self, runner: Runner, code: int) -> None:
        part = runner.part
        if runner.entry:  # what the dead process had started in turn must not meet its successor
            ledger.signal_all(runner.entry.family(), signal.SIGKILL)
        if part.once and code == 0:
            runner.state, runner.entry, runner.exits[part.name] = State.DONE, None, 0
            log.info("part=%s event=done after_s=%.1f", part.name, self._now() - runner.since)
            return
        self._retry(runner, code, logfiles.last_words(self.log_of(part.name)))

    def _retry(self, runner: Runner, code: int | None, reason: str) -> None:
        part, now = runner.part, self._now()
        if runner.state is not State.HEALTHY:
            runner.deaths_unwell += 1
        if now - runner.since >= STEADY_S:
            runner.backoff = FIRST_BACKOFF_S
        runner.deaths += 1
        runner.exits[f"{part.name}#{runner.deaths}"] = runner.exits["last"] = code
        runner.state, runner.reason, runner.next_try = State.RESTARTING, reason, now + runner.backoff
        wait, runner.backoff = runner.backoff, min(LAST_BACKOFF_S, runner.backoff * 2)
        hint = disk_hint(self.home)
        log.warning('part=%s event=died code=%s restart_in_s=%.1f reason="%s"%s', part.name, code, wait, reason, f" {hint}" if hint else "")

    # -- the end ------------------------------------------------------------------------------------------------------

    def stop(self) -> dict[str, int | None]:
        """Stop everything; returns exit codes by name (`name#n` for the n-th unplanned death), 0 for a clean end."""
        self.phase = "stopping"
        self._end(list(self.runners.values()))
        exits = {name: code for runner in self.runners.values() for name, code in runner.exits.items() if name != "last"}
        self.phase = "failed" if self.reason else "stopped"
        self._record()
        write_json(self.home / "run" / "exits.json", exits)
        return exits

    def drop(self, names: Collection[str]) -> None:
        """Stop some parts and forget them."""
        self._end([self.runners[name] for name in names])
        for name in names:
            del self.runners[name]
        self._record()

    def _end(self, runners: Sequence[Runner]) -> None:
        """Stop each part after all that need it: SIGTERM to its process, SIGKILL to its whole family when its time is up."""
        signalled: dict[str, float] = {}
        killed: set[str] = set()
        while alive := [runner for runner in reversed(runners) if self._lives(runner)]:
            for runner in alive:
                name = runner.part.name
                if any(self._relies(other.part, name) for other in alive) or not runner.entry:
                    continue
                if name not in signalled:
                    signalled[name] = self._now()
                    log.info("part=%s event=stopping pid=%d", name, runner.entry.pid)
                    leader = runner.entry.process()
                    ledger.signal_all([leader] if leader else [], signal.SIGTERM)
                elif name not in killed and self._now() - signalled[name] > runner.part.grace_s:
                    killed.add(name)
                    log.warning("part=%s event=killed reason=no_answer_to_SIGTERM grace_s=%.0f", name, runner.part.grace_s)
                    ledger.signal_all(runner.entry.family(), signal.SIGKILL)
            self._record()
            time.sleep(0.05)

    def _relies(self, part: Part, name: str) -> bool:
        """Whether a part needs another, also through a step that is done (a trainer needs topics, and those the broker)."""
        return any(need == name or (need in self.runners and self._relies(self.runners[need].part, name)) for need in part.needs)

    def _lives(self, runner: Runner) -> bool:
        """Whether a part still runs; if it has just ended, its exit code is kept and its family is gone."""
        if runner.entry is None:
            if runner.state is not State.DONE:
                runner.state = State.STOPPED
            return False
        code = runner.exit_code()
        if code is None:
            return True
        ledger.signal_all(runner.entry.family(), signal.SIGKILL)
        unknown = runner.child is None  # adopted: only its parent could have asked
        begun = runner.state is not State.STARTING or code != -signal.SIGTERM  # before its handlers were there it had nothing to finish
        runner.exits[runner.part.name] = code if begun and not unknown and code not in runner.part.clean_exits else 0
        log.info("part=%s event=stopped code=%d", runner.part.name, code)
        runner.state, runner.entry = State.STOPPED, None
        return False

    # -- what others read ---------------------------------------------------------------------------------------------

    def answer(self, request: str | None, error: str | None) -> None:
        """Tell who asked for more parts (`run/request.json`) what came of it."""
        self._answer = {"id": request, "error": error}
        self._record()

    def log_of(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def _entries(self) -> list[Entry]:
        return [runner.entry for runner in self.runners.values() if runner.entry]

    def _record(self) -> None:
        """Write state and status where they changed; a full disk must not end the supervision."""
        over = self.phase in ("stopped", "failed")
        state: dict[str, Any] = {
            key: None if over and key in ("kafka", "redis", "http", "flink") else value for key, value in self.addresses.items()
        }
        state["pids"] = {} if over else {"supervisor": self._me.pid, **{entry.name: entry.pid for entry in self._entries()}}
        flink = read_ready(self.home, "flink-samples").get("facts", {}).get("rest") if "flink-samples" in state["pids"] else None
        state["flink"] = flink
        status = {
            "supervisor": {"pid": self._me.pid, "started": self._me.create_time()},
            "phase": self.phase,
            "reason": self.reason,
            "answer": self._answer,
            "parts": {name: self._describe(runner) for name, runner in self.runners.items()},
        }
        if (state, status) == self._written:
            return
        try:
            self.ledger.write(self._entries())
            write_json(self.home / "state.json", state)
            write_json(self.home / "run" / "status.json", status)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            log.error('event=not_written reason="%s"', explain(error))
            return
        self._written = (state, status)

    @staticmethod
    def _describe(runner: Runner) -> dict[str, Any]:
        pid = runner.entry.pid if runner.entry else None
        return {"state": str(runner.state), "pid": pid, "restarts": runner.deaths, "reason": runner.reason}


def disk_hint(folder: Path) -> str:
    """A remark where a part probably died of a full disk."""
    free = shutil.disk_usage(folder).free
    return f'hint="only {free // 2**20} MiB are free in {folder}: free some space"' if free < 256 * 2**20 else ""


def read_status(home: Path) -> dict[str, Any]:
    """`run/status.json`, with what it cannot know: whether the supervisor that wrote it still lives (`alive`)."""
    status = read_json(home / "run" / "status.json")
    if status:
        status["alive"] = ledger.find(status["supervisor"]["pid"], status["supervisor"]["started"]) is not None
    return status
