"""`sidstream status`: the health of each part of this home."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from jobs.local.ledger import Ledger
from jobs.local.supervisor import State, read_status
from jobs.process import read_ready, read_state
from jobs.settings import home as home_folder


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="Accepted for symmetry with `up`; the home alone decides.")
def command(as_json: bool, config: Path | None) -> None:
    """Say how each part is; exit code 0 only if a supervisor runs and every part is well."""
    report = collect(home_folder())
    click.echo(json.dumps(report, indent=1) if as_json else render(report))
    sys.exit(0 if report["healthy"] else 1)


def collect(home: Path) -> dict[str, Any]:
    """What the supervisor wrote, corrected by what still lives."""
    status = read_status(home)
    alive = Ledger(home).alive()
    parts = {}
    for name, part in status.get("parts", {}).items():
        state = part["state"]
        if not status["alive"] and state != State.DONE:
            state = "orphaned" if name in alive else State.STOPPED
        facts = read_ready(home, name).get("facts", {}) if name in alive else {}
        parts[name] = {**part, "state": str(state), "pid": alive[name].pid if name in alive else None, "facts": facts}
    supervised = bool(status.get("alive"))
    return {
        "home": str(home),
        "healthy": supervised and all(part["state"] in (State.HEALTHY, State.DONE) for part in parts.values()),
        "supervisor": status["supervisor"]["pid"] if supervised else None,
        "phase": status.get("phase", "stopped") if supervised else ("killed" if alive else "stopped"),
        "reason": status.get("reason"),
        "parts": parts,
        "addresses": {key: value for key, value in read_state(home).items() if key != "pids"},
    }


def render(report: dict[str, Any]) -> str:
    """The report for people."""
    if report["phase"] == "stopped" and not report["supervisor"]:
        why = f": {report['reason']}" if report["reason"] else ""
        return f"nothing runs in {report['home']}{why}\n`sidstream up` starts it"
    lines = [f"{report['home']}  {report['phase']}"]
    for name, part in report["parts"].items():
        restarts = f"  died {part['restarts']}×" if part["restarts"] else ""
        pid = f"pid {part['pid']}" if part["pid"] else ""
        reason = f"  {part['reason']}" if part["reason"] else ""
        lines.append(f"  {name:<16} {part['state']:<11} {pid:<12}{restarts}{reason}")
    lines += [f"  {key:<16} {value}" for key, value in report["addresses"].items() if value]
    if report["phase"] == "killed":
        lines.append("the supervisor was killed; `sidstream up` takes its parts over, `sidstream down` stops them")
    return "\n".join(lines)
