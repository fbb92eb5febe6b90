"""`sidstream topics`: create the topics of the configuration on whatever broker it names."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from confluent_kafka import KafkaException

from features.repository import NotApplied, defined_views, registered_views
from jobs.process import BROKEN_CONFIGURATION, Endpoints, endpoints
from jobs.settings import ConfigError, load
from jobs.settings import home as home_folder
from streaming import topics


@click.group()
def command() -> None:
    """Create the topics of the configuration."""


@command.command()
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="YAML; every key has a default.")
@click.option("--replication", type=int, default=-1, help="Copies of each partition; default: the broker's own default.")
def create(config: Path | None, replication: int) -> None:
    """Create what is not there; a topic that exists is left as it is."""
    try:
        settings = load(config)
        where = endpoints(settings, home_folder())
    except ConfigError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(BROKEN_CONFIGURATION)
    wanted = topics.specs(
        partitions=settings.kafka.partitions,
        retention_ms=settings.kafka.retention_ms,
        retention_bytes=settings.kafka.retention_bytes,
        views=views(where),
    )
    try:
        created = topics.create(where.kafka, wanted, replication=replication)
    except KafkaException as error:
        broker, mend = where.kafka["bootstrap.servers"], "start it, or correct kafka.bootstrap and kafka.security"
        raise click.ClickException(f"kafka {broker}: {error.args[0].str()}: {mend}") from error
    click.echo(f"{len(created)} topics created, {len(wanted) - len(created)} were there")


def views(where: Endpoints) -> list[str]:
    """Names of the feature views: of the applied repository, or, before it was applied, of our definitions (which takes Feast's import)."""
    try:
        return [view.name for view in registered_views(where.feature_repo)]
    except NotApplied:
        return [view.name for view in defined_views()]
