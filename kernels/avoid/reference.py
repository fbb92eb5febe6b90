"""What may follow beams that are not to go on in certain ways, in the plainest torch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.bits import pack


def allowed(codes: Tensor, prefixes: Tensor, vocabulary: int) -> Tensor:
    """See `kernels.avoid.allowed`."""
    token = prefixes[:, None, :, -1]
    begun = (codes.unsqueeze(2) == prefixes[:, None, :, :-1]).all(-1) & (token >= 0) & (token < vocabulary)
    index = token.clamp(0, vocabulary - 1).expand_as(begun)
    avoided = torch.zeros(*codes.shape[:2], vocabulary, dtype=torch.int32, device=codes.device).scatter_add_(2, index, begun.int())
    return pack((avoided == 0).flatten(0, 1))
