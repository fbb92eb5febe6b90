"""Dynamic batching with deadlines: what waits while the model is busy becomes the next batch, and the beam narrows as load grows.

Under more load than there is time for, the newest requests go first: they can still be answered, while the oldest would be answered
after their deadline and make those behind them late as well.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

log = logging.getLogger(f"sidstream.{__name__}")

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")

NARROWEST: Final = 8
SHARE_OF_SLACK: Final = 0.5  # of the time that is left, what a batch may plan to use: the rest is for being wrong


class TooLate(Exception):
    """The deadline passed before the model could begin."""


class Stopped(Exception):
    """The batcher no longer takes requests."""


def rows_in_time(slacks_s: Sequence[float], most: int, cost_s: Callable[[int, int], float]) -> int:
    """How many of the first requests can be answered together in time with the narrowest beam; at least one, to learn what it costs now.

    Args:
        slacks_s: seconds until each deadline, longest first.
    """
    rows = 1
    while rows < min(most, len(slacks_s)) and cost_s(rows + 1, NARROWEST) <= slacks_s[rows]:
        rows += 1
    return rows


def beam_width(widest: int, rows: int, slack_s: float, cost_s: Callable[[int, int], float]) -> int:
    """The widest beam among widest, widest/2, … ≥ 8 whose estimated cost fits in half the slack; the narrowest where none does.

    Args:
        rows: requests in the batch.
        slack_s: seconds until the earliest deadline.
        cost_s: estimated seconds of a batch of (rows, width).
    """
    width = widest
    while width // 2 >= NARROWEST and cost_s(rows, width) > slack_s * SHARE_OF_SLACK:
        width //= 2
    return width


@dataclass
class CostEstimate:
    """Seconds of a batch by (rows, width), from what batches took: a fixed part and a part per beam, as moving averages."""

    fixed_s: float = 0.010
    per_beam_s: float = 0.0002
    weight: float = 0.1

    def __call__(self, rows: int, width: int) -> float:
        return self.fixed_s + self.per_beam_s * rows * width

    def learn(self, rows: int, width: int, took_s: float) -> None:
        """Move both parts by the same factor towards what was seen: a busy machine slows everything."""
        factor = 1 + self.weight * (min(4.0, max(0.25, took_s / self(rows, width))) - 1)
        self.fixed_s *= factor
        self.per_beam_s *= factor


@dataclass
class _Waiting(Generic[Ask, Answer]):
    ask: Ask
    deadline_s: float
    future: Future[Answer] = field(default_factory=Future)

    def late(self) -> None:
        """Tell its sender that there is no time left, unless it gave up by itself."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(TooLate("there is not enough time before the deadline"))


class Batcher(Generic[Ask, Answer]):
    """One worker thread that answers requests in batches. Times are `time.monotonic()` seconds.

    Args:
        answer: (asks, beam width) -> as many answers. If it raises, all requests of the batch get the exception.
        widest: beam width without load.
        max_batch: rows at a time.
    """

    def __init__(self, answer: Callable[[Sequence[Ask], int], Sequence[Answer]], *, widest: int, max_batch: int) -> None:
        self._answer = answer
        self._widest = widest
        self._max_batch = max_batch
        self._queue: deque[_Waiting[Ask, Answer]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._cost = CostEstimate()
        self.last_width = widest
        self.last_rows = 0
        self._thread = threading.Thread(target=self._work, name="recommend", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, ask: Ask, deadline_s: float) -> Future[Answer]:
        """Queue one request; the future fails with `TooLate` if its turn comes after the deadline."""
        waiting: _Waiting[Ask, Answer] = _Waiting(ask, deadline_s)
        with self._wake:
            if self._stopping:
                raise Stopped("the server is stopping")
            self._queue.append(waiting)
            self._wake.notify()
        return waiting.future

    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def stop(self) -> None:
        """Answer what is queued, then end."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._stopping:
                    self._wake.wait()
                if not self._queue:
                    return
                batch = self._take()
            if batch:
                self._run(batch)

    def _take(self) -> list[_Waiting[Ask, Answer]]:
        """The next batch; requests without time for any answer are told so at once, those without room wait on. Called with the lock."""
        now = time.monotonic()
        quickest_s = self._cost(1, NARROWEST)
        waiting = sorted(self._queue, key=lambda one: -one.deadline_s)
        rows = rows_in_time([one.deadline_s - now for one in waiting], self._max_batch, self._cost)
        batch, others = waiting[:rows], waiting[rows:]
        self._queue.clear()
        for one in others:
            if one.deadline_s - now < quickest_s:
                one.late()
            else:
                self._queue.appendleft(one)
        return batch

    def _run(self, batch: list[_Waiting[Ask, Answer]]) -> None:
        started = time.monotonic()
        live = []
        for waiting in batch:
            if waiting.deadline_s <= started:
                waiting.late()
            elif waiting.future.set_running_or_notify_cancel():
                live.append(waiting)
        if not live:
            return
        width = beam_width(self._widest, len(live), min(w.deadline_s for w in live) - started, self._cost)
        try:
            answers = self._answer([waiting.ask for waiting in live], width)
        except Exception as error:
            for waiting in live:
                waiting.future.set_exception(error)
            return
        self.last_width, self.last_rows = width, len(live)
        self._cost.learn(len(live), width, time.monotonic() - started)
        for waiting, answer in zip(live, answers, strict=True):
            waiting.future.set_result(answer)
