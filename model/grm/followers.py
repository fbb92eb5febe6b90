"""Which code follows a prefix in what other people watched after the same videos: counts, weighted by learned numbers, added to the logits.

"Who watched this watched that next" is the strongest single signal of a short history, and the slowest one for a decoder to learn: it has
to meet every pair many times. A table counts each pair at once; a few weights a level say what counts are worth. It is the sibling of
`PrefixPrior` (what everybody watches) and `HistoryPrior` (what this person watched), and like them it learns online: a row per video, in
the same hashed rows as the video's embedding, holds the SIDs that followed it most. Rows that changed are published like embedding rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kernels.prior import Followed, followed_logits
from model.grm.presets import GrmConfig
from model.grm.recall import Memory

LAGS = 8
"""Videos of a history that are asked for their followers, and that a target is counted as a follower of."""
LATER = 0.4
"""What a follower counts for, per video in between: followers two places later say less."""
OLDER = 0.7
"""What a video's followers count for, per newer video in the history."""
COMMON = 2.0
"""Followers of a video are divided by √(their number + this): a video that everything follows says little of any one."""
SCALES = (1.0, 10.0)
"""Weighted counts m enter as log(1 + scale · m): the first tells few from many, the second none from few."""


@dataclass(frozen=True)
class Followers:
    """What followed the videos of B histories.

    Attributes:
        codes: int64[B, M, L]; -1 where there is nothing.
        weight: float32[B, M]; 0 where there is nothing.
    """

    codes: Tensor
    weight: Tensor


class FollowerPrior(nn.Module):
    """History → SIDs that followed its videos → logits of the next code."""

    def __init__(self, config: GrmConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.codes = config.codes
        table = torch.zeros(config.item_rows, config.followers, config.levels + 1, device=device)
        self.table: Tensor
        self.register_buffer("table", table)  # codes + 1 (0 = none), then the count
        self.weight = nn.Parameter(torch.zeros(config.levels, len(SCALES), device=device))

    def read(self, memory: Memory, leave_out: Tensor | None = None) -> Followers:
        """Followers of the newest videos of every history.

        Args:
            leave_out: targets int64[B, L] that were counted when they were learned before, and are learned again: what a target says of
                itself is taken out, or the model would learn to trust counts that a new target does not have.
        """
        items = memory.items[:, :LAGS]
        found = self.table[items.clamp(min=0)]  # [B, K, F, L + 1]
        codes, count = found[..., :-1].long() - 1, found[..., -1]
        count = count.masked_fill((items < 0).unsqueeze(-1), 0.0)
        lag = torch.arange(items.shape[1], device=items.device)
        if leave_out is not None:
            own = (codes == leave_out[:, None, None, :]).all(-1)
            count = (count - own * (LATER**lag)[:, None]).clamp(min=0.0)
        scale = (OLDER**lag) / (count.sum(-1) + COMMON).sqrt()
        weight = count * scale.unsqueeze(-1)
        return Followers(codes.flatten(1, 2), weight.flatten(1, 2))

    def next(self, followers: Followers, codes: Tensor) -> Tensor:
        """Logits float[B, W, codes] that follow int64[B, W, level]."""
        return followed_logits(self.of(followers), codes, self.codes[codes.shape[-1]])

    def of(self, followers: Followers) -> Followed:
        """Followers and weights, the storage itself."""
        return Followed(followers.codes, followers.weight, self.weight, SCALES)

    def forward(self, followers: Followers, targets: Tensor) -> list[Tensor]:
        """Logits of every level along int64[B, L], float[B, codes] each."""
        return [self.next(followers, targets[:, None, :level]).squeeze(1) for level in range(len(self.codes))]

    @torch.no_grad()
    def learn(self, memory: Memory, targets: Tensor) -> Tensor:
        """Count targets int64[B, L] as followers of their histories, one after the other; returns the rows that changed, int64[n].

        A row that is full forgets its rarest follower for a new one.
        """
        items = memory.items[:, :LAGS].cpu()
        changed, place = torch.unique(items[items >= 0], return_inverse=True)
        local = self.table[changed.to(self.table.device)].cpu().numpy()
        sids = targets.cpu().numpy().astype(np.float32) + 1
        owner, lag = (items >= 0).numpy().nonzero()
        gain = LATER**lag
        rows_of = place.numpy()
        for each in _turns(rows_of):
            rows, followed = rows_of[each], sids[owner[each]]
            slots = local[rows]
            same = (slots[:, :, :-1] == followed[:, None]).all(2)
            known = same.any(1)
            slot = np.where(known, same.argmax(1), slots[:, :, -1].argmin(1))
            before = np.where(known, slots[np.arange(len(rows)), slot, -1], 0.0)
            local[rows, slot, :-1] = followed
            local[rows, slot, -1] = before + gain[each]
        self.table[changed.to(self.table.device)] = torch.from_numpy(local).to(self.table.device)
        return changed


def _turns(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Places of `rows`, int64[n], in groups that name no row twice; a row that is named again comes in a later group, in order."""
    order = rows.argsort(kind="stable")
    start = np.flatnonzero(np.diff(rows[order], prepend=-1))
    turn = np.empty_like(rows)
    turn[order] = np.arange(len(rows)) - np.repeat(start, np.diff(start, append=len(rows)))
    by_turn = turn.argsort(kind="stable")
    return np.split(by_turn, np.cumsum(np.bincount(turn))[:-1]) if len(rows) else []
