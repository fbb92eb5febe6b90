"""`sidstream serve`: the HTTP service with its page. Wires Kafka, Redis, the feature store and the model store to `serving/`."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import click
import torch
import uvicorn
from confluent_kafka import OFFSET_END, KafkaException, TopicPartition
from fastapi import FastAPI

from features.reader import FeatureReader
from jobs.process import Endpoints, Stop, host_and_port, ready, run
from jobs.settings import ConfigError, Settings
from model.online import publish
from model.sid.bundle import Bundle, BundleError
from model.store import ModelStore
from serving.agreement import Agreement
from serving.app import Parts, create
from serving.batching import Batcher
from serving.cache import CacheGone, SidCache
from serving.degrade import Popularity
from serving.engine import Answered, Ask, Engine
from serving.events import EventLog
from serving.library import Library
from serving.live import LISTENED, LiveView
from serving.metrics import Metrics
from serving.model import Codebook, ModelSlot, Swap
from serving.policy import device, products
from serving.service import Recommender
from serving.stats import Stats
from serving.widths import WidthPolicy, ladder
from streaming.kafka import Client, consumer, producer

log = logging.getLogger("sidstream.server")

REDIS_TIMEOUT_S = 0.25  # more than a busy machine needs, less than makes a person wait
KEEPING_TIMEOUT_S = 5.0  # nobody waits for the keeping
CONFIRMED_WITHIN_MS = 5_000  # a posted event is in Kafka by then, or its client is told to send it again
KEPT_FOR_MS = 300_000  # impressions and requests outlive a broker that is away this long
LISTENED_AT_ONCE = 500
FULL_READS_BEFORE_SKIPPING = 4  # the live view is of now: in a fast replay it skips rather than take the machine
TICK_S = 1.0
SAVE_POPULAR_S = 5.0


class Server:
    """One serving process.

    Raises:
        ConfigError: a precision that this processor does not have.
    """

    def __init__(self, settings: Settings, ends: Endpoints) -> None:
        try:
            searched_in = products(settings.serving.precision, device())
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._ends = ends
        store = ModelStore(ends.model_store)
        self._cache = SidCache(ends.redis_url, timeout_s=KEEPING_TIMEOUT_S)
        requested = SidCache(ends.redis_url, timeout_s=REDIS_TIMEOUT_S)
        self._features = FeatureReader(ends.redis_url, timeout_s=REDIS_TIMEOUT_S)
        self._metrics = Metrics()
        self._popularity = Popularity()
        self.library = Library(lambda version: Bundle.load(store, version), publish.Reader(store).load, self._cache, searched_in)
        self._slot = ModelSlot(
            lambda: publish.current_version(store), self.library.serving, widest=settings.serving.beam_width, on_swap=self._swapped
        )
        engine = Engine(self._slot, self._features, requested, self._popularity, self._metrics)
        rungs = ladder(settings.serving.beam_width)
        agreement = Agreement(
            rungs, least=settings.serving.least_agreement, share=settings.serving.shadow_share, recent=lambda: engine.recent
        )
        widths = WidthPolicy(
            rungs, agreement.verdicts, agreement.shares, settings.serving.max_batch, str(searched_in).removeprefix("torch.")
        )
        self._metrics.ladder(widths, agreement)
        self._batcher: Batcher[Ask, Answered] = Batcher(engine.answer, widths=widths, spare=agreement.step)
        self._log = EventLog(
            producer(ends.kafka, message_timeout_ms=CONFIRMED_WITHIN_MS),
            producer(ends.kafka, message_timeout_ms=KEPT_FOR_MS),
            self._metrics,
            attribution_ms=round(settings.samples.attribution_window_s * 1000),
        )
        self._recommender = Recommender(
            self._batcher,
            self._codebook,
            self._popularity,
            self._log,
            self._metrics,
            deadline_ms=settings.serving.deadline_ms,
            log_impressions=settings.serving.log_impressions,
        )
        self._published = threading.Event()
        self._live = LiveView(self._popularity, self._metrics, self.library.made, self._published.set)
        self._health = {"kafka": True, "redis": True}
        self._stopping = threading.Event()
        works = (self._listen, self._follow, self._keep)
        self._threads = [threading.Thread(target=work, name=work.__name__, daemon=True) for work in works]

    def app(self) -> FastAPI:
        """The HTTP application; its wishes for videos are settled while it runs."""
        stats = Stats(self._ends.home / "run", self._metrics, self._live, self._slot, self._codebook, self._health, time.time())
        parts = Parts(
            self._recommender,
            self._log,
            self._features,
            lambda: self.library.current.cards if self.library.current else None,
            stats,
            self._metrics,
            self._ends.home / "videos",
        )

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            task = asyncio.create_task(self._settle())
            yield
            task.cancel()

        return create(parts, lifespan)

    def start(self) -> None:
        """Load what there is to serve, then begin to work."""
        self.library.open()
        with suppress(CacheGone):
            self._popularity.restore(self._cache.load_popular(), time.time())
        self._slot.refresh()
        self._batcher.start()
        self._log.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """After the last request: send what waits."""
        self._stopping.set()
        self._published.set()
        self._batcher.stop()
        self._recommender.close()
        left = self._log.stop()
        if left:
            log.error("event=unsent records=%d", left)
        for thread in self._threads:
            thread.join(5)

    def _codebook(self) -> Codebook | None:
        return self.library.current.codebook if self.library.current else None

    def _swapped(self, swap: Swap) -> None:
        self._metrics.swaps.labels(swap.outcome).inc()
        serving = self._slot.serving
        if serving is not None:
            self.library.serves(serving.codebook)
            self._metrics.serving(serving.policy.version, serving.codebook.version)

    async def _settle(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._recommender.settle()

    def _follow(self) -> None:
        """Swap models as they are published, at once where Kafka tells and every second where it does not."""
        torch.set_num_threads(1)
        while not self._stopping.is_set():
            self._published.wait(TICK_S)
            self._published.clear()
            self._slot.refresh()

    def _keep(self) -> None:
        """Keep cache, shelf and popularity in step."""
        saved = time.monotonic()
        while not self._stopping.wait(TICK_S):
            try:
                self._health["redis"] = self._cache.alive()
                self.library.sync()
                self.library.rate(self._popularity.changed_ratings())
                if time.monotonic() - saved > SAVE_POPULAR_S:
                    self._cache.save_popular(self._popularity.scores(time.time()))
                    saved = time.monotonic()
            except CacheGone:
                self._health["redis"] = False
            except Exception:
                log.exception("event=keeping_failed")  # a defect, but none that may stop the keeping
            if self.library.current is not None:
                shelf = self.library.current.codebook.shelf
                self._metrics.videos.labels("generated").set(shelf.generated)
                self._metrics.videos.labels("catalogue").set(len(shelf) - shelf.generated)

    def _listen(self) -> None:
        """Read what passes through Kafka from now on."""
        while not self._stopping.is_set():
            try:
                listen(self._ends.kafka, self._live, self._health, self._stopping.is_set)
            except KafkaException as error:
                self._health["kafka"] = False
                log.warning("event=listener_failed error=%r", str(error))
                self._stopping.wait(TICK_S)


def listen(client: Client, live: LiveView, health: dict[str, bool], stopped: Callable[[], bool]) -> None:
    """Feed the live view from the ends of the topics until `stopped`.

    Raises:
        KafkaException: the topics cannot be listed.
    """

    def failed(error: Any) -> None:
        health["kafka"] = False

    reader = consumer({**client, "error_cb": failed}, f"sidstream-serve-{uuid.uuid4().hex}", (), from_start=False)
    try:
        found = reader.list_topics(timeout=10).topics
        partitions = [(topic, partition) for topic in LISTENED if topic in found for partition in found[topic].partitions]
        ends = [TopicPartition(topic, partition, OFFSET_END) for topic, partition in partitions]
        reader.assign(ends)
        full = 0
        while not stopped():
            messages = reader.consume(LISTENED_AT_ONCE, 0.25)
            now_ms = time.time_ns() // 1_000_000
            for message in messages:
                if message.error() is None:
                    health["kafka"] = True
                    live.observe(message.topic() or "", message.value() or b"", message.timestamp()[1], now_ms)
            full = full + 1 if len(messages) == LISTENED_AT_ONCE else 0
            if full >= FULL_READS_BEFORE_SKIPPING:
                full = 0
                reader.assign(ends)
                time.sleep(0.5)
    finally:
        reader.close()


def bound(http: str | None, settings: Settings) -> socket.socket:
    """A socket on the address that was chosen for us, on a free port where none was.

    Raises:
        ConfigError: somebody else listens there.
    """
    host, port = host_and_port(http) if http else (settings.http.host, settings.http.port)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"http: {host}:{port}: {error.strerror}: correct http.host, or set http.port to another port or to 0 for a free one"
        ) from error
    return listener


def serve(settings: Settings, ends: Endpoints, stop: Stop) -> None:
    """Serve until told to stop; then finish the running requests and send everything that waits.

    Raises:
        ConfigError: the port is in use, there is no bundle, or the processor lacks `serving.precision`.
    """
    torch.set_num_threads(1)  # one core for a batch: more would fight with the trainer for them
    sys.setswitchinterval(0.0005)  # a search gives the interpreter away a hundred times, and waits so long for it each time others run
    listener = bound(ends.http, settings)
    server = Server(settings, ends)
    try:
        server.start()
    except BundleError as error:
        raise ConfigError(str(error)) from error
    web = uvicorn.Server(
        uvicorn.Config(server.app(), log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=10, lifespan="on")
    )
    # In a thread of its own, because uvicorn takes the signals where it runs on the main one.
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]}, name="http")
    thread.start()
    while not web.started and thread.is_alive():
        time.sleep(0.02)
    # What lives now lives for ever: the collector need not look at it again, which took up to 170 ms at a time.
    gc.collect()
    gc.freeze()
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    ready(ends.home, "server", http=address)
    log.info("event=serving http=%s", address)
    while thread.is_alive() and not stop.wait(0.2):
        pass
    web.should_exit = True
    thread.join()
    server.stop()
    if not stop.is_set():
        raise RuntimeError("the HTTP server ended by itself")


@click.command()
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def command(config: Path | None) -> None:
    """The HTTP service and its page.

    Needs the topics, Redis and a bundle; the model may come later (until then the answers are degraded). Everything that it talks to may be
    away for a while: it goes on answering, and says what is missing.
    """
    run("server", serve, config)
