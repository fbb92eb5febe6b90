"""What is measured: the points of each part, the most telling first, so that a run that ends early has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.kernels.operations import OPERATIONS, READ_CONTEXT
from benchmarks.kernels.table import Point

PARTS: Mapping[str, float] = {"ceilings": 0.5, "operations": 6.0, "search": 10.0, "constrained": 2.0, "compiled": 5.5}
"""Parts in order, and the minutes of 25 that each may take; what one leaves over, the next ones have."""


@dataclass(frozen=True)
class Grid:
    """Shapes of a preset.

    Attributes:
        key: points (batch, width, context) with every baseline.
        narrow: widths that grow level by level to one of `widths`.
        catalogue: allowed SIDs of the constrained search.
    """

    batches: tuple[int, ...]
    widths: tuple[int, ...]
    contexts: tuple[int, ...]
    key: tuple[tuple[int, int, int], ...]
    narrow: tuple[int, ...]
    catalogue: int

    def shapes(self) -> list[tuple[int, int, int]]:
        """All (batch, width, context): key points, then their neighbours along one dimension, then the rest."""
        every = [(b, w, s) for b in self.batches for w in self.widths for s in self.contexts]
        _, width, context = self.key[0]
        return [*self.key, *sorted((p for p in every if p not in self.key), key=lambda p: (p[1] != width) + (p[2] != context))]


GRIDS: Mapping[str, Grid] = {
    "reference": Grid(
        batches=(1, 2, 4, 8, 16, 32, 64),
        widths=(128, 256, 512, 1024),
        contexts=(512, 1024, 2048),
        key=((1, 512, 512), (64, 512, 512), (8, 512, 512)),
        narrow=(128, 256, 512, 512),
        catalogue=1_000_000,
    ),
    "laptop": Grid(
        batches=(1, 8), widths=(16, 32), contexts=(32,), key=((1, 32, 32), (8, 32, 32)), narrow=(8, 16, 32, 32), catalogue=20_000
    ),
}


def quick(grid: Grid) -> Grid:
    """The first key point alone."""
    batch, width, context = grid.key[0]
    return Grid((batch,), (width,), (context,), grid.key[:1], grid.narrow, grid.catalogue)


def points(part: str, grid: Grid) -> list[Point]:
    """The points of a part, in the order in which they are measured."""
    if part == "ceilings":
        return [Point(part, case, 0, 0, 0) for case in ("copy", "product")]
    if part == "operations":
        shapes = grid.shapes()
        first = shapes[0][2]
        return [Point(part, case, *shape) for shape in shapes for case in OPERATIONS if case in READ_CONTEXT or shape[2] == first]
    if part == "search":
        return [Point(part, "whole search", *shape) for shape in grid.shapes()]
    if part == "constrained":
        return [Point(part, "search in a catalogue", *shape) for shape in grid.key]
    cases = ("torch.compile, naive", "torch.compile, smart")
    return [Point(part, case, *shape) for shape in grid.key for case in cases] + [
        Point(part, "torch.compile max-autotune, smart", *grid.key[0])
    ]
