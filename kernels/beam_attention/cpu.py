"""Beam self-attention in batched torch: gather the few ancestors, two small products."""

from __future__ import annotations

import torch
from torch import Tensor


def places(ancestors: Tensor, beams: int, step: int) -> Tensor:
    """See `kernels.beam_attention.places`."""
    batch, steps, slots = ancestors.shape
    # Every beam is an ancestor of its own at the newest step.
    itself = torch.arange(beams, device=ancestors.device, dtype=ancestors.dtype).expand(batch, 1, beams)
    first = torch.arange(0, batch * steps * slots, slots, device=ancestors.device, dtype=ancestors.dtype).view(batch, 1, steps)
    return (torch.cat([ancestors[:, :step, :beams], itself], 1).transpose(1, 2) + first[..., : step + 1]).flatten()


def advance(ancestors: Tensor, codes: Tensor, parent: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """See `kernels.beam_attention.advance`."""
    step, kept = codes.shape[2], parent.shape[1]
    continued = parent.long()
    longer = torch.cat([codes.gather(1, continued.unsqueeze(-1).expand(-1, -1, step)), token.long().clamp(min=0).unsqueeze(-1)], -1)
    if step == ancestors.shape[1] - 1:
        return ancestors, longer
    table = ancestors.clone()
    table[:, :step, :kept] = ancestors[:, :step].gather(2, continued.unsqueeze(1).expand(-1, step, -1))
    table[:, step, :kept] = parent
    return table, longer


def beam_self_attention(qkv: Tensor, keys: Tensor, values: Tensor, ancestors: Tensor, step: int, place: Tensor | None = None) -> Tensor:
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
    if place is None:
        place = places(ancestors, beams, step)
    past, seen = (
        side.view(-1, groups * width).index_select(0, place).view(-1, step + 1, groups, width).transpose(1, 2).flatten(0, 1)
        for side in (keys, values)
    )
    scores = torch.bmm(query.reshape(-1, heads // groups, width), past.transpose(1, 2)).mul_(width**-0.5)
    return torch.bmm(torch.softmax(scores, -1), seen).view(batch, beams, heads * width)
