"""`sidstream demo`: the whole loop on one machine, for people (a page, until Ctrl-C) or bounded and checked (`--headless`)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml
from tqdm import tqdm

from jobs import audit
from jobs.audit import Invariant
from jobs.audit_features import online_features_equal
from jobs.drain import FeatureDrain
from jobs.observer import Observer, percentiles
from jobs.process import Endpoints, endpoints
from jobs.report import commit, machine, read_json, render
from jobs.settings import ConfigError, Settings, load
from model.store import ModelStore
from streaming import topics

# Simulated people live fast: their labels arrive within seconds of the impression, so a short window sees most of them.
SIMULATED = {"samples": {"label_window_s": 12, "disorder_s": 1}, "publish": {"every_s": 8}}
REPLAYED = {"serving": {"log_impressions": False}, "publish": {"every_s": 8}}
DRAIN_S = 180
SETTLED_S = 4  # longer than a checkpoint of the samples job takes to show its rows
FEED = 10  # videos that the demo's clients ask for at once


class DemoError(click.ClickException):
    """The demo could not run to its end; the message says where it stopped and where its logs are."""


@dataclass(frozen=True)
class Run:
    """One bounded run: where it lives and what it was asked for."""

    home: Path
    config: Path
    source: str
    folder: Path | None
    impressions: int
    speed: str
    seed: int

    def sidstream(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "jobs.cli", *arguments, "--config", str(self.config)]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SIDSTREAM_HOME": str(self.home)}

    def call(self, *arguments: str, timeout: float = 300) -> None:
        """Run one of our commands to its end.

        Raises:
            DemoError: it failed or took too long.
        """
        try:
            done = subprocess.run(self.sidstream(*arguments), env=self.environment, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise DemoError(f"`sidstream {' '.join(arguments)}` took longer than {timeout:.0f} s; logs: {self.home}/logs") from None
        if done.returncode:
            raise DemoError(f"`sidstream {' '.join(arguments)}` failed with {done.returncode}; logs: {self.home}/logs")


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees of settings; `over` wins."""
    result = dict(base)
    for key, value in over.items():
        result[key] = merged(result[key], value) if isinstance(value, Mapping) and isinstance(result.get(key), Mapping) else value
    return result


def write_config(home: Path, source: str, folder: Path | None, seed: int, user: Path | None) -> Path:
    """The demo's own defaults under whatever the user's file says; the catalogue is that of the source."""
    load(user)
    own = yaml.safe_load(user.read_text()) if user else None
    tree = merged(SIMULATED if source == "simulator" else REPLAYED, own or {})
    tree = merged(tree, {"sids": {"source": source, "dir": str(folder.resolve()) if folder else None, "seed": seed}})
    home.mkdir(parents=True, exist_ok=True)
    path = home / "demo.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def wait_for(what: str, done: Callable[[], bool], seconds: float, bar: tqdm) -> bool:
    """Poll until done or out of time; says which."""
    deadline = time.monotonic() + seconds
    bar.set_description(what)
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def drive(run: Run, observer: Observer, bar: tqdm) -> dict[str, Any]:
    """Send the traffic; returns what its client saw (`home/run/<source>.json`)."""
    if run.source == "simulator":
        arguments = ["simulate", "--impressions", str(run.impressions), "--seed", str(run.seed)]
    else:
        arguments = [
            "replay",
            "--source",
            "kuairand",
            "--dir",
            str(run.folder),
            "--speed",
            run.speed,
            "--impressions",
            str(run.impressions),
            "--shadow",
        ]
    log = (run.home / "logs" / f"{run.source}.log").open("ab")
    process = subprocess.Popen(run.sidstream(*arguments), env=run.environment, stdout=log, stderr=log)
    try:
        while process.poll() is None:
            bar.n = min(observer.impressions, run.impressions)
            bar.set_description("traffic")
            bar.refresh()
            time.sleep(0.5)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(20)
        log.close()
    if process.returncode:
        raise DemoError(f"the traffic stopped with {process.returncode}; see {run.home}/logs/{run.source}.log")
    return read_json(run.home / "run" / "traffic.json")


def drained(run: Run, observer: Observer, features: FeatureDrain) -> bool:
    """Whether every impression has its sample, the last labels their corrections and their features, and the trainer has learned from all.

    Nobody knows how many corrections there will be before the audit counts them, so samples must have ceased for a while.
    """
    trainer = read_json(run.home / "run" / "trainer.json")
    ceased = time.time() - observer.last_sample > SETTLED_S
    learned = observer.initial_samples >= observer.impressions and ceased and trainer.get("lag", 1) == 0
    return learned and features.reached(observer.known.newest)


