"""What the projection with its log-sum-exp and pyramid of maxima means, in plain torch; in float64 where its inputs are."""

from __future__ import annotations

import torch
from torch import Tensor

# Columns per maximum of the two levels of the pyramid.
FINE = 16
COARSE = 256


def project(hidden: Tensor, weight: Tensor, bias: Tensor | None, extra: Tensor | None) -> Tensor:
    """Logits [M, V] = hidden @ weight.T + bias + extra, in float32 or wider."""
    logits = widen(torch.nn.functional.linear(hidden, weight))
    if bias is not None:
        logits = logits + bias
    if extra is not None:
        logits = logits + extra
    return logits


def pyramid(logits: Tensor, node: Tensor | None, bitmask: Tensor | None, normalizer: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits with what is invalid or not allowed at -inf, fine and coarse maxima, and the log-normalizer."""
    values = valid(widen(logits))
    masked = values
    if node is not None and bitmask is not None:
        masked = values.masked_fill(~allowed(node, bitmask, values.shape[1]), -torch.inf)
    counted = masked if normalizer == "allowed" else values
    fine = group_maxima(masked, FINE)
    return masked, fine, group_maxima(fine, COARSE // FINE), log_normalizer(counted)


def allowed(node: Tensor, bitmask: Tensor, vocabulary: int) -> Tensor:
    """bool[M, V]: bit `token % 32` of word `token // 32` of the node's row; nothing for node -1."""
    token = torch.arange(vocabulary, device=bitmask.device)
    words = bitmask[node.long().clamp(min=0)][:, token // 32]
    return ((words >> (token % 32).int()) & 1).bool() & (node >= 0).unsqueeze(1)


def widen(logits: Tensor) -> Tensor:
    """Logits as float32, or as they are if float64."""
    return logits if logits.dtype == torch.float64 else logits.float()


def valid(values: Tensor) -> Tensor:
    """Values with NaN and +inf replaced by -inf."""
    return values.masked_fill(~(values < torch.inf), -torch.inf)


def log_normalizer(values: Tensor) -> Tensor:
    """Log-sum-exp over the last dimension of valid numbers; -inf where there is none but -inf."""
    pivot = values.amax(-1)
    pivot = pivot.masked_fill(pivot == -torch.inf, 0.0)
    return (values - pivot.unsqueeze(-1)).exp_().sum(-1).log_() + pivot


def group_maxima(values: Tensor, group: int) -> Tensor:
    """Largest value of each `group` columns of [..., n], [..., ceil(n / group)]; the last group may be narrower."""
    width = values.shape[-1]
    whole = width // group * group
    parts = []
    if whole:
        parts.append(values[..., :whole].unflatten(-1, (whole // group, group)).amax(-1))
    if whole < width:
        parts.append(values[..., whole:].amax(-1, keepdim=True))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
