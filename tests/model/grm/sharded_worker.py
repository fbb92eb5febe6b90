"""One process of `torchrun`: goes on learning from a saved state with spread tables; process 0 saves what became of it."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist

from model.grm import Grm
from model.grm.processes import Processes
from model.grm.sharded import bytes_here, spread, whole
from model.online.conversion import ConversionConfig
from model.online.step import LearnerConfig, LearnerState, OnlineLearner
from streaming.records import Sample
from tests.model.conftest import small_config, small_world

BATCH = 40
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "managed": {"managed": True, "user_rows": 13, "item_rows": 29, "long": 2, "long_events": 20, "cross": 2, "author_rows": 7},
}


def learner(name: str) -> OnlineLearner:
    world = small_world()
    torch.manual_seed(0)  # the random state is part of a learner's
    config = LearnerConfig(chunk=7, window=80, conversion=ConversionConfig("fnw", 60_000), gbpo=0.1)
    return OnlineLearner(Grm(small_config(**OPTIONS[name])), world.vocabulary, config)


def batches(first: int, last: int) -> list[list[Sample]]:
    rows = small_world().samples(last * BATCH)
    return [rows[index * BATCH : (index + 1) * BATCH] for index in range(first, last)]


def whole_tables(model: Grm) -> list[torch.Tensor]:
    """Tensors in memory of the shape of the prefix table, which no other has."""
    gc.collect()
    shape = (model.config.prefix_rows, model.config.d_prefix)
    tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    return [each for each in tensors if each.shape == shape and each.device.type == "cpu"]


def save(path: Path, state: LearnerState) -> None:
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, path)
    path.with_suffix(".json").write_text(json.dumps(state.facts))


def read(path: Path) -> LearnerState:
    return LearnerState(safetensors.torch.load_file(path), json.loads(path.with_suffix(".json").read_text()))


def main(name: str, placement: Any, start: str, target: str, first: int, last: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mine = learner(name)
    if start != "-":
        mine.restore(read(Path(start)))
    whole_bytes = bytes_here(mine.model)
    assert whole_tables(mine.model)
    spread(mine.model, Processes(), placement)
    for rows in batches(first, last):
        mine.step(rows)
    here = bytes_here(mine.model)
    assert placement == "table_wise" or not whole_tables(mine.model)
    with whole(mine.model) as first_process:
        if first_process:
            save(Path(target), mine.state())
    # What every process has by itself is the same in all of them, to the last bit; and process 0 can go on.
    mine.step(batches(last, last + 1)[0])
    weights = torch.cat([weight.detach().flatten() for _, weight in mine.model.dense_parameters()])
    found: list[Any] = [None] * dist.get_world_size()
    facts = json.dumps([vars(mine.counters), mine.floors.state(), mine.metrics.state(), mine.predict(batches(0, 1)[0])])
    dist.all_gather_object(found, (here, weights, facts, {name: ids.ids for name, ids in mine.model._maps()}, mine.model.followers.table))
    for _, *other in found:
        assert torch.equal(other[0], weights)
        assert other[1] == facts
        assert all(torch.equal(ids, mine.model._map(table).ids) for table, ids in other[2].items())
        assert torch.equal(other[3], mine.model.followers.table)
    assert sum(each[0] for each in found) == whole_bytes
    assert all(each[0] < 0.7 * whole_bytes for each in found), [each[0] / whole_bytes for each in found]
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]), int(sys.argv[6]))  # type: ignore[arg-type]
