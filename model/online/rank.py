"""Where a number stands among the latest ones of its stream."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable


class Rank:
    """The latest `kept` numbers; nothing is said before `least` of them are there. A number is ranked before it is counted."""

    def __init__(self, kept: int, least: int) -> None:
        self.least = least
        self._seen: deque[float] = deque(maxlen=kept)
        self._sorted: list[float] = []

    def of(self, value: float) -> float | None:
        """Share of the numbers that are smaller, equal ones half; None where too few are known. Then the number is one of them."""
        found = None
        if len(self._seen) >= self.least:
            found = (bisect_left(self._sorted, value) + bisect_right(self._sorted, value)) / 2 / len(self._sorted)
        self.add(value)
        return found

    def add(self, value: float) -> None:
        if len(self._seen) == self._seen.maxlen:
            del self._sorted[bisect_left(self._sorted, self._seen[0])]
        self._seen.append(value)
        insort(self._sorted, value)

    def state(self) -> list[float]:
        """The numbers, oldest first."""
        return list(self._seen)

    def restore(self, state: Iterable[float]) -> None:
        self._seen.clear()
        self._seen.extend(state)
        self._sorted = sorted(self._seen)
