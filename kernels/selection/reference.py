"""What a beam selection means, in the plainest torch; slow on purpose. Every faster path must give the same bits on the same numbers.

`kernels.selection` states the contract.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.projection.reference import log_normalizer, valid, widen


def beam_topk(logits: Tensor, cumulative: Tensor, k: int, normalize: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """The k best continuations of each request, best first: see `kernels.selection.beam_topk` for arguments and result."""
    values = valid(widen(logits))
    offset = cumulative.to(values.dtype)
    if normalize:
        offset = offset - log_normalizer(values)
    return stable_topk(values, valid(offset), k)


def stable_topk(values: Tensor, offset: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first k of a stable sort of `offset[B, W, None] + values[B, W, V]`."""
    batch, beams, vocabulary = values.shape
    scores = (offset.unsqueeze(-1) + values + 0.0).view(batch, beams * vocabulary)
    score, flat = torch.sort(scores, dim=-1, descending=True, stable=True)
    return present(score[:, :k], flat[:, :k], k, vocabulary)


def present(score: Tensor, flat: Tensor, k: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and flat indices [B, ≤ k] in order as (score, parent, token), each [B, k], missing slots marked."""
    short = k - score.shape[1]
    if short > 0:
        score = torch.nn.functional.pad(score, (0, short), value=-torch.inf)
        flat = torch.nn.functional.pad(flat, (0, short))
    missing = score == -torch.inf
    parent = (flat // vocabulary).masked_fill(missing, 0).int()
    token = (flat % vocabulary).masked_fill(missing, -1).int()
    return score.contiguous(), parent, token
