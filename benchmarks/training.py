"""Training with fused tables, beside the same model on plain torch tables and `torch.optim`, in turns in one run.

    python -m benchmarks.training [--preset laptop|reference]... [--rows N] [--steps N] [--threads N]

Three sides from the same weights, a process each, which take turns step by step on the same synthetic samples; their first outputs are
compared before anything is timed.

* `fused`: TorchRec tables, row-wise Adagrad inside FBGEMM's backward pass: what the trainer runs.
* `plain`: `nn.EmbeddingBag` (the pooled `nn.Embedding`) with its default, dense gradients and `torch.optim.Adagrad`. Every step writes and
  reads every row of every table.
* `sparse`: the same with `sparse=True`, which only touches the rows that were read.

Then `fused` takes turns with itself in two other ways, in processes of their own:

* `bfloat16`: `trainer.precision: bfloat16`, products of numbers rounded to bfloat16.
* `compiled`: `torch.compile` of every decoder layer, which takes a C++ compiler and, in the first step, the time that `first_step_s` tells.

A step is what one optimizer step costs from samples to new weights: features, forward, backward, all optimizers, counts. `online` is the
learner's own step (score, search, learn, record). The floor is the step's matrix products alone, replayed with their tensors; memory is the
peak resident set of the side's process. Not measured: Kafka, checkpoints, publishing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks import provenance
from benchmarks.products import Recorded
from model.grm import PRESETS, Grm, GrmConfig, Query, Vocabulary, collate, preset
from model.online.step import LearnerConfig, OnlineLearner
from streaming.records import Context, HistoryEntry, Labels, Sample

SIDES = ("fused", "plain", "sparse")
WAYS = ("fused", "bfloat16", "compiled")
ITEMS, USERS = 200_000, 50_000
NOW = 1_700_000_000_000


@dataclass(frozen=True)
class Case:
    """One preset with its batches.

    Attributes:
        rows: of the table of videos; the other tables are the preset's.
        batch: samples of a training step; `online` of a step of the learner, 0 = not measured.
        steps: timed steps; two before them warm up.
    """

    preset: str
    rows: int
    batch: int
    online: int
    steps: int
    threads: int
    seed: int

    def config(self) -> GrmConfig:
        return preset(self.preset, PRESETS[self.preset].codes, item_rows=self.rows)


@dataclass(frozen=True)
class Looked:
    found: Tensor

    def values(self) -> Tensor:
        return self.found


class PlainTables(nn.Module):
    """What a fused collection computes, with `nn.EmbeddingBag`."""

    def __init__(self, tables: Mapping[str, Tensor], sparse: bool) -> None:
        super().__init__()
        self.embedding_bags = nn.ModuleDict(
            {
                name: nn.EmbeddingBag.from_pretrained(table.clone(), freeze=False, mode="sum", sparse=sparse, include_last_offset=True)
                for name, table in tables.items()
            }
        )

    def forward(self, features: KeyedJaggedTensor) -> Looked:
        parts = [self.embedding_bags[name](jagged.values(), jagged.offsets()) for name, jagged in features.to_dict().items()]
        return Looked(torch.cat(parts, 1))


class Together:
    """Two optimizers as one."""

    def __init__(self, dense: torch.optim.Optimizer, tables: torch.optim.Optimizer) -> None:
        self.dense, self.tables, self.param_groups = dense, tables, dense.param_groups
        self.grad_scale: Tensor | None = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.dense.zero_grad(set_to_none)
        self.tables.zero_grad(set_to_none)

    def step(self) -> None:
        self.dense.grad_scale = self.grad_scale  # type: ignore[attr-defined]
        self.dense.step()
        self.tables.step()


def vocabulary(config: GrmConfig, rng: np.random.Generator) -> Vocabulary:
    sids = np.stack([rng.integers(0, size, ITEMS) for size in config.codes], 1).astype(np.int32)
    return Vocabulary(np.arange(ITEMS), sids, rng.integers(5_000, 90_000, ITEMS), rng.integers(0, 500, ITEMS), config.codes)


def history(events: int, rng: np.random.Generator) -> Context:
    """Two watches, then a click on the last of them, and again."""
    items = rng.integers(0, ITEMS, events).tolist()
    entries = []
    for place in range(events):
        item = items[place - 1] if place % 3 == 2 else items[place]
        click = place % 3 == 2
        entries.append(HistoryEntry(item, NOW - place * 60_000, None if click else int(rng.integers(60_000)), ["click"] if click else []))
    return Context(entries)


def samples(count: int, events: int, rng: np.random.Generator) -> list[Sample]:
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
                context=history(events, rng),
            )
        )
    return found


def learner(side: str, config: GrmConfig, known: Vocabulary) -> OnlineLearner:
    """One side; the weights follow from the configuration's seed."""
    model = Grm(config)
    if side == "compiled":
        for block in model.decoder.blocks:
            block.compile(dynamic=True)
    made = OnlineLearner(model, known, LearnerConfig(precision="bfloat16" if side == "bfloat16" else "float32"))
    if side in WAYS:
        return made
    groups = []
    owners: tuple[tuple[Any, float], ...] = ((model.context, config.sparse_lr), (model.prior, config.prefix_lr))
    for owner, rate in owners:
        owner.tables = PlainTables({name: bag.weight.detach() for name, bag in owner.tables.embedding_bags.items()}, side == "sparse")
        groups.append({"params": list(owner.tables.parameters()), "lr": rate})
    # The fused implementation is torch's fastest; it does not take sparse gradients.
    tables = torch.optim.Adagrad(groups, fused=side == "plain")
    made.fitter.optimizer = Together(made.fitter.optimizer, tables)  # type: ignore[assignment]
    return made


