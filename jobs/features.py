"""`sidstream features`: the Feast repository, its Flink job, its online writer, its training data, and a check of one against another."""

from __future__ import annotations

import difflib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
from confluent_kafka import KafkaException

from features import compile as compiler
from features import repository
from features.view import View, ViewError
from jobs import settings as configuration
from jobs.feature_backfill import compare, compute, dump, render, run_backfill
from jobs.feature_writing import NAME as WRITER
from jobs.feature_writing import WriterProcess
from jobs.local import jars, java
from jobs.process import Endpoints, Stop, feature_repo, flush_and_exit, log_to_stderr, ready, run
from jobs.settings import ConfigError, Settings
from streaming import topics
from streaming.flink import environment

NAME = "flink-features"
CONFIG = click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="the configuration file")
DEFINITIONS = click.option(
    "--definitions", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="another definitions file than the one shipped"
)
# Values need no checkpoint to be seen, so a checkpoint only bounds what a restart computes again; each copies the whole state.
LEAST_CHECKPOINT_MS = 15_000


@click.group()
def command() -> None:
    """Feast features: apply, plan, run, write, backfill, verify."""


def folder(home: Path) -> Path:
    """What the Flink job keeps in the home."""
    return home / "flink" / "features"


def views_of(home: Path) -> list[View]:
    """The registered views.

    Raises:
        ConfigError: there are none, or one that cannot be computed.
    """
    try:
        views = repository.registered_views(feature_repo(home))
        for view in views:
            compiler.is_listing(view)
    except (repository.NotApplied, ViewError) as error:
        raise ConfigError(str(error)) from error
    return views


def chosen_definitions(home: Path, given: Path | None) -> Path:
    """The file given, else the one applied last, else the one shipped."""
    applied = feature_repo(home) / "definitions.py"
    mark = feature_repo(home) / "data" / "own_definitions"
    return given or (applied if mark.exists() and applied.exists() else repository.DEFINITIONS)


@command.command()
@CONFIG
@DEFINITIONS
def apply(config: Path | None, definitions: Path | None) -> None:
    """Render the Feast repository into the home and register its definitions."""

    def main(settings: Settings, ends: Endpoints, stop: Stop) -> None:
        source, repo = chosen_definitions(ends.home, definitions), ends.feature_repo
        try:
            if not repository.is_applied(repo, ends.redis_url, source):
                for view in repository.defined_views(source):
                    compiler.is_listing(view)
                repository.render(repo, ends.redis_url, source)
                if definitions is not None:
                    (repo / "data" / "own_definitions").touch()
                repository.apply(repo)
            registered = repository.registered_views(repo)
        except (repository.NotApplied, ViewError, ValueError) as error:
            raise ConfigError(str(error)) from error
        for view in registered:
            click.echo(f"{view.name}: {len(view.features)} features by {view.join_key}")

    run("features-apply", main, config)


def statements(views: list[View], settings: Settings) -> str:
    """The SQL of the job without its tables: what decides the values."""
    common = f"CREATE TEMPORARY VIEW {compiler.HAPPENED} AS\n{compiler.happened()}"
    return ";\n\n".join([common, *(compiler.insert(view, settings.features.history) for view in views)]) + ";\n"


@command.command()
@CONFIG
@DEFINITIONS
def plan(config: Path | None, definitions: Path | None) -> None:
    """Show the Flink SQL of the definitions, and what would change against the registry and the running job."""
    home = configuration.home()
    try:
        settings = configuration.load(config)
        wanted = repository.defined_views(chosen_definitions(home, definitions))
        sql = statements(wanted, settings)
    except (ConfigError, ViewError, repository.NotApplied) as error:
        raise click.ClickException(str(error)) from error
    click.echo(sql)
    try:
        applied = repository.registered_views(feature_repo(home))
    except repository.NotApplied:
        applied = []
    running = folder(home) / "job.sql"
    click.echo("\n".join(["Against the registry:", *changes(applied, wanted)]))
    lines = list(sql_difference(running.read_text() if running.exists() else "", sql))
    click.echo("\n".join(["Against the job that ran last:", *(lines or ["  nothing changes"])]))
    if lines and running.exists():
        click.echo("State of other SQL cannot be taken over: the next `sidstream features run` reads the topics from their beginning.")


def changes(applied: list[View], wanted: list[View]) -> list[str]:
    """What applying would do, one line a view or feature."""
    old, new = ({view.name: view for view in views} for views in (applied, wanted))
    lines = [f"  + {name}: {len(new[name].features)} features by {new[name].join_key}" for name in new if name not in old]
    lines += [f"  - {name}: its values leave the online store" for name in old if name not in new]
    for name in new.keys() & old.keys():
        before, after = ({aggregate.name: aggregate for aggregate in views[name].aggregates} for views in (old, new))
        lines += [f"  + {name}.{feature}" for feature in after if feature not in before]
        lines += [f"  - {name}.{feature}" for feature in before if feature not in after]
        lines += [f"  ~ {name}.{feature}" for feature in after if feature in before and before[feature] != after[feature]]
    return lines or ["  nothing changes"]


