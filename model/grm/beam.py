"""Beam search over the levels of an SID: a width per level, one context for all beams, an optional trie of allowed SIDs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import beam_topk
from kernels.trie import Trie
from model.grm.context import Context
from model.grm.decoder import Decoder, Past


@dataclass(frozen=True)
class Beams:
    """The best SIDs of each request, best first.

    Attributes:
        sids: int64[B, W, L]; -1 in a beam that does not exist.
        log_prob: float32[B, W]; -inf in a beam that does not exist.
    """

    sids: Tensor
    log_prob: Tensor


@torch.no_grad()
def search(
    decoder: Decoder, priors: Sequence[Callable[[Tensor], Tensor]], context: Context, widths: Sequence[int], trie: Trie | None = None
) -> Beams:
    """Exact when every width is at least the number of prefixes of its level.

    Probabilities are normalised over the whole codebook, with a trie too: it decides what may be said, not how likely it is.

    Args:
        priors: each gives logits float[B, W, codes] that follow codes int64[B, W, level], to be added to the decoder's.
        widths: beams kept after each level; the last is the number of results.

    Raises:
        ValueError: not one positive width per level.
    """
    levels = decoder.config.levels
    if len(widths) != levels or min(widths) < 1:
        raise ValueError(f"widths is {list(widths)}: expected {levels} positive numbers, one per level")
    batch = context.bias.shape[0]
    device = context.bias.device
    codes = torch.zeros(batch, 1, 0, dtype=torch.int64, device=device)
    score = torch.zeros(batch, 1, dtype=torch.float32, device=device)
    node = None if trie is None else trie.root(batch)
    past: Past | None = None
    for level, width in enumerate(widths):
        hidden, past = decoder(decoder.embed(codes, level), context, past)
        logits = sum((prior(codes) for prior in priors), decoder.logits(hidden.squeeze(2), level)).float()
        keep = min(width, logits.shape[1] * logits.shape[2])
        if trie is None or node is None:
            score, parent, token = beam_topk(logits, score, keep)
        else:
            allowed = trie.mask(node, level)
            score, parent, token = beam_topk(
                torch.log_softmax(logits, -1).masked_fill(~allowed, float("-inf")), score, keep, normalize=False
            )
        parent = parent.long()
        taken = token.long().clamp(min=0)
        codes = torch.cat([_gather(codes, parent), taken.unsqueeze(-1)], -1)
        if level + 1 < levels:
            past = [(_gather(key, parent), _gather(value, parent)) for key, value in past]
            if trie is not None and node is not None:
                node = trie.child(node.gather(1, parent), taken, level)
    return Beams(codes.masked_fill((score == float("-inf")).unsqueeze(-1), -1), score)


def _gather(values: Tensor, parent: Tensor) -> Tensor:
    """Rows `parent` int64[B, K] of [B, W, ...] along W."""
    index = torch.arange(len(values), device=values.device).unsqueeze(1)
    return values[index, parent]
