"""Two embeddings made to say different things, so that creative codes do not follow from content codes.

First the directions of creative that vary most with content are projected out (erase). That leaves what no correlation shows: some kinds of
content have many more long videos, or more of one way of uploading, than others. So then the videos of every kind of content are evened out
over the kinds of creative (even_out).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from model.sid import quantizer

Vectors = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]

DIRECTIONS = 2
CLUSTERS = 64
# A cluster of content may have this many standard deviations of chance more videos of one creative cell than its even share.
EXCESS = 1.0
# Vectors of a cell that a moved video's new one is looked for among.
CANDIDATES = 512


def disentangle(creative: Vectors, content: Vectors, seed: int = 0) -> Vectors:
    """Creative float32[N, d] without what content (float32[N, d], rows of unit length) tells of it, rows of unit length.

    Chosen by measurement on the KuaiRand catalogue, 64 codes, mean over 3 seeds of the held-out probe of first codes in points over chance,
    content to creative and back: as built 3.5 and 4.4; DIRECTIONS erased 3.3 and 4.3, and 2 to 6 directions or linear discriminants of
    content's clusters hardly less; evened out as well 0.5 and 0.2, no level of no seed above 1.1. The price: 22% of the videos take the
    creative vector of another one, 13% of creative's variance; the 5 nearest creative neighbours agree on the way of uploading for 91%
    instead of 99%. Limits of 1.5 deviations instead of EXCESS move 16% and came as close to 2 points as 1.9.
    An exact transport (each content cluster is dealt the same hand of creative vectors) gives 0.0 and 0.0 and loses creative: it moves 55%
    of the variance, and the nearest creative neighbours agree on the way of uploading for 67% instead of 99%. Subtracting what content
    predicts writes content *into* creative, where it is read back: 7 to 14 points.
    """
    cluster = quantizer.nearest(content, quantizer.fit(content, 1, _kinds(content), seed)[0])
    return even_out(erase(creative, content, DIRECTIONS), cluster, seed)


def erase(creative: Vectors, content: Vectors, directions: int) -> Vectors:
    """Creative without the directions that vary most with content (singular vectors of the cross-covariance), rows of unit length."""
    centred = creative.astype(np.float64) - creative.mean(axis=0, dtype=np.float64)
    covariance = (content.astype(np.float64) - content.mean(axis=0, dtype=np.float64)).T @ centred
    _, _, axes = np.linalg.svd(covariance, full_matrices=False)
    entangled = axes[:directions]
    return unit(centred - (centred @ entangled.T) @ entangled)


def even_out(creative: Vectors, cluster: Labels, seed: int = 0) -> Vectors:
    """Creative with no cluster of content much richer in one kind of creative than the catalogue.

    Creative is cut into cells (k-means). Of a cluster's n videos, n times a cell's share in the catalogue are expected in that cell, give
    or take the root of it; of more than EXCESS such deviations above, those that have the shortest way move to the nearest cell with room
    and take the vector of the nearest video of another cluster there, a vector that exists: a shifted one would give its cluster away.
    All others keep theirs. A partial optimal transport, greedy.

    Args:
        creative: float32[N, d].
        cluster: int32[N], the kind of content of each video.
    """
    book = quantizer.fit(creative, 1, _kinds(creative), seed)[0]
    cell = quantizer.nearest(creative, book)
    share = np.bincount(cell, minlength=len(book)) / len(cell)
    rng = np.random.default_rng(seed)
    members = [_some(np.flatnonzero(cell == number), rng) for number in range(len(book))]
    found = creative.copy()
    order = np.argsort(cluster, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1):
        here = np.bincount(cell[rows], minlength=len(book))
        expected = len(rows) * share
        room = np.maximum(np.rint(expected + EXCESS * np.sqrt(expected)), 1).astype(np.int64) - here
        given: dict[int, set[int]] = {}
        for row, target in _moves(creative[rows], cell[rows], room, book):
            # Two videos of one kind that took the same vector could not be told apart.
            mine, used = rows[row], given.setdefault(target, set())
            fresh = [one for one in members[target].tolist() if cluster[one] != cluster[mine] and one not in used]
            near = np.array(fresh or members[target])
            chosen = int(near[((creative[near] - creative[mine]) ** 2).sum(axis=1).argmin()])
            used.add(chosen)
            found[mine] = creative[chosen]
    return found


def _moves(vectors: Vectors, cell: Labels, room: npt.NDArray[np.int64], book: Vectors) -> list[tuple[int, int]]:
    """(row, cell to go to) of the rows of overfull cells that move; `room` int64[cells] is negative there, and is used up."""
    crowded = np.flatnonzero((room < 0)[cell])
    away = ((vectors[crowded, None] - book[None]) ** 2).sum(axis=2)
    detour = np.where(room > 0, away, np.inf).min(axis=1) - away[np.arange(len(crowded)), cell[crowded]]
    moves = []
    for place in np.argsort(detour, kind="stable").tolist():
        row = int(crowded[place])
        if room[cell[row]] < 0 and (room > 0).any():
            target = int(np.where(room > 0, away[place], np.inf).argmin())
            room[cell[row]] += 1
            room[target] -= 1
            moves.append((row, target))
    return moves


def _kinds(vectors: Vectors) -> int:
    """CLUSTERS, or fewer, so that one video at least is expected where a cluster of content meets a cell of creative."""
    return max(1, min(CLUSTERS, math.isqrt(len(vectors))))


def _some(rows: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    return rows if len(rows) <= CANDIDATES else np.sort(rng.choice(rows, CANDIDATES, replace=False))


def unit(vectors: npt.NDArray) -> Vectors:
    """Rows scaled to length 1; a zero row points along the first axis, so that every video has a direction."""
    wide = vectors.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    wide[length[:, 0] < 1e-12, 0] = 1.0
    return (wide / np.where(length < 1e-12, 1.0, length)).astype(np.float32)
