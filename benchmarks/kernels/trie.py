"""The trie of ten million SIDs on a CPU: how long it takes to build, what it holds, and what a change and a step cost.

    python -m benchmarks.kernels.trie [--sids N] [--rounds N] [--out FILE]

Beside it, in the same run, the tables of STATIC (`benchmarks.kernels.static`) and one sorted array of whole SIDs, searched by bisection.
SIDs are drawn as a skewed catalogue: the first code by Zipf's law (exponent 1.2), the second near a multiple of the first (1.3), the others
evenly.

* Bytes: of the arrays that a search reads. STATIC's are counted as its paper lays them out: a byte of mask and four of state for each pair
  of tokens; four bytes each for token, next state and row start below. Peak: what the process grew by while building, above the SIDs.
* An update switches 10,000 random leaves off, or on again. Each of five appends brings 10,000 new SIDs, into a small trie beside the large
  one (`kernels.trie.layered`); a merge makes one trie of both. Another thread searches meanwhile, each search in the trie that was current
  when it began, and checks that all it found was alive in that trie. The floor of an update is a copy of the bits that it makes anew, that
  of a merge a copy of the whole trie. The sorted array's update copies a byte per SID; STATIC's builds all again.
* A step is the choice of 512 continuations from the logits of 512 different beams, with the children of those chosen, per level; all
  layouts must agree on the scores before they are timed.
* Share: what the trie takes, all levels (listing what is allowed, forbidding the rest, children), of a whole search of the reference
  preset, width 512, context 512. "layered": with the small trie of 50,000 beside.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import provenance
from benchmarks.kernels import model
from benchmarks.kernels.static import Static
from kernels.bits import unpack
from kernels.selection import logits_select
from kernels.trie import Prefixes, Trie
from kernels.trie.layered import Layered
from model.grm.presets import PRESETS

CODES, LEVELS, BEAMS, CONTEXT = 8192, 4, 512, 512
CHANGED, APPENDS = 10_000, 5
SEARCHED = 128
"""Beams of the searches during updates."""
Row = dict[str, Any]
Step = Callable[[Tensor, Tensor, int], tuple[Tensor, ...]]
"""Scores first, from logits [512, codes] and cumulative scores [1, 512] of a level."""


def catalogue(count: int) -> Tensor:
    """SIDs int32[count, 4], not all of them different."""
    chance = np.random.default_rng(0)
    sids = np.empty((count, LEVELS), np.int32)
    sids[:, 0] = chance.zipf(1.2, count) % CODES
    sids[:, 1] = (sids[:, 0].astype(np.int64) * 131 + chance.zipf(1.3, count) % CODES) % CODES
    sids[:, 2:] = chance.integers(0, CODES, (count, 2))
    return torch.from_numpy(sids)


class SortedArray:
    """The SIDs, each as one number, ascending: a prefix is a range of them, and what may follow it is the next code of all in there."""

    def __init__(self, sids: Tensor) -> None:
        self._worth = CODES ** torch.arange(LEVELS - 1, -1, -1)
        self._sids = torch.unique((sids * self._worth).sum(1))
        self._alive = torch.ones(len(self._sids), dtype=torch.bool)

    @property
    def nbytes(self) -> int:
        return self._sids.nbytes + self._alive.nbytes

    def changed(self, rows: Tensor, alive: bool) -> Tensor:
        """What is alive after a change."""
        after = self._alive.clone()
        after[rows] = alive
        return after

    def step(self, prefixes: Tensor, logits: Tensor, cumulative: Tensor, level: int) -> tuple[Tensor, ...]:
        """Score [1, 512], parent and token of the best continuations of prefixes int64[512, level]."""
        packed, worth = (prefixes * self._worth[:level]).sum(1), int(self._worth[level - 1])
        first, end = torch.searchsorted(self._sids, packed), torch.searchsorted(self._sids, packed + worth)
        owner = torch.repeat_interleave(end - first)
        row = torch.arange(len(owner)) + (first - (end - first).cumsum(0) + (end - first))[owner]
        kept = self._alive[row]
        allowed = torch.zeros_like(logits, dtype=torch.bool)
        allowed[owner[kept], self._sids[row[kept]] // self._worth[level] % CODES] = True
        scores = torch.log_softmax(logits, -1).masked_fill(~allowed, -torch.inf) + cumulative.view(-1, 1)
        best, place = scores.flatten().topk(BEAMS)
        return best.unsqueeze(0), place // CODES, place % CODES


def memory(name: str) -> float:
    """Megabytes of this process: "VmRSS", or "VmHWM", the most since `built` began."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


