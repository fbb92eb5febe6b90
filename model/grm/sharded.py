"""The model's embedding tables over several processes (`torchrun`), row by row or table by table, and whole again in process 0.

TorchRec carries ids to the rows and embeddings back, and FBGEMM's fused optimizer updates each row where it lives, with the gradients of
all processes. Dense weights, id maps and the followers' counts are in every process. What is saved and published are whole tables, so that
a checkpoint of two processes continues in one and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.comm_ops import set_gradient_division
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.fused_embeddingbag import FusedEmbeddingBagCollectionSharder
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise, table_wise
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from model.grm.model import Grm
from model.grm.processes import Processes

Placement = Literal["row_wise", "table_wise"]


def spread(model: Grm, processes: Processes, placement: Placement) -> None:
    """Give every process its part of the tables of a model that is the same in all of them, momenta included; from here on its methods are
    collectives. Row-wise a process has an equal share of each table; table-wise the largest tables go first, each to who has least so far.

    Raises:
        ValueError: the model has experts, whose routing is balanced by what a whole batch asks of them, or a goal of its thoughts, which is
            taught by contrast within a whole batch.
    """
    if model.config.experts:
        raise ValueError(f"a model of {model.config.experts} experts is trained in one process: its routing is balanced by whole batches")
    if model.config.thinking_goal:
        raise ValueError("a model with a thinking_goal is trained in one process: its goal is taught by contrast within whole batches")
    set_gradient_division(False)  # gradients are summed, see `model.grm.processes`
    momenta = model.table_momenta()
    owners = _owners({name: table.numel() for name, table in model.tables().items() if name in momenta}, processes.world)
    for holder in (model.context, model.prior):
        holder.tables = SpreadTables(holder.tables, momenta, None if placement == "row_wise" else owners)
    model.processes = processes


@contextmanager
def whole(model: Grm) -> Iterator[bool]:
    """Within, process 0 has the whole tables in its model, to save or to publish; the others have none. Says whether this is process 0.

    Every process has to enter, and to leave before any of them learns on. A model that was not spread is whole.
    """
    if model.processes is None:
        yield True
        return
    holders = [(holder, holder.tables) for holder in (model.context, model.prior)]
    for holder, tables in holders:
        assert isinstance(tables, SpreadTables)
        holder.tables = tables.gather()
    yield model.processes.rank == 0
    for holder, tables in holders:
        holder.tables = tables


def bytes_here(model: Grm) -> int:
    """Of the tables' weights and momenta that live in this process."""
    if model.processes is None:
        return sum(model.tables()[name].nbytes + momentum.nbytes for name, momentum in model.table_momenta().items())
    return sum(holder.tables.bytes_here() for holder in (model.context, model.prior))


def _owners(sizes: Mapping[str, int], world: int) -> dict[str, int]:
    """Process of each table."""
    load = [0] * world
    owners = {}
    for name in sorted(sizes, key=lambda each: (-sizes[each], each)):
        owners[name] = load.index(min(load))
        load[owners[name]] += sizes[name]
    return owners


@dataclass(frozen=True)
class _Piece:
    """Rows of a table or of its momenta that live in this process: `storage` is that of rows `first` and on."""

    first: int
    storage: Tensor


