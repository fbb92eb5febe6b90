"""From rows (a user, a moment, a history) to the sparse features of a batch.

A batch is one sequence of *tokens* per row: the profile, then the videos of the history, newest first, then, as options, the clusters of
older videos and the authors. Every token has the same sparse features, most of them empty for the profile, so that one embedding call
serves all of them. Ids are hashed into fixed tables: an id never seen, a generated video (negative id) and a new user all have a row, and
no map has to be kept, saved or evicted. With managed tables the ids are left for the model to map.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from model.grm.groups import Groups, count_bucket
from model.grm.presets import GrmConfig
from model.grm.recall import Memory
from model.sid.bundle import Bundle

Ints = NDArray[np.int64]

KINDS: Final = ("watch", "click", "like", "follow", "comment", "share", "hate", "profile_visit")
_BIT: Final = {kind: 1 << index for index, kind in enumerate(KINDS)}
_GOOD: Final = sum(_BIT[kind] for kind in ("click", "like", "follow", "comment", "share"))
LONG_VIEW_MS: Final = 18_000  # as in the samples
_PLAY_SHARES: Final = np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.95, 1.5])
_PLAY_SECONDS: Final = np.array([1.0, 3.0, 7.0, 18.0, 60.0])
PLAY_ROWS: Final = 1 + len(_PLAY_SHARES) + 1 + len(_PLAY_SECONDS) + 1
GAP_ROWS: Final = 32
RANK_ROWS: Final = 64
LARGEST_ID: Final = (1 << 63) - 1
"""Ids that keep their identity (managed tables) are hashed into so many: any int64 becomes one ≥ 0, and hardly two the same."""


class Entry(Protocol):
    @property
    def item_id(self) -> int: ...
    @property
    def ts(self) -> int: ...
    @property
    def play_ms(self) -> int | None: ...
    @property
    def kinds(self) -> Sequence[str]: ...


class History(Protocol):
    @property
    def history(self) -> Sequence[Any]: ...


class Row(Protocol):
    """What the model reads of a sample or of a request; `ts` is the impression's (or now), `context.history` is newest first."""

    @property
    def user_id(self) -> int: ...
    @property
    def ts(self) -> int: ...
    @property
    def context(self) -> Any: ...


@dataclass(frozen=True)
class Query:
    """A request for a user, in the shape of a sample's context side."""

    user_id: int
    ts: int
    context: History


def hash_rows(ids: Ints, rows: int) -> Ints:
    """Table row of each id: splitmix64's finaliser, then modulo; the same in every process and on every machine."""
    z = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z % np.uint64(rows)).astype(np.int64)


