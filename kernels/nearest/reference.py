"""What a search for the nearest means: every distance in float64, a stable sort."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest(wanted: Tensor, places: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `kernels.nearest.nearest`."""
    found = [_first((one.double() - places.double()).square().sum(-1), k) for one in wanted]
    distance, row = (torch.stack(part) for part in zip(*found, strict=True))
    return distance, row


def nearest_children(
    residual: Tensor, offsets: Tensor, token: Tensor, child: Tensor, own: Tensor, codebook: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """See `kernels.nearest.nearest_children`."""
    nodes = residual.shape[1]
    found = []
    for query, beams in enumerate(residual.double()):
        ends = offsets[query * nodes : (query + 1) * nodes + 1].tolist()
        parts = [
            (beam - codebook[token[first:end]].double()).square().sum(-1) for beam, first, end in zip(beams, ends, ends[1:], strict=False)
        ]
        distance, place = _first(torch.where(child[ends[0] : ends[-1]] == own[query], -1.0, torch.cat(parts)), k)
        found.append((distance, torch.where(place < 0, place, place + ends[0])))
    distance, place = (torch.stack(part) for part in zip(*found, strict=True))
    return distance, place


def _first(distance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest that are numbers, ascending, equal ones by position."""
    order = torch.where(distance < torch.inf, distance, torch.inf).argsort(stable=True)[:k]
    order = order[distance[order] < torch.inf]
    missing = (0, k - len(order))
    return torch.nn.functional.pad(distance[order], missing, value=torch.inf), torch.nn.functional.pad(order, missing, value=-1)
