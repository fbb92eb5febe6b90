"""Kernels that begin before the one before them has ended (programmatic dependent launch, compute capability 9.0 and later).

A search alone is a chain of some 50 short kernels a level, and filling and draining each of them costs as much as a small product. So every
kernel of a search lets its successor start at once, does what depends on weights only, and then waits. `wait` returns when all earlier
kernels have ended and what they wrote can be seen. Every such kernel waits, also one that reads nothing new: whoever comes after it relies
on that. What is launched without this (torch's own kernels, the trie's) begins and ends as ever.
"""

# Arguments of kernels are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.config import LEAST_CAPABILITY


@triton.jit
def let_next_start(OVERLAP: tl.constexpr):
    """The next kernel may start when every program of this one has come here."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def wait(OVERLAP: tl.constexpr):
    """Go on when the kernels before have ended."""
    if OVERLAP:
        gdc_wait()


@triton.jit
def fetch(start_ptr, count, share, shares, LANES: tl.constexpr, ITEM: tl.constexpr):
    """Have a share of `count` elements of ITEM bytes brought into the L2 cache, for which nobody waits.

    The address is a multiple of 16 bytes, and so is what each of LANES threads asks for; what does not fill that is left out.
    """
    unit: tl.constexpr = 16 // ITEM * LANES
    size = tl.cdiv(tl.cdiv(count, shares), unit) * unit
    begin = share * size
    part = tl.minimum(size, count - begin) // unit * 16
    if part > 0:
        address = (start_ptr + begin).to(tl.int64) + tl.arange(0, LANES).to(tl.int64) * part
        tl.inline_asm_elementwise(
            "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
            "=r,l,r",
            [address, tl.zeros((LANES,), tl.int32) + part],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@cache
def _overlaps(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


def options(device: torch.device, *, early: bool = True) -> dict[str, bool]:
    """What every launch of a kernel with the constant OVERLAP is given. early: it starts before the one before it has ended."""
    return {"OVERLAP": True, "launch_pdl": early} if _overlaps(device) else {"OVERLAP": False}
