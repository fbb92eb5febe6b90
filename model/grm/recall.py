"""Which code follows a prefix in what this person watched: counts over the history, weighted by a few learned numbers, added to the logits.

People come back to a content and to a style, and hardly ever to the same video. A decoder needs thousands of targets to learn to copy
and to avoid copying; three counts a level say it with three weights a level, which a hundred targets fit. `PrefixPrior` does the same for
what everybody watches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernels.prior import Watched, watched_logits
from kernels.prior.reference import SUMS
from model.grm.presets import GrmConfig


@dataclass(frozen=True)
class Memory:
    """Histories of B rows, at most S videos each.

    Attributes:
        codes: int64[B, S, L], newest first; -1 where there is no video or none of a known SID.
        liked: bool[B, S].
        items: int64[B, S], table row of each video; -1 where there is none.
    """

    codes: Tensor
    liked: Tensor
    items: Tensor

    def __getitem__(self, rows: slice) -> Memory:
        return Memory(self.codes[rows], self.liked[rows], self.items[rows])

    def to(self, device: torch.device | str) -> Memory:
        return Memory(self.codes.to(device), self.liked.to(device), self.items.to(device))


class HistoryPrior(nn.Module):
    """History → logits of the next code.

    A modality prefix is the codes of the same modality before this level: creative codes are counted whatever the content was.
    """

    def __init__(self, config: GrmConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.codes = config.codes
        self.starts = [0 if level < config.content_levels else config.content_levels for level in range(config.levels)]
        self.weight = nn.Parameter(torch.zeros(config.levels, SUMS, device=device))

    def next(self, memory: Memory, codes: Tensor) -> Tensor:
        """Logits float[B, W, codes] that follow int64[B, W, level]."""
        return watched_logits(self.of(memory), codes, self.codes[codes.shape[-1]])

    def of(self, memory: Memory) -> Watched:
        """Histories and weights, the storage itself."""
        return Watched(memory.codes, memory.liked, self.weight, self.starts)

    def forward(self, memory: Memory, targets: Tensor) -> list[Tensor]:
        """Logits of every level along int64[B, L], float[B, codes] each."""
        return [self.next(memory, targets[:, None, :level]).squeeze(1) for level in range(len(self.codes))]
