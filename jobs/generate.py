"""`sidstream generate`: makes the videos that were asked for and do not exist, the most wanted first."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import numpy as np
import redis
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from generation import workflow
from generation.attributes import specify
from generation.demand import Wish, key_of
from generation.encode import Abandoned, BrokenVideoError
from generation.queue import Claim, DemandQueue
from generation.voice import VoiceError
from jobs.announcements import Announcements
from jobs.process import Endpoints, Stop, explain, read_json, ready, run, write_json
from jobs.settings import Settings
from model.sid.bundle import FOLDER, MANIFEST, Bundle, BundleError
from model.store import ModelStore, StoreError
from serving.cache import CacheGone, SidCache
from streaming import topics
from streaming.kafka import consumer, producer
from streaming.records import DeadLetter, GenerationRequest, Video

GROUP: Final = "generator"
SESSION_MS: Final = 10_000  # after this long without a sign of life a worker's partitions go to the others
CLOSING_S: Final = 2.0
LEASE_MS: Final = 20_000  # renewed while a video is drawn; a dead worker's video waits this long
RENEWED_S: Final = 5.0
MERGED_AT_ONCE: Final = 500
TRIES: Final = 3
BETWEEN_TRIES_MS: Final = 15_000
REMEMBERED_TIMES: Final = 500
LARGEST_BODY: Final = 512 * 1024  # of a dead letter: base64 must stay below the broker's largest record
VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # becomes part of a path

log = logging.getLogger("sidstream.generator")


def item_of(bundle_version: str, sid: list[int]) -> int:
    """Item id of a generated video: negative, so that it never meets a catalogue's, and the same whoever makes it."""
    digest = hashlib.blake2b(key_of(bundle_version, sid).encode(), digest_size=8).digest()
    return -(int.from_bytes(digest, "big") >> 2) - 1


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Worker:
    """Merges requests from Kafka into the shared queue and makes one video after the other.

    Requests and the offsets after them enter Redis in one step; what is committed in Kafka only informs lag tools. A SID leaves the queue
    once its video is a whole file, announced and cached. So a worker that is killed anywhere in between leaves at most a file under a
    hidden name and a lease that runs out, and what it had begun is made, or found made, by the next.
    """

    def __init__(self, name: str, settings: Settings, ends: Endpoints, stop: Stop) -> None:
        self._name, self._seconds, self._stop = name, settings.generation.seconds, stop
        self._state = ends.home / "run" / f"{name}.json"
        self._videos = ends.home / "videos"
        self._videos.mkdir(parents=True, exist_ok=True)
        self._store = ModelStore(ends.model_store)
        self._bundles: dict[str, Bundle] = {}
        self._queue = DemandQueue(ends.redis_url)
        self._cache = SidCache(ends.redis_url, timeout_s=5)
        self._positions: dict[int, int] = {}
        self._unmerged: list[Message] = []
        self._requests: Consumer = consumer(ends.kafka, GROUP, [], session_timeout_ms=SESSION_MS)
        self._requests.subscribe([topics.GENERATION_REQUESTS], on_assign=self._assigned, on_revoke=self._revoked)
        self._producer: Producer = producer(ends.kafka)
        self._undelivered: KafkaException | None = None
        self._announced = Announcements(ends.kafka)
        self._decoder = msgspec.json.Decoder(GenerationRequest)
        before = read_json(self._state)
        self._times: deque[float] = deque(before.get("seconds", []), maxlen=REMEMBERED_TIMES)
        self._making: str | None = None
        self._renewed = 0.0

    def work(self) -> None:
        """Until the stop: merge, claim, make."""
        written = 0.0
        while not self._stop.is_set():
            claim: Claim | None = None
            try:
                self.merge(0.0 if self._making else 0.5)
                claim = self._queue.claim(now_ms(), LEASE_MS)
                self._making = claim.key if claim else None
                if claim is not None or time.monotonic() - written > 1:
                    self.write_state()
                    written = time.monotonic()
                if claim is not None:
                    self.make(claim)
            except Abandoned:
                self._give_back(claim)
            except (redis.RedisError, CacheGone, KafkaException, StoreError, TimeoutError) as error:
                log.warning('event=waiting reason="%s"', error)
                self._give_back(claim)
                self._stop.wait(1.0)
            except (BrokenVideoError, VoiceError, BundleError) as error:
                self._failed(claim, str(error))
            except OSError as error:
                log.error('event=waiting reason="%s"', explain(error))
                self._give_back(claim)
                self._stop.wait(5.0)
        self._leave()
        self._making = None
        try:
            self.write_state()
        except redis.RedisError as error:
            log.warning('event=state_not_written reason="%s"', error)

    def merge(self, timeout_s: float) -> int:
        """Read requests and add them to the queue; returns how many were new. A request that cannot be used becomes a dead letter."""
        if not self._unmerged:  # else an error came between reading them and merging them
            self._unmerged = [message for message in self._requests.consume(MERGED_AT_ONCE, timeout_s) if self._readable(message)]
        if not self._unmerged:
            return self._resume_where_lost()
        wishes: list[tuple[Wish, str]] = []
        after: dict[int, int] = {}
        for message in self._unmerged:
            partition, offset = int(message.partition() or 0), int(message.offset() or 0)
            after[partition] = offset + 1
            request = self._accepted(message.value() or b"", partition, offset)
            if request is not None:
                asked = message.timestamp()[1]
                wish = Wish(request.request_id, key_of(request.bundle_version, request.sid), request.demand, asked)
                origin = {"origin_ts": asked, "partition": partition, "offset": offset, "request": request}
                wishes.append((wish, msgspec.json.encode(origin).decode()))
        self._flush()
        new = self._queue.merge(wishes, {partition: self._positions.get(partition, 0) for partition in after}, after)
        self._unmerged = []
        if new is None:
            return self._resume_where_lost()
        self._positions.update(after)
        self._requests.commit(offsets=[TopicPartition(topics.GENERATION_REQUESTS, p, o) for p, o in after.items()], asynchronous=True)
        return new

    def make(self, claim: Claim) -> None:
        """Make one video and tell of it: file, then topic, then cache, then off the queue. What is there already is not made again."""
        wrapped = msgspec.json.decode(claim.request)
        request = msgspec.convert(wrapped["request"], GenerationRequest)
        item_id = item_of(request.bundle_version, request.sid)
        cached = self._cache.lookup(request.bundle_version, [tuple(request.sid)])[0].exact
        if cached:
            self._queue.finish(claim, "generated" if any(video.item_id == item_id for video in cached) else None)
            return
        began = time.monotonic()
        video = self._announced.find(request.bundle_version, request.sid)
        path = self._videos / f"{request.bundle_version}-{'.'.join(map(str, request.sid))}.mp4"
        if video is None or not path.exists():
            spec = specify(self._bundle(request.bundle_version), request.sid, request.metadata, seconds=self._seconds)
            facts = workflow.make_video(spec, path, stopped=lambda: self._abandon(claim))
            video = video or Video(
                sid=request.sid,
                bundle_version=request.bundle_version,
                uri=f"/videos/{path.name}",
                item_id=item_id,
                duration_ms=facts.duration_ms,
                scores=dict(facts.scores),
                generator=workflow.GENERATOR,
                origin_ts=int(wrapped["origin_ts"]),
            )
            if self._announced.find(request.bundle_version, request.sid) is None:
                self._send(topics.VIDEOS, video, str(video.item_id))
                self._flush()
        self._cache.put(video)
        self._queue.finish(claim, "generated")
        self._times.append(round(time.monotonic() - began, 2))
        waited = (now_ms() - int(wrapped["origin_ts"])) / 1000
        log.info("event=made sid=%s seconds=%.2f waited_s=%.1f file=%s", request.sid, self._times[-1], waited, path.name)

    def write_state(self) -> None:
        """What the page and the report read."""
        totals = self._queue.totals()
        p50, p95 = np.percentile(self._times, [50, 95]).round(2).tolist() if self._times else (None, None)
        body: dict[str, Any] = {
            "at": now_ms(),
            "generated": totals.generated,
            "seconds": list(self._times),
            "seconds_per_video": {"p50": p50, "p95": p95},
            "making": self._making,
            "requested": totals.requested,
            "refused": totals.refused,
            "pending": totals.pending,
            "most_wanted": self._queue.most_wanted(10),
        }
        write_json(self._state, body)

    def _leave(self) -> None:
        """Leave the consumer group, but do not wait long for a coordinator that is busy with the dead."""
        leaving = threading.Thread(target=self._requests.close, daemon=True)
        leaving.start()
        leaving.join(CLOSING_S)

    def _abandon(self, claim: Claim) -> bool:
        """Asked between frames: renews the lease now and then, and says whether to give up."""
        if time.monotonic() - self._renewed > RENEWED_S:
            self._renewed = time.monotonic()
            try:
                self._queue.renew(claim, now_ms(), LEASE_MS)
            except redis.RedisError as error:
                log.warning('event=lease_not_renewed reason="%s"', error)
        return self._stop.is_set()

    def _give_back(self, claim: Claim | None) -> None:
        if claim is None:
            return
        try:
            self._queue.release(claim)
        except redis.RedisError as error:
            log.warning('event=lease_runs_out key=%s reason="%s"', claim.key, error)

    def _failed(self, claim: Claim | None, reason: str) -> None:
        """Try again later, on whichever worker; after the last try the request becomes a dead letter."""
        if claim is None or self._stop.is_set():  # the stop also ends the voice's process
            log.warning('event=waiting reason="%s"', reason)
            self._give_back(claim)
            self._stop.wait(1.0)
            return
        log.error('event=failed key=%s reason="%s"', claim.key, reason)
        try:
            if self._queue.fail(claim, now_ms() + BETWEEN_TRIES_MS) >= TRIES:
                origin = msgspec.json.decode(claim.request)
                body = msgspec.json.encode(origin["request"])
                self._dead_letter(body, f"no video after {TRIES} tries: {reason}", origin["partition"], origin["offset"])
                self._flush()
                self._queue.finish(claim, "refused")
        except (redis.RedisError, TimeoutError) as error:
            log.warning('event=waiting reason="%s"', error)

    def _readable(self, message: Message) -> bool:
        if message.error() is not None:
            log.warning('event=read_failed reason="%s"', message.error())
        return message.error() is None

    def _accepted(self, body: bytes, partition: int, offset: int) -> GenerationRequest | None:
        try:
            request = self._decoder.decode(body)
            refused = self._refusal(request)
        except msgspec.DecodeError as error:
            refused = str(error)
        if not refused:
            return request
        self._dead_letter(body, refused, partition, offset)
        return None

    def _refusal(self, request: GenerationRequest) -> str:
        """Why a request can never be answered; empty if it can."""
        version = request.bundle_version
        if not request.request_id or request.demand < 1:
            return f"request_id {request.request_id!r}, demand {request.demand} (expected an id, and at least 1)"
        if not VERSION.fullmatch(version) or (version not in self._bundles and not self._store.exists(f"{FOLDER}/{version}/{MANIFEST}")):
            return f"no bundle {version[:100]!r} in the model store"
        counts = self._bundle(version).code_counts
        if len(request.sid) != len(counts) or any(not 0 <= code < count for code, count in zip(request.sid, counts, strict=False)):
            return f"SID {request.sid[:8]} is not one of bundle {version}: {len(counts)} codes below {counts} are expected"
        return ""

    def _dead_letter(self, body: bytes, reason: str, partition: int, offset: int) -> None:
        log.warning('event=dead_letter partition=%s offset=%s reason="%s"', partition, offset, reason)
        letter = DeadLetter(
            topic=topics.GENERATION_REQUESTS,
            partition=partition,
            offset=offset,
            reason=reason,
            body_base64=base64.b64encode(body[:LARGEST_BODY]).decode(),
        )
        self._send(topics.DEAD_LETTERS, letter, f"{topics.GENERATION_REQUESTS}:{partition}:{offset}")

    def _send(self, topic: str, record: msgspec.Struct, key: str) -> None:
        self._producer.produce(topic, msgspec.json.encode(record), key, on_delivery=self._delivered)

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._undelivered = KafkaException(error)

    def _flush(self) -> None:
        """Wait until everything that was sent is in the log."""
        late = self._producer.flush(30)
        error, self._undelivered = self._undelivered, None
        if error is not None:
            raise error
        if late:
            raise TimeoutError("the broker did not take a record within 30 s")

    def _assigned(self, reader: Consumer, partitions: list[TopicPartition]) -> None:
        """Read on where the queue has read to, whatever was committed."""
        while True:
            try:
                known = self._queue.offsets()
                break
            except redis.RedisError as error:  # without an answer there is nothing to read on from
                log.warning('event=waiting reason="%s"', error)
                if self._stop.wait(0.5):
                    return
        for partition in partitions:
            low, high = reader.get_watermark_offsets(partition, timeout=10)
            offset = known.get(partition.partition, 0)
            partition.offset = offset if low <= offset <= high else low
            self._positions[partition.partition] = offset
        reader.assign(partitions)

    def _revoked(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self._positions.pop(partition.partition, None)

    def _resume_where_lost(self) -> int:
        """Go back to where the queue says that it has read to: Redis has lost something, or another worker has read on."""
        known = self._queue.offsets()
        for partition, position in self._positions.items():
            offset = known.get(partition, 0)
            if offset != position:
                log.warning("event=reading_again partition=%d from=%d instead_of=%d", partition, offset, position)
                self._requests.seek(TopicPartition(topics.GENERATION_REQUESTS, partition, offset))
                self._positions[partition] = offset
        return 0

    def _bundle(self, version: str) -> Bundle:
        if version not in self._bundles:
            self._bundles[version] = Bundle.load(self._store, version)
        return self._bundles[version]


def clear_partials(folder: Path) -> None:
    """Remove what a killed worker left half done."""
    for partial in folder.glob(".*.partial"):
        pid = partial.name.rsplit(".", 2)[-2]
        if not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
            partial.unlink(missing_ok=True)


@click.command()
@click.option("--worker", type=int, default=0, show_default=True, help="Number of this worker; several share the queue.")
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def command(worker: int, config: Path | None) -> None:
    """Make the videos that were asked for and do not exist.

    Requests are merged by SID over all workers, the most wanted is made first; a finished video is in the SID cache at once. Files are in
    <home>/videos. A worker that dies loses no request: another one takes it over as soon as its lease has run out.
    """

    def main(settings: Settings, ends: Endpoints, stop: Stop) -> None:
        name = f"generator-{worker}"
        maker = Worker(name, settings, ends, stop)
        clear_partials(ends.home / "videos")
        ready(ends.home, name)
        maker.work()

    run(f"generator-{worker}", main, config)
