"""The SID cache on a real Redis."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import numpy as np
import pytest
from redis import Redis

from serving.cache import VIDEOS_PER_ANSWER, CachedVideo, CacheGone, SidCache
from streaming.records import Video
from tests.serving.fakes import FakeBundle

pytestmark = pytest.mark.integration


@pytest.fixture
def bundle() -> FakeBundle:
    return FakeBundle(60, version=f"sid-{uuid.uuid4().hex}")


@pytest.fixture
def cache(redis_url: str, bundle: FakeBundle) -> SidCache:
    cache = SidCache(redis_url, timeout_s=10)
    assert cache.seed(bundle, now_ms=1_000) == 60
    return cache


def generated(bundle: FakeBundle, sid: tuple[int, ...], item_id: int = -5) -> Video:
    return Video(
        sid=list(sid),
        bundle_version=bundle.version,
        uri=f"/videos/{item_id}.mp4",
        item_id=item_id,
        duration_ms=6_000,
        scores={},
        generator="g",
        origin_ts=1_000,
    )


def absent(bundle: FakeBundle) -> tuple[int, ...]:
    """A SID without a video whose content has some."""
    there = {tuple(sid) for sid in bundle.sids.tolist()}
    contents = {sid[:2] for sid in there}
    grid = (tuple(sid) for sid in np.ndindex(4, 4, 4, 4))
    return next(sid for sid in grid if sid not in there and sid[:2] in contents)


def test_lookups_agree_with_the_catalogue_for_every_sid(cache, bundle):
    sids = [tuple(map(int, sid)) for sid in np.ndindex(4, 4, 4, 4)]
    of_item = dict(zip(bundle.item_ids.tolist(), map(tuple, bundle.sids.tolist()), strict=True))
    for sid, found in zip(sids, cache.lookup(bundle.version, sids), strict=True):
        own = {item for item, its in of_item.items() if its == sid}
        assert {video.item_id for video in found.exact} <= own
        assert len(found.exact) == min(len(own), VIDEOS_PER_ANSWER)
        siblings = {item for item, its in of_item.items() if its[:2] == sid[:2]}
        assert len(found.content) == (0 if own else min(len(siblings), VIDEOS_PER_ANSWER))
        assert {video.item_id for video in found.content} <= siblings


def test_a_whole_beam_is_one_round_trip(cache, bundle, redis_url):
    cache.lookup(bundle.version, [(0, 0, 0, 0)])  # the first one also loads the script
    with Redis.from_url(redis_url) as watcher:
        before = watcher.info("stats")["total_commands_processed"]
        own = watcher.info("commandstats")["cmdstat_evalsha"]["calls"]
        cache.lookup(bundle.version, [tuple(map(int, sid)) for sid in np.ndindex(4, 4, 4, 4)])
        assert watcher.info("commandstats")["cmdstat_evalsha"]["calls"] == own + 1
        assert watcher.info("stats")["total_commands_processed"] - before < 2_000  # the script's own reads count here


def test_a_generated_video_turns_a_content_hit_into_an_exact_one(cache, bundle):
    sid = absent(bundle)
    (before,) = cache.lookup(bundle.version, [sid])
    assert not before.exact
    assert before.content
    assert cache.put(generated(bundle, sid), now_ms=2_000)
    (after,) = cache.lookup(bundle.version, [sid])
    assert after.exact == (CachedVideo(-5, sid, "/videos/-5.mp4", 6_000, True, 2_000),)
    assert after.exact[0].age_ms(5_000) == 3_000


def test_putting_and_seeding_twice_change_nothing(cache, bundle):
    sid = absent(bundle)
    assert [cache.put(generated(bundle, sid), now_ms=at) for at in (2_000, 3_000)] == [True, False]
    assert cache.seed(bundle) == 0
    assert cache.restore(bundle.version, cache.videos(bundle.version), 2) == 0
    assert cache.count(bundle.version) == 61
    assert cache.lookup(bundle.version, [sid])[0].exact[0].put_ts == 2_000


def test_the_creative_that_does_best_now_answers_for_its_content(cache, bundle):
    sid = absent(bundle)
    videos = cache.lookup(bundle.version, [sid])[0].content
    for best in videos:
        cache.rate(bundle.version, {video: float(video is best) for video in videos})
        assert cache.lookup(bundle.version, [sid])[0].content[0].item_id == best.item_id


def test_rating_a_video_that_is_not_there_does_not_bring_it_into_being(cache, bundle):
    sid = absent(bundle)
    cache.rate(bundle.version, {CachedVideo(999, sid, "/x", 1, False, 0): 50.0})
    assert 999 not in {video.item_id for video in cache.lookup(bundle.version, [sid])[0].content}


def test_bundles_do_not_see_each_others_videos(cache, bundle):
    (other,) = cache.lookup(f"{bundle.version}-next", [tuple(bundle.sids[0].tolist())])
    assert not other.exact
    assert not other.content


def test_what_is_popular_outlives_the_server(cache):
    scenes = {"home": {1: 2.5, 2: 1.0}, "": {1: 2.5}}
    cache.save_popular(scenes)
    kept = cache.load_popular()
    assert {scene: kept[scene] for scene in scenes} == scenes


@pytest.fixture
def nobody() -> Iterator[SidCache]:
    yield SidCache("redis://127.0.0.1:1/0", timeout_s=0.2, rest_s=60)


def test_a_redis_that_is_gone_is_said_at_once_and_then_left_alone(nobody):
    with pytest.raises(CacheGone):
        nobody.lookup("b", [(1, 2)])
    assert nobody.resting
    with pytest.raises(CacheGone, match="a moment ago"):
        nobody.count("b")
    assert not nobody.alive()
