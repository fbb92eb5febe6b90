"""What serving writes to Kafka: posted events (confirmed), impressions and generation requests (never waited for)."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from serving.metrics import Metrics
from streaming import records, topics
from streaming.plausible import implausible

log = logging.getLogger(f"sidstream.{__name__}")


class Producer(Protocol):
    """The part of `confluent_kafka.Producer` that is used here."""

    def produce(self, topic: str, value: bytes, key: bytes, *, on_delivery: Callable[[Any, Any], None]) -> None: ...
    def poll(self, timeout: float) -> int: ...
    def flush(self, timeout: float) -> int: ...


@dataclass(frozen=True)
class Rejected:
    """Why the event at `index` was not taken."""

    index: int
    reason: str


class _Addressed(msgspec.Struct):
    topic: str


_topic_of = msgspec.json.Decoder(_Addressed)


def checked(body: bytes | msgspec.Raw, now_ms: int, attribution_ms: int) -> tuple[str, records.Event]:
    """One posted event as its topic's record; what would become a dead letter for its times is refused here.

    Raises:
        records.RecordError: what is wrong with it, for a person.
    """
    try:
        topic = _topic_of.decode(body).topic
    except msgspec.DecodeError as error:
        raise records.RecordError(str(error)) from error
    if topic not in topics.EVENT_SCHEMAS:
        raise records.RecordError(f"topic {topic[:80]!r} takes no events (expected one of {', '.join(topics.EVENT_TOPICS)})")
    event = records.decode(topic, bytes(body))
    if not isinstance(event, records.Event):
        raise records.RecordError("heartbeats are sent by the system's own clock")
    fault = implausible(event, now_ms, attribution_ms)
    if fault is not None:
        raise records.RecordError(fault)
    return topic, event


class EventLog:
    """Sends records, and serves their delivery reports from its own thread.

    Args:
        confirmed: producer of posted events; its `message.timeout.ms` bounds how long a confirmation may take.
        lasting: producer of what nobody waits for; it may keep trying for minutes.
        attribution_ms: how much older than the present an event may be.
    """

    def __init__(self, confirmed: Producer, lasting: Producer, metrics: Metrics, *, attribution_ms: int) -> None:
        self._confirmed = confirmed
        self._lasting = lasting
        self._metrics = metrics
        self._attribution_ms = attribution_ms
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._poll, args=(producer,), daemon=True) for producer in (confirmed, lasting)]
        self.unreachable = False

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 10.0) -> int:
        """Send what is queued; answers how many records could not be."""
        left = self._confirmed.flush(timeout_s) + self._lasting.flush(timeout_s)
        self._stopping.set()
        for thread in self._threads:
            thread.join(1.0)
        return left

    async def post(self, bodies: Sequence[msgspec.Raw], now_ms: int) -> tuple[int, list[Rejected]]:
        """Check and send posted events; answers how many Kafka confirmed, and why the others were not taken, by index."""
        loop = asyncio.get_running_loop()
        rejected: list[Rejected] = []
        sent: list[tuple[int, str, asyncio.Future[str | None]]] = []
        for index, body in enumerate(bodies):
            try:
                topic, event = checked(body, now_ms, self._attribution_ms)
            except records.RecordError as error:
                rejected.append(Rejected(index, str(error)))
                self._metrics.events.labels("none", "rejected").inc()
                continue
            future: asyncio.Future[str | None] = loop.create_future()
            try:
                self._confirmed.produce(topic, records.encode(event), str(event.user_id).encode(), on_delivery=_reporter(loop, future))
            except BufferError:
                future.set_result("the queue to Kafka is full; send it again")
            sent.append((index, topic, future))
        outcomes = await asyncio.gather(*(future for _, _, future in sent))
        for (index, topic, _), failure in zip(sent, outcomes, strict=True):
            self._metrics.events.labels(topic, "rejected" if failure else "accepted").inc()
            if failure:
                rejected.append(Rejected(index, failure))
        return len(bodies) - len(rejected), sorted(rejected, key=lambda one: one.index)

    def impressions(self, impressions: Sequence[records.Impression]) -> None:
        """Send impressions without waiting."""
        for impression in impressions:
            self._send(topics.IMPRESSIONS, records.encode(impression), str(impression.user_id), "impressions")

    def wanted(self, request: records.GenerationRequest) -> None:
        """Send a request for a missing video without waiting; the key is the SID, so that one partition sees all its demand."""
        self._metrics.wanted.labels(request.reason).inc()
        self._send(topics.GENERATION_REQUESTS, records.encode(request), ".".join(map(str, request.sid)), "generation_requests")

    def _send(self, topic: str, value: bytes, key: str, kind: str) -> None:
        try:
            self._lasting.produce(topic, value, key.encode(), on_delivery=self._reported)
        except BufferError:
            self._metrics.impressions.labels("lost").inc()
            log.error("event=queue_full topic=%s", topic)

    def _reported(self, error: Any, message: Any) -> None:
        self._metrics.impressions.labels("lost" if error else "written").inc()
        self.unreachable = error is not None
        if error:
            log.error("event=undelivered error=%r", str(error))

    def _poll(self, producer: Producer) -> None:
        while not self._stopping.is_set():
            producer.poll(0.2)


def _reporter(loop: asyncio.AbstractEventLoop, future: asyncio.Future[str | None]) -> Callable[[Any, Any], None]:
    def resolve(failure: str | None) -> None:
        if not future.done():
            future.set_result(failure)

    def reported(error: Any, message: Any) -> None:
        failure = f"not written to Kafka: {error}; send it again" if error else None
        loop.call_soon_threadsafe(resolve, failure)

    return reported
