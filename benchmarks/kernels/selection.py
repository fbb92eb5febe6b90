"""Selection of the best continuations on a CPU: `kernels.beam_topk` beside log-softmax, sum and one flat top-k, on the same logits.

    python -m benchmarks.kernels.selection [--out FILE]

Both sides take turns, round after round; the table has the median of each and of their ratio. Before anything is timed, the result is
compared bit for bit with a stable sort of all scores. The floor is one read of the logits, timed as their maximum.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import provenance
from kernels import beam_topk
from kernels.selection import reference

# requests, beams, codes, kept: the reference preset, halves of it, and the laptop preset
SHAPES = ((1, 512, 8192, 512), (1, 256, 8192, 256), (1, 128, 8192, 128), (8, 128, 8192, 128), (1, 32, 64, 32), (8, 32, 64, 32))
COLUMNS = ("requests", "beams", "codes", "kept", "floor_ms", "ours_ms", "naive_ms", "naive_over_ours", "ours_over_floor")


def naive(logits: Tensor, cumulative: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """What eager code does: every candidate is normalised, summed and ranked."""
    scores = (torch.log_softmax(logits, -1) + cumulative.unsqueeze(-1)).flatten(1)
    best, place = scores.topk(k)
    return best, place // logits.shape[2], place % logits.shape[2]


def milliseconds(run: Callable[[], object]) -> float:
    """Of the second of two calls: a search ranks logits that it has just written, not what another side has pushed out of the caches."""
    run()
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) * 1000


def measure(shape: tuple[int, int, int, int], rounds: int) -> dict[str, float]:
    """Medians over rounds in which all sides run one after the other.

    Raises:
        AssertionError: the fast path is not the definition.
    """
    requests, beams, codes, kept = shape
    generator = torch.Generator().manual_seed(0)
    inputs = [
        (torch.randn(requests, beams, codes, generator=generator), torch.randn(requests, beams, generator=generator)) for _ in range(4)
    ]
    for logits, cumulative in inputs:
        for found, expected in zip(
            beam_topk(logits, cumulative, kept), reference.beam_topk(logits, cumulative, kept, normalize=True), strict=True
        ):
            assert torch.equal(found, expected), f"{shape}: the fast path differs from the definition"
    times: dict[str, list[float]] = {"floor": [], "ours": [], "naive": []}
    for turn in range(rounds):
        logits, cumulative = inputs[turn % len(inputs)]
        times["floor"].append(milliseconds(logits.max))
        times["ours"].append(milliseconds(lambda x=logits, c=cumulative: beam_topk(x, c, kept)))
        times["naive"].append(milliseconds(lambda x=logits, c=cumulative: naive(x, c, kept)))
    floor, ours = statistics.median(times["floor"]), statistics.median(times["ours"])
    return {
        "floor_ms": floor,
        "ours_ms": ours,
        "naive_ms": statistics.median(times["naive"]),
        "naive_over_ours": statistics.median(n / o for n, o in zip(times["naive"], times["ours"], strict=True)),
        "ours_over_floor": ours / floor,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="turns of each side")
    parser.add_argument("--out", type=Path, default=provenance.RESULTS / "kernels_selection_cpu.csv")
    given = parser.parse_args()
    with torch.inference_mode():
        rows = [
            dict(zip(COLUMNS, shape, strict=False)) | measure(shape, given.rounds) for shape in tqdm(SHAPES, desc="selection", disable=None)
        ]
    provenance.write_table("kernels.selection", COLUMNS, rows, given.out)


if __name__ == "__main__":
    main()
