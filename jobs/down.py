"""`sidstream down`: stop what `up` started in this home, and nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import click

from jobs.local import ledger
from jobs.local.supervisor import read_status
from jobs.process import read_json, write_json
from jobs.settings import home as home_folder


@click.command()
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="Accepted for symmetry with `up`; the home alone decides.")
@click.option("--timeout", type=float, default=120, show_default=True, help="Seconds for the supervisor to stop its parts.")
def command(config: Path | None, timeout: float) -> None:
    """Stop the supervisor and its parts, also those that a killed supervisor left behind."""
    home = home_folder()
    status = read_status(home)
    stopped = 0
    supervisor = ledger.find(status["supervisor"]["pid"], status["supervisor"]["started"]) if status else None
    if supervisor is not None:
        stopped = sum(1 for part in status["parts"].values() if part["pid"])
        supervisor.terminate()
        deadline = time.monotonic() + timeout
        while ledger.find(supervisor.pid, status["supervisor"]["started"]):
            if time.monotonic() > deadline:
                raise click.ClickException(f"supervisor {supervisor.pid} does not stop; see {home}/logs/supervisor.log")
            time.sleep(0.1)
    book = ledger.Ledger(home)
    left = ledger.end(book.entries().values())
    for entry in left:
        click.echo(f"  {entry.name:<16} stopped (left by a supervisor that was killed)")
    if left:
        book.write([])
        state = read_json(home / "state.json")
        write_json(home / "state.json", {**state, "kafka": None, "redis": None, "http": None, "flink": None, "pids": {}})
    count = stopped + len(left)
    click.echo(f"stopped {count} part{'s' * (count != 1)} of {home}" if count else f"nothing runs in {home}")
