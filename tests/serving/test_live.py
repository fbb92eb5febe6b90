"""The live view, the page's data, and the cards."""

from __future__ import annotations

import json
import xml.etree.ElementTree

import msgspec

from serving.cards import poster
from serving.metrics import Metrics
from streaming import records, topics
from tests.serving.test_app import CLICK, ask

NOW = 1_700_000_000_000


def request(sid: list[int], demand: int = 1) -> bytes:
    return records.encode(
        records.GenerationRequest(request_id="r", sid=sid, bundle_version="b", demand=demand, reason="miss", nearest_sid=[0, 0, 0, 0])
    )


def made(sid: list[int], item_id: int = -5) -> bytes:
    return records.encode(
        records.Video(
            sid=sid,
            bundle_version="b",
            uri="/videos/a.mp4",
            item_id=item_id,
            duration_ms=6_000,
            scores={"motion": 0.5},
            generator="g",
            origin_ts=NOW - 9_000,
        )
    )


def test_demand_adds_up_by_sid_until_its_video_comes(world):
    for body in (request([1, 1, 1, 1]), request([2, 2, 2, 2], demand=5), request([1, 1, 1, 1], demand=2)):
        world.live.observe(topics.GENERATION_REQUESTS, body, NOW, NOW)
    assert [(wish["sid"], wish["demand"]) for wish in world.live.most_wanted(5)] == [([2, 2, 2, 2], 5), ([1, 1, 1, 1], 3)]
    world.live.observe(topics.VIDEOS, made([2, 2, 2, 2]), NOW, NOW)
    assert [wish["sid"] for wish in world.live.most_wanted(5)] == [[1, 1, 1, 1]]


def test_faulty_records_are_counted_and_change_nothing(world):
    for topic, body in ((topics.ENGAGEMENTS, b"\xff"), (topics.VIDEOS, b"{}"), (topics.SAMPLES, b"[]"), (topics.GENERATION_REQUESTS, b"")):
        world.live.observe(topic, body, NOW, NOW)
    assert world.live.seen == {"faulty": 4}


def test_heartbeats_are_no_events(world):
    beat = records.encode(records.Heartbeat(event_id="h", user_id=-1, ts=NOW))
    world.live.observe(topics.WATCHES, beat, NOW, NOW)
    assert not world.live.seen
    assert not world.live.users


def test_the_lag_of_samples_is_from_ready_to_kafka(world):
    world.live.observe(topics.SAMPLES, b'{"kind":"initial","ready_ts":%d,"x":[]}' % (NOW - 420), NOW, NOW)
    world.live.observe(topics.SAMPLES, b'{"kind":"initial","ready_ts":1650000000000}', NOW, NOW)  # of a replayed log
    assert list(world.live.sample_lag_ms) == [420]


def test_series_are_by_step_and_without_the_running_one():
    metrics = Metrics()
    metrics.latency_ms(100, 12.0)
    for second, count in ((100, 1), (101, 2), (104, 4), (106, 8)):
        metrics.tick(second, served=count)
    series = metrics.series(106.5, seconds=8, step=2)
    assert series["at"] == [98, 100, 102, 104]
    assert series["served"] == [0, 3, 0, 4]
    assert series["p99"] == [None, 12.0, None, None]


def test_the_pages_data_says_which_parts_are_missing(http, world):
    ask(http)
    stats = http.get("/api/stats").json()
    assert set(stats["missing"]) == {"trainer", "writer", "inspector", "generator"}
    (world.run / "trainer.json").write_text(json.dumps({"prequential": [{"samples": 500}], "samples_per_s": 200}))
    (world.run / "generator-0.json").write_text('{"making": null}')
    (world.run / "writer.json").write_text('{"half')
    world.health["redis"] = False
    stats = http.get("/api/stats").json()
    assert set(stats["missing"]) == {"writer", "inspector", "redis"}
    assert stats["trainer"]["samples_per_s"] == 200
    assert stats["server"]["model_version"] == "v00000001"
    assert stats["models"][0]["outcome"] == "swapped"


def test_the_generators_queue_is_shown_before_anything_was_asked_here(http, world):
    (world.run / "generator-0.json").write_text(json.dumps({"pending": 3, "most_wanted": ["sid-fake|1.2.3.0", "sid-fake|0.0.0.1"]}))
    queue = http.get("/api/stats").json()["queue"]
    assert queue["sids"] == 3
    assert [wish["sid"] for wish in queue["most_wanted"]] == [["1", "2", "3", "0"], ["0", "0", "0", "1"]]


def test_a_persons_history_comes_with_cards(http, world):
    item = int(world.bundle.item_ids[3])
    world.features.known[7] = [records.HistoryEntry(item, NOW, 2_000, [])]
    answer = http.get("/api/users/7").json()
    (entry,) = answer["history"]
    assert entry["entry"]["play_ms"] == 2_000
    assert entry["card"]["item_id"] == item
    assert entry["card"]["sid"] == world.bundle.sids[3].tolist()
    world.features.failure = ConnectionError("gone")
    assert http.get("/api/users/7").json()["missing"].startswith("features")


def test_people_seen_lately_are_offered(http, world):
    ask(http, user_id=9)
    click = {name: value for name, value in CLICK.items() if name != "topic"}
    world.live.observe(topics.ENGAGEMENTS, msgspec.json.encode({**click, "user_id": 11}), NOW, NOW)
    assert http.get("/api/users").json() == {"users": [11, 9]}


def test_cards_of_unknown_items_and_of_no_items(http):
    (card,) = http.get("/api/cards", params={"ids": "-77"}).json()
    assert (card["item_id"], card["generated"], card["sid"]) == (-77, False, None)
    assert http.get("/api/cards", params={"ids": "1;2"}).status_code == 422
    assert http.get("/api/cards").status_code == 422


def test_posters_are_pictures_that_tell_sids_apart_and_are_safe_to_show(http):
    pictures = {poster((content, 1, creative, 2), 2, "<script>", "1.1.1.2") for content in range(8) for creative in range(8)}
    assert len(pictures) == 64
    for picture in pictures:
        assert "<script>" not in picture
        xml.etree.ElementTree.fromstring(picture)
    response = http.get("/posters/105.svg")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/svg+xml")
    assert http.get("/posters/x.svg").status_code == 422
    assert http.get(f"/posters/{2**70}.svg").status_code == 404
