"""Linear layers with what surrounds them fused: root-mean-square norm before, bias, activation and residual after.

On a GPU every piece that is not fused is a launch with few rows, and a pass over memory with many. A norm is fused without a pass of its
own in two halves: whoever makes a row leaves the squares of its parts (`linear_squares`, `embed`), and whoever multiplies it scales the
product by them; the gain belongs to the weight (`fold`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kernels import dispatch
from kernels.linear import cpu, reference
from kernels.linear.reference import ACTIVATIONS, PART, part_squares

ALIGNMENT = 16
"""Bytes: the copy engine of a GPU reads rows that begin at multiples of it."""


def rmsnorm_linear(
    x: Tensor,
    gain: Tensor | None,
    weight: Tensor,
    *,
    squares: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    eps: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """`activation(rms_norm(x) * gain @ weight.T + bias) + residual` (norm: arXiv 1910.07467).

    Args:
        x: [M, d]. weight: [n, d]. bias: [n]. residual: [M, n].
        gain: [d]; None where it is in the weight already (`fold`).
        squares: float32[M, parts], whose sum is each row's sum of squares, where whoever made x left it; a GPU need not look at x then.
        activation: None or `"relu2"`, the squared ReLU (arXiv 2109.08668).
        eps: added to the mean square; by default `epsilon`, as `torch.nn.RMSNorm`.
        backend: see `kernels.dispatch.resolve`.

    Raises:
        ValueError: shapes that do not fit, or no such activation.
    """
    if gain is not None and gain.shape != x.shape[1:]:
        raise ValueError(f"gain {list(gain.shape)}: [{x.shape[1]}] is expected")
    if squares is not None and (squares.dim() != 2 or len(squares) != len(x)):
        raise ValueError(f"squares {list(squares.shape)}: [{len(x)}, parts] is expected")
    _check(x, weight, bias, residual, activation)
    eps = epsilon(x.dtype) if eps is None else eps
    if _plain(backend, x):
        return cpu.fused_linear(cpu.rms_norm(x, gain, eps), weight, bias, residual, activation)
    folded = weight if gain is None else fold(gain, weight)
    known = part_squares(x) if squares is None else squares
    return _fused_linear(x, known, folded, bias, residual, activation, eps, False, backend)[0]


def epsilon(dtype: torch.dtype) -> float:
    """Of the type in which a mean square is summed: float32 for 16 bits, whose own (1/128 of bfloat16) would outweigh a small row."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def aligned(x: Tensor) -> bool:
    """Whether a GPU's copy engine can read the rows of [M, d]."""
    return x.shape[1] * x.element_size() % ALIGNMENT == 0


def fold(gain: Tensor, weight: Tensor) -> Tensor:
    """The weight [n, d] of a product whose input is not multiplied by gain [d] any more."""
    return weight * gain


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    """`x / sqrt(mean(x²) + ε) * gain` over the last dimension, ε as in `rmsnorm_linear`, which has a product behind it.

    Args:
        x: [M, d]. gain: [d].

    Raises:
        ValueError: shapes that do not fit.
    """
    if gain.shape != x.shape[1:]:
        raise ValueError(f"gain {list(gain.shape)}: [{x.shape[1]}] is expected")
    return cpu.rms_norm(x, gain, epsilon(x.dtype))


def linear(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """`activation(x @ weight.T + bias) + residual`; see `rmsnorm_linear`."""
    _check(x, weight, bias, residual, activation)
    if _plain(backend, x):
        return cpu.fused_linear(x, weight, bias, residual, activation)
    return _fused_linear(x, None, weight, bias, residual, activation, 0.0, False, backend)[0]


def linear_squares(x: Tensor, weight: Tensor, residual: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor | None]:
    """`x @ weight.T + residual`, and its squares for the `rmsnorm_linear` that follows; None where plain torch has no use for them.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check(x, weight, None, residual, None)
    if _plain(backend, x):
        return cpu.fused_linear(x, weight, None, residual, None), None
    return _fused_linear(x, None, weight, None, residual, None, 0.0, True, backend)


def embed(token: Tensor, table: Tensor, position: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor | None]:
    """`table[token] + position` and its squares, see `linear_squares`.

    Args:
        token: int64[M]. table: [V, n]. position: [n].

    Raises:
        ValueError: shapes that do not fit.
    """
    if token.dim() != 1 or table.dim() != 2 or position.shape != table.shape[1:]:
        raise ValueError(f"token {list(token.shape)}, table {list(table.shape)}, position {list(position.shape)}: [M], [V, n], [n]")
    if dispatch.resolve(backend, table) == "torch":
        return functional.embedding(token, table) + position, None
    return _embed(token, table, position, backend)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str | None) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r}: one of {', '.join(map(str, ACTIVATIONS))} is expected")
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1] or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(
            f"x {list(x.shape)}, weight {list(weight.shape)}, bias {None if bias is None else list(bias.shape)}: "
            "[M, d], [n, d] and [n] are expected"
        )
    if residual is not None and residual.shape != (x.shape[0], weight.shape[0]):
        raise ValueError(f"residual {list(residual.shape)}: [{x.shape[0]}, {weight.shape[0]}] is expected")


def _plain(backend: str, x: Tensor) -> bool:
    """Whether plain torch computes: also what a GPU's copy engine cannot read, unless the kernel was asked for."""
    return dispatch.resolve(backend if aligned(x) or backend != "auto" else "torch", x) == "torch"


@torch.library.custom_op("sidstream::fused_linear", mutates_args=())
def _fused_linear(
    x: Tensor,
    squares: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    eps: float,
    with_squares: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Normed by `squares` if there are some; the result, and its own squares float32[M or 0, parts]."""
    if dispatch.resolve(backend, x) == "triton":
        from kernels.linear.triton import fused_linear as kernel

        return kernel(x.contiguous(), squares, weight.contiguous(), bias, residual, activation, eps, with_squares)
    out = reference.fused_linear(x, squares, weight, bias, residual, activation, eps)
    return out, part_squares(out if with_squares else out[:0])


@_fused_linear.register_fake
def _(
    x: Tensor,
    squares: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    eps: float,
    with_squares: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    rows, columns = x.shape[0], weight.shape[0]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(rows, columns), x.new_empty(rows if with_squares else 0, -(-columns // PART), dtype=dtype)


@torch.library.custom_op("sidstream::embed", mutates_args=())
def _embed(token: Tensor, table: Tensor, position: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    if dispatch.resolve(backend, table) == "triton":
        from kernels.linear.triton import embed as kernel

        return kernel(token, table.contiguous(), position.contiguous())
    out = functional.embedding(token, table) + position
    return out, part_squares(out)


@_embed.register_fake
def _(token: Tensor, table: Tensor, position: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if table.dtype == torch.float64 else torch.float32
    return table.new_empty(len(token), table.shape[1]), table.new_empty(len(token), -(-table.shape[1] // PART), dtype=dtype)


__all__ = ["aligned", "embed", "epsilon", "fold", "linear", "linear_squares", "part_squares", "reference", "rms_norm", "rmsnorm_linear"]
