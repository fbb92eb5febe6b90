"""What the device can do at most, measured: a copy and a large square product. All floors are relative to these two."""

from __future__ import annotations

import torch

from benchmarks.kernels import timing
from benchmarks.kernels.floors import Ceilings
from benchmarks.kernels.model import INPUT_SETS
from benchmarks.kernels.timing import Skip, Timing

CASES = ("copy", "product")


def measure(case: str, device: torch.device, dtype: torch.dtype, seconds: float) -> tuple[Timing | Skip, float]:
    """Time, and how much is done in it: bytes read and written, or floating-point operations (a multiply-add is two)."""
    cuda = device.type == "cuda"
    if case == "copy":
        size = 1 << 28 if cuda else 1 << 23
        sources = [torch.randn(size, device=device) for _ in range(INPUT_SETS)]
        target = torch.empty_like(sources[0])
        found = timing.compare({case: lambda i: target.copy_(sources[i])}, INPUT_SETS, device, seconds, graphs=True)
        return found[case], 2.0 * size * 4
    side = 8192 if cuda else 1024
    left = [torch.randn(side, side, device=device, dtype=dtype) for _ in range(INPUT_SETS)]
    right = torch.randn(side, side, device=device, dtype=dtype)
    found = timing.compare({case: lambda i: left[i] @ right}, INPUT_SETS, device, seconds, graphs=True)
    return found[case], 2.0 * side**3


def of(rates: dict[str, float]) -> Ceilings:
    """From the rate per second of each case. Raises KeyError where one was not measured."""
    return Ceilings(flops=rates["product"], bandwidth=rates["copy"])
