"""`sidstream simulate`: people who ask our server for feeds over HTTP and answer them with events."""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import click
import httpx
import msgspec
import numpy as np
from confluent_kafka import Producer
from tqdm import tqdm

from jobs.process import Endpoints, Stop, run, write_json
from jobs.settings import ConfigError, Settings
from jobs.traffic import Answers
from model.sid.bundle import Bundle, BundleError
from model.store import ModelStore
from streaming.kafka import producer
from streaming.sources.simulator import Vector, World
from streaming.sources.simulator_events import Delivery, Shown, Visits, answers

COUNT: Final = 10  # videos of a feed
IN_FLIGHT: Final = 24  # requests at once; where the server is slower than the pace, people wait
TIMEOUT_S: Final = 10
PAUSE_S: Final = 0.5  # after a request without an answer
SCENE: Final = "home"

log = logging.getLogger("sidstream.simulate")
_encode = msgspec.json.Encoder().encode


class Outlet(Protocol):
    """Where the events go."""

    async def send(self, due: Sequence[Delivery]) -> None: ...
    async def close(self) -> None: ...


class ToKafka:
    """Events as an app's own gateway writes them."""

    def __init__(self, client: Mapping[str, Any]) -> None:
        self._producer: Producer = producer(client, message_timeout_ms=600_000)

    async def send(self, due: Sequence[Delivery]) -> None:
        for delivery in due:
            while True:
                try:
                    self._producer.produce(delivery.topic, _encode(delivery.event), str(delivery.event.user_id))
                    break
                except BufferError:
                    await asyncio.sleep(0.1)
                    self._producer.poll(0)
        self._producer.poll(0)

    async def close(self) -> None:
        left = await asyncio.to_thread(self._producer.flush, 120)
        if left:
            raise OSError(f"{left} events could not be written to Kafka within 120 s")


