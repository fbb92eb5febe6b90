"""What is known of the codes that follow a prefix, to be added to a decoder's logits: of everybody, of a person, of who watched the same.

The definition is `kernels.prior.reference`: three functions, which training and a GPU call. A search on a CPU asks `Priors` for their sum,
in one call a level; a request alone has the bits that it has in a batch, on any number of threads.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kernels import native
from kernels.prior import reference
from kernels.prior.reference import Followed, PrefixTable, Watched, followed_logits, prefix_logits, prefix_row, watched_logits

LEAST_ROWS = 64
"""Rows worth a thread of their own."""


class _Prior(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("beams", "level", "levels", "vocabulary")),
        ("codes", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("rows", "depth")),
        *((name, ctypes.c_void_p) for name in ("table", "spread")),
        *((name, ctypes.c_long) for name in ("videos", "start")),
        *((name, ctypes.c_void_p) for name in ("watched", "liked", "watched_weight")),
        *((name, ctypes.c_long) for name in ("followers", "scales")),
        *((name, ctypes.c_void_p) for name in ("followed", "mass", "followed_weight", "scale", "extra")),
    ]  # as `Prior` of native/prior.c


def fits(prefixes: PrefixTable, watched: Watched, followed: Followed) -> bool:
    """Whether `Priors` can say what these say: float32 on a CPU with the compiled library, and nobody traces."""
    numbers = prefixes.table, *prefixes.spread, watched.weight, followed.mass, followed.weight
    plain = all(each.dtype == torch.float32 and each.device.type == "cpu" for each in numbers)
    return plain and not torch.compiler.is_compiling() and native.library() is not None


class Priors:
    """The sum of three priors for one search, without gradients; their weights are read where they are."""

    def __init__(self, prefixes: PrefixTable, watched: Watched, followed: Followed) -> None:
        lib = native.library()
        assert lib is not None
        self._lib, self._prefixes, self._starts = lib, prefixes, watched.starts
        table, liked = prefixes.table.contiguous(), watched.liked.bool().contiguous()
        self._weights = watched.weight.contiguous(), followed.weight.contiguous()
        scales = (ctypes.c_float * len(followed.scales))(*followed.scales)
        codes, mass = (watched.codes.long().contiguous(), followed.codes.long().contiguous()), followed.mass.contiguous()
        self._read = table, liked, scales, codes, mass  # kept alive
        self._asked = asked = _Prior()
        asked.levels, (asked.rows, asked.depth), asked.table = len(prefixes.spread), table.shape, table.data_ptr()
        asked.videos, asked.watched, asked.liked = liked.shape[1], codes[0].data_ptr(), liked.data_ptr()
        asked.followers, asked.followed, asked.mass = mass.shape[1], codes[1].data_ptr(), mass.data_ptr()
        asked.scales, asked.scale = len(scales), ctypes.addressof(scales)

    def next(self, codes: Tensor) -> Tensor:
        """Logits float32[B, W, codes] that follow int64[B, W, level]."""
        codes, asked, lib = codes.contiguous(), self._asked, self._lib
        batch, beams, level = codes.shape
        spread = self._prefixes.spread[level].contiguous()
        packed = torch.empty(lib.weight_bytes(*spread.shape, False), dtype=torch.uint8)
        lib.pack_weight(*spread.shape, spread.data_ptr(), False, packed.data_ptr())
        extra = native.floats(batch, beams, len(spread))
        asked.beams, asked.level, asked.start, asked.vocabulary = beams, level, self._starts[level], len(spread)
        asked.codes, asked.spread, asked.extra = codes.data_ptr(), packed.data_ptr(), extra.data_ptr()
        asked.watched_weight, asked.followed_weight = (weight[level].data_ptr() for weight in self._weights)
        at = ctypes.byref(asked)
        size = lib.prior_scratch(at)
        native.over_rows(lambda first, last: lib.prior_rows(at, first, last, native.scratch(size)), batch * beams, LEAST_ROWS)
        return extra


__all__ = [
    "Followed",
    "PrefixTable",
    "Priors",
    "Watched",
    "fits",
    "followed_logits",
    "prefix_logits",
    "prefix_row",
    "reference",
    "watched_logits",
]
