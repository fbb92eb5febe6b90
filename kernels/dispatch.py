"""Which implementation of an operation runs: the one place that decides, and the only one that knows when Triton may be imported."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

BACKENDS = ("auto", "torch", "triton")


def resolve(backend: str, tensor: Tensor) -> str:
    """`"torch"` or `"triton"` for an operation on `tensor`.

    `"auto"` is Triton on CUDA tensors, where it is installed, and torch elsewhere and in float64. An explicit `"triton"` also runs CPU
    tensors in Triton's interpreter, if that was switched on before Triton was imported.

    Raises:
        ValueError: no such backend.
        RuntimeError: Triton was asked for and cannot run here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r}: one of {', '.join(BACKENDS)} is expected")
    if backend == "torch" or (backend == "auto" and (not tensor.is_cuda or tensor.dtype == torch.float64)):
        return "torch"
    if find_spec("triton") is None:
        if backend == "auto":
            return "torch"
        raise RuntimeError('backend "triton": Triton is not installed; install it or use backend="auto"')
    if not tensor.is_cuda:
        import triton

        if not triton.knobs.runtime.interpret:
            raise RuntimeError(f'backend "triton" needs CUDA tensors, and this one is on {tensor.device}; use backend="auto"')
    return "triton"


def direct(backend: str, tensor: Tensor) -> bool:
    """Whether plain torch computes the operation and nobody traces: then it is called at once, without the custom op around it.

    The op is what `torch.compile` and `torch.export` see; in eager mode its call takes as long as a small operation itself.

    Raises:
        ValueError, RuntimeError: as `resolve`.
    """
    return resolve(backend, tensor) == "torch" and not torch.compiler.is_compiling()
