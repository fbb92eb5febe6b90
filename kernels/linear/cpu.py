"""A fused linear layer in few calls of torch: the fast form on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear


def rms_norm(x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    """See `kernels.linear.rms_norm`; no gain: it is part of what follows."""
    if x.dtype in (torch.bfloat16, torch.float16):
        return rms_norm(x.float(), None if gain is None else gain.float(), eps).to(x.dtype)
    # torch's own takes twice as many passes, and copies.
    mean = torch.mul(x, x).sum(-1, keepdim=True).mul_(1 / x.shape[-1])
    normed = torch.mul(x, mean.add_(eps).rsqrt_())
    return normed if gain is None else normed.mul_(gain)


def fused_linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str | None) -> Tensor:
    """See `kernels.linear.linear`."""
    if residual is not None and bias is None and activation is None:
        return torch.addmm(residual, x, weight.t())
    y = linear(x, weight, bias)
    if activation == "relu2":
        y = y.relu_().square_()
    return y if residual is None else y.add_(residual)
