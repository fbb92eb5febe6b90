"""Triton kernels of the fused linear layers: tiles of both operands come by the copy engine (TMA), and what surrounds the product is in its
epilogue.

A norm needs no pass of its own: the gain is part of the weight, and the root mean square of a row scales what the product gave. Whoever
made the row left its sum of squares in parts, one for every 32 columns, so nobody waits for anybody and the order of the sums is fixed.
"""

# Arguments of kernels are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels import config, overlap
from kernels.linear.reference import PART
from kernels.overlap import fetch, let_next_start, wait

ROWS = 16
"""Rows of one program of `embed`."""


@triton.jit
def place(program, blocks, tiles: tl.constexpr, group: tl.constexpr):
    """Row tile and column tile of a program: `group` row tiles at a time, all their column tiles, rows first.

    So both operands of the programs that run together are in the cache.
    """
    first = program // (group * tiles) * group
    size = tl.minimum(blocks - first, group)
    return first + program % (group * tiles) % size, program % (group * tiles) // size


@triton.jit
def _part_squares(x, left_ptr, row, tile, inside, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PART: tl.constexpr):
    """Store the sums of squares of every PART columns of a tile."""
    parts: tl.constexpr = (N + PART - 1) // PART
    wide = x.to(tl.float32)
    sums = tl.sum(tl.reshape(wide * wide, (BM, BN // PART, PART)), axis=2)
    part = tile * (BN // PART) + tl.arange(0, BN // PART)
    tl.store(left_ptr + row[:, None] * parts + part[None, :], sums, mask=inside[:, None] & (part < parts)[None, :])


@triton.jit
def inverse_rms(squares_ptr, row, live, D, eps, PARTS: tl.constexpr, PADDED: tl.constexpr):
    """What a norm multiplies rows by, from the PARTS of their squares."""
    part = tl.arange(0, PADDED)
    squares = tl.load(squares_ptr + row[:, None] * PARTS + part[None, :], mask=live[:, None] & (part < PARTS)[None, :], other=0.0)
    return tl.rsqrt(tl.sum(squares, axis=1) / D + eps)


@triton.jit
def fused_linear_kernel(
    x_desc, weight_desc, weight_ptr, bias_ptr, residual_ptr, squares_ptr, left_ptr, out_ptr, M, D, eps,
    N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, PART: tl.constexpr,
    PARTS: tl.constexpr, PADDED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, RELU2: tl.constexpr, LEFT: tl.constexpr,
    FEW: tl.constexpr, ITEM: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (programs), each of which takes every num_programs-th tile. PARTS: of a row's squares, PADDED to a power of two; 0 = no norm.

    FEW: rows, so that latency counts: weights are sent for before the rows are there, and squares are read before the product.
    D is no constant, or the loop over it would be unrolled.
    """
    tiles: tl.constexpr = (N + BN - 1) // BN
    blocks = tl.cdiv(M, BM)
    let_next_start(OVERLAP)
    if FEW and OVERLAP:
        first_block, first_tile = place(tl.program_id(0), blocks, tiles, GROUP)
        fetch(weight_ptr + first_tile * BN * D, tl.minimum(BN, N - first_tile * BN) * D, first_block, blocks, 128, ITEM)
    wait(OVERLAP)
    for program in tl.range(tl.program_id(0), blocks * tiles, tl.num_programs(0), flatten=True):
        block, tile = place(program, blocks, tiles, GROUP)
        row = block * BM + tl.arange(0, BM)
        column = tile * BN + tl.arange(0, BN)
        live = row < M
        row = row.to(tl.int64)
        # What a mask says is contiguous is written in wide stores; a column that is computed by `where` would be written one by one.
        inside = live[:, None] if N % BN == 0 else live[:, None] & (column < N)[None, :]
        at = row[:, None] * N + column[None, :]
        if FEW and PARTS > 0:
            inverse = inverse_rms(squares_ptr, row, live, D, eps, PARTS, PADDED)
        y = tl.zeros((BM, BN), tl.float32)
        for start in range(0, D, BK):
            a = x_desc.load([block * BM, start])
            b = weight_desc.load([tile * BN, start])
            y = tl.dot(a, b.T, y, input_precision="ieee")
        if PARTS > 0:
            if not FEW:
                inverse = inverse_rms(squares_ptr, row, live, D, eps, PARTS, PADDED)
            y *= inverse[:, None]
        if BIAS:
            y += tl.load(bias_ptr + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
        if RELU2:
            y = tl.maximum(y, 0.0)
            y = y * y
        if RESIDUAL:
            y += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
        stored = y.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + at, stored, mask=inside)
        if LEFT:
            # Columns beyond the end are zero: so are the weights that the copy engine gives there, and the masked residual.
            _part_squares(stored, left_ptr, row, tile, live, N, BM, BN, PART)


@triton.jit
def embed_kernel(
    token_ptr, stride, table_ptr, position_ptr, out_ptr, left_ptr, M,
    N: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, PART: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (rows, columns): rows of a table by token, plus a row for all, and their squares."""
    let_next_start(OVERLAP)
    wait(OVERLAP)
    tile = tl.program_id(1)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tile * BN + tl.arange(0, BN)
    live = row < M
    inside = live[:, None] & (column < N)[None, :]
    token = tl.load(token_ptr + row * stride, mask=live, other=0).to(tl.int64)
    x = tl.load(table_ptr + token[:, None] * N + column[None, :], mask=inside, other=0.0)
    added = tl.load(position_ptr + column, mask=column < N, other=0.0)
    x = (x.to(tl.float32) + added.to(tl.float32)[None, :]).to(out_ptr.dtype.element_ty)
    row = row.to(tl.int64)
    tl.store(out_ptr + row[:, None] * N + column[None, :], x, mask=inside)
    _part_squares(tl.where(inside, x, 0.0), left_ptr, row, tile, live, N, BM, BN, PART)


def parts(columns: int) -> int:
    """Parts in which the squares of a row are left."""
    return triton.cdiv(columns, PART)


def fused_linear(
    x: Tensor,
    squares: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    eps: float,
    with_squares: bool,
) -> tuple[Tensor, Tensor]:
    """See `kernels.linear._fused_linear`."""
    rows, columns = len(x), len(weight)
    tile = config.linear(rows, columns, x.element_size())
    out = x.new_empty(rows, columns)
    left = x.new_empty(rows if with_squares else 0, parts(columns), dtype=torch.float32)
    tiles = triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
    known = 0 if squares is None else squares.shape[1]
    fused_linear_kernel[(min(tiles, config.programs(x.device, tile)),)](
        TensorDescriptor.from_tensor(x, [tile.rows, tile.depth]), TensorDescriptor.from_tensor(weight, [tile.columns, tile.depth]), weight,
        out if bias is None else bias, out if residual is None else residual.contiguous(), out if squares is None else squares, left, out,
        rows, x.shape[1], eps,
        N=columns, BM=tile.rows, BN=tile.columns, BK=tile.depth, GROUP=config.GROUP, PART=PART,
        PARTS=known, PADDED=triton.next_power_of_2(max(known, 1)), BIAS=bias is not None, RESIDUAL=residual is not None,
        RELU2=activation == "relu2", LEFT=with_squares, FEW=rows <= config.FEW_ROWS, ITEM=x.element_size(),
        num_warps=tile.warps, num_stages=tile.stages, **overlap.options(x.device),
    )  # fmt: skip
    return out, left


def embed(token: Tensor, table: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """See `kernels.linear.embed`."""
    rows, columns = len(token), table.shape[1]
    out = table.new_empty(rows, columns)
    left = table.new_empty(rows, parts(columns), dtype=torch.float32)
    width = max(PART, min(256, triton.next_power_of_2(columns)))
    embed_kernel[(triton.cdiv(rows, ROWS), triton.cdiv(columns, width))](
        token, token.stride(0), table, position, out, left, rows, N=columns, BN=width, BM=ROWS, PART=PART, num_warps=4,
        **overlap.options(table.device),
    )  # fmt: skip
    return out, left
