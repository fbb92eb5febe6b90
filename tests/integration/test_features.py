"""Events in, online values out: real Kafka, Flink and Redis, read by the plain Feast SDK, compared with a recomputation in plain Python."""

from __future__ import annotations

import bisect
import json
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from features import compile as compiler
from features import repository
from features.layout import ViewLayout, layout_of
from features.reader import FeatureReader, Unreadable
from features.view import Feature
from features.writer import FeatureWriter, Row
from jobs.features import changes
from jobs.process import read_json, read_ready
from streaming import kafka, records, topics
from streaming.heartbeat import Heartbeats, partitions
from tests.conftest import Services, await_true, process

pytestmark = pytest.mark.integration
LOG_START = 1_650_000_000_000
WINDOWS_MS = {"5m": 300_000, "1h": 3_600_000, "24h": 86_400_000}
DISORDER_MS = 500
COUNTERS = ViewLayout("counters", "item_id", (Feature("clicks", "Int64"), Feature("mean", "Float64")), packed=True)


def test_our_writer_leaves_the_bytes_that_feast_leaves(redis_url: str, tmp_path: Path) -> None:
    import pandas as pd

    ours_url, theirs_url = (redis_url.rsplit("/", 1)[0] + f"/{db}" for db in (7, 8))
    repository.render(tmp_path, theirs_url)
    repository.apply(tmp_path)
    values: dict[str, dict[str, Any]] = {
        "user_counters": {"user_id": 12, "likes_5m": 0, "play_ms_24h": -1, "clicks_1h": 300},
        "item_counters": {"item_id": -(2**62), "clicks_5m": 2**40, "mean_play_ms_5m": 0.0, "mean_play_ms_1h": 1 / 3},
        "user_history": {"user_id": 12, "entries": '[{"item_id": 4, "ts": 1, "play_ms": null, "kinds": ["like"]}]'},
    }
    ours, theirs = Redis.from_url(ours_url), Redis.from_url(theirs_url)
    store = repository.store(tmp_path)
    views = repository.registered_views(tmp_path)
    writer = FeatureWriter(ours, repository.PROJECT, [layout_of(view) for view in views])
    for view in views:
        row = values[view.name]
        known = [feature.name for feature in view.features if feature.name in row]
        stamp = pd.Timestamp(LOG_START + 123, unit="ms", tz="UTC")
        filled = {feature.name: row.get(feature.name, 7) for feature in view.features}
        assert known
        store.write_to_online_store(view.name, pd.DataFrame([{view.join_key: row[view.join_key], "event_timestamp": stamp, **filled}]))
        mine = tuple(v.encode() if isinstance(v, str) else v for v in filled.values())
        writer.write({view.name: [Row(row[view.join_key], LOG_START + 123, mine)]})
    keys = sorted(key for key in theirs.scan_iter() if key.endswith(repository.PROJECT.encode()))
    assert len(keys) == 2
    for key in keys:
        assert ours.hgetall(key) == theirs.hgetall(key)


def test_the_example_of_the_features_page_compiles_and_changes_only_what_it_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "features.md").read_text()
    example = textwrap.dedent(page.split("```python\n")[1].split("```")[0])
    mine = tmp_path / "mine.py"
    mine.write_text(repository.DEFINITIONS.read_text() + "\n" + example)
    shipped, with_example = repository.defined_views(), repository.defined_views(mine)
    assert changes(shipped, with_example) == ["  + user_social: 3 features by user_id"]
    (social,) = [view for view in with_example if view.name == "user_social"]
    assert "MAX(`play_ms`) OVER w AS `longest_play_ms_1h`" in compiler.query(social, 50)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.sampled_from([0, 999, 1000, 1001, 2500]), st.integers(0, 9)), min_size=1),
    st.integers(0, 2**32),
)
def test_an_older_value_never_overwrites_a_newer_one(redis_url: str, rows: list[tuple[int, int, int, int]], seed: int) -> None:
    client = Redis.from_url(redis_url.rsplit("/", 1)[0] + "/9")
    client.flushdb()
    writers = [FeatureWriter(client, "p", [COUNTERS]) for _ in range(2)]
    latest: dict[int, tuple[int, int]] = {}
    chance = random.Random(seed)
    for entity, second, ms, clicks in rows:
        stamp = LOG_START + second * 1000 + ms
        chance.choice(writers).write({"counters": [Row(entity, stamp, (clicks, None))]})
        if entity not in latest or stamp >= latest[entity][0]:
            latest[entity] = (stamp, clicks)
    reader = FeatureReader(redis_url.rsplit("/", 1)[0] + "/9", "p")
    for values in (reader.items(sorted(latest), "counters"), reader.users(sorted(latest), "counters")):
        assert values.event_timestamp.tolist() == [latest[entity][0] for entity in sorted(latest)]
        assert values.column("clicks").tolist() == [latest[entity][1] for entity in sorted(latest)]


