"""Gradient-bounded policy optimisation (OneRec-V2, arXiv 2508.20900): a policy gradient that no improbable sample can blow up.

J = −E[π / π'_old · A], where π'_old = max(π_old, π) if A ≥ 0 and max(π_old, 1 − π) if A < 0, π without gradient in the denominator. No
ratio is clipped away, so every sample teaches; the gradient is at most that of the binary cross-entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gbpo_loss(log_prob: Tensor, old_log_prob: Tensor | None, advantage: Tensor) -> Tensor:
    """Mean over samples of −π / π'_old · A.

    Args:
        log_prob: float[B], log π of each sample's SID, with gradient.
        old_log_prob: float[B], of the policy that drew it; None = drawn by somebody else, whose probability is not known.
        advantage: float[B], not normalised; ±1 and 0 in the paper.

    Raises:
        ValueError: an advantage or log-probability is no number; the message names the row.
    """
    old = log_prob.detach() if old_log_prob is None else old_log_prob
    for name, values in (("log_prob", log_prob), ("old_log_prob", old), ("advantage", advantage)):
        bad = values.isnan().nonzero()
        if len(bad):
            raise ValueError(f"row {int(bad[0])}: {name} is NaN")
    now = log_prob.detach()
    certain = torch.log(-torch.expm1(now.clamp(max=-1e-7)))  # log(1 − π)
    bound = torch.maximum(old.detach(), torch.where(advantage >= 0, now, certain))
    return -(torch.exp(log_prob - bound) * advantage).mean()
