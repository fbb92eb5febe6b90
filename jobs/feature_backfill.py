"""Training data from a log, and the online values compared with it."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from confluent_kafka import TopicPartition

from features import backfill
from features import compile as compiler
from features.backfill import LogError
from features.view import View
from jobs.local import java
from jobs.process import Stop
from jobs.settings import ConfigError, Settings
from streaming import kafka, topics
from streaming.flink import environment

NAME = "features-backfill"
QUIET_S = 10.0  # a partition that yields nothing for so long is away

logger = logging.getLogger("sidstream.features")


class BackfillFailed(ConfigError):
    """The values could not be computed; the message says why."""


def compute(log: Path, views: Sequence[View], settings: Settings, work: Path, stop: Stop) -> Path:
    """Run the live job's SQL over a log; returns the folder of values.

    Raises:
        BackfillFailed: the log cannot be used, or Flink gave up.
    """
    ordered = work / "ordered.jsonl"
    try:
        done = backfill.order(log, ordered, round(settings.features.disorder_s * 1000))
    except LogError as error:
        raise BackfillFailed(str(error)) from error
    if done.skipped:
        logger.warning("event=skipped log=%s lines=%d reason=no_time", log, done.skipped)
    cluster = environment.MiniCluster(
        NAME,
        work / "flink",
        [],
        java_home=java.java_home(),
        heap_mb=settings.flink.heap_mb,
        checkpoint_ms=60_000,  # the last one, at the end, makes the files final
        exactly_once=False,
        options={"restart-strategy.type": "none", "execution.checkpointing.unaligned.enabled": "false"},
    )
    output = work / "values"

    def define() -> environment.Job:
        session = environment.table_environment(cluster)
        statements = compiler.define(
            session.tables,
            backfill.event_table(ordered, settings.features.disorder_s, settings.samples.attribution_window_s),
            [backfill.file_sink(view, output) for view in views],
            views,
            history=settings.features.history,
            lifetime_s=settings.features.lifetime_s,
        )
        return environment.submit(session, statements)

    job = environment.start(define, stop)
    if job is None:
        raise BackfillFailed("stopped")
    try:
        if job.wait_finished(stop):
            return output
    except environment.JobFailed as error:
        raise BackfillFailed(str(error)) from error
    job.cancel()
    raise BackfillFailed("stopped")


def run_backfill(log: Path, out: Path, views: Sequence[View], settings: Settings, stop: Stop) -> dict[str, int]:
    """Write `<out>/<view>.parquet` of every view; returns rows by view."""
    out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".backfill-", dir=out))
    try:
        folder = compute(log, views, settings, work, stop)
        return {view.name: backfill.write_parquet(view, backfill.values(view, folder), out / f"{view.name}.parquet") for view in views}
    finally:
        shutil.rmtree(work, ignore_errors=True)


def dump(client: Mapping[str, Any], folder: Path, stop: Stop) -> int:
    """Copy what the event topics hold now into a log; returns how many records."""
    folder.mkdir(parents=True, exist_ok=True)
    decode, encode, count = msgspec.json.Decoder(dict[str, Any]).decode, msgspec.json.Encoder().encode, 0
    reader = kafka.consumer(client, "sidstream-features-verify", [])
    try:
        shape = reader.list_topics(timeout=10).topics
        for topic in topics.EVENT_TOPICS:
            with (folder / f"{topic}.jsonl").open("wb") as out:
                for partition in shape[topic].partitions if topic in shape else ():
                    _, end = reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
                    reader.assign([TopicPartition(topic, partition, 0)])
                    heard = time.monotonic()
                    while not stop.is_set() and reader.position([TopicPartition(topic, partition)])[0].offset < end:
                        messages = reader.consume(5000, 0.5)
                        if messages:
                            heard = time.monotonic()
                        elif time.monotonic() - heard > QUIET_S:
                            raise BackfillFailed(f"{topic}/{partition}: nothing more to read, {end} records expected")
                        for message in messages:
                            try:
                                record = decode(message.value() or b"")
                            except (msgspec.DecodeError, UnicodeDecodeError):
                                continue  # no record: the inspector has it among the dead letters
                            place = {"appended": message.timestamp()[1], "partition": partition, "offset": message.offset()}
                            out.write(encode({**record, **place}) + b"\n")
                            count += 1
    finally:
        reader.close()
    return count


@dataclass
class Comparison:
    """Online values of a view's entities against recomputed ones.

    `behind`: the online value is right, but a later event is known by now; `ahead`: online is newer than the copied log.
    """

    view: str
    compared: int = 0
    equal: int = 0
    missing: int = 0
    behind: int = 0
    ahead: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.differences and not self.missing


def compare(view: View, folder: Path, online: Any, sample: int, seed: int) -> Comparison:
    """Compare a sample of a view's entities, each at the time its online value stands for.

    Args:
        online: `feast.FeatureStore`; read by the plain SDK, as any user of it would.
    """
    newest: dict[int, int] = {}
    for row in backfill.values(view, folder):
        newest[row.entity] = max(row.event_timestamp, newest.get(row.entity, 0))
    chosen = Random(seed).sample(sorted(newest), min(sample, len(newest)))
    wanted: dict[tuple[int, int], tuple[Any, ...]] = {}
    members = set(chosen)
    for row in backfill.values(view, folder):
        if row.entity in members:
            wanted[row.entity, row.event_timestamp] = row.values
    result = Comparison(view.name)
    names = [feature.name for feature in view.features]
    for start in range(0, len(chosen), 500):
        entities = chosen[start : start + 500]
        response = online.get_online_features([f"{view.name}:{name}" for name in names], [{view.join_key: e} for e in entities])
        found, stamps = response.to_dict(), event_timestamps(response, names[0])
        for index, entity in enumerate(entities):
            judge(result, entity, stamps[index], newest[entity], wanted, names, [found[name][index] for name in names])
    return result


def event_timestamps(response: Any, feature: str) -> list[int]:
    """Event timestamps in ms of one feature's values, 0 where there is none."""
    index = list(response.proto.metadata.feature_names.val).index(feature)
    return [stamp.ToMilliseconds() for stamp in response.proto.results[index].event_timestamps]


