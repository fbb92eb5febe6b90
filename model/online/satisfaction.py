"""How satisfying a watch was, given how long the video is: watch times as classes, and watch times among those of like videos.

CREAD (arXiv 2401.07521) predicts P(T > t_m) at thresholds that are denser where errors cost more, and restores the time from them. The
duration-aware target (OneRec-V2, arXiv 2508.20900) asks whether a watch was long *for a video of this duration*, so that a long video is
not a satisfying one for being long.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque

import torch
from torch import Tensor
from torch.nn import functional


def thresholds(watch_s: Tensor, count: int, alpha: float = 0.0) -> Tensor:
    """Error-adaptive thresholds: t_m = quantile(γ(m / M)), γ(z) = (1 − e^(−αz)) / (1 − e^(−α)).

    Args:
        watch_s: float[N], watch times that were seen, s.
        count: M.
        alpha: 0 = equally many watches between thresholds; larger = finer in the tail.

    Returns:
        float64[m], strictly ascending; fewer than `count` where watch times repeat.

    Raises:
        ValueError: nothing was seen, a time is negative or no number, or count or alpha is out of range.
    """
    if not len(watch_s) or count < 1 or alpha < 0:
        raise ValueError(f"{len(watch_s)} watch times, count {count}, alpha {alpha}: expected at least one, a positive and one ≥ 0")
    bad = (~torch.isfinite(watch_s) | (watch_s < 0)).nonzero()
    if len(bad):
        raise ValueError(f"row {int(bad[0])}: watch time is {float(watch_s[bad[0]])} s: expected a number ≥ 0")
    share = torch.arange(1, count + 1, dtype=torch.float64) / count
    if alpha > 0:
        share = (1 - torch.exp(-alpha * share)) / (1 - math.exp(-alpha))
    found = torch.quantile(watch_s.double(), share)
    return torch.unique(found[found > 0])


def restore(survival: Tensor, at: Tensor) -> Tensor:
    """Expected watch time: the survival curve's area by trapezoids, with P(T > 0) = 1. The right-endpoint sum of the paper is
    biased low; trapezoids are biased high where a class is wide and few are in its far end, so the last threshold should not be an outlier.

    Args:
        survival: float[B, M], P(T > t_m).
        at: float[M], the thresholds, s.

    Returns:
        float[B], s.
    """
    at = at.to(survival.dtype)
    steps = at.diff(prepend=at.new_zeros(1))
    before = torch.cat([torch.ones_like(survival[:, :1]), survival[:, :-1]], 1)
    return ((before + survival) / 2 * steps).sum(1)


def cread_loss(logits: Tensor, watch_s: Tensor, at: Tensor, *, restored: float = 1.0, ordered: float = 2e-5) -> Tensor:
    """Cross-entropy of T > t_m, Huber loss of the restored time, and a penalty on a survival curve that rises.

    Args:
        logits: float[B, M].
        watch_s: float[B], s.
        at: float[M], s.
        restored, ordered: what the second and third term weigh.
    """
    labels = (watch_s.unsqueeze(1) > at).to(logits.dtype)
    survival = torch.sigmoid(logits)
    classes = functional.binary_cross_entropy_with_logits(logits, labels)
    time = functional.huber_loss(restore(survival, at), watch_s.to(logits.dtype))
    rises = functional.relu(survival.diff(dim=1)).sum(1).mean()
    return classes + restored * time + ordered * rises


class DurationRank:
    """How long a watch was among the watches of videos about as long: a share from 0 to 1, by whole powers of `base` of the duration.

    Prequential: a watch is ranked before it is counted. Each bucket remembers its latest `kept` watches; `least` must be there before
    anything is said.
    """

    def __init__(self, base: float = 1.5, kept: int = 500, least: int = 20) -> None:
        self.base, self.kept, self.least = base, kept, least
        self._seen: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=kept))

    def rank(self, play_ms: int, duration_ms: int) -> float | None:
        """Share of the bucket's watches that were shorter, equal ones half; None where too few are known or the duration is not.

        Raises:
            ValueError: a negative play time.
        """
        if play_ms < 0:
            raise ValueError(f"play_ms is {play_ms}: expected ≥ 0")
        if duration_ms <= 0:
            return None
        seen = self._seen[int(math.log(1 + duration_ms / 1000, self.base))]
        found = None
        if len(seen) >= self.least:
            found = (sum(other < play_ms for other in seen) + sum(other == play_ms for other in seen) / 2) / len(seen)
        seen.append(play_ms)
        return found
