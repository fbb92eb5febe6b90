"""Probabilities of a click and of a long view of what was shown, so that AUC and calibration can be told.

How often this user and this video had such labels so far says most; a small head adds what the model's states know beyond it. It reads them
without a gradient into them: it never pulls at the recommender. People whose samples are not known yet are known by what they watched
before: their history counts as samples would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.grm.inputs import LONG_VIEW_MS, Row, Vocabulary

LABELS = ("click", "long_view")
HIDDEN = 64
SHRINK = 10.0
"""Samples' worth of the whole's rate that every user and video begins with."""


class EngagementHead(nn.Module):
    """State before the last code, the last code, and how likely each code was → one logit per label."""

    def __init__(self, d_model: int, codes: tuple[int, ...], seed: int, labels: int = len(LABELS)) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.last_code = nn.Embedding(codes[-1], HIDDEN)
            self.inner = nn.Linear(d_model + len(codes), HIDDEN)
            self.out = nn.Linear(HIDDEN, labels)
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, summary: Tensor, log_prob: Tensor, targets: Tensor) -> Tensor:
        """float[B, d_model], float[B, L], int64[B, L] → float[B, labels]."""
        states = self.inner(torch.cat([summary, log_prob], 1)) + self.last_code(targets[:, -1])
        return self.out(functional.silu(states))


@dataclass(frozen=True)
class Watched:
    """Watches from before: of which row of a batch, of which video, and whether they were long views; int64[n], int64[n], bool[n]."""

    row: Tensor
    item: Tensor
    long: Tensor

    @property
    def outcomes(self) -> Tensor:
        """float32[n, labels]; what a watch does not tell is NaN."""
        return torch.stack([self.long.float() if label == "long_view" else torch.full((len(self.long),), torch.nan) for label in LABELS], 1)

    def of(self, rows: Tensor) -> Watched:
        """Those of some rows, bool[B]."""
        kept = rows[self.row]
        return Watched(self.row[kept], self.item[kept], self.long[kept])


def watched(rows: Sequence[Row], asked: Tensor, vocabulary: Vocabulary) -> Watched:
    """Watches in the histories of the rows that are asked for, bool[B]. A video of unknown duration is watched long from 18 s on."""
    found = [
        (index, entry.item_id, -1 if entry.play_ms is None else entry.play_ms)
        for index in asked.nonzero().flatten().tolist()
        for entry in rows[index].context.history
        if entry.play_ms is not None or "watch" in entry.kinds
    ]
    row, item, play = np.array(found, np.int64).reshape(-1, 3).T.copy()
    _, duration = vocabulary.lookup(item)
    long = (play >= LONG_VIEW_MS) | ((duration > 0) & (play >= duration))
    return Watched(torch.from_numpy(row), torch.from_numpy(item), torch.from_numpy(long))


class Rates(nn.Module):
    """How often users and videos had each label so far; ids share a row where they are equal modulo the rows.

    counts: float32[2, rows, labels, 2], of users and of videos: labels that were there, and samples whose label was known. total:
    float32[labels, 2], of all.
    """

    counts: Tensor
    total: Tensor

    def __init__(self, labels: int, rows: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(2, rows, labels, 2))
        self.register_buffer("total", torch.tensor([1.0, 2.0]).repeat(labels, 1))

    def strangers(self, users: Tensor) -> Tensor:
        """bool[B]: nothing was counted of them yet."""
        return self.counts[0, users.remainder(self.counts.shape[1]), :, 1].sum(1) == 0

    def forward(self, users: Tensor, items: Tensor, before: Watched) -> tuple[Tensor, Tensor]:
        """How likely labels are, as far as counts say.

        Args:
            users, items: int64[B]. before: what strangers among the users watched before.

        Returns:
            The logit of every label's rate, float[labels], and how far user and video are from it, float[B, labels, 2].
        """
        rate = self.total[:, 0] / self.total[:, 1]
        seen = torch.stack([self.counts[side, ids.remainder(self.counts.shape[1])] for side, ids in enumerate((users, items))], 2)
        seen[:, :, 0].index_add_(0, before.row, _counted(before.outcomes))
        share = (seen[..., 0] + SHRINK * rate.unsqueeze(1)) / (seen[..., 1] + SHRINK)
        base = torch.logit(rate)
        return base, torch.logit(share) - base.unsqueeze(1)

    def learn(self, users: Tensor, items: Tensor, outcomes: Tensor) -> None:
        """Count the outcomes float[B, labels]; NaN is unknown."""
        counted = _counted(outcomes)
        for side, ids in enumerate((users, items)):
            self.counts[side].index_add_(0, ids.remainder(self.counts.shape[1]), counted)
        self.total += counted.sum(0)


def _counted(outcomes: Tensor) -> Tensor:
    """float[B, labels] → float[B, labels, 2]: labels that are there, and labels that are known."""
    return torch.stack([outcomes.nan_to_num(), (~outcomes.isnan()).to(outcomes.dtype)], 2)


class RatedHead(nn.Module):
    """Rates, and what the model's states add to them; before it has learned anything it says what the rates say."""

    def __init__(self, d_model: int, codes: tuple[int, ...], seed: int, rows: int) -> None:
        super().__init__()
        self.states = EngagementHead(d_model, codes, seed)
        self.rates = Rates(len(LABELS), rows)
        self.trust = nn.Parameter(torch.ones(len(LABELS), 2))

    def forward(self, summary: Tensor, log_prob: Tensor, targets: Tensor, users: Tensor, items: Tensor, before: Watched) -> Tensor:
        """See `EngagementHead` and `Rates` → float[B, labels]."""
        base, away = self.rates(users, items, before)
        logits: Tensor = base + (self.trust * away).sum(-1) + self.states(summary, log_prob, targets)
        return logits


def engagement_loss(logits: Tensor, outcomes: Tensor) -> Tensor:
    """Mean binary cross-entropy where the outcome (float[B, labels]) is known; unknown is NaN."""
    known = ~outcomes.isnan()
    losses = functional.binary_cross_entropy_with_logits(logits, outcomes.nan_to_num(), reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)
