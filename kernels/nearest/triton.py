"""Triton kernel of a descent's distances: one child a lane, its centroid and its node's residual read along their dimensions."""

# Arguments of kernels are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.nearest.cpu import first

CHILDREN, DEPTH = 32, 32
"""Children of one program, and dimensions that it reads at once."""


@triton.jit
def child_distance_kernel(
    distance_ptr, residual_ptr, owner_ptr, token_ptr, codebook_ptr, T,
    D: tl.constexpr, CHILDREN: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0) * CHILDREN + tl.arange(0, CHILDREN)
    inside = place < T
    owner = tl.load(owner_ptr + place, mask=inside, other=0)
    token = tl.load(token_ptr + place, mask=inside, other=0)
    total = tl.zeros((CHILDREN,), tl.float64)
    for begin in range(0, D, DEPTH):
        column = begin + tl.arange(0, DEPTH)
        there = inside[:, None] & (column < D)[None, :]
        residual = tl.load(residual_ptr + owner[:, None] * D + column[None, :], mask=there, other=0.0)
        centroid = tl.load(codebook_ptr + token[:, None] * D + column[None, :], mask=there, other=0.0).to(tl.float64)
        total += tl.sum((residual - centroid) * (residual - centroid), 1)
    tl.store(distance_ptr + place, total, mask=inside)


def nearest_children(
    residual: Tensor, offsets: Tensor, token: Tensor, child: Tensor, own: Tensor, codebook: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """See `kernels.nearest.nearest_children`."""
    owner = torch.repeat_interleave(offsets.diff())
    query = owner // residual.shape[1]
    distance = residual.new_empty(len(token))
    if len(token):
        child_distance_kernel[(triton.cdiv(len(token), CHILDREN),)](
            distance, residual.contiguous(), owner, token.contiguous(), codebook.contiguous(), len(token),
            D=residual.shape[2], CHILDREN=CHILDREN, DEPTH=DEPTH,
        )  # fmt: skip
    return first(torch.where(child == own[query], -1.0, distance), query, len(residual), k)
