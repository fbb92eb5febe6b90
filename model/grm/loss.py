"""Log-probability of a target SID, and the cross-entropy that is its weighted negative."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def level_log_prob(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Log-probability of each code given those before it.

    Args:
        logits: one float[B, codes] per level.
        targets: int64[B, L].

    Returns:
        float[B, L].
    """
    columns = [-functional.cross_entropy(level, targets[:, index], reduction="none") for index, level in enumerate(logits)]
    return torch.stack(columns, 1)


def token_cross_entropy(log_prob: Tensor, weight: Tensor) -> Tensor:
    """Mean over tokens of the value-weighted negative log-probability: Σ wᵢ Σₗ −log pᵢₗ / (L Σ wᵢ).

    Args:
        log_prob: float[B, L].
        weight: float[B] ≥ 0; all zero gives zero.
    """
    total = weight.sum()
    return -(weight * log_prob.mean(1)).sum() / torch.where(total > 0, total, torch.ones_like(total))
