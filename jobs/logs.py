"""`sidstream logs`: what the parts of this home log."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click

from jobs.local.logfiles import tail
from jobs.settings import home as home_folder


@click.command()
@click.argument("name", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(1), default=20, show_default=True, help="From the end.")
def command(name: str | None, follow: bool, lines: int) -> None:
    """Show the last lines of one part's log, or of all."""
    folder = home_folder() / "logs"
    logs = sorted(folder.glob(f"{name}*.log" if name else "*.log"))
    exact = [path for path in logs if path.stem == name]
    logs = exact or logs
    if not logs:
        there = ", ".join(sorted(path.stem for path in folder.glob("*.log"))) or "none"
        raise click.ClickException(f"no log {f'of {name} ' if name else ''}in {folder}; there are: {there}")
    width = max(len(path.stem) for path in logs)

    def show(path: Path, line: str) -> None:
        click.echo(f"{path.stem:<{width}} {line}" if len(logs) > 1 else line)

    ends = {path: path.stat().st_size for path in logs}
    for path in logs:
        for line in tail(path, lines):
            show(path, line)
    while follow:
        time.sleep(0.2)
        for path in logs:
            ends[path] = show_new(path, ends[path], show)


def show_new(path: Path, seen: int, show: Callable[[Path, str], None]) -> int:
    """Show whole lines after byte `seen`; returns where the next look begins (0 again after the log was capped)."""
    size = path.stat().st_size
    if size < seen:
        seen = 0
    if size == seen:
        return seen
    with path.open("rb") as file:
        file.seek(seen)
        new = file.read(size - seen)
    whole = new.rpartition(b"\n")[0]
    for line in whole.splitlines():
        show(path, line.decode(errors="replace"))
    return seen + (len(whole) + 1 if b"\n" in new else 0)
