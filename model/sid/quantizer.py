"""Residual k-means: each level's codebook is fitted to what the levels before left over (RQ-KMeans of QARM and OneRec).

A vector is written as one code per level, the nearest centroid of its residual; its reconstruction is the sum of those centroids.
Plain functions over numpy; equal inputs and seed give equal bits on one machine with the same number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]

ITERATIONS = 25
SETTLING = 2
# While fitting, a centroid's squared distance grows with its share of the vectors, (share / even share) ** BALANCE, within CLIP: crowded
# codes shed vectors to their neighbours. The bounded form is S2GR's load balancing. On the KuaiRand catalogue, 64 codes, 12 seeds, paired:
# videos that share a SID 8.6% -> 7.8% (-0.8 +- 0.3 points), distortion unchanged. Not a law: with far outliers it was seen to crowd more.
BALANCE = 0.3
CLIP = (0.7, 1.4)
USAGE_MEMORY = 0.7
# k-means needs no more than this many vectors per code to find its centroids; the others are only encoded.
VECTORS_PER_CODE = 256
# Numbers in one block of distances.
BLOCK = 1 << 23


def fit(vectors: Vectors, levels: int, codes: int, seed: int, progress: Callable[[], None] | None = None) -> list[Vectors]:
    """Codebooks of residual k-means.

    Args:
        vectors: float32[N, d], N ≥ 1, finite.
        levels: number of codebooks.
        codes: centroids per level; fewer where there are fewer distinct residuals, so that no code is dead from the start.
        progress: called after every iteration, `levels` × ITERATIONS times.

    Returns:
        One float32[codes, d] per level.
    """
    if len(vectors) == 0 or not np.isfinite(vectors).all():
        raise ValueError(f"cannot fit codebooks to {len(vectors)} vectors: at least one is needed, and all must be finite")
    rng = np.random.default_rng(seed)
    rows = vectors
    if len(vectors) > VECTORS_PER_CODE * codes:
        rows = vectors[np.sort(rng.choice(len(vectors), VECTORS_PER_CODE * codes, replace=False))]
    residual = rows.astype(np.float32)
    codebooks = []
    for _ in range(levels):
        codebook = _kmeans(residual, codes, rng, progress)
        residual = residual - codebook[nearest(residual, codebook)]
        codebooks.append(codebook)
    return codebooks


def encode(vectors: Vectors, codebooks: Sequence[Vectors]) -> Codes:
    """One code per level, int32[N, levels]: greedy, level by level, ties to the smaller code."""
    residual = vectors.astype(np.float32)
    codes = np.empty((len(vectors), len(codebooks)), np.int32)
    for level, codebook in enumerate(codebooks):
        codes[:, level] = nearest(residual, codebook)
        residual = residual - codebook[codes[:, level]]
    return codes


def separate(vectors: Vectors, codebooks: Sequence[Vectors], codes: Codes, taken: Codes | None = None) -> Codes:
    """Give every vector a SID that no other has, changing as little as possible of the last levels.

    Of those that share a SID the one nearest to its reconstruction keeps it; each other one takes the nearest code of the last level that
    is free under its prefix, and where a prefix is full, one under the next nearest code of the level before.

    Args:
        vectors, codes: as encode() takes and returns them.
        taken: SIDs int32[M, levels] that are given away already; they do not change.

    Raises:
        ValueError: more vectors share all levels but the last two than there are codes for.
    """
    levels = len(codebooks)
    used = {tuple(sid) for sid in taken.tolist()} if taken is not None else set()
    found = codes.copy()
    wrong = ((vectors - decode(codes, codebooks)) ** 2).sum(axis=1)
    crowded = []
    for row in np.argsort(wrong, kind="stable").tolist():
        sid = tuple(codes[row].tolist())
        if sid in used:
            crowded.append(row)
        used.add(sid)
    for row in crowded:
        place = _free(vectors[row], codebooks, codes[row], used)
        if place is None:
            raise ValueError(
                f"vector {row}: every SID under the first {levels - 2} codes of {codes[row].tolist()} is taken; use more codes"
            )
        used.add(place)
        found[row] = place
    return found


def _free(vector: Vectors, codebooks: Sequence[Vectors], codes: Codes, used: set[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The nearest SID that is not used, among those with the same codes at all levels but the last two."""
    kept = tuple(codes[:-2].tolist())
    rest = vector - sum(codebook[code] for codebook, code in zip(codebooks, kept, strict=False))
    before = np.argsort(((rest - codebooks[-2]) ** 2).sum(axis=1), kind="stable") if len(codebooks) > 1 else [None]
    for middle in before:
        left = rest if middle is None else rest - codebooks[-2][middle]
        prefix = kept if middle is None else (*kept, int(middle))
        for last in np.argsort(((left - codebooks[-1]) ** 2).sum(axis=1), kind="stable").tolist():
            if (*prefix, last) not in used:
                return (*prefix, last)
    return None


