"""How good a set of semantic IDs is.

What of the embeddings survives, how many videos share a SID, how evenly codes are used, and whether the factors say different things.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from model.sid.probe import CodeProbe, probes

Vectors = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]

RANKS = (1, 5, 10)
# Videos that stand for all where every pair would be too many.
SAMPLE = 1000
NEIGHBOURS = 20
RIDGE = 1e-2
# Similarities nearer than this are ties: identical videos differ by rounding.
TIE = 1e-6


@dataclass(frozen=True)
class Level:
    """Use of one codebook: codes, how many of them any video has, and the entropy of their use as a share of the largest possible."""

    codes: int
    used: int
    entropy: float


@dataclass(frozen=True)
class Factor:
    """One factor, or both joined.

    items / distinct SIDs = compression; collision = share of videos whose SID another video has too. distortion = share of the embeddings'
    variance that the codes lose. retrieval[k] = share of videos that are among the k nearest of their own reconstruction;
    neighbours[k] = share of the k true nearest videos that are among the k nearest by reconstruction.
    """

    distinct: int
    compression: float
    collision: float
    distortion: float
    retrieval: dict[int, float]
    neighbours: dict[int, float]
    levels: list[Level]


@dataclass(frozen=True)
class Quality:
    """probe: held-out R² of one factor's embedding predicted from the other's, by a ridge and by nearest neighbours; 0 = says nothing.

    code_probe: by "content to creative 1" and so on. identical: share of videos whose embeddings, both, another video has too: nothing in
    the input tells these apart.
    """

    items: int
    joint: Factor
    content: Factor
    creative: Factor
    probe: dict[str, float]
    code_probe: dict[str, CodeProbe]
    identical: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    content: tuple[Vectors, Vectors, Codes], creative: tuple[Vectors, Vectors, Codes], counts: tuple[list[int], list[int]], seed: int = 0
) -> Quality:
    """Measure a catalogue's SIDs.

    Args:
        content, creative: embeddings float32[N, d], their reconstructions float32[N, d] and codes int32[N, levels].
        counts: codes per level of each factor.
        seed: which videos are asked about, where there are more than SAMPLE.
    """
    items = len(content[0])
    asked = np.sort(np.random.default_rng(seed).permutation(items)[:SAMPLE])
    joined = [np.concatenate([a, b], axis=1) for a, b in zip(content, creative, strict=True)]
    joint = _factor(joined[0], joined[1], joined[2], [*counts[0], *counts[1]], asked)
    return Quality(
        items,
        joint,
        _factor(*content, counts[0], asked),
        _factor(*creative, counts[1], asked),
        {
            "content_to_creative_linear": _linear_probe(content[0], creative[0], seed),
            "creative_to_content_linear": _linear_probe(creative[0], content[0], seed),
            "content_to_creative_neighbours": _neighbour_probe(content[0], creative[0], asked),
            "creative_to_content_neighbours": _neighbour_probe(creative[0], content[0], asked),
        },
        probes(content[2], creative[2], seed),
        _shared(joined[0]),
    )


def table(quality: Mapping[str, Any]) -> str:
    """The report as text, from its JSON form (as measured, or as read back from a bundle's manifest)."""
    names = ("joint", "content", "creative")
    rows: list[tuple[str, ...]] = [("", *names)]

    def row(title: str, key: str, form: str, rank: int | None = None) -> None:
        values = [quality[name][key] if rank is None else _at(quality[name][key], rank) for name in names]
        rows.append((title, *(format(value, form) for value in values)))

    row("distinct SIDs", "distinct", ",d")
    row("compression, videos per SID", "compression", ".3f")
    row("collision, share of videos", "collision", ".2%")
    row("distortion", "distortion", ".3f")
    for key, title in (("retrieval", "recall@{} of the video itself"), ("neighbours", "recall@{} of its neighbours")):
        for rank in RANKS:
            row(title.format(rank), key, ".3f", rank)
    lines = ["  ".join([cells[0].ljust(30), *(cell.rjust(10) for cell in cells[1:])]).rstrip() for cells in rows]
    lines += ["", "  ".join(["level".ljust(30), "codes".rjust(10), "used".rjust(10), "entropy".rjust(10)])]
    for name in names[1:]:
        for number, level in enumerate(quality[name]["levels"], start=1):
            lines.append(f"{name + ' ' + str(number):30}  {level['codes']:10d}  {level['used']:10d}  {level['entropy']:10.3f}")
    lines += ["", "cross-factor probe (held-out R², 0 is best)"]
    lines += [f"{name.replace('_', ' '):40}  {value:.3f}" for name, value in quality["probe"].items()]
    if "code_probe" in quality:  # bundles of before have none
        lines += ["", "  ".join(["cross-factor probe of codes".ljust(30), "accuracy".rjust(10), "chance".rjust(10), "points".rjust(10)])]
        for name, found in quality["code_probe"].items():
            lines.append(f"{name:30}  {found['accuracy']:10.2%}  {found['chance']:10.2%}  {found['points']:+10.2f}")
        lines += ["", f"{quality['identical']:.2%} of the videos have the embeddings of another one"]
    return "\n".join([f"{quality['items']:,} videos", *lines])


def _at(values: Mapping[Any, float], rank: int) -> float:
    return values[rank] if rank in values else values[str(rank)]


def _factor(vectors: Vectors, rebuilt: Vectors, codes: Codes, counts: list[int], asked: npt.NDArray[np.int64]) -> Factor:
    items = len(codes)
    count = np.unique(codes, axis=0, return_counts=True)[1]
    variance = float(((vectors - vectors.mean(axis=0)) ** 2).sum())
    lost = float(((vectors - rebuilt) ** 2).sum())
    return Factor(
        distinct=len(count),
        compression=items / len(count),
        collision=_shared(codes),
        distortion=lost / variance if variance > 0 else 0.0,
        retrieval=_retrieval(vectors, rebuilt, asked),
        neighbours=_neighbour_recall(vectors, rebuilt, asked),
        levels=[_level(codes[:, level], size) for level, size in enumerate(counts)],
    )


def _shared(rows: npt.NDArray) -> float:
    """Share of rows that are equal to another row."""
    count = np.unique(rows, axis=0, return_counts=True)[1]
    return float(count[count > 1].sum() / len(rows))


def _level(codes: npt.NDArray[np.int32], size: int) -> Level:
    share = np.bincount(codes, minlength=size) / len(codes)
    used = share[share > 0]
    entropy = float(-(used * np.log(used)).sum())
    return Level(size, len(used), entropy / np.log(size) if size > 1 else 1.0)


def _distances(queries: Vectors, vectors: Vectors) -> npt.NDArray[np.float32]:
    """Squared distances without the queries' own length, which does not change an order."""
    return (vectors**2).sum(axis=1) - 2.0 * (queries @ vectors.T)


def _retrieval(vectors: Vectors, rebuilt: Vectors, asked: npt.NDArray[np.int64]) -> dict[int, float]:
    """Share of videos found among the k nearest of their reconstruction; among ties, as likely as any of them."""
    distance = _distances(rebuilt[asked], vectors)
    own = distance[np.arange(len(asked)), asked][:, None]
    nearer = (distance < own - TIE).sum(axis=1)
    ties = (np.abs(distance - own) <= TIE).sum(axis=1)
    return {rank: float(np.clip((rank - nearer) / ties, 0.0, 1.0).mean()) for rank in RANKS}


def _neighbour_recall(vectors: Vectors, rebuilt: Vectors, asked: npt.NDArray[np.int64]) -> dict[int, float]:
    itself = np.arange(len(asked)), asked
    true, guessed = _distances(vectors[asked], vectors), _distances(rebuilt[asked], rebuilt)
    true[itself] = guessed[itself] = np.inf
    most = min(max(RANKS), len(vectors) - 1)
    near, guess = _nearest(true, most), _nearest(guessed, most)
    same = near[:, :, None] == guess[:, None, :]
    return {rank: float(same[:, :rank, :rank].any(axis=2).mean()) if rank <= most else 1.0 for rank in RANKS}


def _nearest(distance: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Columns of the `count` smallest of each row, smallest first."""
    found = np.argpartition(distance, count - 1, axis=1)[:, :count] if count else np.empty((len(distance), 0), np.int64)
    order = np.argsort(np.take_along_axis(distance, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)


def _linear_probe(inputs: Vectors, targets: Vectors, seed: int) -> float:
    """R² of a ridge fitted on one half and tested on the other, both ways round."""
    half = np.random.default_rng(seed).permutation(len(inputs)) % 2 == 0
    lost = total = 0.0
    for fold in (half, ~half):
        if not fold.any() or fold.all():
            return 0.0
        x, y = inputs[fold].astype(np.float64), targets[fold].astype(np.float64)
        x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
        weights = np.linalg.solve((x - x_mean).T @ (x - x_mean) + RIDGE * np.eye(x.shape[1]), (x - x_mean).T @ (y - y_mean))
        lost += float(((targets[~fold] - (inputs[~fold] - x_mean) @ weights - y_mean) ** 2).sum())
        total += float(((targets[~fold] - y_mean) ** 2).sum())
    return 1.0 - lost / total if total > 0 else 0.0


def _neighbour_probe(inputs: Vectors, targets: Vectors, asked: npt.NDArray[np.int64]) -> float:
    """R² of the mean of the nearest other videos' targets."""
    count = min(NEIGHBOURS, len(inputs) - 1)
    if count < 1:
        return 0.0
    distance = _distances(inputs[asked], inputs)
    distance[np.arange(len(asked)), asked] = np.inf
    near = _nearest(distance, count)
    lost = float(((targets[asked] - targets[near].mean(axis=1)) ** 2).sum())
    total = float(((targets[asked] - targets.mean(axis=0)) ** 2).sum())
    return 1.0 - lost / total if total > 0 else 0.0
