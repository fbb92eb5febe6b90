"""Tables over two processes learn what one process learns, and a checkpoint of either continues in the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.grm.sharded import Table
from tests.model.grm.sharded_worker import collection, learn, read, save

pytestmark = pytest.mark.integration


def one_process(first: int, last: int, start: dict[str, Table] | None = None) -> dict[str, Table]:
    tables = collection()
    states = tables.fused_optimizer().state_dict()["state"]
    momenta = {key.removesuffix(".weight"): slots[f"{key}.momentum_1"] for key, slots in states.items()}
    for name, of in (start or {}).items():
        tables.embedding_bags[name].weight.data.copy_(of.weight)
        momenta[name].copy_(of.momentum)
    learn(tables, first, last, 0, 1)
    return {name: Table(bag.weight.detach().clone(), momenta[name].clone()) for name, bag in tables.embedding_bags.items()}


def two_processes(folder: Path, first: int, last: int, start: dict[str, Table] | None = None) -> dict[str, Table]:
    source = "-"
    if start is not None:
        source = str(folder / "start.safetensors")
        save(Path(source), start)
    target = folder / "end.safetensors"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.model.grm.sharded_worker"]
    ran = subprocess.run([*command, source, str(target), str(first), str(last)], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return read(target)


def assert_same(one: dict[str, Table], two: dict[str, Table]) -> None:
    for name, table in one.items():
        torch.testing.assert_close(two[name].weight, table.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(two[name].momentum, table.momentum, rtol=1e-5, atol=1e-6)


def test_two_processes_learn_what_one_learns_and_checkpoints_change_hands_both_ways(tmp_path: Path) -> None:
    whole = one_process(0, 6)
    half = two_processes(tmp_path, 0, 3)
    assert half["item"].momentum.any()
    assert_same(whole, one_process(3, 6, half))
    assert_same(whole, two_processes(tmp_path, 3, 6, one_process(0, 3)))
