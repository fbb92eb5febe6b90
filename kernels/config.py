"""Block sizes of the Triton kernels, as tables: no autotuning, so that a captured graph, a test and a release run the same code.

Chosen for sm_90 by what compiles without spilling registers (`tests/kernels/test_compile.py` holds them to that); their times on a GPU
are unmeasured so far.
"""

from __future__ import annotations

from typing import NamedTuple

FUSED_ROWS = 1024
"""Up to so many rows `kernels.linear` fuses on a GPU."""

MOST_CANDIDATES = 1 << 15
"""Numbers that one program of `beam_select` holds: its prefix sum counts in 16 bits."""


class Tile(NamedTuple):
    """Rows, columns and depth of one program's tile, its warps and its software pipeline."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def projection(rows: int, itemsize: int) -> Tile:
    """Tile of `proj_pyramid`; the columns are a multiple of the coarse groups' fine ones and do not depend on the rows.

    A row's bits follow from depth and columns alone, which is what keeps a request independent of its batch.
    """
    if itemsize == 4:
        return Tile(64, 128, 32, 8, 3)
    return Tile(64 if rows <= 64 else 128, 128, 64, 4 if rows <= 64 else 8, 3)


def linear(rows: int, itemsize: int) -> Tile:
    """Tile of the fused linear layers: small, because few rows must still fill all multiprocessors."""
    return Tile(64, 64, 32, 4, 3) if itemsize == 4 else Tile(64, 64, 64, 4, 4)


def attention(itemsize: int, width: int) -> Tile:
    """Tile of `context_attention`: query rows and context positions; depth is the head's width."""
    return Tile(64, 32 if itemsize == 4 else 64, width, 4, 2)


def pass_columns(vocabulary: int) -> int:
    """Columns per program of `pyramid`."""
    return 256 if vocabulary > 128 else 128


def selection_warps(candidates: int) -> int:
    """Warps of `beam_select` for its widest stage: 16 candidates a thread, up to the most threads that a block may have."""
    return 4 if candidates <= 1024 else 8 if candidates <= 4096 else 16 if candidates <= 8192 else 32
