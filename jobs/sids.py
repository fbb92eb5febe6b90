"""`sidstream sids`: make the semantic IDs of a catalogue, and say how good they are."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from jobs import process
from jobs import settings as configuration
from jobs.settings import ConfigError, Sids
from model.sid import bundle, encoder, report
from model.store import ModelStore, StoreError
from streaming.sources import kuairand, simulator

log = logging.getLogger("sidstream.sids")


def kuairand_input(folder: Path, before_ms: int | None) -> tuple[pa.Table, pa.Table]:
    """Catalogue of a KuaiRand folder, and what was watched together before `before_ms` (None = before the log's first event).

    Raises:
        kuairand.SourceError: a file is missing or cannot be used.
    """
    if before_ms is None:
        batches = (batch for path in kuairand.log_files(folder) for batch in kuairand.batches(path, {"time_ms": pa.int64()}))
        before_ms = min((first for batch in batches if (first := pc.min(batch["time_ms"]).as_py()) is not None), default=None)
    return kuairand.catalogue(folder), kuairand.history(folder, before_ms)


def build(store: ModelStore, catalogue: pa.Table, together: pa.Table | None, sizes: Sids, seed: int) -> bundle.Bundle:
    """Make a bundle, with a progress bar on a terminal, write it, and make it the current one."""
    with tqdm(total=bundle.steps(sizes.content_levels, sizes.creative_levels), desc="semantic IDs", unit="step", disable=None) as bar:
        built = bundle.build(
            catalogue,
            together,
            content_levels=sizes.content_levels,
            creative_levels=sizes.creative_levels,
            codes=sizes.codes,
            seed=seed,
            progress=lambda: bar.update() and None,
        )
    uri = built.save(store)
    store.point(bundle.POINTER, built.version)
    log.info("event=built version=%s items=%d codes=%s manifest=%s", built.version, len(built.item_ids), built.code_counts, uri)
    return built


def one_line_errors(work: Callable[..., None]) -> Callable[..., None]:
    """What a person can mend is said in one line, with the exit code of a broken configuration or of a failure."""

    @wraps(work)
    def guarded(*args: Any, **kwargs: Any) -> None:
        process.log_to_stderr()
        try:
            work(*args, **kwargs)
        except ConfigError as error:
            log.error('event=failed reason="%s"', error)
            sys.exit(process.BROKEN_CONFIGURATION)
        except (encoder.CatalogueError, bundle.BundleError, StoreError, kuairand.SourceError) as error:
            log.error('event=failed reason="%s"', error)
            sys.exit(1)

    return guarded


CONFIG = click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Configuration file.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group()
def command() -> None:
    """Build semantic IDs for a catalogue; report on their quality."""


@command.command("build")
@click.option("--source", type=click.Choice(["simulator", "kuairand"]), help="Whose catalogue; default: the configuration's, simulator.")
@click.option("--dir", "folder", type=click.Path(path_type=Path, file_okay=False), help="Folder of the log's files (kuairand).")
@click.option(
    "--before", type=click.DateTime(), help="Only what was watched before this time (UTC) counts; default: the log's first event."
)
@click.option("--items", type=click.IntRange(min=1), help="Size of the simulated catalogue.")
@click.option("--users", type=click.IntRange(min=1), help="Number of simulated users.")
@click.option("--seed", type=int, help="Of the simulated world and of the codebooks; default: the configuration's, 0.")
@CONFIG
@AS_JSON
@one_line_errors
def build_command(
    source: str | None,
    folder: Path | None,
    before: datetime | None,
    items: int | None,
    users: int | None,
    seed: int | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Make a bundle of codebooks and catalogue, write it to the model store, and make it the current one."""
    settings = configuration.load(config)
    store = ModelStore(process.model_store(settings, configuration.home()))
    started = time.monotonic()
    together: pa.Table | None = None
    seed = settings.sids.seed if seed is None else seed
    if (source or settings.sids.source) == "kuairand":
        folder = folder or settings.sids.dir
        if folder is None:
            raise ConfigError("the source kuairand needs --dir or sids.dir, the folder of its files")
        before_ms = int(before.replace(tzinfo=UTC).timestamp() * 1000) if before else None
        catalogue, together = kuairand_input(folder, before_ms)
    else:
        sizes = {name: size for name, size in (("items", items), ("users", users)) if size is not None}
        catalogue = simulator.World(seed=seed, **sizes).catalogue()
    built = build(store, catalogue, together, settings.sids, seed)
    show(built.version, built.quality, as_json, seconds=round(time.monotonic() - started, 1))


@command.command("report")
@click.option("--version", help="A bundle's version; default: the current one.")
@CONFIG
@AS_JSON
@one_line_errors
def report_command(version: str | None, config: Path | None, as_json: bool) -> None:
    """Load a bundle, check it against its checksums, and print its quality."""
    store = ModelStore(process.model_store(configuration.load(config), configuration.home()))
    loaded = bundle.Bundle.load(store, version)
    show(loaded.version, loaded.quality, as_json)


def show(version: str, quality: dict[str, Any], as_json: bool, **facts: Any) -> None:
    if as_json:
        click.echo(json.dumps({"version": version, **facts, "quality": quality}, indent=1))
    else:
        click.echo(f"bundle {version}" + "".join(f", {value} {name}" for name, value in facts.items()))
        click.echo(report.table(quality))
