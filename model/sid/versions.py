"""Bundles change by new versions only: items appended without touching the SIDs of the others, and the way from one version to the next."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.sid import bundle as bundles
from model.sid import encoder
from model.sid.bundle import Bundle, BundleError
from model.store import ModelStore, StoreError

Vectors = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]

MIGRATIONS = "migrations"
MAP = "map.parquet"
MANIFEST = "manifest.json"
SCHEMA = "migration/1"


def append(old: Bundle, items: pa.Table, together: pa.Table | None = None, *, seed: int = 0) -> Bundle:
    """A bundle with more items: the same codebooks, the SIDs and embeddings of the old items as they were, the new ones after them.

    A new video with the embeddings of an old one takes its SID; one that only falls on a taken SID is moved to the nearest free one, if the
    bundle was made so.

    Args:
        items: one row per new video, with the columns of the bundle's catalogue. With `content` and `creative` these are the embeddings,
            and must be of the encoder of the old ones. Without, the attributes of old and new items are embedded together and turned
            (orthogonal Procrustes, Schönemann, 1966) so that the old items come to lie where they were.
        together: what was watched together, see `encoder.embed`.

    Raises:
        encoder.CatalogueError: an item that the bundle has already, or that occurs twice; a column that is missing or of another type;
            embeddings that are not finite, zero, or of another length than the bundle's.
    """
    bundles.check_ids(items)
    known = old.rows_of(items["item_id"].to_numpy())
    if (known >= 0).any():
        raise encoder.CatalogueError(
            f"item {items['item_id'][int((known >= 0).argmax())]} is in bundle {old.version} already, where a SID never changes: "
            "append only new items, or build a new bundle"
        )
    columns = [name for name in old.catalogue.column_names if name not in ("content", "creative", "sid")]
    before, after = old.catalogue.select(columns), _like(items, old.catalogue.select(columns).schema)
    vectors = _vectors(old, before, after, items, together, seed)
    books = (list(old.content), list(old.creative))
    sids = _twins(old, vectors)
    fresh = (sids < 0).any(axis=1)
    if fresh.any():
        new = (vectors[0][fresh], vectors[1][fresh])
        sids[fresh] = bundles.assign(after.filter(pa.array(fresh)), new, books, old.recipe, taken=old.sids)
    joined = tuple(np.concatenate(pair) for pair in zip(old.vectors(), vectors, strict=True))
    return bundles.assemble(
        pa.concat_tables([before, after]),
        (joined[0], joined[1]),
        books,
        np.concatenate([old.sids, sids]),
        old.recipe,
        seed=seed,
        parent=old.version,
    )


class SidError(ValueError):
    """SIDs that are none of the bundle they are said to be of; the message names the row."""


@dataclass(frozen=True)
class Migration:
    """Where the SIDs of one version went in another.

    items: `item_id`, `old`, `new` (list<int32> SIDs), one row per item that both have. sids: `old`, `new`, one row per old SID of such an
    item: where its items went apart, `new` is that of the one nearest to what the old SID stands for.
    """

    old: str
    new: str
    items: pa.Table
    sids: pa.Table

    def translate(self, sids: npt.ArrayLike, version: str) -> Codes:
        """SIDs of the new version int32[M, levels] for SIDs of the old one; all -1 for one that no item of both versions has.

        Args:
            version: the bundle that `sids` are of.

        Raises:
            BundleError: it is not the version that this migration starts from.
            ValueError: another number of levels than the old version has.
        """
        if version != self.old:
            raise BundleError(f"SIDs of bundle {version} cannot be translated by the migration from {self.old} to {self.new}")
        codes = np.asarray(sids, np.int64)
        old, new = _matrix(self.sids["old"]), _matrix(self.sids["new"])
        if codes.ndim != 2 or codes.shape[1] != old.shape[1]:
            raise ValueError(
                f"not SIDs of bundle {self.old}: {old.shape[1]} codes a row are expected, the array has the shape {codes.shape}"
            )
        _, place = np.unique(np.concatenate([old, codes]), axis=0, return_inverse=True)
        place = place.reshape(-1)
        row = np.full(int(place.max(initial=-1)) + 1, -1)
        row[place[: len(old)]] = np.arange(len(old))
        found = row[place[len(old) :]]
        return np.where((found >= 0)[:, None], new[found], -1).astype(np.int32)

    def save(self, store: ModelStore) -> str:
        """Write the map, the manifest last, and return the manifest's URI; what exists is not touched."""
        folder = f"{MIGRATIONS}/{self.old}--{self.new}"
        if not store.exists(f"{folder}/{MANIFEST}"):
            sink = io.BytesIO()
            kinds = pa.array(["item"] * len(self.items) + ["sid"] * len(self.sids))
            ids = pa.concat_arrays([self.items["item_id"].combine_chunks(), pa.nulls(len(self.sids), pa.int64())])
            both = {name: pa.chunked_array([*self.items[name].chunks, *self.sids[name].chunks]) for name in ("old", "new")}
            pq.write_table(pa.table({"kind": kinds, "item_id": ids, **both}), sink, compression="zstd")
            store.write(f"{folder}/{MAP}", sink.getvalue())
            facts = {"schema": SCHEMA, "old": self.old, "new": self.new, "sha256": hashlib.sha256(sink.getvalue()).hexdigest()}
            store.write(f"{folder}/{MANIFEST}", json.dumps(facts, indent=1).encode())
        return store.uri(f"{folder}/{MANIFEST}")

    @classmethod
    def load(cls, store: ModelStore, old: str, new: str) -> Migration:
        """Read a migration that was saved.

        Raises:
            BundleError: there is none, or it is damaged or of another schema.
        """
        folder = f"{MIGRATIONS}/{old}--{new}"
        try:
            facts, body = json.loads(store.read(f"{folder}/{MANIFEST}")), store.read(f"{folder}/{MAP}")
        except (StoreError, ValueError) as error:
            raise BundleError(f"no migration from {old} to {new}: make it with `sidstream sids migrate`: {error}") from error
        if facts != {"schema": SCHEMA, "old": old, "new": new, "sha256": hashlib.sha256(body).hexdigest()}:
            raise BundleError(
                f"{store.url}/{folder}/{MAP}: it is not what {MANIFEST} describes: make it again with `sidstream sids migrate`"
            )
        table = pq.read_table(io.BytesIO(body))
        items = table.filter(pc.equal(table["kind"], "item")).select(["item_id", "old", "new"])
        return cls(old, new, items, table.filter(pc.equal(table["kind"], "sid")).select(["old", "new"]))


