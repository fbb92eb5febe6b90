"""Residual k-means: each level's codebook is fitted to what the levels before left over (RQ-KMeans of QARM and OneRec).

A vector is written as one code per level, the nearest centroid of its residual; its reconstruction is the sum of those centroids.
Plain functions over numpy; equal inputs and seed give equal bits on one machine with the same number of threads. For more vectors than
fit into memory, and for a GPU, see `model.sid.minibatch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from model.sid import fsq

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


@dataclass(frozen=True)
class Variant:
    """How codebooks are fitted. Encoding is the nearest centroid of each residual in every variant.

    balance: "usage" scales distances by a centroid's share of the vectors, see BALANCE (S2GR's load balancing); "exact" gives every
        centroid the same number of vectors, each in turn the nearest that are left (OneRec, 2502.18965); "none" is plain k-means.
    uniformity: centroids nearer to each other than this share of their mean distance to the nearest other one are pushed apart (S2GR's
        repulsion); 0 = not.
    fsq_values: 0, or the number of values per axis of a last level that is a grid instead of clusters (QARM V2), see `model.sid.fsq`.
    """

    balance: Literal["none", "usage", "exact"] = "usage"
    uniformity: float = 0.0
    fsq_values: int = 0


PLAIN = Variant()


def fit(
    vectors: Vectors, levels: int, codes: int, seed: int, progress: Callable[[], None] | None = None, variant: Variant = PLAIN
) -> list[Vectors]:
    """Codebooks of residual k-means.

    Args:
        vectors: float32[N, d], N ≥ 1, finite.
        levels: number of codebooks.
        codes: centroids per level; fewer where there are fewer distinct residuals, so that no code is dead from the start.
        progress: called after every iteration, `levels` × ITERATIONS times.

    Returns:
        One float32[codes, d] per level.

    Raises:
        ValueError: no vectors, or one that is not finite; the message names its row.
    """
    if len(vectors) == 0:
        raise ValueError("cannot fit codebooks to 0 vectors: at least one is needed")
    refuse_broken(vectors)
    rng = np.random.default_rng(seed)
    rows = vectors
    if len(vectors) > VECTORS_PER_CODE * codes:
        rows = vectors[np.sort(rng.choice(len(vectors), VECTORS_PER_CODE * codes, replace=False))]
    residual = rows.astype(np.float32)
    codebooks = []
    for level in range(levels):
        if variant.fsq_values and level == levels - 1:
            codebook = fsq.codebook(residual, codes, variant.fsq_values)
            if progress is not None:
                for _ in range(ITERATIONS):
                    progress()
        else:
            codebook = _kmeans(residual, codes, rng, progress, variant)
        residual = residual - codebook[nearest(residual, codebook)]
        codebooks.append(codebook)
    return codebooks


def encode(vectors: Vectors, codebooks: Sequence[Vectors]) -> Codes:
    """One code per level, int32[N, levels]: greedy, level by level, ties to the smaller code.

    Raises:
        ValueError: a vector that is not finite; the message names its row.
    """
    refuse_broken(vectors)
    residual = vectors.astype(np.float32)
    codes = np.empty((len(vectors), len(codebooks)), np.int32)
    for level, codebook in enumerate(codebooks):
        codes[:, level] = nearest(residual, codebook)
        residual = residual - codebook[codes[:, level]]
    return codes


def separate(
    vectors: Vectors,
    codebooks: Sequence[Vectors],
    codes: Codes,
    taken: Codes | None = None,
    *,
    prefix: Codes | None = None,
    or_share: bool = False,
) -> Codes:
    """Give every vector a SID that no other has, changing as little as possible of the last levels.

    Of those that share a SID the one nearest to its reconstruction keeps it; each other one takes the nearest code of the last level that
    is free under its prefix, and where a prefix is full, one under the next nearest code of the level before.

    Args:
        vectors, codes: as encode() takes and returns them.
        taken: SIDs int32[M, p + levels] that are given away already; they do not change.
        prefix: codes int32[N, p] of the levels before these (the other factor's); they do not change either.
        or_share: a vector that finds nothing free keeps its code, and shares it.

    Raises:
        ValueError: more vectors share all levels but the last two than there are codes for, and `or_share` is not set.
    """
    sids = codes if prefix is None else np.concatenate([prefix, codes], axis=1)
    everything = sids if taken is None else np.concatenate([taken, sids])
    given = len(everything) - len(sids)
    wrong = ((vectors - decode(codes, codebooks)) ** 2).sum(axis=1)
    order = np.concatenate([np.arange(given), given + np.argsort(wrong, kind="stable")])
    _, first = np.unique(everything[order], axis=0, return_index=True)
    crowded = np.delete(order, first)
    crowded = crowded[crowded >= given] - given
    found = codes.copy()
    if not len(crowded):
        return found
    # Only SIDs that a crowded vector could take are remembered one by one.
    stem = max(sids.shape[1] - 2, sids.shape[1] - codes.shape[1])
    _, stems = np.unique(everything[:, :stem], axis=0, return_inverse=True)
    stems = stems.reshape(-1)
    near = np.isin(stems, stems[given + crowded])
    used = set(map(tuple, everything[near].tolist()))
    for row in crowded.tolist():
        before = () if prefix is None else tuple(prefix[row].tolist())
        place = _free(vectors[row], codebooks, codes[row], used, before)
        if place is None:
            if or_share:
                continue
            raise ValueError(
                f"vector {row}: every SID under the first {stem} codes of {sids[row].tolist()} is taken; use more codes or levels"
            )
        used.add(before + place)
        found[row] = place
    return found


def _free(
    vector: Vectors, codebooks: Sequence[Vectors], codes: Codes, used: set[tuple[int, ...]], before: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The nearest codes that are not used after `before`, among those that are the same at all levels but the last two."""
    kept = tuple(codes[:-2].tolist())
    rest = vector - sum(codebook[code] for codebook, code in zip(codebooks, kept, strict=False))
    middles = np.argsort(((rest - codebooks[-2]) ** 2).sum(axis=1), kind="stable") if len(codebooks) > 1 else [None]
    for middle in middles:
        left = rest if middle is None else rest - codebooks[-2][middle]
        stem = kept if middle is None else (*kept, int(middle))
        for last in np.argsort(((left - codebooks[-1]) ** 2).sum(axis=1), kind="stable").tolist():
            if (*before, *stem, last) not in used:
                return (*stem, last)
    return None


def refuse_broken(vectors: npt.NDArray) -> None:
    """Let only finite embeddings (float[N, d]) pass.

    Raises:
        ValueError: a row is not finite; the message names the first and counts them.
    """
    broken = ~np.isfinite(vectors).all(axis=1)
    if broken.any():
        raise ValueError(
            f"row {int(broken.argmax())} of the embeddings is not finite ({int(broken.sum())} of {len(vectors)} rows are): "
            "leave these items out or embed them again"
        )


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


def _kmeans(
    vectors: Vectors, codes: int, rng: np.random.Generator, progress: Callable[[], None] | None, variant: Variant = PLAIN
) -> Vectors:
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
        if variant.balance == "exact" and not settle:
            assigned = _even_assignment(vectors, centroids)
        else:
            scaled = variant.balance == "usage" and not settle
            scale = np.clip((usage / usage.mean()) ** BALANCE, *CLIP).astype(np.float32) if scaled else None
            assigned = nearest(vectors, centroids, scale)
        count = np.bincount(assigned, minlength=codes)
        usage = USAGE_MEMORY * usage + (1 - USAGE_MEMORY) * count
        if settle:
            distortion = _distortion(vectors, centroids, assigned)
            if distortion < least and count.all():
                best, least = centroids, distortion
        centroids = _means(vectors, assigned, count, centroids)
        _revive(vectors, centroids, assigned, count)
        if variant.uniformity and not settle:
            centroids = _push_apart(centroids, variant.uniformity)
        if progress is not None:
            progress()
    assigned = nearest(vectors, centroids)
    return centroids if _distortion(vectors, centroids, assigned) <= least else best


def _even_assignment(vectors: Vectors, centroids: Vectors) -> npt.NDArray[np.int32]:
    """Every centroid in turn takes the N / codes nearest vectors that are left; the memory is O(N)."""
    assigned = np.empty(len(vectors), np.int32)
    left = np.arange(len(vectors))
    ends = np.linspace(0, len(vectors), len(centroids) + 1).astype(np.int64)
    for code, size in enumerate(np.diff(ends).tolist()):
        if size == 0:
            continue
        distance = _squared_distances(vectors[left], centroids[code : code + 1])[:, 0]
        mine = np.argpartition(distance, size - 1)[:size] if size < len(left) else np.arange(len(left))
        assigned[left[mine]] = code
        left = np.delete(left, mine)
    return assigned


def _push_apart(centroids: Vectors, share: float) -> Vectors:
    """One step down L = mean max(0, m - |e_j - e_k|)^2, of half of what is missing; m = share * mean distance to the nearest other."""
    if len(centroids) < 2:
        return centroids
    block = max(1, BLOCK // len(centroids))
    rows = [np.arange(start, min(start + block, len(centroids))) for start in range(0, len(centroids), block)]
    apart = []
    for row in rows:
        squared = _squared_distances(centroids[row], centroids)
        squared[np.arange(len(row)), row] = np.inf
        apart.append(np.sqrt(squared.min(axis=1)))
    margin = share * float(np.concatenate(apart).mean())
    moved = centroids.copy()
    for row in rows:
        distance = np.sqrt(_squared_distances(centroids[row], centroids))
        missing = np.maximum(margin - distance, 0.0) / np.maximum(distance, 1e-12)
        missing[np.arange(len(row)), row] = 0.0
        # Each of a pair moves by a quarter of what is missing, so that both together close half of it.
        moved[row] += 0.25 * (missing.sum(axis=1, keepdims=True) * centroids[row] - missing @ centroids)
    return moved


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
