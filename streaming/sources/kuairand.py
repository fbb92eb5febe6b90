"""KuaiRand as its publisher ships it (Gao et al., 2022): which files there are, the catalogue of videos, and what was watched together.

A folder holds `log_standard_*.csv`, `video_features_basic_*.csv` and, optionally, `history_*.parquet`; every CSV may be gzipped. The
suffix of the names (`_pure`, `_1k`, `_27k`) and the days in them do not matter. `log_random_*` (another policy) is not read. Video
*statistics* are never read: they are averages over the whole period and would leak the future.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

LOG_COLUMNS: Final[tuple[str, ...]] = (
    "time_ms", "user_id", "video_id", "is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter",
    "play_time_ms", "duration_ms", "tab", "long_view", "profile_stay_time", "comment_stay_time", "date", "hourmin", "is_rand",
)  # fmt: skip
VIDEO_TYPES: Final[dict[str, pa.DataType]] = {
    "video_id": pa.int64(),
    "author_id": pa.int64(),
    "video_type": pa.string(),
    "upload_dt": pa.date32(),
    "upload_type": pa.string(),
    "video_duration": pa.float64(),
    "server_width": pa.float64(),
    "server_height": pa.float64(),
    "music_id": pa.float64(),
    "music_type": pa.float64(),
    "tag": pa.string(),
}
HISTORY_LENGTH: Final = 50


class SourceError(Exception):
    """The files of a source cannot be used; the message says which, why, and what was expected."""


def files(folder: Path, stem: str, suffixes: tuple[str, ...] = (".csv", ".csv.gz")) -> list[Path]:
    """Files whose name starts with `stem`, by name; a file that is there both plain and gzipped counts once."""
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder; expected the unpacked files of KuaiRand")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(stem) and path.name.endswith(suffixes):
            found.setdefault(path.name.removesuffix(".gz"), path)
    return list(found.values())


def log_files(folder: Path) -> list[Path]:
    """The logs of exposures in a folder.

    Raises:
        SourceError: there is none.
    """
    found = files(folder, "log_standard_")
    if not found:
        raise SourceError(f"{folder} holds no log_standard_*.csv or .csv.gz: nothing to replay")
    return found


def batches(path: Path, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    """Stream a CSV file's columns in the order of `types`, a few megabytes at a time.

    Raises:
        SourceError: the file cannot be read, lacks a column, or holds a value of another type.
    """
    try:
        with pyarrow.csv.open_csv(path) as reader:
            missing = [name for name in types if name not in reader.schema.names]
        if missing:
            raise SourceError(
                f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; found {', '.join(reader.schema.names)}"
            )
        options = pyarrow.csv.ConvertOptions(column_types=dict(types), include_columns=list(types), strings_can_be_null=True)
        with pyarrow.csv.open_csv(path, convert_options=options) as reader:
            yield from reader
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def catalogue(folder: Path) -> pa.Table:
    """The videos of `video_features_basic_*`, one row each, by `item_id`.

    Columns: `item_id`, `author_id`, `tag`, `upload_ts` (UTC midnight of the upload's date), `duration_ms`, `width`, `height`, `music_id`,
    `music_type`: int64; `video_type`, `upload_type`: string; `tags`: list<int64>, of which `tag` is the first. Null = the publisher
    leaves it out (`duration_ms` of 3% of the videos, for one).

    Raises:
        SourceError: no such file, or one that cannot be used.
    """
    found = files(folder, "video_features_basic_")
    if not found:
        raise SourceError(f"{folder} holds no video_features_basic_*.csv or .csv.gz: no catalogue")
    raw = pa.concat_tables([pa.Table.from_batches(batches(path, VIDEO_TYPES)) for path in found])
    tags = pa.array([_tags(text) for text in raw["tag"].to_pylist()], pa.list_(pa.int64()))
    midnight = pc.cast(pc.cast(raw["upload_dt"], pa.timestamp("ms")), pa.int64())
    table = pa.table(
        {
            "item_id": raw["video_id"],
            "author_id": raw["author_id"],
            "tag": pa.array([row[0] if row else None for row in tags.to_pylist()], pa.int64()),
            "video_type": raw["video_type"],
            "upload_type": raw["upload_type"],
            "upload_ts": midnight,
            "duration_ms": _whole(raw["video_duration"]),
            "width": _whole(raw["server_width"]),
            "height": _whole(raw["server_height"]),
            "music_id": _whole(raw["music_id"]),
            "music_type": _whole(raw["music_type"]),
            "tags": tags,
        }
    ).sort_by("item_id")
    distinct = pc.count_distinct(table["item_id"]).as_py()
    if distinct != table.num_rows:
        raise SourceError(f"{', '.join(map(str, found))}: {table.num_rows - distinct} videos are listed twice")
    return table


def history(folder: Path, before_ms: int | None = None) -> pa.Table:
    """What each user watched, oldest first, before the replayed log begins: the co-occurrence that embeddings may use.

    Columns: `user_id` int64, `item_ids` list<int64> (≤ 50). From `history_*.parquet`; without one, from the log's own exposures before
    `before_ms`. Users whose last exposure is not before `before_ms` (where given) are left out. No rows where nothing is known.
    """
    found = files(folder, "history_", (".parquet",))
    if found:
        table = pa.concat_tables([pq.read_table(path, columns=["user_id", "last_time_ms", "video_ids"]) for path in found])
        if before_ms is not None:
            table = table.filter(pc.field("last_time_ms") < before_ms)
        return pa.table({"user_id": table["user_id"], "item_ids": table["video_ids"]})
    lists: dict[int, list[tuple[int, int]]] = {}
    if before_ms is not None:
        types = dict.fromkeys(("time_ms", "user_id", "video_id"), pa.int64())
        for path in log_files(folder):
            for batch in batches(path, types):
                for time_ms, user_id, video_id in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    if time_ms < before_ms:
                        lists.setdefault(user_id, []).append((time_ms, video_id))
    users = sorted(lists)
    recent = [[item for _, item in sorted(lists[user])[-HISTORY_LENGTH:]] for user in users]
    return pa.table({"user_id": pa.array(users, pa.int64()), "item_ids": pa.array(recent, pa.list_(pa.int64()))})


def _tags(text: str | None) -> list[int] | None:
    return [int(float(part)) for part in text.split(",") if part.strip()] if text else None


def _whole(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.cast(pc.round(column), pa.int64())
