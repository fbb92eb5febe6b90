"""`sidstream train --offline`: the same learner over samples from files or from the topic, in one process or, by `torchrun`, in several."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from jobs import process
from jobs import settings as configuration
from jobs.learner import fresh_learner, identity, prepare_torch
from jobs.settings import ConfigError, Settings
from jobs.train_input import SampleError, Source, from_files, from_topic
from jobs.train_processes import FirstFailedError, join, same, told
from model.grm.processes import Processes
from model.grm.sharded import bytes_here, spread, whole
from model.online.batches import Arrived, Reproducible
from model.online.checkpoint import Checkpoint, CheckpointError, Checkpoints
from model.online.publish import Publisher
from model.online.step import OnlineLearner
from model.sid.bundle import Bundle, BundleError
from model.store import ModelStore, StoreError

log = logging.getLogger("sidstream.trainer")


@dataclass(frozen=True)
class Run:
    """A learner, and how many samples it took now in how many seconds."""

    learner: OnlineLearner
    rows: int
    seconds: float


def main(
    config: Path | None, files: tuple[Path, ...], limit: int | None, report: Path | None, checkpoint: Path | None, target: str | None
) -> None:
    """Train, print the windows beside the floors, and write what was asked for."""
    process.log_to_stderr()
    processes = None
    try:
        settings = configuration.load(config)
        home = configuration.home()
        bundle = Bundle.load(ModelStore(process.model_store(settings, home)))
        processes = join()
        if processes is not None and processes.rank:
            source = Source.of([])  # process 0 reads
        else:
            source = from_files(files) if files else from_topic(process.endpoints(settings, home).kafka)
        run = learn(settings, bundle, source, limit, None if checkpoint is None else Checkpoints(checkpoint), processes)
        with whole(run.learner.model) as here:
            if here:
                tell(run, bundle, report, target)
    except ConfigError as error:
        failed(error, processes, process.BROKEN_CONFIGURATION)
    except (BundleError, StoreError, SampleError, CheckpointError, FirstFailedError, OSError) as error:
        failed(error, processes, 1)
    except Exception as error:
        if processes is None:
            raise
        if "/gloo/transport/" in str(error):
            failed(ConnectionError(f"another process is gone, and says why ({str(error).splitlines()[0]:.200})"), processes, 1)
        log.exception("event=failed rank=%d", processes.rank)
        process.flush_and_exit(1)


def failed(error: Exception, processes: Processes | None, code: int) -> None:
    log.error('event=failed%s reason="%s"', "" if processes is None else f" rank={processes.rank}", error)
    if processes is None:
        sys.exit(code)
    process.flush_and_exit(code)  # at once: the others may wait for this one, and it must not wait for them


def tell(run: Run, bundle: Bundle, report: Path | None, target: str | None) -> None:
    facts = summary(run)
    click.echo(table(facts))
    if target is not None:  # before the report: a folder that is not there must not cost the model
        click.echo(publish(run.learner, bundle, ModelStore(target)))
    if report is not None:
        report.write_text(json.dumps(facts, indent=1) + "\n")


def learn(
    settings: Settings,
    bundle: Bundle,
    source: Source,
    limit: int | None = None,
    checkpoints: Checkpoints | None = None,
    processes: Processes | None = None,
) -> Run:
    """A learner that has seen the source once, or its next `limit` records: a fresh one, or the one of the checkpoint.

    The batches are the online trainer's in deterministic mode; so, bit for bit, are the weights. Over several processes, all of which call
    this, they are the same within rounding; only process 0's source is read.

    Raises:
        CheckpointError: the folder's checkpoints are damaged or of another model, or the last one cannot be written.
        ConfigError: the model cannot be spread over processes, or another process has another one.
    """
    prepare_torch(settings.model.deterministic)
    learner = fresh_learner(settings, bundle)
    whose, number, offsets = identity(learner, bundle), 0, {}
    if checkpoints is not None and (kept := checkpoints.load(whose)) is not None:
        learner.restore(kept.state)
        number, offsets = kept.number, kept.offsets
        log.info("event=restored checkpoint=%d offsets=%s", number, json.dumps(offsets))
    if processes is not None:
        same(processes, json.dumps({"checkpoint": number, "placement": settings.trainer.placement, **whose}))
        total = bytes_here(learner.model)
        try:
            spread(learner.model, processes, settings.trainer.placement)
        except ValueError as error:
            raise ConfigError(f"model.options: {error}") from error
        facts = (processes.world, settings.trainer.placement, bytes_here(learner.model), total)
        log.info("event=spread processes=%d placement=%s table_bytes_here=%d table_bytes=%d", *facts)
    done = offsets.setdefault(source.name, {})

    def save() -> None:
        with whole(learner.model) as here:
            if here and checkpoints is not None:
                path = checkpoints.save(Checkpoint(learner.state(), offsets, whose))
                log.info("event=checkpoint path=%s offsets=%s", path, json.dumps(offsets))

    before, began = learner.counters.rows, time.monotonic()
    read = first(batches(source.after(done), settings.trainer.batch), limit)
    if checkpoints is not None:
        read = saving(read, settings.trainer.checkpoint_s)
    with tqdm(desc="samples", unit=" samples", disable=True if processes is not None and processes.rank else None) as bar:
        for batch in told(processes, read):
            if not batch:
                save()
                continue
            learner.step([arrived.row for arrived in batch if arrived.row is not None])
            for arrived in batch:
                done[arrived.partition] = arrived.offset + 1
            bar.update(len(batch))
    run = Run(learner, learner.counters.rows - before, time.monotonic() - began)
    if checkpoints is not None:
        save()
    return run


def first(found: Iterator[list[Arrived]], limit: int | None) -> Iterator[list[Arrived]]:
    """Batches of at most `limit` records in all."""
    left = sys.maxsize if limit is None else limit
    for batch in found:
        yield batch[:left]
        left -= len(batch)
        if left <= 0:
            return


def saving(found: Iterator[list[Arrived]], every_s: float) -> Iterator[list[Arrived]]:
    """The same batches, and an empty one when it is time for a checkpoint."""
    saved = time.monotonic()
    for batch in found:
        yield batch
        if time.monotonic() - saved >= every_s:
            yield []
            saved = time.monotonic()


def batches(source: Source, size: int) -> Iterator[list[Arrived]]:
    """All records, merged over the partitions; one without any keeps those of the others waiting until the end."""
    waiting = Reproducible(size, source.partitions)
    for arrived in source.arrivals:
        waiting.add([arrived], 0.0)
        yield from iter(partial(waiting.take, 0.0), [])
    waiting.end()
    yield from iter(partial(waiting.take, 0.0, flush=True), [])


def publish(learner: OnlineLearner, bundle: Bundle, store: ModelStore) -> str:
    """Write the learner's model as the newest version of a store, with its bundle; returns the manifest's URI."""
    bundle.save(store)
    publisher = Publisher(store, bundle.version)
    taken = publisher.take(learner.model, {}, learner.vocabulary.generated)
    counters = learner.counters
    trained = counters.initials + counters.corrections
    metrics = {"recall_at_10": learner.metrics.recall()}
    _, uri = publisher.publish(
        taken, learner.model.config, offsets={}, watermark_ts=counters.watermark_ts, samples_trained=trained, metrics=metrics
    )
    return uri


def summary(run: Run) -> dict[str, Any]:
    learner, recall = run.learner, run.learner.metrics.recall()
    return {
        "samples": learner.counters.initials + learner.counters.corrections,
        "samples_per_s": round(run.rows / run.seconds, 1),
        "counters": vars(learner.counters),
        "recall_at_10": recall.get("model"),
        "floors": {name: value for name, value in recall.items() if name != "model"},
        "prequential": learner.metrics.windows(),
    }


def table(facts: dict[str, Any]) -> str:
    """The windows, one a line, and the whole run."""
    lines = ["samples  positives    loss  recall@10  popularity  last author  click AUC  long view AUC"]
    for window in facts["prequential"]:
        floors, auc = window["floors"], window["auc"]
        numbers = (window["recall_at_10"], floors["popularity"], floors["last_author"], auc.get("click"), auc.get("long_view"))
        loss, *shown = ["–" if number is None else f"{number:.4f}" for number in (window["loss"], *numbers)]
        counts = f"{window['samples']:7d}  {window['positives']:9d}"
        lines.append(f"{counts}  {loss:>6}  {shown[0]:>9}  {shown[1]:>10}  {shown[2]:>11}  {shown[3]:>9}  {shown[4]:>13}")
    floors = ", ".join(f"{name} {value:.4f}" for name, value in facts["floors"].items())
    recall = "–" if facts["recall_at_10"] is None else f"{facts['recall_at_10']:.4f}"
    lines.append(f"{facts['samples']} samples, {facts['samples_per_s']}/s, recall@10 {recall} ({floors})")
    return "\n".join(lines)
