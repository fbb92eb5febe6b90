"""The log as samples in the order of their impressions, each with the context that was known strictly before it.

The rules are those of the streaming path: the same events derived from a row, a history of the latest events by their own times, a
long view as in the samples. A sample is ready when its label window is over and its video has stopped, so that no label comes later.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from streaming.records import Context, Engagement, HistoryEntry, Labels, Sample, Watch
from streaming.sources.kuairand import HISTORY_LENGTH, files
from streaming.sources.kuairand_events import LONG_VIEW_MS, Exposures, derive

LABEL_WINDOW_MS = 60_000
APART_MS = 60_000
"""Exposures before the log have no times: they are set so far apart, the last one at its known time."""

Histories = Mapping[int, list[HistoryEntry]]


def earlier(folder: Path, before_ms: int) -> dict[int, list[HistoryEntry]]:
    """What each user watched before the log begins, oldest first; nothing where the folder has no `history_*.parquet`.

    Play times are not in that file: a long watch counts as one of the shortest play time that makes a long view.
    """
    found: dict[int, list[HistoryEntry]] = {}
    for path in files(folder, "history_", (".parquet",)):
        table = pq.read_table(path, columns=["user_id", "last_time_ms", "video_ids", "long_watch", "like"])
        for user, last, items, longs, likes in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if last < before_ms:
                found[user] = [
                    HistoryEntry(
                        item, last - (len(items) - 1 - place) * APART_MS, LONG_VIEW_MS if long else None, ["watch", *["like"] * bool(like)]
                    )
                    for place, (item, long, like) in enumerate(zip(items, longs, likes, strict=True))
                ]
    return found


@dataclass(frozen=True)
class _Known:
    """A history entry on its way: it is known from `entry.ts` on."""

    order: int
    user: int
    entry: HistoryEntry

    def __lt__(self, other: _Known) -> bool:
        return (self.entry.ts, self.order) < (other.entry.ts, other.order)


def samples(rows: Exposures, before: Histories) -> Iterator[Sample]:
    """One complete sample per exposure, in time order; memory grows with users and with what is still playing."""
    histories: defaultdict[int, deque[HistoryEntry]] = defaultdict(lambda: deque(maxlen=HISTORY_LENGTH))
    for user, entries in before.items():
        histories[user].extend(entries)
    waiting: list[_Known] = []
    order = 0
    names = list(rows.columns)
    for values in zip(*(column.tolist() for column in rows.columns.values()), strict=True):
        row = dict(zip(names, values, strict=True))
        while waiting and waiting[0].entry.ts < row["time_ms"]:
            known = heapq.heappop(waiting)
            histories[known.user].append(known.entry)
        name = f"kr-{row['user_id']}-{row['video_id']}-{row['time_ms']}-{order}"
        yield _sample(row, name, list(reversed(histories[row["user_id"]])))
        for _, event in derive(row, name):
            order += 1
            if isinstance(event, Watch):
                entry = HistoryEntry(row["video_id"], event.ts, event.play_ms)
            elif isinstance(event, Engagement):
                entry = HistoryEntry(row["video_id"], event.ts, None, [event.kind])
            else:
                continue
            heapq.heappush(waiting, _Known(order, row["user_id"], entry))


def _sample(row: Mapping[str, int], name: str, history: list[HistoryEntry]) -> Sample:
    play, duration = max(0, row["play_time_ms"]), max(0, row["duration_ms"])
    return Sample(
        sample_id=f"{name}:initial",
        kind="initial",
        impression_id=name,
        user_id=row["user_id"],
        item_id=row["video_id"],
        ts=row["time_ms"],
        ready_ts=row["time_ms"] + max(LABEL_WINDOW_MS, play),
        labels=Labels(
            click=row["is_click"],
            like=row["is_like"],
            follow=row["is_follow"],
            comment=row["is_comment"],
            share=row["is_forward"],
            hate=row["is_hate"],
            profile_visit=row["is_profile_enter"],
            play_ms=play,
            long_view=int(play >= LONG_VIEW_MS or play >= duration > 0),
        ),
        context=Context(history),
        duration_ms=duration,
    )


def positive(sample: Sample) -> bool:
    """Whether the video was watched positively: a long view that was not hated."""
    return bool(sample.labels.long_view) and not sample.labels.hate
