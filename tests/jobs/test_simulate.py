"""Simulated people ask for exactly as much as they were told to, and answer only what they got."""

import asyncio
import itertools
import json
import time

import httpx
import pytest
from tqdm import tqdm

from jobs.process import Stop
from jobs.settings import ConfigError
from jobs.simulate import Crowd, Screen, ToServer
from jobs.traffic import Answers
from model.sid import bundle
from model.store import ModelStore
from streaming.sources.simulator import World


@pytest.fixture(scope="module")
def world():
    return World(users=20, items=120, seed=2)


@pytest.fixture(scope="module")
def store(world, tmp_path_factory):
    store = ModelStore(str(tmp_path_factory.mktemp("models")))
    built = bundle.build(world.catalogue(), codes=8)
    built.save(store)
    store.point(bundle.POINTER, built.version)
    return store


class Server:
    """Answers feeds of catalogue and generated videos; fails every `fails`-th request; takes events."""

    def __init__(self, version, fails=0):
        self.version, self.fails = version, fails
        self.requests, self.ids = 0, itertools.count()
        self.shown, self.events = set(), []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if request.url.path == "/events":
            self.events += body["events"]
            return httpx.Response(202, json={"accepted": len(body["events"]), "rejected": []})
        self.requests += 1
        if self.fails and self.requests % self.fails == 0:
            raise httpx.ConnectError("refused")
        now, items = int(time.time() * 1000), []
        for position in range(body["count"]):
            name = f"i{next(self.ids)}"
            self.shown.add(name)
            item_id = -5 if position == 1 else 1 + (self.requests + position) % 120
            place = {"impression_id": name, "impression_ts": now, "position": position, "item_id": item_id, "served_sid": [0, 0, 0, 0]}
            items.append(place | {"case": "miss"})
        return httpx.Response(200, json={"items": items, "degraded": None, "bundle_version": self.version})


def simulate(world, store, home, server, impressions, stop=None):
    async def main():
        async with httpx.AsyncClient(transport=httpx.MockTransport(server), base_url="http://server") as http:
            screen, book = Screen(world, store), Answers(home)
            screen.check()
            crowd = Crowd(world, screen, http, ToServer(http), book, impressions, rate=200)
            await crowd.run(stop or Stop(), tqdm(disable=True))
            return book

    return asyncio.run(main())


def stopped_after(seconds):
    """A stop that comes by itself, so that nobody waits for the late conversions of a simulated life."""
    stop, end = Stop(), time.monotonic() + seconds
    stop.is_set = lambda: time.monotonic() > end
    return stop


@pytest.mark.parametrize("fails", [0, 3])
def test_exactly_as_much_is_shown_as_was_asked_for(world, store, tmp_path, fails):
    server = Server(store.pointer(bundle.POINTER), fails)
    book = simulate(world, store, tmp_path, server, 73, stopped_after(2.5))
    assert len(server.shown) == book.items == 73
    assert (book.errors > 0) == (fails > 0)


def test_only_what_was_shown_is_answered(world, store, tmp_path):
    server = Server(store.pointer(bundle.POINTER), fails=4)
    simulate(world, store, tmp_path, server, 60, stopped_after(2.0))
    assert server.events
    assert {event["impression_id"] for event in server.events} <= server.shown
    assert {event["topic"] for event in server.events} >= {"watches", "engagements"}


def test_a_bundle_of_another_world_is_refused(store):
    with pytest.raises(ConfigError, match="same --items and --seed"):
        Screen(World(users=5, items=120, seed=3), store).check()
