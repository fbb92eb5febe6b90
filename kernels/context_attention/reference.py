"""What context attention means, with its log-sum-exp."""

from __future__ import annotations

import torch
from torch import Tensor


def context_attention(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `kernels.context_attention.context_attention`; computed in float32 or wider."""
    heads, width = query.shape[2:]
    positions, groups = keys.shape[1:3]
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    split = query.to(wide).unflatten(2, (groups, heads // groups))
    scores = torch.einsum("bwghd,bsgd->bwghs", split, keys.to(wide)) * width**-0.5
    if lengths is not None:
        beyond = torch.arange(positions, device=query.device) >= lengths.unsqueeze(1)
        scores = scores.masked_fill(beyond[:, None, None, None, :], -torch.inf)
    lse = torch.logsumexp(scores, -1)
    weight = (scores - lse.masked_fill(lse == -torch.inf, 0.0).unsqueeze(-1)).exp()
    valid = values.to(wide)
    if lengths is not None:
        # What lies beyond the length may be anything, and 0 * NaN is NaN.
        valid = valid.masked_fill(beyond[:, :, None, None], 0.0)
    out = torch.einsum("bwghs,bsgd->bwghd", weight, valid)
    return out.flatten(2, 3).to(query.dtype).contiguous(), lse.flatten(2).contiguous()
