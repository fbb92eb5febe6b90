"""Context attention by PyTorch's fused kernel: the beams and heads of a group are one query sequence."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def context_attention(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor | None) -> Tensor:
    """See `kernels.context_attention.context_attention`."""
    batch, beams, heads, width = query.shape
    groups = keys.shape[2]
    packed = query.unflatten(2, (groups, heads // groups)).permute(0, 2, 1, 3, 4).reshape(batch, groups, -1, width)
    if lengths is None or batch == 1:
        # One length needs no mask: cut the context there.
        end = None if lengths is None else int(lengths)
        mixed = _attend(packed, keys[:, :end], values[:, :end])
    else:
        mixed = torch.empty_like(packed)
        for row, end in enumerate(lengths.tolist()):
            mixed[row : row + 1] = _attend(packed[row : row + 1], keys[row : row + 1, :end], values[row : row + 1, :end])
    return mixed.view(batch, groups, beams, -1, width).permute(0, 2, 1, 3, 4).reshape(query.shape)


def _attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    if keys.shape[1] == 0:
        return torch.zeros_like(query)
    return scaled_dot_product_attention(query, keys.transpose(1, 2), values.transpose(1, 2))
