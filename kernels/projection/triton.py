"""Triton kernels of the projection: a matrix product whose epilogue leaves log-sum-exp and maxima behind, and the same epilogue alone.

One program makes a tile of logits. Sums are per tile and row, and a second small kernel adds them in a fixed order: no atomics, so the
bits do not depend on who finished first, nor on how many rows there are.
"""

# Arguments of kernels are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import config
from kernels.linear.triton import place
from kernels.projection.reference import COARSE, FINE

# Rows per program of the combining kernel, and of the pass over logits that exist.
COMBINE_ROWS = 16
PASS_ROWS = 16


@triton.jit
def _epilogue(
    x, row, column, live, tile, logits_ptr, fine_ptr, peak_ptr, total_ptr, node_ptr, mask_ptr,
    M, V: tl.constexpr, TILES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, FINE: tl.constexpr,
    MASKED: tl.constexpr, ALLOWED: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    """Clean and mask a tile [BM, BN] of logits; store it, its fine maxima, and its part of the log-sum-exp."""
    none: tl.constexpr = float("-inf")
    x = tl.where((x < float("inf")) & (column < V)[None, :], x, none)
    row64 = row.to(tl.int64)
    if MASKED:
        node = tl.load(node_ptr + row, mask=live, other=-1).to(tl.int64)
        words: tl.constexpr = (V + 31) // 32
        word = tl.load(
            mask_ptr + node[:, None] * words + (column // 32)[None, :], mask=(node >= 0)[:, None] & (column < V)[None, :], other=0
        )
        masked = tl.where(((word >> (column % 32)[None, :]) & 1) != 0, x, none)
        if ALLOWED:
            x = masked
    peak = tl.max(x, axis=1)
    pivot = tl.where(peak == none, 0.0, peak)
    total = tl.sum(tl.exp(x - pivot[:, None]), axis=1)
    tl.store(peak_ptr + row64 * TILES + tile, peak, mask=live)
    tl.store(total_ptr + row64 * TILES + tile, total, mask=live)
    if MASKED:
        x = masked
    if STORE:
        tl.store(logits_ptr + row64[:, None] * V + column[None, :], x, mask=live[:, None] & (column < V)[None, :])
    fines: tl.constexpr = (V + FINE - 1) // FINE
    fine = tl.max(tl.reshape(x, (BM, BN // FINE, FINE)), axis=2)
    place = tile * (BN // FINE) + tl.arange(0, BN // FINE)
    tl.store(fine_ptr + row64[:, None] * fines + place[None, :], fine, mask=live[:, None] & (place < fines)[None, :])


@triton.jit
def proj_pyramid_kernel(
    hidden_ptr, weight_ptr, bias_ptr, extra_ptr, logits_ptr, fine_ptr, peak_ptr, total_ptr, node_ptr, mask_ptr, M,
    D, V: tl.constexpr, TILES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    WHOLE: tl.constexpr, FINE: tl.constexpr, BIAS: tl.constexpr, EXTRA: tl.constexpr, MASKED: tl.constexpr, ALLOWED: tl.constexpr,
):  # fmt: skip
    """Grid (tiles): the column tiles of GROUP row tiles together, so that both operands of programs that run together are in the cache.

    WHOLE: D is a multiple of BK. It is no constant itself, or its loop would be unrolled.
    """
    block, tile = place(tl.program_id(0), tl.cdiv(M, BM), TILES, GROUP)
    row = block * BM + tl.arange(0, BM)
    column = tile * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    live = row < M
    # Rows beyond the end repeat an existing one: nothing of theirs is stored, and loads in the loop need no mask.
    source = tl.where(live, row, 0).to(tl.int64)
    target = tl.where(column < V, column, 0).to(tl.int64)
    hidden = hidden_ptr + source[:, None] * D + depth[None, :]
    weight = weight_ptr + target[None, :] * D + depth[:, None]
    x = tl.zeros((BM, BN), tl.float32)
    for start in range(0, D, BK):
        if WHOLE:
            a = tl.load(hidden)
            b = tl.load(weight)
        else:
            a = tl.load(hidden, mask=(start + depth < D)[None, :], other=0.0)
            b = tl.load(weight, mask=(start + depth < D)[:, None], other=0.0)
        x = tl.dot(a, b, x, input_precision="ieee")
        hidden += BK
        weight += BK
    if BIAS:
        x += tl.load(bias_ptr + target).to(tl.float32)[None, :]
    if EXTRA:
        x += tl.load(extra_ptr + source[:, None] * V + column[None, :], mask=(column < V)[None, :], other=0.0).to(tl.float32)
    _epilogue(
        x, row, column, live, tile, logits_ptr, fine_ptr, peak_ptr, total_ptr, node_ptr, mask_ptr,
        M, V, TILES, BM, BN, FINE, MASKED, ALLOWED, True,
    )  # fmt: skip


@triton.jit
def pyramid_kernel(
    source_ptr, logits_ptr, fine_ptr, peak_ptr, total_ptr, node_ptr, mask_ptr, M,
    V: tl.constexpr, TILES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, FINE: tl.constexpr,
    MASKED: tl.constexpr, ALLOWED: tl.constexpr,
):  # fmt: skip
    """The epilogue over logits that exist."""
    tile = tl.program_id(1)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tile * BN + tl.arange(0, BN)
    live = row < M
    place = row.to(tl.int64)[:, None] * V + column[None, :]
    x = tl.load(source_ptr + place, mask=live[:, None] & (column < V)[None, :], other=float("-inf"))
    _epilogue(
        x, row, column, live, tile, logits_ptr, fine_ptr, peak_ptr, total_ptr, node_ptr, mask_ptr,
        M, V, TILES, BM, BN, FINE, MASKED, ALLOWED, MASKED,
    )  # fmt: skip


@triton.jit
def combine_kernel(
    peak_ptr, total_ptr, fine_ptr, coarse_ptr, normalizer_ptr, M,
    TILES: tl.constexpr, FINES: tl.constexpr, COARSES: tl.constexpr, RATIO: tl.constexpr, BM: tl.constexpr, BT: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of each row from its tiles, and coarse maxima from fine ones."""
    none: tl.constexpr = float("-inf")
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    live = row < M
    row64 = row.to(tl.int64)
    tile = tl.arange(0, BT)
    there = live[:, None] & (tile < TILES)[None, :]
    peak = tl.load(peak_ptr + row64[:, None] * TILES + tile[None, :], mask=there, other=none)
    total = tl.load(total_ptr + row64[:, None] * TILES + tile[None, :], mask=there, other=0.0)
    top = tl.max(peak, axis=1)
    pivot = tl.where(top == none, 0.0, top)
    total = tl.sum(total * tl.exp(peak - pivot[:, None]), axis=1)
    tl.store(normalizer_ptr + row64, tl.where(top == none, none, tl.log(total) + pivot), mask=live)
    coarse = tl.arange(0, BC)
    best = tl.full((BM, BC), none, tl.float32)
    for part in range(RATIO):
        place = coarse * RATIO + part
        known = live[:, None] & (place < FINES)[None, :]
        best = tl.maximum(best, tl.load(fine_ptr + row64[:, None] * FINES + place[None, :], mask=known, other=none))
    tl.store(coarse_ptr + row64[:, None] * COARSES + coarse[None, :], best, mask=live[:, None] & (coarse < COARSES)[None, :])


def proj_pyramid(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    extra: Tensor | None,
    node: Tensor | None,
    bitmask: Tensor | None,
    normalizer: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `kernels.projection.proj_pyramid`."""
    rows, vocabulary = len(hidden), len(weight)
    tile = config.projection(rows, hidden.element_size())
    logits = hidden.new_empty(rows, vocabulary, dtype=torch.float32)
    outputs = _Outputs(logits, rows, vocabulary, tile.columns)
    unused = logits
    proj_pyramid_kernel[(triton.cdiv(rows, tile.rows) * outputs.tiles,)](
        hidden.contiguous(), weight.contiguous(), unused if bias is None else bias.contiguous(),
        unused if extra is None else extra.contiguous(), logits, *outputs.pointers,
        unused if node is None else node, unused if bitmask is None else bitmask.contiguous(), rows, hidden.shape[1],
        V=vocabulary, TILES=outputs.tiles, BM=tile.rows, BN=tile.columns, BK=tile.depth, GROUP=config.GROUP,
        WHOLE=hidden.shape[1] % tile.depth == 0, FINE=FINE,
        BIAS=bias is not None, EXTRA=extra is not None, MASKED=node is not None, ALLOWED=normalizer == "allowed",
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return logits, *outputs.combined()


def pyramid(logits: Tensor, node: Tensor | None, bitmask: Tensor | None, normalizer: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `kernels.projection.pyramid`; the first result is empty without a mask."""
    rows, vocabulary = logits.shape
    columns = config.pass_columns(vocabulary)
    masked = torch.empty_like(logits) if node is not None else logits.new_empty(0, vocabulary)
    outputs = _Outputs(logits, rows, vocabulary, columns)
    unused = logits
    pyramid_kernel[(triton.cdiv(rows, PASS_ROWS), outputs.tiles)](
        logits, masked if node is not None else unused, *outputs.pointers,
        unused if node is None else node, unused if bitmask is None else bitmask.contiguous(), rows,
        V=vocabulary, TILES=outputs.tiles, BM=PASS_ROWS, BN=columns, FINE=FINE,
        MASKED=node is not None, ALLOWED=normalizer == "allowed", num_warps=4,
    )  # fmt: skip
    return masked, *outputs.combined()


class _Outputs:
    """Maxima and partial sums that the tiles write, and the kernel that combines them."""

    def __init__(self, like: Tensor, rows: int, vocabulary: int, columns: int) -> None:
        self.rows, self.tiles = rows, triton.cdiv(vocabulary, columns)
        self.fine = like.new_empty(rows, triton.cdiv(vocabulary, FINE))
        self.coarse = like.new_empty(rows, triton.cdiv(vocabulary, COARSE))
        self.peak, self.total = (like.new_empty(rows, self.tiles) for _ in range(2))
        self.normalizer = like.new_empty(rows)

    @property
    def pointers(self) -> tuple[Tensor, ...]:
        return self.fine, self.peak, self.total

    def combined(self) -> tuple[Tensor, Tensor, Tensor]:
        combine_kernel[(triton.cdiv(self.rows, COMBINE_ROWS),)](
            self.peak, self.total, self.fine, self.coarse, self.normalizer, self.rows,
            TILES=self.tiles, FINES=self.fine.shape[1], COARSES=self.coarse.shape[1], RATIO=COARSE // FINE, BM=COMBINE_ROWS,
            BT=triton.next_power_of_2(self.tiles), BC=triton.next_power_of_2(self.coarse.shape[1]), num_warps=4,
        )  # fmt: skip
        return self.fine, self.coarse, self.normalizer
