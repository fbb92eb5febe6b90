"""One process of `torchrun`: learns its half of some batches with sharded tables; process 0 writes the whole tables."""

from __future__ import annotations

import sys
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from model.grm.sharded import Table, gather, load, shard

ROWS = {"user": 11, "item": 16, "kind": 8}
WIDTH, BATCH = 4, 8
PLACEMENTS = {"user": "row_wise", "item": "row_wise", "kind": "table_wise"}


def collection() -> FusedEmbeddingBagCollection:
    torch.manual_seed(0)
    configs = [EmbeddingBagConfig(name=name, num_embeddings=rows, embedding_dim=WIDTH, feature_names=[name]) for name, rows in ROWS.items()]
    return FusedEmbeddingBagCollection(configs, optimizer_type=RowWiseAdagrad, optimizer_kwargs={"lr": 0.1, "eps": 1e-8})


def learn(tables: torch.nn.Module, first: int, last: int, rank: int, world: int) -> None:
    """Steps `first` to `last` on this process's share of every batch."""
    towards = torch.randn(len(ROWS) * WIDTH, 3, generator=torch.Generator().manual_seed(9))
    share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        ids = [torch.randint(rows, (BATCH,), generator=generator)[share] for rows in ROWS.values()]
        wanted = torch.randn(BATCH, 3, generator=generator)[share]
        lengths = torch.ones(len(ROWS) * len(wanted), dtype=torch.int32)
        found = tables(KeyedJaggedTensor(list(ROWS), torch.cat(ids), lengths=lengths)).values()
        (found @ towards - wanted).square().mean().backward()


def save(path: Path, tables: dict[str, Table]) -> None:
    safetensors.torch.save_file(
        {f"{name}.{slot}": getattr(of, slot).contiguous() for name, of in tables.items() for slot in ("weight", "momentum")}, path
    )


def read(path: Path) -> dict[str, Table]:
    tensors = safetensors.torch.load_file(path)
    return {name: Table(tensors[f"{name}.weight"], tensors[f"{name}.momentum"]) for name in ROWS}


def main(source: str, target: str, first: int, last: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    tables = shard(collection(), PLACEMENTS, torch.device("cpu"))  # type: ignore[arg-type]
    if source != "-":
        load(tables, read(Path(source)))
    learn(tables, first, last, dist.get_rank(), dist.get_world_size())
    whole = gather(tables)
    if dist.get_rank() == 0:
        save(Path(target), whole)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
