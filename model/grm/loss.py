"""Log-probability of a target SID, and of the value behind it, and the cross-entropies that are their weighted negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Valued:
    """What impressions were worth.

    Attributes:
        bucket: int64[B], of each one's value; -1 where it is not known.
        weight: float[B] ≥ 0, what learning it is worth.
    """

    bucket: Tensor
    weight: Tensor


def value_cross_entropy(log_prob: Tensor, valued: Valued) -> Tensor:
    """GR4AD's L_eCPM (arXiv 2602.22732): Σ wᵢ (−log p(vᵢ | yᵢ, Xᵢ)) / Σ wᵢ over impressions of known value.

    Args:
        log_prob: float[B, buckets].
    """
    told = log_prob.gather(1, valued.bucket.clamp(min=0).unsqueeze(1))
    return token_cross_entropy(told, valued.weight * (valued.bucket >= 0))
