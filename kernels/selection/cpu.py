"""Exact top-k over beams without looking at every candidate twice: maxima of groups of tokens, then a threshold.

Order groups of neighbouring tokens by (largest score descending, group ascending). If an element of a group that is not among the first k
were one of the k best, each of those k groups would hold an element that comes before it: a contradiction. So the k best lie in k groups.
Adding one rounded number to a whole row is monotone, so the maxima of the bare logits serve, and rounding changes nothing. Exact for any
numbers, ties, duplicates and -inf included; no sampling, no buffer that could overflow.

Where the best scores are distinct, their order does not depend on who breaks ties, and one call of `torch.topk` gives it; this is tried
first, and costs nothing to check.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from kernels.projection.cpu import pyramid
from kernels.projection.reference import COARSE, FINE, allowed, group_maxima, valid, widen
from kernels.selection import native, reference
from kernels.selection.reference import present

# Columns per maximum: measured best of 16 to 128 on a CPU.
GROUP = 64
# Maxima per maximum of theirs.
COARSER = 16
# Numbers in one block of rows: its exponentials stay in the cache between the passes over them.
BLOCK = 1 << 18
# Below this many numbers torch sums a lone row in one pass, as it does rows in company; above it splits the row among threads.
ONE_PASS = 1 << 15
# Up to so many candidates of a request, ranking all is quicker than finding out which ones to rank.
FEW = 1 << 14


def beam_topk(logits: Tensor, cumulative: Tensor, k: int, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.selection.beam_topk`; the log-normalizer has the bits of `torch.logsumexp`."""
    batch, beams, vocabulary = logits.shape
    values = widen(logits)
    offset = cumulative.to(values.dtype)
    if native.fits(values):
        values = values.reshape(-1, vocabulary)
        if normalize:
            total = _normalizer(values)
            # A NaN or +inf shows up in the sum of its row.
            if not bool((total < torch.inf).all()):
                total = _normalizer(valid(values))
            offset = offset - total.view(batch, beams)
        return native.select(values, offset, k, None, None, normalize=False)
    if beams * vocabulary <= FEW:
        found = _distinct(values, offset - torch.logsumexp(values, -1) if normalize else offset, k)
        return reference.beam_topk(logits, cumulative, k, normalize) if found is None else found
    values = values.reshape(-1, vocabulary)
    maxima, normalizer = _scan(values, normalize)
    # A NaN or +inf shows up in the maximum of its group, so clean logits are read once.
    if not bool((maxima < torch.inf).all()):
        values = valid(values)
        maxima, normalizer = _scan(values, normalize)
    if normalizer is not None:
        offset = offset - normalizer.view(batch, beams)
    return _descend([(group_maxima(maxima, COARSER), COARSER), (maxima, GROUP)], values, valid(offset), k)


