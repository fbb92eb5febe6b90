"""Context attention in batched torch: the beams and heads of a group are one query sequence."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Up to so many scores of one group, two products and a softmax are quicker than PyTorch's fused kernel, which does not keep them.
FEW = 1 << 20


def context_attention(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor | None) -> Tensor:
    """See `kernels.context_attention.context_attention`."""
    batch, beams, _, width = query.shape
    positions, groups = keys.shape[1:3]
    bias = None
    if lengths is not None:
        beyond = torch.arange(positions, device=keys.device) >= lengths.unsqueeze(1)
        # What lies beyond the length may be anything, and 0 * NaN is NaN.
        keys, values = (side.masked_fill(beyond.view(batch, -1, 1, 1), 0.0) for side in (keys, values))
        # Of an empty context all values are zero by now, whatever weighs them.
        masked = beyond & (lengths > 0).unsqueeze(1)
        bias = torch.zeros_like(masked, dtype=query.dtype).masked_fill_(masked, -torch.inf).view(batch, 1, 1, -1)
    if groups == 1:
        packed, keys, values = query.reshape(batch, -1, width), keys[:, :, 0], values[:, :, 0]
        if packed.shape[1] * positions * batch <= FEW:
            scores = torch.bmm(packed, keys.transpose(1, 2)).mul_(width**-0.5)
            weight = torch.softmax(scores if bias is None else scores.add_(bias[:, 0]), -1)
            return torch.bmm(weight, values).view(query.shape)
        return scaled_dot_product_attention(packed.unsqueeze(1), keys.unsqueeze(1), values.unsqueeze(1), bias).view(query.shape)
    packed = query.unflatten(2, (groups, -1)).transpose(1, 2).reshape(batch, groups, -1, width)
    mixed = scaled_dot_product_attention(packed, keys.transpose(1, 2), values.transpose(1, 2), bias)
    return mixed.view(batch, groups, beams, -1, width).transpose(1, 2).reshape(query.shape)
