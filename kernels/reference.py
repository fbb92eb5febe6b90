"""What the operations mean, in the plainest torch; slow on purpose. Every faster path must give the same bits on the same numbers.

Contract of a beam selection:

* `score[b, w, v] = offset[b, w] + logit[b, w, v]` in float32 (float64 where the logits are), `offset` rounded once per row.
* The order is total: score descending, then parent ascending, then token ascending. `-0.0` counts and is returned as `0.0`.
* A logit that is NaN or +inf is invalid: as if it were -inf. A row whose `cumulative` is NaN or +inf is dead.
* What scores -inf is never returned: a missing slot has score -inf, parent 0, token -1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def beam_topk(logits: Tensor, cumulative: Tensor, k: int, normalize: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """The k best continuations of each request, best first: see `kernels.select.beam_topk` for arguments and result."""
    batch, beams, vocabulary = logits.shape
    values = valid(widen(logits))
    offset = row_offset(values, values.amax(-1), cumulative, normalize)
    scores = (offset.unsqueeze(-1) + values + 0.0).view(batch, beams * vocabulary)
    score, flat = torch.sort(scores, dim=-1, descending=True, stable=True)
    return present(score[:, :k], flat[:, :k], k, vocabulary)


def widen(logits: Tensor) -> Tensor:
    """Logits as float32, or as they are if float64."""
    return logits if logits.dtype == torch.float64 else logits.float()


def valid(values: Tensor) -> Tensor:
    """Values with NaN and +inf replaced by -inf."""
    return values.masked_fill(~(values < torch.inf), -torch.inf)


def row_offset(values: Tensor, largest: Tensor, cumulative: Tensor, normalize: bool) -> Tensor:
    """What is added to the logits of each row: its score so far, less its log-normalizer; [B, W], -inf for a dead row.

    Args:
        values: valid logits [B, W, V]. largest: their maxima over V [B, W].
    """
    offset = cumulative.to(values.dtype)
    if normalize:
        pivot = largest.masked_fill(largest == -torch.inf, 0.0)
        offset = offset - ((values - pivot.unsqueeze(-1)).exp_().sum(-1).log_() + pivot)
    return valid(offset)


def present(score: Tensor, flat: Tensor, k: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and flat indices [B, ≤ k] in order as (score, parent, token), each [B, k], missing slots marked."""
    short = k - score.shape[1]
    if short > 0:
        score = torch.nn.functional.pad(score, (0, short), value=-torch.inf)
        flat = torch.nn.functional.pad(flat, (0, short))
    missing = score == -torch.inf
    parent = (flat // vocabulary).masked_fill(missing, 0).int()
    token = (flat % vocabulary).masked_fill(missing, -1).int()
    return score, parent, token
