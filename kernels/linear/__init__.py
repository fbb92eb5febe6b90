"""Linear layers with what surrounds them fused: root-mean-square norm before, bias, activation and residual after.

With few rows a GPU spends more time on launching and on memory than on products, and each fused piece is a pass less; with many rows
cuBLAS is hard to beat, so `backend="auto"` fuses up to `kernels.config.FUSED_ROWS` rows and leaves the rest to it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kernels import dispatch
from kernels.config import FUSED_ROWS
from kernels.linear import cpu, reference
from kernels.linear.reference import ACTIVATIONS


def rmsnorm_linear(
    x: Tensor,
    gain: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    eps: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """`activation(rms_norm(x) * gain @ weight.T + bias) + residual` (norm: arXiv 1910.07467).

    Args:
        x: [M, d]. gain: [d]. weight: [n, d]. bias: [n]. residual: [M, n].
        activation: None or `"relu2"`, the squared ReLU (arXiv 2109.08668).
        eps: added to the mean square; the type's epsilon by default, as `torch.nn.RMSNorm`.
        backend: see `kernels.dispatch.resolve`.

    Raises:
        ValueError: shapes that do not fit, or no such activation.
    """
    if gain.shape != x.shape[1:]:
        raise ValueError(f"gain {list(gain.shape)}: [{x.shape[1]}] is expected")
    return _checked(x, gain, weight, bias, residual, activation, torch.finfo(x.dtype).eps if eps is None else eps, backend)


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    """`x / sqrt(mean(x²) + ε) * gain` over the last dimension, ε the type's epsilon: `rmsnorm_linear` without its product.

    Args:
        x: [M, d]. gain: [d].

    Raises:
        ValueError: shapes that do not fit.
    """
    if gain.shape != x.shape[1:]:
        raise ValueError(f"gain {list(gain.shape)}: [{x.shape[1]}] is expected")
    # On a GPU torch's own is one kernel.
    return functional.rms_norm(x, gain.shape, gain) if x.is_cuda else cpu.rms_norm(x, gain, torch.finfo(x.dtype).eps)


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
    return _checked(x, None, weight, bias, residual, activation, 0.0, backend)


def _checked(
    x: Tensor,
    gain: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    eps: float,
    backend: str,
) -> Tensor:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r}: one of {', '.join(map(str, ACTIVATIONS))} is expected")
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1] or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(
            f"x {list(x.shape)}, weight {list(weight.shape)}, bias {None if bias is None else list(bias.shape)}: "
            "[M, d], [n, d] and [n] are expected"
        )
    if residual is not None and residual.shape != (x.shape[0], weight.shape[0]):
        raise ValueError(f"residual {list(residual.shape)}: [{x.shape[0]}, {weight.shape[0]}] is expected")
    if backend == "auto" and x.shape[0] > FUSED_ROWS:
        backend = "torch"
    if dispatch.direct(backend, x):
        return cpu.fused_linear(x, gain, weight, bias, residual, activation, eps)
    return _fused_linear(x, gain, weight, bias, residual, activation, eps, backend)


@torch.library.custom_op("sidstream::fused_linear", mutates_args=())
def _fused_linear(
    x: Tensor,
    gain: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    eps: float,
    backend: str,
) -> Tensor:
    if dispatch.resolve(backend, x) == "triton":
        from kernels.linear.triton import fused_linear as kernel

        return kernel(x, gain, weight, bias, residual, activation, eps)
    return cpu.fused_linear(x, gain, weight, bias, residual, activation, eps)


@_fused_linear.register_fake
def _(x: Tensor, gain: Tensor | None, weight: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


__all__ = ["linear", "reference", "rms_norm", "rmsnorm_linear"]