def decode(codes: Codes, codebooks: Sequence[Vectors]) -> Vectors:
    """Reconstruction float32[N, d]: the sum of the centroids that the codes (int[N, levels]) name."""
    total = codebooks[0][codes[:, 0]].astype(np.float32)
    for level, codebook in enumerate(codebooks[1:], start=1):
        total = total + codebook[codes[:, level]]
    return total


def nearest(vectors: Vectors, codebook: Vectors, scale: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.int32]:
    """Index int32[N] of the centroid with the smallest (scaled) squared distance; ties to the smaller index."""
    found = np.empty(len(vectors), np.int32)
    block = max(1, BLOCK // len(codebook))
    for start in range(0, len(vectors), block):
        distance = _squared_distances(vectors[start : start + block], codebook)
        if scale is not None:
            distance *= scale
        found[start : start + block] = distance.argmin(axis=1)
    return found


def _kmeans(vectors: Vectors, codes: int, rng: np.random.Generator, progress: Callable[[], None] | None) -> Vectors:
    centroids = _spread_out(vectors, codes, rng)
    codes = len(centroids)
    usage = np.full(codes, len(vectors) / codes)
    # The codebook returned is the one with the least distortion under plain nearest assignment, which is what encode() does. It starts
    # from the centre of all vectors, so that a level never makes the reconstruction worse.
    best = np.zeros_like(centroids)
    least = float((vectors.astype(np.float64) ** 2).sum())
    for turn in range(ITERATIONS):
        # The last turns are not balanced: they end in centroids that are the means of the vectors encoded with them.
        settle = turn >= ITERATIONS - SETTLING
        scale = None if settle else np.clip((usage / usage.mean()) ** BALANCE, *CLIP).astype(np.float32)
        assigned = nearest(vectors, centroids, scale)
        count = np.bincount(assigned, minlength=codes)
        usage = USAGE_MEMORY * usage + (1 - USAGE_MEMORY) * count
        if settle:
            distortion = _distortion(vectors, centroids, assigned)
            if distortion < least and count.all():
                best, least = centroids, distortion
        centroids = _means(vectors, assigned, count, centroids)
        _revive(vectors, centroids, assigned, count)
        if progress is not None:
            progress()
    assigned = nearest(vectors, centroids)
    return centroids if _distortion(vectors, centroids, assigned) <= least else best


def _spread_out(vectors: Vectors, codes: int, rng: np.random.Generator) -> Vectors:
    """k-means++ starts (Arthur and Vassilvitskii, 2007), the best of a few tries at each step; at most one per distinct vector."""
    tries = 2 + int(np.log(codes))
    chosen = [int(rng.integers(len(vectors)))]
    distance = _squared_distances(vectors, vectors[chosen])[:, 0].astype(np.float64)
    distance[(vectors == vectors[chosen[0]]).all(axis=1)] = 0.0
    while len(chosen) < codes and distance.max() > 1e-10:
        candidates = np.searchsorted(np.cumsum(distance), rng.random(tries) * distance.sum(), side="right")
        candidates = np.minimum(candidates, len(vectors) - 1)
        candidates = candidates[distance[candidates] > 1e-10]
        if not len(candidates):
            candidates = np.array([distance.argmax()])
        left = np.minimum(_squared_distances(vectors, vectors[candidates]), distance[:, None])
        pick = int(left.sum(axis=0).argmin())
        chosen.append(int(candidates[pick]))
        distance = left[:, pick].astype(np.float64)
        distance[chosen[-1]] = 0.0
    return vectors[chosen].copy()


def _means(vectors: Vectors, assigned: npt.NDArray[np.int32], count: npt.NDArray[np.int64], before: Vectors) -> Vectors:
    order = np.argsort(assigned, kind="stable")
    used = np.flatnonzero(count)
    sums = np.add.reduceat(vectors[order].astype(np.float64), np.searchsorted(assigned[order], used), axis=0)
    means = before.copy()
    means[used] = sums / count[used, None]
    return means


def _revive(vectors: Vectors, centroids: Vectors, assigned: npt.NDArray[np.int32], count: npt.NDArray[np.int64]) -> None:
    """Move each unused centroid to a vector that its own centroid describes worst."""
    dead = np.flatnonzero(count == 0)
    if len(dead):
        wrong = ((vectors - centroids[assigned]) ** 2).sum(axis=1)
        centroids[dead] = vectors[np.argsort(-wrong, kind="stable")[: len(dead)]]


def _distortion(vectors: Vectors, centroids: Vectors, assigned: npt.NDArray[np.int32]) -> float:
    return float(((vectors - centroids[assigned]).astype(np.float64) ** 2).sum())


def _squared_distances(vectors: Vectors, centroids: Vectors) -> npt.NDArray[np.float32]:
    distance = (vectors**2).sum(axis=1, keepdims=True) + (centroids**2).sum(axis=1) - 2.0 * (vectors @ centroids.T)
    return np.maximum(distance, 0.0)
