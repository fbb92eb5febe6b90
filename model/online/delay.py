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

from dataclasses import dataclass
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
        raise _unknown(mode)
    return torch.where(labels > 0, positive, negative)


def delayed_loss(mode: Mode, logits: Tensor, labels: Tensor, late: Tensor, worth: Tensor) -> Tensor:
    """Mean weighted binary cross-entropy of ingested labels, float[B] each; see `weights`. `worth` ≥ 0 is the sample's own weight."""
    weight = worth * weights(mode, labels, torch.sigmoid(logits), late)
    return (weight * functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")).mean()


@dataclass(frozen=True)
class Arrivals:
    """What has come of impressions since the last time; each is bool[n] and in an order of its own.

    Attributes:
        shown: impressions whose waiting window ended: whether they had converted by then.
        converted: impressions that converted later than that, once each.
        ended: impressions whose attribution window ended: whether they ever converted.
    """

    shown: Tensor
    converted: Tensor
    ended: Tensor


def ingested(mode: Mode, arrivals: Arrivals) -> tuple[Tensor, Tensor]:
    """Which impressions a mode learns now, and with which label.

    Returns:
        Places int64[m] in shown, converted and ended, one after the other, and labels float32[m].

    Raises:
        ValueError: an unknown mode.
    """
    shown, converted, ended = arrivals.shown, arrivals.converted, arrivals.ended
    places = torch.arange(len(shown) + len(converted) + len(ended)).split([len(shown), len(converted), len(ended)])
    at_first, later, at_last = (places[0], shown), (places[1], torch.ones_like(converted)), (places[2], ended)
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {
        "wait": [at_last],
        "fnw": [(places[0], torch.zeros_like(shown)), (places[0][shown], shown[shown]), later],
        "es_dfm": [at_first, later],
        "defer": [at_first, at_last],
    }
    if mode not in parts:
        raise _unknown(mode)
    taken, labels = (torch.cat(column) for column in zip(*parts[mode], strict=True))
    return taken, labels.float()


def _unknown(mode: str) -> ValueError:
    return ValueError(f"delayed-feedback mode is {mode!r}: expected one of {', '.join(MODES)}")
