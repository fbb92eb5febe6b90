"""Training of the dense part alone, in every precision: what a GPU makes of it.

    python -m benchmarks.decoder_training --device cuda --out FILE

A step is forward, backward and AdamW of the decoder and of the context's projections, on random embeddings in the place of the tables'
(their gradients are computed, the tables' own optimizers are not): `benchmarks.training` measures the whole, on a CPU. Needs nothing but
torch and, for the compiled way, what its compiler needs (triton on a GPU, a C++ compiler on a CPU).

Ways, which take turns step by step at every preset and batch size:

* `float32`, and on a GPU `tf32`: products of float32 numbers, with TF32's 10-bit mantissas or without.
* `bfloat16`: under autocast; weights, their gradients and AdamW stay float32.
* `bfloat16 compiled`: the same, with `torch.compile` of every layer (compiled once for all layers and batch sizes) and of the loss.

The floor of a way is the matrix products of its step alone, with their tensors, on a GPU as one CUDA graph. `first_s` is what the first
step at a batch size took, compilation included; `step_mib` the GPU's memory for a step beside weights and AdamW's moments.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kernels import machine
from benchmarks.kernels.timing import Skip, compare, guarded, peak_mib, synchronize
from benchmarks.products import Recorded
from model.grm.decoder import Context, Decoder
from model.grm.loss import level_log_prob, token_cross_entropy
from model.grm.presets import PRESETS, GrmConfig

FLOOR_SECONDS = 0.4
"""Timing of the floors of one batch size."""


@dataclass(frozen=True)
class Way:
    """How the products of a step are computed."""

    name: str
    tf32: bool = False
    bfloat16: bool = False
    compiled: bool = False


WAYS = (
    Way("float32"),
    Way("tf32", tf32=True),
    Way("bfloat16", bfloat16=True),
    Way("bfloat16 compiled", bfloat16=True, compiled=True),
)


@dataclass(frozen=True)
class Batch:
    """Full histories: `sparse` float32[B, S, features * d_sparse], `targets` int64[B, L]."""

    sparse: Tensor
    targets: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Row:
    """What one way reached at one batch size, or why it did not."""

    preset: str
    batch: int
    way: str
    samples_per_s: float | None = None
    step_ms: float | None = None
    step_p99_ms: float | None = None
    floor_samples_per_s: float | None = None
    share_of_floor: float | None = None
    first_s: float | None = None
    step_mib: float | None = None
    reason: str = ""


class Dense(nn.Module):
    """The dense part of the model: the context's projections (as in `model.grm.context`), decoder, heads and loss."""

    def __init__(self, config: GrmConfig) -> None:
        super().__init__()
        self.config = config
        self.widen = nn.Linear(features(config) * config.d_sparse, config.context_hidden)
        self.project = nn.Linear(config.context_hidden, config.d_context)
        self.norm = nn.RMSNorm(config.d_head)
        self.decoder = Decoder(config)
        self.decoder.reset_parameters()

    def forward(self, batch: Batch) -> Tensor:
        tokens: Tensor = self.project(functional.silu(self.widen(batch.sparse)))
        keys = self.norm(tokens.float()).unsqueeze(1)  # torch's fused norm takes no bfloat16 beside a float32 gain
        bias = keys.new_zeros(len(keys), 1, 1, keys.shape[2])
        hidden, _ = self.decoder(self.decoder.embed_all(batch.targets), Context((keys,), (keys,), bias))
        return self.loss(hidden, batch.targets, batch.weight)

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        logits = [self.decoder.logits(hidden[:, 0, level], level) for level in range(self.config.levels)]
        return token_cross_entropy(level_log_prob(logits, targets), weight)


class Trainee:
    """One way's weights and optimizer; at one seed those of all ways begin equal."""

    def __init__(self, config: GrmConfig, way: Way, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.way, self.device = way, device
        self.model = Dense(config).to(device)
        if way.compiled:
            for block in self.model.decoder.blocks:
                block.compile(dynamic=True)
            self.model.loss = torch.compile(self.model.loss, dynamic=True)  # type: ignore[method-assign]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)

    def step(self, batch: Batch) -> Tensor:
        """Learn a batch; returns its loss, float[]."""
        torch.set_float32_matmul_precision("high" if self.way.tf32 else "highest")
        self.optimizer.zero_grad(set_to_none=True)
        embeddings = batch.sparse.detach().requires_grad_()  # their gradients are what the tables learn from
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.way.bfloat16):
            loss: Tensor = self.model(Batch(embeddings, batch.targets, batch.weight))
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def features(config: GrmConfig) -> int:
    """User, item, a code of every level, kind, play, gap and rank."""
    return config.levels + 6


def batch_of(config: GrmConfig, rows: int, device: torch.device, seed: int) -> Batch:
    """Random embeddings of the profile and a full history, and random targets."""
    generator = torch.Generator().manual_seed(seed)
    sparse = torch.randn(rows, 1 + config.history, features(config) * config.d_sparse, generator=generator)
    targets = torch.stack([torch.randint(size, (rows,), generator=generator) for size in config.codes], 1)
    return Batch(sparse.to(device), targets.to(device), torch.ones(rows, device=device))


