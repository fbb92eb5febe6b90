"""Dynamic batching with deadlines: what waits while the model is busy becomes the next batch.

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
from typing import Generic, TypeVar

from serving.widths import WidthPolicy, Widths

log = logging.getLogger(f"sidstream.{__name__}")

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")


class TooLate(Exception):
    """The deadline passed before the model could begin."""


class Stopped(Exception):
    """The batcher no longer takes requests."""


def rows_in_time(slacks_s: Sequence[float], most: int, cost_s: Callable[[int], float]) -> int:
    """How many of the first requests can be answered together in time; at least one, to learn what it costs now.

    Args:
        slacks_s: seconds until each deadline, longest first.
        cost_s: seconds that so many rows take at least.
    """
    rows = 1
    while rows < min(most, len(slacks_s)) and cost_s(rows + 1) <= slacks_s[rows]:
        rows += 1
    return rows


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
    """One worker thread that answers requests in batches. Times are seconds of `clock`.

    Args:
        answer: (asks, widths) -> as many answers. If it raises, all requests of the batch get the exception.
        widths: chooses how wide a batch of how many rows is searched, and is told what that took.
        spare: something short to do in the worker's thread while nobody waits; answers whether it has more to do now.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Ask], Widths], Sequence[Answer]],
        *,
        widths: WidthPolicy,
        spare: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._answer = answer
        self._widths = widths
        self._spare = spare
        self._clock = clock
        self._queue: deque[_Waiting[Ask, Answer]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
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

    def turn(self) -> bool:
        """What the worker does over and over: answer a batch, or, where nobody waits, what is spare. Answers whether there may be more."""
        with self._wake:
            batch = self._take() if self._queue else []
        if not batch:
            return self._spare()
        self._run(batch)
        return True

    def _work(self) -> None:
        more_to_do = False
        while True:
            with self._wake:
                while not (self._queue or self._stopping or more_to_do):
                    self._wake.wait()
                if self._stopping and not self._queue:
                    return
            more_to_do = self.turn()

    def _take(self) -> list[_Waiting[Ask, Answer]]:
        """The next batch; requests without time for any answer are told so at once, those without room wait on. Called with the lock."""
        now = self._clock()
        quickest_s = self._widths.quickest_s(1)
        waiting = sorted(self._queue, key=lambda one: -one.deadline_s)
        rows = rows_in_time([one.deadline_s - now for one in waiting], self._widths.max_batch, self._widths.quickest_s)
        batch, others = waiting[:rows], waiting[rows:]
        self._queue.clear()
        for one in others:
            if one.deadline_s - now < quickest_s:
                one.late()
            else:
                self._queue.appendleft(one)
        return batch

    def _run(self, batch: list[_Waiting[Ask, Answer]]) -> None:
        started = self._clock()
        live = []
        for waiting in batch:
            if waiting.deadline_s <= started:
                waiting.late()
            elif waiting.future.set_running_or_notify_cancel():
                live.append(waiting)
        if not live:
            return
        rung = self._widths.rung(len(live), len(self._queue), min(w.deadline_s for w in live) - started)
        try:
            answers = self._answer([waiting.ask for waiting in live], self._widths.rungs[rung])
        except Exception as error:
            for waiting in live:
                waiting.future.set_exception(error)
            return
        self.last_rows = len(live)
        self._widths.costs.learn(rung, len(live), self._clock() - started)
        for waiting, answer in zip(live, answers, strict=True):
            waiting.future.set_result(answer)