class SpreadTables(nn.Module):
    """A collection over the processes of the default group, called like the whole one: by all processes, with any number of bags each.

    Args:
        tables: the whole collection; it is not used any more.
        momenta: float32[rows] of row-wise Adagrad, by table.
        owners: process of each table; None = every table row by row over all processes.
    """

    def __init__(self, tables: FusedEmbeddingBagCollection, momenta: Mapping[str, Tensor], owners: Mapping[str, int] | None) -> None:
        super().__init__()
        self._configs = tables.embedding_bag_configs()
        self._optimizer: dict[str, Any] = {"optimizer_type": tables.optimizer_type(), "optimizer_kwargs": tables.optimizer_kwargs()}
        kernel, world = EmbeddingComputeKernel.FUSED.value, dist.get_world_size()
        plans = {
            config.name: row_wise(compute_kernel=kernel) if owners is None else table_wise(owners[config.name], compute_kernel=kernel)
            for config in self._configs
        }
        sharder, group = FusedEmbeddingBagCollectionSharder(), dist.group.WORLD
        assert group is not None
        whole = {name: (bag.weight.detach(), momenta[name]) for name, bag in tables.embedding_bags.items()}
        device = next(iter(whole.values()))[0].device
        shapes = self._whole("meta")  # TorchRec keeps what it was given: the whole tables would stay in memory
        plan = construct_module_sharding_plan(shapes, plans, sharder, local_size=world, world_size=world, device_type=device.type)
        with torch.random.fork_rng(devices=[]):
            self._spread = sharder.shard(shapes, plan, ShardingEnv.from_process_group(group), device)
        self._pieces: dict[str, tuple[list[_Piece], list[_Piece]]] = {name: _pieces(self._spread, name) for name in whole}
        with torch.no_grad():
            for name, slots in self._pieces.items():
                for tensor, pieces in zip(whole[name], slots, strict=True):
                    for piece in pieces:
                        piece.storage.copy_(tensor[piece.first : piece.first + len(piece.storage)])

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Columns in the order of the features. Processes pad with empty bags to the most that one has: gloo scatters equal parts."""
        if torch.is_inference_mode_enabled():  # FBGEMM and TorchRec have no kernels for it, nor for tensors that were made in it
            with torch.inference_mode(False), torch.no_grad():
                return self(KeyedJaggedTensor(features.keys(), features.values().clone(), lengths=features.lengths().clone()))
        bags, keys = features.stride(), features.keys()
        most = torch.tensor([bags])
        dist.all_reduce(most, dist.ReduceOp.MAX)
        lengths = nn.functional.pad(features.lengths().view(len(keys), bags), (0, int(most) - bags)).flatten()
        found = self._spread(KeyedJaggedTensor(keys, features.values(), lengths=lengths, stride=int(most))).to_dict()
        return KeyedTensor(keys, [found[key].shape[1] for key in keys], torch.cat([found[key][:bags] for key in keys], 1))

    @torch.no_grad()
    def reset(self, name: str, rows: Tensor) -> None:
        """Zero rows int64[n] of a table and of its momenta, in whichever process they live."""
        for pieces in self._pieces[name]:
            for piece in pieces:
                local = rows[(rows >= piece.first) & (rows < piece.first + len(piece.storage))] - piece.first
                piece.storage[local] = 0

    def bytes_here(self) -> int:
        """Of the weights and momenta that live in this process."""
        return sum(piece.storage.nbytes for slots in self._pieces.values() for pieces in slots for piece in pieces)

    @torch.no_grad()
    def gather(self) -> FusedEmbeddingBagCollection:
        """The whole collection in process 0, its optimizer with it, and an empty shape in the others; one table at a time is sent."""
        tables = self._whole("cpu" if dist.get_rank() == 0 else "meta")
        states = tables.fused_optimizer().state_dict()["state"] if dist.get_rank() == 0 else {}
        for config in self._configs:
            weights, momenta = self._pieces[config.name]
            weight = _reduced(torch.zeros(config.num_embeddings, config.embedding_dim), weights)
            momentum = _reduced(torch.zeros(config.num_embeddings), momenta)
            if dist.get_rank() == 0:
                key = f"{config.name}.weight"
                tables.embedding_bags[config.name].weight.copy_(weight)  # type: ignore[operator, union-attr]
                states[key][f"{key}.momentum_1"].copy_(momentum)
        return tables

    def _whole(self, device: str) -> FusedEmbeddingBagCollection:
        with torch.random.fork_rng(devices=[]):
            return FusedEmbeddingBagCollection(self._configs, device=torch.device(device), **self._optimizer)


def _reduced(whole: Tensor, pieces: list[_Piece]) -> Tensor:
    """All pieces of all processes in process 0: every row lives in one of them and is zero in the others."""
    for piece in pieces:
        whole[piece.first : piece.first + len(piece.storage)] = piece.storage.cpu()
    dist.reduce(whole, 0)
    return whole


def _pieces(sharded: Any, name: str) -> tuple[list[_Piece], list[_Piece]]:
    """Pieces of a table's weights and of its momenta; none of either where this process has no row of it."""
    weights = {key.split(".")[1]: tensor for key, tensor in sharded.state_dict().items()}
    slots = {key.split(".")[1]: of for key, of in sharded.fused_optimizer.state_dict()["state"].items()}
    momenta = [tensor for key, tensor in slots.get(name, {}).items() if ".momentum" in key]
    found = [_local(weights[name]), [piece for tensor in momenta for piece in _local(tensor)]]
    return found[0], found[1]


def _local(tensor: Any) -> list[_Piece]:
    return [_Piece(shard.metadata.shard_offsets[0], shard.tensor) for shard in tensor.local_shards()]
