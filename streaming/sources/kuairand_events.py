"""KuaiRand's exposures as events: one row becomes an impression and what followed from it, in event-time order.

The log has one row an exposure and no times of its labels, so they are derived by rule, the same way every time: the impression at
`time_ms`, the click at once, the watch at its end (`time_ms + play_time_ms`), every other engagement at a point of the play time that
is a hash of the row. The log has no conversions: a long view of at least 18 s or a like stands in for one, with `standin` in its id,
value 1 and the currency code XXX (ISO 4217: no currency).
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from streaming import records, topics
from streaming.sources.kuairand import LOG_COLUMNS, SourceError, batches, log_files

ENGAGEMENTS: Final[dict[str, records.EngagementKind]] = {
    "is_like": "like",
    "is_follow": "follow",
    "is_comment": "comment",
    "is_forward": "share",
    "is_hate": "hate",
    "is_profile_enter": "profile_visit",
}
LONG_VIEW_MS: Final = 18_000


@dataclass(frozen=True)
class Timed:
    """An event on its way into a topic; `order` breaks ties of time, so that the sequence is the same in every run."""

    ts: int
    order: int
    topic: str
    event: records.Event

    def __lt__(self, other: Timed) -> bool:
        return (self.ts, self.order) < (other.ts, other.order)


@dataclass(frozen=True)
class Exposures:
    """The log's rows in time order: `columns[name]` is int64[N]."""

    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["time_ms"])

    @property
    def first_ms(self) -> int:
        return int(self.columns["time_ms"][0])


def exposures(folder: Path, from_ms: int | None = None, to_ms: int | None = None) -> Exposures:
    """Read a folder's logs; 152 bytes a row are kept (1.4 M rows, all of KuaiRand-Pure's standard logs, are 220 MB).

    The published files repeat some rows completely: those count once. Rows that differ anywhere are exposures of their own.

    Raises:
        SourceError: no log, a log that cannot be used, or none of its rows in the time range.
    """
    types = dict.fromkeys(LOG_COLUMNS, pa.int64())
    tables = [pa.Table.from_batches(batches(path, types)) for path in log_files(folder)]
    table = pa.concat_tables(tables)
    columns = {name: table[name].fill_null(0).to_numpy() for name in LOG_COLUMNS}
    inside = np.ones(len(table), bool)
    if from_ms is not None:
        inside &= columns["time_ms"] >= from_ms
    if to_ms is not None:
        inside &= columns["time_ms"] < to_ms
    order = np.lexsort([columns[name][inside] for name in reversed(LOG_COLUMNS)])
    if not len(order):
        raise SourceError(f"{folder}: no exposure between the given times; the log has {len(table)} rows")
    rows = {name: column[inside][order] for name, column in columns.items()}
    new = np.ones(len(order), bool)
    new[1:] = np.any([np.diff(column) != 0 for column in rows.values()], axis=0)
    return Exposures({name: column[new] for name, column in rows.items()})


def events(rows: Exposures, limit: int | None = None) -> Iterator[Timed]:
    """All events of the first `limit` exposures in the order of their times; memory grows with what is still playing only."""
    waiting: list[Timed] = []
    order = 0
    previous, copies = "", 0
    names = list(rows.columns)
    count = len(rows) if limit is None else min(limit, len(rows))
    for row in zip(*(rows.columns[name][:count].tolist() for name in names), strict=True):
        exposure = dict(zip(names, row, strict=True))
        while waiting and waiting[0].ts < exposure["time_ms"]:
            yield heapq.heappop(waiting)
        name = f"kr-{exposure['user_id']}-{exposure['video_id']}-{exposure['time_ms']}"
        copies = copies + 1 if name == previous else 0
        previous = name
        for topic, event in derive(exposure, f"{name}-{copies}" if copies else name):
            heapq.heappush(waiting, Timed(event.ts, order, topic, event))
            order += 1
    while waiting:
        yield heapq.heappop(waiting)


def derive(row: dict[str, int], name: str) -> Iterator[tuple[str, records.Event]]:
    """The events of one exposure."""
    user, shown, play = row["user_id"], row["time_ms"], max(0, row["play_time_ms"])
    duration = max(0, row["duration_ms"])
    yield (
        topics.IMPRESSIONS,
        records.Impression(
            event_id=f"{name}:impression",
            user_id=user,
            ts=shown,
            impression_id=name,
            request_id=f"{name}:request",
            item_id=row["video_id"],
            position=0,
            scene=f"tab-{row['tab']}",
            duration_ms=duration,
            pipeline="replay",
            mode="normal",
        ),
    )
    if row["is_click"]:
        yield topics.ENGAGEMENTS, _engagement(name, user, shown, shown, "click", 0)
    for column, kind in ENGAGEMENTS.items():
        if row[column]:
            at = zlib.crc32(f"{name}:{kind}".encode()) % (play + 1)
            yield topics.ENGAGEMENTS, _engagement(name, user, shown, shown + at, kind, at)
    common: dict[str, Any] = {"user_id": user, "impression_id": name, "impression_ts": shown, "ts": shown + play}
    yield (
        topics.WATCHES,
        records.Watch(event_id=f"{name}:watch", play_ms=play, duration_ms=duration, finished=play >= duration > 0, **common),
    )
    if row["is_like"] or play >= LONG_VIEW_MS:
        yield topics.CONVERSIONS, records.Conversion(event_id=f"{name}:standin", value=1.0, currency="XXX", **common)


def _engagement(name: str, user: int, shown: int, ts: int, kind: records.EngagementKind, at: int) -> records.Engagement:
    return records.Engagement(event_id=f"{name}:{kind}", user_id=user, ts=ts, impression_id=name, impression_ts=shown, kind=kind, at_ms=at)
