"""The HTTP service on fakes: shapes, status codes, the log of impressions, degradation."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.agreement import Evidence
from serving.app import BODY_BYTES, create
from streaming import records, topics
from streaming.records import HistoryEntry
from tests.serving.fakes import FakePolicy, World

NOW = int(time.time() * 1000)
LABEL = {"event_id": "e1", "user_id": 5, "ts": NOW, "impression_id": "i1", "impression_ts": NOW}
CLICK = {"topic": "engagements", "schema": "engagement/1", "kind": "click", **LABEL}
WATCH = {"topic": "watches", "schema": "watch/1", "play_ms": 4_000, "duration_ms": 9_000, **LABEL}


def ask(http: TestClient, **fields):
    return http.post("/recommend", json={"user_id": 5, "scene": "home", **fields})


def impressions(world: World) -> list[records.Impression]:
    return [msgspec.json.decode(body, type=records.Impression) for body in world.lasting.topic(topics.IMPRESSIONS)]


def wishes(world: World) -> list[records.GenerationRequest]:
    return [msgspec.json.decode(body, type=records.GenerationRequest) for body in world.lasting.topic(topics.GENERATION_REQUESTS)]


def test_a_feed_has_distinct_items_and_says_what_made_it(http, world):
    answer = ask(http, request_id="mine").json()
    assert (answer["request_id"], answer["mode"], answer["degraded"]) == ("mine", "normal", None)
    assert (answer["model_version"], answer["bundle_version"]) == ("v00000001", "sid-fake")
    assert [item["position"] for item in answer["items"]] == list(range(10))
    assert len({item["item_id"] for item in answer["items"]}) == 10
    assert len({item["impression_id"] for item in answer["items"]}) == 10
    for item in answer["items"]:
        assert item["case"] in {"exact_hit", "content_hit", "miss"}
        same = [asked == served for asked, served in zip(item["sid"], item["served_sid"], strict=True)]
        assert item["case"] == ("exact_hit" if all(same) else "content_hit" if all(same[:2]) else "miss")
        assert item["policy_logprob"] < 0


def test_every_served_item_is_logged_as_it_was_served_with_the_context_that_was_used(http, world):
    world.features.known[5] = [HistoryEntry(101, NOW - 5_000, 3_000, []), HistoryEntry(102, NOW - 9_000, None, ["like"])]
    answer = ask(http, count=4).json()
    logged = impressions(world)
    assert [(one.impression_id, one.item_id, one.ts, one.sid, one.served_sid, one.case, one.policy_logprob) for one in logged] == [
        (
            item["impression_id"],
            item["item_id"],
            item["impression_ts"],
            item["sid"],
            item["served_sid"],
            item["case"],
            pytest.approx(item["policy_logprob"]),
        )
        for item in answer["items"]
    ]
    for one in logged:
        assert one.context == records.Context(history=world.features.known[5])
        assert (one.user_id, one.scene, one.pipeline, one.mode) == (5, "home", "grm", "normal")
        assert (one.model_version, one.bundle_version, one.request_id) == ("v00000001", "sid-fake", answer["request_id"])
        assert one.cache_age_ms is not None
    keys = [key for topic, key, _ in world.lasting.sent if topic == topics.IMPRESSIONS]
    assert keys == [b"5"] * 4


def test_what_a_fast_clock_says_is_yet_to_happen_is_no_context(http, world):
    past, future = HistoryEntry(101, NOW - 5_000, 3_000, []), HistoryEntry(102, NOW + 3_600_000, 3_000, [])
    world.features.known[5] = [future, past]
    ask(http, count=1)
    assert [one.context for one in impressions(world)] == [records.Context(history=[past])]


def test_what_is_missing_is_requested_once_with_what_was_served_instead(http, world):
    answer = ask(http).json()
    missing = {tuple(item["sid"]): item for item in answer["items"] if item["case"] != "exact_hit"}
    requested = wishes(world)
    assert missing
    assert {tuple(one.sid) for one in requested} == set(missing)
    for one in requested:
        item = missing[tuple(one.sid)]
        assert (one.demand, one.user_id, one.bundle_version) == (1, 5, "sid-fake")
        assert (one.reason, one.nearest_sid) == (item["case"], item["served_sid"])


def test_the_same_wish_again_waits_to_be_counted_with_others(http, world):
    world.policy.answers = lambda person, width: ([(3, 3, 3, code) for code in range(4)], [-1.0, -2.0, -3.0, -4.0])
    world.cache.stock = [v for v in world.cache.stock if v.sid[:3] != (3, 3, 3)]
    for _ in range(3):
        ask(http, count=4)
    assert len(wishes(world)) == 4
    world.recommender.close()
    assert sum(one.demand for one in wishes(world)) == 12


def test_ids_of_impressions_are_unique_although_a_client_repeats_its_request(http, world):
    for _ in range(3):
        ask(http, request_id="again")
    ids = [one.impression_id for one in impressions(world)]
    assert len(ids) == len(set(ids)) == 30


def test_excluded_items_never_appear(http, world):
    exclude = [int(item) for item in world.bundle.item_ids[:70]]
    items = [item["item_id"] for item in ask(http, count=10, exclude=exclude).json()["items"]]
    assert len(items) == 10
    assert not set(items) & set(exclude)


def test_the_next_feed_shows_other_videos(http):
    first, second = ({item["item_id"] for item in ask(http).json()["items"]} for _ in range(2))
    assert not first & second


def test_a_feed_is_as_long_as_there_are_videos(http, world):
    assert len(ask(http, count=100).json()["items"]) == 80


def test_before_the_first_model_the_feed_is_degraded_and_says_so(tmp_path):
    world = World(tmp_path, published=False, deadline_ms=20_000).start()
    with TestClient(create(world.parts)) as http:
        answer = ask(http).json()
        assert http.get("/readyz").json()["status"] == "degraded"
    world.stop()
    assert (answer["mode"], answer["model_version"], answer["bundle_version"]) == ("degraded", None, "sid-fake")
    assert answer["degraded"].startswith("model")
    assert len(answer["items"]) == 10
    assert all(item["case"] is None and item["sid"] is None and item["policy_logprob"] is None for item in answer["items"])
    assert {one.mode for one in impressions(world)} == {"degraded"}


def test_without_redis_the_feed_comes_from_memory_until_it_is_back(http, world):
    world.features.known[5] = []
    good = [item["item_id"] for item in ask(http).json()["items"]]
    world.cache.gone = True
    answer = ask(http).json()
    assert answer["degraded"].startswith("cache")
    assert not {item["item_id"] for item in answer["items"]} & set(good)
    everything = [item["item_id"] for item in ask(http, count=100).json()["items"]]
    assert set(everything) == set(world.bundle.item_ids.tolist())
    world.cache.gone = False
    assert ask(http).json()["mode"] == "normal"


def test_without_features_the_model_still_answers_and_no_context_is_claimed(http, world):
    world.features.failure = ConnectionError("gone")
    answer = ask(http).json()
    assert answer["degraded"].startswith("features")
    assert {item["case"] for item in answer["items"]} <= {"exact_hit", "content_hit", "miss"}
    assert all(one.context is None for one in impressions(world))


def test_a_model_that_is_late_is_not_waited_for(http, world):
    world.policy.slow_s = 1.0
    started = time.monotonic()
    answer = ask(http, deadline_ms=60).json()
    assert time.monotonic() - started < 0.9
    assert answer["degraded"].startswith("deadline")
    assert len(answer["items"]) == 10


def test_a_feed_that_came_too_late_is_what_the_person_falls_back_to(http, world):
    world.policy.slow_s = 0.2
    ask(http, deadline_ms=60)
    deadline = time.monotonic() + 10
    while not world.recommender.feeds.last_good(5) and time.monotonic() < deadline:
        time.sleep(0.01)
    late = [video.item_id for video in world.recommender.feeds.last_good(5)]
    answer = ask(http, deadline_ms=20).json()
    assert answer["degraded"].startswith("deadline")
    assert set(late) & {item["item_id"] for item in answer["items"]}
    assert "last_good" in {one.pipeline for one in impressions(world)}


def test_a_model_that_fails_is_rolled_back_and_nobody_notices_but_the_answer(http, world):
    world.current = "v00000002"
    world.slot.refresh()
    world.policy.failure = RuntimeError("boom")
    reasons = [ask(http).json()["degraded"] for _ in range(4)]
    assert [reason and reason.partition(":")[0] for reason in reasons] == ["model", "model", "model", None]
    assert ask(http).json()["model_version"] == "v00000001"


def test_a_hot_swap_under_load_drops_and_degrades_nothing(http, world):
    world.policy.slow_s = 0.005
    stop = threading.Event()
    seen: list[tuple[int, str | None, str]] = []

    def person(user: int) -> None:
        while not stop.is_set():
            response = ask(http, user_id=user, count=5)
            answer = response.json()
            seen.append((response.status_code, answer["degraded"], answer["model_version"]))

    with ThreadPoolExecutor(6) as people:
        for user in range(6):
            people.submit(person, user)
        for version in range(2, 12):
            world.current = f"v{version:08d}"
            assert world.slot.refresh()
            time.sleep(0.05)
        stop.set()
    assert {(status, degraded) for status, degraded, _ in seen} == {(200, None)}
    assert len({version for _, _, version in seen}) > 5


def test_a_swap_keeps_one_model_for_the_whole_of_a_request(http, world):
    entered, go = threading.Event(), threading.Event()
    answers = FakePolicy("v00000001").answers

    def slow(person, width):
        entered.set()
        go.wait(10)
        return answers(person, width)

    world.policy.answers = slow
    with ThreadPoolExecutor(1) as people:
        waiting = people.submit(ask, http)
        assert entered.wait(10)
        world.current = "v00000002"
        world.slot.refresh()
        go.set()
        assert waiting.result().json()["model_version"] == "v00000001"
    assert ask(http).json()["model_version"] == "v00000002"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"user_id": 5},
        {"user_id": "5", "scene": "home"},
        {"user_id": -1, "scene": "home"},
        {"user_id": 2**63, "scene": "home"},
        {"user_id": 5, "scene": ""},
        {"user_id": 5, "scene": "home", "count": 0},
        {"user_id": 5, "scene": "home", "count": 101},
        {"user_id": 5, "scene": "home", "count": 2.5},
        {"user_id": 5, "scene": "home", "exclude": ["1"]},
        {"user_id": 5, "scene": "home", "deadline_ms": 0},
        [],
        "feed",
        None,
    ],
)
def test_a_request_of_the_wrong_shape_is_422_with_a_reason(http, body):
    response = http.post("/recommend", json=body)
    assert response.status_code == 422
    assert set(response.json()) == {"detail"}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"user_id":5,"scene":"\\ud800"}', b"[" * 100_000, b'{"events":{}}', b"NaN"])
@pytest.mark.parametrize("path", ["/recommend", "/events"])
def test_what_is_no_json_is_422_too(http, path, body):
    response = http.post(path, content=body)
    assert response.status_code == 422
    assert isinstance(response.json()["detail"], str)


@pytest.mark.parametrize("path", ["/recommend", "/events"])
def test_a_body_that_is_too_large_is_413(http, path):
    response = http.post(path, content=b" " * (BODY_BYTES + 1))
    assert response.status_code == 413
    assert set(response.json()) == {"detail"}


def test_a_path_that_does_not_exist_is_404_and_a_method_that_does_not_405(http):
    assert (http.get("/nowhere").status_code, set(http.get("/nowhere").json())) == (404, {"detail"})
    assert (http.get("/recommend").status_code, set(http.get("/recommend").json())) == (405, {"detail"})


def test_fields_that_nobody_knows_are_tolerated(http):
    assert ask(http, colour="green", metadata={"campaign": 7}).status_code == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
requests = st.fixed_dictionaries(
    {},
    optional={
        "user_id": st.integers(-1, 2**64) | json_values,
        "scene": st.text(max_size=70) | json_values,
        "count": st.integers(-2, 120) | json_values,
        "exclude": st.lists(st.integers(90, 200), max_size=100) | json_values,
        "deadline_ms": st.integers(-5, 70_000) | json_values,
        "request_id": st.text(max_size=300) | json_values,
        "metadata": json_values,
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests | json_values)
def test_any_request_gets_a_feed_or_a_reason(http, body):
    response = http.post("/recommend", json=body)
    assert response.status_code in (200, 422)
    if response.status_code == 422:
        assert isinstance(response.json()["detail"], str)
        return
    items = [item["item_id"] for item in response.json()["items"]]
    assert len(items) == len(set(items)) <= body.get("count", 10)
    assert not set(items) & set(body.get("exclude") or ())


def test_good_events_reach_their_topics_and_bad_ones_come_back_with_reasons(http, world):
    bad = [
        {**WATCH, "play_ms": -1},
        {**CLICK, "schema": "engagement/9"},
        {**CLICK, "topic": "samples"},
        {**CLICK, "ts": NOW + 3 * 86_400_000},
        {**CLICK, "user_id": None},
        {"topic": "engagements", "schema": "heartbeat/1", "event_id": "h", "user_id": -1, "ts": NOW},
        7,
    ]
    response = http.post("/events", json={"events": [CLICK, *bad, WATCH]})
    assert response.status_code == 202
    answer = response.json()
    assert answer["accepted"] == 2
    assert [one["index"] for one in answer["rejected"]] == list(range(1, 8))
    assert "play_ms" in answer["rejected"][0]["reason"]
    assert [(topic, key) for topic, key, _ in world.confirmed.sent] == [("engagements", b"5"), ("watches", b"5")]
    assert msgspec.json.decode(world.confirmed.topic("watches")[0], type=records.Watch).play_ms == 4_000


def test_half_a_surrogate_pair_in_one_event_rejects_no_other(http, world):
    body = msgspec.json.encode({"events": [CLICK, {**CLICK, "event_id": "@"}, WATCH]}).replace(b'"@"', b'"\\ud83d"')
    answer = http.post("/events", content=body)
    assert answer.status_code == 202
    assert (answer.json()["accepted"], [one["index"] for one in answer.json()["rejected"]]) == (2, [1])
    assert [topic for topic, _, _ in world.confirmed.sent] == ["engagements", "watches"]


@pytest.mark.parametrize(
    "times",
    [
        {"ts": NOW - 8 * 86_400_000},
        {"ts": NOW + 2 * 86_400_000, "impression_ts": NOW + 2 * 86_400_000},
        {"impression_ts": NOW - 8 * 86_400_000},
        {"impression_ts": NOW + 2 * 86_400_000},
    ],
)
def test_an_event_that_would_be_a_dead_letter_for_its_times_is_rejected_at_once(http, world, times):
    answer = http.post("/events", json={"events": [{**CLICK, **times}, CLICK]}).json()
    assert [(one["index"], "implausible time" in one["reason"]) for one in answer["rejected"]] == [(0, True)]
    assert len(world.confirmed.sent) == 1


def test_an_event_that_kafka_does_not_take_is_rejected_not_lost(http, world):
    world.confirmed.error = "broker transport failure"
    answer = http.post("/events", json={"events": [CLICK]}).json()
    assert answer["accepted"] == 0
    assert "send it again" in answer["rejected"][0]["reason"]
    world.confirmed.error, world.confirmed.full = None, True
    assert "full" in http.post("/events", json={"events": [CLICK]}).json()["rejected"][0]["reason"]


fields = ["topic", "schema", "event_id", "user_id", "ts", "impression_id", "impression_ts", "kind", "play_ms", "duration_ms"]
values = json_values | st.sampled_from(["engagements", "watches", "engagement/1", "click"])
events = st.lists(st.dictionaries(st.sampled_from(fields), values) | json_values | st.just(CLICK), max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events)
def test_any_event_is_accepted_or_rejected_by_its_index(http, posted):
    response = http.post("/events", json={"events": posted})
    assert response.status_code == 202
    rejected = [one["index"] for one in response.json()["rejected"]]
    assert response.json()["accepted"] + len(rejected) == len(posted)
    assert [index for index, event in enumerate(posted) if event == CLICK and index in rejected] == []


def test_a_video_is_served_whole_or_by_ranges(http, world):
    (world.videos / "a.mp4").write_bytes(bytes(range(256)))
    whole = http.get("/videos/a.mp4")
    assert (whole.status_code, whole.headers["content-type"], len(whole.content)) == (200, "video/mp4", 256)
    part = http.get("/videos/a.mp4", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, bytes(range(10, 20)), "bytes 10-19/256")
    assert http.get("/videos/a.mp4", headers={"Range": "bytes=-6"}).content == bytes(range(250, 256))
    assert http.get("/videos/a.mp4", headers={"Range": "bytes=5-9,300-"}).content == bytes(range(5, 10))
    assert http.head("/videos/a.mp4").headers["content-length"] == "256"


def test_a_range_outside_the_video_is_416_and_one_that_cannot_be_read_is_ignored(http, world):
    (world.videos / "a.mp4").write_bytes(bytes(range(256)))
    outside = http.get("/videos/a.mp4", headers={"Range": "bytes=300-"})
    assert (outside.status_code, set(outside.json()), outside.headers["content-range"]) == (416, {"detail"}, "bytes */256")
    for header in ("lines=1-2", "bytes=20-10"):
        assert http.get("/videos/a.mp4", headers={"Range": header}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics"])
def test_what_can_be_read_can_be_asked_for_without_its_body(http, path):
    head = http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == http.get(path).headers["content-type"]


@pytest.mark.parametrize("name", ["none.mp4", "..%2Fsecret.mp4", "%2e%2e%2fsecret.mp4", ".hidden.mp4", "a%00.mp4", "link.mp4", "x" * 5_000])
def test_nothing_but_videos_can_be_had(http, world, name):
    (world.videos.parent / "secret.mp4").write_bytes(b"secret")
    (world.videos / ".hidden.mp4").write_bytes(b"half done")
    (world.videos / "link.mp4").symlink_to(world.videos.parent / "secret.mp4")
    response = http.get(f"/videos/{name}")
    assert response.status_code == 404
    assert set(response.json()) == {"detail"}


def test_metrics_tell_requests_cases_and_degradations(http, world):
    ask(http)
    world.cache.gone = True
    ask(http)
    http.get("/nowhere")
    lines = http.get("/metrics").text.splitlines()
    assert 'sidstream_requests_total{path="/recommend",status="200"} 2.0' in lines
    assert 'sidstream_degraded_total{reason="cache"} 1.0' in lines
    assert "sidstream_recommend_seconds_count 2.0" in lines
    assert 'sidstream_requests_total{path="other",status="404"} 1.0' in lines
    cases = sum(float(line.split()[-1]) for line in lines if line.startswith("sidstream_cases_total"))
    assert cases == 10


def test_metrics_tell_of_every_rung_how_often_it_was_used_what_it_costs_and_keeps_and_whether_it_is_allowed(http, world):
    for user in range(3):
        ask(http, user_id=user)
    world.batcher.stop()
    world.agreement.evidence[1:] = [Evidence(0.75, 30), Evidence(0.95, 40)]
    lines = http.get("/metrics").text.splitlines()
    told = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("sidstream_search")}
    for widths, facts in {"16-16-16-16": (1.0, 100, 1), "8-12-16-16": (0.75, 30, 0), "8-8-8-16": (0.95, 40, 1)}.items():
        for fact, value in zip(("agreement", "samples", "allowed"), facts, strict=True):
            assert told[f'sidstream_search_{fact}{{widths="{widths}"}}'] == value
        assert 0 < told[f'sidstream_search_milliseconds{{widths="{widths}"}}'] < 1_000
    assert told['sidstream_searches_total{widths="16-16-16-16"}'] == 3


def test_the_interface_describes_itself(http):
    document = http.get("/openapi.json").json()
    assert {"/recommend", "/events", "/videos/{name}", "/healthz", "/readyz", "/metrics"} <= set(document["paths"])
    assert "user_id" in document["components"]["schemas"]["Request"]["properties"]
    operations = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(operations) == len(set(operations)), "a client is generated from these ids"
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json() == {
        "status": "ready",
        "model_version": "v00000001",
        "bundle_version": "sid-fake",
        "missing": [],
    }
