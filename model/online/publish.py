"""Versions of the model for serving: full ones, and deltas with the embedding rows that changed since the last full one.

`versions/<version>/` holds `dense.safetensors` (always all of it), `tables.safetensors` (whole tables, or `<table>.rows` and
`<table>.values` of a delta), `generated.json` (SIDs of videos that no catalogue has) and, written last, `manifest.json`. `CURRENT` names
the version to serve. A delta's base is always a full version, so loading reads at most two.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from model.grm import Grm, GrmConfig
from model.store import ModelStore, StoreError

SCHEMA = "model/1"
FOLDER = "versions"
POINTER = "CURRENT"
MANIFEST = "manifest.json"
DENSE, TABLES, GENERATED = "dense.safetensors", "tables.safetensors", "generated.json"


class PublishError(Exception):
    """A version that is missing, damaged, or of another schema; the message names the file."""


@dataclass(frozen=True)
class Manifest:
    """What a version is.

    Attributes:
        base: the full version that a delta applies to; None = this one is full.
        offsets: next offset of every partition whose samples it has learned.
        watermark_ts: latest impression time among them, ms.
        files: SHA-256 and size by name.
    """

    version: str
    base: str | None
    bundle_version: str
    config: dict[str, Any]
    offsets: dict[str, dict[str, int]]
    watermark_ts: int
    samples_trained: int
    published_ms: int
    metrics: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    schema: str = SCHEMA

    @classmethod
    def parse(cls, body: bytes) -> Manifest:
        tree = json.loads(body)
        if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
            raise ValueError(f"schema {SCHEMA} is expected")
        return cls(**{name: tree[name] for name in cls.__dataclass_fields__ if name in tree})


@dataclass(frozen=True)
class Snapshot:
    """A copy of the weights at one moment; `rows` of each table (int64[n]) that may differ from the base, None = all."""

    dense: dict[str, Tensor]
    tables: dict[str, Tensor]
    rows: dict[str, Tensor] | None
    generated: dict[int, tuple[int, ...]]


@dataclass(frozen=True)
class Published:
    """A loaded version; `generated` maps the videos that no catalogue has to their SIDs."""

    model: Grm
    manifest: Manifest
    generated: dict[int, tuple[int, ...]]


def snapshot(model: Grm, rows: Mapping[str, Tensor] | None, generated: Mapping[int, tuple[int, ...]]) -> Snapshot:
    """Copy what a version needs: everything, or the dense weights and the given rows."""
    dense = {name: parameter.detach().clone() for name, parameter in model.dense_parameters()}
    tables = model.tables()
    kept = {name: table.clone() if rows is None else table[rows[name]] for name, table in tables.items()}
    return Snapshot(dense, kept, None if rows is None else dict(rows), dict(generated))


class Publisher:
    """Decides between full and delta, writes versions, moves the pointer, and prunes.

    Args:
        kept: versions that stay loadable, besides the bases they need.
        full_share: a delta with more than this share of all rows becomes a full version.
    """

    def __init__(self, store: ModelStore, bundle_version: str, kept: int = 8, full_share: float = 0.3) -> None:
        self._store, self._bundle_version, self._kept, self._full_share = store, bundle_version, kept, full_share
        self._base: str | None = None
        self._changed: dict[str, Tensor] = {}

    def take(self, model: Grm, touched: Mapping[str, Tensor], generated: Mapping[int, tuple[int, ...]]) -> Snapshot:
        """Copy what the next version needs; `touched` are the rows learned since the last call. Quick: the learner waits for it."""
        for name, rows in touched.items():
            known = self._changed.get(name)
            self._changed[name] = rows if known is None else torch.unique(torch.cat([known, rows]))
        size = sum(len(table) for table in model.tables().values())
        share = sum(len(rows) for rows in self._changed.values()) / size
        if self._base is None or share > self._full_share:
            # Changes from here on are relative to the full version that is being made; should it fail, _base is None and the next is full.
            self._base, self._changed = None, {}
            return snapshot(model, None, generated)
        return snapshot(model, self._changed, generated)

    def publish(
        self,
        taken: Snapshot,
        config: GrmConfig,
        *,
        offsets: Mapping[str, Mapping[int, int]],
        watermark_ts: int,
        samples_trained: int,
        metrics: Mapping[str, Any],
    ) -> tuple[Manifest, str]:
        """Write a snapshot as the newest version and point `CURRENT` to it. Returns its manifest and the manifest's URI.

        Raises:
            StoreError: the store cannot be written; `CURRENT` still names the version before.
        """
        version = self._next()
        folder = f"{FOLDER}/{version}"
        tables = taken.tables
        if taken.rows is not None:
            tables = {f"{name}.rows": rows for name, rows in taken.rows.items()} | {
                f"{name}.values": taken.tables[name] for name in taken.rows
            }
        bodies = {
            DENSE: safetensors.torch.save(taken.dense),
            TABLES: safetensors.torch.save(tables),
            GENERATED: json.dumps([[item, list(sid)] for item, sid in taken.generated.items()]).encode(),
        }
        manifest = Manifest(
            version=version,
            base=None if taken.rows is None else self._base,
            bundle_version=self._bundle_version,
            config=config.to_json(),
            offsets={topic: {str(partition): offset for partition, offset in of.items()} for topic, of in offsets.items()},
            watermark_ts=watermark_ts,
            samples_trained=samples_trained,
            published_ms=int(time.time() * 1000),
            metrics=dict(metrics),
            files={name: {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)} for name, body in bodies.items()},
        )
        for name, body in bodies.items():
            self._store.write(f"{folder}/{name}", body)
        self._store.write(f"{folder}/{MANIFEST}", json.dumps(vars(manifest), indent=1).encode())
        self._store.point(POINTER, version)
        if taken.rows is None:
            self._base = version
        self._prune(version)
        return manifest, self._store.uri(f"{folder}/{MANIFEST}")

    def _next(self) -> str:
        """Versions count up in order of publication, over restarts too."""
        used = [int(name[1:]) for name in self._store.list(FOLDER) if name[:1] == "v" and name[1:].isdigit()]
        return f"v{1 + max(used, default=0):08d}"

    def _prune(self, newest: str) -> None:
        """Drop what nobody needs: all but the latest versions, their bases, and what `CURRENT` was set to by somebody else."""
        names = self._store.list(FOLDER)
        kept = {newest, *names[-self._kept :]} | ({current} if (current := self._store.pointer(POINTER)) else set())
        for name in sorted(kept & set(names)):
            try:
                base = read_manifest(self._store, name).base
            except PublishError:
                continue  # a version that a kill left without its manifest
            kept |= {base} if base else set()
        for name in names:
            if name not in kept:
                self._store.delete(f"{FOLDER}/{name}")


def read_manifest(store: ModelStore, version: str) -> Manifest:
    """Raises:
    PublishError: it is missing or damaged.
    """
    path = f"{FOLDER}/{version}/{MANIFEST}"
    try:
        return Manifest.parse(store.read(path))
    except StoreError as error:
        raise PublishError(str(error)) from error
    except (ValueError, TypeError) as error:
        raise PublishError(f"{store.url}/{path}: the file is damaged: {error}") from error


def current_version(store: ModelStore) -> str | None:
    return store.pointer(POINTER)


class Reader:
    """Loads versions, and remembers the tables of the last full one, so that a delta costs what changed."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._base: tuple[str, dict[str, Tensor]] | None = None

    def load(self, version: str | None = None) -> Published:
        """A version in a model of its own; None = the one that `CURRENT` names.

        Raises:
            PublishError: there is none, a file of it or of its base is missing or does not have the SHA-256 of its manifest, or a number of
                it is none.
        """
        version = version or current_version(self._store)
        if version is None:
            raise PublishError(f"{self._store.url} names no current model: start the trainer, which publishes one")
        manifest = read_manifest(self._store, version)
        dense = self._tensors(manifest, DENSE)
        if manifest.base is None:
            tables = self._tensors(manifest, TABLES)
            self._base = (version, tables)
        else:
            tables = {name: table.clone() for name, table in self._full(manifest.base).items()}
            delta = self._tensors(manifest, TABLES)
            for name, table in tables.items():
                table[delta[f"{name}.rows"]] = delta[f"{name}.values"]
        for name, tensor in (dense | tables).items():
            # A sum is finite only if every number is, and is much quicker; a sum that overflows is looked into below.
            if not torch.isfinite(tensor.sum()) and (row := _broken_row(tensor)) is not None:
                raise PublishError(f"{self._store.url}/{FOLDER}/{version}: {name}, row {row}, holds a number that is none")
        model = Grm(GrmConfig.from_json(manifest.config))
        try:
            restore(model, dense, tables)
        except (KeyError, RuntimeError) as error:
            raise PublishError(f"{self._store.url}/{FOLDER}/{version}: the tensors are not those of its configuration: {error}") from error
        model.eval()
        generated = {item: tuple(sid) for item, sid in json.loads(self._file(manifest, GENERATED))}
        return Published(model, manifest, generated)

    def _full(self, version: str) -> dict[str, Tensor]:
        if self._base is None or self._base[0] != version:
            self._base = (version, self._tensors(read_manifest(self._store, version), TABLES))
        return self._base[1]

    def _tensors(self, manifest: Manifest, name: str) -> dict[str, Tensor]:
        body = self._file(manifest, name)
        try:
            return safetensors.torch.load(body)
        except safetensors.SafetensorError as error:
            raise PublishError(f"{self._store.url}/{FOLDER}/{manifest.version}/{name}: not safetensors: {error}") from error

    def _file(self, manifest: Manifest, name: str) -> bytes:
        path = f"{FOLDER}/{manifest.version}/{name}"
        try:
            body = self._store.read(path)
        except StoreError as error:
            raise PublishError(str(error)) from error
        if hashlib.sha256(body).hexdigest() != manifest.files.get(name, {}).get("sha256"):
            raise PublishError(f"{self._store.url}/{path}: its SHA-256 is not the one in {MANIFEST}: the file is damaged")
        return body


def _broken_row(tensor: Tensor) -> int | None:
    """The first row with a NaN or an infinity."""
    broken = (~torch.isfinite(tensor)).reshape(len(tensor), -1).any(1).nonzero()
    return int(broken[0]) if len(broken) else None


def restore(model: Grm, dense: Mapping[str, Tensor], tables: Mapping[str, Tensor]) -> None:
    """Put weights into a model.

    Raises:
        KeyError, RuntimeError: a tensor is missing or has another shape.
    """
    with torch.no_grad():
        for name, parameter in model.dense_parameters():
            parameter.copy_(dense[name])
        for name, table in model.tables().items():
            table.copy_(tables[name])
        model.reindex()


def load_current(store: ModelStore) -> Published:
    """The version that `CURRENT` names; see `Reader.load`."""
    return Reader(store).load()


def load(store: ModelStore, version: str) -> Published:
    """One version; see `Reader.load`."""
    return Reader(store).load(version)
