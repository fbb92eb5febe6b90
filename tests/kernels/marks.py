"""What tests of the compiled library need of a machine. Not the library: where the processor can run it, its absence is a failure."""

from __future__ import annotations

import platform

import pytest

from kernels import native

FUSED = platform.machine() == "aarch64" or "fma" in native._processor().split()

needs_library = pytest.mark.skipif(not FUSED, reason="a processor without fused multiply-add")
needs_matrix_unit = pytest.mark.skipif(not (FUSED and native.matrix_unit()), reason="this processor multiplies no bfloat16 matrices")