def judge(
    result: Comparison,
    entity: int,
    stamp: int,
    newest: int,
    wanted: Mapping[tuple[int, int], tuple[Any, ...]],
    names: Sequence[str],
    values: Sequence[Any],
) -> None:
    """Add one entity to a comparison."""
    result.compared += 1
    if not stamp:
        result.missing += 1
        result.differences.append(f"{result.view} {entity}: not online, recomputed as of {newest}")
        return
    if stamp > newest:
        result.ahead += 1
        return
    result.behind += stamp < newest
    expected = wanted.get((entity, stamp))
    if expected is None:
        result.differences.append(f"{result.view} {entity}: online as of {stamp}, when nothing happened by the log")
        return
    wrong = [
        f"{name} is {str(got)[:60]}, recomputed {str(want)[:60]}"
        for name, got, want in zip(names, values, expected, strict=True)
        if not backfill.equal(want, got)
    ]
    if wrong:
        result.differences.append(f"{result.view} {entity} as of {stamp}: {'; '.join(wrong)}")
    else:
        result.equal += 1


def render(results: Sequence[Comparison], shown: int = 20) -> str:
    """The comparisons as a table, then the first differences."""
    head = f"{'view':<24}{'compared':>10}{'equal':>10}{'different':>11}{'missing':>9}{'behind':>8}{'ahead':>7}"
    lines = [head]
    for r in results:
        lines.append(
            f"{r.view:<24}{r.compared:>10}{r.equal:>10}{len(r.differences) - r.missing:>11}{r.missing:>9}{r.behind:>8}{r.ahead:>7}"
        )
    differences = [line for r in results for line in r.differences]
    lines += [f"  {line}" for line in differences[:shown]]
    if len(differences) > shown:
        lines.append(f"  … and {len(differences) - shown} more")
    return "\n".join(lines)
