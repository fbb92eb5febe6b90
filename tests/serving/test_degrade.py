"""What is served without the model."""

from __future__ import annotations

import random
from typing import Any

from serving.degrade import SCENES, Popularity, RecentFeeds, fallback
from streaming.records import Engagement, EngagementKind, Impression, Watch
from tests.serving.fakes import video


def shown(impression_id: str, item: int, scene: str = "home") -> Impression:
    return Impression(
        event_id=impression_id,
        user_id=1,
        ts=0,
        impression_id=impression_id,
        request_id="r",
        item_id=item,
        position=0,
        scene=scene,
        duration_ms=10_000,
    )


def engaged(impression_id: str, kind: EngagementKind) -> Engagement:
    return Engagement(event_id=f"{impression_id}{kind}", user_id=1, ts=0, impression_id=impression_id, impression_ts=0, kind=kind)


def watched(impression_id: str, play_ms: int) -> Watch:
    label: dict[str, Any] = {"event_id": f"{impression_id}w", "user_id": 1, "ts": 0, "impression_id": impression_id, "impression_ts": 0}
    return Watch(**label, play_ms=play_ms, duration_ms=10_000)


def test_what_people_like_in_a_scene_is_popular_there():
    popularity = Popularity()
    for impression, item, scene in (("a", 1, "home"), ("b", 2, "home"), ("c", 3, "ads")):
        popularity.observe(shown(impression, item, scene), 0.0)
    popularity.observe(engaged("a", "click"), 1.0)
    popularity.observe(engaged("b", "like"), 1.0)
    popularity.observe(engaged("c", "share"), 1.0)
    assert popularity.top("home", 2.0) == [2, 1]
    assert popularity.top("ads", 2.0) == [3]


def test_a_scene_without_a_history_shows_what_is_popular_anywhere():
    popularity = Popularity()
    popularity.observe(shown("a", 1), 0.0)
    popularity.observe(watched("a", 10_000), 0.0)
    assert popularity.top("elsewhere", 1.0) == [1]


def test_a_short_watch_and_a_hated_video_are_not_popular():
    popularity = Popularity()
    for impression, item in (("a", 1), ("b", 2)):
        popularity.observe(shown(impression, item), 0.0)
    popularity.observe(watched("a", 2_000), 0.0)
    popularity.observe(engaged("b", "hate"), 0.0)
    assert popularity.top("home", 1.0) == []


def test_popularity_fades():
    popularity = Popularity(half_life_s=60)
    popularity.observe(shown("a", 1), 0.0)
    popularity.observe(shown("b", 2), 0.0)
    for _ in range(3):
        popularity.observe(engaged("a", "click"), 0.0)
    popularity.observe(engaged("b", "click"), 300.0)
    assert popularity.top("home", 301.0) == [2, 1]


def test_scenes_from_outside_cannot_fill_the_memory():
    popularity = Popularity()
    for number in range(3 * SCENES):
        popularity.observe(shown(f"i{number}", number, f"scene {number}"), 0.0)
        popularity.observe(engaged(f"i{number}", "click"), 0.0)
    assert len(popularity.scores(1.0)) == SCENES


def test_a_restored_popularity_ranks_as_before():
    popularity, later = Popularity(), Popularity()
    for item, likes in ((1, 1), (2, 3), (3, 2)):
        popularity.observe(shown(str(item), item), 0.0)
        for _ in range(likes):
            popularity.observe(engaged(str(item), "like"), 0.0)
    later.restore(popularity.scores(1.0), 1.0)
    assert later.top("home", 2.0) == popularity.top("home", 2.0) == [2, 3, 1]


def test_a_video_rates_by_its_reward_per_view():
    popularity = Popularity()
    for number in range(20):
        popularity.observe(shown(f"a{number}", 1), 0.0)
        popularity.observe(shown(f"b{number}", 2), 0.0)
    popularity.observe(engaged("a1", "like"), 0.0)
    ratings = popularity.changed_ratings()
    assert ratings[1] > ratings[2] == 0.0
    assert popularity.changed_ratings() == {}


def test_the_last_good_feed_outlives_degraded_ones_and_all_of_them_count_as_seen():
    feeds = RecentFeeds()
    good, poor = [video(1, (0,)), video(2, (0,))], [video(3, (0,))]
    feeds.keep(7, good, good=True)
    feeds.keep(7, poor, good=False)
    assert feeds.last_good(7) == tuple(good)
    assert feeds.seen(7) == (3, 1, 2)


def test_people_served_longest_ago_are_forgotten():
    feeds = RecentFeeds(people=2)
    for user in (1, 2, 3):
        feeds.keep(user, [video(user, (0,))], good=True)
    assert feeds.last_good(1) == ()
    assert feeds.users(5) == [3, 2]


def test_a_good_feed_that_came_too_late_is_kept_but_not_taken_for_seen():
    feeds = RecentFeeds()
    feeds.keep(7, [video(1, (0,))], good=False)
    feeds.keep_late(7, [video(2, (0,))])
    assert feeds.last_good(7) == (video(2, (0,)),)
    assert feeds.seen(7) == (1,)


def test_a_fallback_takes_the_last_good_feed_then_what_is_popular_then_anything():
    good, popular, anything = video(1, (0,)), video(2, (0,)), [video(item, (0,)) for item in (1, 2, 3, 4)]
    slots = fallback([good], [popular, good], anything, count=3, exclude={4}, seen=(), chance=random.Random(1))
    assert [(slot.video.item_id, slot.pipeline) for slot in slots] == [(1, "last_good"), (2, "popular"), (3, "random")]
    assert all(slot.case is None and slot.log_prob is None for slot in slots)


def test_a_fallback_repeats_what_was_seen_only_when_nothing_else_is_left():
    videos = [video(item, (0,)) for item in (1, 2, 3)]
    slots = fallback(videos[:1], videos[1:2], videos, count=3, exclude=(), seen={1, 2}, chance=random.Random(1))
    assert [(slot.video.item_id, slot.pipeline) for slot in slots] == [(3, "random"), (1, "last_good"), (2, "popular")]
