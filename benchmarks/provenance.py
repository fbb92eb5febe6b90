"""Where a figure comes from: written into every result file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.command import command
from jobs.report import commit, machine

RESULTS = Path(__file__).parent / "results"


def facts(name: str, packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Machine, commit, command, day and versions of the run of `benchmarks.<name>` that is under way."""
    return {
        "machine": machine(),
        "commit": commit(),
        "command": command(name),
        "day": datetime.now(UTC).date().isoformat(),
        "versions": {package: version(package) for package in packages},
    }


def write(name: str, result: dict[str, Any], packages: tuple[str, ...] = (), target: Path | None = None) -> Path:
    """Write `benchmarks/results/<name>.json` (or `target`) with machine, commit, command, day and versions."""
    path = target or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts(name, packages) | result, indent=1) + "\n")
    return path


def write_table(name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], target: Path) -> None:
    """Write rows as CSV, each with machine, commit, command, day and torch's version, and print them."""
    origin = facts(name, ("torch",))
    origin |= origin.pop("versions")
    target.parent.mkdir(parents=True, exist_ok=True)
    width = max(15, *map(len, columns))
    print(" ".join(f"{column:>{width}}" for column in columns))
    with target.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*columns, *origin])
        for row in rows:
            texts = [f"{row[column]:.4g}" if isinstance(row[column], float) else str(row[column]) for column in columns]
            writer.writerow([*texts, *origin.values()])
            print(" ".join(f"{text:>{width}}" for text in texts))
    print(f"written: {target}")
