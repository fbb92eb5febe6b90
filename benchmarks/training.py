"""The online learner with fused tables, beside the same model on `nn.EmbeddingBag` and `torch.optim`, in turns in one run.

    python -m benchmarks.training [--samples N] [--batch N] [--threads N]

Both sides score, learn and record the same synthetic samples with everything else equal; their first outputs are compared before anything
is timed. Not measured: Kafka, checkpoints, publishing. Beam latency is of one request with a full history.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks import provenance
from model.grm import Grm, Query, Vocabulary, collate, preset
from model.online.step import OnlineLearner
from streaming.records import Context, HistoryEntry, Labels, Sample

ITEMS, USERS = 5000, 3000
CODES = (64, 64, 64, 64)
NOW = 1_700_000_000_000


@dataclass(frozen=True)
class Looked:
    found: Tensor

    def values(self) -> Tensor:
        return self.found


class PlainTables(nn.Module):
    """What a fused collection computes, with `nn.EmbeddingBag` and sparse gradients."""

    def __init__(self, tables: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.embedding_bags = nn.ModuleDict(
            {
                name: nn.EmbeddingBag.from_pretrained(table.clone(), freeze=False, mode="sum", sparse=True, include_last_offset=True)
                for name, table in tables.items()
            }
        )

    def forward(self, features: KeyedJaggedTensor) -> Looked:
        parts = [self.embedding_bags[name](jagged.values(), jagged.offsets()) for name, jagged in features.to_dict().items()]
        return Looked(torch.cat(parts, 1))


class Together:
    """Two optimizers as one."""

    def __init__(self, dense: torch.optim.Optimizer, sparse: torch.optim.Optimizer) -> None:
        self.dense, self.sparse, self.param_groups = dense, sparse, dense.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.dense.zero_grad(set_to_none)
        self.sparse.zero_grad(set_to_none)

    def step(self) -> None:
        self.dense.step()
        self.sparse.step()


def vocabulary(rng: np.random.Generator) -> Vocabulary:
    sids = rng.integers(0, 64, (ITEMS, len(CODES))).astype(np.int32)
    return Vocabulary(np.arange(ITEMS), sids, rng.integers(5_000, 90_000, ITEMS), rng.integers(0, 500, ITEMS), CODES)


def history(rng: np.random.Generator) -> Context:
    """50 events: two watches, then a click on the last of them, and again."""
    items = rng.integers(0, ITEMS, 50).tolist()
    entries = []
    for place in range(50):
        item = items[place - 1] if place % 3 == 2 else items[place]
        click = place % 3 == 2
        entries.append(HistoryEntry(item, NOW - place * 60_000, None if click else int(rng.integers(60_000)), ["click"] if click else []))
    return Context(entries)


def samples(count: int, rng: np.random.Generator) -> list[Sample]:
    found = []
    for index in range(count):
        click = int(rng.random() < 0.4)
        found.append(
            Sample(
                sample_id=f"{index}:initial",
                kind="initial",
                impression_id=str(index),
                user_id=int(rng.integers(USERS)),
                item_id=int(rng.integers(ITEMS)),
                ts=NOW + index,
                ready_ts=NOW + index,
                labels=Labels(click=click, long_view=click, like=0),
                context=history(rng),
            )
        )
    return found


def learners(rng: np.random.Generator) -> dict[str, OnlineLearner]:
    """Both sides, from the same weights."""
    known = vocabulary(rng)
    fused = OnlineLearner(Grm(preset("laptop", CODES)), known)
    plain_model = Grm(preset("laptop", CODES))
    config = plain_model.config
    sides: tuple[tuple[Any, float], ...] = ((plain_model.context, config.sparse_lr), (plain_model.prior, config.prefix_lr))
    groups = []
    for owner, rate in sides:
        owner.tables = PlainTables({name: module.weight.detach() for name, module in owner.tables.embedding_bags.items()})
        groups.append({"params": list(owner.tables.parameters()), "lr": rate})
    plain = OnlineLearner(plain_model, known)
    plain.fitter.optimizer = Together(plain.fitter.optimizer, torch.optim.Adagrad(groups))  # type: ignore[assignment]
    return {"fused": fused, "plain": plain}


def beam_ms(model: Grm, known: Vocabulary, context: Context, rounds: int) -> dict[str, float]:
    """One request: collate, context, beam 32 over 4 levels."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        with torch.no_grad():
            model.beam(collate([Query(1, NOW, context)], known, model.config), [32] * len(CODES))
        taken.append((time.perf_counter() - began) * 1000)
    p50, p95 = np.percentile(taken[rounds // 10 :], (50, 95))
    return {"p50": round(float(p50), 2), "p95": round(float(p95), 2), "min": round(min(taken), 2)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--samples", type=int, default=2560)
    arguments.add_argument("--batch", type=int, default=128)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, help="result file; default benchmarks/results/training.json")
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    rng = np.random.default_rng(given.seed)
    sides, rows = learners(rng), samples(given.samples, rng)
    probe = collate(rows[:32], sides["fused"].vocabulary, sides["fused"].model.config).with_targets([(1, 2, 3, 4)] * 32)
    torch.testing.assert_close(sides["fused"].model.log_prob(probe), sides["plain"].model.log_prob(probe))

    wall, cpu = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0.0)
    counted = 0
    for start in range(0, given.samples, given.batch):
        batch = rows[start : start + given.batch]
        counted += len(batch) if start else 0  # the first batch warms up
        for name, learner in sides.items():
            began, used = time.perf_counter(), time.process_time()
            learner.step(batch)
            if start:
                wall[name] += time.perf_counter() - began
                cpu[name] += time.process_time() - used
    result = {
        "preset": "laptop",
        "batch": given.batch,
        "threads": given.threads,
        "samples": counted,
        "dense_parameters": sum(parameter.numel() for _, parameter in sides["fused"].model.dense_parameters()),
        "samples_per_s": {name: round(counted / seconds, 1) for name, seconds in wall.items()},
        "samples_per_cpu_s": {name: round(counted / seconds, 1) for name, seconds in cpu.items()},
        "ratio": round(cpu["plain"] / cpu["fused"], 2),
        "beam_ms": beam_ms(sides["fused"].model, sides["fused"].vocabulary, rows[0].context, 60),
    }
    for name in sides:
        print(f"{name:6} {result['samples_per_s'][name]:8} samples/s, {result['samples_per_cpu_s'][name]:8} per CPU second")
    print(f"fused is {result['ratio']} times as fast per CPU second; beam 32 x {len(CODES)}: {result['beam_ms']} ms")
    print(provenance.write("training", result, ("torch", "torchrec", "fbgemm-gpu-cpu"), given.out))


if __name__ == "__main__":
    main()
