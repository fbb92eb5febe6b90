"""Where a figure comes from: written into every result file."""

from __future__ import annotations

import json
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
