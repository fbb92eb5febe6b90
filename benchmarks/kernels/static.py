"""A step of STATIC (arXiv 2602.22647), written from the paper: beam search under a set of allowed SIDs with static, vectorised tables.

The first two levels are dense: a mask and, for the second, a table of next states, tokens by tokens. Deeper levels are compressed sparse
rows: every beam gathers as many children as the node with most of them has, and ranks those. A state is a node, numbered within its level.
"""

from __future__ import annotations

import torch
from torch import Tensor

DENSE_LEVELS = 2


class Static:
    """Tables of SIDs int64[N, L], distinct and in lexicographic order, with `codes` tokens at every level."""

    def __init__(self, sids: Tensor, codes: int) -> None:
        self.codes = codes
        device = sids.device
        nodes = torch.zeros(len(sids), dtype=torch.int64, device=device)
        self.starts: list[Tensor] = []
        self.tokens: list[Tensor] = []
        self.most: list[int] = []
        for level in range(sids.shape[1]):
            edge = nodes * codes + sids[:, level]
            edges, children = torch.unique_consecutive(edge, return_inverse=True)
            if level == 0:
                self.first = torch.full((codes,), -1, dtype=torch.int64, device=device)
                self.first[edges] = torch.arange(len(edges), device=device)
            elif level < DENSE_LEVELS:
                # int32, as the paper's: a table of tokens by tokens is large.
                self.second = torch.full((int(nodes.max()) + 1, codes), -1, dtype=torch.int32, device=device)
                self.second[edges // codes, edges % codes] = torch.arange(len(edges), dtype=torch.int32, device=device)
            parents = torch.arange(int(nodes.max()) + 2, device=device)
            self.starts.append(torch.searchsorted(edges // codes, parents))
            self.tokens.append(edges % codes)
            self.most.append(int(self.starts[-1].diff().max()))
            nodes = children

    def step(self, logits: Tensor, cumulative: Tensor, state: Tensor, width: int, level: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `benchmarks.kernels.eager.Step`. A beam that cannot go on scores -inf; its children do too."""
        scores = torch.log_softmax(logits.float(), -1)
        node = state.clamp(min=0)
        if level < DENSE_LEVELS:
            following = self.first.expand(*state.shape, -1) if level == 0 else self.second[node]
            scores = scores.masked_fill(following < 0, -torch.inf)
            keep = min(width, self.codes)
            best, token = scores.topk(keep)
            following = following.gather(2, token)
        else:
            keep = self.most[level]
            begin = self.starts[level][node]
            count = self.starts[level][node + 1] - begin
            offset = torch.arange(keep, device=logits.device)
            following = (begin.unsqueeze(-1) + offset).clamp(max=len(self.tokens[level]) - 1)
            token = self.tokens[level][following]
            best = scores.gather(2, token).masked_fill(offset >= count.unsqueeze(-1), -torch.inf)
        total = best + cumulative.unsqueeze(-1)
        score, place = total.flatten(1).topk(min(width, total.shape[1] * keep))
        return score, place // keep, token.flatten(1).gather(1, place), following.flatten(1).gather(1, place).long()


def catalogue(count: int, codes: int, levels: int, seed: int = 0) -> Tensor:
    """Up to `count` distinct SIDs int64[N, levels], in lexicographic order, skewed: few prefixes have most of the items."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (codes * torch.rand(count, levels, generator=generator) ** 3).long().clamp(max=codes - 1)
    return torch.unique(drawn, dim=0)
