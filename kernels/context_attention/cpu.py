"""Context attention in batched torch: the beams and heads of a group are one query sequence."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Up to so many scores, two products and a softmax are quicker than PyTorch's fused kernel, which does not keep them.
FEW = 1 << 20


def context_attention(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor | None) -> Tensor:
    """See `kernels.context_attention.context_attention`."""
    batch, beams, heads, width = query.shape
    groups = keys.shape[2]
    packed = query.unflatten(2, (groups, heads // groups)).transpose(1, 2).reshape(batch, groups, -1, width)
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    bias = None
    if lengths is not None:
        beyond = (torch.arange(keys.shape[2], device=keys.device) >= lengths.unsqueeze(1)).view(batch, 1, -1, 1)
        # What lies beyond the length may be anything, and 0 * NaN is NaN.
        keys, values = keys.masked_fill(beyond, 0.0), values.masked_fill(beyond, 0.0)
        # Of an empty context all values are zero by now, whatever weighs them.
        bias = (
            torch.zeros_like(beyond, dtype=query.dtype).masked_fill_(beyond & (lengths > 0).view(-1, 1, 1, 1), -torch.inf).transpose(2, 3)
        )
    if packed.shape[2] * keys.shape[2] * batch * groups <= FEW:
        scores = (packed @ keys.transpose(2, 3)).mul_(width**-0.5)
        mixed = torch.softmax(scores if bias is None else scores.add_(bias), -1) @ values
    else:
        mixed = scaled_dot_product_attention(packed, keys, values, bias)
    return mixed.view(batch, groups, beams, -1, width).transpose(1, 2).reshape(query.shape)
