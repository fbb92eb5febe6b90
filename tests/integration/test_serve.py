"""`sidstream serve` as a process, on a real broker, a real Redis and a real model store."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import pytest
from redis import Redis

from jobs.local import redis as local_redis
from jobs.process import read_json, read_ready
from model.grm import Grm
from model.grm.presets import preset
from model.online.publish import Publisher, snapshot
from model.sid import bundle
from model.store import ModelStore
from serving.cache import SidCache
from streaming import kafka, records, topics
from streaming.sources.simulator import World
from tests.conftest import Services, await_true, describe, process, running_broker, running_redis

pytestmark = pytest.mark.integration


@dataclass
class Running:
    """A server that runs, and what it runs on."""

    services: Services
    store: ModelStore
    bundle: bundle.Bundle
    child: subprocess.Popen[bytes]
    http: httpx.Client
    publisher: Publisher

    def ask(self, user: int = 7, **fields) -> dict:
        response = self.http.post("/recommend", json={"user_id": user, "scene": "home", **fields})
        assert response.status_code == 200, response.text
        return response.json()

    def publish(self, seed: int) -> str:
        """A model with random weights as the next version."""
        config = preset("laptop", self.bundle.code_counts, seed=seed)
        taken = snapshot(Grm(config), None, {})
        manifest, uri = self.publisher.publish(taken, config, offsets={}, watermark_ts=seed, samples_trained=seed, metrics={})
        record = records.ModelPublished(
            version=manifest.version,
            base=None,
            manifest=uri,
            bundle_version=self.bundle.version,
            watermark_ts=seed,
            samples_trained=seed,
            metrics={},
        )
        self.send(topics.MODEL_PUBLISHED, records.encode(record), manifest.version)
        return manifest.version

    def send(self, topic: str, body: bytes, key: str) -> None:
        producer = kafka.producer(self.services.kafka)
        producer.produce(topic, body, key)
        assert producer.flush(20) == 0

    def read(self, topic: str, count: int, seconds: float = 20) -> list[bytes]:
        """At least `count` records of a topic from its start (fewer if they do not come in time)."""
        reader = kafka.consumer(self.services.kafka, f"test-{topic}-{time.monotonic_ns()}", [topic])
        bodies: list[bytes] = []
        deadline = time.monotonic() + seconds
        while len(bodies) < count and time.monotonic() < deadline:
            bodies += [message.value() for message in reader.consume(1000, 0.5) if message.error() is None]
        reader.close()
        return bodies


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for this file's tests, which run in their order: the last one ends it."""
    home = tmp_path_factory.mktemp("serve")
    with ExitStack() as stack:
        client = stack.enter_context(running_broker(home / "broker"))
        services = describe(home, client, stack.enter_context(running_redis(home / "redis")))
        topics.create(services.kafka, topics.specs(partitions=2, retention_ms=-1, retention_bytes=-1, views=[]))
        store = ModelStore(home / "models")
        built = bundle.build(World(users=10, items=300, seed=1).catalogue(), codes=16)
        built.save(store)
        store.point(bundle.POINTER, built.version)
        config = home / "config.yaml"
        config.write_text("serving: {deadline_ms: 10000}\n")
        command = [sys.executable, "-m", "jobs.cli", "serve", "--config", str(config)]
        child = stack.enter_context(process(command, home / "serve.log", services.environment))
        await_true(lambda: bool(read_ready(home, "server")), f"server (see {home}/serve.log)", 240, child)
        http = stack.enter_context(httpx.Client(base_url=read_json(home / "state.json")["http"], timeout=60))
        yield Running(services, store, built, child, http, Publisher(store, built.version))


