"""One run of the samples job and the inspector on a real broker, with everything in it that can go wrong in a stream.

The log's clock runs from START; nothing here depends on the wall clock. Tests look at what came out.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition

from streaming import records, topics
from streaming.heartbeat import Heartbeats, partitions
from tests.conftest import running_broker

START = 1_650_000_000_000
LABEL_MS, DISORDER_MS, ATTRIBUTION_MS = 60_000, 5_000, 7_200_000
HOUR_MS = 3_600_000
ROOT = Path(__file__).parents[2]


def impression(number: int, ts: int, user: int | None = None, **fields: Any) -> records.Impression:
    defaults = {"event_id": f"i{number}", "request_id": f"r{number}", "item_id": 1000 + number, "position": 0, "scene": "feed"}
    fields = {**defaults, "impression_id": f"imp{number}", "duration_ms": 30_000, **fields}
    return records.Impression(user_id=number % 10 if user is None else user, ts=ts, **fields)


def of(shown: records.Impression, **fields: Any) -> dict[str, Any]:
    return {"user_id": shown.user_id, "impression_id": shown.impression_id, "impression_ts": shown.ts, **fields}


def engagement(shown: records.Impression, after_ms: int, kind: str = "click", event_id: str | None = None) -> records.Engagement:
    identity = event_id or f"{kind}-{shown.impression_id}"
    return records.Engagement(**of(shown, event_id=identity, ts=shown.ts + after_ms, kind=kind))


def watch(shown: records.Impression, after_ms: int, play_ms: int, event_id: str | None = None) -> records.Watch:
    identity = event_id or f"watch-{shown.impression_id}"
    return records.Watch(**of(shown, event_id=identity, ts=shown.ts + after_ms, play_ms=play_ms, duration_ms=shown.duration_ms))


def conversion(shown: records.Impression, after_ms: int, value: float) -> records.Conversion:
    return records.Conversion(**of(shown, event_id=f"buy-{shown.impression_id}", ts=shown.ts + after_ms, value=value, currency="EUR"))


@dataclass
class Reader:
    """Every committed record of a topic, as far as it was read."""

    client: dict[str, Any]
    topic: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = {"group.id": "reader", "enable.auto.commit": False, "isolation.level": "read_committed"}
        self._consumer = Consumer({**self.client, **settings})
        count = len(self._consumer.list_topics(self.topic, timeout=10).topics[self.topic].partitions)
        self._consumer.assign([TopicPartition(self.topic, p, 0) for p in range(count)])

    def read(self, seconds: float = 0.2) -> list[dict[str, Any]]:
        for message in self._consumer.consume(10_000, seconds):
            if message.error() is None:
                place = {"_partition": message.partition(), "_offset": message.offset(), "_wall": time.time(), "_key": message.key()}
                self.rows.append({**json.loads(message.value() or b"{}"), **place})
        return self.rows

    def close(self) -> None:
        self._consumer.close()

    def wait(self, condition: Callable[[list[dict[str, Any]]], bool], what: str, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not condition(self.read()):
            assert time.monotonic() < deadline, f"{what}: not within {seconds} s; {len(self.rows)} rows of {self.topic}"


class Stream:
    """A broker with the system's topics, a home, and the processes under test."""

    def __init__(self, client: dict[str, Any], home: Path, **samples: float) -> None:
        self.client, self.home = client, home
        home.mkdir(parents=True, exist_ok=True)
        wanted = topics.specs(partitions=2, retention_ms=-1, retention_bytes=-1, views=["user_history"])
        topics.create(client, wanted)
        self.config = home / "config.json"  # JSON is YAML
        settings = {
            "kafka": {"bootstrap": client["bootstrap.servers"]},
            "redis": {"url": "redis://127.0.0.1:1/0"},
            "flink": {"heap_mb": 512},
            "samples": {"label_window_s": LABEL_MS / 1000, "attribution_window_s": ATTRIBUTION_MS / 1000, "disorder_s": DISORDER_MS / 1000}
            | samples,
        }
        self.config.write_text(json.dumps(settings))
        self.producer = Producer({**client, "enable.idempotence": True, "linger.ms": 5, "log_level": 0})
        self.beats = Heartbeats(self.producer, partitions(client))
        self.samples, self.letters = Reader(client, topics.SAMPLES), Reader(client, topics.DEAD_LETTERS)
        self.raw: dict[tuple[str, int, int], bytes | None] = {}
        self.children: list[subprocess.Popen[bytes]] = []

    def send(self, topic: str, record: msgspec.Struct | bytes | None, appended: int | None = None, partition: int | None = None) -> None:
        """Send a record, appended at its own time unless told otherwise; faulty bytes are remembered by their place."""
        body = records.encode(record) if isinstance(record, msgspec.Struct) else record
        ts = appended if appended is not None else getattr(record, "ts", START)
        key = str(record.user_id) if isinstance(record, records.Event) else None

        def delivered(error: Any, message: Any) -> None:
            assert error is None, error
            self.raw[message.topic(), message.partition(), message.offset()] = message.value()

        place: dict[str, Any] = {} if partition is None else {"partition": partition}
        self.producer.produce(topic, body, key, timestamp=ts, on_delivery=delivered, **place)
        self.producer.poll(0)

    def history(self, user: int, ts: int, *items: int) -> None:
        entries = [{"item_id": item, "ts": ts, "play_ms": None, "kinds": ["click"]} for item in items]
        body = {"user_id": user, "event_timestamp": ts, "entries": entries}
        self.producer.produce(topics.feature_topic("user_history"), json.dumps(body), str(user))

    def clock(self, ts: int) -> None:
        """The log's clock stands at `ts`, as the replay and the features job say it."""
        self.producer.flush()
        self.beats.send(ts, ts)
        self.history(-1, ts)
        self.producer.flush()

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.home / f"{arguments[0]}.log").open("ab")
        command = [sys.executable, "-m", "jobs.cli", *arguments, "--config", str(self.config)]
        environment = {**os.environ, "SIDSTREAM_HOME": str(self.home)}
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.children.append(child)
        return child

    def kill(self, child: subprocess.Popen[bytes]) -> None:
        child.send_signal(signal.SIGKILL)
        child.wait(10)

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text()[-3000:]

    def initial_ids(self) -> set[str]:
        return {row["impression_id"] for row in self.samples.rows if row["kind"] == "initial"}


@contextmanager
def stream(folder: Path, **samples: float) -> Iterator[Stream]:
    with ExitStack() as stack:
        here = Stream(stack.enter_context(running_broker(folder / "broker")), folder / "home", **samples)
        try:
            yield here
        finally:
            here.samples.close()
            here.letters.close()
            for child in here.children:
                if child.poll() is None:
                    child.kill()
                    child.wait()