def beam_select(
    logits: Tensor, fine: Tensor, coarse: Tensor, normalizer: Tensor, cumulative: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.selection.beam_select`."""
    offset = cumulative.to(logits.dtype) - normalizer.view(cumulative.shape)
    if cumulative.shape[1] * logits.shape[1] <= FEW:
        values = logits.view(*cumulative.shape, -1)
        found = _distinct(values, offset, k)
        return reference.stable_topk(valid(values), valid(offset), k) if found is None else found
    return _descend([(coarse, COARSE // FINE), (fine, FINE)], logits, valid(offset), k)


def proj_select(
    hidden: Tensor,
    weight: Tensor,
    cumulative: Tensor,
    k: int,
    bias: Tensor | None,
    extra: Tensor | None,
    node: Tensor | None,
    bitmask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.selection.proj_select`; for at most `FEW` candidates of a request."""
    logits = widen(linear(hidden, weight, bias))
    if extra is not None:
        logits = logits + extra
    values, normalizer = logits, torch.logsumexp(logits, -1)
    # A logit that is NaN or +inf shows up among the best scores as NaN, unless a mask hides it: then it is in the normalizer still.
    clean = True
    if node is not None and bitmask is not None:
        clean = bool((normalizer < torch.inf).all())
        values = torch.where(allowed(node, bitmask, values.shape[1]), values, -torch.inf)
    offset = cumulative.to(values.dtype) - normalizer.view(cumulative.shape)
    found = _distinct(values.view(*cumulative.shape, -1), offset, k) if clean else None
    if found is not None:
        return found
    values, _, _, normalizer = pyramid(logits, node, bitmask, "full")
    offset = cumulative.to(values.dtype) - normalizer.view(cumulative.shape)
    return reference.stable_topk(valid(values).view(*cumulative.shape, -1), valid(offset), k)


def _scan(values: Tensor, normalize: bool) -> tuple[Tensor, Tensor | None]:
    """Maxima of the groups [M, ceil(V / GROUP)] and the log-normalizer [M] of rows [M, V], a block of rows at a time."""
    if not normalize:
        return group_maxima(values, GROUP), None
    maxima = values.new_empty(len(values), -(-values.shape[1] // GROUP))
    return maxima, _normalizer(values, maxima)


def _normalizer(values: Tensor, maxima: Tensor | None = None) -> Tensor:
    """The log-normalizer [M] of rows [M, V], with the bits of `torch.logsumexp`; leaves the maxima of groups if there is room for them."""
    rows, width = values.shape
    block = max(1, min(rows, BLOCK // width))
    pivot = values.new_empty(rows, 1)
    total = values.new_empty(rows)
    buffer = values.new_empty(block, width)
    for start in range(0, rows, block):
        part = slice(start, min(start + block, rows))
        if maxima is not None:
            maxima[part] = group_maxima(values[part], GROUP)
        torch.amax(values[part] if maxima is None else maxima[part], -1, keepdim=True, out=pivot[part])
        weights = torch.sub(values[part], pivot[part], out=buffer[: part.stop - start]).exp_()
        if len(weights) == 1 and width >= ONE_PASS:
            total[part] = weights.expand(2, -1).contiguous().sum(-1)[:1]
        else:
            torch.sum(weights, -1, out=total[part])
    # A row of nothing but -inf, whose sum is NaN.
    dead = pivot.squeeze(-1) == -torch.inf
    return total.log_().add_(pivot.squeeze(-1)).masked_fill_(dead, -torch.inf)


def _distinct(values: Tensor, offset: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """The k best of all `offset[B, W, None] + values[B, W, V]`, if `_ranked` tells, and if there are more than k."""
    beams, vocabulary = values.shape[1:]
    if beams * vocabulary <= k:
        return None
    best = _ranked((values + offset.unsqueeze(-1)).flatten(1), k)
    if best is None:
        return None
    place = best[1].int()
    return best[0], place.div(vocabulary, rounding_mode="trunc"), place.remainder(vocabulary)


def _ranked(scores: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """The k largest of [B, n > k] and their positions, unless equal, infinite or NaN scores are among the first k + 1."""
    top, place = scores.topk(k + 1)  # NaN counts as largest
    least, most = (top[:, :-1] - top[:, 1:]).aminmax()
    if not (least.item() > 0 and most.item() < torch.inf):
        return None
    return top[:, :k] + 0.0, place[:, :k]


def _descend(pyramid: list[tuple[Tensor, int]], values: Tensor, offset: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k best of rows [B * W, V] at offsets [B, W].

    Args:
        pyramid: maxima [B * W, N] of the rows, coarsest first, each with how many columns of the next one a maximum stands for.
    """
    finer = [*(maxima for maxima, _ in pyramid[1:]), values]
    scores = (pyramid[0][0].view(*offset.shape, -1) + offset.unsqueeze(-1)).flatten(1)
    # What is chosen so far: each beam, as one group of all its maxima.
    parent = torch.arange(offset.shape[1], device=values.device).expand(offset.shape)
    column, group = torch.zeros_like(parent), pyramid[0][0].shape[1]
    whole = True
    for (_, columns), below in zip(pyramid, finer, strict=True):
        parent, column = _within(parent, column, group, _first(scores, k))
        whole = whole and below.shape[1] % columns == 0
        scores, group = _opened(below, offset, parent, column, columns, whole), columns
    best = _ranked(scores, k) if scores.shape[1] > k else None
    if best is not None:
        score, place = best
        parent, column = _within(parent, column, group, place)
        return score, parent.int(), column.int()
    kept = _first(scores, k)
    parent, column = _within(parent, column, group, kept)
    score, order = torch.sort(scores.gather(1, kept) + 0.0, dim=-1, descending=True, stable=True)
    vocabulary = values.shape[1]
    return present(score, (parent * vocabulary + column).gather(1, order), k, vocabulary)


def _within(parent: Tensor, column: Tensor, group: int, place: Tensor) -> tuple[Tensor, Tensor]:
    """Parent and column of the elements at `place` int64[B, K], when every one of (parent, column) int64[B, N] is opened to `group`."""
    owner = place.div(group, rounding_mode="floor")
    return parent.gather(1, owner), column.gather(1, owner) * group + (place - owner * group)


def _opened(values: Tensor, offset: Tensor, parent: Tensor, column: Tensor, group: int, whole: bool) -> Tensor:
    """Scores [B, N * group] of the `group` columns of [B * W, V] that each group [B, N] of a parent stands for.

    Unless all groups are `whole`, some stand for columns beyond the last one: those score -inf.
    """
    batch, beams = offset.shape
    width = values.shape[1]
    row = parent + torch.arange(batch, device=values.device).unsqueeze(-1) * beams
    if not whole:
        token = (column * group).unsqueeze(-1) + torch.arange(group, device=values.device)
        found = values[row.unsqueeze(-1), token.clamp(max=width - 1)].masked_fill_(token >= width, -torch.inf)
    else:
        place = row * (width // group) + column
        found = values.view(-1, group).index_select(0, place.view(-1)).view(batch, -1, group)
    return valid(found).add_(offset.gather(1, parent).unsqueeze(-1)).flatten(1)


def _first(values: Tensor, k: int) -> Tensor:
    """Positions int64[B, min(k, n)], ascending, of the k largest of [B, n]; among equals the smaller position."""
    if values.shape[1] <= k:
        return torch.arange(values.shape[1], device=values.device).expand(values.shape)
    threshold = values.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    kept = values >= threshold
    if int(kept.sum()) > k * len(values):
        above = values > threshold
        ties = values == threshold
        room = k - above.sum(-1, keepdim=True)
        kept = above | (ties & (ties.cumsum(-1) <= room))
    return kept.nonzero()[:, 1].view(len(values), k)
