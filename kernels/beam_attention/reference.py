"""What beam self-attention means: one beam, one head after the other."""

from __future__ import annotations

import torch
from torch import Tensor


def beam_self_attention(qkv: Tensor, keys: Tensor, values: Tensor, ancestors: Tensor, step: int) -> Tensor:
    """See `kernels.beam_attention.beam_self_attention`; in the type of its inputs, so float64 for a judge."""
    batch, beams, total = qkv.shape
    groups, width = keys.shape[3:]
    heads = total // width - 2 * groups
    query, key, value = qkv.split([heads * width, groups * width, groups * width], -1)
    keys[:, step, :beams] = key.view(batch, beams, groups, width)
    values[:, step, :beams] = value.view(batch, beams, groups, width)
    out = qkv.new_empty(batch, beams, heads, width)
    for row in range(batch):
        for beam in range(beams):
            slots = [int(ancestors[row, time, beam]) for time in range(step)] + [beam]
            for head in range(heads):
                group = head // (heads // groups)
                past = torch.stack([keys[row, time, slot, group] for time, slot in enumerate(slots)])
                seen = torch.stack([values[row, time, slot, group] for time, slot in enumerate(slots)])
                weight = torch.softmax(past @ query[row, beam, head * width : (head + 1) * width] * width**-0.5, 0)
                out[row, beam, head] = weight @ seen
    return out.flatten(2)
