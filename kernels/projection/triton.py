"""Triton kernels of the projection: a matrix product whose epilogue leaves log-sum-exp and maxima behind, and the same epilogue alone.

One program makes a tile of logits. Sums are per row and part of a tile, and a second small kernel adds them in a fixed order: no atomics,
so the bits do not depend on who finished first, nor on how many rows there are.
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
from kernels.linear.triton import inverse_rms, place
from kernels.overlap import fetch, let_next_start, wait
from kernels.projection.reference import COARSE, FINE

# Rows per program of the combining kernel, and of the pass over logits that exist.
COMBINE_ROWS = 4
PASS_ROWS = 16
# Columns that are summed to one part of a log-sum-exp, whatever the tile, so that its bits do not depend on how many rows there are.
SUMMED = 128


@triton.jit
def _allowed_only(x, row, column, live, node_ptr, mask_ptr, V: tl.constexpr):
    """A tile with -inf where the bitmask does not allow."""
    node = tl.load(node_ptr + row, mask=live, other=-1).to(tl.int64)
    words: tl.constexpr = (V + 31) // 32
    word = tl.load(mask_ptr + node[:, None] * words + (column // 32)[None, :], mask=(node >= 0)[:, None] & (column < V)[None, :], other=0)
    return tl.where(((word >> (column % 32)[None, :]) & 1) != 0, x, float("-inf"))


@triton.jit
def _epilogue(
    x, row, column, live, tile, logits_ptr, fine_ptr, peak_ptr, total_ptr, node_ptr, mask_ptr,
    M, V: tl.constexpr, SUMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, FINE: tl.constexpr, SUMMED: tl.constexpr,
    MASKED: tl.constexpr, ALLOWED: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    """Clean and mask a tile [BM, BN] of logits; store it, its fine maxima, and the log-sum-exp of every SUMMED columns in two parts."""
    none: tl.constexpr = float("-inf")
    x = tl.where((x < float("inf")) & (column < V)[None, :], x, none)
    row64 = row.to(tl.int64)
    if ALLOWED:
        x = _allowed_only(x, row, column, live, node_ptr, mask_ptr, V)
    parts = tl.reshape(x, (BM, BN // SUMMED, SUMMED))
    peak = tl.max(parts, axis=2)
    pivot = tl.where(peak == none, 0.0, peak)
    total = tl.sum(tl.exp(parts - pivot[:, :, None]), axis=2)
    part = tile * (BN // SUMMED) + tl.arange(0, BN // SUMMED)
    at = row64[:, None] * SUMS + part[None, :]
    known = live[:, None] & (part < SUMS)[None, :]
    tl.store(peak_ptr + at, peak, mask=known)
    tl.store(total_ptr + at, total, mask=known)
    if MASKED and not ALLOWED:
        x = _allowed_only(x, row, column, live, node_ptr, mask_ptr, V)
    if STORE:
        tl.store(logits_ptr + row64[:, None] * V + column[None, :], x, mask=live[:, None] & (column < V)[None, :])
    fines: tl.constexpr = (V + FINE - 1) // FINE
    fine = tl.max(tl.reshape(x, (BM, BN // FINE, FINE)), axis=2)
    place = tile * (BN // FINE) + tl.arange(0, BN // FINE)
    tl.store(fine_ptr + row64[:, None] * fines + place[None, :], fine, mask=live[:, None] & (place < fines)[None, :])


@triton.jit
def proj_pyramid_kernel(
    hidden_desc, weight_desc, weight_ptr, squares_ptr, bias_ptr, extra_ptr, logits_ptr, fine_ptr, peak_ptr, total_ptr, node_ptr, mask_ptr,
    M, D, eps, V: tl.constexpr, SUMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    PARTS: tl.constexpr, PADDED: tl.constexpr, FINE: tl.constexpr, SUMMED: tl.constexpr, BIAS: tl.constexpr, EXTRA: tl.constexpr,
    MASKED: tl.constexpr, ALLOWED: tl.constexpr, FEW: tl.constexpr, ITEM: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (tiles): the column tiles of GROUP row tiles together, so that both operands of programs that run together are in the cache.

    PARTS, PADDED, FEW: see `kernels.linear.triton.fused_linear_kernel`. D is no constant, or the loop over it would be unrolled.
    """
    blocks = tl.cdiv(M, BM)
    block, tile = place(tl.program_id(0), blocks, (V + BN - 1) // BN, GROUP)
    let_next_start(OVERLAP)
    if FEW and OVERLAP:
        fetch(weight_ptr + tile * BN * D, tl.minimum(BN, V - tile * BN) * D, block, blocks, 128, ITEM)
    wait(OVERLAP)
    row = block * BM + tl.arange(0, BM)
    column = tile * BN + tl.arange(0, BN)
    live = row < M
    if PARTS > 0:
        inverse = inverse_rms(squares_ptr, row.to(tl.int64), live, D, eps, PARTS, PADDED)
    x = tl.zeros((BM, BN), tl.float32)
    for start in range(0, D, BK):
        a = hidden_desc.load([block * BM, start])
        b = weight_desc.load([tile * BN, start])
        x = tl.dot(a, b.T, x, input_precision="ieee")
    if PARTS > 0:
        x *= inverse[:, None]
    if BIAS:
        x += tl.load(bias_ptr + column, mask=column < V, other=0.0).to(tl.float32)[None, :]
    if EXTRA:
        there = live[:, None] & (column < V)[None, :]
        x += tl.load(extra_ptr + row.to(tl.int64)[:, None] * V + column[None, :], mask=there, other=0.0).to(tl.float32)
    _epilogue(
        x, row, column, live, tile, logits_ptr, fine_ptr, peak_ptr, total_ptr, node_ptr, mask_ptr,
        M, V, SUMS, BM, BN, FINE, SUMMED, MASKED, ALLOWED, True,
    )  # fmt: skip


@triton.jit
def pyramid_kernel(
    source_ptr, logits_ptr, fine_ptr, peak_ptr, total_ptr, node_ptr, mask_ptr, M,
    V: tl.constexpr, SUMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, FINE: tl.constexpr, SUMMED: tl.constexpr,
    MASKED: tl.constexpr, ALLOWED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """The epilogue over logits that exist."""
    let_next_start(OVERLAP)
    wait(OVERLAP)
    tile = tl.program_id(1)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tile * BN + tl.arange(0, BN)
    live = row < M
    place = row.to(tl.int64)[:, None] * V + column[None, :]
    x = tl.load(source_ptr + place, mask=live[:, None] & (column < V)[None, :], other=float("-inf"))
    _epilogue(
        x, row, column, live, tile, logits_ptr, fine_ptr, peak_ptr, total_ptr, node_ptr, mask_ptr,
        M, V, SUMS, BM, BN, FINE, SUMMED, MASKED, ALLOWED, MASKED,
    )  # fmt: skip


@triton.jit
def combine_kernel(
    peak_ptr, total_ptr, fine_ptr, coarse_ptr, normalizer_ptr, M,
    SUMS: tl.constexpr, FINES: tl.constexpr, COARSES: tl.constexpr, RATIO: tl.constexpr, BM: tl.constexpr, BT: tl.constexpr,
    BC: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of each row from its parts, and coarse maxima from fine ones."""
    let_next_start(OVERLAP)
    wait(OVERLAP)
    none: tl.constexpr = float("-inf")
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    live = row < M
    row64 = row.to(tl.int64)
    part = tl.arange(0, BT)
    there = live[:, None] & (part < SUMS)[None, :]
    peak = tl.load(peak_ptr + row64[:, None] * SUMS + part[None, :], mask=there, other=none)
    total = tl.load(total_ptr + row64[:, None] * SUMS + part[None, :], mask=there, other=0.0)
    place = tl.arange(0, BC * RATIO)
    fine = tl.load(fine_ptr + row64[:, None] * FINES + place[None, :], mask=live[:, None] & (place < FINES)[None, :], other=none)
    top = tl.max(peak, axis=1)
    pivot = tl.where(top == none, 0.0, top)
    total = tl.sum(total * tl.exp(peak - pivot[:, None]), axis=1)
    tl.store(normalizer_ptr + row64, tl.where(top == none, none, tl.log(total) + pivot), mask=live)
    coarse = tl.arange(0, BC)
    best = tl.max(tl.reshape(fine, (BM, BC, RATIO)), axis=2)
    tl.store(coarse_ptr + row64[:, None] * COARSES + coarse[None, :], best, mask=live[:, None] & (coarse < COARSES)[None, :])


def proj_pyramid(
    hidden: Tensor,
    weight: Tensor,
    squares: Tensor | None,
    bias: Tensor | None,
    extra: Tensor | None,
    node: Tensor | None,
    bitmask: Tensor | None,
    normalizer: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `kernels.projection.proj_pyramid`."""
    rows, vocabulary = len(hidden), len(weight)
    tile = config.projection(rows, hidden.element_size(), node is not None)
    logits = hidden.new_empty(rows, vocabulary, dtype=torch.float32)
    outputs = _Outputs(logits, rows, vocabulary)
    unused = logits
    known = 0 if squares is None else squares.shape[1]
    proj_pyramid_kernel[(triton.cdiv(rows, tile.rows) * triton.cdiv(vocabulary, tile.columns),)](
        TensorDescriptor.from_tensor(hidden, [tile.rows, tile.depth]), TensorDescriptor.from_tensor(weight, [tile.columns, tile.depth]),
        weight, unused if squares is None else squares, unused if bias is None else bias.contiguous(),
        unused if extra is None else extra.contiguous(), logits, *outputs.pointers,
        unused if node is None else node, unused if bitmask is None else bitmask.contiguous(), rows, hidden.shape[1], eps,
        V=vocabulary, SUMS=outputs.sums, BM=tile.rows, BN=tile.columns, BK=tile.depth, GROUP=config.GROUP,
        PARTS=known, PADDED=triton.next_power_of_2(max(known, 1)), FINE=FINE, SUMMED=SUMMED,
        BIAS=bias is not None, EXTRA=extra is not None, MASKED=node is not None, ALLOWED=normalizer == "allowed",
        FEW=rows <= config.FEW_ROWS, ITEM=hidden.element_size(), num_warps=tile.warps, num_stages=tile.stages,
        **overlap.options(hidden.device),
    )  # fmt: skip
    return logits, *outputs.combined()


def pyramid(logits: Tensor, node: Tensor | None, bitmask: Tensor | None, normalizer: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `kernels.projection.pyramid`; the first result is empty without a mask."""
    rows, vocabulary = logits.shape
    columns = config.pass_columns(vocabulary)
    masked = torch.empty_like(logits) if node is not None else logits.new_empty(0, vocabulary)
    outputs = _Outputs(logits, rows, vocabulary)
    unused = logits
    pyramid_kernel[(triton.cdiv(rows, PASS_ROWS), triton.cdiv(vocabulary, columns))](
        logits, masked if node is not None else unused, *outputs.pointers,
        unused if node is None else node, unused if bitmask is None else bitmask.contiguous(), rows,
        V=vocabulary, SUMS=outputs.sums, BM=PASS_ROWS, BN=columns, FINE=FINE, SUMMED=SUMMED,
        MASKED=node is not None, ALLOWED=normalizer == "allowed", num_warps=4,
        **overlap.options(logits.device),
    )  # fmt: skip
    return masked, *outputs.combined()


class _Outputs:
    """Maxima and partial sums that the tiles write, and the kernel that combines them."""

    def __init__(self, like: Tensor, rows: int, vocabulary: int) -> None:
        self.rows, self.sums = rows, triton.cdiv(vocabulary, SUMMED)
        self.fine = like.new_empty(rows, triton.cdiv(vocabulary, FINE))
        self.coarse = like.new_empty(rows, triton.cdiv(vocabulary, COARSE))
        self.peak, self.total = (like.new_empty(rows, self.sums) for _ in range(2))
        self.normalizer = like.new_empty(rows)

    @property
    def pointers(self) -> tuple[Tensor, ...]:
        return self.fine, self.peak, self.total

    def combined(self) -> tuple[Tensor, Tensor, Tensor]:
        combine_kernel[(triton.cdiv(self.rows, COMBINE_ROWS),)](
            self.peak, self.total, self.fine, self.coarse, self.normalizer, self.rows,
            SUMS=self.sums, FINES=self.fine.shape[1], COARSES=self.coarse.shape[1], RATIO=COARSE // FINE, BM=COMBINE_ROWS,
            BT=triton.next_power_of_2(self.sums), BC=triton.next_power_of_2(self.coarse.shape[1]), num_warps=4,
            **overlap.options(self.fine.device, early=False),
        )  # fmt: skip
        return self.fine, self.coarse, self.normalizer
