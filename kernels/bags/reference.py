"""Sums of the rows of embedding tables, in the plainest torch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pooled(tables: Sequence[Tensor], values: Tensor, lengths: Tensor) -> Tensor:
    """See `kernels.bags.pooled`."""
    counts = lengths.long().view(len(tables), -1)
    sums = []
    for table, rows, count in zip(tables, values.split(counts.sum(1).tolist()), counts, strict=True):
        bag = torch.repeat_interleave(torch.arange(len(count), device=values.device), count)
        sums.append(table.new_zeros(len(count), table.shape[1]).index_add(0, bag, table[rows]))
    return torch.cat(sums, 1)
