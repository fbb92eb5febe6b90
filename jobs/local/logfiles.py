"""Logs of the parts: capped in size, read from the end."""

from __future__ import annotations

import shutil
from pathlib import Path

CAP_BYTES = 20 * 2**20


def cap(folder: Path, limit: int = CAP_BYTES) -> list[Path]:
    """Move a log that has grown past `limit` bytes to `<name>.log.1` and empty it; returns those moved.

    Copied and truncated, because its writer holds it open (in append mode, so it goes on at the new end).
    """
    moved = []
    for path in folder.glob("*.log"):
        if path.stat().st_size > limit:
            shutil.copyfile(path, path.with_suffix(".log.1"))
            with path.open("r+b") as file:
                file.truncate(0)
            moved.append(path)
    return moved


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log; none if it does not exist."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            size = file.tell()
            file.seek(max(0, size - 400 * lines))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-lines:]


def last_words(path: Path) -> str:
    """The last line of a log that says something, short enough for one line of another; a `reason="…"` in it alone.

    What the part itself says of its failure goes before what a library of it says later.
    """
    said = [line.strip() for line in tail(path, 20) if line.strip()]
    if not said:
        return "it said nothing"
    failed = [line for line in said if "event=failed" in line or line.startswith("Error: ")]
    line = failed[-1] if failed else said[-1]
    return line.partition('reason="')[2].rstrip('"')[:400] or line[:400]
