"""What SASRec and the GRM share: padded windows of sequences, a causal encoder of items, and a full cross-entropy in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.sequences.data import HISTORY

BATCH = 256
POOL = 16
"""Batches that are sorted by length together: little padding, and still other neighbours in every epoch."""
CHUNK = 256
"""Targets whose logits over all items are held at once; at 12,000 items 12 MB, which a CPU's last cache holds and all 70 MB are not."""


def padded(sequences: Sequence[Sequence[int]]) -> Tensor:
    """int64[B, longest ≤ HISTORY], the newest items of each, 0 after its end."""
    kept = [sequence[-HISTORY:] for sequence in sequences]
    table = np.zeros((len(kept), max(map(len, kept))), np.int64)
    for row, sequence in enumerate(kept):
        table[row, : len(sequence)] = sequence
    return torch.from_numpy(table)


def windows(sequences: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Pieces of at most HISTORY + 1 items, in which every item but a sequence's first is a target once; counted back from the newest."""
    found = []
    for sequence in sequences:
        for end in range(len(sequence), 1, -HISTORY):
            found.append(sequence[max(0, end - HISTORY - 1) : end])
    return found


def batches(pieces: Sequence[Sequence[int]], rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, targets) int64[B, S], 0 = none: every piece once, in an order drawn from `rng`."""
    order = rng.permutation(len(pieces))
    groups = []
    for start in range(0, len(order), POOL * BATCH):
        pool = sorted(order[start : start + POOL * BATCH].tolist(), key=lambda index: len(pieces[index]))
        groups += [pool[first : first + BATCH] for first in range(0, len(pool), BATCH)]
    for group in rng.permutation(len(groups)):
        chosen = [pieces[index] for index in groups[group]]
        yield padded([piece[:-1] for piece in chosen]), padded([piece[1:] for piece in chosen])


class CausalEncoder(nn.Module):
    """Self-attention over the history, oldest first, in which no item sees a later one (SASRec, Kang and McAuley, 2018)."""

    def __init__(self, d_model: int, layers: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(HISTORY, d_model))
        self.drop = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(d_model, heads, ffn, dropout, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, layers, nn.LayerNorm(d_model), enable_nested_tensor=False)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, embedded: Tensor) -> Tensor:
        """float[B, S, d_model] → float[B, S, d_model]."""
        length = embedded.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).triu(1)
        return self.blocks(self.drop(embedded + self.position[:length]), mask=causal)


class _FullCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        by_state, by_table = torch.empty_like(states), torch.zeros_like(table)
        buffer = states.new_empty(min(CHUNK, len(states)), len(table))
        total = states.new_zeros(())
        for start in range(0, len(states), CHUNK):
            part, aims = states[start : start + CHUNK], targets[start : start + CHUNK]
            logits = torch.mm(part, table.T, out=buffer[: len(part)])
            logits[:, 0] = float("-inf")
            peak = logits.amax(1, keepdim=True)
            own = logits.gather(1, aims[:, None])
            share = logits.sub_(peak).exp_()
            mass = share.sum(1, keepdim=True)
            total += (peak + mass.log() - own).sum()
            share.div_(mass)
            share.scatter_add_(1, aims[:, None], share.new_full((len(part), 1), -1.0))
            torch.mm(share, table, out=by_state[start : start + len(part)])
            by_table.addmm_(share.T, part)
        ctx.save_for_backward(by_state, by_table)
        ctx.count = len(states)
        return total / len(states)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        by_state, by_table = ctx.saved_tensors
        scale = grads[0] / ctx.count
        return by_state * scale, by_table * scale, None


def full_cross_entropy(states: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of `states @ table.T` over all rows of the table but row 0, the padding.

    The gradients are computed in the same pass, piece by piece, as the logits of a batch over all items would be written and read from
    memory five times otherwise.

    Args:
        states: float[n, d].
        table: float[items + 1, d].
        targets: int64[n], 1 … items.
    """
    found: Tensor = _FullCrossEntropy.apply(states, table, targets)
    return found
