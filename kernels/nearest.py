"""The SIDs that exist nearest to those that were asked for, by distance in codebook space; exact, for a batch at once.

A matrix product finds who may be nearest, to within its rounding; those few are measured again, difference by difference in float64. So an
asked place that exists is found at distance 0, and the answer does not depend on the batch that it was asked in.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Distances in one block.
BLOCK = 1 << 24
# The product's rounding error is below this many float32 epsilons per dimension, times the largest squared lengths.
ROUNDING = 4.0


def nearest(wanted: Tensor, places: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """The k nearest places of each wanted one, nearest first, ties to the smaller row.

    Args:
        wanted: float32[M, d], reconstructions of the SIDs asked for (content and creative side by side).
        places: float32[N ≥ k, d], those of the SIDs that have a video.

    Returns:
        squared distance float64[M, k], row int64[M, k].

    Raises:
        ValueError: fewer than k places, or widths that differ.
    """
    if wanted.dim() != 2 or places.dim() != 2 or wanted.shape[1] != places.shape[1] or not 1 <= k <= len(places):
        raise ValueError(f"wanted {list(wanted.shape)}, places {list(places.shape)}, k {k}: [M, d], [N, d] and 1 ≤ k ≤ N are expected")
    lengths = places.square().sum(dim=1)
    distance = torch.empty(len(wanted), k, dtype=torch.float64, device=wanted.device)
    row = torch.empty(len(wanted), k, dtype=torch.int64, device=wanted.device)
    block = max(1, BLOCK // len(places))
    for start in range(0, len(wanted), block):
        part = slice(start, start + block)
        distance[part], row[part] = _nearest(wanted[part], places, lengths, k)
    return distance, row


def _nearest(wanted: Tensor, places: Tensor, lengths: Tensor, k: int) -> tuple[Tensor, Tensor]:
    own = wanted.square().sum(dim=1, keepdim=True)
    rough = torch.addmm(own + lengths, wanted, places.T, alpha=-2.0)
    error = ROUNDING * wanted.shape[1] * torch.finfo(wanted.dtype).eps * (own + lengths.max())
    limit = rough.topk(k, dim=1, largest=False, sorted=False).values.amax(dim=1, keepdim=True) + 2.0 * error
    asked, row = (rough <= limit).nonzero(as_tuple=True)
    exact = (wanted[asked].double() - places[row].double()).square().sum(dim=1)
    # Two stable sorts: by distance, then by who asked, keep rows ascending among equals.
    order = torch.argsort(exact, stable=True)
    order = order[torch.argsort(asked[order], stable=True)]
    first = torch.searchsorted(asked, torch.arange(len(wanted), device=asked.device))
    best = order[first.unsqueeze(1) + torch.arange(k, device=asked.device)]
    return exact[best], row[best]
