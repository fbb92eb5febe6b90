"""Self-attention of beams to their own few tokens, by ancestor index: keys and values are written once and never reordered.

`keys[b, t, s]` is what beam s of request b computed at step t. Which of them a beam of a later step descends from is `ancestors[b, t, w]`;
after a selection only that table changes (2 KiB per request), where reordering would move the history of every layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import dispatch
from kernels.beam_attention import cpu, reference


def beam_self_attention(
    qkv: Tensor, keys: Tensor, values: Tensor, ancestors: Tensor, step: int, *, place: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Attention of each beam's newest token to itself and to its ancestors; writes the newest keys and values at `step`.

    Args:
        qkv: [B, W, (H + 2 G) * D]: H query heads, then G keys, then G values, of the newest token; head h reads group h // (H // G).
        keys: [B, L, S ≥ W, G, D], contiguous, history of steps before `step`; slots [:, step, :W] are written.
        values: the same for values.
        ancestors: int32[B, L, S]: `ancestors[b, t, w]` is the slot of beam w's ancestor at step t < step.
        step: 0 ≤ step < L.
        place: `places(ancestors, W, step)`, if another layer has asked for it already; torch reads by it, Triton by the table.
        backend: see `kernels.dispatch.resolve`.

    Returns:
        [B, W, H * D], of the type of qkv.

    Raises:
        ValueError: shapes that do not fit.
    """
    batch, steps, slots, groups, width = keys.shape
    heads, rest = divmod(qkv.shape[2], width)
    heads -= 2 * groups
    fits = qkv.shape[0] == batch and qkv.shape[1] <= slots and not rest and heads > 0 and heads % groups == 0
    if not fits or values.shape != keys.shape or ancestors.shape != keys.shape[:3] or not 0 <= step < steps:
        raise ValueError(
            f"qkv {list(qkv.shape)}, keys {list(keys.shape)}, values {list(values.shape)}, ancestors {list(ancestors.shape)}, step {step}: "
            "[B, W, (H + 2 G) D], [B, L, S ≥ W, G, D] twice, [B, L, S] and 0 ≤ step < L are expected"
        )
    if dispatch.direct(backend, qkv):
        return cpu.beam_self_attention(qkv, keys, values, ancestors, step, place)
    return _beam_self_attention(qkv, keys, values, ancestors, step, backend)


def places(ancestors: Tensor, beams: int, step: int) -> Tensor:
    """Rows int32[B * W * (step + 1)] of keys [B * L * S, G * D] that each of W beams attends to, itself last; the same in every layer."""
    return cpu.places(ancestors, beams, step)


def advance(ancestors: Tensor, codes: Tensor, parent: Tensor, token: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """What beams carry along, after those with codes int64[B, W, step] were continued as parent and token int32[B, K] say; new tensors.

    Returns:
        The table int32[B, L, S] of ancestors: `new[:, t, w] = old[:, t, parent[w]]` for t < step, and `new[:, step, w] = parent[w]`; as it
        was after the last step, when no beam will attend any more.
        The codes int64[B, K, step + 1]; 0 follows where token is -1.

    Raises:
        ValueError: shapes that do not fit.
    """
    batch, steps, slots = ancestors.shape
    fits = codes.dim() == 3 and len(codes) == batch == len(parent) and parent.shape == token.shape and codes.shape[2] < steps
    if not fits or (codes.shape[2] < steps - 1 and parent.shape[1] > slots):
        raise ValueError(
            f"ancestors {list(ancestors.shape)}, codes {list(codes.shape)}, parent {list(parent.shape)}, token {list(token.shape)}: "
            "[B, L, S], [B, W, step < L], [B, K ≤ S, or any K at the last step] twice are expected"
        )
    if dispatch.direct(backend, codes):
        return cpu.advance(ancestors, codes, parent, token)
    return _advance(ancestors, codes, parent, token, backend)


@torch.library.custom_op("sidstream::advance", mutates_args=())
def _advance(ancestors: Tensor, codes: Tensor, parent: Tensor, token: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    if dispatch.resolve(backend, codes) == "triton":
        from kernels.beam_attention.triton import advance as kernel

        return kernel(ancestors, codes, parent, token)
    table, longer = cpu.advance(ancestors, codes, parent, token)
    return table.clone() if table is ancestors else table, longer


@_advance.register_fake
def _(ancestors: Tensor, codes: Tensor, parent: Tensor, token: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(ancestors), codes.new_empty(*parent.shape, codes.shape[2] + 1)


@torch.library.custom_op("sidstream::beam_self_attention", mutates_args=("keys", "values"))
def _beam_self_attention(qkv: Tensor, keys: Tensor, values: Tensor, ancestors: Tensor, step: int, backend: str) -> Tensor:
    if dispatch.resolve(backend, qkv) == "triton":
        from kernels.beam_attention.triton import beam_self_attention as kernel

        return kernel(qkv, keys, values, ancestors, step)
    return cpu.beam_self_attention(qkv, keys, values, ancestors, step)


@_beam_self_attention.register_fake
def _(qkv: Tensor, keys: Tensor, values: Tensor, ancestors: Tensor, step: int, backend: str) -> Tensor:
    groups, width = keys.shape[3:]
    return qkv.new_empty(*qkv.shape[:2], qkv.shape[2] - 2 * groups * width)


__all__ = ["advance", "beam_self_attention", "places", "reference"]
