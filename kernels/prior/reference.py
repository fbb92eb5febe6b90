"""What three priors say of the codes that follow a prefix, in the plainest torch: the definition, for any device and type, with gradients.

The fast form on a CPU (`kernels.prior`) gives the sum of the three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

SUMS = 3
"""Liked videos of the same modality prefix, other videos of it, videos of the whole prefix; each as log(1 + count)."""

_MIX = 0x9E3779B97F4A7C15 - (1 << 64)  # golden ratio as int64; products wrap, which is what a hash wants


class PrefixTable(NamedTuple):
    """What everybody goes on with: table float[rows, d], found by `prefix_row`; spread float[codes, d] of each level."""

    table: Tensor
    spread: Sequence[Tensor]


class Watched(NamedTuple):
    """What each request's person goes on with.

    Attributes:
        codes: int64[B, S, L] of videos; -1 where there is none.
        liked: bool[B, S].
        weight: float[L, SUMS].
        starts: level at which the modality of each level begins.
    """

    codes: Tensor
    liked: Tensor
    weight: Tensor
    starts: Sequence[int]


class Followed(NamedTuple):
    """What others went on with after the same videos.

    Attributes:
        codes: int64[B, M, L] of SIDs; -1 where there is none.
        mass: float[B, M], ≥ 0; 0 where there is none.
        weight: float[L, len(scales)].
        scales: the masses m of a code enter as log(1 + scale · m).
    """

    codes: Tensor
    mass: Tensor
    weight: Tensor
    scales: Sequence[float]


def prefix_row(codes: Tensor, rows: int) -> Tensor:
    """Table row of each prefix int64[..., level]; level 0 has one row."""
    level = codes.shape[-1]
    key = torch.full(codes.shape[:-1], level, dtype=torch.int64, device=codes.device)
    for index in range(level):
        key = (key ^ (codes[..., index] + 1)) * _MIX
        key = key ^ (key >> 29 & 0x7FFFFFFFF)
    return key.remainder(rows)


def prefix_logits(prior: PrefixTable, codes: Tensor) -> Tensor:
    """Logits float[B, W, codes] that follow int64[B, W, level]."""
    found = functional.embedding(prefix_row(codes, len(prior.table)), prior.table)
    return functional.linear(found, prior.spread[codes.shape[-1]])


def watched_logits(prior: Watched, codes: Tensor, vocabulary: int) -> Tensor:
    """Logits float[B, W, vocabulary] that follow int64[B, W, level]."""
    level, start = codes.shape[-1], prior.starts[codes.shape[-1]]
    candidate = prior.codes[:, :, level]  # [B, S]
    equal = prior.codes[:, None, :, :level] == codes[:, :, None, :]  # [B, W, S, level]
    known = (candidate >= 0).unsqueeze(1)
    same = equal[..., start:].all(-1) & known
    liked = prior.liked.unsqueeze(1)
    counted = torch.stack([same & liked, same & ~liked, equal.all(-1) & known], -1).to(prior.weight.dtype)  # [B, W, S, SUMS]
    index = candidate.clamp(min=0)[:, None, :, None].expand(counted.shape)
    counts = counted.new_zeros(*codes.shape[:2], vocabulary, SUMS).scatter_add_(2, index, counted)
    return counts.log1p() @ prior.weight[level]


def followed_logits(prior: Followed, codes: Tensor, vocabulary: int) -> Tensor:
    """Logits float[B, W, vocabulary] that follow int64[B, W, level]."""
    level = codes.shape[-1]
    candidate = prior.codes[:, :, level]  # [B, M]
    same = (prior.codes[:, None, :, :level] == codes[:, :, None, :]).all(-1)  # [B, W, M]
    mass = prior.mass.unsqueeze(1) * same
    index = candidate.clamp(min=0).unsqueeze(1).expand(mass.shape)
    total = mass.new_zeros(*codes.shape[:2], vocabulary).scatter_add_(2, index, mass)
    return torch.stack([(total * scale).log1p() for scale in prior.scales], -1) @ prior.weight[level]
