"""`sidstream samples`: the Flink job that turns impressions and labels into training samples, as one process."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.local import jars, java
from jobs.process import Endpoints, Stop, ready, run
from jobs.settings import Settings
from streaming.flink import environment, samples

NAME = "flink-samples"


@click.group()
def command() -> None:
    """Flink: impressions and labels become training samples."""


@command.command("run")
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def run_job(config: Path | None) -> None:
    """Run the samples job in an embedded mini cluster until stopped; a restart resumes from its newest checkpoint."""
    run(NAME, main, config)


def main(settings: Settings, ends: Endpoints, stop: Stop) -> None:
    """Start the job, say so when it runs, and wait."""
    cluster = environment.MiniCluster(
        NAME,
        ends.home / "flink" / "samples",
        jars.paths("connector"),
        java_home=java.java_home(),
        heap_mb=settings.flink.heap_mb,
        checkpoint_ms=settings.flink.checkpoint_ms,
    )
    windows = samples.Windows(settings.samples.label_window_s, settings.samples.attribution_window_s, settings.samples.disorder_s)

    def define() -> environment.Job:
        session = environment.table_environment(cluster)
        return environment.submit(session, samples.define(session.tables, ends.kafka, windows))

    job = environment.start(define, stop)
    if job is None:
        return
    if job.wait_running(stop):
        ready(ends.home, NAME, rest=job.session.rest, job=job.job_id)
    job.wait(stop)
