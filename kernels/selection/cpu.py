"""Exact top-k over beams without looking at every candidate twice: maxima of groups of tokens, then a threshold.

Order groups of neighbouring tokens by (largest score descending, group ascending). If an element of a group that is not among the first k
were one of the k best, each of those k groups would hold an element that comes before it: a contradiction. So the k best lie in k groups.
Adding one rounded number to a whole row is monotone, so the maxima of the bare logits serve, and rounding changes nothing. Exact for any
numbers, ties, duplicates and -inf included; no sampling, no buffer that could overflow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.projection.reference import FINE, group_maxima, valid, widen
from kernels.selection.reference import present

# Columns per maximum: measured best of 16 to 128 on a CPU.
GROUP = 64
# Numbers in one block of rows: its exponentials stay in the cache between the passes over them.
BLOCK = 1 << 19
# Below this many numbers torch sums a lone row in one pass, as it does rows in company; above it splits the row among threads.
ONE_PASS = 1 << 15


def beam_topk(logits: Tensor, cumulative: Tensor, k: int, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.selection.beam_topk`; the log-normalizer has the bits of `torch.logsumexp`."""
    batch, beams, vocabulary = logits.shape
    values = widen(logits).reshape(-1, vocabulary)
    maxima, normalizer = _scan(values, normalize)
    # A NaN or +inf shows up in the maximum of its group, so clean logits are read once.
    if not bool((maxima < torch.inf).all()):
        values = valid(values)
        maxima, normalizer = _scan(values, normalize)
    offset = cumulative.to(values.dtype)
    if normalizer is not None:
        offset = offset - normalizer.view(batch, beams)
    return _descend(values, maxima, valid(offset), k, GROUP)


def beam_select(logits: Tensor, fine: Tensor, normalizer: Tensor, cumulative: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.selection.beam_select`."""
    offset = valid(cumulative.to(logits.dtype) - normalizer.view(cumulative.shape))
    return _descend(logits, fine, offset, k, FINE)


def _scan(values: Tensor, normalize: bool) -> tuple[Tensor, Tensor | None]:
    """Maxima of the groups [M, ceil(V / GROUP)] and the log-normalizer [M] of rows [M, V], a block of rows at a time."""
    if not normalize:
        return group_maxima(values, GROUP), None
    rows, width = values.shape
    block = max(1, min(rows, BLOCK // width))
    maxima = values.new_empty(rows, -(-width // GROUP))
    pivot = values.new_empty(rows, 1)
    total = values.new_empty(rows)
    buffer = values.new_empty(block, width)
    for start in range(0, rows, block):
        part = slice(start, min(start + block, rows))
        maxima[part] = group_maxima(values[part], GROUP)
        torch.amax(maxima[part], -1, keepdim=True, out=pivot[part])
        pivot[part].masked_fill_(pivot[part] == -torch.inf, 0.0)
        weights = torch.sub(values[part], pivot[part], out=buffer[: part.stop - start]).exp_()
        if len(weights) == 1 and width >= ONE_PASS:
            total[part] = weights.expand(2, -1).contiguous().sum(-1)[:1]
        else:
            torch.sum(weights, -1, out=total[part])
    return maxima, total.log_().add_(pivot.squeeze(-1))


def _descend(values: Tensor, maxima: Tensor, offset: Tensor, k: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k best of rows [B * W, V] with maxima [B * W, N] of every `group` columns, at offsets [B, W]."""
    batch, beams = offset.shape
    vocabulary, groups = values.shape[1], maxima.shape[1]
    if beams * groups > k:
        chosen = _first((maxima.view(batch, beams, groups) + offset.unsqueeze(-1)).view(batch, -1), k)
        parent = chosen // groups
        token = ((chosen - parent * groups) * group).unsqueeze(-1) + torch.arange(group, device=values.device)
        if vocabulary % group:
            row = parent + torch.arange(batch, device=values.device).unsqueeze(-1) * beams
            found = values[row.unsqueeze(-1), token.clamp(max=vocabulary - 1)].masked_fill_(token >= vocabulary, -torch.inf)
        else:
            place = chosen + torch.arange(batch, device=values.device).unsqueeze(-1) * (beams * groups)
            found = values.view(-1, group).index_select(0, place.view(-1)).view(batch, k, group)
        scores = valid(found).add_(offset.gather(1, parent).unsqueeze(-1)).add_(0.0).view(batch, -1)
        flat = (parent.unsqueeze(-1) * vocabulary + token).view(batch, -1)
    else:
        flat = torch.arange(beams * vocabulary, device=values.device).expand(batch, -1)
        scores = (offset.unsqueeze(-1) + valid(values).view(batch, beams, vocabulary) + 0.0).view(batch, -1)
    if scores.shape[1] > k:
        best = _first(scores, k)
        scores, flat = scores.gather(1, best), flat.gather(1, best)
    score, order = torch.sort(scores, dim=-1, descending=True, stable=True)
    return present(score, flat.gather(1, order), k, vocabulary)


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
