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
import pyarrow.parquet as pq
from tqdm import tqdm

from jobs import process, sid_minibatch, sid_states
from jobs import settings as configuration
from jobs.settings import ConfigError, Sids
from model.sid import bundle, heads, quantizer, report, versions
from model.sid.encoder import CatalogueError
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


def recipe(sizes: Sids) -> bundle.Recipe:
    variant = quantizer.Variant(sizes.balance, sizes.uniformity, sizes.fsq_values)
    return bundle.Recipe(variant, sizes.smoothing, sizes.collisions, sizes.hash_columns)


def parquet(path: Path) -> pa.Table:
    """A table from a file.

    Raises:
        ConfigError: the file is missing or is no Parquet file.
    """
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{path} cannot be read as a Parquet file: {str(error).splitlines()[0]}") from error


def with_states(catalogue: pa.Table, embeddings: Path | None, encoder: str | None, file: Path | None, device: str) -> pa.Table:
    """The catalogue with the states that the options of a command name; `file` is where it was read from."""
    if embeddings is not None and encoder is not None:
        raise ConfigError("--embeddings and --encoder both give states: take one of them")
    if embeddings is not None:
        return sid_states.joined(catalogue, parquet(embeddings))
    return sid_states.encoded(catalogue, encoder, file.parent if file else Path(), device) if encoder else catalogue


def publish(store: ModelStore, made: bundle.Bundle, event: str) -> None:
    """Write a bundle and make it the current one."""
    uri = made.save(store)
    store.point(bundle.POINTER, made.version)
    log.info("event=%s version=%s items=%d codes=%s manifest=%s", event, made.version, len(made.item_ids), made.code_counts, uri)


def learned(catalogue: pa.Table, together: pa.Table | None, sizes: Sids, seed: int) -> heads.Heads:
    """Heads over the catalogue's states, with a progress bar on a terminal."""
    config = heads.HeadConfig(**sizes.heads.model_dump(), seed=seed)
    with tqdm(total=config.steps, desc="heads", unit="step", disable=None) as bar:

        def progress(step: int, losses: dict[str, float]) -> None:
            bar.update()
            if step == config.steps or step % 200 == 0:
                log.info("event=heads step=%d %s", step, " ".join(f"{name}={loss:.4f}" for name, loss in losses.items()))

        return heads.learn(catalogue, together, config, progress)


def build(store: ModelStore, catalogue: pa.Table, together: pa.Table | None, sizes: Sids, seed: int) -> bundle.Bundle:
    """Make a bundle, with a progress bar on a terminal, write it, and make it the current one.

    Where the catalogue brings an encoder's states, two heads are trained over them first, and kept beside the bundle.
    """
    trained = learned(catalogue, together, sizes, seed) if heads.has_states(catalogue) else None
    if trained is not None:
        catalogue = heads.embedded(catalogue, trained)
    large = sid_minibatch.wanted(catalogue.num_rows, sizes)
    fit = sid_minibatch.fit_in(configuration.home() / "checkpoints" / "sids", sizes, seed) if large else None
    steps = bundle.steps(sizes.content_levels, sizes.creative_levels)
    with tqdm(total=steps, desc="semantic IDs", unit="step", disable=True if large else None) as bar:
        built = bundle.build(
            catalogue,
            together,
            content_levels=sizes.content_levels,
            creative_levels=sizes.creative_levels,
            codes=sizes.codes,
            seed=seed,
            recipe=recipe(sizes),
            progress=lambda: bar.update() and None,
            fit=fit,
        )
    if trained is not None:
        heads.save(trained, store, built.version)
    publish(store, built, "built")
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
        except (CatalogueError, bundle.BundleError, versions.SidError, StoreError, kuairand.SourceError) as error:
            log.error('event=failed reason="%s"', error)
            sys.exit(1)

    return guarded


