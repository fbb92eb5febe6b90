"""A small head that turns the model's state into probabilities of a click and of a long view, so that AUC and calibration can be told.

It reads the model's states without a gradient into them: it measures what the states know, and never pulls at the recommender.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

LABELS = ("click", "long_view")
HIDDEN = 64


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


def engagement_loss(logits: Tensor, outcomes: Tensor) -> Tensor:
    """Mean binary cross-entropy where the outcome (float[B, labels]) is known; unknown is NaN."""
    known = ~outcomes.isnan()
    losses = functional.binary_cross_entropy_with_logits(logits, outcomes.nan_to_num(), reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)
