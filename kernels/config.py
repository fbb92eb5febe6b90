"""Block sizes of the Triton kernels, as tables: no autotuning, so that a captured graph, a test and a release run the same code.

Chosen on one H100 by time, among those that compile without spilling registers (`tests/kernels/test_compile.py` holds them to that).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

MULTIPROCESSORS = 132
"""Of an H100 or H200, for which tiles are chosen."""

LEAST_CAPABILITY = (9, 0)
"""Of a GPU whose blocks have the shared memory that these tiles take."""

GROUP = 8
"""Row tiles of a product whose column tiles run one after the other, before the next row tiles."""

FEW_ROWS = 1024
"""Up to so many rows the kernels of a search are shorter than what it takes to start them."""

FUSED_WIDTHS = (16, 32, 64)
"""Widths of a head whose queries `projected_attention` makes itself: a tile of them stays in registers."""

MOST_CANDIDATES = 1 << 15
"""Numbers that one program of `beam_select` holds: its prefix sum counts in 16 bits."""

FIRST_CANDIDATES = 1 << 14
"""Numbers among which a descent of `beam_select` begins, rather than one level higher: a level more costs as much as twice the numbers."""


class Tile(NamedTuple):
    """Rows, columns and depth of one program's tile, its warps and its software pipeline.

    persistent: as many programs as multiprocessors take one tile after the other, so that the loads of a tile run beside the epilogue of
    the one before; otherwise a program has one tile.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    persistent: bool = False


NARROW = (Tile(64, 64, 128, 4, 4), Tile(128, 64, 128, 8, 3), Tile(128, 128, 64, 8, 4))
WIDE = (Tile(64, 256, 64, 4, 3), Tile(128, 256, 64, 8, 3))
"""Tiles of few rows. A program of any has more than half of a multiprocessor's shared memory: two that share one would each be half as
fast, and those of the next kernel, which starts early, would be put beside them while other multiprocessors are idle."""


def programs(device: torch.device, tile: Tile) -> int:
    """The most programs of a product with such tiles. A CPU, where the interpreter runs, has two, so that the loop is seen to work."""
    if not tile.persistent:
        return 1 << 30
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def projection(rows: int, itemsize: int, masked: bool) -> Tile:
    """Tile of `proj_pyramid`; its columns are a multiple of those that make a part of a log-sum-exp."""
    if itemsize == 4:
        return Tile(64, 128, 32, 8, 3)
    if rows <= 64:
        return Tile(64, 128, 128, 4, 3)
    # A mask takes the registers that the larger tile would need.
    return Tile(128, 128, 64, 8, 3) if masked else Tile(128, 256, 64, 8, 3)


def linear(rows: int, columns: int, itemsize: int) -> Tile:
    """Tile of the fused linear layers: few rows must still fill all multiprocessors, many want large tiles."""
    if itemsize == 4:
        return Tile(64, 64, 32, 4, 3, rows > 128)
    if rows <= 128:
        return Tile(64, 32, 256, 4, 4)
    if rows <= FEW_ROWS:
        fitting = WIDE if columns > 2048 else NARROW
        return next((tile for tile in fitting if _tiles(tile, rows, columns) <= MULTIPROCESSORS), fitting[-1])
    # Whichever takes less time in whole rounds of all multiprocessors; the smaller tile is a tenth less efficient.
    large, small = Tile(128, 256, 64, 8, 4, True), Tile(128, 128, 64, 8, 4, True)
    return large if 2 * _rounds(large, rows, columns) <= 1.1 * _rounds(small, rows, columns) else small


def _rounds(tile: Tile, rows: int, columns: int) -> int:
    return -(-_tiles(tile, rows, columns) // MULTIPROCESSORS)


def _tiles(tile: Tile, rows: int, columns: int) -> int:
    return -(-rows // tile.rows) * -(-columns // tile.columns)


def attention(itemsize: int, width: int) -> Tile:
    """Tile of `context_attention`: query rows and context positions; depth is the head's width."""
    return Tile(64, 32 if itemsize == 4 else 64, width, 4, 2 if itemsize == 4 else 3)


def projected_attention(itemsize: int) -> Tile:
    """Tile of `projected_attention`: beams and context positions; the depth is that of the queries' product."""
    return Tile(64, 32, 32, 4, 2) if itemsize == 4 else Tile(64, 64, 128, 4, 4)


def pass_columns(vocabulary: int) -> int:
    """Columns per program of `pyramid`."""
    return 256 if vocabulary > 128 else 128


def selection_warps(candidates: int) -> int:
    """Warps of `beam_select` for its widest stage: 16 or 32 candidates a thread; more warps wait longer for each other than they save."""
    return 4 if candidates <= 1024 else 8 if candidates <= 4096 else 16