def check(run: Run, settings: Settings, ends: Endpoints, traffic: Mapping[str, Any], bar: tqdm) -> tuple[dict[str, Any], list[Invariant]]:
    """Read everything back and hold it against the invariants; returns counts and verdicts."""
    made = list(audit.read_topic(ends.kafka, topics.VIDEOS))
    beside = ThreadPoolExecutor(1)  # decoding leaves Python to the rest of the audit
    playing = beside.submit(audit.videos_play, made, run.home / "videos")
    beside.shutdown(wait=False)
    attribution_ms = int(settings.samples.attribution_window_s * 1000)
    bar.set_description("audit: events")
    events = audit.collect(
        (raw for topic in topics.EVENT_TOPICS for raw in audit.read_topic(ends.kafka, topic)),
        attribution_ms,
        int(settings.features.disorder_s * 1000),
    )
    bar.set_description("audit: samples")
    ledger = audit.fold_samples(audit.read_topic(ends.kafka, topics.SAMPLES), events)
    letters = list(audit.read_topic(ends.kafka, topics.DEAD_LETTERS))
    invariants = [
        audit.initial_samples_equal_impressions(events, ledger),
        audit.every_label_exactly_once(events, ledger),
        audit.corrections_follow_initials(ledger),
        audit.contexts_are_past(ledger),
        audit.served_sids_decode(events, Path(ends.model_store), traffic.get("served", {})),
        audit.cases_add_up(
            events,
            traffic.get("cases", {}),
            traffic.get("items", 0),
            logged=settings.serving.log_impressions,
            unanswered=FEED * traffic.get("errors", 0),
            client=traffic.get("client", ""),
        ),
        audit.read_equals_rows_plus_dead_letters(events, letters),
    ]
    bar.set_description("audit: features")
    disorder_ms = int(settings.features.disorder_s * 1000)
    invariants.append(online_features_equal(events, ends.feature_repo, disorder_ms, length=settings.features.history))
    bar.set_description("audit: videos")
    invariants.append(playing.result())
    labels = [label["topic"] for label in events.labels.values()]
    corrections = sum(ledger.sample_ids.values()) - sum(ledger.initial.values())
    counts = {
        "input": {
            "source": run.source,
            **({"conversions_are": "a stand-in: a like or a view of 18 s, the log has none"} if run.source == "kuairand" else {}),
            "impressions": len(events.impressions),
            **{topic: labels.count(topic) for topic in ("engagements", "watches", "conversions")},
            "dead_letters": len(letters),
        },
        "samples": {
            "initial": sum(ledger.initial.values()),
            "corrections": corrections,
            "missing": sum(1 for i in events.impressions if not ledger.initial[i]),
            "duplicate": sum(n - 1 for n in ledger.sample_ids.values() if n > 1),
        },
    }
    return counts, invariants


def parts(run: Run, observer: Observer, traffic: Mapping[str, Any]) -> dict[str, Any]:
    """The report's parts that come from the processes' own accounts and from the bystander."""
    trainer = read_json(run.home / "run" / "trainer.json")
    makers = [read_json(path) for path in sorted((run.home / "run").glob("generator-*.json"))]
    seconds = [s for maker in makers for s in maker.get("seconds", [])]
    return {
        "freshness_ms": observer.freshness().report(),
        "training": {
            "samples": trainer.get("samples", 0),
            "samples_per_s": trainer.get("samples_per_s"),
            "versions_published": trainer.get("versions_published", 0),
            "prequential": trainer.get("prequential", []),
            "floors": trainer.get("floors", {}),
        },
        "serving": {
            "requests": traffic.get("requests", 0),
            "errors": traffic.get("errors", 0),
            "degraded": traffic.get("degraded", 0),
            "latency_ms": traffic.get("latency_ms") or percentiles([]),
            "cases": {case: traffic.get("cases", {}).get(case, 0) for case in ("exact_hit", "content_hit", "miss")},
            "cases_over_time": traffic.get("cases_over_time", []),
        },
        "generation": {
            "requested": max((maker.get("requested", 0) for maker in makers), default=0),
            "generated": max((maker.get("generated", 0) for maker in makers), default=0),
            "pending": max((maker.get("pending", 0) for maker in makers), default=0),
            "seconds_per_video": {name: value for name, value in percentiles(seconds).items() if name != "p99"},
        },
        "memory": {"peak_resident_bytes": observer.peak_bytes},
    }


