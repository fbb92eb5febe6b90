"""Progress of a run on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

WIDTH = 24
EVERY_S = 10.0


class Progress:
    """`total` steps that end at the monotonic second `ends` at the latest."""

    def __init__(self, name: str, total: int, ends: float) -> None:
        self.name, self.total, self.ends = name, total, ends
        self.began = time.monotonic()
        self.shown = -EVERY_S
        self.terminal = sys.stderr.isatty()

    def show(self, done: int, now: str) -> None:
        """What is being done, after `done` steps."""
        elapsed = time.monotonic() - self.began
        if not self.terminal and elapsed - self.shown < EVERY_S:
            return
        self.shown = elapsed
        rest = self.ends - time.monotonic()
        if done:
            rest = min(rest, elapsed / done * (self.total - done))
        filled = WIDTH * done // max(1, self.total)
        line = (
            f"{self.name:<12} [{'#' * filled}{'.' * (WIDTH - filled)}] {done}/{self.total}  {_clock(elapsed)}, left {_clock(rest)}  {now}"
        )
        print(f"\r\x1b[K{line}" if self.terminal else line, end="" if self.terminal else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        """The part is done."""
        line = f"{self.name:<12} {self.total} points in {_clock(time.monotonic() - self.began)}"
        print(f"\r\x1b[K{line}" if self.terminal else line, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    return f"{int(max(0.0, seconds)) // 60}:{int(max(0.0, seconds)) % 60:02}"
