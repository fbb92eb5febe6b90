"""In which batches samples are learned: what has come by now, or, where weights must be reproducible, a function of the stream alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Arrived:
    """A row and where it was read; `row` is None where the record could not be decoded, so that its offset is passed nevertheless."""

    partition: int
    offset: int
    row: Any


class Timely:
    """Batches of at most `size` rows in the order of arrival; a smaller one when its first row has waited `max_wait_s`."""

    def __init__(self, size: int, max_wait_s: float) -> None:
        self.size, self.max_wait_s = size, max_wait_s
        self._rows: deque[Arrived] = deque()
        self._since = 0.0

    def add(self, rows: Iterable[Arrived], now: float) -> None:
        """Rows read at monotonic time `now`."""
        if not self._rows:
            self._since = now
        self._rows.extend(rows)

    def end(self) -> None:
        """No further row will come; nothing depends on it here."""

    def take(self, now: float, flush: bool = False) -> list[Arrived]:
        """The next batch, or nothing yet; with `flush` whatever there is."""
        due = flush or len(self._rows) >= self.size or (self._rows and now - self._since >= self.max_wait_s)
        if not due:
            return []
        taken = [self._rows.popleft() for _ in range(min(self.size, len(self._rows)))]
        self._since = now
        return taken

    def waiting(self) -> int:
        """Rows that will be learned without any further row."""
        return len(self._rows)


class Reproducible:
    """Batches of exactly `size` rows, merged over the partitions by the time at which they were ready, then by partition.

    The order is a function of the partitions' contents, however fast each is read: no row is taken before every partition shows its next
    one. So a partition that gets nothing holds the others up; where the end of the stream is known, `end` lets the rest go.
    """

    def __init__(self, size: int, partitions: Iterable[int]) -> None:
        self.size = size
        self._rows: dict[int, deque[Arrived]] = {partition: deque() for partition in sorted(partitions)}
        self._ended = False
        self._batch: list[Arrived] = []

    def add(self, rows: Iterable[Arrived], now: float) -> None:
        for arrived in rows:
            self._rows[arrived.partition].append(arrived)

    def end(self) -> None:
        """No further row will come: a partition without rows holds nothing up any more."""
        self._ended = True

    def take(self, now: float, flush: bool = False) -> list[Arrived]:
        """The next batch, or nothing yet. `flush` gives the last, smaller one, once the stream has ended."""
        while len(self._batch) < self.size and (partition := self._next()) is not None:
            self._batch.append(self._rows[partition].popleft())
        if len(self._batch) < self.size and not (flush and self._ended):
            return []
        taken, self._batch = self._batch, []
        return taken

    def waiting(self) -> int:
        """Zero: what is held here waits for further rows."""
        return 0

    def _next(self) -> int | None:
        """The partition whose head comes first; None while a partition's head is unknown."""
        heads = [partition for partition, rows in self._rows.items() if rows]
        if not heads or (len(heads) < len(self._rows) and not self._ended):
            return None
        return min(heads, key=lambda partition: (_ready(self._rows[partition][0]), partition))


def _ready(arrived: Arrived) -> int:
    """A record that cannot be decoded has no time: it goes first, since it holds nothing."""
    return -1 if arrived.row is None else int(arrived.row.ready_ts)
