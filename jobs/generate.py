"""`sidstream generate`: makes the videos that were asked for and do not exist, the most wanted first."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from pathlib import Path
from typing import Any

import click
import msgspec
import redis
from confluent_kafka import Consumer, Producer

from generation import workflow
from generation.attributes import specify
from generation.demand import Claim, DemandQueue, key_of
from generation.encode import Abandoned, BrokenVideoError
from generation.voice import VoiceError
from jobs.process import Endpoints, Stop, ready, run, write_json
from jobs.settings import Settings
from model.sid.bundle import Bundle, BundleError
from model.store import ModelStore, StoreError
from serving.cache import CacheGone, SidCache
from streaming import topics
from streaming.kafka import consumer, producer
from streaming.records import GenerationRequest, Video

LEASE_MS = 60_000
MERGED_AT_ONCE = 500
REMEMBERED_TIMES = 500

log = logging.getLogger("sidstream.generator")


def item_of(bundle_version: str, sid: list[int]) -> int:
    """Item id of a generated video: negative, so that it never meets a catalogue's, and the same whoever makes it."""
    digest = hashlib.blake2b(key_of(bundle_version, sid).encode(), digest_size=8).digest()
    return -(int.from_bytes(digest, "big") >> 2) - 1


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Worker:
    """Merges requests from Kafka into the shared queue and makes one video after the other.

    A request is committed in Kafka only once it is in Redis; a SID leaves Redis only once its video is announced and cached. A worker
    that is killed in between leaves at most a file under a temporary name and a lease that runs out.
    """

    def __init__(self, name: str, settings: Settings, ends: Endpoints, stop: Stop) -> None:
        self._name, self._settings, self._stop = name, settings, stop
        self._state = ends.home / "run" / f"{name}.json"
        self._videos = ends.home / "videos"
        self._videos.mkdir(parents=True, exist_ok=True)
        self._store = ModelStore(ends.model_store)
        self._bundles: dict[str, Bundle] = {}
        self._queue = DemandQueue(ends.redis_url)
        self._cache = SidCache(ends.redis_url, timeout_s=5)
        self._requests: Consumer = consumer(ends.kafka, "generator", [topics.GENERATION_REQUESTS])
        self._producer: Producer = producer(ends.kafka)
        self._decoder = msgspec.json.Decoder(GenerationRequest)
        self._seconds: deque[float] = deque(maxlen=REMEMBERED_TIMES)
        self._generated = 0
        self._working_on: str | None = None

    def merge(self, timeout_s: float) -> int:
        """Read requests and add them to the queue; returns how many were new."""
        messages = self._requests.consume(MERGED_AT_ONCE, timeout_s)
        new = 0
        for message in messages:
            if message.error() is not None:
                log.warning('event=read_failed reason="%s"', message.error())
                continue
            body = message.value() or b""
            try:
                request = self._decoder.decode(body)
            except msgspec.DecodeError as error:
                log.warning('event=request_refused partition=%s offset=%s reason="%s"', message.partition(), message.offset(), error)
                continue
            origin = message.timestamp()[1]
            body = msgspec.json.encode({"origin_ts": origin, "request": request})
            new += self._queue.merge(request.request_id, key_of(request.bundle_version, request.sid), body, request.demand, now_ms())
        if messages:
            self._requests.commit(asynchronous=False)
        return new

    def make(self, claim: Claim) -> None:
        """Make one video and announce it: file, then topic, then cache, then off the queue."""
        wrapped = msgspec.json.decode(claim.request)
        request = msgspec.convert(wrapped["request"], GenerationRequest)
        try:
            bundle = self._bundle(request.bundle_version)
            spec = specify(bundle, request.sid, request.metadata, seconds=self._settings.generation.seconds)
        except (BundleError, StoreError, ValueError) as error:
            log.error('event=refused sid=%s bundle=%s reason="%s"', request.sid, request.bundle_version, error)
            self._queue.finish(claim, generated=False)
            return
        if self._cache.lookup(request.bundle_version, [tuple(request.sid)])[0].exact:
            self._queue.finish(claim, generated=False)
            return
        began = time.monotonic()
        name = f"{request.bundle_version}-{'.'.join(map(str, request.sid))}.mp4"
        facts = workflow.make_video(spec, self._videos / name, stopped=self._stop.is_set)
        video = Video(
            sid=request.sid,
            bundle_version=request.bundle_version,
            uri=f"/videos/{name}",
            item_id=item_of(request.bundle_version, request.sid),
            duration_ms=facts.duration_ms,
            scores=dict(facts.scores),
            generator=workflow.GENERATOR,
            origin_ts=int(wrapped["origin_ts"]),
        )
        self._producer.produce(topics.VIDEOS, msgspec.json.encode(video), str(video.item_id))
        if self._producer.flush(30):
            raise TimeoutError("the broker took no video record within 30 s")
        self._cache.put(video)
        self._queue.finish(claim)
        self._generated += 1
        self._seconds.append(round(time.monotonic() - began, 2))
        log.info(
            "event=made sid=%s seconds=%.2f waited_s=%.1f file=%s",
            request.sid,
            self._seconds[-1],
            (now_ms() - video.origin_ts) / 1000,
            name,
        )

    def work(self) -> None:
        """Until the stop: merge, claim, make."""
        written = 0.0
        while not self._stop.is_set():
            claim: Claim | None = None
            try:
                self.merge(0.0 if self._working_on else 0.5)
                claim = self._queue.claim(now_ms(), LEASE_MS)
                self._working_on = claim.key if claim else None
                if claim is not None:
                    self.make(claim)
                if claim is not None or time.monotonic() - written > 1:
                    self.write_state()
                    written = time.monotonic()
            except (redis.RedisError, CacheGone, TimeoutError) as error:
                log.warning('event=waiting reason="%s"', error)
                self._stop.wait(1.0)
            except Abandoned:
                if claim is not None:
                    self._queue.release(claim)
            except (BrokenVideoError, VoiceError) as error:
                log.error('event=failed key=%s reason="%s"', claim.key if claim else None, error)
                if claim is not None:
                    self._queue.finish(claim, generated=False)
        self._requests.close()
        self.write_state()

    def write_state(self) -> None:
        """What the page and the report read."""
        totals = self._queue.totals()
        body: dict[str, Any] = {
            "at": now_ms(),
            "generated": self._generated,
            "seconds": list(self._seconds),
            "working_on": self._working_on,
            "requested": totals.requested,
            "generated_in_all": totals.generated,
            "pending": totals.pending,
            "most_wanted": self._queue.most_wanted(10),
        }
        write_json(self._state, body)

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
    <home>/videos. A worker that dies loses no request: another one takes it over after a minute.
    """

    def main(settings: Settings, ends: Endpoints, stop: Stop) -> None:
        name = f"generator-{worker}"
        maker = Worker(name, settings, ends, stop)
        clear_partials(ends.home / "videos")
        ready(ends.home, name)
        maker.work()

    run(f"generator-{worker}", main, config)
