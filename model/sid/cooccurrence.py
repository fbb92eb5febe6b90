"""What is watched together: positive pointwise mutual information of items in the same sequence, and its leading factors.

Swing and PMI both say "these two meet more often than their popularity explains"; PMI with context-distribution smoothing (Levy, Goldberg
and Dagan, 2015) needs one pass over the log and gives a matrix whose factors are an embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

# Popularity is raised to this power before it is divided out; below 1 it keeps rare items from owning the largest PMI.
SMOOTHING = 0.75
# A pair seen n times counts n / (n + this): once is often chance.
RARITY_DISCOUNT = 2.0
OVERSAMPLING = 16
POWER_ITERATIONS = 4


class Sequences(NamedTuple):
    """Items in the order in which each user met them, all users one after another.

    row: int64[M], position of the item in the catalogue. user: int64[M], equal within one sequence. weight: float32[M], 0 leaves it out.
    """

    row: npt.NDArray[np.int64]
    user: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]


class Pairs(NamedTuple):
    """A symmetric sparse matrix: value float32[P] at (left int64[P], right int64[P]), sorted by left, then right."""

    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]


def pmi(sequences: Sequences, items: int, window: int) -> Pairs:
    """Positive PMI of the items that stand at most `window` places apart in a sequence.

    Args:
        items: N, the number of items in the catalogue.
        window: places after an item that count; nearer ones count more (1 / distance).
    """
    used = sequences.weight > 0
    row, user, weight = sequences.row[used], sequences.user[used], sequences.weight[used].astype(np.float64)
    keys, counts = [], []
    for distance in range(1, window + 1):
        near, far = row[:-distance], row[distance:]
        together = (user[:-distance] == user[distance:]) & (near != far)
        near, far = near[together], far[together]
        keys.append(np.minimum(near, far) * items + np.maximum(near, far))
        counts.append((weight[:-distance] * weight[distance:])[together] / distance)
    key, position = np.unique(np.concatenate(keys), return_inverse=True)
    count = np.bincount(position, weights=np.concatenate(counts), minlength=len(key))
    low, high = key // items, key % items
    total = np.bincount(low, count, items) + np.bincount(high, count, items)
    smooth = total**SMOOTHING
    smooth *= total.sum() / max(smooth.sum(), 1e-30)
    value = np.log(count * total.sum() / (smooth[low] * smooth[high])) * count / (count + RARITY_DISCOUNT)
    kept = value > 0
    low, high, value = low[kept], high[kept], value[kept]
    left, right, value = np.concatenate([low, high]), np.concatenate([high, low]), np.concatenate([value, value])
    order = np.argsort(left * items + right, kind="stable")
    return Pairs(left[order], right[order], value[order].astype(np.float32))


def factors(pairs: Pairs, items: int, dimensions: int, seed: int) -> npt.NDArray[np.float32]:
    """Leading eigenvectors of the pair matrix, each times the square root of its eigenvalue's size: float32[N, dimensions].

    Randomised subspace iteration (Halko, Martinsson and Tropp, 2011): a few products with a thin matrix, so never N × N in memory.
    An item without pairs is all zeros.
    """
    import torch  # here, because whoever only reads a bundle needs none of it: 250 MB and seconds of every generator

    starts, right, value = (
        torch.from_numpy(np.searchsorted(pairs.left, np.arange(items))),
        torch.from_numpy(pairs.right),
        torch.from_numpy(pairs.value),
    )

    def product(thin: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding_bag(right, thin, starts, mode="sum", per_sample_weights=value)

    wide = min(dimensions + OVERSAMPLING, items)
    basis = torch.from_numpy(np.random.default_rng(seed).standard_normal((items, wide)).astype(np.float32))
    for _ in range(POWER_ITERATIONS):
        basis, _ = torch.linalg.qr(product(basis))
    small = basis.T @ product(basis)
    size, vector = torch.linalg.eigh((small + small.T) / 2)
    order = torch.argsort(size.abs(), descending=True)[:dimensions]
    found = (basis @ vector[:, order]) * size[order].abs().sqrt()
    # An eigenvector's sign is arbitrary; fix it, so that the same input gives the same embedding.
    peak = found.abs().argmax(dim=0)
    found = found * torch.where(found[peak, torch.arange(found.shape[1])] < 0, -1.0, 1.0)
    padded = np.zeros((items, dimensions), np.float32)
    padded[:, : found.shape[1]] = found.numpy()
    return padded
