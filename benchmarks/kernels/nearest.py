"""The nearest SIDs that exist, on a CPU: the exact search beside the descent in the trie, and plain torch's distances beside both.

    python -m benchmarks.kernels.nearest [--sids N ...] [--rounds N] [--out FILE]

A catalogue is made of vectors of 64 dimensions around 40 times 400 centres, popular ones dense, quantized by residual k-means (4 levels of
256 codes, fitted to 20,000 of them). Asked for are the 24 SIDs nearest to each of 32 that other such vectors have, as serving asks for a
beam; few of these exist. Recall@1: how often the nearest was found; recall@24: which share of the 24 nearest was; excess: by how much
farther than the nearest the best that was found is, on average. Bytes: of what is searched, the places or the trie.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import provenance
from kernels.nearest import nearest, nearest_sid
from kernels.trie import Trie
from model.sid import quantizer

WIDTH, LEVELS, CODES, SAMPLE = 64, 4, 256, 20_000
ASKED, NEIGHBOURS, BATCHES = 32, 24, 8
BEAMS = (1, 4, 16, 64, 256)
COLUMNS = ("sids", "search", "ms", "exact_over_this", "recall_1", "recall_24", "excess", "megabytes")
Found = tuple[Tensor, Tensor]


class World:
    """Centres, and codebooks fitted to a sample of vectors."""

    def __init__(self) -> None:
        self._chance = np.random.default_rng(0)
        self._large = 2 * self._chance.standard_normal((400, WIDTH), np.float32)
        self._small = self._chance.standard_normal((400, 40, WIDTH), np.float32)
        self._fitted = list(quantizer.fit(self._vectors(SAMPLE), LEVELS, CODES, seed=0))
        self.books = [torch.from_numpy(np.asarray(book)) for book in self._fitted]

    def sids(self, count: int) -> Tensor:
        """SIDs int64[count, 4] of random vectors."""
        parts = [quantizer.encode(self._vectors(min(SAMPLE, count - at)), self._fitted) for at in range(0, count, SAMPLE)]
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    def places(self, sids: Tensor) -> Tensor:
        """float32[M, 64]."""
        return torch.stack([book[sids[:, level]] for level, book in enumerate(self.books)]).sum(0)

    def _vectors(self, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        large = (400 * self._chance.random(count) ** 2).astype(int)
        centre = self._large[large] + self._small[large, self._chance.integers(0, 40, count)]
        return (centre + 0.5 * self._chance.standard_normal((count, WIDTH))).astype(np.float32)


def plain(wanted: Tensor, places: Tensor) -> Found:
    """Not exact: `cdist` rounds, and a top-k has no rule for ties."""
    distance, row = torch.cdist(wanted, places).topk(NEIGHBOURS, largest=False)
    return distance.double().square(), row


def measure(world: World, count: int, rounds: int) -> list[dict[str, object]]:
    """A row per way of searching."""
    trie = Trie.build(world.sids(count), (CODES,) * LEVELS)
    places = world.places(trie.sids)
    asked = [world.sids(ASKED) for _ in range(BATCHES)]
    reconstructed = [world.places(sids) for sids in asked]
    ways: dict[str, Callable[[int], Found]] = {
        "exact": lambda at: nearest(reconstructed[at], places, NEIGHBOURS),
        "cdist, topk": lambda at: plain(reconstructed[at], places),
    }
    for beam in BEAMS:
        kept = min(beam, NEIGHBOURS)
        ways[f"descent, beam {beam}"] = lambda at, beam=beam, kept=kept: nearest_sid(asked[at], trie, world.books, kept, beam=beam)  # type: ignore[misc]
    found = {name: [way(at) for at in range(BATCHES)] for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way(turn % BATCHES)
            times[name].append((time.perf_counter() - began) * 1000)
    exact = statistics.median(times["exact"])
    rows: list[dict[str, object]] = []
    for name, taken in times.items():
        ms = statistics.median(taken)
        size = trie.nbytes if name.startswith("descent") else places.nbytes
        row = {"sids": len(trie), "search": name, "ms": ms, "exact_over_this": exact / ms, "megabytes": size / 1e6}
        rows.append(row | quality(found[name], found["exact"]))
    return rows


def quality(found: list[Found], exact: list[Found]) -> dict[str, float]:
    distance, row = (torch.cat(part) for part in zip(*found, strict=True))
    least, true = (torch.cat(part) for part in zip(*exact, strict=True))
    shared = (row.unsqueeze(2) == true.unsqueeze(1)).any(1).double().mean()
    away = least[:, 0] > 0
    excess = (distance[away, 0] / least[away, 0]).sqrt().mean() - 1
    return {"recall_1": float((row[:, 0] == true[:, 0]).double().mean()), "recall_24": float(shared), "excess": float(excess)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sids", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="vectors of each catalogue")
    parser.add_argument("--rounds", type=int, default=24, help="turns of each side")
    parser.add_argument("--out", type=Path, default=provenance.RESULTS / "kernels_nearest_cpu.csv")
    given = parser.parse_args()
    with torch.inference_mode():
        world = World()
        rows = [row for count in tqdm(given.sids, desc="catalogues", disable=None) for row in measure(world, count, given.rounds)]
    provenance.write_table("kernels.nearest", COLUMNS, rows, given.out)


if __name__ == "__main__":
    main()
