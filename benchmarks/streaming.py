"""Replay → samples through Kafka and Flink, beside the raw Kafka read and beside chained interval joins, on the same topics.

    python -m benchmarks.streaming [--impressions N] [--dir KUAIRAND]

Every way reads the same bounded topics (KuaiRand's events, or synthetic ones) on the same machine, one after the other, in an order that is
reversed every other round. Seconds are net of a job that reads nothing, so that the start of the JVM does not count.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import OFFSET_BEGINNING, TopicPartition

from benchmarks import provenance
from jobs.local import jars, java, kafka, ports
from streaming import records, topics
from streaming.flink import environment, samples, tables
from streaming.heartbeat import Heartbeats, partitions
from streaming.kafka import consumer, producer, until_end
from streaming.sources import kuairand_events
from streaming.sources.kuairand_events import Timed

LABEL_S, DISORDER_S, ATTRIBUTION_S = 60.0, 5.0, 7 * 86_400.0
FLINK_WAYS = ("empty", "read", "window", "joins")


def synthetic(impressions: int) -> Iterator[Timed]:
    """20,000 users, 7,000 videos, 100 impressions a second of event time, 40% clicks, 90% watches; one seed."""
    rng, start = random.Random(0), 1_650_000_000_000
    for n in range(impressions):
        ts, user, play = start + n * 10, rng.randrange(20_000), rng.randrange(20_000)
        row = dict.fromkeys((*kuairand_events.ENGAGEMENTS, "is_click", "tab"), 0)
        row |= {"user_id": user, "video_id": rng.randrange(7_000), "time_ms": ts, "play_time_ms": play, "duration_ms": 20_000}
        row["is_click"] = rng.random() < 0.4
        for order, (topic, event) in enumerate(kuairand_events.derive(row, f"{user}-{n}")):
            yield Timed(event.ts, order, topic, event)


def fill(client: dict[str, Any], timed: Iterator[Timed]) -> int:
    """Send the events, with heartbeats, and close every window."""
    sender, encoder, count, last = producer(client), msgspec.json.Encoder(), 0, 0
    beats = Heartbeats(sender, partitions(client))
    for item in timed:
        while True:
            try:
                sender.produce(item.topic, encoder.encode(item.event), str(item.event.user_id), timestamp=item.ts)
                break
            except BufferError:
                sender.poll(0.1)
        count, last = count + 1, item.ts
        if count % 200 == 0:
            beats.send(last, last)
            sender.poll(0)
    sender.flush()
    beats.send(last + round((LABEL_S + DISORDER_S + 5) * 1000), last)
    sender.flush()
    return count


def read_raw(client: dict[str, Any]) -> float:
    """Seconds of a plain consumer over all event topics."""
    reader = consumer(client, f"raw-{time.time()}", topics.EVENT_TOPICS, enable_partition_eof=True)
    open_partitions, start = sum(partitions(client).values()), 0.0
    while open_partitions:
        messages = reader.consume(20_000, 1.0)
        start = start or time.perf_counter()
        open_partitions -= sum(message.error() is not None for message in messages)
    seconds = time.perf_counter() - start
    reader.close()
    return seconds


def joins(client: dict[str, Any], name: str) -> list[str]:
    """The usual way: a table a topic, two chained LEFT interval joins; the last statement is the INSERT."""
    bounded = {"scan.bounded.mode": "latest-offset"}
    every = {
        "impression": (topics.IMPRESSIONS, "item_id BIGINT"),
        "engagement": (topics.ENGAGEMENTS, "kind STRING"),
        "watch": (topics.WATCHES, "play_ms BIGINT"),
    }
    statements = [
        f"CREATE TABLE {table} (`schema` STRING, impression_id STRING, user_id BIGINT, ts BIGINT, {column}, rt AS TO_TIMESTAMP_LTZ(ts, 3), "
        f"WATERMARK FOR rt AS rt - {tables.interval(DISORDER_S)}) WITH ({tables.options(tables.source(client, name, [topic]) | bounded)})"
        for table, (topic, column) in every.items()
    ]
    sink = tables.options(tables.sink(client, "bench.joins", exactly_once="bench-joins"))
    columns = "impression_id STRING, user_id BIGINT, item_id BIGINT, click INT, play_ms BIGINT"
    statements.append(
        f"CREATE TABLE joined (key_user STRING, {columns}) WITH ({sink.rstrip()}, {tables.options(tables.keyed('key_user'))})"
    )
    window = f"i.rt AND i.rt + {tables.interval(LABEL_S)}"
    statements.append(
        "INSERT INTO joined SELECT CAST(i.user_id AS STRING), i.impression_id, i.user_id, i.item_id, "
        "CASE WHEN e.kind IS NULL THEN 0 ELSE 1 END, w.play_ms FROM (SELECT * FROM impression WHERE `schema` = 'impression/1') i "
        f"LEFT JOIN engagement e ON i.impression_id = e.impression_id AND e.rt BETWEEN {window} "
        f"LEFT JOIN watch w ON i.impression_id = w.impression_id AND w.rt BETWEEN {window}"
    )
    return statements


def flink(way: str, client: dict[str, Any], folder: Path) -> float:
    """Seconds of one bounded job, from its submission to its end, in this process."""
    cluster = environment.MiniCluster(way, folder, jars.paths("connector"), java_home=java.java_home(), checkpoint_ms=2000)
    session = environment.table_environment(cluster)
    bounded = {"scan.bounded.mode": "latest-offset"}
    name = f"bench-{way}-{time.time_ns()}"
    if way == "window":
        statements = samples.define(
            session.tables, client, samples.Windows(LABEL_S, ATTRIBUTION_S, DISORDER_S), name=name, history_idle_s=None, scan=bounded
        )
    elif way == "joins":
        *tables_sql, insert = joins(client, name)
        for statement in tables_sql:
            session.tables.execute_sql(statement)
        statements = session.tables.create_statement_set()
        statements.add_insert_sql(insert)
    else:
        scan = bounded if way == "read" else {**bounded, "scan.startup.mode": "latest-offset"}
        table = tables.event_table(
            client, name, row_time=tables.IMPRESSION_TIME, watermark_lag_s=65, attribution_s=ATTRIBUTION_S, scan=scan
        )
        session.tables.execute_sql(table)
        session.tables.execute_sql("CREATE TABLE nothing (impression_id STRING, ts BIGINT) WITH ('connector' = 'blackhole')")
        statements = session.tables.create_statement_set()
        statements.add_insert_sql("INSERT INTO nothing SELECT impression_id, ts FROM event WHERE usable")
    start = time.perf_counter()
    statements.execute().wait()
    return time.perf_counter() - start


def in_own_process(way: str, bootstrap: str, folder: Path) -> float:
    """A JVM's first job is a cold one for every way alike."""
    command = [sys.executable, "-m", "benchmarks.streaming", "--way", way, "--bootstrap", bootstrap, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{way}: {done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def initial_samples(client: dict[str, Any]) -> int:
    """Distinct impressions that have an initial sample."""
    reader = consumer(client, f"count-{time.time()}", [], enable_partition_eof=True)
    seen: set[str] = set()
    parts = reader.list_topics(topics.SAMPLES).topics[topics.SAMPLES].partitions
    for message in until_end(reader, [TopicPartition(topics.SAMPLES, number, OFFSET_BEGINNING) for number in parts]):
        sample = records.decode_sample(message.value() or b"")
        if sample.kind == "initial":
            seen.add(sample.impression_id)
    reader.close()
    return len(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impressions", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="folder of the KuaiRand-Pure files; without it, synthetic events")
    parser.add_argument("--report", type=Path, help="result file; default benchmarks/results/streaming.json")
    for hidden in ("--way", "--bootstrap", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        seconds = flink(given.way, {"bootstrap.servers": given.bootstrap}, Path(given.folder))
        print(json.dumps({"seconds": seconds}))
        return
    with tempfile.TemporaryDirectory(prefix="sidstream-bench-") as home:
        broker = kafka.Broker(Path(home) / "broker", ports.free_port(), ports.free_port())
        broker.prepare()
        log = (Path(home) / "broker.log").open("wb")
        process = subprocess.Popen(broker.command(), env=broker.environment(), stdout=log, stderr=log)
        try:
            client = {"bootstrap.servers": broker.address}
            while not kafka.healthy(client):
                time.sleep(0.2)
            result = measure(client, broker.address, Path(home), given)
        finally:
            process.terminate()
            process.wait(30)
    path = provenance.write("streaming", result, ("apache-flink", "confluent-kafka"), given.report)
    print(f"written: {path}")


def measure(client: dict[str, Any], bootstrap: str, home: Path, given: argparse.Namespace) -> dict[str, Any]:
    from confluent_kafka.admin import AdminClient, NewTopic

    names = [*topics.EVENT_TOPICS, topics.SAMPLES, topics.REJECTS, "bench.joins"]
    admin = AdminClient(client)
    for created in admin.create_topics([NewTopic(name, 2, 1, config={"retention.ms": "-1"}) for name in names]).values():
        created.result()
    rows = kuairand_events.exposures(given.dir) if given.dir else None
    timed = kuairand_events.events(rows, given.impressions) if rows else synthetic(given.impressions)
    start = time.perf_counter()
    count = fill(client, timed)
    filled = time.perf_counter() - start
    seconds: dict[str, list[float]] = {"raw": []} | {way: [] for way in FLINK_WAYS}
    for number in range(given.rounds):
        for way in FLINK_WAYS if number % 2 == 0 else reversed(FLINK_WAYS):
            seconds[way].append(in_own_process(way, bootstrap, home / f"flink-{way}-{number}"))
            print(f"round {number + 1}, {way}: {seconds[way][-1]:.1f} s with start-up", flush=True)
        seconds["raw"].append(read_raw(client))
    shown = min(given.impressions, len(rows)) if rows else given.impressions
    complete = initial_samples(client)
    median = {way: statistics.median(values) for way, values in seconds.items()}
    net = {way: median[way] - median["empty"] for way in ("read", "window", "joins")} | {"raw": median["raw"]}
    rate = {way: round(count / value) for way, value in net.items()}
    titles = {
        "raw": "Kafka, plain consumer",
        "read": "Flink, read only",
        "window": "samples job (no history)",
        "joins": "two chained interval joins",
    }
    print(f"\n{count:,} events of {shown:,} impressions; samples of {complete:,}; written at {count / filled:,.0f} events/s\n")
    for way, title in titles.items():
        print(f"{title:<30} {net[way]:7.1f} s net {rate[way]:>10,} events/s   {rate[way] / rate['raw']:.2f} of the plain read")
    return {
        "input": {"source": "kuairand" if rows else "synthetic", "impressions": shown, "events": count, "samples": complete},
        "seconds": seconds,
        "net_seconds": net,
        "events_per_s": rate,
        "ratios": {"window_to_joins": round(rate["window"] / rate["joins"], 3), "window_to_raw": round(rate["window"] / rate["raw"], 3)},
    }


if __name__ == "__main__":
    main()