def built(make: Callable[[], Any]) -> tuple[Any, Row]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, began = memory("VmRSS"), time.perf_counter()
    made = make()
    return made, {"build_s": time.perf_counter() - began, "peak_megabytes": memory("VmHWM") - before}


def milliseconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) * 1000


def median(run: Callable[[], object], rounds: int) -> float:
    return statistics.median(milliseconds(run) for _ in range(rounds))


def allowed(trie: Prefixes, node: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """What may follow each beam, as `model.grm.beam` gives it to `kernels.selection`: a row int32[M] of a bitmask, and that."""
    bitmask = trie.allowed(level)
    if bitmask is not None:
        return node.int(), bitmask
    return torch.arange(len(node), dtype=torch.int32), trie.words(node, level)


def choose(trie: Prefixes, node: Tensor, logits: Tensor, cumulative: Tensor, width: int, level: int) -> tuple[Tensor, ...]:
    """Score, parent, token and node of the best continuations [1, width] of beams [1, W]."""
    row, bitmask = allowed(trie, node.flatten(), level)
    score, parent, token = logits_select(logits, cumulative, width, node=row, bitmask=bitmask)
    return score, parent.long(), token.long(), trie.child(node.gather(1, parent.long()), token, level)


class Searching(threading.Thread):
    """Searches, one after the other, in the trie that is current when each begins."""

    def __init__(self, trie: Trie | Layered, rounds: int = 0) -> None:
        super().__init__()
        self.trie, self.rounds, self.done, self.times = trie, rounds, threading.Event(), list[float]()
        self.failed: BaseException | None = None
        self._logits = torch.randn(SEARCHED, CODES, generator=torch.Generator().manual_seed(1))

    def run(self) -> None:
        try:
            with torch.inference_mode():
                while not self.done.is_set() and (not self.rounds or len(self.times) < self.rounds):
                    self.times.append(milliseconds(self._search))
        except BaseException as error:
            self.failed = error

    def _search(self) -> None:
        trie = self.trie
        node, score, codes = trie.root(1), torch.zeros(1, 1), torch.zeros(1, 0, dtype=torch.int64)
        for level in range(LEVELS):
            score, parent, token, node = choose(trie, node, self._logits[: node.shape[1]], score, SEARCHED, level)
            codes = torch.cat([codes[parent[0]], token.view(-1, 1)], 1)
        found = codes[score[0] > -torch.inf]
        assert len(found) and bool(trie.contains(found).all()), "a search found what was not alive in its trie"


def updates(trie: Trie, rounds: int) -> tuple[Row, Layered]:
    """Times of changes while another thread searches, of searches with and without them, and the floors of the changes."""
    alone = Searching(trie, rounds)
    alone.run()
    searching = Searching(trie)
    times: dict[str, list[float]] = {"update": [], "append": [], "merge": []}

    def change(name: str, make: Callable[[], Trie | Layered]) -> None:
        began = time.perf_counter()
        searching.trie = make()
        times[name].append((time.perf_counter() - began) * 1000)

    searching.start()
    generator = torch.Generator().manual_seed(2)
    now = trie
    for _ in range(rounds):
        leaves = torch.randint(0, len(trie), (CHANGED,), generator=generator)
        for alive in (False, True):
            before = now
            change("update", lambda before=before, leaves=leaves, alive=alive: before.set_alive(leaves, alive))  # type: ignore[misc]
            now = searching.trie  # type: ignore[assignment]
    layers = Layered.of(now)
    for _ in range(APPENDS):
        fresh = torch.randint(0, CODES, (CHANGED, LEVELS), generator=generator)
        change("append", lambda layers=layers, fresh=fresh: layers.append(fresh))  # type: ignore[misc]
        layers = searching.trie  # type: ignore[assignment]
    change("merge", layers.merged)
    searching.done.set()
    searching.join()
    for one in (alone, searching):
        if one.failed is not None:
            raise one.failed
    bits = [level.live for level in trie.levels]
    arrays = [tensor for level in trie.levels for tensor in level.tensors()]
    return {
        "update_p50_ms": statistics.median(times["update"]),
        "update_p99_ms": float(np.percentile(times["update"], 99)),
        "update_floor_ms": median(lambda: [tensor.clone() for tensor in bits], rounds),
        "append_p50_ms": statistics.median(times["append"]),
        "append_most_ms": max(times["append"]),
        "merge_ms": times["merge"][0],
        "merge_floor_ms": median(lambda: [tensor.clone() for tensor in arrays], rounds),
        "megabytes_layered": layers.nbytes / 1e6,
        "search_alone_ms": statistics.median(alone.times),
        "search_meanwhile_ms": statistics.median(searching.times),
        "searches_meanwhile": len(searching.times),
    }, layers


def shares(tries: dict[str, Trie | Layered], prefixes: list[Tensor], rounds: int) -> Row:
    """What a trie takes of a whole search."""
    config, device = PRESETS["reference"], torch.device("cpu")
    decoder = model.decoder(config, device, torch.float32)
    contexts = model.contexts(config, 1, CONTEXT, device, torch.float32, count=1)
    row: Row = {}
    for name, trie in tries.items():
        search = model.ours(decoder, contexts, [BEAMS] * LEVELS, trie)
        search(0)
        whole = median(lambda search=search: search(0), max(3, rounds // 4))  # type: ignore[misc]
        nodes = [trie.root(1)[0], *(walk(trie, prefix) for prefix in prefixes)]
        part = sum(of_trie(trie, node, level, rounds) for level, node in enumerate(nodes))
        row |= {f"search{name}_ms": whole, f"trie{name}_ms": part, f"share{name}": part / whole}
    return row


def walk(trie: Prefixes, prefixes: Tensor) -> Tensor:
    node = trie.root(len(prefixes))[:, 0]
    for level, token in enumerate(prefixes.unbind(1)):
        node = trie.child(node, token, level)
    return node


def of_trie(trie: Prefixes, node: Tensor, level: int, rounds: int) -> float:
    """Milliseconds of the trie's calls at a level, and of its bits in the selection."""
    logits, cumulative = torch.randn(len(node), CODES, generator=torch.Generator().manual_seed(level)), torch.zeros(1, len(node))
    row, bitmask = allowed(trie, node, level)
    asked = [
        lambda: allowed(trie, node, level),
        lambda: logits_select(logits, cumulative, BEAMS, node=row, bitmask=bitmask),
        lambda: logits_select(logits, cumulative, BEAMS),
    ]
    if level + 1 < LEVELS:  # a search has no use for leaves
        follow = unpack(trie.words(node, level), CODES).nonzero()
        parent, token = follow[torch.linspace(0, len(follow) - 1, BEAMS).long()].unbind(1)
        parent = node[parent]
        asked.append(lambda: trie.child(parent, token, level))
    listing, masked, bare, *children = (
        statistics.median(times) for times in zip(*([milliseconds(one) for one in asked] for _ in range(rounds)), strict=True)
    )
    return listing + masked - bare + sum(children)


def steps(name: str, run: Step, expected: list[Tensor] | None, rounds: int) -> tuple[Row, list[Tensor]]:
    """Median time of a step per level, and its scores.

    Raises:
        AssertionError: the scores are not those expected.
    """
    row, scores = {}, []
    for level in range(1, LEVELS):
        generator = torch.Generator().manual_seed(level)
        logits, cumulative = torch.randn(BEAMS, CODES, generator=generator), torch.randn(1, BEAMS, generator=generator)
        scores.append(run(logits, cumulative, level)[0])
        if expected is not None:
            torch.testing.assert_close(scores[-1], expected[level - 1], atol=1e-4, rtol=0, msg=f"{name}, level {level + 1}: other scores")
        row[f"step_{level + 1}_ms"] = median(lambda x=logits, c=cumulative, at=level: run(x, c, at), rounds)  # type: ignore[misc]
    return row, scores


def static_megabytes(tables: Static) -> float:
    edges = [len(token) for token in tables.tokens]
    return (CODES * CODES * 5 + sum(4 * len(start) for start in tables.starts[2:]) + sum(8 * count for count in edges[2:])) / 1e6


def beams(sids: Tensor) -> list[Tensor]:
    """Different prefixes int64[512, level] for every level but the first, of SIDs drawn as they come: popular ones are likelier."""
    drawn = sids[torch.randperm(len(sids), generator=torch.Generator().manual_seed(4))[: 100 * BEAMS]].long()
    found = []
    for level in range(1, LEVELS):
        prefixes, first = np.unique(drawn[:, :level].numpy(), axis=0, return_index=True)
        found.append(torch.from_numpy(prefixes[np.argsort(first)[:BEAMS]]))
    return found


def measure(count: int, rounds: int) -> list[Row]:
    """A row per layout."""
    sids = catalogue(count)
    prefixes = beams(sids)
    trie, ours = built(lambda: Trie.build(sids, (CODES,) * LEVELS))
    nodes = [trie.walk(prefix) for prefix in prefixes]
    edges = "/".join(str(level.edges) for level in trie.levels)
    ours |= {"layout": "ours", "sids": len(trie), "nodes": edges, "megabytes": trie.nbytes / 1e6}
    ours["megabytes_changed"] = trie.set_alive(torch.zeros(1, dtype=torch.int64), False).nbytes / 1e6
    torch.set_num_threads(1)  # one core searches, the other changes
    changed, layers = updates(trie, rounds)
    torch.set_num_threads(2)
    ours |= changed | shares({"": trie, "_layered": layers}, prefixes, rounds)
    row, scores = steps("ours", lambda x, c, level: choose(trie, nodes[level - 1].unsqueeze(0), x, c, BEAMS, level), None, rounds)
    ours |= row

    array, plain = built(lambda: SortedArray(sids))
    rows = torch.randint(0, len(trie), (CHANGED,), generator=torch.Generator().manual_seed(2))
    plain |= {"layout": "sorted array", "sids": len(trie), "megabytes": array.nbytes / 1e6}
    plain["update_p50_ms"] = median(lambda: array.changed(rows, False), rounds)
    plain |= steps("sorted array", lambda x, c, level: array.step(prefixes[level - 1], x, c, level), scores, rounds)[0]

    tables, static = built(lambda: Static(trie.sids, CODES))
    static |= {
        "layout": "STATIC-style",
        "sids": len(trie),
        "megabytes": static_megabytes(tables),
        "update_p50_ms": 1000 * static["build_s"],
    }
    states = [node.unsqueeze(0) for node in nodes]
    static |= steps("STATIC", lambda x, c, level: tables.step(x.unsqueeze(0), c, states[level - 1], BEAMS, level), scores, rounds)[0]
    return [ours, plain, static]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sids", type=int, default=10_000_000, help="SIDs drawn; a few of them are equal")
    parser.add_argument("--rounds", type=int, default=20, help="how often each thing is done")
    parser.add_argument("--out", type=Path, default=provenance.RESULTS / "kernels_trie_cpu.json")
    given = parser.parse_args()
    torch.set_num_threads(2)
    with torch.inference_mode():
        rows = measure(given.sids, given.rounds)
    provenance.write("kernels.trie", {"layouts": [_rounded(row) for row in rows]}, ("torch",), given.out)
    for name in dict.fromkeys(name for row in rows for name in row):
        print(f"{name:>20}", *(f"{_shown(row.get(name)):>32}" for row in rows))
    print(f"written: {given.out}")


def _rounded(row: Row) -> Row:
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}


def _shown(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