class Vocabulary:
    """SID, duration and author of every video the model may meet: a bundle's catalogue and the generated videos learned since.

    Unknown videos have codes -1, duration 0 and author -1.
    """

    def __init__(self, item_ids: Ints, sids: NDArray[np.int32], durations_ms: Ints, authors: Ints, codes: Sequence[int]) -> None:
        """
        Args:
            item_ids: int64[N], unique, in any order.
            sids: int32[N, L].
            durations_ms: int64[N], 0 = unknown.
            authors: int64[N], -1 = unknown.
            codes: vocabulary of each level.

        Raises:
            ValueError: ids repeat or an SID is outside the codebooks.
        """
        order = np.argsort(item_ids, kind="stable")
        self._ids: Ints = np.ascontiguousarray(item_ids[order], dtype=np.int64)
        self._sids = np.ascontiguousarray(sids[order], dtype=np.int64).reshape(len(item_ids), len(codes))
        self._durations: Ints = np.ascontiguousarray(durations_ms[order], dtype=np.int64)
        self._authors: Ints = np.ascontiguousarray(authors[order], dtype=np.int64)
        self.codes = tuple(codes)
        self.generated: dict[int, tuple[int, ...]] = {}
        if len(self._ids) > 1 and (np.diff(self._ids) == 0).any():
            raise ValueError("item_ids repeat")
        if len(self._ids) and ((self._sids < 0) | (self._sids >= np.array(codes))).any():
            raise ValueError(f"an SID is outside the codebooks {self.codes}")

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Vocabulary:
        """The videos of a bundle."""
        catalogue = bundle.catalogue  # rows in the order of `item_ids`

        def column(name: str, missing: int) -> Ints:
            if name not in catalogue.column_names:
                return np.full(len(bundle.item_ids), missing, np.int64)
            return catalogue[name].combine_chunks().fill_null(missing).to_numpy(zero_copy_only=False).astype(np.int64)

        return cls(bundle.item_ids, bundle.sids, column("duration_ms", 0), column("author_id", -1), bundle.code_counts)

    def valid(self, sid: Sequence[int]) -> bool:
        return len(sid) == len(self.codes) and all(0 <= code < size for code, size in zip(sid, self.codes, strict=True))

    def learn(self, item_id: int, sid: Sequence[int]) -> None:
        """Remember the SID of a video that is not in the catalogue; the first one stays."""
        if self.valid(sid) and item_id not in self.generated and self._place(np.array([item_id], np.int64))[0] < 0:
            self.generated[item_id] = tuple(sid)

    def sid_of(self, item_id: int) -> tuple[int, ...] | None:
        # Asked once a sample: a look-up of one number takes a fraction of what `_place` takes for an array of one.
        place = int(self._ids.searchsorted(np.int64(item_id)))
        if place == len(self._ids) or self._ids[place] != item_id:
            return self.generated.get(item_id)
        return tuple(self._sids[place].tolist())

    def lookup(self, item_ids: Ints) -> tuple[Ints, Ints]:
        """SIDs int64[n, L] (-1 where unknown) and durations int64[n] in ms (0 where unknown)."""
        place = self._place(item_ids)
        known = place >= 0
        sids = np.full((len(item_ids), len(self.codes)), -1, np.int64)
        durations = np.zeros(len(item_ids), np.int64)
        sids[known] = self._sids[place[known]]
        durations[known] = self._durations[place[known]]
        if self.generated:
            for index in np.flatnonzero(~known):
                sid = self.generated.get(int(item_ids[index]))
                if sid is not None:
                    sids[index] = sid
        return sids, durations

    def author_of(self, item_id: int) -> int:
        return int(self.authors(np.array([item_id], np.int64))[0])

    def authors(self, item_ids: Ints) -> Ints:
        """Author of each video, int64[n]; -1 where unknown."""
        found = np.full(len(item_ids), -1, np.int64)
        place = self._place(item_ids)
        found[place >= 0] = self._authors[place[place >= 0]]
        return found

    def sids_by_author(self) -> dict[int, list[tuple[int, ...]]]:
        """The distinct SIDs of every known author."""
        found: dict[int, dict[tuple[int, ...], None]] = {}
        for author, sid in zip(self._authors.tolist(), self._sids.tolist(), strict=True):
            if author >= 0:
                found.setdefault(author, {})[tuple(sid)] = None
        return {author: list(sids) for author, sids in found.items()}

    def _place(self, item_ids: Ints) -> Ints:
        """Index of each id in the catalogue, -1 where absent."""
        if not len(self._ids):
            return np.full(len(item_ids), -1, np.int64)
        place = np.minimum(np.searchsorted(self._ids, item_ids), len(self._ids) - 1)
        return np.where(self._ids[place] == item_ids, place, -1)


@dataclass(frozen=True)
class GrmBatch:
    """Features of B rows with T tokens in all, at most S per row.

    Attributes:
        features: keys of `feature_names`, stride T (one bag per token).
        slot: int64[T], place of each token in the padded [B * S].
        mask: bool[B, S], true where a token is.
        memory: the SIDs of the histories' newest videos, and which of them were liked.
        targets: int64[B, L], or None where there is nothing to learn.
    """

    features: KeyedJaggedTensor
    slot: torch.Tensor
    mask: torch.Tensor
    memory: Memory
    targets: torch.Tensor | None = None

    def __len__(self) -> int:
        return int(self.mask.shape[0])

    def with_targets(self, sids: Sequence[Sequence[int]]) -> GrmBatch:
        return replace(self, targets=torch.tensor(sids, dtype=torch.int64).reshape(len(self), -1))

    def rows(self, start: int, stop: int) -> GrmBatch:
        """Rows `start` to `stop`; as wide as the whole."""
        first, last = (int(self.mask[:row].sum()) for row in (start, stop))  # tokens come in the order of their rows
        values, lengths = [], []
        for bags in self.features.to_dict().values():
            offsets = bags.offsets()
            values.append(bags.values()[int(offsets[first]) : int(offsets[last])])
            lengths.append(bags.lengths()[first:last])
        features = KeyedJaggedTensor(self.features.keys(), torch.cat(values), lengths=torch.cat(lengths), stride=last - first)
        slot = self.slot[first:last] - start * self.mask.shape[1]
        targets = None if self.targets is None else self.targets[start:stop]
        return GrmBatch(features, slot, self.mask[start:stop], self.memory[start:stop], targets)

    def to(self, device: torch.device | str) -> GrmBatch:
        targets = None if self.targets is None else self.targets.to(device)
        return GrmBatch(self.features.to(torch.device(device)), self.slot.to(device), self.mask.to(device), self.memory.to(device), targets)


