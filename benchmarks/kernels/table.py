"""The rows of a part, one CSV file, kept as they are made: a run that was cut short goes on where it ended."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

COLUMNS = (
    "part",
    "case",
    "batch",
    "width",
    "context",
    "variant",
    "status",
    "p50_us",
    "p99_us",
    "samples",
    "method",
    "floor_us",
    "over_floor",
    "over_ours",
    "requests_per_s",
    "memory_mib",
    "note",
    "device",
    "preset",
    "dtype",
    "commit",
    "command",
    "day",
    "torch",
    "triton",
)
"""status: ok; skipped (the note says why; `again:` if another run may do it); wrong (the result differs: no time is given). over_ours: this
variant's time over that of `ours` in the same point. memory_mib: most that the GPU held while the variant ran, its inputs included."""

AGAIN = "again: "


class Point(NamedTuple):
    """One shape of one case; its variants are timed together."""

    part: str
    case: str
    batch: int
    width: int
    context: int


class Table:
    """Rows of one part in `folder`/<part>.csv.

    Raises:
        ValueError: the file has rows of another device, preset or commit.
    """

    def __init__(self, folder: Path, part: str, facts: Mapping[str, str]) -> None:
        self.path = folder / f"{part}.csv"
        self.facts = dict(facts)
        self.rows = read(self.path)
        for row in self.rows:
            other = [f"{name} {row[name]}" for name in ("device", "preset", "commit") if row[name] != self.facts[name]]
            if other:
                raise ValueError(f"{self.path} has results of {', '.join(other)}: use another --out, or --fresh to replace them")

    def finished(self, point: Point) -> bool:
        """Whether the point has rows, none of which asks for another run."""
        mine = [row for row in self.rows if _point(row) == point]
        return bool(mine) and not any(row["note"].startswith(AGAIN) for row in mine)

    def put(self, point: Point, rows: Iterable[Mapping[str, object]]) -> None:
        """Replace the rows of a point, on disk too."""
        self.rows = [row for row in self.rows if _point(row) != point]
        for row in rows:
            full = dict.fromkeys(COLUMNS, "") | {name: str(value) for name, value in point._asdict().items()} | self.facts
            self.rows.append(full | {name: _text(value) for name, value in row.items()})
        write(self.path, self.rows)


def write(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """A results file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a results file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _point(row: Mapping[str, str]) -> Point:
    return Point(row["part"], row["case"], int(row["batch"]), int(row["width"]), int(row["context"]))


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:.0f}" if isinstance(value, float) else str(value)
