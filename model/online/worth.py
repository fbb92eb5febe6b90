"""The value of impressions in buckets that are equally full, and what people's impressions were worth so far (GR4AD, arXiv 2602.22732).

The value is that of `model.online.value`: what an impression's labels are worth as a target, 0 included. It stands where GR4AD has eCPM,
and is one number with the weight that SIDs are learned with, so that what the value token says of a SID is what the learner was told of
it. Seconds are no part of it: they would pay long videos for being long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from model.online.rank import Rank

SHRINK: Final = 20.0
"""Impressions' worth of the mean that everybody begins with."""
BOUND: Final = 4.0
"""Nobody counts more than so many times as much as the mean, or less than its inverse."""


class ValueBuckets:
    """Buckets by rank among the latest `kept` values: bucket b has those between the quantiles b / count and (b + 1) / count.

    Equal values are never split: they share the bucket of the middle of their ranks, and the others that they cover stay empty.
    """

    def __init__(self, count: int, kept: int = 2000, least: int = 100) -> None:
        self.count = count
        self._rank = Rank(kept, least)

    def bucket(self, value: float) -> int:
        """Bucket of a value among those before it; -1 where too few are known. Then it is one of them."""
        rank = self._rank.of(value)
        return -1 if rank is None else min(int(rank * self.count), self.count - 1)

    def means(self) -> Tensor:
        """Mean value of every bucket, float32[count]; of an empty one the value at the middle of its ranks."""
        known = np.sort(np.array(self._rank.state() or [0.0]))
        values, counts = np.unique(known, return_counts=True)
        places = np.minimum(((counts.cumsum() - counts / 2) / len(known) * self.count).astype(np.int64), self.count - 1)
        total = np.bincount(places, counts, self.count)
        middle = known[((np.arange(self.count) + 0.5) / self.count * len(known)).astype(np.int64)]
        means = np.where(total > 0, np.bincount(places, counts * values, self.count) / np.maximum(total, 1), middle)
        return torch.from_numpy(means.astype(np.float32))

    def state(self) -> list[float]:
        """The values, oldest first."""
        return self._rank.state()

    def restore(self, state: Sequence[float]) -> None:
        self._rank.restore(state)


class UserWorth:
    """w_user: (mean value of a person's impressions so far, over that of everybody's) to the power of `power`, between 1 / 4 and 4.

    Samples have no profile, so this is of what the stream has told. People share a row where their ids are equal modulo `rows`.
    """

    def __init__(self, power: float, rows: int) -> None:
        self.power = power
        self._counts = np.zeros((rows, 2))  # value and impressions of each row
        self._total = np.zeros(2)

    def weight(self, user_id: int) -> float:
        if self._total[0] <= 0:
            return 1.0
        mean = self._total[0] / self._total[1]
        value, impressions = self._counts[user_id % len(self._counts)]
        ratio = (value + SHRINK * mean) / (impressions + SHRINK) / mean
        return float(min(max(ratio**self.power, 1 / BOUND), BOUND))

    def learn(self, user_id: int, value: float, impressions: int) -> None:
        """Count an impression, or (0 impressions) what was learned of one later."""
        told = np.array([value, impressions])
        self._counts[user_id % len(self._counts)] += told
        self._total += told

    def state(self) -> dict[str, Tensor]:
        """`counts`: float64[rows, 2]; `total`: float64[2]."""
        return {"counts": torch.from_numpy(self._counts), "total": torch.from_numpy(self._total)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Raises:
        ValueError: of another number of rows.
        """
        if state["counts"].shape != self._counts.shape:
            raise ValueError(f"worth of {len(state['counts'])} rows of people: expected {len(self._counts)}")
        self._counts, self._total = (state[name].numpy().copy() for name in ("counts", "total"))
