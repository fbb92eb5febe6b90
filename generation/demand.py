"""Demand for videos that do not exist: wishes merged by SID, the most wanted first. The rule itself, pure; `generation.queue` keeps it in
Redis.

Urgency is the number of wishes plus one for every minute since the first of them, so that nothing starves. Since all grow older at the same
pace, the order of two SIDs never changes with time alone: urgency is kept as a number that does not have to be computed again.

What is merged depends on the set of requests only, not on their order or on how often each is read: a queue that is rebuilt from the log is
the queue that was lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

MINUTE_MS: Final = 60_000
ORIGIN_MS: Final = 4_102_444_800_000  # 2100-01-01: keeps urgencies positive


@dataclass(frozen=True)
class Wish:
    """One request: `demand` people want the video `key` (a bundle's version and a SID); `asked_ms` is when, ms UTC."""

    request_id: str
    key: str
    demand: int
    asked_ms: int


@dataclass(frozen=True)
class Want:
    """All wishes for one video; `first_ms` is when the first of them was asked, `request_ids` whose they are."""

    key: str
    demand: int
    first_ms: int
    request_ids: frozenset[str]

    @property
    def urgency(self) -> float:
        return urgency(self.demand, self.first_ms)


def key_of(bundle_version: str, sid: Iterable[int]) -> str:
    """Name of a video that is wanted: `<bundle>|<codes joined by dots>`."""
    return f"{bundle_version}|{'.'.join(map(str, sid))}"


def urgency(demand: int, first_ms: int) -> float:
    """How urgent a video is that `demand` people want, the first of them since `first_ms`; comparable at any time."""
    return demand + (ORIGIN_MS - first_ms) / MINUTE_MS


def merge(wants: dict[str, Want], wish: Wish) -> dict[str, Want]:
    """Wants with one more wish; the same ones if that request is already among them."""
    want = wants.get(wish.key)
    if want is None:
        return {**wants, wish.key: Want(wish.key, wish.demand, wish.asked_ms, frozenset({wish.request_id}))}
    if wish.request_id in want.request_ids:
        return wants
    merged = replace(
        want, demand=want.demand + wish.demand, first_ms=min(want.first_ms, wish.asked_ms), request_ids=want.request_ids | {wish.request_id}
    )
    return {**wants, wish.key: merged}


def most_wanted(wants: dict[str, Want]) -> list[Want]:
    """The most urgent first; of equals the one whose key comes last, as Redis orders them."""
    return sorted(wants.values(), key=lambda want: (want.urgency, want.key), reverse=True)
