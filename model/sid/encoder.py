"""Two embeddings of every video: what it is about (content) and how it is made (creative), each of unit length.

A video that comes with embeddings of its own (`content` and `creative` columns, say from a vision-language model) keeps them.
Otherwise content is made of what is watched together, tag and author; creative of video and upload type, music, picture and length.
The two should not say the same thing twice, or creative codes would follow from content codes: creative is disentangled from content, see
`model.sid.disentangle`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from model.sid import cooccurrence
from model.sid.disentangle import disentangle, unit

Vectors = npt.NDArray[np.float32]

WINDOW = 5
# Weights of the blocks of each embedding: the root mean square length of a video's part in it.
CONTENT_WEIGHTS = {"together": 1.0, "tag": 0.5, "author": 0.3}
CREATIVE_WEIGHTS = {"upload_type": 1.0, "video_type": 0.4, "music_type": 0.5, "music_id": 0.4, "duration": 1.0, "aspect": 0.8, "size": 0.4}
# A video's own co-occurrences count as much as its tag's average once it was met this often.
PRIOR_MEETINGS = 5.0
SOFT_BINS = 8


class CatalogueError(ValueError):
    """A catalogue that no embedding can be made of; the message names the column."""


def embed(catalogue: pa.Table, together: pa.Table | None = None, *, dimensions: int = 32, seed: int = 0) -> tuple[Vectors, Vectors]:
    """Content and creative embeddings of a catalogue, both float32[N, d], rows of unit length.

    Args:
        catalogue: one row per video. `content` and `creative` (lists of floats, d each) are used as they are, only scaled to unit length;
            else d = `dimensions` and tag, author_id, video_type, upload_type, duration_ms, width, height, music_id, music_type are read.
        together: what was watched before the time of use, one row per user: `item_ids` (list of int64, in order) and, optionally, `weights`
            (list of float, aligned; 0 leaves an item out). Ignored where the catalogue brings embeddings.

    Raises:
        CatalogueError: a column is missing or has values that cannot be embedded.
    """
    if {"content", "creative"} <= set(catalogue.column_names):
        return given(catalogue, "content"), given(catalogue, "creative")
    content = content_vectors(catalogue, together, dimensions, seed)
    return content, disentangle(creative_vectors(catalogue, dimensions, seed), content, seed)


def content_vectors(catalogue: pa.Table, together: pa.Table | None, dimensions: int, seed: int) -> Vectors:
    """Content embedding float32[N, dimensions] from co-occurrence, tag and author, rows of unit length."""
    items = catalogue.num_rows
    tags, authors = _ids(catalogue, "tag"), _ids(catalogue, "author_id")
    blocks = {
        "tag": _random_directions(tags, dimensions, seed),
        "author": _random_directions(_repeated_only(authors), dimensions, seed + 1),
    }
    if together is not None:
        met = sequences(catalogue, together)
        found = cooccurrence.factors(cooccurrence.pmi(met, items, WINDOW), items, dimensions, seed)
        meetings = np.bincount(met.row, met.weight > 0, items).astype(np.float64)
        blocks["together"] = _towards_tag(unit(found), meetings, tags)
    return _compress(blocks, CONTENT_WEIGHTS, dimensions)


def creative_vectors(catalogue: pa.Table, dimensions: int, seed: int) -> Vectors:
    """Creative embedding float32[N, dimensions] before it is disentangled, rows of unit length."""
    width, height = _numbers(catalogue, "width"), _numbers(catalogue, "height")
    blocks = {
        "video_type": _one_hot(_words(catalogue, "video_type")),
        "upload_type": _one_hot(_words(catalogue, "upload_type")),
        "music_type": _one_hot(_ids(catalogue, "music_type")),
        "music_id": _random_directions(_repeated_only(_ids(catalogue, "music_id")), SOFT_BINS, seed + 2),
        "duration": _soft_bins(np.log1p(_numbers(catalogue, "duration_ms"))),
        "aspect": _soft_bins(np.log1p(width) - np.log1p(height)),
        "size": _soft_bins(np.log1p(width) + np.log1p(height)),
    }
    return _compress(blocks, CREATIVE_WEIGHTS, dimensions)


def smoothed(content: Vectors, catalogue: pa.Table, together: pa.Table, share: float) -> Vectors:
    """Content moved towards what it is watched with, see `cooccurrence.smooth`; rows of unit length."""
    return unit(cooccurrence.smooth(content, sequences(catalogue, together), WINDOW, share))


def hashed(catalogue: pa.Table, columns: Sequence[str], codes: int) -> npt.NDArray[np.int32]:
    """A code int32[N] below `codes` for each video from its values in these columns: the same values, the same code, in every catalogue.

    Raises:
        CatalogueError: a column is missing.
    """
    values = [_column(catalogue, name).to_pylist() for name in columns]
    digests = (hashlib.blake2b(repr(row).encode(), digest_size=8).digest() for row in zip(*values, strict=True))
    return np.array([int.from_bytes(digest) % codes for digest in digests], np.int32)


def given(catalogue: pa.Table, column: str) -> Vectors:
    """A column of lists of floats as float32[N, d], rows of unit length.

    Raises:
        CatalogueError: lists of several lengths, or one that is zero or not finite; the message names its row and item.
    """
    rows = catalogue[column].combine_chunks()
    lengths = pc.unique(pc.list_value_length(rows)).to_pylist()
    if len(lengths) != 1 or not lengths[0]:
        raise CatalogueError(
            f"column {column}: every video needs a vector of the same length, found lengths {sorted(map(str, lengths))[:5]}"
        )
    vectors = np.asarray(pc.list_flatten(rows).to_numpy(zero_copy_only=False), np.float64).reshape(len(rows), lengths[0])
    broken = ~(np.isfinite(vectors).all(axis=1) & (np.abs(vectors).sum(axis=1) > 0))
    if broken.any():
        row = int(broken.argmax())
        raise CatalogueError(
            f"column {column}: row {row} (item {catalogue['item_id'][row]}) is zero or not finite, {int(broken.sum())} of {len(rows)} rows "
            "are: leave these items out or embed them again"
        )
    return unit(vectors)


def sequences(catalogue: pa.Table, together: pa.Table) -> cooccurrence.Sequences:
    """Rows of the catalogue in users' order (`together` as in embed()); items that the catalogue does not have are left out.

    Raises:
        CatalogueError: as many weights as items are needed.
    """
    lists = together["item_ids"].combine_chunks()
    ids = pc.list_flatten(lists).to_numpy(zero_copy_only=False)
    user = np.repeat(np.arange(len(lists)), pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False))
    weight = np.ones(len(ids), np.float32)
    if "weights" in together.column_names:
        weight = pc.list_flatten(together["weights"].combine_chunks()).to_numpy(zero_copy_only=False).astype(np.float32)
        if len(weight) != len(ids):
            raise CatalogueError(f"column weights: {len(weight)} values for {len(ids)} items")
    known = catalogue["item_id"].to_numpy()
    order = np.argsort(known, kind="stable")
    place = np.minimum(np.searchsorted(known[order], ids), len(known) - 1)
    found = known[order[place]] == ids
    return cooccurrence.Sequences(order[place][found], user[found], weight[found])


def _towards_tag(vectors: Vectors, meetings: npt.NDArray[np.float64], tags: npt.NDArray[np.int64]) -> Vectors:
    """Pull the vectors of seldom met videos towards the average of their tag; a video never met takes it over."""
    _, tag = np.unique(tags, return_inverse=True)
    count = np.bincount(tag, meetings)
    average = np.stack([np.bincount(tag, meetings * column, len(count)) for column in vectors.T], axis=1) / np.maximum(count, 1.0)[:, None]
    share = (meetings / (meetings + PRIOR_MEETINGS))[:, None]
    return (share * vectors + (1 - share) * average[tag]).astype(np.float32)


def _one_hot(values: npt.NDArray) -> Vectors:
    found, code = np.unique(values, return_inverse=True)
    return np.eye(len(found), dtype=np.float32)[code]


def _random_directions(ids: npt.NDArray[np.int64], dimensions: int, seed: int) -> Vectors:
    """The same random unit vector for the same id; zero for a negative id (unknown)."""
    found, code = np.unique(ids, return_inverse=True)
    directions = unit(np.random.default_rng(seed).standard_normal((len(found), dimensions)))
    directions[found < 0] = 0.0
    return directions[code]


def _repeated_only(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Ids that two videos share, else -1: one that occurs once says nothing that could be generalised."""
    _, code, count = np.unique(ids, return_inverse=True, return_counts=True)
    return np.where(count[code] > 1, ids, -1)