def test_unknown_entities_are_unknown_and_not_zero(redis_url: str) -> None:
    url = redis_url.rsplit("/", 1)[0] + "/9"
    FeatureWriter(Redis.from_url(url), "unknown", [COUNTERS]).write({"counters": [Row(5, LOG_START, (0, None))]})
    values = FeatureReader(url, "unknown").items([5, 6], "counters")
    assert values.known.tolist() == [True, False]
    assert str(values.values.tolist()) == "[[0.0, nan], [nan, nan]]"
    with pytest.raises(Unreadable, match="no layout of item_counters"):
        FeatureReader(url, "unknown").items([5])
    assert FeatureReader(url, "unknown").history(5) == []


@dataclass
class Log:
    """Events as sent: topic, record, append time in ms."""

    producer: Producer
    beats: Heartbeats
    sent: list[tuple[str, records.Event, int]]

    def send(self, topic: str, event: records.Event, appended: int, copies: int = 1) -> None:
        for _ in range(copies):
            self.producer.produce(topic, msgspec.json.encode(event), str(event.user_id), timestamp=appended)
        self.sent.append((topic, event, appended))

    def beat(self, now: int) -> None:
        self.beats.send(now, now)


def traffic(log: Log, start: int, impressions: int, chance: random.Random) -> int:
    """Impressions with their labels in the order of their append; returns the clock's end.

    Some are late, some impressions come behind their labels, some events come twice, some are garbage.
    """
    waiting: list[tuple[int, int, str, records.Event]] = []
    for n in range(impressions):
        ts = start + n * 1500
        user, item, name = chance.randrange(25), chance.choice([*range(20), -7]), f"i{start}-{n}"
        common = {"user_id": user, "impression_id": name}
        shown = records.Impression(
            event_id=f"{name}:e", ts=ts, request_id=name, item_id=item, position=0, scene="main", duration_ms=20_000, **common
        )
        happened: list[tuple[str, records.Event]] = [(topics.IMPRESSIONS, shown)]
        label: dict[str, Any] = {**common, "impression_ts": ts}
        for kind in ("click", "like"):
            if chance.random() < 0.5:
                at = ts + chance.choice([0, 0, 700, 4000])
                happened.append((topics.ENGAGEMENTS, records.Engagement(event_id=f"{name}:{kind}", ts=at, kind=kind, **label)))  # type: ignore[arg-type]
        if chance.random() < 0.8:
            play = chance.choice([0, 700, 17_999, 18_000, 40_000])
            watch = records.Watch(
                event_id=f"{name}:w", ts=ts + play // 4, play_ms=play, duration_ms=chance.choice([0, 5000, 60_000]), **label
            )
            happened.append((topics.WATCHES, watch))
        for order, (topic, event) in enumerate(happened):
            late = chance.choice([0, 0, 0, 200, 90_000]) if order else chance.choice([0, 0, 0, 0, 2500, 60_000])
            waiting.append((event.ts + late, len(waiting), topic, event))
    for appended, _, topic, event in sorted(waiting):
        log.send(topic, event, appended, copies=chance.choice([1, 1, 1, 2]))
        if chance.random() < 0.3:
            log.beat(appended)
        if chance.random() < 0.05:
            for body in (b"\xff", b"{", b'{"schema": "watch/1", "user_id": -5}'):
                log.producer.produce(topic, body, timestamp=appended)
    orphan = records.Engagement(event_id=f"o{start}", ts=start, kind="like", user_id=1, impression_id="nobody", impression_ts=start)
    log.producer.produce(topics.ENGAGEMENTS, msgspec.json.encode(orphan), "1", timestamp=start)
    end = max(appended for appended, *_ in waiting)
    for ahead in range(0, 5000, 500):
        log.beat(end + ahead)
    log.producer.flush()
    return end + 5000


