"""What a fused linear layer means."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, relu

ACTIVATIONS = (None, "relu2")
PART = 32
"""Columns whose squares are summed to one number."""


def part_squares(x: Tensor) -> Tensor:
    """Sums of squares of every `PART` columns of [M, n]: [M, ceil(n / PART)], in float32 or wider."""
    wide = x.double() if x.dtype == torch.float64 else x.float()
    return torch.stack([part.square().sum(1) for part in wide.split(PART, 1)], 1)


def scaled(x: Tensor, squares: Tensor, eps: float) -> Tensor:
    """Rows [M, d] divided by their root mean square, of which `squares` [M, parts] are the parts."""
    return (x * torch.rsqrt(squares.sum(1, keepdim=True) / x.shape[1] + eps)).to(x.dtype)


def fused_linear(
    x: Tensor,
    squares: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    eps: float,
) -> Tensor:
    """`activation(x / sqrt(sum(squares) / d + eps) @ weight.T + bias) + residual`; no norm without squares."""
    y = linear(x if squares is None else scaled(x, squares, eps), weight, bias)
    if activation == "relu2":
        y = relu(y).square()
    return y if residual is None else y + residual
