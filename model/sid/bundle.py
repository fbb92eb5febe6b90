"""The bundle: codebooks, and the catalogue with every video's semantic ID; immutable, versioned by its content, checked when it is loaded.

In the model store: `bundles/<version>/{codebooks.safetensors, catalogue.parquet, manifest.json}`, the manifest written last; the pointer
`BUNDLE` names the current version. A SID is a tuple of codes: content levels first, then creative levels.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.numpy

from model.sid import encoder, quantizer, report
from model.store import ModelStore, StoreError

Vectors = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]
Sid = tuple[int, ...]

SCHEMA = "bundle/1"
POINTER = "BUNDLE"
FOLDER = "bundles"
CODEBOOKS = "codebooks.safetensors"
CATALOGUE = "catalogue.parquet"
MANIFEST = "manifest.json"


class BundleError(Exception):
    """A bundle that is missing, damaged or of another schema; the message names the file."""


@dataclass(frozen=True)
class Recipe:
    """How SIDs are made of embeddings; items that are appended later are treated alike.

    variant: how codebooks are fitted. smoothing: share that content takes from what is watched together (S2GR, `cooccurrence.smooth`).
    collisions: "separate" moves all but one of the videos that share a SID to the nearest free one under their content codes; those whose
        embeddings are identical keep sharing, nothing tells them apart. "share" leaves collisions as they are.
    hash_columns: columns whose hash is one more level after the creative ones (the non-semantic last level of GR4AD), with zeros for
        centroids: it tells videos apart and says nothing of them.
    """

    variant: quantizer.Variant = quantizer.PLAIN
    smoothing: float = 0.0
    collisions: Literal["separate", "share"] = "separate"
    hash_columns: tuple[str, ...] = ()

    @classmethod
    def of_json(cls, tree: dict[str, Any]) -> Recipe:
        return cls(**tree | {"variant": quantizer.Variant(**tree["variant"]), "hash_columns": tuple(tree["hash_columns"])})


# What was done before recipes were written down.
UNWRITTEN = Recipe(collisions="share")


@dataclass(frozen=True)
class Bundle:
    """Semantic IDs of one catalogue.

    version: name of this content; equal content has equal versions. content, creative: one float32[codes, d] per level.
    item_ids: int64[N]. sids: int32[N, levels]. catalogue: N rows in the same order, with the columns `content` and `creative` (embeddings,
    list<float32>) and `sid` (list<int32>). quality: the report of `model.sid.report`, as JSON. parent: the version that this one appends
    items to, if it does.
    """

    version: str
    content: tuple[Vectors, ...]
    creative: tuple[Vectors, ...]
    item_ids: npt.NDArray[np.int64]
    sids: npt.NDArray[np.int32]
    catalogue: pa.Table
    quality: dict[str, Any] = field(default_factory=dict)
    recipe: Recipe = UNWRITTEN
    parent: str | None = None

    @property
    def levels(self) -> int:
        return len(self.content) + len(self.creative)

    @property
    def content_levels(self) -> int:
        return len(self.content)

    @property
    def code_counts(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        return tuple(len(codebook) for codebook in (*self.content, *self.creative))

    def rows_of(self, item_ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Row int64[M] in the catalogue of each item (int64[M]); -1 where the catalogue does not have it."""
        wanted = np.asarray(item_ids, np.int64)
        order, known = self._by_item
        place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return np.where(known[place] == wanted, order[place], -1)

    def sids_of(self, item_ids: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """SID int32[M, levels] of each item (int64[M]); all -1 where the catalogue does not have it."""
        rows = self.rows_of(item_ids)
        return np.where((rows >= 0)[:, None], self.sids[rows], -1).astype(np.int32)

    def sid_of(self, item_id: int) -> Sid | None:
        row = int(self.rows_of([item_id])[0])
        return tuple(self.sids[row].tolist()) if row >= 0 else None

    def items_of(self, sid: Sequence[int]) -> list[int]:
        """Items with this SID, in catalogue order; with only its first levels given, all items under that prefix."""
        if len(sid) > self.levels or any(not 0 <= code < count for code, count in zip(sid, self.code_counts, strict=False)):
            return []
        order, keys = self._by_sid
        radix = self._radix
        low = int(np.dot(np.array(sid, np.int64), radix[: len(sid)])) if len(sid) else 0
        width = int(radix[len(sid) - 1]) if len(sid) else int(radix[0]) * self.code_counts[0]
        first, last = np.searchsorted(keys, [low, low + width])
        return self.item_ids[np.sort(order[first:last])].tolist()

    def embeddings_of(self, sids: npt.ArrayLike) -> tuple[Vectors, Vectors]:
        """Content and creative embeddings float32[M, d] that SIDs (int[M, levels]) stand for: the sums of their centroids.

        Raises:
            ValueError: a code that its level does not have, or another number of levels; the message names the row.
        """
        codes = self.checked(sids)
        split = self.content_levels
        return quantizer.decode(codes[:, :split], self.content), quantizer.decode(codes[:, split:], self.creative)

    def checked(self, sids: npt.ArrayLike) -> Codes:
        """SIDs as int32[M, levels], if they are of this bundle's vocabulary; they need not be in its catalogue.

        Raises:
            ValueError: a code that its level does not have, or another number of levels; the message names the row.
        """
        codes = np.asarray(sids, np.int64)
        expected = f"{self.levels} codes below {self.code_counts} are expected"
        if codes.ndim != 2 or codes.shape[1] != self.levels:
            raise ValueError(f"not SIDs of bundle {self.version}: the array has the shape {codes.shape}, {expected}")
        strange = ((codes < 0) | (codes >= np.array(self.code_counts))).any(axis=1)
        if strange.any():
            row = int(strange.argmax())
            raise ValueError(f"not SIDs of bundle {self.version}: row {row} is {codes[row].tolist()}, {expected}")
        return codes.astype(np.int32)

    def vectors(self) -> tuple[Vectors, Vectors]:
        """Content and creative embeddings float32[N, d] of the catalogue."""
        content, creative = (
            self.catalogue[name].combine_chunks().flatten().to_numpy().reshape(len(self.item_ids), -1) for name in ("content", "creative")
        )
        return content, creative

    def embedding_of(self, sid: Sequence[int]) -> tuple[Vectors, Vectors]:
        """Content and creative embedding float32[d] of one SID; raises like embeddings_of()."""
        content, creative = self.embeddings_of([list(sid)])
        return content[0], creative[0]

    def save(self, store: ModelStore) -> str:
        """Write the bundle where it does not exist yet and return the manifest's URI; the pointer is not touched."""
        folder = f"{FOLDER}/{self.version}"
        if not store.exists(f"{folder}/{MANIFEST}"):
            files = _serialize(self.content, self.creative, self.catalogue)
            for name, body in files.items():
                store.write(f"{folder}/{name}", body)
            manifest = {
                "schema": SCHEMA,
                "version": self.version,
                "items": len(self.item_ids),
                "content_levels": self.content_levels,
                "code_counts": list(self.code_counts),
                "files": _digests(files),
                "recipe": asdict(self.recipe),
                "parent": self.parent,
                "quality": self.quality,
            }
            store.write(f"{folder}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
        return store.uri(f"{folder}/{MANIFEST}")

    @classmethod
    def load(cls, store: ModelStore, version: str | None = None) -> Bundle:
        """Read a bundle and check it against its manifest.

        Args:
            version: None = the one that the pointer names.

        Raises:
            BundleError: there is none, or a file is missing, damaged or of another schema.
        """
        version = version or store.pointer(POINTER)
        if version is None:
            raise BundleError(f"{store.url} names no current bundle: build one with `sidstream sids build`")
        folder = f"{FOLDER}/{version}"
        manifest = _read_manifest(store, folder, version)
        try:
            files = {name: store.read(f"{folder}/{name}") for name in (CODEBOOKS, CATALOGUE)}
        except StoreError as error:
            raise BundleError(str(error)) from error
        for name, facts in _digests(files).items():
            if facts != manifest["files"].get(name):
                raise BundleError(
                    f"{store.url}/{folder}/{name}: its SHA-256 is not the one in {MANIFEST}: the file is damaged, build the bundle again"
                )
        tensors = safetensors.numpy.load(files[CODEBOOKS])
        books = {factor: tuple(tensors[name] for name in sorted(tensors) if name.startswith(factor)) for factor in ("content", "creative")}
        catalogue = pq.read_table(io.BytesIO(files[CATALOGUE]))
        recipe = Recipe.of_json(manifest["recipe"]) if "recipe" in manifest else UNWRITTEN
        return cls._of(version, books["content"], books["creative"], catalogue, manifest["quality"], recipe, manifest.get("parent"))

    @classmethod
    def _of(
        cls,
        version: str,
        content: Sequence[Vectors],
        creative: Sequence[Vectors],
        catalogue: pa.Table,
        quality: dict[str, Any],
        recipe: Recipe,
        parent: str | None,
    ) -> Bundle:
        item_ids = catalogue["item_id"].to_numpy()
        sids = catalogue["sid"].combine_chunks().flatten().to_numpy().reshape(len(item_ids), -1).astype(np.int32)
        return cls(version, tuple(content), tuple(creative), item_ids, sids, catalogue, quality, recipe, parent)

    @cached_property
    def _by_item(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        order = np.argsort(self.item_ids, kind="stable")
        return order, self.item_ids[order]

    @cached_property
    def _radix(self) -> npt.NDArray[np.int64]:
        """Worth of one code of each level when a SID is written as one number."""
        return np.append(np.cumprod(np.array(self.code_counts[:0:-1], np.int64))[::-1], 1)

    @cached_property
    def _by_sid(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        keys = self.sids.astype(np.int64) @ self._radix
        order = np.argsort(keys, kind="stable")
        return order, keys[order]


DEFAULT = Recipe()
# Codebooks of the vectors float32[N, d] of one factor ("content" or "creative"): vectors, number of levels, factor.
Fit = Callable[[Vectors, int, str], list[Vectors]]


def build(
    catalogue: pa.Table,
    together: pa.Table | None = None,
    *,
    content_levels: int = 2,
    creative_levels: int = 2,
    codes: int = 64,
    seed: int = 0,
    recipe: Recipe = DEFAULT,
    progress: Callable[[], None] | None = None,
    fit: Fit | None = None,
) -> Bundle:
    """Make the semantic IDs of a catalogue: embed, quantize, measure.

    Args:
        catalogue, together: see `model.sid.encoder.embed`.
        codes: codes per level; a level has fewer where the catalogue is too small for them.
        progress: called `steps(content_levels, creative_levels)` times.
        fit: makes the codebooks instead of `quantizer.fit`, without progress: that of `model.sid.minibatch` for large catalogues.

    Raises:
        encoder.CatalogueError: a catalogue without rows, with an item twice, or with a column that cannot be embedded.
    """
    check_ids(catalogue)
    content, creative = encoder.embed(catalogue, together, seed=seed)
    if recipe.smoothing:
        if together is None:
            raise encoder.CatalogueError("smoothing needs what is watched together, and there is nothing")
        content = encoder.smoothed(content, catalogue, together, recipe.smoothing)
    if fit is not None:
        books = fit(content, content_levels, "content"), fit(creative, creative_levels, "creative")
    else:
        books = (
            quantizer.fit(content, content_levels, codes, seed, progress, recipe.variant),
            quantizer.fit(creative, creative_levels, codes, seed + 1, progress, recipe.variant),
        )
    if recipe.hash_columns:
        books[1].append(np.zeros((codes, creative.shape[1]), np.float32))
    return assemble(catalogue, (content, creative), books, assign(catalogue, (content, creative), books, recipe), recipe, seed=seed)


def check_ids(catalogue: pa.Table) -> None:
    """Let only catalogues pass that have items, each of them once.

    Raises:
        encoder.CatalogueError: no rows, or an item twice.
    """
    if catalogue.num_rows == 0:
        raise encoder.CatalogueError("the catalogue has no items")
    found, count = np.unique(catalogue["item_id"].to_numpy(), return_counts=True)
    if (count > 1).any():
        raise encoder.CatalogueError(f"column item_id: {found[count > 1][0]} occurs {count.max()} times")


def assign(
    catalogue: pa.Table,
    vectors: tuple[Vectors, Vectors],
    books: tuple[Sequence[Vectors], Sequence[Vectors]],
    recipe: Recipe,
    taken: Codes | None = None,
) -> Codes:
    """SIDs int32[N, levels] of videos, collisions dealt with as the recipe says.

    Args:
        vectors: content and creative float32[N, d].
        taken: SIDs int32[M, levels] that others have already.
    """
    semantic = books[1][:-1] if recipe.hash_columns else books[1]
    content, creative = quantizer.encode(vectors[0], books[0]), quantizer.encode(vectors[1], semantic)
    if recipe.hash_columns:
        hashed = encoder.hashed(catalogue, recipe.hash_columns, len(books[1][-1]))
        return np.concatenate([content, creative, hashed[:, None]], axis=1)
    if recipe.collisions == "separate":
        # Twins keep one SID; everybody else gets one of their own.
        _, one, twin = np.unique(np.concatenate(vectors, axis=1), axis=0, return_index=True, return_inverse=True)
        apart = quantizer.separate(vectors[1][one], semantic, creative[one], taken, prefix=content[one], or_share=True)
        creative = apart[twin.reshape(-1)]
    return np.concatenate([content, creative], axis=1)


def assemble(
    catalogue: pa.Table,
    vectors: tuple[Vectors, Vectors],
    books: tuple[Sequence[Vectors], Sequence[Vectors]],
    sids: Codes,
    recipe: Recipe,
    *,
    seed: int = 0,
    parent: str | None = None,
) -> Bundle:
    """The bundle of these parts, measured and named by its content."""
    split = len(books[0])
    codes = (sids[:, :split], sids[:, split:])
    measured = report.measure(
        (vectors[0], quantizer.decode(codes[0], books[0]), codes[0]),
        (vectors[1], quantizer.decode(codes[1], books[1]), codes[1]),
        ([len(book) for book in books[0]], [len(book) for book in books[1]]),
        seed,
    )
    plain = catalogue.drop_columns([name for name in ("content", "creative", "sid") if name in catalogue.column_names])
    full = plain.append_column("sid", _lists(sids))
    full = full.append_column("content", _lists(vectors[0])).append_column("creative", _lists(vectors[1])).replace_schema_metadata(None)
    version = _version(_digests(_serialize(books[0], books[1], full)))
    # Through JSON and back: a built bundle and a loaded one are the same.
    return Bundle._of(version, books[0], books[1], full, json.loads(json.dumps(measured.to_json())), recipe, parent)


def steps(content_levels: int, creative_levels: int) -> int:
    """How often build() reports progress."""
    return (content_levels + creative_levels) * quantizer.ITERATIONS


def _read_manifest(store: ModelStore, folder: str, version: str) -> dict[str, Any]:
    where = f"{store.url}/{folder}/{MANIFEST}"
    try:
        manifest = json.loads(store.read(f"{folder}/{MANIFEST}"))
    except StoreError as error:
        raise BundleError(f"no bundle {version}: {error}") from error
    except ValueError as error:
        raise BundleError(f"{where}: not JSON: the file is damaged, build the bundle again") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise BundleError(f"{where}: the schema {SCHEMA} is expected")
    if manifest.get("version") != version or _version(manifest.get("files", {})) != version:
        raise BundleError(f"{where}: it does not describe version {version}: the file is damaged, build the bundle again")
    return manifest


def _serialize(content: Sequence[Vectors], creative: Sequence[Vectors], catalogue: pa.Table) -> dict[str, bytes]:
    tensors = {f"content.{level:02d}": book for level, book in enumerate(content)}
    tensors |= {f"creative.{level:02d}": book for level, book in enumerate(creative)}
    sink = io.BytesIO()
    pq.write_table(catalogue, sink, compression="zstd")
    return {CODEBOOKS: safetensors.numpy.save(tensors), CATALOGUE: sink.getvalue()}


def _digests(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    return {name: {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)} for name, body in files.items()}


def _version(digests: dict[str, Any]) -> str:
    return "sid-" + hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:12]


def _lists(values: npt.NDArray) -> pa.ListArray:
    rows, width = values.shape
    return pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * width, pa.array(values.reshape(-1)))