def sql_difference(old: str, new: str) -> Iterator[str]:
    """A unified difference, indented."""
    if not old:
        yield "  no job ran yet"
        return
    for line in difflib.unified_diff(old.splitlines(), new.splitlines(), "running", "defined", lineterm="", n=1):
        yield f"  {line}"


@command.command("run")
@CONFIG
@click.option("--fresh", is_flag=True, help="forget the job's state and read the topics from their beginning (after a change of the SQL)")
def run_job(config: Path | None, fresh: bool) -> None:
    """Run the features job in an embedded mini cluster until stopped; a restart resumes from its newest checkpoint."""
    run(NAME, lambda settings, ends, stop: main(settings, ends, stop, fresh), config)


def main(settings: Settings, ends: Endpoints, stop: Stop, fresh: bool = False) -> None:
    """Start the job, say so when it runs, and wait."""
    views = views_of(ends.home)
    create_topics(ends, settings, views)
    work = folder(ends.home)
    sql = statements(views, settings)
    if fresh or changed(work / "job.sql", sql):
        environment.prune(work / "checkpoints", None)
    cluster = environment.MiniCluster(
        NAME,
        work,
        jars.paths("connector"),
        java_home=java.java_home(),
        heap_mb=settings.flink.heap_mb,
        checkpoint_ms=max(settings.flink.checkpoint_ms, LEAST_CHECKPOINT_MS),
        exactly_once=True,  # the state, which must count no event twice; rows are written at once, and perhaps again
    )

    def define() -> environment.Job:
        session = environment.table_environment(cluster)
        statement_set = compiler.define(
            session.tables,
            compiler.event_table(ends.kafka, settings.features.disorder_s, settings.samples.attribution_window_s),
            [compiler.kafka_sink(ends.kafka, view) for view in views],
            views,
            history=settings.features.history,
            lifetime_s=settings.features.lifetime_s,
        )
        return environment.submit(session, statement_set)

    job = environment.start(define, stop)
    if job is None:
        return
    repository.replace(work / "job.sql", sql)
    if job.wait_running(stop):
        ready(ends.home, NAME, rest=job.session.rest, job=job.job_id)
    job.wait(stop)


def create_topics(ends: Endpoints, settings: Settings, views: list[View]) -> None:
    """Create the topics of views that were registered after the others."""
    names = [view.name for view in views]
    kafka = settings.kafka
    specs = topics.specs(partitions=kafka.partitions, retention_ms=kafka.retention_ms, retention_bytes=kafka.retention_bytes, views=names)
    try:
        topics.create(ends.kafka, [spec for spec in specs if spec.name in map(topics.feature_topic, names)])
    except KafkaException as error:
        raise ConnectionError(f"{ends.kafka['bootstrap.servers']}: {error.args[0].str()}") from error


def changed(path: Path, sql: str) -> bool:
    """Whether the job that left its state there ran other SQL; its state then fits no operator of the new one."""
    return path.exists() and path.read_text() != sql


@command.command()
@CONFIG
@click.option("--freshness", type=click.Path(dir_okay=False, path_type=Path), help="keep percentiles of event → written here, as JSON")
def write(config: Path | None, freshness: Path | None) -> None:
    """Put the values of the feature topics online, from where the values in Redis end, until stopped."""

    def main(settings: Settings, ends: Endpoints, stop: Stop) -> None:
        WriterProcess(ends, views_of(ends.home), stop, freshness).run()

    run(WRITER, main, config)


@command.command("backfill")
@CONFIG
@click.option(
    "--log",
    "source",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="folder with <topic>.jsonl, .jsonl.gz or .parquet of the event topics, or folders of them",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="where <view>.parquet go; default: the repository's data, where get_historical_features reads them",
)
def backfill_log(config: Path | None, source: Path, out: Path | None) -> None:
    """Compute the values of a historical log, by the SQL of the live job, into Parquet; needs no service."""
    log_to_stderr()
    started, home = time.monotonic(), configuration.home()
    target = out or feature_repo(home) / "data"
    try:
        written = run_backfill(source, target, views_of(home), configuration.load(config), Stop())
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    for view, rows in written.items():
        click.echo(f"{target / view}.parquet: {rows} rows")
    click.echo(f"{time.monotonic() - started:.1f} s")
    flush_and_exit(0)


@command.command()
@CONFIG
@click.option("--sample", default=1000, show_default=True, help="entities of each view")
@click.option("--seed", default=0, show_default=True, help="which entities")
def verify(config: Path | None, sample: int, seed: int) -> None:
    """Compare online values, read by the Feast SDK, with a recomputation from the topics; exit 1 where they differ."""

    def main(settings: Settings, ends: Endpoints, stop: Stop) -> None:
        views = views_of(ends.home)
        with tempfile.TemporaryDirectory(prefix="verify-", dir=ends.home) as work:
            records = dump(ends.kafka, Path(work) / "log", stop)
            recomputed = compute(Path(work) / "log", views, settings, Path(work), stop)
            online = repository.store(ends.feature_repo)
            results = [compare(view, recomputed, online, sample, seed) for view in views]
        click.echo(f"{records} records\n{render(results)}")
        flush_and_exit(0 if all(result.holds for result in results) else 1)

    run("features-verify", main, config)
