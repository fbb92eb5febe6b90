"""The whole search of the laptop preset on one thread of a CPU, beside plain PyTorch's two ways and PyTorch's matrix products alone.

    python -m benchmarks.kernels.search [--rounds N] [--out FILE]

All sides take turns, round after round in an order of chance, on the same contexts; before they are timed they find the same SIDs in
float32, and in bfloat16, where two correct searches differ near the cut, SIDs that are worth as much. bfloat16 is left out where the
processor does not multiply matrices of it. What is counted is the processor time of the one thread, which neighbours on a shared machine
disturb less than a clock on the wall; they still take its caches.
`products` is every matrix product with a weight that a search cannot do without, by PyTorch, on inputs that lie ready.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import linear
from tqdm import tqdm

from benchmarks import provenance
from benchmarks.kernels import eager, model
from benchmarks.kernels.agreement import Judge
from kernels.step import available
from model.grm.presets import PRESETS, GrmConfig

BATCHES = (1, 4, 8)
WIDTH = 32
POSITIONS = 33
PRECISIONS = (torch.float32, torch.bfloat16)
COLUMNS = (
    "precision",
    "batch",
    "products_ms",
    "ours_ms",
    "smart_ms",
    "naive_ms",
    "naive_over_ours",
    "smart_over_ours",
    "ours_over_products",
)


def products(config: GrmConfig, batch: int, dtype: torch.dtype) -> Callable[[], None]:
    """The products with weights of a search: one row per request at the first level, `WIDTH` at every other."""
    d, kv = config.d_model, 2 * config.self_groups * config.d_head
    shapes = [(d, d), (d, d), (d + kv, d), (d, d), (config.ffn, d), (d, config.ffn)]
    layers = [[torch.randn(shape, dtype=dtype) for shape in shapes] for _ in range(config.layers)]
    heads = [torch.randn(size, d, dtype=dtype) for size in config.codes]
    inputs = {(rows, width): torch.randn(rows, width, dtype=dtype) for rows in (batch, batch * WIDTH) for width in (d, config.ffn)}

    def run() -> None:
        for level, head in enumerate(heads):
            rows = batch if level == 0 else batch * WIDTH
            for weights in layers:
                for weight in weights:
                    linear(inputs[rows, weight.shape[1]], weight)
            linear(inputs[rows, d], head)

    return run


def measure(batch: int, rounds: int, dtype: torch.dtype) -> dict[str, float]:
    """Medians of processor milliseconds, and of the ratios within a round.

    Raises:
        AssertionError: the sides do not find the same.
    """
    config, device = PRESETS["laptop"], torch.device("cpu")
    judge = model.decoder(config, device, torch.float32)
    ours_model = model.decoder(config, device, torch.float32)
    ours_model.products = dtype
    plain = model.decoder(config, device, dtype)
    contexts = model.contexts(config, batch, POSITIONS, device, torch.float32)
    plainly = contexts if dtype == torch.float32 else model.contexts(config, batch, POSITIONS, device, dtype)
    widths = [WIDTH] * config.levels
    alone = products(config, batch, dtype)
    sides: dict[str, Callable[[int], object]] = {
        "products": lambda index: alone(),
        "ours": model.ours(ours_model, contexts, widths),
        "smart": lambda index: eager.search(plain, plainly[index], widths, eager.SMART),
        "naive": lambda index: eager.search(plain, plainly[index], widths, eager.NAIVE),
    }
    found = model.ours(ours_model, contexts, widths)(0)
    for style in (eager.NAIVE, eager.SMART):
        expected = eager.search(plain, plainly[0], widths, style)
        wrong = Judge(judge, model.last(contexts[0]), dtype).error(found, expected)
        same = dtype != torch.float32 or torch.equal(found[0], expected[0])
        assert wrong is None and same, f"batch {batch}, {dtype}: {wrong or 'not the same SIDs'}"
    times: dict[str, list[float]] = {name: [] for name in sides}
    chance = random.Random(1)
    for turn in range(rounds):
        # After the products alone a side finds its weights gone from the cache, after a search it finds them there.
        for name, run in chance.sample(list(sides.items()), len(sides)):
            began = time.thread_time()
            run(turn % len(contexts))
            times[name].append((time.thread_time() - began) * 1000)

    def over(left: str, right: str) -> float:
        return statistics.median(a / b for a, b in zip(times[left], times[right], strict=True))

    medians = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    ratios = {"naive_over_ours": ("naive", "ours"), "smart_over_ours": ("smart", "ours"), "ours_over_products": ("ours", "products")}
    return medians | {name: over(*pair) for name, pair in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=24, help="turns of each side")
    parser.add_argument("--out", type=Path, default=provenance.RESULTS / "kernels_search_cpu.csv")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        precisions = [dtype for dtype in PRECISIONS if dtype == torch.float32 or available(dtype)]
        rows = [
            {"precision": str(dtype).removeprefix("torch."), "batch": batch} | measure(batch, given.rounds, dtype)
            for dtype, batch in tqdm(list(itertools.product(precisions, BATCHES)), desc="search", disable=None)
        ]
    provenance.write_table("kernels.search", COLUMNS, rows, given.out)


if __name__ == "__main__":
    main()
