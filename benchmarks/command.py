"""The command of a result file, as anybody could give it; needs nothing but Python."""

from __future__ import annotations

import sys
from pathlib import Path


def command(name: str) -> str:
    """The command that runs `benchmarks.<name>` now; of an absolute path only the last part, for where it lies is the machine's."""
    return " ".join(["python -m", f"benchmarks.{name}", *(Path(word).name if word.startswith("/") else word for word in sys.argv[1:])])
