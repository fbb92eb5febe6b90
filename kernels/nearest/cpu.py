"""The nearest by a product of matrices, and exactly.

The product finds who may be nearest, to within its rounding; those few are measured again, difference by difference in float64. So what
exists is found at distance 0, and the answer does not depend on the batch that it was asked in.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Distances in one block.
BLOCK = 1 << 24
# The product's rounding error is below this many float32 epsilons per dimension, times the largest squared lengths.
ROUNDING = 4.0
# A distance of a product costs about a sixteenth of one that is measured alone.
WORTH = 16


def nearest(wanted: Tensor, places: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `kernels.nearest.nearest`."""
    block = max(1, BLOCK // len(places))
    parts = [_nearest(part, places, k) for part in wanted.split(block)]
    distance, row = (torch.cat(part) for part in zip(*parts, strict=True))
    return distance, row


def _nearest(wanted: Tensor, places: Tensor, k: int) -> tuple[Tensor, Tensor]:
    rough, error = _rough(wanted, places)
    asked, row = _near(rough, error, k).nonzero(as_tuple=True)
    exact = (wanted[asked].double() - places[row].double()).square().sum(dim=1)
    distance, place = first(exact, asked, len(wanted), k)
    return distance, _named(place, row)


def nearest_children(
    residual: Tensor, offsets: Tensor, token: Tensor, child: Tensor, own: Tensor, codebook: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """See `kernels.nearest.nearest_children`."""
    nodes = residual.shape[1]
    rows = max(1, BLOCK // (nodes * len(codebook)))
    found = []
    for start in range(0, len(residual), rows):
        part = slice(start, start + rows)
        ends = offsets[start * nodes : (start + rows) * nodes + 1]
        here = slice(int(ends[0]), int(ends[-1]))
        distance, place = _children(residual[part], ends - ends[0], token[here], child[here], own[part], codebook, k)
        found.append((distance, torch.where(place < 0, place, place + here.start)))
    distance, place = (torch.cat(part) for part in zip(*found, strict=True))
    return distance, place


def _children(
    residual: Tensor, offsets: Tensor, token: Tensor, child: Tensor, own: Tensor, codebook: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    queries, nodes, width = residual.shape
    flat = residual.view(-1, width)
    owner = torch.repeat_interleave(offsets.diff())
    query = owner // nodes
    first_of = child == own[query]
    place = torch.arange(len(token), device=token.device)
    if len(token) * WORTH > len(flat) * len(codebook):
        rough, error = _rough(flat.to(codebook.dtype), codebook)
        # A row of all children of a wanted SID; what is beyond its last one is at no distance.
        begin = offsets[::nodes]
        most = int(begin.diff().max())
        padded = rough.new_full((queries, most), torch.inf)
        padded[query, place - begin[query]] = rough[owner, token]
        kept = _near(padded, error.view(queries, nodes).amax(1, keepdim=True), k)
        place = (kept[query, place - begin[query]] | first_of).nonzero()[:, 0]
    exact = (flat[owner[place]] - codebook[token[place]].double()).square_().sum(dim=1)
    distance, at = first(torch.where(first_of[place], -1.0, exact), query[place], queries, k)
    return distance, _named(at, place)


def _rough(wanted: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances float32[M, N] by a product, and what they may be wrong by, float32[M, 1]."""
    own, lengths = wanted.square().sum(dim=1, keepdim=True), places.square().sum(dim=1)
    rough = torch.addmm(own + lengths, wanted, places.T, alpha=-2.0)
    return rough, ROUNDING * wanted.shape[1] * torch.finfo(wanted.dtype).eps * (own + lengths.max())


def _near(rough: Tensor, error: Tensor, k: int) -> Tensor:
    """bool[M, N]: who may be among the k nearest of their row. Everybody where float32 cannot hold the lengths, or there are NaN."""
    limit = rough.topk(min(k, rough.shape[1]), dim=1, largest=False, sorted=False).values.amax(dim=1, keepdim=True) + 2.0 * error
    return (rough <= limit) | ~(limit < torch.inf)


def _named(position: Tensor, names: Tensor) -> Tensor:
    """names[position]; -1 of -1, also where there are no names."""
    return torch.cat([names, names.new_full((1,), -1)])[position]


def first(distance: Tensor, query: Tensor, queries: int, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest distances float64[queries, k] of each query, ascending, equal ones by position, and their positions in `distance`.

    Args:
        distance: float64[T]; NaN and inf do not count.
        query: int64[T], ascending, whose each distance is.
    """
    # Two stable sorts: by distance, then by who asked, keep positions ascending among equals.
    order = torch.argsort(distance, stable=True)
    order = order[distance[order] < torch.inf]
    order = order[torch.argsort(query[order], stable=True)]
    begin = torch.searchsorted(query[order], torch.arange(queries + 1, device=query.device))
    slot = begin[:-1].unsqueeze(1) + torch.arange(k, device=query.device)
    there = slot < begin[1:].unsqueeze(1)
    if not len(order):
        return distance.new_full((queries, k), torch.inf), torch.full_like(slot, -1)
    place = order[slot.clamp(max=len(order) - 1)]
    return torch.where(there, distance[place], torch.inf), torch.where(there, place, -1)
