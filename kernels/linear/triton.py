"""Triton kernel of the fused linear layers: the mean square of a row is summed in the loop of the product, and applied after it."""

# Arguments of kernels are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels import config


@triton.jit
def fused_linear_kernel(
    x_ptr, gain_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr, M, eps,
    N: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    NORM: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, RELU2: tl.constexpr,
):  # fmt: skip
    """Grid (row tiles, column tiles)."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    # Rows and columns beyond the end repeat an existing one: nothing of theirs is stored.
    source = tl.where(row < M, row, 0).to(tl.int64)
    target = tl.where(column < N, column, 0).to(tl.int64)
    y = tl.zeros((BM, BN), tl.float32)
    squares = tl.zeros((BM,), tl.float32)
    for start in range(0, D, BK):
        at = start + depth
        if D % BK == 0:
            a = tl.load(x_ptr + source[:, None] * D + at[None, :])
            b = tl.load(weight_ptr + target[None, :] * D + at[:, None])
        else:
            a = tl.load(x_ptr + source[:, None] * D + at[None, :], mask=(at < D)[None, :], other=0.0)
            b = tl.load(weight_ptr + target[None, :] * D + at[:, None], mask=(at < D)[:, None], other=0.0)
        if NORM:
            wide = a.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
            a = (wide * tl.load(gain_ptr + at, mask=at < D, other=0.0)[None, :].to(tl.float32)).to(a.dtype)
        y = tl.dot(a, b, y, input_precision="ieee")
    if NORM:
        y *= tl.rsqrt(squares / D + eps)[:, None]
    if BIAS:
        y += tl.load(bias_ptr + target)[None, :].to(tl.float32)
    if RELU2:
        y = tl.maximum(y, 0.0)
        y = y * y
    place = source[:, None] * N + target[None, :]
    if RESIDUAL:
        y += tl.load(residual_ptr + place).to(tl.float32)
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=(row < M)[:, None] & (column < N)[None, :])


def fused_linear(
    x: Tensor,
    gain: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    eps: float,
) -> Tensor:
    """See `kernels.linear.rmsnorm_linear`."""
    rows, columns = len(x), len(weight)
    tile = config.linear(rows, x.element_size())
    out = x.new_empty(rows, columns)
    fused_linear_kernel[(triton.cdiv(rows, tile.rows), triton.cdiv(columns, tile.columns))](
        x.contiguous(), out if gain is None else gain, weight.contiguous(), out if bias is None else bias,
        out if residual is None else residual.contiguous(), out, rows, eps,
        N=columns, D=x.shape[1], BM=tile.rows, BN=tile.columns, BK=tile.depth,
        NORM=gain is not None, BIAS=bias is not None, RESIDUAL=residual is not None, RELU2=activation == "relu2",
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out
