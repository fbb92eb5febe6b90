"""What a search with products of bfloat16 finds beside the same search in float32, and what either takes.

    python -m benchmarks.search_precision --dir KUAIRAND [--targets N] [--tested N] [--seeds 0,1,2]

The laptop model learns the log's first positively watched videos, then both searches, 32 wide, answer for the next ones: how many of the
float32 search's ten best the other has too, how often each finds the video that was watched (its SID among the first 10, and 32), and
the milliseconds of the processor for batches, taking turns. Norms, attention, sums and scores are float32 in both (`kernels.step`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import provenance
from benchmarks.widths import learnt
from kernels.step import available
from model.grm import Grm
from model.grm.beam import Beams
from model.grm.inputs import GrmBatch, collate
from streaming.sources.kuairand import SourceError

WIDTH = 32
BEST = 10
CHUNK = 32
ROWS = (1, 4, 8, 16)
ROUNDS = 30
SIDES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def search(grm: Grm, side: str, batch: GrmBatch) -> Beams:
    grm.decoder.products = SIDES[side]
    grm.decoder.packed()
    return grm.beam(batch, [WIDTH] * grm.config.levels)


def quality(grm: Grm, batches: Sequence[GrmBatch], targets: torch.Tensor) -> dict[str, float]:
    """Shares of targets int64[N, L] found, and of the ten best that both have."""
    found = {side: torch.cat([search(grm, side, batch).sids for batch in batches]) for side in SIDES}
    told = {}
    for side, sids in found.items():
        hit = (sids == targets.unsqueeze(1)).all(-1)
        told |= {f"{side}_hit_{BEST}": hit[:, :BEST].any(1).float().mean().item(), f"{side}_hit_{WIDTH}": hit.any(1).float().mean().item()}
    one, two = (sids[:, :BEST] for sids in found.values())
    same = (one.unsqueeze(2) == two.unsqueeze(1)).all(-1).any(2)
    return told | {"kept_of_best": same.float().mean().item(), "same_first": (one[:, 0] == two[:, 0]).all(-1).float().mean().item()}


def times(grm: Grm, batch: GrmBatch) -> dict[str, float]:
    """Median processor milliseconds of a search of an encoded batch, each side with its weights packed beforehand."""
    taken: dict[str, list[float]] = {side: [] for side in SIDES}
    context, followed = grm.context(grm.resolve(batch)), grm.followers.read(batch.memory)
    for _ in range(ROUNDS):
        for side in SIDES:
            grm.decoder.products = SIDES[side]
            grm.decoder.packed()
            began = time.thread_time()
            grm.search(context, batch.memory, followed, [WIDTH] * grm.config.levels)
            taken[side].append((time.thread_time() - began) * 1000)
    return {f"{side}_ms": statistics.median(values[2:]) for side, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="folder of the KuaiRand files")
    parser.add_argument("--targets", type=int, default=20_000, help="that the model learns first")
    parser.add_argument("--tested", type=int, default=4_000, help="of the next ones")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, help="result file; default benchmarks/results/search_precision.json")
    given = parser.parse_args()
    if not available(torch.bfloat16):
        sys.exit("this processor does not multiply matrices of bfloat16 (AMX): there is nothing to compare")
    torch.set_num_threads(1)
    by_seed: list[dict[str, Any]] = []
    by_rows: list[dict[str, Any]] = []
    for seed in map(int, given.seeds.split(",")):
        try:
            built, grm, vocabulary, following = learnt(given.dir, given.targets, seed, given.tested)
        except SourceError as error:
            sys.exit(str(error))
        grm.eval()
        sid_of = dict(zip(built.item_ids.tolist(), built.sids.tolist(), strict=True))
        asked = [sample for sample in following if sample.item_id in sid_of]
        chunks = [asked[start : start + CHUNK] for start in range(0, len(asked), CHUNK)]
        with torch.no_grad():
            batches = [collate(chunk, vocabulary, grm.config) for chunk in tqdm(chunks, desc=f"seed {seed}", disable=None)]
            targets = torch.tensor([sid_of[sample.item_id] for sample in asked])
            by_seed.append({"seed": seed, "tested": len(asked)} | quality(grm, batches, targets))
            by_rows += [{"seed": seed, "rows": rows} | times(grm, collate(asked[:rows], vocabulary, grm.config)) for rows in ROWS]
    for line in (*by_seed, *by_rows):
        print("  ".join(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in line.items()))
    print(provenance.write("search_precision", {"width": WIDTH, "by_seed": by_seed, "by_rows": by_rows}, ("torch", "torchrec"), given.out))


if __name__ == "__main__":
    main()