def feature_names(config: GrmConfig) -> list[str]:
    """Those of options come last."""
    names = ["user", "item", *(f"code_{level}" for level in range(config.levels)), "kind", "play", "gap", "rank"]
    return names + ["count", "liked"] * bool(config.long or config.cross) + ["author"] * bool(config.cross)


@dataclass(frozen=True)
class _Entries:
    """Videos of a batch's histories, one element per (row, video), newest first in each row."""

    row: Ints
    rank: Ints
    item: Ints
    gap_ms: Ints
    play_ms: Ints  # -1 = unknown
    kinds: Ints  # bits of KINDS

    def __getitem__(self, kept: Any) -> _Entries:
        return _Entries(*(getattr(self, field.name)[kept] for field in fields(self)))


class _Bags:
    """The sparse features of `tokens` tokens, put together from parts in any order."""

    def __init__(self, names: Sequence[str], tokens: int) -> None:
        self._tokens = tokens
        self._parts: dict[str, list[tuple[Ints, Ints]]] = {name: [] for name in names}

    def add(self, name: str, place: Ints, values: Ints) -> None:
        """Values of tokens, int64[n] each, in the order of their places."""
        self._parts[name].append((place, values))

    def jagged(self) -> KeyedJaggedTensor:
        values, lengths = [], np.zeros((len(self._parts), self._tokens), np.int32)
        for index, parts in enumerate(self._parts.values()):
            place, of = parts[0]
            if len(parts) > 1:
                place = np.concatenate([place for place, _ in parts])
                of = np.concatenate([of for _, of in parts])[np.argsort(place, kind="stable")]
            values.append(of)
            lengths[index] = np.bincount(place, minlength=self._tokens)
        lengths_of = torch.from_numpy(lengths.reshape(-1))
        return KeyedJaggedTensor(list(self._parts), torch.from_numpy(np.concatenate(values)), lengths=lengths_of, stride=self._tokens)


def collate(rows: Iterable[Row], vocabulary: Vocabulary, config: GrmConfig) -> GrmBatch:
    """Features of `rows`; targets are added by `GrmBatch.with_targets`.

    An empty history is a sequence of the profile alone. Times after the impression count as "just now", negative play times as unknown.
    """
    rows = list(rows)
    batch = len(rows)
    read = _merge(rows, config)
    sids, durations = vocabulary.lookup(read.item)
    liked = _liked(read, durations)
    short = read.rank < config.history
    clusters = Groups.of(read.row, np.where(short, -1, sids[:, 0]), liked, config.long)
    author_of = vocabulary.authors(read.item) if config.cross else np.full_like(read.item, -1)
    authors = Groups.of(read.row, author_of, liked, config.cross)

    counts = [np.bincount(part, minlength=batch) for part in (read.row[short], clusters.row, authors.row)]
    ends = np.cumsum([np.ones(batch, np.int64), *counts], 0)  # of the profile and of each part within its row
    sizes = ends[-1]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    total, width = int(starts[-1]), int(sizes.max(initial=1))
    profile = starts[:-1]
    entries = read[short]
    place = (profile + ends[0])[entries.row] + entries.rank

    bags = _Bags(feature_names(config), total)
    bags.add(
        "user", profile, hash_rows(np.array([row.user_id for row in rows], np.int64), LARGEST_ID if config.managed else config.user_rows)
    )
    _add_videos(bags, place, entries, sids[short], durations[short], config)
    bags.add("rank", place, np.minimum(entries.rank, RANK_ROWS - 1))
    if config.long or config.cross:
        of_cluster = (profile + ends[1])[clusters.row] + clusters.rank
        _add_videos(bags, of_cluster, read[clusters.newest], sids[clusters.newest], durations[clusters.newest], config)
        of_author = (profile + ends[2])[authors.row] + authors.rank
        for at, groups in ((of_cluster, clusters), (of_author, authors)):
            bags.add("count", at, count_bucket(groups.count))
            bags.add("liked", at, count_bucket(groups.liked))
    if config.cross:
        newest = read[authors.newest]
        bags.add("author", of_author, hash_rows(vocabulary.authors(newest.item), config.author_rows))
        bags.add("gap", of_author, _gap_bucket(newest.gap_ms))

    row_of = np.repeat(np.arange(batch), sizes)
    slot = row_of * width + np.arange(total) - starts[row_of]
    mask = np.zeros(batch * width, bool)
    mask[slot] = True
    memory = _memory(entries, sids[short], liked[short], batch, config)
    return GrmBatch(bags.jagged(), torch.from_numpy(slot), torch.from_numpy(mask.reshape(batch, width)), memory)


