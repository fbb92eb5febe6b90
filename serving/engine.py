"""Answers a batch of requests: features, beam search, SID cache, neighbours, policy. Runs in the batcher's thread."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from serving.cache import CachedVideo, Codes, Lookup
from serving.degrade import Popularity
from serving.metrics import Metrics
from serving.model import ModelSlot, Person, Serving
from serving.recommend import Candidate, Feed, compose
from serving.widths import Widths, name
from streaming.records import Context, HistoryEntry

log = logging.getLogger(f"sidstream.{__name__}")

NEIGHBOURS: Final = 24  # SIDs near a missing one: enough to step around what the person saw and what the feed already has
FILLERS: Final = 200
SEEN_IN_HISTORY: Final = 30  # of the person's last interactions, those not to be shown again at once


class History(Protocol):
    """The online features that serving reads."""

    def histories(self, user_ids: Sequence[int]) -> list[list[HistoryEntry]]:
        """People's last interactions in one round trip, newest first; empty for somebody unknown."""


class Cache(Protocol):
    def lookup(self, bundle: str, sids: Sequence[Codes]) -> list[Lookup]: ...


class NoModel(Exception):
    """Nothing was published yet."""


@dataclass(frozen=True)
class Ask:
    """One request for a feed; `seen` are items served lately."""

    user_id: int
    scene: str
    count: int
    exclude: frozenset[int] = frozenset()
    seen: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answered:
    """A feed with what it was made from; `context` is None where the features could not be read."""

    feed: Feed
    serving: Serving
    context: Context | None


class Engine:
    """The path of a batch through the model and the stores."""

    def __init__(
        self,
        model: ModelSlot,
        features: History,
        cache: Cache,
        popularity: Popularity,
        metrics: Metrics,
        chance: random.Random | None = None,
    ) -> None:
        self._model = model
        self._features = features
        self._cache = cache
        self._popularity = popularity
        self._metrics = metrics
        self._chance = chance or random.Random()
        self._features_rest_until = 0.0
        self.recent: tuple[Serving, Person] | None = None  # somebody of the last batch, and what searched for them

    def answer(self, asks: Sequence[Ask], widths: Widths) -> list[Answered]:
        """Feeds for a batch.

        Raises:
            NoModel: nothing was published yet.
            CacheGone: Redis is away.
            Exception: whatever the model raised.
        """
        serving = self._model.serving
        if serving is None:
            raise NoModel("no model was published yet")
        started = time.monotonic()
        contexts = self._contexts([ask.user_id for ask in asks])
        read = time.monotonic()
        now_ms = time.time_ns() // 1_000_000
        shelf = serving.codebook.shelf
        known = [_known(ask, context) for ask, context in zip(asks, contexts, strict=True)]
        people = [
            Person(ask.user_id, now_ms, context or Context(), ask.scene, shelf.used_up(seen | ask.exclude))
            for ask, context, seen in zip(asks, contexts, known, strict=True)
        ]
        try:
            sids, log_prob = serving.policy.beam(people, widths)
        except Exception as error:
            self._model.failed(serving, error)
            raise
        self._model.succeeded(serving)
        self.recent = serving, people[0]
        self._metrics.searches.labels(name(widths)).inc(len(people))
        searched = time.monotonic()
        beams = [_legal(row, scores) for row, scores in zip(sids, log_prob, strict=True)]
        distinct = list(dict.fromkeys(sid for beam in beams for sid, _ in beam))
        found = {lookup.sid: lookup for lookup in self._cache.lookup(serving.codebook.version, distinct)}
        looked_up = time.monotonic()
        near = self._neighbours(serving, beams, found)
        feeds = [self._compose(serving, ask, seen, beam, found, near) for ask, seen, beam in zip(asks, known, beams, strict=True)]
        composed = time.monotonic()
        stages = {"features": read - started, "beam": searched - read, "cache": looked_up - searched, "policy": composed - looked_up}
        for stage, took in stages.items():
            self._metrics.stages.labels(stage).observe(took)
        return [Answered(feed, serving, context) for feed, context in zip(feeds, contexts, strict=True)]

    def _contexts(self, user_ids: Sequence[int]) -> list[Context | None]:
        """What is known of each person, or None where the features cannot be read; then they are left alone for a second."""
        if time.monotonic() < self._features_rest_until:
            return [None] * len(user_ids)
        try:
            histories = self._features.histories(user_ids)
        except Exception as error:
            self._features_rest_until = time.monotonic() + 1.0
            log.warning("event=features_unreadable error=%r", str(error))
            return [None] * len(user_ids)
        # A client's clock may be ahead of ours: what says that it is yet to happen is not context.
        now_ms = time.time_ns() // 1_000_000
        return [Context(history=[entry for entry in history if entry.ts < now_ms]) for history in histories]

    def _neighbours(
        self, serving: Serving, beams: Sequence[Sequence[tuple[Codes, float]]], found: Mapping[Codes, Lookup]
    ) -> dict[Codes, list[CachedVideo]]:
        """What is near to every SID that has no video, and to the best of each beam, whose neighbours fill up its feed."""
        asked = [sid for sid, lookup in found.items() if not lookup.exact]
        asked += [beam[0][0] for beam in beams if beam]
        asked = list(dict.fromkeys(asked))
        return dict(zip(asked, serving.codebook.shelf.nearest(asked, NEIGHBOURS), strict=True))

    def _compose(
        self,
        serving: Serving,
        ask: Ask,
        seen: Collection[int],
        beam: Sequence[tuple[Codes, float]],
        found: Mapping[Codes, Lookup],
        near: Mapping[Codes, Sequence[CachedVideo]],
    ) -> Feed:
        shelf = serving.codebook.shelf
        popular = (shelf.video(item) for item in self._popularity.top(ask.scene, time.time(), FILLERS))
        filler = [*(near[beam[0][0]] if beam else ()), *(video for video in popular if video is not None)]
        needed = ask.count + len(ask.exclude) + len(ask.seen) + SEEN_IN_HISTORY
        if len(filler) < needed:
            everything = shelf.items()
            filler += self._chance.sample(everything, min(needed, len(everything)))
        return compose(
            [Candidate(sid, score, found[sid], near.get(sid, ())) for sid, score in beam],
            filler,
            count=ask.count,
            content_levels=serving.codebook.content_levels,
            exclude=ask.exclude,
            seen=seen,
            user_id=ask.user_id,
        )


def _known(ask: Ask, context: Context | None) -> frozenset[int]:
    """Items that the person was served or watched lately."""
    history = context.history[:SEEN_IN_HISTORY] if context is not None else []
    return frozenset(ask.seen).union(entry.item_id for entry in history)


def _legal(sids: np.ndarray, log_prob: np.ndarray) -> list[tuple[Codes, float]]:
    """A row of the beam as SIDs with finite scores, each once, best first."""
    beam: dict[Codes, float] = {}
    for sid, score in zip(sids.tolist(), log_prob.tolist(), strict=True):
        if np.isfinite(score):
            beam.setdefault(tuple(sid), score)
    return list(beam.items())
