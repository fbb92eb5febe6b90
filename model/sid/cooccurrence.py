"""What is watched together: positive pointwise mutual information of items in the same sequence, its leading factors, and the Swing score.

Swing and PMI both say "these two meet more often than their popularity explains". PMI with context-distribution smoothing (Levy, Goldberg
and Dagan, 2015) needs one pass over the log and gives a matrix whose factors are an embedding; Swing (Yang et al., 2020) counts pairs of
users who share little else, is dearer and less fooled by what everybody buys, and gives the positive pairs of contrastive training.
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
    low, high, count = _counted(sequences, items, window)
    total = np.bincount(low, count, items) + np.bincount(high, count, items)
    smooth = total**SMOOTHING
    smooth *= total.sum() / max(smooth.sum(), 1e-30)
    value = np.log(count * total.sum() / (smooth[low] * smooth[high])) * count / (count + RARITY_DISCOUNT)
    kept = value > 0
    low, high, value = low[kept], high[kept], value[kept]
    return _symmetric(low, high, value, items)


def smooth(vectors: npt.NDArray[np.float32], sequences: Sequences, window: int, share: float, hops: int = 3) -> npt.NDArray[np.float32]:
    """Embeddings float32[N, d] moved towards those of what is met in the same sequences: the aligned embeddings of S2GR (arXiv 2601.18664).

    H0 = X, Hk = share * A Hk-1 + (1 - share) * X with the symmetrically normalised matrix A of co-occurrence counts; the result is the
    mean of H0..Hhops with weights (1 - share) * share^k. (S2GR's alpha is 1 - share.) An item that was met with none keeps its own.
    """
    import torch  # here, because whoever only reads a bundle needs none of it: 250 MB and seconds of every generator

    items = len(vectors)
    low, high, count = _counted(sequences, items, window)
    degree = np.bincount(low, count, items) + np.bincount(high, count, items)
    pairs = _symmetric(low, high, count / np.sqrt(degree[low] * degree[high]), items)
    own = torch.from_numpy(vectors.astype(np.float32))
    alone = torch.from_numpy(degree == 0)[:, None]
    hop, total, weight = own, (1 - share) * own, 1 - share
    for number in range(1, hops + 1):
        hop = torch.where(alone, own, share * _product(pairs, items, hop) + (1 - share) * own)
        total = total + (1 - share) * share**number * hop
        weight += (1 - share) * share**number
    return (total / weight).numpy()


def swing(sequences: Sequences, items: int, *, alpha: float = 1.0, max_users: int = 64, seed: int = 0) -> Pairs:
    """Swing score of items that at least two users share (Yang et al., 2020).

    s(i, j) = sum over the pairs of users u, v that both have i and j of w_u w_v / (alpha + |I_u and I_v|), w_u = 1 / sqrt(|I_u|).

    Args:
        max_users: of an item's users that many form pairs, the first in one order of all users, drawn by `seed`. Time and memory grow with
            N * max_users^2 / 2 in the worst case, about 40 bytes for each pair of users of an item, plus as much for each pair of items
            that two users share.
    """
    used = sequences.weight > 0
    key = np.unique(sequences.user[used] * items + sequences.row[used])  # a user has an item once
    user, row = key // items, key % items
    _, code, size = np.unique(user, return_inverse=True, return_counts=True)
    code = code.reshape(-1)
    # One draw for all items: drawn for each item apart, two popular items would keep hardly any user in common.
    rank = np.random.default_rng(seed).permutation(len(size))[code]
    order = np.lexsort((rank, row))
    place = np.arange(len(row)) - np.searchsorted(row[order], row[order])
    code, row = code[order][place < max_users], row[order][place < max_users]
    order = np.lexsort((code, row))
    code, row = code[order], row[order]
    weight = 1.0 / np.sqrt(size)
    # All pairs of users of an item, then, in each pair of users, all pairs of items.
    first, second = pairs_within(row)
    people = code[first] * len(size) + code[second]
    order = np.argsort(people, kind="stable")
    people, item = people[order], row[first][order]
    _, start, shared = np.unique(people, return_index=True, return_counts=True)
    kept = np.repeat(shared > 1, shared)
    score = np.repeat(weight[people[start] // len(size)] * weight[people[start] % len(size)] / (alpha + shared), shared)[kept]
    one, other = pairs_within(people[kept])
    low, high = np.minimum(item[kept][one], item[kept][other]), np.maximum(item[kept][one], item[kept][other])
    key, position = np.unique(low * items + high, return_inverse=True)
    return _symmetric(key // items, key % items, np.bincount(position.reshape(-1), score[one], len(key)).astype(np.float64), items)


def same(ids: npt.NDArray[np.int64]) -> Pairs:
    """All pairs of rows with the same id (the same product, say), value 1; a negative id is unknown and equals none."""
    known = np.flatnonzero(ids >= 0)
    order = known[np.argsort(ids[known], kind="stable")]
    first, second = pairs_within(ids[order])
    low, high = np.minimum(order[first], order[second]), np.maximum(order[first], order[second])
    return _symmetric(low, high, np.ones(len(low)), len(ids))


def pairs_within(group: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices (first < second) of every pair of neighbours' places with an equal value; `group` is sorted."""
    after = np.searchsorted(group, group, side="right") - np.arange(len(group)) - 1
    first = np.repeat(np.arange(len(group)), after)
    second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(after) - after, after)
    return first, second