def bounded(run: Run, settings: Settings, target: Path | None) -> bool:
    """Start, drive, drain, audit, stop, report; True if every invariant holds."""
    started = time.monotonic()
    bar = tqdm(total=run.impressions, unit="impr", dynamic_ncols=True, disable=None)
    bar.set_description("starting")
    invariants: list[Invariant] = []
    stages: dict[str, float] = {}

    def stage(name: str) -> None:
        stages[name] = round(time.monotonic() - started, 1)

    try:
        run.call("up", "--detach")
        stage("up")
        ends = endpoints(settings, run.home)
        observer = watch(run, settings, ends)
        observer.start()
        traffic = drive(run, observer, bar)
        stage("traffic")
        features = feature_drain(ends)
        try:
            wait_for("draining", lambda: drained(run, observer, features), settings.samples.label_window_s + DRAIN_S, bar)
        finally:
            features.close()
        stage("drained")
        observer.close()
        report: dict[str, Any] = {"machine": machine(), "commit": commit(), "command": " ".join(sys.argv), "seconds": 0.0}
        counts, invariants = check(run, settings, ends, traffic, bar)
        stage("audited")
        report |= counts | parts(run, observer, traffic)
    finally:
        bar.set_description("stopping")
        run.call("down", timeout=60)
        bar.close()
    stage("down")
    invariants.append(audit.processes_exited_cleanly(read_json(run.home / "run" / "exits.json")))
    report["seconds"] = round(time.monotonic() - started, 1)
    report["stages"] = stages
    report["invariants"] = [invariant.as_dict() for invariant in invariants]
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(report, indent=1))
    click.echo(render(report))
    return all(invariant.holds for invariant in invariants)


def watch(run: Run, settings: Settings, ends: Endpoints) -> Observer:
    from features.reader import FeatureReader

    reader = FeatureReader(ends.redis_url)
    return Observer(
        ends.kafka,
        reader.history,
        ends.http,
        ModelStore(ends.model_store),
        label_delay_ms=int((settings.samples.label_window_s + settings.samples.disorder_s) * 1000),
        feature_delay_ms=int(settings.features.disorder_s * 1000),
        supervised=read_json(run.home / "state.json").get("pids", {}).get("supervisor"),
    )


def feature_drain(ends: Endpoints) -> FeatureDrain:
    from features.reader import FeatureReader
    from features.repository import registered_views

    return FeatureDrain(ends.kafka, [view.name for view in registered_views(ends.feature_repo)], FeatureReader(ends.redis_url).written)


def page(run: Run, settings: Settings) -> None:
    """The loop for people: everything runs, simulated users come and go until Ctrl-C."""
    try:
        run.call("up", "--detach")
        address = endpoints(settings, run.home).http
        click.echo(f"\n  sidstream is running:  {address}\n  logs in {run.home}/logs · Ctrl-C stops everything\n")
        done = subprocess.run(run.sidstream("simulate", "--seed", str(run.seed)), env=run.environment)
        if done.returncode:
            raise DemoError(f"the simulated users stopped with {done.returncode}; logs: {run.home}/logs")
    except KeyboardInterrupt:
        click.echo("stopping …")
    finally:
        run.call("down", timeout=60)


@click.command()
@click.option("--headless", is_flag=True, help="Bounded run with a report instead of a page; exit 0 only if every invariant holds.")
@click.option("--source", type=click.Choice(["simulator", "kuairand"]), default="simulator", show_default=True)
@click.option("--dir", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of the KuaiRand-Pure files.")
@click.option("--impressions", type=click.IntRange(1), default=30_000, show_default=True, help="Where a headless run ends.")
@click.option("--speed", default="max", show_default=True, help="Replay speed: a factor of the log's own time, or max.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--report", "target", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the report (JSON).")
@click.option(
    "--home", "folder_home", type=click.Path(file_okay=False, path_type=Path), help="Keep the run here instead of a temporary folder."
)
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def command(
    headless: bool,
    source: str,
    folder: Path | None,
    impressions: int,
    speed: str,
    seed: int,
    target: Path | None,
    folder_home: Path | None,
    config: Path | None,
) -> None:
    """Run the whole loop: brokers, jobs, training, serving, generation and users.

    Without options: simulated users, and a page to watch them on. With --headless: a bounded run that checks every invariant of the
    system against the raw topics and prints a report.
    """
    if source == "kuairand" and folder is None:
        raise click.UsageError("--source kuairand needs --dir, the folder of the KuaiRand-Pure files")
    from jobs.settings import home as default_home

    keep = folder_home is not None or not headless
    home = (folder_home or (Path(tempfile.mkdtemp(prefix="sidstream-demo-")) if headless else default_home())).resolve()
    try:
        path = write_config(home, source, folder, seed, config)
        settings = load(path)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    run = Run(home, path, source, folder, impressions, speed, seed)
    # The supervisor outlives this command unless it is told to stop, whoever ends the command.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    if not headless:
        page(run, settings)
        return
    holds = False
    try:
        holds = bounded(run, settings, target)
    finally:
        if keep or not holds:
            click.echo(f"kept: {home}", err=True)
        else:
            shutil.rmtree(home, ignore_errors=True)
    sys.exit(0 if holds else 1)
