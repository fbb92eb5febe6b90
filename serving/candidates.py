"""Which videos exist, by distance: the nearest SID that has a video, in codebook space, from memory.

A SID's place in that space is the sum of its content centroids beside the sum of its creative centroids. The distinct SIDs that
have a video are held as one float32 matrix that grows as videos come.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from kernels.nearest import nearest
from serving.cache import CachedVideo, Codes

Place = Callable[[npt.NDArray[np.int32]], npt.NDArray[np.float32]]  # int32[M, L] SIDs -> float32[M, d]


class Shelf:
    """The videos of one bundle that can be served now; safe to read while another thread adds."""

    def __init__(self, place: Place, videos: Iterable[CachedVideo] = ()) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._rows: dict[Codes, int] = {}
        self._by_row: list[tuple[CachedVideo, ...]] = []
        self._siblings: defaultdict[Codes, list[int]] = defaultdict(list)  # rows of the SIDs that differ in their last code alone
        self._by_item: dict[int, CachedVideo] = {}
        self._generated = 0
        self._places = torch.empty(0, 0)  # float32[capacity, d]; the first len(_by_row) rows count
        self.add(videos)

    def __len__(self) -> int:
        return len(self._by_item)

    @property
    def generated(self) -> int:
        """How many of the videos were generated."""
        return self._generated

    @property
    def sids(self) -> int:
        """How many SIDs have a video."""
        return len(self._by_row)

    def video(self, item_id: int) -> CachedVideo | None:
        return self._by_item.get(item_id)

    def items(self) -> list[CachedVideo]:
        """All videos, oldest first."""
        return list(self._by_item.values())

    def add(self, videos: Iterable[CachedVideo]) -> int:
        """Take in videos; those known already are left alone. Answers how many were new."""
        with self._lock:
            fresh = [video for video in {v.item_id: v for v in videos}.values() if video.item_id not in self._by_item]
            new_sids = list(dict.fromkeys(video.sid for video in fresh if video.sid not in self._rows))
            if new_sids:
                self._grow(new_sids)
            for video in fresh:
                row = self._rows[video.sid]
                self._by_row[row] = (video, *self._by_row[row])
                self._by_item[video.item_id] = video
                self._generated += video.generated
            return len(fresh)

    def nearest(self, sids: Sequence[Codes], k: int) -> list[list[CachedVideo]]:
        """Videos of the `k` SIDs nearest to each of `sids`, nearest first."""
        with self._lock:
            known, places = len(self._by_row), self._places
        if not sids or not known:
            return [[] for _ in sids]
        queries = torch.from_numpy(self._place(np.asarray(sids, dtype=np.int32)))
        _, rows = nearest(queries, places[:known], min(k, known))
        return [[video for row in found for video in self._by_row[row]] for found in rows.tolist()]

    def used_up(self, items: Collection[int]) -> list[Codes]:
        """SIDs of which `items` are all the videos, and, without its last code, what begins no SID that has another video."""
        with self._lock:
            sids = {video.sid for item in items if (video := self._by_item.get(item)) is not None}
            spent = {sid for sid in sids if self._only(self._rows[sid], items)}
            begun = {sid[:-1] for sid in spent}
            return [*spent, *(prefix for prefix in begun if all(self._only(row, items) for row in self._siblings[prefix]))]

    def _only(self, row: int, items: Collection[int]) -> bool:
        return all(video.item_id in items for video in self._by_row[row])

    def _grow(self, sids: list[Codes]) -> None:
        rows = torch.from_numpy(self._place(np.asarray(sids, dtype=np.int32)))
        known, needed = len(self._by_row), len(self._by_row) + len(sids)
        if self._places.shape[0] < needed:
            grown = torch.zeros(max(256, 2 * needed), rows.shape[1])
            if known:
                grown[:known] = self._places[:known]
            self._places = grown
        self._places[known:needed] = rows
        for offset, sid in enumerate(sids):
            self._rows[sid] = known + offset
            self._siblings[sid[:-1]].append(known + offset)
            self._by_row.append(())
