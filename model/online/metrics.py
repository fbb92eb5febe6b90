"""Prequential metrics: what the model said of a sample before it learned from it, in windows of equally many samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from model.online.floors import Floors

Floats = npt.NDArray[np.float64]
RANKED = frozenset({"value"})
"""Predictions that are no probabilities: they order, and that is all that is asked of them here."""


@dataclass
class Scored:
    """One window's raw material; lists are aligned within each group.

    Attributes:
        nll: of every sample with a positive value: mean over levels of the negative log-probability.
        level_hits: how often the likeliest code of each level was the right one, over the same samples.
        recall: per searched sample whether its SID was among the ten (model and floors).
        predictions: for each label, probability, outcome and user of every sample that has the label; of `value` the expected value and
            whether the view was long.
        delayed: corrections that were learned from.
    """

    levels: int
    samples: int = 0
    start_ts: int | None = None
    end_ts: int | None = None
    nll: list[float] = field(default_factory=list)
    level_hits: list[int] = field(default_factory=list)
    recall: dict[str, list[int]] = field(default_factory=dict)
    predictions: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    delayed: int = 0

    def saw(self, ts: Sequence[int]) -> None:
        """Samples with these impression times belong to the window."""
        if ts:
            self.samples += len(ts)
            self.start_ts = min(ts) if self.start_ts is None else min(self.start_ts, *ts)
            self.end_ts = max(ts) if self.end_ts is None else max(self.end_ts, *ts)

    def targets(self, log_prob: Floats, hit: npt.NDArray[np.bool_]) -> None:
        """float[B, L] and bool[B, L] of samples with a positive value."""
        finite = np.isfinite(log_prob).all(1)
        log_prob, hit = log_prob[finite], hit[finite]
        self.nll += (-log_prob.mean(1)).tolist()
        hits = hit.sum(0)
        self.level_hits = [int(new) + (self.level_hits[level] if self.level_hits else 0) for level, new in enumerate(hits)]

    def searched(self, found: Mapping[str, bool]) -> None:
        for name, hit in found.items():
            self.recall.setdefault(name, []).append(int(hit))

    def predicted(self, label: str, probability: Sequence[float], outcome: Sequence[int], users: Sequence[int]) -> None:
        kept = self.predictions.setdefault(label, {"probability": [], "outcome": [], "user": []})
        kept["probability"] += list(probability)
        kept["outcome"] += list(outcome)
        kept["user"] += list(users)

    def summary(self) -> dict[str, Any]:
        """The window as the report shows it; null where nothing was there to measure. `from` and `to` are impression times, ms."""
        labels = {name: (np.array(kept["probability"]), np.array(kept["outcome"])) for name, kept in self.predictions.items()}
        return {
            "from": self.start_ts,
            "to": self.end_ts,
            "samples": self.samples,
            "positives": len(self.nll),
            "delayed": self.delayed,
            "loss": _mean(self.nll),
            "recall_at_10": _mean(self.recall.get("model", [])),
            "recall_samples": len(self.recall.get("model", [])),
            "level_accuracy": [hits / len(self.nll) for hits in self.level_hits],
            "auc": {name: auc(*pair) for name, pair in labels.items()},
            "gauc": {name: grouped_auc(*labels[name], np.array(kept["user"])) for name, kept in self.predictions.items()},
            "ne": {name: normalised_entropy(*pair) for name, pair in labels.items() if name not in RANKED},
            "calibration": {name: calibration(*pair) for name, pair in labels.items() if name not in RANKED},
            "floors": {name: _mean(self.recall.get(name, [])) for name in Floors.NAMES},
        }


class Prequential:
    """Closes a window every `size` samples and keeps the latest `kept` of them, and recall over the whole run."""

    def __init__(self, levels: int, size: int, kept: int = 200) -> None:
        self.levels, self.size, self.kept = levels, size, kept
        self.open = Scored(levels)
        self.closed: list[dict[str, Any]] = []
        self._found: dict[str, int] = {}
        self._asked = 0

    def roll(self) -> bool:
        """Close the open window if it is full."""
        if self.open.samples < self.size:
            return False
        self.closed = [*self.closed[1 - self.kept :], self.open.summary()]
        self._asked += len(self.open.recall.get("model", []))
        for name, hits in self.open.recall.items():
            self._found[name] = self._found.get(name, 0) + sum(hits)
        self.open = Scored(self.levels)
        return True

    def windows(self) -> list[dict[str, Any]]:
        """All kept windows; the open one too once it is half full, so that a run's end is seen."""
        return [*self.closed, self.open.summary()] if self.open.samples * 2 >= self.size else list(self.closed)

    def recall(self) -> dict[str, float]:
        """Recall at 10 over the whole run, of `model` and of every floor; empty before anything was searched."""
        asked = self._asked + len(self.open.recall.get("model", []))
        names = set(self._found) | set(self.open.recall)
        return {name: (self._found.get(name, 0) + sum(self.open.recall.get(name, []))) / asked for name in sorted(names)} if asked else {}

    def state(self) -> dict[str, Any]:
        return {"open": asdict(self.open), "closed": list(self.closed), "found": dict(self._found), "asked": self._asked}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.open = Scored(**state["open"])
        self.closed = list(state["closed"])
        self._found = dict(state["found"])
        self._asked = state["asked"]


def auc(probability: Floats, outcome: npt.NDArray[np.int64]) -> float | None:
    """Area under the ROC curve, ties counted half; None where only one outcome is there."""
    positives = int(outcome.sum())
    negatives = len(outcome) - positives
    if not positives or not negatives:
        return None
    values, place, count = np.unique(probability, return_inverse=True, return_counts=True)
    del values
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((rank[outcome > 0].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def grouped_auc(probability: Floats, outcome: npt.NDArray[np.int64], users: npt.NDArray[np.int64]) -> float | None:
    """AUC within each user, weighted by the user's samples; users with one outcome only do not count."""
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for index, user in enumerate(users.tolist()):
        groups[user].append(index)
    found = [(len(places), auc(probability[places], outcome[places])) for places in groups.values() if len(places) > 1]
    counted = [(size, value) for size, value in found if value is not None]
    total = sum(size for size, _ in counted)
    return sum(size * value for size, value in counted) / total if total else None


def normalised_entropy(probability: Floats, outcome: npt.NDArray[np.int64]) -> float | None:
    """Log loss over that of always saying the window's own rate (He et al., 2014); below 1 = better than the rate."""
    rate = outcome.mean() if len(outcome) else 0.0
    if not 0 < rate < 1:
        return None
    p = np.clip(probability, 1e-7, 1 - 1e-7)
    loss = -(outcome * np.log(p) + (1 - outcome) * np.log(1 - p)).mean()
    return float(loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)))


def calibration(probability: Floats, outcome: npt.NDArray[np.int64]) -> float | None:
    """Predicted over observed positives; 1 = right on average."""
    return float(probability.sum() / outcome.sum()) if outcome.sum() else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
