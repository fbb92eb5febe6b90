"""What the codes of one factor tell of the other's: held-out accuracy beside that of always saying the commonest code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int32]
Keys = npt.NDArray[np.int64]

# Videos that stand for all where there are more.
SAMPLE = 10_000
FOLDS = 5
CHOOSING_FOLDS = 3
# By how many videos counts are drawn towards the prior.
PRIORS = (2.0, 20.0, 200.0)
# Rows of predictions held at a time.
BLOCK = 1000


@dataclass(frozen=True)
class CodeProbe:
    """Held-out accuracy of one level's code told from all codes of the other factor, and that of always saying the commonest code.

    `points` = 100 (accuracy - chance): what knowing the other factor gains. Every video is predicted by a fit to the other folds' videos.
    """

    accuracy: float
    chance: float
    points: float


def probes(content: Codes, creative: Codes, seed: int) -> dict[str, CodeProbe]:
    """Probes of every level by all levels of the other factor, by "content to creative 1" and so on (codes: int32[N, levels])."""
    chosen = np.random.default_rng(seed).permutation(len(content))[:SAMPLE]
    found = {}
    for names, inputs, targets in (("content to creative", content, creative), ("creative to content", creative, content)):
        for level in range(targets.shape[1]):
            found[f"{names} {level + 1}"] = probe(inputs[chosen], targets[chosen, level])
    return found


def probe(inputs: Codes, targets: npt.NDArray[np.int32]) -> CodeProbe:
    """One probe of a code int32[N] by others int32[N, levels], the videos in random order, cross-validated twice over.

    Predictors: naive Bayes over the levels, and counts under the whole prefix that fall back on the first level's, each drawn towards the
    prior by each of PRIORS. In every one of FOLDS the one is taken that is best within the other folds, by CHOOSING_FOLDS of these: chosen
    by what it is tested on, the best of six would be too good; fixed, it might be too weak to see anything.
    """
    values, target = np.unique(targets, return_inverse=True)
    target, size = target.reshape(-1), len(values)
    if len(target) < FOLDS * CHOOSING_FOLDS:
        return CodeProbe(0.0, 0.0, 0.0)
    _, whole = np.unique(inputs, axis=0, return_inverse=True)
    keys = np.column_stack([inputs, whole.reshape(-1)]).astype(np.int64)
    fold = np.arange(len(target)) % FOLDS
    right = np.zeros(2)
    for number in range(FOLDS):
        known, asked = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        part = np.arange(len(known)) % CHOOSING_FOLDS
        inner = [(known[part != one], known[part == one]) for one in range(CHOOSING_FOLDS)]
        tried = [_right(keys[train], target[train], keys[test], target[test], size) for train, test in inner]
        best = int(np.sum(tried, axis=0)[1:].argmax()) + 1
        right += _right(keys[known], target[known], keys[asked], target[asked], size)[[0, best]]
    chance, accuracy = (right / len(target)).tolist()
    return CodeProbe(accuracy, chance, 100 * (accuracy - chance))


def _right(known: Keys, known_target: Keys, asked: Keys, asked_target: Keys, size: int) -> npt.NDArray[np.int64]:
    """How often each prediction is right: int64[1 + predictors]. Keys int64[N, levels + 1]: the levels' codes, then one number a prefix."""
    blocks = (slice(start, start + BLOCK) for start in range(0, len(asked), BLOCK))
    return np.sum(
        [[(guess == asked_target[block]).sum() for guess in _guesses(known, known_target, asked[block], size)] for block in blocks], axis=0
    )


def _guesses(known: Keys, known_target: Keys, asked: Keys, size: int) -> Iterator[Keys]:
    """The commonest target; then, for each of PRIORS, naive Bayes', and that of the counts under the whole prefix."""
    prior = (np.bincount(known_target, minlength=size) + 1.0) / (len(known_target) + size)
    yield np.full(len(asked), prior.argmax())
    *levels, whole = (_counts(known[:, column], known_target, asked[:, column], size) for column in range(asked.shape[1]))
    for strength in PRIORS:
        posteriors = [_drawn(count, prior, strength) for count in levels]
        yield (np.log(prior) + sum(np.log(posterior / prior) for posterior in posteriors)).argmax(axis=1)
        yield _drawn(whole, posteriors[0], strength).argmax(axis=1)


def _drawn(counts: npt.NDArray[np.float64], prior: npt.NDArray[np.float64], strength: float) -> npt.NDArray[np.float64]:
    return (counts + strength * prior) / (counts.sum(axis=1, keepdims=True) + strength)


def _counts(known: Keys, target: Keys, asked: Keys, size: int) -> npt.NDArray[np.float64]:
    """How many of the known keys that are equal to each asked one have each target: float64[asked, size]."""
    present, ours = np.unique(asked, return_inverse=True)
    place = np.minimum(np.searchsorted(present, known), len(present) - 1)
    kept = present[place] == known
    table = np.bincount(place[kept] * size + target[kept], minlength=len(present) * size)
    return table.reshape(len(present), size)[ours.reshape(-1)].astype(np.float64)
