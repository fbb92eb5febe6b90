"""Delayed feedback: what an observed label weighs, so that learning from labels that are still incomplete finds the true rate.

A sample is *ingested* when its waiting window ends, with the label seen by then, and again when something later is known. Which samples are
ingested again differs by mode; each mode's weights are p(y | x) / q(y | x), the truth over what ingestion makes of it, so that the weighted
log-loss has the true rate as its minimum.

* `wait`: once, when the attribution window is over: no bias, and as late as the label.
* `fnw`: at once as a negative, and again as a positive when it converts (fake-negative weighting, Ktena et al., arXiv 1907.06558).
* `es_dfm`: after the waiting window with what is known, and again as a positive if it converts later (Yang et al., arXiv 2012.03245).
* `defer`: after the waiting window with what is known, and *every* sample again with its final label (Gu et al., arXiv 2104.14121).
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

Mode = Literal["wait", "fnw", "es_dfm", "defer"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)

_LEAST = 1e-6


def weights(mode: Mode, labels: Tensor, rate: Tensor, late: Tensor) -> Tensor:
    """Importance weight of each ingested label.

    Args:
        labels: float[B], 0 or 1, as ingested.
        rate: float[B], the model's own p(y = 1 | x); no gradient flows through it.
        late: float[B], p(converts after the waiting window | x), unconditional; `wait` and `fnw` do not read it.

    Returns:
        float[B] ≥ 0.

    Raises:
        ValueError: an unknown mode.
    """
    rate, late = rate.detach(), late.detach()
    if mode == "wait":
        return torch.ones_like(rate)
    if mode == "fnw":  # q(1) = p / (1 + p)
        positive, negative = 1 + rate, (1 - rate) * (1 + rate)
    elif mode == "es_dfm":  # q(1) = p / (1 + late)
        negatives = 1 - rate
        positive, negative = 1 + late, (1 + late) * negatives / (negatives + late).clamp(min=_LEAST)
    elif mode == "defer":  # q(1) = p − late / 2
        late = torch.minimum(late, rate)  # a late conversion is a conversion; an estimate may say otherwise
        negatives = 1 - rate
        positive = rate / (rate - late / 2).clamp(min=_LEAST)
        negative = negatives / (negatives + late / 2).clamp(min=_LEAST)
    else:
        raise ValueError(f"delayed-feedback mode is {mode!r}: expected one of {', '.join(MODES)}")
    return torch.where(labels > 0, positive, negative)


def delayed_loss(mode: Mode, logits: Tensor, labels: Tensor, late: Tensor) -> Tensor:
    """Mean weighted binary cross-entropy of ingested labels, float[B] each; see `weights`."""
    weight = weights(mode, labels, torch.sigmoid(logits), late)
    return (weight * functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")).mean()