def measure(preset: str, config: GrmConfig, batches: Sequence[int], ways: Sequence[Way], device: torch.device, seconds: float) -> list[Row]:
    """All ways at all batch sizes of one preset; a way that cannot be run has a row with the reason."""
    trainees = {way.name: Trainee(config, way, device) for way in ways}
    rows = []
    for count in batches:
        batch = batch_of(config, count, device, count)
        firsts = {name: guarded(partial(first_s, trainee, batch)) for name, trainee in trainees.items()}
        steps = {name: stepping(trainees[name], batch) for name, taken in firsts.items() if not isinstance(taken, Skip)}
        timings = compare(steps, 1, device, seconds, graphs=False)
        floors = compare({name: floor(trainees[name], batch) for name in steps}, 1, device, FLOOR_SECONDS, graphs=True)
        for name, first in firsts.items():
            found = first if isinstance(first, Skip) else timings[name]
            if isinstance(found, Skip) or isinstance(first, Skip):
                rows.append(Row(preset, count, name, reason=found.reason if isinstance(found, Skip) else ""))
            else:
                least = floors[name]
                floor_us = None if isinstance(least, Skip) else least.p50_us
                rows.append(
                    Row(
                        preset,
                        count,
                        name,
                        samples_per_s=round(1e6 * count / found.p50_us, 1),
                        step_ms=round(found.p50_us / 1e3, 3),
                        step_p99_ms=round(found.p99_us / 1e3, 3),
                        floor_samples_per_s=None if floor_us is None else round(1e6 * count / floor_us, 1),
                        share_of_floor=None if floor_us is None else round(floor_us / found.p50_us, 3),
                        first_s=round(first, 2),
                        step_mib=step_mib(trainees[name], batch),
                    )
                )
            print(line(rows[-1]), flush=True)
    return rows


def first_s(trainee: Trainee, batch: Batch) -> float:
    """Seconds of one step, from call to finished."""
    synchronize(trainee.device)
    began = time.perf_counter()
    trainee.step(batch)
    synchronize(trainee.device)
    return time.perf_counter() - began


def step_mib(trainee: Trainee, batch: Batch) -> float | None:
    """Most memory that a step takes on top of what is kept between steps; None without a GPU."""
    if trainee.device.type != "cuda":
        return None
    trainee.optimizer.zero_grad(set_to_none=True)
    kept = torch.cuda.memory_allocated(trainee.device)
    _, most = peak_mib(partial(trainee.step, batch), trainee.device)
    return None if most is None else round(most - kept / 2**20, 1)


def stepping(trainee: Trainee, batch: Batch) -> Callable[[int], object]:
    return lambda index: trainee.step(batch)


def floor(trainee: Trainee, batch: Batch) -> Callable[[int], object]:
    """The products of a step, to be computed again; those of a compiled step are those of the step before it was compiled."""
    with torch.compiler.set_stance("force_eager"), Recorded() as recorded:
        trainee.step(batch)
    return lambda index: recorded.replay()


HEADINGS = ("preset", "batch", "way", "samples/s", "ms", "floor/s", "share", "first s", "MiB")
WIDTHS = (10, 6, 18, 11, 9, 11, 6, 8, 9)


def line(row: Row) -> str:
    """A row of the printed table."""
    told = (row.samples_per_s, row.step_ms, row.floor_samples_per_s, row.share_of_floor, row.first_s, row.step_mib)
    cells = [row.preset, row.batch, row.way, *("–" if each is None else each for each in told)]
    return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)) + (f"  {row.reason}" if row.reason else "")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--preset", action="append", choices=PRESETS, help="default both")
    parser.add_argument("--batch", type=int, action="append", help="samples a step; default 8, 64 and 512")
    parser.add_argument("--way", action="append", choices=[way.name for way in WAYS], help="default all that the device has")
    parser.add_argument("--seconds", type=float, default=2.0, help="timing of one batch size")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--out", type=Path, required=True, help="result file, JSON")
    given = parser.parse_args(arguments)
    try:
        device = machine.device(given.device)
    except machine.Unable as error:
        print(error, file=sys.stderr)
        return 2
    torch.set_num_threads(given.threads)
    ways = [way for way in WAYS if way.name in (given.way or [way.name]) and (device.type == "cuda" or not way.tf32)]
    print(" ".join(f"{heading:>{width}}" for heading, width in zip(HEADINGS, WIDTHS, strict=True)), flush=True)
    rows: list[Row] = []
    for name in given.preset or PRESETS:
        rows += measure(name, PRESETS[name], given.batch or (8, 64, 512), ways, device, given.seconds)
    result: dict[str, Any] = machine.origin(device, "decoder_training") | {"rows": [asdict(row) for row in rows]}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
