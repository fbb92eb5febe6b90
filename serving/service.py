"""`POST /recommend` without HTTP: ask the engine, fall back when it is late or fails, log impressions, request what is missing."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Protocol

import msgspec

from serving.batching import Batcher, Stopped, TooLate
from serving.cache import CachedVideo, CacheGone
from serving.degrade import Popularity, RecentFeeds, fallback
from serving.demand import DemandLedger, Wanted
from serving.engine import Answered, Ask, NoModel
from serving.metrics import Metrics
from serving.model import Codebook
from serving.recommend import Slot
from streaming import records

log = logging.getLogger(f"sidstream.{__name__}")

MARGIN_S: Final = 0.008  # of a deadline, kept for composing and sending the answer
MOST_ITEMS: Final = 100


class Request(msgspec.Struct, frozen=True):
    """Body of `POST /recommend`."""

    user_id: records.UserId
    scene: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    count: Annotated[int, msgspec.Meta(ge=1, le=MOST_ITEMS)] = 10
    request_id: records.Identifier | None = None
    deadline_ms: Annotated[int, msgspec.Meta(ge=1, le=60_000)] | None = None
    exclude: Annotated[list[records.ItemId], msgspec.Meta(max_length=10_000)] | None = None
    metadata: dict[str, Any] | None = None


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One place of a feed."""

    impression_id: str
    impression_ts: int
    position: int
    item_id: int
    uri: str
    sid: list[int] | None
    served_sid: list[int]
    case: str | None
    score: float | None
    policy_logprob: float | None
    generated: bool
    duration_ms: int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `POST /recommend`."""

    request_id: str
    took_ms: float
    mode: str
    degraded: str | None
    model_version: str | None
    bundle_version: str | None
    items: list[Item]


class Output(Protocol):
    """Where impressions and wishes go; `serving.events.EventLog` in a process."""

    def impressions(self, impressions: Sequence[records.Impression]) -> None: ...
    def wanted(self, request: records.GenerationRequest) -> None: ...


class Recommender:
    """Answers requests for feeds, always.

    Args:
        batcher: the engine behind its queue.
        codebook: the bundle that is served now, also while there is no model; None before the first one.
        log_impressions: False in a replay, whose impressions come from the log.
    """

    def __init__(
        self,
        batcher: Batcher[Ask, Answered],
        codebook: Callable[[], Codebook | None],
        popularity: Popularity,
        output: Output,
        metrics: Metrics,
        *,
        deadline_ms: int,
        log_impressions: bool,
        chance: random.Random | None = None,
    ) -> None:
        self._batcher = batcher
        self._codebook = codebook
        self._popularity = popularity
        self._output = output
        self._metrics = metrics
        self._deadline_ms = deadline_ms
        self._log_impressions = log_impressions
        self._chance = chance or random.Random()
        self._ids = map(f"{uuid.uuid4().hex}-{{:x}}".format, itertools.count())
        self.feeds = RecentFeeds()
        self.demand = DemandLedger()

    async def recommend(self, request: Request) -> Answer:
        """A feed within the deadline; degraded, and saying why, where the model, the features or Redis do not play along."""
        started = time.monotonic()
        exclude = frozenset(request.exclude or ())
        degraded: str | None = None
        answered: Answered | None = None
        try:
            answered = await self._ask(request, exclude, started)
            if answered.context is None:
                degraded = "features: not readable"
        except TooLate:
            degraded = "deadline: the model was not ready in time"
        except CacheGone:
            degraded = "cache: Redis does not answer"
        except NoModel:
            degraded = "model: nothing was published yet"
        except Stopped:
            degraded = "server: stopping"
        except Exception as error:
            degraded = "model: failed"
            log.warning("event=model_failed error=%r", f"{type(error).__name__}: {error}")
        slots = list(answered.feed.slots) if answered is not None else self._fall_back(request, exclude)
        if answered is not None and not slots:
            slots = self._fall_back(request, exclude)
        codebook = answered.serving.codebook if answered is not None else self._codebook()
        answer = self._finish(request, slots, answered, codebook, degraded, started)
        self.feeds.keep(request.user_id, (slot.video for slot in slots), good=answered is not None)
        return answer

    def settle(self) -> None:
        """Send the wishes that waited long enough; call this about once a second."""
        for bundle, demand in self.demand.due(time.monotonic()):
            self._request_video(bundle, demand.wanted, demand.count, None)

    def close(self) -> None:
        """Send every wish that waits."""
        for bundle, demand in self.demand.flush(time.monotonic()):
            self._request_video(bundle, demand.wanted, demand.count, None)

    async def _ask(self, request: Request, exclude: frozenset[int], started: float) -> Answered:
        budget_s = (request.deadline_ms or self._deadline_ms) / 1000 - MARGIN_S
        ask = Ask(request.user_id, request.scene, request.count, exclude, self.feeds.seen(request.user_id))
        future = asyncio.wrap_future(self._batcher.submit(ask, started + budget_s))
        done, _ = await asyncio.wait([future], timeout=max(0.0, budget_s - (time.monotonic() - started)))
        if done:
            return future.result()
        # A feed that comes after all is the person's next fallback: it was made for them and they have not seen it.
        future.add_done_callback(lambda late: self._keep_late(request.user_id, late))
        raise TooLate("the model was not ready in time")

    def _keep_late(self, user_id: int, future: asyncio.Future[Answered]) -> None:
        if not future.cancelled() and future.exception() is None:
            self.feeds.keep_late(user_id, (slot.video for slot in future.result().feed.slots))

    def _fall_back(self, request: Request, exclude: frozenset[int]) -> list[Slot]:
        codebook = self._codebook()
        if codebook is None:
            return []
        shelf = codebook.shelf
        popular = (shelf.video(item) for item in self._popularity.top(request.scene, time.time()))
        return fallback(
            [video for video in self.feeds.last_good(request.user_id) if shelf.video(video.item_id) is not None],
            [video for video in popular if video is not None],
            shelf.items(),
            count=request.count,
            exclude=exclude,
            seen=frozenset(self.feeds.seen(request.user_id)),
            chance=self._chance,
        )

    def _finish(
        self,
        request: Request,
        slots: list[Slot],
        answered: Answered | None,
        codebook: Codebook | None,
        degraded: str | None,
        started: float,
    ) -> Answer:
        now_s = time.time()
        now_ms = int(now_s * 1000)
        model_version = answered.serving.policy.version if answered is not None else None
        bundle = codebook.version if codebook is not None else None
        answer = Answer(
            request_id=request.request_id or next(self._ids),
            took_ms=round((time.monotonic() - started) * 1000, 2),
            mode="degraded" if degraded else "normal",
            degraded=degraded,
            model_version=model_version,
            bundle_version=bundle,
            items=[_item(next(self._ids), now_ms, position, slot) for position, slot in enumerate(slots)],
        )
        if self._log_impressions:
            context = answered.context if answered is not None else None
            self._output.impressions(
                [_impression(request, answer, item, slot, context, now_ms) for item, slot in zip(answer.items, slots, strict=True)]
            )
        if answered is not None and bundle is not None:
            for wanted in answered.feed.wanted:
                demand = self.demand.add(bundle, wanted, time.monotonic())
                if demand is not None:
                    self._request_video(bundle, demand.wanted, demand.count, request.metadata)
        self._count(answer, slots, now_s)
        return answer

    def _request_video(self, bundle: str, wanted: Wanted, count: int, metadata: dict[str, Any] | None) -> None:
        self._output.wanted(
            records.GenerationRequest(
                request_id=next(self._ids),
                sid=list(wanted.sid),
                bundle_version=bundle,
                demand=count,
                reason=wanted.reason,
                nearest_sid=list(wanted.nearest_sid),
                user_id=wanted.user_id,
                metadata=metadata,
            )
        )

    def _count(self, answer: Answer, slots: list[Slot], now_s: float) -> None:
        metrics = self._metrics
        metrics.latency_ms(now_s, answer.took_ms)
        if answer.degraded is not None:
            metrics.degraded.labels(answer.degraded.partition(":")[0]).inc()
        tally = {"requests": 1, "degraded": int(answer.degraded is not None), "exact_hit": 0, "content_hit": 0, "miss": 0, "other": 0}
        for slot in slots:
            tally[slot.case or "other"] += 1
            if slot.case:
                metrics.cases.labels(slot.case).inc()
            metrics.pipelines.labels(slot.pipeline).inc()
            if slot.video.generated:
                metrics.generated.inc()
        metrics.tick(now_s, **tally, generated=sum(slot.video.generated for slot in slots))
        metrics.queue.set(self._batcher.waiting())
        metrics.batch.set(self._batcher.last_rows)


def _item(impression_id: str, now_ms: int, position: int, slot: Slot) -> Item:
    video: CachedVideo = slot.video
    return Item(
        impression_id=impression_id,
        impression_ts=now_ms,
        position=position,
        item_id=video.item_id,
        uri=video.uri,
        sid=list(slot.asked) if slot.asked is not None else None,
        served_sid=list(video.sid),
        case=slot.case,
        score=slot.log_prob,
        policy_logprob=slot.log_prob,
        generated=video.generated,
        duration_ms=video.duration_ms,
    )


def _impression(
    request: Request, answer: Answer, item: Item, slot: Slot, context: records.Context | None, now_ms: int
) -> records.Impression:
    return records.Impression(
        event_id=item.impression_id,
        user_id=request.user_id,
        ts=item.impression_ts,
        impression_id=item.impression_id,
        request_id=answer.request_id,
        item_id=item.item_id,
        position=item.position,
        scene=request.scene,
        duration_ms=item.duration_ms,
        sid=item.sid,
        served_sid=item.served_sid,
        case=slot.case,
        model_version=answer.model_version,
        bundle_version=answer.bundle_version,
        policy_logprob=item.policy_logprob,
        pipeline=slot.pipeline,
        mode=answer.mode,
        cache_age_ms=slot.video.age_ms(now_ms),
        context=context,
    )
