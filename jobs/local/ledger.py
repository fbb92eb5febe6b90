"""Which processes a home's supervisor has started: written down before they do anything, so that a supervisor that was killed
with -9 leaves no process that the next one cannot find.

A process is known by its pid *and* its start time, since pids come round again. What it has started in turn (a JVM, a worker)
is known by the session that it leads and by a mark in the environment.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from jobs.process import read_json, write_json

MARK = "SIDSTREAM_SUPERVISED"
SAME_START_S = 0.5  # the kernel's start time has a resolution of 10 ms, and psutil adds the boot time, which drifts a little


@dataclass(frozen=True)
class Entry:
    """One process that a supervisor started."""

    name: str
    pid: int
    started: float  # seconds since the epoch, as psutil gives it
    mark: str  # value of `SIDSTREAM_SUPERVISED` in its environment
    command: list[str]

    def process(self) -> psutil.Process | None:
        """The process, if it still lives and is the one that was started."""
        return find(self.pid, self.started)

    def family(self) -> list[psutil.Process]:
        """What lives of the process and of everything in its session that carries its mark, the process itself last."""
        leader = self.process()
        members = [process for process in session(self.pid) if process.pid != self.pid and marked(process, self.mark)]
        return [*members, leader] if leader else members


def find(pid: int, started: float) -> psutil.Process | None:
    """The living process with this pid and this start time."""
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - started) <= SAME_START_S and process.status() != psutil.STATUS_ZOMBIE:
            return process
    except psutil.Error:
        pass
    return None


def session(leader: int) -> list[psutil.Process]:
    """Processes of the session that `leader` made, whether or not it still lives."""
    members = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == leader:
                members.append(psutil.Process(pid))
        except (OSError, psutil.Error):
            continue
    return members


def marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
    except psutil.Error:
        return False


class Ledger:
    """`run/processes.json` of a home."""

    def __init__(self, home: Path) -> None:
        self.path = home / "run" / "processes.json"

    def entries(self) -> dict[str, Entry]:
        """Processes by name, in the order in which they were started, alive or not."""
        return {name: Entry(name=name, **fields) for name, fields in read_json(self.path).items()}

    def write(self, entries: Iterable[Entry]) -> None:
        write_json(self.path, {entry.name: {k: v for k, v in asdict(entry).items() if k != "name"} for entry in entries})

    def alive(self) -> dict[str, Entry]:
        """Those of which something still lives."""
        return {name: entry for name, entry in self.entries().items() if entry.family()}


def signal_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)  # psutil compares the start time once more, so never a stranger's pid
        except psutil.Error:
            continue


def end(entries: Iterable[Entry], grace_s: float = 20) -> list[Entry]:
    """Stop what an earlier supervisor left behind, the last started first: SIGTERM, after `grace_s` SIGKILL; returns those found."""
    found = []
    for entry in reversed(list(entries)):
        family = entry.family()
        if not family:
            continue
        found.append(entry)
        leader = entry.process()
        signal_all([leader] if leader else family, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while entry.process() and time.monotonic() < deadline:
            time.sleep(0.05)
        signal_all(entry.family(), signal.SIGKILL)
        while entry.family():
            time.sleep(0.05)
    return found