def _soft_bins(values: npt.NDArray[np.float64]) -> Vectors:
    """Membership of a number in SOFT_BINS overlapping bins between its 2nd and 98th percentile, rows adding up to 1."""
    low, high = np.percentile(values, [2, 98])
    centres = np.linspace(low, high, SOFT_BINS)
    width = max((high - low) / (SOFT_BINS - 1), 1e-6)
    near = np.exp(-0.5 * ((np.clip(values, low, high)[:, None] - centres) / width) ** 2)
    return (near / near.sum(axis=1, keepdims=True)).astype(np.float32)


def _compress(blocks: dict[str, Vectors], weights: dict[str, float], dimensions: int) -> Vectors:
    """Centre and weigh the blocks, keep their leading principal components, scale rows to unit length."""
    parts = []
    for name, block in blocks.items():
        centred = block.astype(np.float64) - block.mean(axis=0, dtype=np.float64)
        spread = np.sqrt((centred**2).sum(axis=1).mean())
        parts.append(centred * (weights[name] / spread if spread > 1e-9 else 0.0))
    joined = np.concatenate(parts, axis=1)
    _, axes = np.linalg.eigh(joined.T @ joined)
    axes = axes[:, ::-1][:, :dimensions]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    kept = np.zeros((len(joined), dimensions))
    kept[:, : axes.shape[1]] = joined @ axes
    return unit(kept)


def _column(catalogue: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in catalogue.column_names:
        raise CatalogueError(f"column {name}: missing; the catalogue has {', '.join(catalogue.column_names)}")
    return catalogue[name]


def _ids(catalogue: pa.Table, name: str) -> npt.NDArray[np.int64]:
    return pc.fill_null(_column(catalogue, name), -1).to_numpy().astype(np.int64)


def _numbers(catalogue: pa.Table, name: str) -> npt.NDArray[np.float64]:
    return np.maximum(pc.fill_null(_column(catalogue, name), 0).to_numpy().astype(np.float64), 0.0)


def _words(catalogue: pa.Table, name: str) -> npt.NDArray:
    words: Iterable[str] = pc.fill_null(_column(catalogue, name), "").to_pylist()
    return np.array(list(words), dtype=np.str_)
