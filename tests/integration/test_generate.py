"""Generators on a real broker and a real Redis: requests become videos, also when workers or Redis die in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import redis
from confluent_kafka.admin import AdminClient, NewTopic

from generation.encode import measure
from generation.queue import KEYS
from jobs.generate import item_of
from jobs.process import read_json
from model.sid import bundle as bundles
from model.store import ModelStore
from serving.cache import SidCache
from streaming import topics
from streaming.kafka import consumer, producer
from streaming.records import DeadLetter, GenerationRequest, Video
from streaming.sources.simulator import World
from tests.conftest import Services, await_true

pytestmark = pytest.mark.integration
PATIENCE_S = 240  # these tests share two processors with whatever else runs


@pytest.fixture
def bundle(services: Services) -> bundles.Bundle:
    made = bundles.build(World(items=120, seed=0).catalogue(), codes=6)
    store = ModelStore(str(services.home / "models"))
    made.save(store)
    names = {topics.GENERATION_REQUESTS: 2, topics.VIDEOS: 1, topics.DEAD_LETTERS: 1}
    admin = AdminClient(dict(services.kafka))
    created = admin.create_topics([NewTopic(name, count, 1) for name, count in names.items()])
    for future in created.values():
        future.result(60)
    return made


def missing_sids(bundle: bundles.Bundle, count: int) -> list[list[int]]:
    """SIDs that no video of the catalogue has."""
    have = {tuple(sid) for sid in bundle.sids.tolist()}
    every = ([a, b, c, d] for a in range(6) for b in range(6) for c in range(6) for d in range(6))
    return [sid for sid in every if tuple(sid) not in have][:count]


def ask(services: Services, bundle: bundles.Bundle, sids: list[list[int]], demand: int = 1, tag: str = "r") -> None:
    out = producer(services.kafka)
    for number, sid in enumerate(sids):
        request = GenerationRequest(
            request_id=f"{tag}{number}", sid=sid, bundle_version=bundle.version, demand=demand, reason="miss", nearest_sid=sid
        )
        out.produce(topics.GENERATION_REQUESTS, msgspec.json.encode(request), f"{tag}{number}")
    assert out.flush(30) == 0


@contextmanager
def generator(services: Services, number: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    log = (services.home / f"generator-{number}.log").open("ab")
    command = [sys.executable, "-m", "jobs.cli", "generate", "--worker", str(number)]
    child = subprocess.Popen(command, env=services.environment, stdout=log, stderr=log, cwd=Path(__file__).parents[2])
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()


def read_all(services: Services, topic: str, type_: type) -> list:
    reader = consumer(services.kafka, f"test-{time.monotonic_ns()}", [topic], enable_partition_eof=True)
    records = []
    try:
        while True:
            message = reader.poll(30)
            assert message is not None, f"{topic} does not answer"
            if message.error() is not None:
                return records
            records.append(msgspec.json.decode(message.value(), type=type_))
    finally:
        reader.close()


def made(services: Services) -> list[Path]:
    return sorted((services.home / "videos").glob("*.mp4"))


def pending(services: Services, requested: int) -> bool:
    totals = redis.Redis.from_url(services.redis_url)
    return int(totals.get("sidstream:generation:requested") or 0) < requested or bool(totals.zcard("sidstream:generation:wanted"))


def check(services: Services, bundle: bundles.Bundle, sids: list[list[int]]) -> None:
    """Each SID has one whole video, announced once, served from the cache."""
    videos = read_all(services, topics.VIDEOS, Video)
    assert sorted(video.sid for video in videos) == sorted(sids)
    cache = SidCache(services.redis_url, timeout_s=5)
    for video in videos:
        assert video.item_id == item_of(bundle.version, video.sid) < 0
        assert video.uri == f"/videos/{bundle.version}-{'.'.join(map(str, video.sid))}.mp4"
        assert measure(services.home / video.uri.lstrip("/")).duration_ms == video.duration_ms
        assert [found.item_id for found in cache.lookup(bundle.version, [tuple(video.sid)])[0].exact] == [video.item_id]
    assert len(made(services)) == len(sids)
    assert not list((services.home / "videos").glob(".*")), "half a video is left"


def test_kill_9_of_every_worker_loses_no_request_and_makes_no_video_twice(services: Services, bundle: bundles.Bundle) -> None:
    sids = missing_sids(bundle, 5)
    ask(services, bundle, sids)
    ask(services, bundle, sids[:2], demand=3, tag="again")
    with generator(services, 0) as first, generator(services, 1) as second:
        await_true(lambda: len(made(services)) >= 1, "a first video", PATIENCE_S, first)
        first.kill()
        second.kill()
    with generator(services, 0) as child:
        await_true(lambda: not pending(services, 5 + 6), "all videos", PATIENCE_S, child)
        child.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert child.wait(30) == 0
        assert time.monotonic() - began < 20
    check(services, bundle, sids)
    state = read_json(services.home / "run" / "generator-0.json")
    assert (state["requested"], state["generated"], state["pending"], state["refused"]) == (11, 5, 0, 0)
    assert 0 < state["seconds_per_video"]["p50"] <= state["seconds_per_video"]["p95"]


def test_a_redis_that_forgets_everything_is_filled_again_from_the_log(services: Services, bundle: bundles.Bundle) -> None:
    sids = missing_sids(bundle, 2)
    ask(services, bundle, sids)
    client = redis.Redis.from_url(services.redis_url)
    with generator(services) as child:
        await_true(lambda: len(made(services)) >= 1, "a first video", PATIENCE_S, child)
        client.flushall()
        await_true(lambda: client.exists(*KEYS) > 0 and not pending(services, 2), "all videos", PATIENCE_S, child)
    check(services, bundle, sids)


def test_what_cannot_be_made_is_a_dead_letter_and_stops_nothing(services: Services, bundle: bundles.Bundle) -> None:
    good = missing_sids(bundle, 1)
    out = producer(services.kafka)
    for body in (b"\xff\x00", b'{"request_id": "x"}'):
        out.produce(topics.GENERATION_REQUESTS, body, "x")
    assert out.flush(30) == 0
    ask(services, bundle, [[0, 0], [0, 0, 0, 6], [-1, 0, 0, 0]], tag="bad")
    away = GenerationRequest(request_id="away", sid=good[0], bundle_version="../../etc", demand=1, reason="miss", nearest_sid=good[0])
    nameless = msgspec.structs.replace(away, request_id="", bundle_version=bundle.version)
    for request in (away, nameless):
        out.produce(topics.GENERATION_REQUESTS, msgspec.json.encode(request), "x")
    assert out.flush(30) == 0
    ask(services, bundle, good)
    with generator(services) as child:
        await_true(lambda: not pending(services, 1), "the good request's video", PATIENCE_S, child)
        await_true(lambda: len(read_all(services, topics.DEAD_LETTERS, DeadLetter)) >= 7, "dead letters", PATIENCE_S, child)
    letters = read_all(services, topics.DEAD_LETTERS, DeadLetter)
    assert len({(letter.partition, letter.offset) for letter in letters}) == 7
    assert all(letter.reason and letter.topic == topics.GENERATION_REQUESTS for letter in letters)
    check(services, bundle, good)


def test_sigterm_in_the_middle_of_a_video_ends_cleanly_within_seconds(services: Services, bundle: bundles.Bundle) -> None:
    ask(services, bundle, missing_sids(bundle, 3))
    with generator(services) as child:
        await_true(lambda: bool(list((services.home / "videos").glob(".*.partial"))), "a video in the making", PATIENCE_S, child)
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
    assert not list((services.home / "videos").glob(".*"))
    assert not redis.Redis.from_url(services.redis_url).zcard("sidstream:generation:leases"), "a lease is left"