def migrate(old: Bundle, new: Bundle) -> Migration:
    """The way from one bundle to another that shares items with it.

    Raises:
        BundleError: they have no item in common.
    """
    rows = new.rows_of(old.item_ids)
    kept = np.flatnonzero(rows >= 0)
    if not len(kept):
        raise BundleError(f"bundles {old.version} and {new.version} have no item in common: there is nothing to translate")
    before, after = old.sids[kept], new.sids[rows[kept]]
    distance = sum(
        ((have[kept] - rebuilt) ** 2).sum(axis=1) for have, rebuilt in zip(old.vectors(), old.embeddings_of(before), strict=True)
    )
    order = np.argsort(distance, kind="stable")
    distinct, nearest = np.unique(before[order], axis=0, return_index=True)
    items = pa.table({"item_id": old.item_ids[kept], "old": _lists(before), "new": _lists(after)})
    return Migration(old.version, new.version, items, pa.table({"old": _lists(distinct), "new": _lists(after[order][nearest])}))


def translated(old: Bundle, migration: Migration, table: pa.Table) -> pa.Table:
    """A table with its column `sid` (list of int) of the old bundle translated; null where no item of both bundles has the SID.

    Raises:
        SidError: no such column, a row that is null or of another length, or a code that its level does not have.
    """
    if "sid" not in table.column_names:
        raise SidError(f"column sid: missing; the table has {', '.join(table.column_names)}")
    lists = table["sid"].combine_chunks()
    wrong = pc.fill_null(pc.not_equal(pc.list_value_length(lists), old.levels), True).to_numpy(zero_copy_only=False)
    if wrong.any():
        row = int(wrong.argmax())
        raise SidError(f"row {row}: {lists[row].as_py()} is no SID of bundle {old.version}, which has {old.levels} codes")
    try:
        codes = old.checked(_matrix(table["sid"]))
    except ValueError as error:
        raise SidError(str(error)) from error
    new = migration.translate(codes, old.version)
    known = (new >= 0).all(axis=1)
    column = pa.array([row if found else None for row, found in zip(new.tolist(), known.tolist(), strict=True)], pa.list_(pa.int32()))
    return table.set_column(table.column_names.index("sid"), "sid", column)


def _like(items: pa.Table, schema: pa.Schema) -> pa.Table:
    missing = [name for name in schema.names if name not in items.column_names]
    if missing:
        raise encoder.CatalogueError(f"column {missing[0]}: missing; the bundle's catalogue has it")
    try:
        return items.select(schema.names).replace_schema_metadata(None).cast(schema)
    except pa.ArrowException as error:
        raise encoder.CatalogueError(f"the new items do not have the column types of the bundle's catalogue: {error}") from error


def _vectors(
    old: Bundle, before: pa.Table, after: pa.Table, items: pa.Table, together: pa.Table | None, seed: int
) -> tuple[Vectors, Vectors]:
    """Content and creative of the new items, in the space of the old ones."""
    have = old.vectors()
    given = {"content", "creative"} <= set(items.column_names)
    found = encoder.embed(items if given else pa.concat_tables([before, after]), together, dimensions=have[0].shape[1], seed=seed)
    for name, ours, theirs in zip(("content", "creative"), found, have, strict=True):
        if ours.shape[1] != theirs.shape[1]:
            raise encoder.CatalogueError(f"column {name}: {ours.shape[1]} numbers a row, bundle {old.version} has {theirs.shape[1]}")
    if given:
        return found
    turned = [_turned(ours, theirs) for ours, theirs in zip(found, have, strict=True)]
    return turned[0], turned[1]


def _turned(found: Vectors, old: Vectors) -> Vectors:
    """The rows of `found` after those of `old`, rotated so that the first rows fit `old` best."""
    left, _, right = np.linalg.svd(found[: len(old)].astype(np.float64).T @ old.astype(np.float64))
    return (found[len(old) :] @ (left @ right)).astype(np.float32)


def _twins(old: Bundle, vectors: tuple[Vectors, Vectors]) -> Codes:
    """The SID of the old item with exactly these embeddings; -1 where there is none."""
    known = {row.tobytes(): number for number, row in enumerate(np.concatenate(old.vectors(), axis=1))}
    rows = [known.get(row.tobytes(), -1) for row in np.concatenate(vectors, axis=1)]
    found = np.array(rows)
    return np.where((found >= 0)[:, None], old.sids[found], -1).astype(np.int32)


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    lists = column.combine_chunks()
    return pc.list_flatten(lists).to_numpy(zero_copy_only=False).reshape(len(lists), -1).astype(np.int64)


def _lists(values: npt.NDArray) -> pa.ListArray:
    rows, width = values.shape
    return pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * width, pa.array(values.reshape(-1)))
