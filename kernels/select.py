"""Exact top-k over beams without looking at every candidate twice: a pyramid of maxima, then a threshold.

Order groups of GROUP neighbouring tokens by (largest score descending, group ascending). If an element of a group that is not among the
first k were one of the k best, each of those k groups would hold an element that comes before it: a contradiction. So the k best lie in k
groups. Adding one rounded number to a whole row is monotone, so the maxima of the bare logits serve, and rounding changes nothing. Exact
for any numbers, ties, duplicates and -inf included; no sampling, no buffer that could overflow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import reference

# Columns per maximum: measured best of 16 to 128 on a CPU.
GROUP = 64


def beam_topk(logits: Tensor, cumulative: Tensor, k: int, normalize: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """The k best continuations of each request, best first.

    Bit for bit what `kernels.reference.beam_topk` returns; that module states the contract (order, ties, NaN, missing slots).

    Args:
        logits: floating [B, W, V], a row per beam; float32 is computed unless it is float64. A token that is not allowed is -inf.
        cumulative: [B, W], score of each beam so far; -inf for a beam that does not exist.
        k: results per request, ≥ 1.
        normalize: subtract each row's log-sum-exp, so that scores are log-probabilities.

    Returns:
        score float32[B, k] (float64 for such logits), parent int32[B, k] (the beam continued), token int32[B, k].

    Raises:
        ValueError: shapes that do not fit, or k < 1.
    """
    if logits.dim() != 3 or cumulative.shape != logits.shape[:2] or 0 in logits.shape[1:] or k < 1:
        raise ValueError(
            f"logits {list(logits.shape)}, cumulative {list(cumulative.shape)}, k {k}: [B, W, V], [B, W] and W, V, k ≥ 1 are expected"
        )
    batch, beams, vocabulary = logits.shape
    values = reference.widen(logits)
    maxima = _group_maxima(values)
    # A NaN or +inf shows up in the maximum of its group, so clean logits are read once.
    if not bool((maxima < torch.inf).all()):
        values = reference.valid(values)
        maxima = _group_maxima(values)
    offset = reference.row_offset(values, maxima.amax(-1), cumulative, normalize)
    groups = maxima.shape[2]
    if beams * groups > k:
        ranked = (maxima + offset.unsqueeze(-1)).view(batch, beams * groups)
        chosen = _first(ranked, k)
        parent = chosen // groups
        token = ((chosen % groups) * GROUP).unsqueeze(-1) + torch.arange(GROUP, device=values.device)
        outside = token >= vocabulary
        flat = (parent.unsqueeze(-1) * vocabulary + token.clamp(max=vocabulary - 1)).view(batch, -1)
        rows = offset.gather(1, parent).unsqueeze(-1)
        found = values.reshape(batch, -1).gather(1, flat).view(batch, k, GROUP)
        scores = (rows + found + 0.0).masked_fill_(outside, -torch.inf).view(batch, -1)
    else:
        flat = torch.arange(beams * vocabulary, device=values.device).expand(batch, -1)
        scores = (offset.unsqueeze(-1) + values + 0.0).view(batch, -1)
    if scores.shape[1] > k:
        best = _first(scores, k)
        scores, flat = scores.gather(1, best), flat.gather(1, best)
    score, order = torch.sort(scores, dim=-1, descending=True, stable=True)
    return reference.present(score, flat.gather(1, order), k, vocabulary)


def _group_maxima(values: Tensor) -> Tensor:
    """Largest value of each GROUP columns, [B, W, ceil(V / GROUP)]; the last group may be narrower."""
    batch, beams, vocabulary = values.shape
    whole = vocabulary // GROUP * GROUP
    parts = []
    if whole:
        parts.append(values[..., :whole].reshape(batch, beams, whole // GROUP, GROUP).amax(-1))
    if whole < vocabulary:
        parts.append(values[..., whole:].amax(-1, keepdim=True))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _first(values: Tensor, k: int) -> Tensor:
    """Positions int64[B, k], ascending, of the k largest of [B, n > k]; among equals the smaller position."""
    threshold = values.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    kept = values >= threshold
    if int(kept.sum()) > k * len(values):
        above = values > threshold
        ties = values == threshold
        room = k - above.sum(-1, keepdim=True)
        kept = above | (ties & (ties.cumsum(-1) <= room))
    return kept.nonzero()[:, 1].view(len(values), k)
