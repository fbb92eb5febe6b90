"""What may follow beams of which some are not to go on in certain ways, as bits."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kernels import dispatch, native
from kernels.avoid import reference


class _Avoid(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("rows", "beams", "level", "vocabulary", "prefixes")),
        *((name, ctypes.c_void_p) for name in ("codes", "avoided", "allowed")),
    ]  # as `Avoid` of native/avoid.c


def allowed(codes: Tensor, prefixes: Tensor, vocabulary: int) -> Tensor:
    """The codes that make none of a request's prefixes of its beams.

    Args:
        codes: int64[B, W, level], of the beams.
        prefixes: int64[B, n, level + 1]; one that ends with -1, or with a code that there is none of, is no prefix.
        vocabulary: codes of the level.

    Returns:
        int32[B * W, ceil(vocabulary / 32)]: bit t % 32 of word t // 32 is code t, see `kernels.bits`.
    """
    lib = native.library() if codes.device.type == "cpu" and dispatch.direct("auto", codes) else None
    if lib is None:
        return reference.allowed(codes, prefixes, vocabulary)
    codes, prefixes = codes.long().contiguous(), prefixes.long().contiguous()
    rows = codes.shape[0] * codes.shape[1]
    words = torch.empty(rows, -(-vocabulary // 32), dtype=torch.int32)
    asked = _Avoid(
        rows, codes.shape[1], codes.shape[2], vocabulary, prefixes.shape[1],
        codes.data_ptr(), prefixes.data_ptr(), words.data_ptr(),
    )  # fmt: skip
    lib.avoid(ctypes.byref(asked))
    return words


__all__ = ["allowed", "reference"]