def test_feeds_from_the_first_degraded_one_to_a_swap_under_load(running: Running):
    assert running.ask()["degraded"].startswith("model")
    first = running.publish(seed=1)
    await_true(lambda: running.http.get("/readyz").json()["model_version"] == first, "the first version serves")
    answer = running.ask(count=10)
    assert (answer["degraded"], answer["model_version"], answer["bundle_version"]) == (None, first, running.bundle.version)
    for item in answer["items"]:
        assert tuple(item["served_sid"]) == running.bundle.sid_of(item["item_id"])

    # What was asked and does not exist is requested; once it is announced, it is served.
    missing = next(item for item in answer["items"] if item["case"] != "exact_hit")
    requests = [msgspec.json.decode(body, type=records.GenerationRequest) for body in running.read(topics.GENERATION_REQUESTS, 1)]
    assert missing["sid"] in [request.sid for request in requests]
    video = records.Video(
        sid=missing["sid"],
        bundle_version=running.bundle.version,
        uri="/videos/made.mp4",
        item_id=-12_345,
        duration_ms=6_000,
        scores={},
        generator="test",
        origin_ts=1,
    )
    running.send(topics.VIDEOS, records.encode(video), "-12345")
    cache = SidCache(running.services.redis_url, timeout_s=5)
    sid = tuple(missing["sid"])
    await_true(lambda: bool(cache.lookup(running.bundle.version, [sid])[0].exact), "the announced video is in the cache")
    served = next(item for item in running.ask(user=8, count=100)["items"] if item["item_id"] == -12_345)
    assert (served["case"], served["generated"], served["uri"]) == ("exact_hit", True, "/videos/made.mp4")

    # Events come back from Kafka as they were posted.
    label = {"event_id": "e1", "user_id": 8, "ts": int(time.time() * 1000), "impression_id": served["impression_id"]}
    click = {"topic": "engagements", "schema": "engagement/1", "kind": "click", "impression_ts": served["impression_ts"], **label}
    assert running.http.post("/events", json={"events": [click, {}]}).json()["accepted"] == 1
    assert [records.decode("engagements", body).event_id for body in running.read(topics.ENGAGEMENTS, 1)] == ["e1"]

    # Versions are swapped under load without a dropped or degraded answer.
    stop = threading.Event()
    answers: list[dict] = []

    def person(user: int) -> None:
        while not stop.is_set():
            answers.append(running.ask(user=user, count=5))

    with ThreadPoolExecutor(3) as people:
        for user in range(3):
            people.submit(person, user)
        for seed in range(2, 5):
            version = running.publish(seed)
            await_true(lambda version=version: running.http.get("/readyz").json()["model_version"] == version, "the next version serves")
        stop.set()
    assert {answer["degraded"] for answer in answers} == {None}
    assert len({answer["model_version"] for answer in answers}) >= 3

    # A damaged version is refused and the one before it goes on.
    good = running.http.get("/readyz").json()["model_version"]
    running.store.write("versions/v00000099/manifest.json", b"damaged")
    running.store.point("CURRENT", "v00000099")
    await_true(lambda: 'sidstream_model_swaps_total{outcome="rejected"}' in running.http.get("/metrics").text, "the bad one is refused")
    assert running.ask()["model_version"] == good


def test_a_broker_that_stops_answering_stops_no_feed_and_its_impressions_arrive_later(running: Running):
    version = running.publish(seed=1)
    await_true(lambda: running.ask()["model_version"] == version, "the model serves")
    (broker,) = (
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and str(running.services.home / "broker").encode() in _command(folder) and b"java" in _command(folder)
    )
    os.kill(broker, signal.SIGSTOP)
    try:
        answers = [running.ask(user=user) for user in range(10)]
        assert {answer["degraded"] for answer in answers} == {None}
        now = int(time.time() * 1000)
        label = {"event_id": "e1", "user_id": 8, "ts": now, "impression_id": "i", "impression_ts": now}
        click = {"topic": "engagements", "schema": "engagement/1", "kind": "click", **label}
        answer = running.http.post("/events", json={"events": [click]})
        assert answer.status_code == 202
        assert "send it again" in answer.json()["rejected"][0]["reason"]
    finally:
        os.kill(broker, signal.SIGCONT)
    wanted = {item["impression_id"] for answer in answers for item in answer["items"]}
    await_true(
        lambda: wanted <= {records.decode(topics.IMPRESSIONS, body).impression_id for body in running.read(topics.IMPRESSIONS, 10**9, 3)},
        "the impressions arrive",
        60,
    )


def test_redis_killed_in_the_middle_degrades_the_answers_until_it_is_back_even_empty(running: Running):
    version = running.publish(seed=1)
    await_true(lambda: running.ask()["model_version"] == version, "the model serves")
    server = local_redis.Server(running.services.home / "redis", int(running.services.redis_url.rsplit(":", 1)[1].split("/")[0]))
    with Redis.from_url(running.services.redis_url) as client:
        os.kill(client.info("server")["process_id"], signal.SIGKILL)
    for user in range(10):
        answer = running.ask(user=user)
        assert answer["degraded"].startswith("cache")
        assert len(answer["items"]) == 10
    assert running.http.get("/readyz").status_code == 200
    shutil.rmtree(running.services.home / "redis" / "appendonlydir", ignore_errors=True)
    (running.services.home / "redis" / "appendonly.aof").unlink(missing_ok=True)
    with process(server.command(), running.services.home / "redis-again.log"):
        await_true(lambda: local_redis.healthy(running.services.redis_url), "redis is back")
        await_true(lambda: running.ask()["degraded"] is None, "the answers are good again")
        cache = SidCache(running.services.redis_url, timeout_s=5)
        await_true(lambda: cache.count(running.bundle.version) >= 300, "the catalogue is back in the cache")


def test_an_orderly_end_loses_no_impression(running: Running):
    shown = len(running.read(topics.IMPRESSIONS, 10**9, seconds=5))
    feeds = sum(len(running.ask(user=user)["items"]) for user in range(20))
    running.child.send_signal(signal.SIGTERM)
    assert running.child.wait(60) == 0
    bodies = running.read(topics.IMPRESSIONS, shown + feeds)
    assert len(bodies) == shown + feeds
    ids = [records.decode(topics.IMPRESSIONS, body).impression_id for body in bodies]
    assert len(set(ids)) == len(ids)


def _command(folder: Path) -> bytes:
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:
        return b""
