"""A log replayed into a real broker: every event once, in order, with the log's own times, also across a kill."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from jobs import audit
from jobs.replay import ends_of
from streaming import topics
from streaming.sources.kuairand_events import events, exposures
from tests.conftest import Services, await_true

pytestmark = pytest.mark.integration
T0 = 1_650_812_741_436
ROWS = 4_000
COLUMNS = [
    "user_id", "video_id", "date", "hourmin", "time_ms", "is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate",
    "long_view", "play_time_ms", "duration_ms", "profile_stay_time", "comment_stay_time", "is_profile_enter", "is_rand", "tab",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A log of two days in the publisher's layout."""
    rng = random.Random(4)
    rows = []
    for n in range(ROWS):
        play = rng.choice((0, 3_000, 25_000, 150_000))
        values = {"user_id": rng.randrange(300), "video_id": rng.randrange(80), "time_ms": T0 + n * 43_200, "play_time_ms": play}
        values |= {"duration_ms": 40_000, "is_click": int(play > 0), "is_like": int(rng.random() < 0.05), "tab": 1}
        rows.append(",".join(str(values.get(name, 0)) for name in COLUMNS))
    path = tmp_path / "kuairand"
    path.mkdir()
    (path / "log_standard_5_06_to_5_08_pure.csv").write_text("\n".join((",".join(COLUMNS), *rows)) + "\n")
    return path


@pytest.fixture
def ready(services: Services):
    """A home with its broker and the event topics."""
    wanted = topics.specs(partitions=2, retention_ms=-1, retention_bytes=-1, views=[])
    topics.create(services.kafka, wanted)
    return services


def replay(home: Services, folder, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "jobs.cli", "replay", "--source", "kuairand", "--dir", str(folder), *more]
    return subprocess.Popen(command, env=home.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def raws(home: Services):
    return [raw for topic in topics.EVENT_TOPICS for raw in audit.read_topic(home.kafka, topic)]


def length(home: Services) -> int:
    """Records in the event topics."""
    return sum(sum(ends.values()) for ends in ends_of(home.kafka, dict.fromkeys(topics.EVENT_TOPICS, 2)).values())


def check(home: Services, folder):
    """Every event of the log is there once, per partition in time order, and the clock has gone past the last one everywhere."""
    wanted = {item.event.event_id: item.ts for item in events(exposures(folder))}
    found, clocks = {}, {}
    for raw in raws(home):
        record = json.loads(raw.body)
        assert raw.appended == record["ts"]
        place = (raw.topic, raw.partition)
        assert record["ts"] >= clocks.get(place, 0), f"{place} goes back in time at offset {raw.offset}"
        clocks[place] = record["ts"]
        if record["schema"] != "heartbeat/1":
            assert record["event_id"] not in found
            found[record["event_id"]] = record["ts"]
    assert found == wanted
    assert len(clocks) == 2 * len(topics.EVENT_TOPICS)
    assert min(clocks.values()) > max(wanted.values()) + 60_000 + 5_000


def test_every_event_arrives_once_in_order_with_the_logs_times(ready, folder):
    child = replay(ready, folder)
    output, _ = child.communicate(timeout=120)
    assert child.returncode == 0, output
    check(ready, folder)
    again = replay(ready, folder)
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 2
    assert "--resume" in output.strip().splitlines()[-1]


def test_a_killed_replay_goes_on_without_loss_or_repetition(ready, folder):
    for _ in range(2):
        child = replay(ready, folder, "--speed", "6000", "--resume")
        before = length(ready)
        await_true(lambda before=before: length(ready) > before + 800, "events", 60, child)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    child = replay(ready, folder, "--resume")
    output, _ = child.communicate(timeout=120)
    assert child.returncode == 0, output
    check(ready, folder)


def test_a_stopped_replay_goes_on(ready, folder):
    child = replay(ready, folder, "--speed", "6000")
    await_true(lambda: length(ready) > 100, "events", 60, child)
    child.terminate()
    output, _ = child.communicate(timeout=30)
    assert child.returncode == 0, output
    child = replay(ready, folder, "--resume")
    output, _ = child.communicate(timeout=120)
    assert child.returncode == 0, output
    check(ready, folder)


def test_a_home_whose_clock_is_past_the_log_is_refused_in_one_line(ready, folder):
    from streaming.heartbeat import Heartbeats, partitions
    from streaming.kafka import producer

    # A live home: heartbeats follow each other while its clock is read, and anybody's bytes lie among them.
    sender, over = producer(ready.kafka), threading.Event()
    sender.produce(topics.WATCHES, b"\xff no record", partition=0)
    beats = Heartbeats(sender, partitions(ready.kafka))

    def beat() -> None:
        while not over.wait(0.1):
            beats.send(int(time.time() * 1000))
            sender.flush()

    clock = threading.Thread(target=beat)
    clock.start()
    try:
        child = replay(ready, folder)
        output, _ = child.communicate(timeout=60)
    finally:
        over.set()
        clock.join()
    assert child.returncode == 2
    assert "the topics' clock stands at" in output.strip().splitlines()[-1]
    assert {json.loads(raw.body)["schema"] for raw in raws(ready) if raw.body != b"\xff no record"} == {"heartbeat/1"}


def test_another_replay_cannot_be_resumed(ready, folder):
    child = replay(ready, folder, "--to", "2022-04-25")
    child.communicate(timeout=60)
    assert child.returncode == 0
    child = replay(ready, folder, "--resume")
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 2
    assert "go on with the same --dir, --from and --to" in output
