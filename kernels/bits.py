"""Sets of tokens as bits: bit t % 32 of word t // 32 is token t."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional


def pack(tokens: Tensor) -> Tensor:
    """int32[M, ceil(V / 32)] of bool[M, V]."""
    bits = functional.pad(tokens, (0, -tokens.shape[1] % 32)).unflatten(1, (-1, 32))
    return (bits.long() << torch.arange(32, device=tokens.device)).sum(-1).int()


def unpack(words: Tensor, tokens: int) -> Tensor:
    """bool[M, tokens] of int32[M, ceil(tokens / 32)]."""
    # A byte is looked up as the eight bools that it stands for, which are the bytes of one int64.
    return _bools(words.device)[words.contiguous().view(torch.uint8).int()].view(torch.bool)[:, :tokens]


@cache
def _bools(device: torch.device) -> Tensor:
    # Made outside inference mode, whatever the first caller is in: all share it.
    with torch.inference_mode(False):
        byte = torch.arange(256, device=device).unsqueeze(1)
        return (byte >> torch.arange(8, device=device) & 1).to(torch.uint8).view(torch.int64).flatten()