def _counted(sequences: Sequences, items: int, window: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Pairs low < high of items at most `window` places apart, and how often they were met, each time counted as 1 / distance."""
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
    return low, high, count.astype(np.float64)


def _symmetric(low: npt.NDArray[np.int64], high: npt.NDArray[np.int64], value: npt.NDArray[np.float64], items: int) -> Pairs:
    left, right, both = np.concatenate([low, high]), np.concatenate([high, low]), np.concatenate([value, value])
    order = np.argsort(left * items + right, kind="stable")
    return Pairs(left[order], right[order], both[order].astype(np.float32))


def _product(pairs: Pairs, items: int, thin: torch.Tensor) -> torch.Tensor:
    """The pair matrix times a thin one, float32[N, k]."""
    import torch

    starts = torch.from_numpy(np.searchsorted(pairs.left, np.arange(items)))
    right, value = torch.from_numpy(pairs.right), torch.from_numpy(pairs.value)
    return torch.nn.functional.embedding_bag(right, thin, starts, mode="sum", per_sample_weights=value)


def factors(pairs: Pairs, items: int, dimensions: int, seed: int) -> npt.NDArray[np.float32]:
    """Leading eigenvectors of the pair matrix, each times the square root of its eigenvalue's size: float32[N, dimensions].

    Randomised subspace iteration (Halko, Martinsson and Tropp, 2011): a few products with a thin matrix, so never N × N in memory.
    An item without pairs is all zeros.
    """
    import torch  # here, because whoever only reads a bundle needs none of it: 250 MB and seconds of every generator

    wide = min(dimensions + OVERSAMPLING, items)
    basis = torch.from_numpy(np.random.default_rng(seed).standard_normal((items, wide)).astype(np.float32))
    for _ in range(POWER_ITERATIONS):
        basis, _ = torch.linalg.qr(_product(pairs, items, basis))
    small = basis.T @ _product(pairs, items, basis)
    size, vector = torch.linalg.eigh((small + small.T) / 2)
    order = torch.argsort(size.abs(), descending=True)[:dimensions]
    found = (basis @ vector[:, order]) * size[order].abs().sqrt()
    # An eigenvector's sign is arbitrary; fix it, so that the same input gives the same embedding.
    peak = found.abs().argmax(dim=0)
    found = found * torch.where(found[peak, torch.arange(found.shape[1])] < 0, -1.0, 1.0)
    padded = np.zeros((items, dimensions), np.float32)
    padded[:, : found.shape[1]] = found.numpy()
    return padded
