"""Recall, AUC and calibration with intervals from a bootstrap over users; differences are paired: same users, same impressions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ROUNDS = 1000
_AT_ONCE = 50


def resamples(users: int, rounds: int = ROUNDS, seed: int = 0) -> Iterator[Floats]:
    """How often each user is drawn, float64[r, users], for `rounds` rounds in all; the same draws in every call."""
    rng = np.random.default_rng(seed)
    for start in range(0, rounds, _AT_ONCE):
        yield rng.poisson(1.0, (min(_AT_ONCE, rounds - start), users)).astype(np.float64)


def mean_rounds(values: Floats, owner: Ints, users: int, rounds: int = ROUNDS) -> Floats:
    """Mean of values float64[n] of users int64[n], in every round: float64[rounds]."""
    total = np.bincount(owner, values, minlength=users)
    count = np.bincount(owner, minlength=users).astype(np.float64)
    return np.concatenate([_ratio(drawn @ total, drawn @ count) for drawn in resamples(users, rounds)])


def ratio_rounds(predicted: Floats, outcome: Floats, owner: Ints, users: int, rounds: int = ROUNDS) -> Floats:
    """Sum of predictions over sum of outcomes, in every round."""
    above, below = (np.bincount(owner, values, minlength=users) for values in (predicted, outcome))
    return np.concatenate([_ratio(drawn @ above, drawn @ below) for drawn in resamples(users, rounds)])


def auc_rounds(probability: Floats, outcome: Floats, owner: Ints, users: int, rounds: int = ROUNDS) -> Floats:
    """Area under the ROC curve, ties counted half, in every round."""
    order = np.argsort(probability, kind="stable")
    sorted_owner, sorted_outcome = owner[order], outcome[order]
    starts = np.flatnonzero(np.concatenate([[True], np.diff(probability[order]) > 0]))
    found = []
    for drawn in resamples(users, rounds):
        weight = drawn[:, sorted_owner]
        positives = np.add.reduceat(weight * sorted_outcome, starts, axis=1)
        negatives = np.add.reduceat(weight * (1 - sorted_outcome), starts, axis=1)
        below = np.cumsum(negatives, axis=1) - negatives / 2
        found.append(_ratio((positives * below).sum(1), positives.sum(1) * negatives.sum(1)))
    return np.concatenate(found)


def calibration_error(probability: Floats, outcome: Floats, bins: int = 10) -> float:
    """Mean distance of predicted and observed rate over bins of equally many samples (expected calibration error)."""
    parts = np.array_split(np.argsort(probability, kind="stable"), bins)
    gaps = [abs(probability[part].mean() - outcome[part].mean()) * len(part) for part in parts if len(part)]
    return float(sum(gaps) / len(probability))


def interval(rounds: Floats) -> list[float]:
    """Middle 95% of the rounds that had what they needed."""
    return [round(float(bound), 6) for bound in np.nanpercentile(rounds, (2.5, 97.5))]


def _ratio(above: Floats, below: Floats) -> Floats:
    """NaN in a round that drew nobody who counts."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def compared(value: Mapping[str, float], rounds: Mapping[str, Floats], reference: str) -> dict[str, dict[str, Any]]:
    """Per method its value and interval, and the paired difference to `reference` with its interval."""
    found: dict[str, dict[str, Any]] = {}
    for name, of in rounds.items():
        found[name] = {"value": round(value[name], 6), "interval": interval(of)}
        if name != reference:
            found[name]["difference"] = round(value[name] - value[reference], 6)
            found[name]["difference_interval"] = interval(of - rounds[reference])
    return found
