"""Embedding tables over several processes (`torchrun`), row by row or table by table, and back into whole tables for a checkpoint.

Each process reads and learns its own part of the batch; TorchRec carries ids to the rows and embeddings back, and FBGEMM's fused optimizer
updates each row where it lives, with the gradient averaged over processes. What is saved are whole tables, so that a checkpoint of two
processes continues in one and the other way round.

This is a library: `sidstream train` is one process. Four things lie between: on gloo, row-wise tables refuse batches whose bags differ in
number between processes, as histories make them; table-wise ones give columns in the order of processes, not of features; the beam search
and the publisher read whole tables directly; and the gradients of the dense weights have to be averaged too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.fused_embeddingbag import FusedEmbeddingBagCollectionSharder
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise, table_wise
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

Placement = Literal["row_wise", "table_wise"]


@dataclass(frozen=True)
class Table:
    """A whole table: `weight` float32[rows, d], `momentum` float32[rows] of row-wise Adagrad."""

    weight: Tensor
    momentum: Tensor


def shard(tables: FusedEmbeddingBagCollection, placements: Mapping[str, Placement], device: torch.device) -> nn.Module:
    """The same collection over the processes of the default group; its weights are the given ones, its momenta zero.

    Args:
        placements: how each table is spread; whole tables go to the processes in turn.

    Raises:
        ValueError: a table has no placement, or there is a placement without a table.
    """
    names = list(tables.embedding_bags)
    if set(placements) != set(names):
        raise ValueError(f"placements are for {sorted(placements)}: expected one for each of the tables {sorted(names)}")
    world = dist.get_world_size()
    kernel = EmbeddingComputeKernel.FUSED.value
    whole = iter(range(len(names)))
    spread = {
        name: row_wise(compute_kernel=kernel)
        if placements[name] == "row_wise"
        else table_wise(rank=next(whole) % world, compute_kernel=kernel)
        for name in names
    }
    sharder = FusedEmbeddingBagCollectionSharder()
    plan = construct_module_sharding_plan(tables, spread, sharder, local_size=world, world_size=world, device_type=device.type)
    group = dist.group.WORLD
    assert group is not None
    before = {name: bag.weight.detach().clone() for name, bag in tables.embedding_bags.items()}
    sharded = sharder.shard(tables, plan, ShardingEnv.from_process_group(group), device)
    load(sharded, {name: Table(weight, weight.new_zeros(len(weight))) for name, weight in before.items()})
    return sharded


@torch.no_grad()
def gather(sharded: nn.Module) -> dict[str, Table]:
    """Whole tables, on every process, in main memory.

    A collective over a group that takes CPU tensors (gloo): every process must call it.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, slot, size, pieces in _tensors(sharded):
        whole = torch.zeros(size)
        for part, piece in pieces:
            whole[part] = piece.cpu()
        dist.all_reduce(whole)  # every row lives in one process and is zero in the others
        found.setdefault(name, {})[slot] = whole
    return {name: Table(**slots) for name, slots in found.items()}


@torch.no_grad()
def load(sharded: nn.Module, tables: Mapping[str, Table]) -> None:
    """Give every process its part of whole tables.

    Raises:
        ValueError: a table is missing or has another size.
    """
    for name, slot, size, pieces in _tensors(sharded):
        whole = getattr(tables[name], slot) if name in tables else None
        if whole is None or whole.shape != size:
            raise ValueError(f"{slot} of table {name}: expected {tuple(size)}, found {None if whole is None else tuple(whole.shape)}")
        for part, piece in pieces:
            piece.copy_(whole[part])


Piece = tuple[tuple[slice, ...], Tensor]
"""Where a piece lies in the whole, and the piece itself: storage of this process."""


def _tensors(sharded: Any) -> Iterator[tuple[str, str, torch.Size, list[Piece]]]:
    """(table, slot, whole size, this process's pieces), in the same order in every process."""
    weights = {key.split(".")[1]: tensor for key, tensor in sharded.state_dict().items()}
    # A process without rows of a table has no optimizer state of it.
    states = {key.split(".")[1]: slots for key, slots in sharded.fused_optimizer.state_dict()["state"].items()}
    for name in sorted(weights):
        yield name, "weight", weights[name].size(), _pieces(weights[name])
        momentum = [tensor for key, tensor in states.get(name, {}).items() if ".momentum" in key]
        yield name, "momentum", weights[name].size()[:1], [piece for tensor in momentum for piece in _pieces(tensor)]


def _pieces(whole: Any) -> list[Piece]:
    found = []
    for local in whole.local_shards():
        offsets, sizes = local.metadata.shard_offsets, local.metadata.shard_sizes
        found.append((tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True)), local.tensor))
    return found