def recomputed(sent: list[tuple[str, records.Event, int]]) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
    """Features of users and items from what was sent, by counting."""
    shown = {event.impression_id: event for topic, event, _ in sent if isinstance(event, records.Impression)}
    known_from = {event.impression_id: max(event.ts, at - DISORDER_MS) for _, event, at in sent if isinstance(event, records.Impression)}
    rows: list[tuple[int, int, int, dict[str, Any]]] = []
    for _, event, appended in sent:
        known = max(event.ts, appended - DISORDER_MS)
        one: dict[str, Any] = {}
        if isinstance(event, records.Impression):
            one = {"impressions": 1}
            item = event.item_id
        else:
            item = shown[event.impression_id].item_id  # type: ignore[attr-defined]
            known = max(known, known_from[event.impression_id])  # type: ignore[attr-defined]
            entry = {"known_at": known, "ts": event.ts, "item_id": item, "play_ms": None, "kinds": []}
            if isinstance(event, records.Watch):
                long = event.play_ms >= min(18_000, event.duration_ms or 18_000)
                one = {"play_ms": event.play_ms, "long_views": int(long), "entry": {**entry, "play_ms": event.play_ms}}
            elif isinstance(event, records.Engagement):
                one = {f"{event.kind}s": 1, "entry": {**entry, "kinds": [event.kind]}}
        rows.append((known, event.user_id, item, one))
    rows.sort(key=lambda row: row[0])
    users, items = defaultdict(list), defaultdict(list)
    for known, user, item, one in rows:
        users[user].append((known, one))
        items[item].append((known, one))
    return {user: values(happened) for user, happened in users.items()}, {item: values(happened) for item, happened in items.items()}