class Side:
    """One side in its process: samples → steps, timed here."""

    def __init__(self, side: str, case: Case) -> None:
        torch.set_num_threads(case.threads)
        self.case, config = case, case.config()
        rng = np.random.default_rng(case.seed)
        self.known = vocabulary(config, rng)
        self.samples = samples(max((case.steps + 3) * case.batch, (case.steps // 4 + 2) * case.online), config.events, rng)
        self.imports_mb = peak_mb()
        self.learner = learner(side, config, self.known)

    def probe(self) -> list[list[float]]:
        with torch.no_grad():
            log_prob: list[list[float]] = self.learner.model.log_prob(self.batch(0)).tolist()
        return log_prob

    def batch(self, step: int) -> Any:
        rows = self.samples[step * self.case.batch : (step + 1) * self.case.batch]
        sids = [self.known.sid_of(row.item_id) or () for row in rows]
        return collate(rows, self.known, self.learner.model.config).with_targets(sids)

    def train(self, step: int) -> float:
        began = time.perf_counter()
        self.learner.fitter.step(self.batch(step), torch.ones(self.case.batch))
        return time.perf_counter() - began

    def online(self, step: int) -> float:
        began = time.perf_counter()
        self.learner.step(self.samples[step * self.case.online : (step + 1) * self.case.online])
        return time.perf_counter() - began

    def floor(self, step: int) -> float:
        with Recorded() as recorded:
            self.learner.fitter.step(self.batch(step), torch.ones(self.case.batch))
        taken = []
        for _ in range(5):
            began = time.perf_counter()
            recorded.replay()
            taken.append(time.perf_counter() - began)
        return min(taken)

    def memory(self) -> dict[str, float]:
        return {"peak_mb": peak_mb(), "without_model_mb": self.imports_mb}

    def dense_parameters(self) -> int:
        return sum(parameter.numel() for name, parameter in self.learner.model.dense_parameters() if ".tables." not in name)

    def beam_ms(self, rounds: int) -> dict[str, float]:
        """One request: collate, context, beam 32 at every level."""
        model, taken = self.learner.model, []
        for _ in range(rounds):
            began = time.perf_counter()
            model.beam(collate([Query(1, NOW, self.samples[0].context)], self.known, model.config), [32] * model.config.levels)
            taken.append((time.perf_counter() - began) * 1000)
        p50, p95 = np.percentile(taken[rounds // 10 :], (50, 95))
        return {"p50": round(float(p50), 2), "p95": round(float(p95), 2), "min": round(min(taken), 2)}


def peak_mb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def serve(side: str, case: Case, orders: Connection) -> None:
    """Do what is asked, until None is asked."""
    made = Side(side, case)
    orders.send("ready")
    while (order := orders.recv()) is not None:
        name, arguments = order
        orders.send(getattr(made, name)(*arguments))


class Remote:
    """A side in a process of its own, so that its memory is its own."""

    def __init__(self, side: str, case: Case) -> None:
        context = multiprocessing.get_context("spawn")
        self._orders, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(side, case, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._orders.recv()

    def ask(self, name: str, *arguments: Any) -> Any:
        self._orders.send((name, arguments))
        return self._orders.recv()

    def end(self) -> None:
        self._orders.send(None)
        self._process.join()


def measure(case: Case) -> dict[str, Any]:
    """All sides of one preset, in turns."""
    sides = {name: Remote(name, case) for name in SIDES}
    first = {name: side.ask("probe") for name, side in sides.items()}
    for name in SIDES[1:]:
        np.testing.assert_allclose(first[name], first["fused"], rtol=1e-4, atol=1e-4)
    result: dict[str, Any] = asdict(case) | {"dense_parameters": sides["fused"].ask("dense_parameters")}
    seconds = turns(sides, "train", case.steps, case.preset)
    speed = speeds(seconds, case.batch)
    floor_s = sides["fused"].ask("floor", case.steps + 2)
    result |= {
        "samples_per_s": speed,
        "ratio": {name: round(speed["fused"] / speed[name], 2) for name in SIDES[1:]},
        "floor_samples_per_s": round(case.batch / floor_s, 1),
        "share_of_floor": round(floor_s / float(np.median(seconds["fused"])), 3),
    }
    if case.online:
        seconds = turns(sides, "online", case.steps // 4, f"{case.preset} online")
        result["online_samples_per_s"] = speeds(seconds, case.online)
    result["memory"] = {name: side.ask("memory") for name, side in sides.items()}
    result["beam_ms"] = sides["fused"].ask("beam_ms", 60 if case.online else 10)
    for name in SIDES[1:]:
        sides.pop(name).end()
    result["ways"] = ways(sides, case)
    for side in sides.values():
        side.end()
    return result


def ways(sides: dict[str, Remote], case: Case) -> dict[str, Any]:
    """The fused side in its other ways, which join `sides`."""
    sides |= {name: Remote(name, case) for name in WAYS[1:]}
    first = {name: round(sides[name].ask("train", 0), 2) for name in WAYS}
    seconds = turns(sides, "train", case.steps, f"{case.preset} ways")
    floor_s = sides["bfloat16"].ask("floor", case.steps + 2)
    return {
        "samples_per_s": speeds(seconds, case.batch),
        "first_step_s": first,
        "bfloat16_floor_samples_per_s": round(case.batch / floor_s, 1),
        "bfloat16_share_of_floor": round(floor_s / float(np.median(seconds["bfloat16"])), 3),
    }


def speeds(seconds: Mapping[str, list[float]], samples: int) -> dict[str, float]:
    """Samples a second by side, of the median step."""
    return {name: round(samples / float(np.median(taken)), 1) for name, taken in seconds.items()}


def turns(sides: Mapping[str, Remote], what: str, steps: int, told: str) -> dict[str, list[float]]:
    """Seconds of every step after the second, by side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for step in range(steps + 2):
        for name, side in sides.items():
            taken = side.ask(what, step)
            if step >= 2:
                seconds[name].append(taken)
        if step % 10 == 9:
            print(f"{told}: step {step + 1} of {steps + 2}", flush=True)
    return seconds


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--preset", action="append", choices=("laptop", "reference"), help="default both")
    arguments.add_argument("--rows", type=int, default=1 << 20, help="of the table of videos")
    arguments.add_argument("--batch", type=int, default=32, help="samples a step")
    arguments.add_argument("--steps", type=int, default=40, help="timed at the laptop preset; an eighth at the reference preset")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, help="result file; default benchmarks/results/training.json")
    given = arguments.parse_args()
    results = {}
    for name in given.preset or ["laptop", "reference"]:
        small = name == "laptop"
        case = Case(
            name,
            given.rows,
            given.batch,
            128 if small else 0,
            given.steps if small else max(3, given.steps // 8),
            given.threads,
            given.seed,
        )
        results[name] = measure(case)
        print(json.dumps(results[name], indent=1))
    print(provenance.write("training", {"presets": results}, ("torch", "torchrec", "fbgemm-gpu-cpu"), given.out))


if __name__ == "__main__":
    main()
