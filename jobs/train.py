"""`sidstream train`: learn from samples as they come, keep checkpoints, publish versions: `model/online` wired to Kafka and the stores."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from jobs import train_offline, train_processes
from jobs.learner import fresh_learner, identity, prepare_torch
from jobs.process import Endpoints, Stop, ready, run, write_json
from jobs.settings import ConfigError, Settings
from jobs.train_input import SampleTopic
from model.online.batches import Arrived, Reproducible, Timely
from model.online.checkpoint import Checkpoint, CheckpointError, Checkpoints
from model.online.publish import Manifest, Publisher
from model.sid.bundle import Bundle, BundleError
from model.store import ModelStore, StoreError
from streaming import records, topics
from streaming.kafka import producer

log = logging.getLogger("sidstream.trainer")

POLL_S = 0.1
STATUS_EVERY_S = 1.0

_PATH = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option("--config", type=_PATH, help="Configuration file.")
@click.option("--until-end", is_flag=True, help="Learn what the topic holds now, checkpoint, publish, and leave.")
@click.option("--offline", is_flag=True, help="Learn a model of its own and print how it did; also over several processes, by torchrun.")
@click.option("--samples", "files", type=_PATH, multiple=True, help="With --offline: JSON lines (plain or .gz), in order, not the topic.")
@click.option("--limit", type=click.IntRange(min=1), help="With --offline: at most so many samples.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="With --offline: write the metrics there, as JSON.")
@click.option("--checkpoint", type=_FOLDER, help="With --offline: continue from the checkpoint in this folder, if any, and keep one there.")
@click.option("--store", "target", metavar="URL", help="With --offline: publish the result, and the bundle, in this model store.")
def command(
    config: Path | None,
    until_end: bool,
    offline: bool,
    files: tuple[Path, ...],
    limit: int | None,
    report: Path | None,
    checkpoint: Path | None,
    target: str | None,
) -> None:
    """Learn from samples as they come, publish versions."""
    if offline:
        train_offline.main(config, files, limit, report, checkpoint, target)
    elif files or limit or report or checkpoint or target:
        raise click.UsageError("--samples, --limit, --report, --checkpoint and --store go with --offline")
    elif train_processes.launched() > 1:
        raise click.UsageError("samples as they come are learned by one process, whose offsets are the truth: torchrun goes with --offline")
    else:
        run("trainer", lambda settings, ends, stop: main(settings, ends, stop, until_end), config)


def main(settings: Settings, ends: Endpoints, stop: Stop, until_end: bool = False) -> None:
    """Learn until stopped (or until the present end of the topic)."""
    prepare_torch(settings.model.deterministic)
    store = ModelStore(ends.model_store)
    try:
        bundle = Bundle.load(store)
    except BundleError as error:
        raise ConfigError(str(error)) from error
    with ThreadPoolExecutor(1, thread_name_prefix="storage") as storage:
        try:
            Trainer(settings, ends, store, bundle, storage).run(stop, until_end)
        except CheckpointError as error:
            raise ConfigError(str(error)) from error


class Trainer:
    """One learner, fed from one topic; the single writer of its checkpoints and of the model store's versions."""

    def __init__(self, settings: Settings, ends: Endpoints, store: ModelStore, bundle: Bundle, storage: ThreadPoolExecutor) -> None:
        self._settings, self._home = settings, ends.home
        self._learner = fresh_learner(settings, bundle)
        self._publisher = Publisher(store, bundle.version)
        self._producer = producer(ends.kafka)
        self._topic = SampleTopic(ends.kafka, "trainer", self._producer)
        self._next: dict[int, int] = {}  # next offset of rows trained, by partition
        self._background = Background(storage)
        self._published: Manifest | None = None
        self._steps_published: int | None = None
        self._meter = Meter()
        # A new bundle or another model starts in a folder of its own, from the first sample that Kafka still has.
        self._identity = identity(self._learner, bundle)
        digest = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:8]
        self._checkpoints = Checkpoints(ends.home / "trainer" / f"{bundle.version}-{digest}")

    def run(self, stop: Stop, until_end: bool) -> None:
        restored = self._restore()
        try:
            if not self._topic.open(self._next, stop):
                return
            self._publish()
            self._background.wait()
            self._status()
            ready(self._home, "trainer", version=self._published.version if self._published else None, restored=restored)
            self._learn(stop, until_end)
            self._background.wait()
            self._checkpoint()
            self._background.wait()
            self._publish()
            self._background.wait()
            self._status()
        finally:
            self._producer.flush(10)
            self._topic.close()

    def _learn(self, stop: Stop, until_end: bool) -> None:
        numbers = self._settings.trainer
        batches: Timely | Reproducible = Timely(numbers.batch, numbers.max_wait_ms / 1000)
        if self._settings.model.deterministic:
            batches = Reproducible(numbers.batch, self._topic.partitions)
        wait_s = min(POLL_S, numbers.max_wait_ms / 1000)
        saved = published = told = time.monotonic()
        while not stop.is_set():
            if batches.waiting() < numbers.batch:
                batches.add(self._topic.read(wait_s), time.monotonic())
            finished = until_end and self._topic.ended()
            if finished:
                batches.end()
            while batch := batches.take(time.monotonic(), flush=finished):
                self._step(batch)
                if len(batch) < numbers.batch or stop.is_set():
                    break
            now = time.monotonic()
            if now - saved >= numbers.checkpoint_s and self._background.idle():
                self._checkpoint()
                saved = now
            if now - published >= self._settings.publish.every_s and self._background.idle():
                self._publish()
                published = now
            if now - told >= STATUS_EVERY_S:
                self._status(batches.waiting())
                told = now
            self._producer.poll(0)
            if finished and not batches.waiting():
                return

    def _step(self, batch: list[Arrived]) -> None:
        began = time.monotonic()
        metrics = self._learner.metrics
        closed = len(metrics.closed)
        self._learner.step([arrived.row for arrived in batch if arrived.row is not None])
        for arrived in batch:
            self._next[arrived.partition] = arrived.offset + 1
        self._meter.worked(len(batch), began, time.monotonic())
        if len(metrics.closed) != closed:
            facts = {name: metrics.closed[-1][name] for name in ("samples", "loss", "recall_at_10", "floors", "auc")}
            log.info("event=window %s", " ".join(f"{name}={json.dumps(value)}" for name, value in facts.items()))

    def _restore(self) -> bool:
        checkpoint = self._checkpoints.load(self._identity)
        if checkpoint is None:
            return False
        self._learner.restore(checkpoint.state)
        self._next = dict(checkpoint.offsets.get(topics.SAMPLES, {}))
        log.info("event=restored checkpoint=%d samples=%d offsets=%s", checkpoint.number, self._samples(), json.dumps(self._next))
        return True

    def _checkpoint(self) -> None:
        """Copy the state now; write it, and tell Kafka how far it got, in the background."""
        began = time.monotonic()
        checkpoint = Checkpoint(self._learner.state(), {topics.SAMPLES: dict(sorted(self._next.items()))}, self._identity)
        self._meter.stalled_s += time.monotonic() - began

        def write() -> None:
            path = self._checkpoints.save(checkpoint)
            self._topic.commit(checkpoint.offsets[topics.SAMPLES])
            log.info("event=checkpoint path=%s seconds=%.2f", path, time.monotonic() - began)

        self._background.start(write)

    def _publish(self) -> None:
        """Copy what changed since the last version, if anything did; write it and announce it in the background."""
        learner = self._learner
        if learner.counters.steps == self._steps_published:
            return
        began = time.monotonic()
        taken = self._publisher.take(learner.model, learner.fitter.take_touched(), learner.vocabulary.generated)
        offsets = {topics.SAMPLES: dict(sorted(self._next.items()))}
        windows = learner.metrics.windows()
        metrics: dict[str, Any] = {"recall_at_10": learner.metrics.recall(), "window": windows[-1] if windows else None}
        facts: dict[str, Any] = {"watermark_ts": learner.counters.watermark_ts, "samples_trained": self._samples(), "metrics": metrics}
        steps = learner.counters.steps
        stalled = time.monotonic() - began
        self._meter.stalled_s += stalled

        def write() -> None:
            manifest, uri = self._publisher.publish(taken, learner.model.config, offsets=offsets, **facts)
            self._published, self._steps_published = manifest, steps
            announced = records.ModelPublished(
                version=manifest.version, base=manifest.base, manifest=uri, bundle_version=manifest.bundle_version, **facts
            )
            self._producer.produce(topics.MODEL_PUBLISHED, records.encode(announced), key=manifest.version)
            log.info(
                "event=published version=%s base=%s samples=%d bytes=%d stalled_ms=%.0f seconds=%.2f",
                manifest.version,
                manifest.base,
                manifest.samples_trained,
                sum(file["bytes"] for file in manifest.files.values()),
                stalled * 1000,
                time.monotonic() - began,
            )

        self._background.start(write)

    def _samples(self) -> int:
        return self._learner.counters.initials + self._learner.counters.corrections

    def _status(self, waiting: int = 0) -> None:
        """What the page and the demo's report read; `waiting` rows were read and not yet learned."""
        learner, counters = self._learner, self._learner.counters
        recall = learner.metrics.recall()
        body = {
            "samples": self._samples(),
            "targets": counters.targets,
            **self._meter.rates(),
            "lag": self._topic.lag() + waiting,
            "version": self._published.version if self._published else None,
            "versions_published": int(self._published.version[1:]) if self._published else 0,
            "prequential": learner.metrics.windows(),
            "recall_at_10": recall.get("model"),
            "floors": {name: value for name, value in recall.items() if name != "model"},
            "watermark_ts": counters.watermark_ts,
            "counters": {**vars(counters), "undecodable": self._topic.undecodable},
            "offsets": {str(partition): offset for partition, offset in sorted(self._next.items())},
            "updated_ms": time.time_ns() // 1_000_000,
        }
        if (conversions := learner.conversions) is not None:
            body["conversions"] = {"pending": len(conversions.pending), "forgotten": conversions.pending.forgotten}
        write_json(self._home / "run" / "trainer.json", body)