def _add_videos(bags: _Bags, place: Ints, entries: _Entries, sids: Ints, durations: Ints, config: GrmConfig) -> None:
    """What single videos at `place` are, and what became of them."""
    bags.add("item", place, _item_rows(entries, config))
    known = sids[:, 0] >= 0
    for level in range(config.levels):
        bags.add(f"code_{level}", place[known], sids[known, level])
    token, kind = np.nonzero((entries.kinds[:, None] >> np.arange(len(KINDS))) & 1)
    bags.add("kind", place[token], kind.astype(np.int64))
    bags.add("play", place, _play_bucket(entries.play_ms, durations))
    bags.add("gap", place, _gap_bucket(entries.gap_ms))


def _item_rows(entries: _Entries, config: GrmConfig) -> Ints:
    return hash_rows(entries.item, LARGEST_ID if config.managed else config.item_rows)


def _liked(entries: _Entries, durations: Ints) -> NDArray[np.bool_]:
    """Watched long or to the end, or engaged with, and not hated."""
    long = (entries.play_ms >= LONG_VIEW_MS) | ((durations > 0) & (entries.play_ms >= durations))
    liked: NDArray[np.bool_] = (long | ((entries.kinds & _GOOD) > 0)) & ((entries.kinds & _BIT["hate"]) == 0)
    return liked


def _memory(entries: _Entries, sids: Ints, liked: NDArray[np.bool_], batch: int, config: GrmConfig) -> Memory:
    width = int(entries.rank.max(initial=-1)) + 1
    codes = np.full((batch, width, sids.shape[1]), -1, np.int64)
    good = np.zeros((batch, width), bool)
    items = np.full((batch, width), -1, np.int64)
    codes[entries.row, entries.rank] = sids
    items[entries.row, entries.rank] = _item_rows(entries, config)
    good[entries.row, entries.rank] = liked
    return Memory(torch.from_numpy(codes), torch.from_numpy(good), torch.from_numpy(items))


def _merge(rows: Sequence[Row], config: GrmConfig) -> _Entries:
    """One entry per video of a row: its newest time, its longest play, all its kinds (a watch, its click and its like are one fact)."""
    histories = [row.context.history[: config.events + config.long_events] for row in rows]
    read = [entry for history in histories for entry in history]
    if not read:
        empty = np.zeros(0, np.int64)
        return _Entries(empty, empty, empty, empty, empty, empty)
    row_of = np.repeat(np.arange(len(rows)), [len(history) for history in histories])
    item_of = np.array([entry.item_id for entry in read], np.int64)
    gap = np.array([row.ts - entry.ts for row, history in zip(rows, histories, strict=True) for entry in history], np.int64)
    play = np.maximum(np.array([-1 if entry.play_ms is None else entry.play_ms for entry in read], np.int64), -1)
    kinds = np.array([_bits(entry.kinds) if entry.kinds else 0 for entry in read], np.int64) | (play >= 0)
    order = np.lexsort((item_of, row_of))  # stable: within a video still newest first
    first = np.flatnonzero(np.concatenate([[True], (np.diff(row_of[order]) != 0) | (np.diff(item_of[order]) != 0)]))
    newest = order[first]
    play_ms = np.maximum.reduceat(play[order], first)
    seen = np.bitwise_or.reduceat(kinds[order], first)
    by_time = np.argsort(newest)
    newest, play_ms, seen = newest[by_time], play_ms[by_time], seen[by_time]
    row_kept = row_of[newest]
    rank = np.arange(len(newest)) - np.searchsorted(row_kept, row_kept)
    keep = rank < (len(newest) if config.long or config.cross else config.history)
    chosen = newest[keep]
    return _Entries(row_kept[keep], rank[keep], item_of[chosen], gap[chosen], play_ms[keep], seen[keep])


def _bits(kinds: Sequence[str]) -> int:
    bits = 0
    for kind in kinds:
        bits |= _BIT.get(kind, 0)
    return bits


def _play_bucket(play_ms: Ints, durations_ms: Ints) -> Ints:
    """0 = unknown, then by share of the duration where that is known, else by seconds."""
    share = np.digitize(play_ms / np.maximum(durations_ms, 1), _PLAY_SHARES) + 1
    seconds = np.digitize(play_ms / 1000, _PLAY_SECONDS) + 2 + len(_PLAY_SHARES)
    return np.where(play_ms < 0, 0, np.where(durations_ms > 0, share, seconds)).astype(np.int64)


def _gap_bucket(gap_ms: Ints) -> Ints:
    """Whole powers of two of seconds since the entry."""
    return np.minimum(np.log2(1 + np.maximum(gap_ms, 0) / 1000), GAP_ROWS - 1).astype(np.int64)
