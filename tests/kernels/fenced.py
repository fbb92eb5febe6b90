"""The compiled functions with every buffer against a page that nobody may touch; test_native.py runs it in processes of its own.

`python -m tests.kernels.fenced FOLDER start|end` compiles into the folder, with checks that end the process at undefined behaviour. A
signal also ends it where anything in front of a buffer ("start") or behind one ("end") is read or written. Fresh buffers hold NaN: results
must be those without fences, bit for bit.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from kernels import avoid, native
from kernels.nearest import native as nearest
from kernels.prior import Priors
from kernels.selection import Selection
from kernels.selection import native as selection
from kernels.step import Packed, Shape, Steps
from tests.kernels import test_prior
from tests.kernels.test_selection import numbers
from tests.kernels.test_selection_native import masks
from tests.kernels.test_step import SHAPES, Case

CHECKS = ("-fsanitize=undefined", "-fsanitize-trap=undefined")
NOBODY = 0
"""PROT_NONE."""

LINE = 64
"""Bytes to which scratch memory is aligned: code for its vectors may count on that."""


class Fence:
    """Makes tensors of whole pages between two pages that cannot be touched."""

    def __init__(self, side: str) -> None:
        self._behind = side == "end"
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._empty = torch.empty

    def empty(self, *shape: Any, dtype: torch.dtype = torch.float32, **_: object) -> Tensor:
        """As `torch.empty`, with NaN or -1 inside."""
        like = self._empty(*shape, dtype=dtype, device="meta")
        unit = LINE if dtype == torch.uint8 else like.element_size()
        size = -(-like.numel() * like.element_size() // unit) * unit
        inside = max(-(-size // mmap.PAGESIZE), 1) * mmap.PAGESIZE
        pages = mmap.mmap(-1, inside + 2 * mmap.PAGESIZE)
        first = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        ctypes.memset(first, 0xFF, len(pages))
        for page in (first, first + mmap.PAGESIZE + inside):
            assert self._libc.mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, NOBODY) == 0
        if like.numel() == 0:
            return self._empty(*shape, dtype=dtype)
        offset = mmap.PAGESIZE + (inside - size if self._behind else 0)
        return torch.frombuffer(pages, dtype=dtype, count=like.numel(), offset=offset).view(like.shape)

    def scratch(self, size: int) -> int:
        """As `native.scratch`, but no larger than what is asked."""
        self._scratch = self.empty(size, dtype=torch.uint8)
        return self._scratch.data_ptr()

    def copy(self, values: Tensor) -> Tensor:
        return self.empty(values.shape, dtype=values.dtype).copy_(values)

    def of(self, what: Any) -> Any:
        """The same with fences around all tensors inside."""
        if isinstance(what, Tensor):
            return self.copy(what)
        if hasattr(what, "_make"):  # a named tuple
            return what._make(map(self.of, what))
        return type(what)(map(self.of, what)) if isinstance(what, list | tuple) else what

    def __enter__(self) -> None:
        self._patches = [
            patch.object(torch, "empty", self.empty),
            patch.object(torch, "zeros", lambda *shape, **named: self.empty(*shape, **named).zero_()),
            patch.object(torch, "empty_like", lambda like: self.empty(like.shape, dtype=like.dtype)),
            patch.object(native, "scratch", self.scratch),
        ]
        for each in self._patches:
            each.start()

    def __exit__(self, *_: object) -> None:
        for each in self._patches:
            each.stop()


def selections() -> list[Callable[[Callable[[Any], Any]], Selection]]:
    """Selections of sizes around those of vectors, groups and blocks, as functions of what puts fences around."""
    made = []
    for seed, vocabulary in enumerate((1, 3, 16, 31, 63, 100, 255, 257, 1000)):
        for beams, k in ((1, 1), (3, 7), (5, 500), (33, 64)):
            generator = torch.Generator().manual_seed(seed)
            logits, cumulative = numbers(("normal", "integers", "all equal", "NaN and inf")[seed % 4], 2, beams, vocabulary, generator)
            for mask in (None, masks(2 * beams, vocabulary, generator)):
                arguments = logits.flatten(0, 1), cumulative, k, *(mask or (None, None))
                made.append(lambda of, arguments=arguments: selection.select(*of(arguments)))
    return made


def search(case: Case, lengths: Tensor, products: torch.dtype, of: Callable[[Any], Any]) -> list[Tensor]:
    """Three levels with masks and a prior, and logits: all that `Steps` does."""
    generator = torch.Generator().manual_seed(1)
    codes, d, widths = len(case.bias), case.shape.width, (5, 12, 50)
    packed = Packed(case.shape, of(case.layers), of(case.heads * 3), products)
    steps = Steps(packed, of(case.contexts), of(lengths), 4, max(widths))
    table, place = of(torch.randn(codes, d, generator=generator)), of(torch.randn(d, generator=generator))
    beams, score, found = of(torch.zeros(case.batch, 1, 0, dtype=torch.int64)), of(torch.zeros(case.batch, 1)), []
    for level, width in enumerate(widths):
        rows = case.batch * score.shape[1]
        extra = of(torch.randn(rows, codes, generator=generator)) if level else None
        mask = of(masks(rows, codes, generator)) if level == 1 else (None, None)
        steps.embed(beams, table, place)
        score, parent, token = steps.select(level, level, score, width, case.bias, extra, *mask)
        beams = steps.advance(parent, token)
        found += [score, parent, token, beams]
    steps.start(beams, of(torch.randn(case.batch * widths[-1], d, generator=generator)))
    return [*found, steps.run(3).clone(), steps.logits(3, 0, case.bias)]


def beside(of: Callable[[Any], Any]) -> list[Tensor]:
    """What a feed needs beside the steps of its search: priors, what is to be avoided, and what is near."""
    found: list[Tensor] = []
    for wanted, places, width, k in ((1, 1, 1, 1), (16, 40, 16, 5), (17, 2049, 3, 24), (33, 2100, 17, 128), (40, 4096, 64, 7)):
        generator = torch.Generator().manual_seed(k)
        found += nearest.nearest(*of([torch.randn(count, width, generator=generator) for count in (wanted, places)]), k)
    for sizes in test_prior.SIZES:
        for videos, followers in ((33, 128), (0, 5), (9, 0)):
            case = test_prior.Case(*sizes, 2, videos, followers)
            priors = Priors(of(case.prefixes), of(case.watched), of(case.followed))
            for level, size in enumerate(sizes[0]):
                codes = of(case.beams(level, 70 if level else 1))
                found += [priors.next(codes), avoid.allowed(codes, of(case.sids(2, 6)[..., : level + 1]), size)]
    return found


def main(folder: str, side: str) -> None:
    fence = Fence(side)
    with patch.object(native, "LIBRARIES", Path(folder)), patch.object(native, "FLAGS", (*native.FLAGS, *CHECKS)):
        checked, path = native.load(), native.compiled()
    checked.permit_matrix_unit()
    products = [torch.float32, torch.bfloat16] if native.matrix_unit() else [torch.float32]
    torch.set_num_threads(1)
    with patch.object(native, "library", lambda: checked):
        for select in selections():
            expected = select(lambda what: what)
            with fence:
                found = select(fence.of)
            assert all(map(torch.equal, found, expected))
        wanted = beside(lambda what: what)
        with fence:
            assert all(map(same, beside(fence.of), wanted))
        for shape in (*SHAPES[:3], Shape(17, 1, 1, 1, 17, 17)):
            for positions, codes in ((1, 17), (16, 50), (33, 100)):
                case, lengths = Case(shape, 3, [1], positions, codes=codes), torch.tensor([positions, 0, 1], dtype=torch.int32)
                for product in products:
                    wanted = search(case, lengths, product, lambda what: what)
                    with fence:
                        got = search(case, lengths, product, fence.of)
                    assert all(map(same, got, wanted))
    print(path)


def same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(nan=7.0), other.nan_to_num(nan=7.0)) if one.is_floating_point() else torch.equal(one, other)


if __name__ == "__main__":
    main(*sys.argv[1:])
