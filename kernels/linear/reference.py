"""What a fused linear layer means."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear, relu, rms_norm

ACTIVATIONS = (None, "relu2")


def fused_linear(
    x: Tensor,
    gain: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    eps: float,
) -> Tensor:
    """See `kernels.linear.rmsnorm_linear`; no norm without gain."""
    if gain is not None:
        x = rms_norm(x, gain.shape, gain, eps)
    y = linear(x, weight, bias)
    if activation == "relu2":
        y = relu(y).square()
    return y if residual is None else y + residual
