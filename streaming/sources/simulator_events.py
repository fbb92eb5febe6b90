"""Simulated people at work: who looks next, and which events their answers to a feed become, and when.

Life is compressed: a person needs 1/LIFE of a video's own time to watch it. `play_ms` and `at_ms` are the video's own time, as in any
log; the events' `ts` are wall-clock times soon after the impression. So most labels fall into a label window of 10–15 s, those of a long
feed's end and of late conversions do not, and an hour of watching passes in minutes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from streaming import records, topics
from streaming.sources.simulator import Reaction, Vector, World

LIFE: Final = 20  # seconds of watching in a second of event time
SWIPE_MS: Final = 40
THINK_MS: Final = 400  # mean pause between two feeds of a session
STAYS: Final = 0.8  # chance that a session goes on with another feed
SCROLLS: Final = 0.97  # chance that the next video of a feed is looked at, too
INTERRUPTED: Final = 0.004  # chance before a video that something else takes the person away for PAUSE_MS on average
PAUSE_MS: Final = 10_000
CONVERSION_MS: Final = 5_000  # median time from impression to conversion
LONGEST_CONVERSION_MS: Final = 40_000
NETWORK_MS: Final = (5, 60)
LATE: Final = 0.01  # share of events that are held up on their way, by LATE_MS on average
LATE_MS: Final = 2_000
LONGEST_LATE_MS: Final = 12_000
TWICE: Final = 0.005  # share of events that are sent twice


@dataclass(frozen=True)
class Shown:
    """A place of a feed, as the person sees it."""

    impression_id: str
    impression_ts: int
    position: int
    item_id: int
    duration_ms: int
    content: Vector
    creative: Vector


@dataclass(frozen=True, order=True)
class Delivery:
    """An event on its way: `at_ms` is when it is sent, never before its own `ts`."""

    at_ms: int
    event_id: str
    topic: str
    event: records.Event


def answers(world: World, user_id: int, visit: int, feed: Sequence[Shown]) -> tuple[list[Delivery], int]:
    """What somebody does with a feed: the events in the order of their sending, and when the person is done with it (ms).

    Nobody answers what was not shown; what is not looked at gets no event at all. `visit` counts the person's feeds: the same visit and
    feed give the same answer.
    """
    rng = np.random.default_rng([world.seed, 4, user_id, visit])
    sent: list[Delivery] = []
    now = float(feed[0].impression_ts) if feed else 0.0
    for shown in feed:
        if shown.position and rng.random() > SCROLLS:
            break
        now += SWIPE_MS + (rng.exponential(PAUSE_MS) if rng.random() < INTERRUPTED else 0.0)
        reaction = world.react(
            user_id, shown.content, shown.creative, shown.duration_ms, shown.position, rng, world.quality_of(shown.item_id)
        )
        for topic, event in _events(user_id, shown, int(now), reaction):
            sent += _deliveries(topic, event, rng)
        now += reaction.play_ms / LIFE
    return sorted(sent), int(now)


def _events(user_id: int, shown: Shown, start_ms: int, reaction: Reaction) -> Iterator[tuple[str, records.Event]]:
    name = shown.impression_id
    common: dict[str, Any] = {"user_id": user_id, "impression_id": name, "impression_ts": shown.impression_ts}
    end_ms = start_ms + int(reaction.play_ms / LIFE)
    for kind, at_ms in reaction.engagements:
        ts = start_ms + int(at_ms / LIFE)
        yield topics.ENGAGEMENTS, records.Engagement(event_id=f"{name}:{kind}", ts=ts, kind=kind, at_ms=at_ms, **common)
    watch: dict[str, Any] = {"play_ms": reaction.play_ms, "duration_ms": shown.duration_ms, "finished": reaction.finished}
    yield topics.WATCHES, records.Watch(event_id=f"{name}:watch", ts=end_ms, **watch, **common)
    if reaction.conversion is not None:
        value, delay = reaction.conversion
        ts = shown.impression_ts + int(min(CONVERSION_MS * delay, LONGEST_CONVERSION_MS))
        yield (
            topics.CONVERSIONS,
            records.Conversion(event_id=f"{name}:conversion", ts=max(ts, end_ms), value=value, currency="USD", **common),
        )
    if reaction.satisfaction is not None:
        answer: dict[str, Any] = {"question": "satisfaction", "answer": str(reaction.satisfaction)}
        yield topics.QUESTIONNAIRES, records.Questionnaire(event_id=f"{name}:questionnaire", ts=end_ms + 500, **answer, **common)


def _deliveries(topic: str, event: records.Event, rng: np.random.Generator) -> Iterator[Delivery]:
    at_ms = event.ts + int(rng.integers(*NETWORK_MS))
    if rng.random() < LATE:
        at_ms += int(min(rng.exponential(LATE_MS), LONGEST_LATE_MS))
    yield Delivery(at_ms, event.event_id, topic, event)
    if rng.random() < TWICE:
        yield Delivery(at_ms + int(rng.integers(3_000)), event.event_id, topic, event)


class Visits:
    """Who asks for the next feed: people in a session come back when they are done with the last one, others begin a session.

    The pace is the caller's. Where it is faster than the people, somebody asks before they are done.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = np.random.default_rng([world.seed, 5])
        self._waiting: list[tuple[int, int]] = []  # ready_ms, user
        self._activity = np.array([person.activity for person in world.people])
        self._idle = np.ones(len(world.people), bool)

    def next(self, now_ms: int) -> int | None:
        """A person who asks now; None where everybody waits for an answer."""
        if self._waiting and (self._waiting[0][0] <= now_ms or not self._idle.any()):
            return heapq.heappop(self._waiting)[1]
        if not self._idle.any():
            return None
        weights = self._activity * self._idle
        user = int(self._rng.choice(len(weights), p=weights / weights.sum()))
        self._idle[user] = False
        self._world.begin_session(user)
        return user

    def done(self, user_id: int, at_ms: int) -> None:
        """Somebody will have finished their feed at `at_ms`: they stay for another one, or leave."""
        if self._rng.random() < STAYS:
            heapq.heappush(self._waiting, (at_ms + int(self._rng.exponential(THINK_MS)), user_id))
        else:
            self._idle[user_id] = True
