"""Selection from logits by the compiled library: one pass over them, then a look into few groups."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kernels import native

LEAST_ROWS = 64
"""Rows worth a thread of their own."""


class Asked(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("batch", "beams", "vocabulary", "k", "normalize", "words")),
        *((name, ctypes.c_void_p) for name in ("logits", "cumulative", "node", "bitmask")),
        *((name, ctypes.c_void_p) for name in ("maxima", "offset", "score", "parent", "token")),
    ]  # as `Selection` of native/select.h


def groups(vocabulary: int) -> int:
    """Maxima of a row."""
    return -(-vocabulary // 256) * 16


def fits(logits: Tensor) -> bool:
    """Whether it can select from these logits [M, V]."""
    return logits.dtype == torch.float32 and logits.device.type == "cpu" and native.library() is not None


def select(
    logits: Tensor, cumulative: Tensor, k: int, node: Tensor | None, bitmask: Tensor | None, normalize: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.selection.logits_select`."""
    lib = native.library()
    assert lib is not None
    (batch, beams), vocabulary = cumulative.shape, logits.shape[1]
    places = groups(vocabulary)
    # Kept alive until the calls below have ended.
    read = [logits.contiguous(), cumulative.to(torch.float32).contiguous()]
    read += [] if node is None or bitmask is None else [node.int().contiguous(), bitmask.contiguous()]
    work = native.floats(len(logits) * (places + 1))
    score = native.floats(batch, k)
    parent, token = torch.empty(batch, k, dtype=torch.int32), torch.empty(batch, k, dtype=torch.int32)
    asked = Asked(
        batch, beams, vocabulary, k, normalize, 0 if bitmask is None else bitmask.shape[1],
        *(side.data_ptr() for side in read), *[None] * (4 - len(read)),
        work.data_ptr(), work.data_ptr() + 4 * len(logits) * places, score.data_ptr(), parent.data_ptr(), token.data_ptr(),
    )  # fmt: skip
    at = ctypes.byref(asked)
    native.over_rows(lambda first, last: lib.scan(at, first, last), len(logits), LEAST_ROWS)
    keys = native.scratch(8 * lib.selection_keys(at))
    for request in range(batch):
        lib.finish(at, request, keys)
    return score, parent, token