def values(happened: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    """Features as of the last of these rows."""
    end, times = happened[-1][0], [known for known, _ in happened]
    found: dict[str, Any] = {"as_of": end}
    for label, reach in WINDOWS_MS.items():
        inside = [one for _, one in happened[bisect.bisect_left(times, end - reach) :]]
        for name in ("impressions", "clicks", "likes", "long_views", "play_ms"):
            found[f"{name}_{label}"] = sum(one.get(name, 0) for one in inside)
        plays = [one["play_ms"] for one in inside if "play_ms" in one]
        found[f"mean_play_ms_{label}"] = sum(plays) / len(plays) if plays else None
    texts = sorted((json.dumps(one["entry"], separators=(",", ":")) for _, one in happened if "entry" in one), reverse=True)
    found["entries"] = [json.loads(text) for text in texts[:50]]
    return found


@dataclass
class Running:
    """A system with its features job and writer, and the traffic sent to it."""

    services: Services
    log: Log

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-W", "ignore", "-m", "jobs.cli", "features", *arguments]

    def call(self, *arguments: str) -> str:
        done = subprocess.run(self.command(*arguments), env=self.services.environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def caught_up(self, until: int) -> bool:
        """Whether a heartbeat behind `until` has come through Flink and everything before it is in Redis."""
        report = read_json(self.services.home / "run" / "writer.json")
        return bool(report) and not any(report["lag"].values()) and self.newest_beat() > until

    def newest_beat(self) -> int:
        reader = kafka.consumer(self.services.kafka, f"beats-{time.time()}", [topics.feature_topic("user_history")])
        newest, idle = 0, 0
        try:
            while idle < 2:
                messages = reader.consume(5000, 1.0)
                idle = 0 if messages else idle + 1
                for message in messages:
                    row = json.loads(message.value() or b"{}")
                    newest = max(newest, row["event_timestamp"] if row["user_id"] == -1 else 0)
        finally:
            reader.close()
        return newest


@pytest.fixture
def running(services: Services) -> Iterator[Running]:
    views = ["user_counters", "item_counters", "user_history"]
    topics.create(services.kafka, topics.specs(partitions=2, retention_ms=-1, retention_bytes=-1, views=views))
    producer = kafka.producer(services.kafka)
    yield Running(services, Log(producer, Heartbeats(producer, partitions(services.kafka)), []))


def check_online(running: Running, seconds: float = 30) -> None:
    """Every online value is soon the recomputed one: a heartbeat has come through one view, the others may be a moment behind."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            compare_online(running)
            return
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def compare_online(running: Running) -> None:
    """Every online value, read by the Feast SDK and by our reader, is the recomputed one."""
    from feast import FeatureStore

    users, items = recomputed(running.log.sent)
    store = FeatureStore(repo_path=str(running.services.home / "feature_repo"))
    service = store.get_feature_service("recommendation")
    assert {projection.name for projection in service.feature_view_projections} == {"user_counters", "item_counters", "user_history"}
    reader = FeatureReader(running.services.redis_url)
    for key, expected, views in (("user_id", users, ("user_counters", "user_history")), ("item_id", items, ("item_counters",))):
        entities = sorted(expected)
        refs = [f"{v.name}:{f.name}" for v in repository.registered_views(Path(store.repo_path)) if v.name in views for f in v.features]
        found = store.get_online_features(refs, [{key: entity} for entity in entities]).to_dict()
        for index, entity in enumerate(entities):
            for ref in refs:
                name = ref.split(":")[1]
                got, want = found[name][index], expected[entity][name]
                if name == "entries":
                    assert (json.loads(got) if isinstance(got, str) else got) == want, f"{key} {entity} {name}"
                else:
                    assert got == pytest.approx(want), f"{key} {entity} {name}"
    packed = reader.items(sorted(items))
    assert packed.event_timestamp.tolist() == [items[item]["as_of"] for item in sorted(items)]
    assert packed.column("clicks_24h").tolist() == [items[item]["clicks_24h"] for item in sorted(items)]
    counted = reader.users(sorted(users))
    assert counted.event_timestamp.tolist() == [users[user]["as_of"] for user in sorted(users)]
    assert [entry.ts for entry in reader.history(sorted(users)[0])] == [entry["ts"] for entry in users[sorted(users)[0]]["entries"]]


def test_online_values_survive_kills_and_equal_recomputation_and_backfill(running: Running) -> None:
    home, environment = running.services.home, running.services.environment
    chance = random.Random(20)
    assert "user_history: 1 features by user_id" in running.call("apply")
    end = traffic(running.log, LOG_START, 200, chance)
    with (
        process(running.command("write"), home / "writer-1.log", environment) as writer,
        process(running.command("run"), home / "flink-1.log", environment) as job,
    ):
        await_true(lambda: bool(read_ready(home, "flink-features")), "features job", 300, job)
        await_true(lambda: running.caught_up(end - 2000), "first values", 180, job)
        check_online(running)
        await_true(lambda: any((home / "flink/features/checkpoints").glob("*/chk-*/_metadata")), "checkpoint", 180, job)
        end = traffic(running.log, end + 1000, 150, chance)
        job.send_signal(signal.SIGKILL)
        writer.send_signal(signal.SIGKILL)
        job.wait()
        writer.wait()
    end = traffic(running.log, end + 400_000, 150, chance)
    (home / "run" / "flink-features.ready").unlink()
    with (
        process(running.command("write"), home / "writer-2.log", environment),
        process(running.command("run"), home / "flink-2.log", environment) as job,
    ):
        await_true(lambda: running.caught_up(end - 2000), "values after the kill", 300, job)
        assert "resumed_from=None" not in (home / "flink-2.log").read_text()
        check_online(running)
        assert running.call("plan").count("nothing changes") == 2
        Redis.from_url(running.services.redis_url).flushdb()
        await_true(lambda: bool(FeatureReader(running.services.redis_url).history(1)), "values after Redis lost all", 180)
        await_true(lambda: running.caught_up(end - 2000), "values after Redis lost all", 180, job)
        check_online(running)
        report = running.call("verify")
        assert "user_history" in report
    historical_equals_online(running)


def historical_equals_online(running: Running) -> None:
    """Backfilled Parquet, read by Feast's point-in-time join, has at the end of the log what is online."""
    import pandas as pd
    from feast import FeatureStore

    home = running.services.home
    log = home / "history"
    log.mkdir()
    for topic in topics.EVENT_TOPICS:
        lines = [{**msgspec.to_builtins(event), "appended": at} for name, event, at in running.log.sent if name == topic]
        (log / f"{topic}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "item_counters.parquet" in running.call("backfill", "--log", str(log))
    users, _ = recomputed(running.log.sent)
    store = FeatureStore(repo_path=str(home / "feature_repo"))
    asked = pd.DataFrame({"user_id": sorted(users), "event_timestamp": pd.Timestamp(LOG_START + 10_000_000, unit="ms", tz="UTC")})
    found = store.get_historical_features(asked, ["user_counters:clicks_24h", "user_history:entries"]).to_df().set_index("user_id")
    assert found["clicks_24h"].to_dict() == {user: values["clicks_24h"] for user, values in users.items()}
    assert {user: json.loads(text) for user, text in found["entries"].items()} == {user: v["entries"] for user, v in users.items()}
