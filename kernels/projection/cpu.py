"""Projection, maxima and log-sum-exp in few calls of torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from kernels.bits import unpack
from kernels.linear.reference import scaled
from kernels.projection.reference import COARSE, FINE, group_maxima, valid, widen

Rows = tuple[Tensor, Tensor, Tensor, Tensor]


def proj_pyramid(
    hidden: Tensor,
    weight: Tensor,
    squares: Tensor | None,
    bias: Tensor | None,
    extra: Tensor | None,
    node: Tensor | None,
    bitmask: Tensor | None,
    normalizer: str,
    eps: float,
) -> Rows:
    """See `kernels.projection.proj_pyramid`."""
    if squares is not None:
        hidden = scaled(hidden, squares, eps)
    logits = widen(linear(hidden, weight, bias))
    return pyramid(logits if extra is None else logits + extra, node, bitmask, normalizer)


def pyramid(logits: Tensor, node: Tensor | None, bitmask: Tensor | None, normalizer: str) -> Rows:
    """See `kernels.projection.pyramid`."""
    values = widen(logits)
    fine = group_maxima(values, FINE)
    # A NaN or +inf shows up in the maximum of its group, so clean logits are not copied.
    if not bool((fine < torch.inf).all()):
        values = valid(values)
        fine = group_maxima(values, FINE)
    counted = values
    if node is not None and bitmask is not None:
        allowed = unpack(torch.where((node >= 0).unsqueeze(1), bitmask[node.clamp(min=0)], 0), values.shape[1])
        values = torch.where(allowed, values, -torch.inf)
        fine = group_maxima(values, FINE)
    return values, fine, group_maxima(fine, COARSE // FINE), torch.logsumexp(values if normalizer == "allowed" else counted, -1)
