"""Demand for videos that do not exist, merged per process: a popular SID is requested once in a while with its count, not each time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

Codes = tuple[int, ...]


@dataclass(frozen=True)
class Wanted:
    """A SID that somebody would like to see and that has no video; `nearest_sid` is the one that was served in its place."""

    sid: Codes
    reason: Literal["miss", "content_hit"]
    nearest_sid: Codes
    user_id: int | None = None


@dataclass(frozen=True)
class Demand:
    """`count` wishes for one SID since it was requested last."""

    wanted: Wanted
    count: int


@dataclass
class _Entry:
    wanted: Wanted
    requested_at: float
    waiting: int = 0


class DemandLedger:
    """Merges wishes by SID. The first wish is requested at once, later ones together every `memory_s` seconds; none is lost.

    A SID that nobody wanted for `memory_s` seconds is forgotten. Times are seconds of any steady clock, given by the caller.
    """

    def __init__(self, memory_s: float = 10.0) -> None:
        self._memory_s = memory_s
        self._entries: OrderedDict[tuple[str, Codes], _Entry] = OrderedDict()  # by time of the last request

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, bundle: str, wanted: Wanted, now: float) -> Demand | None:
        """Count one wish; answers the request to send now, if any."""
        key = (bundle, wanted.sid)
        entry = self._entries.get(key)
        if entry is None:
            self._entries[key] = _Entry(wanted, now)
            return Demand(wanted, 1)
        entry.wanted = wanted
        entry.waiting += 1
        if now - entry.requested_at < self._memory_s:
            return None
        return self._request(key, entry, now)

    def due(self, now: float) -> list[tuple[str, Demand]]:
        """Requests whose time has come, with their bundles; call this about once a second."""
        requests = []
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            if now - entry.requested_at < self._memory_s:
                break
            if entry.waiting:
                requests.append((key[0], self._request(key, entry, now)))
            else:
                del self._entries[key]
        return requests

    def flush(self, now: float) -> list[tuple[str, Demand]]:
        """Everything that waits: for an orderly end."""
        return [(key[0], self._request(key, entry, now)) for key, entry in list(self._entries.items()) if entry.waiting]

    def _request(self, key: tuple[str, Codes], entry: _Entry, now: float) -> Demand:
        demand = Demand(entry.wanted, entry.waiting)
        entry.waiting, entry.requested_at = 0, now
        self._entries.move_to_end(key)
        return demand