class ToServer:
    """Events as a client without Kafka posts them; what is not confirmed is posted again, its id counts once."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def send(self, due: Sequence[Delivery]) -> None:
        events = [{"topic": delivery.topic, **msgspec.to_builtins(delivery.event)} for delivery in due]
        while events:
            try:
                answer = (await self._http.post("/events", json={"events": events})).raise_for_status().json()
            except (httpx.HTTPError, ValueError):
                await asyncio.sleep(PAUSE_S)
                continue
            again = {rejected["index"] for rejected in answer["rejected"] if "send it again" in rejected["reason"]}
            events = [event for index, event in enumerate(events) if index in again]

    async def close(self) -> None:
        return None


class Screen:
    """What a person sees of an item: its vectors, for a generated video those that its semantic ID stands for."""

    def __init__(self, world: World, store: ModelStore) -> None:
        self._world, self._store = world, store
        self._bundles: dict[str, Bundle] = {}
        self._lengths = dict(zip(world.item_ids.tolist(), world.duration_ms.tolist(), strict=True))

    def check(self) -> None:
        """Make sure that the server's catalogue is this world's.

        Raises:
            ConfigError: it is another one.
        """
        try:
            bundle = Bundle.load(self._store)
        except BundleError as error:
            raise ConfigError(str(error)) from error
        if not np.array_equal(bundle.item_ids, self._world.item_ids) or not np.array_equal(
            bundle.catalogue["author_id"].to_numpy(), self._world.author
        ):
            raise ConfigError(
                f"bundle {bundle.version} was not built for the simulated world of {len(self._world.item_ids)} items and seed "
                f"{self._world.seed}: give the same --items and --seed as `sidstream sids build`, or build it again"
            )
        self._bundles[bundle.version] = bundle

    def show(self, item: Mapping[str, Any], bundle_version: str | None) -> Shown:
        """A place of an answer of `/recommend`."""
        content, creative = self._vectors(item, bundle_version)
        duration_ms = self._lengths.get(item["item_id"], item.get("duration_ms", 6_000))
        return Shown(item["impression_id"], item["impression_ts"], item["position"], item["item_id"], int(duration_ms), content, creative)

    def _vectors(self, item: Mapping[str, Any], bundle_version: str | None) -> tuple[Vector, Vector]:
        try:
            return self._world.vectors_of(item["item_id"])
        except KeyError:
            if bundle_version is None or not item.get("served_sid"):
                raise
        if bundle_version not in self._bundles:
            self._bundles[bundle_version] = Bundle.load(self._store, bundle_version)
        return self._bundles[bundle_version].embedding_of(item["served_sid"])


class Crowd:
    """Simulated people in front of our server.

    Args:
        impressions: videos to show in all; None = until the stop.
        rate: feeds asked for in a second.
    """

    def __init__(
        self, world: World, screen: Screen, http: httpx.AsyncClient, outlet: Outlet, book: Answers, impressions: int | None, rate: float
    ) -> None:
        self._world, self._screen, self._http, self._outlet, self._book = world, screen, http, outlet, book
        self._left = impressions
        self._rate = rate
        self._visits = Visits(world)
        self._feeds = [0] * len(world.people)
        self._waiting: list[Delivery] = []
        self._asking: set[asyncio.Task[None]] = set()
        self._asked_all = False

    async def run(self, stop: Stop, bar: tqdm) -> None:
        """Ask at the given pace until enough was shown; then wait until the last event is sent."""
        delivering = asyncio.create_task(self._deliver(stop))
        try:
            due = time.monotonic()
            while not stop.is_set() and (self._left is None or self._left > 0 or self._asking):
                if delivering.done():
                    break
                due = max(due + 1 / self._rate, time.monotonic() - 1)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if len(self._asking) >= IN_FLIGHT or (self._left is not None and self._left <= 0):
                    continue
                user = self._visits.next(_now_ms())
                if user is None:
                    continue
                count = COUNT if self._left is None else min(COUNT, self._left)
                if self._left is not None:
                    self._left -= count
                task = asyncio.create_task(self._ask(user, count, bar))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
            if self._asking:
                await asyncio.wait(self._asking, timeout=TIMEOUT_S)
        finally:
            self._asked_all = True
            await delivering
            await self._outlet.close()

    async def _ask(self, user: int, count: int, bar: tqdm) -> None:
        began = time.perf_counter()
        shown: list[Shown] = []
        try:
            request = {"user_id": user, "scene": SCENE, "count": count, "request_id": self._book.next_request()}
            response = await self._http.post("/recommend", json=request)
            answer = response.raise_for_status().json()
            self._book.answered(answer, (time.perf_counter() - began) * 1000)
            shown = [self._screen.show(item, answer["bundle_version"]) for item in answer["items"]]
        except (httpx.HTTPError, ValueError) as error:
            self._book.failed()
            log.warning("event=no_answer user_id=%d error=%r", user, f"{type(error).__name__}: {error}")
            await asyncio.sleep(PAUSE_S)
        if self._left is not None:
            self._left += count - len(shown)
        bar.update(len(shown))
        sent, done_ms = answers(self._world, user, self._feeds[user], shown)
        self._feeds[user] += 1
        for delivery in sent:
            heapq.heappush(self._waiting, delivery)
        self._visits.done(user, done_ms)

    async def _deliver(self, stop: Stop) -> None:
        """Send each event when its time has come; after a stop nothing is held back, so that nothing shown stays unanswered."""
        while self._waiting or not self._asked_all:
            now = _now_ms()
            due: list[Delivery] = []
            while self._waiting and (self._waiting[0].at_ms <= now or stop.is_set()):
                delivery = heapq.heappop(self._waiting)
                if delivery.event.ts <= now or not stop.is_set():
                    due.append(delivery)
            if due:
                await self._outlet.send(due)
            await asyncio.sleep(0.02)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def live(
    world: World, ends: Endpoints, http_url: str, screen: Screen, impressions: int | None, rate: float, via: str, stop: Stop, bar: tqdm
) -> Answers:
    """Let the people of a world use the server at `http_url`; returns what they saw."""
    book = Answers(ends.home)
    limits = httpx.Limits(max_connections=2 * IN_FLIGHT, max_keepalive_connections=2 * IN_FLIGHT)
    async with httpx.AsyncClient(base_url=http_url, timeout=TIMEOUT_S, limits=limits) as http:
        outlet: Outlet = ToServer(http) if via == "http" else ToKafka(ends.kafka)
        await Crowd(world, screen, http, outlet, book, impressions, rate).run(stop, bar)
    book.write()
    return book


@click.command()
@click.option("--users", type=click.IntRange(1), default=200, show_default=True, help="Number of people.")
@click.option("--items", type=click.IntRange(1), default=1000, show_default=True, help="Size of the catalogue; the bundle's.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of people and catalogue; the bundle's.")
@click.option("--impressions", type=click.IntRange(1), help="Stop after so many; default: go on until stopped.")
@click.option("--rate", type=click.FloatRange(0.01), default=12.5, show_default=True, help="Feeds asked for in a second, 10 videos each.")
@click.option("--via", type=click.Choice(["kafka", "http"]), default="kafka", show_default=True, help="How events are sent.")
@click.option("--truth", type=click.Path(dir_okay=False, path_type=Path), help="Write what people really want, as JSON, at the end.")
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def command(
    users: int, items: int, seed: int, impressions: int | None, rate: float, via: str, truth: Path | None, config: Path | None
) -> None:
    """Simulated people: they ask our server for feeds, watch, and answer with events.

    Their interests are hidden, drift, and reach beyond the catalogue. They live 20 times as fast as people do: play times are the
    videos' own, but events follow within seconds.
    """

    def main(settings: Settings, ends: Endpoints, stop: Stop) -> None:
        if ends.http is None:
            raise ConfigError("no server to ask: start one with `sidstream up --only server`, or set http.port")
        world = World(users, items, seed)
        screen = Screen(world, ModelStore(ends.model_store))
        screen.check()
        with tqdm(total=impressions, unit="impr", dynamic_ncols=True, disable=None) as bar:
            book = asyncio.run(live(world, ends, ends.http, screen, impressions, rate, via, stop, bar))
        if truth:
            write_json(truth, world.truth())
        click.echo(f"{book.items} videos shown in {book.requests} feeds, {book.errors} requests without an answer", err=True)

    run("simulate", main, config)
