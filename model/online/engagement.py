"""Probabilities of a click and of a long view of what was shown, so that AUC and calibration can be told.

How often this user and this video had such labels so far says most; a small head adds what the model's states know beyond it. It reads them
without a gradient into them: it never pulls at the recommender.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

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

    def forward(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """int64[B] twice → the logit of every label's rate, float[labels], and how far user and video are from it, float[B, labels, 2]."""
        rate = self.total[:, 0] / self.total[:, 1]
        seen = torch.stack([self.counts[side, ids.remainder(self.counts.shape[1])] for side, ids in enumerate((users, items))], 2)
        share = (seen[..., 0] + SHRINK * rate.unsqueeze(1)) / (seen[..., 1] + SHRINK)
        base = torch.logit(rate)
        return base, torch.logit(share) - base.unsqueeze(1)

    def learn(self, users: Tensor, items: Tensor, outcomes: Tensor) -> None:
        """Count the outcomes float[B, labels]; NaN is unknown."""
        known = ~outcomes.isnan()
        counted = torch.stack([outcomes.nan_to_num(), known.to(outcomes.dtype)], 2)
        for side, ids in enumerate((users, items)):
            self.counts[side].index_add_(0, ids.remainder(self.counts.shape[1]), counted)
        self.total += counted.sum(0)


class RatedHead(nn.Module):
    """Rates, and what the model's states add to them; before it has learned anything it says what the rates say."""

    def __init__(self, d_model: int, codes: tuple[int, ...], seed: int, rows: int) -> None:
        super().__init__()
        self.states = EngagementHead(d_model, codes, seed)
        self.rates = Rates(len(LABELS), rows)
        self.trust = nn.Parameter(torch.ones(len(LABELS), 2))

    def forward(self, summary: Tensor, log_prob: Tensor, targets: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """See `EngagementHead` and `Rates` → float[B, labels]."""
        base, away = self.rates(users, items)
        logits: Tensor = base + (self.trust * away).sum(-1) + self.states(summary, log_prob, targets)
        return logits


def engagement_loss(logits: Tensor, outcomes: Tensor) -> Tensor:
    """Mean binary cross-entropy where the outcome (float[B, labels]) is known; unknown is NaN."""
    known = ~outcomes.isnan()
    losses = functional.binary_cross_entropy_with_logits(logits, outcomes.nan_to_num(), reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)
