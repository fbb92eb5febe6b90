"""Gradient-bounded policy optimisation (OneRec-V2, arXiv 2508.20900): a policy gradient that no improbable sample can blow up.

J = −E[π / π'_old · A], where π'_old = max(π_old, π) if A ≥ 0 and max(π_old, 1 − π) if A < 0, π without gradient in the denominator. No
ratio is clipped away, so every sample teaches; the gradient is at most that of the binary cross-entropy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Feedback:
    """What people said of the SIDs of a batch, and how likely these were when they were drawn; see `gbpo_loss`.

    Attributes:
        share: what the policy's loss weighs beside the cross-entropy.
    """

    old_log_prob: Tensor
    advantage: Tensor
    share: float


def gbpo_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> Tensor:
    """Mean over samples of −π / π'_old · A.

    Args:
        log_prob: float[B], log π of each sample's SID, with gradient.
        old_log_prob: float[B], of the policy that drew it; NaN = drawn by somebody else, whose probability is not known: it counts as
            one of the policy's own.
        advantage: float[B], not normalised; ±1 and 0 in the paper.

    Raises:
        ValueError: an advantage or log-probability is no number; the message names the row.
    """
    for name, values in (("log_prob", log_prob), ("advantage", advantage)):
        bad = values.isnan().nonzero()
        if len(bad):
            raise ValueError(f"row {int(bad[0])}: {name} is NaN")
    now = log_prob.detach()
    old = torch.where(old_log_prob.isnan(), now, old_log_prob)
    certain = torch.log(-torch.expm1(now.clamp(max=-1e-7)))  # log(1 − π)
    bound = torch.maximum(old, torch.where(advantage >= 0, now, certain))
    return -(torch.exp(log_prob - bound) * advantage).mean()
