"""The report of a bounded run: one JSON document (`docs/operations.md` lists its fields) and the same facts as a table for people."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from jobs.audit import Invariant


def machine() -> str:
    """Processor, cores and memory in words."""
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{model}, {psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, Python {platform.python_version()}"


def commit() -> str:
    """The checkout's commit, with a + where files differ from it."""
    folder = Path(__file__).resolve().parent
    try:
        name = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=folder, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if dirty.strip() else "")


def read_json(path: Path) -> dict[str, Any]:
    """A state file that a process keeps; empty where it never wrote one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _line(name: str, value: str) -> str:
    return f"  {name:<28} {value}"


def _spread(values: Mapping[str, Any], unit: str) -> str:
    return "  ".join(f"{name} {value:,.0f} {unit}" if value is not None else f"{name} –" for name, value in values.items())


def render(report: Mapping[str, Any]) -> str:
    """The report as text for a terminal."""
    lines = [f"sidstream demo · {report['machine']} · {report['commit']} · {report['seconds']:.0f} s", "", "Input and samples"]
    lines += [_line(name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in report["input"].items()]
    lines += [_line(f"samples {name}", f"{value:,}") for name, value in report["samples"].items()]
    lines += ["", "Freshness (wall clock, from the append that completes it)"]
    lines += [_line(name.replace("_", " "), _spread(value, "ms")) for name, value in report["freshness_ms"].items()]
    training, serving, generation = report["training"], report["serving"], report["generation"]
    lines += ["", "Training", _line("samples", f"{training['samples']:,} at {training['samples_per_s'] or 0:,.0f}/s")]
    lines += [_line("versions published", str(training["versions_published"]))]
    windows = enumerate(training["prequential"], 1)
    lines += [_line(f"recall@10, window {n} of {w['samples']:,} samples", _share(w.get("recall_at_10"))) for n, w in windows]
    lines += [_line(f"floor: {name}", _share(value)) for name, value in training["floors"].items()]
    lines += ["", "Serving", _line("requests", f"{serving['requests']:,}, {serving['errors']} errors, {serving['degraded']} degraded")]
    lines += [_line("latency", _spread(serving["latency_ms"], "ms"))]
    lines += [_line(name.replace("_", " "), f"{value:,}") for name, value in serving["cases"].items()]
    made = f"{generation['generated']:,} made of {generation['requested']:,} asked for, {generation['pending']:,} waiting"
    lines += ["", "Generation", _line("videos", made)]
    if report.get("memory"):
        lines += ["", "Memory", _line("peak, all processes", f"{report['memory']['peak_resident_bytes'] / 2**30:.1f} GiB")]
    lines += ["", "Invariants"]
    lines += [f"  {'✓' if item['holds'] else '✗ BROKEN'} {item['name']}: {item['detail']}" for item in report["invariants"]]
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def all_hold(invariants: Sequence[Invariant]) -> bool:
    return all(invariant.holds for invariant in invariants)
