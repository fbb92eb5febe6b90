"""A learner over two processes learns what one process learns, and a checkpoint of either continues in the other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model.grm import Grm, collate
from model.grm.sharded import spread
from model.online.step import LearnerState
from tests.model.conftest import SmallWorld, small_config
from tests.model.grm.sharded_worker import batches, learner, read, save

STEPS = 7


def one_process(name: str, first: int, last: int, start: LearnerState | None = None) -> LearnerState:
    mine = learner(name)
    if start is not None:
        mine.restore(start)
    for rows in batches(first, last):
        mine.step(rows)
    return mine.state()


def two_processes(folder: Path, name: str, placement: str, first: int, last: int, start: LearnerState | None = None) -> LearnerState:
    source = "-"
    if start is not None:
        source = str(folder / "start.safetensors")
        save(Path(source), start)
    target = folder / "end.safetensors"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.model.grm.sharded_worker"]
    given = [name, placement, source, str(target), str(first), str(last)]
    ran = subprocess.run([*command, *given], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-5000:]
    return read(target)


def numbers(tree: Any) -> list[float]:
    """The leaves of a JSON tree that are numbers, in order."""
    if isinstance(tree, dict):
        tree = [tree[key] for key in sorted(tree)]
    if isinstance(tree, list):
        return [number for each in tree for number in numbers(each)]
    return [] if tree is None or isinstance(tree, str) else [float(tree)]


def assert_same(one: LearnerState, two: LearnerState) -> None:
    """Within the rounding of float32 sums that were taken in another order."""
    assert one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(two.tensors[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda said, name=name: f"{name}: {said}")
    assert one.facts["counters"] == two.facts["counters"]
    assert one.facts["counters"]["steps"] > 10
    assert numbers(two.facts) == pytest.approx(numbers(json.loads(json.dumps(one.facts))), rel=1e-4, abs=1e-6)


@pytest.mark.integration
@pytest.mark.parametrize(("name", "placement"), [("plain", "row_wise"), ("plain", "table_wise"), ("managed", "row_wise")])
def test_two_processes_learn_what_one_learns(tmp_path: Path, name: str, placement: str) -> None:
    assert_same(one_process(name, 0, STEPS), two_processes(tmp_path, name, placement, 0, STEPS))


@pytest.mark.integration
def test_a_checkpoint_goes_from_one_process_to_two_and_back(tmp_path: Path) -> None:
    spread_over_two = two_processes(tmp_path, "managed", "table_wise", 2, 4, one_process("managed", 0, 2))
    assert_same(one_process("managed", 0, STEPS), one_process("managed", 4, STEPS, spread_over_two))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"experts": 3}, "3 experts is trained in one process"),
        ({"thinking_tokens": True, "thinking_goal": 0.1}, "thinking_goal is trained in"),
    ],
)
def test_what_needs_a_whole_batch_stays_in_one_process(options: dict[str, float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        spread(Grm(small_config(**options)), None, "row_wise")  # type: ignore[arg-type]


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (2, 5), (0, 9), (8, 9)])
def test_rows_of_a_batch_are_the_batch_of_those_rows(world: SmallWorld, start: int, stop: int) -> None:
    config = small_config(long=2, cross=2)
    samples = world.samples(60)[-9:]
    sids = [world.sids[sample.item_id].tolist() for sample in samples]
    part = collate(samples, world.vocabulary, config).with_targets(sids).rows(start, stop)
    alone = collate(samples[start:stop], world.vocabulary, config).with_targets(sids[start:stop])
    assert torch.equal(part.features.values(), alone.features.values())
    assert torch.equal(part.features.lengths(), alone.features.lengths())
    assert part.features.keys() == alone.features.keys()
    assert part.targets is not None
    assert part.targets.tolist() == sids[start:stop]
    model = Grm(config)
    torch.testing.assert_close(model.log_prob(part), model.log_prob(alone), rtol=1e-5, atol=1e-6)
