"""Beam self-attention in batched torch: gather the few ancestors, two small products."""

from __future__ import annotations

import torch
from torch import Tensor


def beam_self_attention(qkv: Tensor, keys: Tensor, values: Tensor, ancestors: Tensor, step: int) -> Tensor:
    """See `kernels.beam_attention.beam_self_attention`."""
    batch, beams, total = qkv.shape
    groups, width = keys.shape[3:]
    heads = total // width - 2 * groups
    query, key, value = qkv.split([heads * width, groups * width, groups * width], -1)
    keys[:, step, :beams] = key.view(batch, beams, groups, width)
    values[:, step, :beams] = value.view(batch, beams, groups, width)
    if step == 0:
        # Only itself to attend to: the weight is 1.
        return value.view(batch, beams, groups, 1, width).repeat(1, 1, 1, heads // groups, 1).view(batch, beams, heads * width)
    past, seen = (torch.stack([*_gathered(side, ancestors, beams, step), side[:, step, :beams]], 3) for side in (keys, values))
    scores = query.reshape(batch, beams, groups, heads // groups, width) @ past.transpose(-1, -2) * width**-0.5
    return (torch.softmax(scores, -1) @ seen).reshape(batch, beams, heads * width)


def _gathered(side: Tensor, ancestors: Tensor, beams: int, step: int) -> list[Tensor]:
    """History [B, W, G, D] of each step before this one, by ancestor."""
    row = torch.arange(len(side), device=side.device).unsqueeze(1)
    return [side[row, time, ancestors[:, time, :beams].long()] for time in range(step)]
