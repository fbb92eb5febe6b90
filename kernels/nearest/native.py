"""The nearest places by the compiled library: a strip of the product at a time, and only what may be near measured in float64."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kernels import native

MOST = 128
"""Places that are kept in order as they are found; more are for torch to sort."""

LEAST_ROWS = 32
"""Wanted places worth a thread of their own: a panel of the product."""


class _Nearest(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("wanted", "places", "width", "k")),
        *((name, ctypes.c_void_p) for name in ("want", "place", "distance", "row")),
    ]  # as `Nearest` of native/nearest.c


def fits(wanted: Tensor, places: Tensor, k: int) -> bool:
    """Whether it can find these."""
    plain = all(side.dtype == torch.float32 and side.device.type == "cpu" for side in (wanted, places))
    return plain and k <= MOST and native.library() is not None


def nearest(wanted: Tensor, places: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `kernels.nearest.nearest`."""
    lib = native.library()
    assert lib is not None
    wanted, places = wanted.contiguous(), places.contiguous()
    distance = torch.empty(len(wanted), k, dtype=torch.float64, device="cpu")
    row = torch.empty(len(wanted), k, dtype=torch.int64, device="cpu")
    asked = _Nearest(
        len(wanted), len(places), places.shape[1], k, *(side.data_ptr() for side in (wanted, places, distance, row)),
    )  # fmt: skip
    at = ctypes.byref(asked)
    size = lib.nearest_scratch(at)
    native.over_rows(lambda first, last: lib.nearest_rows(at, first, last, native.scratch(size)), len(wanted), LEAST_ROWS)
    return distance, row
