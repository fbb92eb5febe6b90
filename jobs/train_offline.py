"""`sidstream train --offline`: the same learner over samples from files or from the topic, to see how well it does."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from jobs import process
from jobs import settings as configuration
from jobs.learner import fresh_learner, prepare_torch
from jobs.settings import ConfigError, Settings
from jobs.train_input import SampleError, Source, from_files, from_topic
from model.online.batches import Arrived, Reproducible
from model.online.publish import Publisher
from model.online.step import OnlineLearner
from model.sid.bundle import Bundle, BundleError
from model.store import ModelStore, StoreError

log = logging.getLogger("sidstream.trainer")


def main(config: Path | None, files: tuple[Path, ...], limit: int | None, report: Path | None, target: str | None) -> None:
    """Train, print the windows beside the floors, and write what was asked for."""
    process.log_to_stderr()
    try:
        settings = configuration.load(config)
        home = configuration.home()
        bundle = Bundle.load(ModelStore(process.model_store(settings, home)))
        source = from_files(files) if files else from_topic(process.endpoints(settings, home).kafka)
        learner, seconds = learn(settings, bundle, source, limit)
        facts = summary(learner, seconds)
        click.echo(table(facts))
        if report is not None:
            report.write_text(json.dumps(facts, indent=1) + "\n")
        if target is not None:
            click.echo(publish(learner, bundle, ModelStore(target)))
    except ConfigError as error:
        log.error('event=failed reason="%s"', error)
        sys.exit(process.BROKEN_CONFIGURATION)
    except (BundleError, StoreError, SampleError, OSError) as error:
        log.error('event=failed reason="%s"', error)
        sys.exit(1)


def learn(settings: Settings, bundle: Bundle, source: Source, limit: int | None = None) -> tuple[OnlineLearner, float]:
    """A fresh learner that has seen the source once, or its first `limit` records, and the seconds that it took.

    The batches are the online trainer's in deterministic mode; so, bit for bit, are the weights.
    """
    prepare_torch(settings.model.deterministic)
    learner = fresh_learner(settings, bundle)
    began = time.monotonic()
    left = sys.maxsize if limit is None else limit
    with tqdm(desc="samples", unit=" samples", disable=None) as bar:
        for batch in batches(source, settings.trainer.batch):
            taken = batch[:left]
            learner.step([arrived.row for arrived in taken if arrived.row is not None])
            bar.update(len(taken))
            left -= len(taken)
            if not left:
                break
    return learner, time.monotonic() - began


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


def summary(learner: OnlineLearner, seconds: float) -> dict[str, Any]:
    recall = learner.metrics.recall()
    return {
        "samples": learner.counters.initials + learner.counters.corrections,
        "samples_per_s": round(learner.counters.rows / seconds, 1),
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
