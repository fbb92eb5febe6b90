"""A function of tensors whose shapes are fixed, captured once as a CUDA graph and replayed.

A replay launches every kernel of the function without Python, and reads and writes the addresses that it was captured with: inputs are
copied into buffers that stay, and whatever the function allocates lives in the graph's own pool, its workspace. On a CPU the function is
called with the same buffers, so that what a test sees there is what a graph would hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Body = Callable[..., tuple[Tensor, ...]]

WARM_UPS = 3
"""Calls before the capture: kernels are compiled and libraries allocate their workspaces in them."""


class StaticCall:
    """One function of tensors at one set of shapes; used by one thread at a time.

    Attributes:
        inputs: the buffers that the function reads; write into them before `run`.
    """

    def __init__(self, body: Body, inputs: Sequence[Tensor]) -> None:
        """
        Args:
            body: reads only tensors that stay where they are (`inputs`, weights), asks nothing of their numbers, and returns new tensors.
            inputs: examples, all on one device; copied.
        """
        self.inputs = tuple(example.clone(memory_format=torch.contiguous_format) for example in inputs)
        self._body = body
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outputs: tuple[Tensor, ...] = ()
        if self.inputs[0].is_cuda:
            self._capture()

    def run(self) -> tuple[Tensor, ...]:
        """The function of what is in `inputs`; on a GPU the result is overwritten by the next run."""
        if self._graph is None:
            return self._body(*self.inputs)
        self._graph.replay()
        return self._outputs

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._body(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = self._body(*self.inputs)
