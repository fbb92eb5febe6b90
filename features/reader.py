"""Online features for serving: one round trip a call, without Feast."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from redis import Redis

from features.layout import JSON_TAG, ViewLayout, layouts_key, length_prefixed, milliseconds, written_offsets
from streaming.records import HistoryEntry

HISTORY_VIEW, HISTORY_FEATURE = "user_history", "entries"
SOCKET_READ = 256 * 1024
USER_VIEW, ITEM_VIEW = "user_counters", "item_counters"


class Unreadable(LookupError):
    """No layout of the view is known: the writer has never run against this Redis."""


@dataclass(frozen=True)
class Values:
    """Features of N entities in the order asked for: `names[F]`, `values` float64[N, F] (NaN: null or entity unknown),
    `event_timestamp` int64[N] in ms (0: entity unknown)."""

    names: tuple[str, ...]
    values: NDArray[np.float64]
    event_timestamp: NDArray[np.int64]

    @property
    def known(self) -> NDArray[np.bool_]:
        return self.event_timestamp > 0

    def column(self, name: str) -> NDArray[np.float64]:
        return self.values[:, self.names.index(name)]


class FeatureReader:
    """Reads what `FeatureWriter` wrote; one instance may be shared by threads."""

    def __init__(self, redis_url: str, project: str = "sidstream", *, timeout_s: float = 1.0) -> None:
        # Any: the stubs of redis-py know text keys only. The packed copies of 500 candidates come in one read of the socket.
        self._redis: Any = Redis.from_url(
            redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, socket_read_size=SOCKET_READ
        )
        self._project = project
        self._layouts: dict[str, ViewLayout] = {}
        self._entries = msgspec.json.Decoder(list[HistoryEntry])

    def layout(self, view: str) -> ViewLayout:
        """Layout of a view, as its writer described it; asked for once."""
        if view not in self._layouts:
            described = self._redis.hget(layouts_key(self._project), view)
            if described is None:
                raise Unreadable(f"no layout of {view} in Redis for project {self._project}: run `sidstream features write`")
            self._layouts[view] = msgspec.json.decode(described, type=ViewLayout)
        return self._layouts[view]

    def history(self, user_id: int) -> list[HistoryEntry]:
        """The user's last interactions, newest first; empty for a user never seen."""
        return self.histories([user_id])[0]

    def histories(self, user_ids: Sequence[int]) -> list[list[HistoryEntry]]:
        """Histories of several users in one round trip, in the order asked for."""
        try:
            layout = self.layout(HISTORY_VIEW)
        except Unreadable:
            return [[] for _ in user_ids]
        field = layout.fields[[feature.name for feature in layout.features].index(HISTORY_FEATURE)]
        if len(user_ids) == 1:  # a pipeline of one costs twice a command
            stored = [self._redis.hget(layout.key(self._project, user_ids[0]), field)]
        else:
            pipe = self._redis.pipeline(transaction=False)
            for user_id in user_ids:
                pipe.hget(layout.key(self._project, user_id), field)
            stored = pipe.execute()
        return [self._entries.decode(length_prefixed(value, JSON_TAG)) if value else [] for value in stored]

    def users(self, user_ids: Sequence[int], view: str = USER_VIEW) -> Values:
        """Features of users, by Feast's own layout."""
        layout = self.layout(view)
        fields = [*layout.fields, layout.timestamp_field]
        pipe = self._redis.pipeline(transaction=False)
        for user_id in user_ids:
            pipe.hmget(layout.key(self._project, user_id), fields)
        values = np.full((len(user_ids), len(layout.features)), np.nan)
        stamps = np.zeros(len(user_ids), np.int64)
        for n, (*encoded, stamp) in enumerate(pipe.execute()):
            if stamp:
                stamps[n] = milliseconds(stamp)
                values[n] = [number(value) for value in encoded]
        return Values(names(layout), values, stamps)

    def items(self, item_ids: Iterable[int], view: str = ITEM_VIEW) -> Values:
        """Features of candidates, from the packed copy: one MGET however many."""
        layout = self.layout(view)
        head = layout.packed_head(self._project)
        stored = self._redis.mget([f"{head}{item_id}" for item_id in item_ids])
        width = len(layout.features)
        unknown = bytes(8) + np.full(width, np.nan, "<f8").tobytes()
        kind = np.dtype([("event_timestamp", ">i8"), ("values", "<f8", (width,))])
        table = np.frombuffer(b"".join([value or unknown for value in stored]), kind)
        return Values(names(layout), table["values"], table["event_timestamp"].astype(np.int64))

    def written(self) -> dict[str, int]:
        """The next offset to be written, by `topic:partition`: rows before it can be read here; empty where nothing was written yet."""
        return written_offsets(self._redis, self._project)

    def close(self) -> None:
        self._redis.close()


def names(layout: ViewLayout) -> tuple[str, ...]:
    return tuple(feature.name for feature in layout.features)


def number(encoded: bytes | None) -> float:
    """A numeric protobuf `Value`; NaN for null, absent, or no number."""
    if not encoded:
        return float("nan")
    tag = encoded[0]
    if tag in (0x20, 0x18, 0x38):  # int64, int32, bool: varint
        value = 0
        for shift, byte in enumerate(encoded[1:]):
            value |= (byte & 0x7F) << (7 * shift)
        return float(value - (1 << 64) if value >= 1 << 63 else value)
    if tag == 0x29:
        return float(struct.unpack_from("<d", encoded, 1)[0])
    if tag == 0x35:
        return float(struct.unpack_from("<f", encoded, 1)[0])
    return float("nan")
