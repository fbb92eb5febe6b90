"""Where a benchmark runs, and what its rows say of it; needs nothing but torch."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.command import command

NO_GPU = "there is no GPU: run this where torch sees one, or try the program here with --device cpu --preset laptop --quick"


class Unable(Exception):
    """Nothing can be measured here; the message says what to do."""


def device(name: str | None) -> torch.device:
    """The device asked for; without a name the GPU.

    Raises:
        Unable: there is no GPU, and no other device was asked for.
    """
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Unable(NO_GPU)
    return torch.device("cuda")


def facts(on: torch.device, preset: str, dtype: torch.dtype) -> dict[str, str]:
    """What every row of a run has in common."""
    return {"preset": preset, "dtype": str(dtype).removeprefix("torch."), **origin(on, "kernels.run")}


def origin(on: torch.device, program: str) -> dict[str, str]:
    """Where the figures of `benchmarks.<program>` come from."""
    return {
        "device": torch.cuda.get_device_name(on) if on.type == "cuda" else _processor(),
        "commit": _commit(),
        "command": command(program),
        "day": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "triton": _version("triton"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    except OSError:
        name = platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def _commit() -> str:
    """The checkout's commit, with a + where tracked files differ from it; `unknown` outside of one."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