CONFIG = click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Configuration file.")
PARQUET = click.Path(path_type=Path, dir_okay=False)
TOGETHER = click.option(
    "--together",
    type=PARQUET,
    help="Parquet file of what was watched together: one row per user, item_ids (list), optionally weights (list).",
)
EMBEDDINGS = click.option(
    "--embeddings",
    type=PARQUET,
    help="Parquet file of a frozen encoder's states: item_id, and states (lists), or content_states and creative_states; "
    "two heads are trained over them, on pairs of the catalogue's columns product_id (content) and template_id (creative), "
    "and of what Swing finds together.",
)
ENCODER = click.option(
    "--encoder",
    help="transformers:PATH, the folder of a vision-language model and its processor: "
    "it makes the states from the catalogue's column frames (lists of image files).",
)
DEVICE = click.option("--device", default="cpu", show_default=True, help="Where the encoder runs.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group()
def command() -> None:
    """Build semantic IDs for a catalogue; report on their quality."""


@command.command("build")
@click.option("--source", type=click.Choice(["simulator", "kuairand"]), help="Whose catalogue; default: the configuration's, simulator.")
@click.option(
    "--catalogue",
    "file",
    type=PARQUET,
    help="Parquet file of a catalogue of your own: item_id, and content and creative (lists) or attributes.",
)
@TOGETHER
@EMBEDDINGS
@ENCODER
@DEVICE
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
    file: Path | None,
    together: Path | None,
    embeddings: Path | None,
    encoder: str | None,
    device: str,
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
    watched = parquet(together) if together else None
    seed = settings.sids.seed if seed is None else seed
    if file is not None:
        catalogue = parquet(file)
    elif (source or settings.sids.source) == "kuairand":
        folder = folder or settings.sids.dir
        if folder is None:
            raise ConfigError("the source kuairand needs --dir or sids.dir, the folder of its files")
        before_ms = int(before.replace(tzinfo=UTC).timestamp() * 1000) if before else None
        catalogue, watched = kuairand_input(folder, before_ms)
    else:
        sizes = {name: size for name, size in (("items", items), ("users", users)) if size is not None}
        catalogue = simulator.World(seed=seed, **sizes).catalogue()
    catalogue = with_states(catalogue, embeddings, encoder, file, device)
    built = build(store, catalogue, watched, settings.sids, seed)
    show(built.version, built.quality, as_json, seconds=round(time.monotonic() - started, 1))


@command.command("append")
@click.argument("file", type=PARQUET)
@TOGETHER
@EMBEDDINGS
@ENCODER
@DEVICE
@click.option("--version", help="The bundle to append to; default: the current one.")
@CONFIG
@AS_JSON
@one_line_errors
def append_command(
    file: Path,
    together: Path | None,
    embeddings: Path | None,
    encoder: str | None,
    device: str,
    version: str | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Append the items of a Parquet FILE to a bundle: a new version, the current one from then on, where no old item's SID has changed.

    States pass through the heads that the bundle was made with.
    """
    settings = configuration.load(config)
    store = ModelStore(process.model_store(settings, configuration.home()))
    old = bundle.Bundle.load(store, version)
    items = with_states(parquet(file), embeddings, encoder, file, device)
    trained = heads.load(store, old.version) if heads.has_states(items) else None
    if trained is not None:
        items = heads.embedded(items, trained)
    made = versions.append(old, items, parquet(together) if together else None, seed=settings.sids.seed)
    if trained is not None:
        heads.save(trained, store, made.version)
    publish(store, made, "appended")
    show(made.version, made.quality, as_json, parent=old.version, appended=len(made.item_ids) - len(old.item_ids))


@command.command("migrate")
@click.option("--from", "old", required=True, help="The version whose SIDs are to be translated.")
@click.option("--to", "new", help="The version that they are translated to; default: the current one.")
@click.option("--sids", "file", type=PARQUET, help="Parquet file with a column sid (list of int) of the old version, to be translated.")
@click.option("--out", type=PARQUET, help="Where the translated file goes: sid of the new version, null where no item has it in both.")
@CONFIG
@one_line_errors
def migrate_command(old: str, new: str | None, file: Path | None, out: Path | None, config: Path | None) -> None:
    """Write the map from the SIDs of one version to those of another into the model store, beside the bundles."""
    if (file is None) != (out is None):
        raise ConfigError("--sids and --out belong together: what is translated, and where it goes")
    store = ModelStore(process.model_store(configuration.load(config), configuration.home()))
    before, after = bundle.Bundle.load(store, old), bundle.Bundle.load(store, new)
    made = versions.migrate(before, after)
    uri = made.save(store)
    same = sum(a == b for a, b in zip(made.items["old"].to_pylist(), made.items["new"].to_pylist(), strict=True))
    click.echo(
        f"{before.version} to {after.version}: {len(made.items):,} items are in both, {same:,} of them with the same SID; "
        f"{len(before.item_ids) - len(made.items):,} are gone, {len(after.item_ids) - len(made.items):,} are new\n{uri}"
    )
    if file is not None:
        table = parquet(file)
        translated = versions.translated(before, made, table)
        pq.write_table(translated, out)
        click.echo(f"{table.num_rows:,} SIDs translated, {translated['sid'].null_count:,} of them to nothing: {out}")


@command.command("report")
@click.option("--version", help="A bundle's version; default: the current one.")
@click.option("--plots", type=click.Path(path_type=Path, file_okay=False), help="Folder for usage.png, recall.png and probe.png.")
@CONFIG
@AS_JSON
@one_line_errors
def report_command(version: str | None, plots: Path | None, config: Path | None, as_json: bool) -> None:
    """Load a bundle, check it against its checksums, and print its quality; with --plots, draw it too."""
    store = ModelStore(process.model_store(configuration.load(config), configuration.home()))
    loaded = bundle.Bundle.load(store, version)
    show(loaded.version, loaded.quality, as_json)
    if plots:
        from model.sid import plots as pictures  # here, because only this needs matplotlib

        for path in pictures.draw(loaded, plots):
            log.info("event=drawn file=%s", path)


def show(version: str, quality: dict[str, Any], as_json: bool, **facts: Any) -> None:
    if as_json:
        click.echo(json.dumps({"version": version, **facts, "quality": quality}, indent=1))
    else:
        click.echo(f"bundle {version}" + "".join(f", {value} {name}" for name, value in facts.items()))
        click.echo(report.table(quality))