class Background:
    """One piece of work at a time beside the learner; a store that cannot be written is told, and tried again at the next interval."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        self._running: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Only when idle."""
        self._running = self._executor.submit(work)

    def idle(self) -> bool:
        """Whether nothing runs.

        Raises:
            Exception: what the last work raised, unless a later try may succeed.
        """
        if self._running is not None and not self._running.done():
            return False
        self.wait()
        return True

    def wait(self) -> None:
        """Until nothing runs; raises like idle()."""
        running, self._running = self._running, None
        if running is not None:
            try:
                running.result()
            except (StoreError, CheckpointError) as error:
                log.error('event=storage_failed reason="%s" advice="learning goes on, the next try is at the next interval"', error)


class Meter:
    """How fast the trainer is: over the time since its first row, and over the time it worked."""

    def __init__(self) -> None:
        self.rows = 0
        self.busy_s = self.stalled_s = 0.0
        self._first = self._last = 0.0

    def worked(self, rows: int, began: float, ended: float) -> None:
        self._first = self._first or began
        self._last = ended
        self.rows += rows
        self.busy_s += ended - began

    def rates(self) -> dict[str, float | None]:
        elapsed = self._last - self._first
        return {
            "samples_per_s": round(self.rows / elapsed, 1) if elapsed else None,
            "samples_per_busy_s": round(self.rows / self.busy_s, 1) if self.busy_s else None,
            "stalled_s": round(self.stalled_s, 3),
        }
