"""One batch over several processes (`torchrun`): each computes its rows of it, and all of them go on with what all rows gave.

Whatever decides something (which ids have rows, what a target is worth, whether a loss is finite, what the metrics say) is computed in
every process from the same numbers, so the processes stay equal without being told to. A loss is the whole batch's in each of them, with a
gradient along its own rows only: the whole gradient is the sum over processes, and an optimizer step is that of one process.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.grm.inputs import GrmBatch


class Processes:
    """The processes of the default group, whose backend takes CPU tensors (gloo); every method but `part` is called in all of them."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def part(self, batch: GrmBatch) -> GrmBatch:
        """The rows that this process computes, at least one: where there are too few, the last row is computed again and not used."""
        share = self._share(len(batch))
        start = min(self.rank * share, len(batch) - 1)
        return batch.rows(start, min(start + share, len(batch)))

    def whole(self, mine: Tensor, count: int) -> Tensor:
        """What all processes have of a batch of `count` rows, [rows of `part`, …] → [count, …]; a gradient reaches the rows of this one."""
        share = self._share(count)
        padded = torch.cat([mine, mine.new_zeros(share - len(mine), *mine.shape[1:])])
        sent = padded.detach().contiguous()
        parts = [torch.empty_like(sent) for _ in range(self.world)]
        dist.all_gather(parts, sent)
        parts[self.rank] = padded
        return torch.cat(parts)[:count]

    def add_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Sum the gradients of all processes; one that is None stays so where it is in every process."""
        there = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.float32)
        flat = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        total = torch.cat([there, *(grad.flatten() for grad in flat)])
        dist.all_reduce(total)
        counts, *found = total.split([len(weights), *(weight.numel() for weight in weights)])
        for weight, grad, known in zip(weights, found, counts.tolist(), strict=True):
            weight.grad = grad.view_as(weight) if known else None

    def tell(self, body: bytes) -> bytes:
        """What process 0 says, at least one byte; the others' argument is not looked at."""
        size = torch.tensor([len(body)])
        dist.broadcast(size, 0)
        said = torch.empty(int(size), dtype=torch.uint8)
        if self.rank == 0:
            said.copy_(torch.frombuffer(bytearray(body), dtype=torch.uint8))
        dist.broadcast(said, 0)
        return bytes(said.numpy())

    def _share(self, count: int) -> int:
        return -(-count // self.world)
