"""The Triton kernels without a GPU: in the interpreter, which must be switched on before Triton is first imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.integration
def test_kernels_are_right_in_the_interpreter() -> None:
    path = Path(__file__).with_name("interpreted.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", str(path)], cwd=path.parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:]
