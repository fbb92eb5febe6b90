"""A last level that is a grid: finite scalar quantisation of the residual (Res-KmeansFSQ of QARM V2, arXiv 2602.08559, section C).

QARM learns a projection and rounds a sigmoid; here the axes are the residual's principal ones and each axis gets its own best values, which
needs no gradient. The axes are orthogonal, so a grid cell's centre is a centroid like any other: the nearest one is found axis by axis or
by distance with the same result, and whoever decodes a SID needs no other rule for this level.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

TURNS = 20


def codebook(residual: Vectors, codes: int, values: int) -> Vectors:
    """Centres of the grid's cells.

    Args:
        residual: float32[N, d], what the levels before left over.
        codes: upper bound of the number of cells.
        values: values per axis, at least 2; as many axes are used as `values ** axes` ≤ `codes` allows, at most d.

    Returns:
        float32[values ** axes, d]; the first axis is the most significant digit of a code.

    Raises:
        ValueError: fewer codes than values, or fewer than two values.
    """
    if values < 2 or codes < values:
        raise ValueError(f"a grid of {values} values per axis needs at least 2 values and as many codes, {codes} codes are given")
    axes = min(int(np.log(codes) / np.log(values) + 1e-9), residual.shape[1])
    wide = residual.astype(np.float64)
    _, directions = np.linalg.eigh(wide.T @ wide)
    directions = directions[:, ::-1][:, :axes]
    # An eigenvector's sign is arbitrary; fix it, so that the same input gives the same codes.
    directions = directions * np.where(directions[np.abs(directions).argmax(axis=0), np.arange(axes)] < 0, -1.0, 1.0)
    grids = [_scalar_kmeans(column, values) for column in (wide @ directions).T]
    cells = np.stack(np.meshgrid(*grids, indexing="ij"), axis=-1).reshape(-1, axes)
    return (cells @ directions.T).astype(np.float32)


def _scalar_kmeans(numbers: npt.NDArray[np.float64], values: int) -> npt.NDArray[np.float64]:
    """Lloyd's values (Lloyd, 1982) of one axis, float64[values], ascending, started at even quantiles."""
    ordered = np.sort(numbers)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.quantile(ordered, (np.arange(values) + 0.5) / values)
    for _ in range(TURNS):
        ends = np.concatenate([[0], np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2), [len(ordered)]])
        count = np.diff(ends)
        means = np.diff(sums[ends]) / np.maximum(count, 1)
        centres = np.sort(np.where(count > 0, means, centres))
    return centres
