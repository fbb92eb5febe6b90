"""The trie of ten million SIDs on a CPU: how long it takes to build, what it holds, and what a change and a step cost.

    python -m benchmarks.kernels.trie [--sids N] [--rounds N] [--out FILE]

Beside it the tables of STATIC (`benchmarks.kernels.static`) and a trie of Python dicts (of a tenth of the SIDs: it needs gigabytes for all).
SIDs are drawn as a skewed catalogue: the first code by Zipf's law (exponent 1.2), the second near a multiple of the first (1.3), the
others evenly.

* Bytes: of the arrays that a search reads. STATIC's are counted as its paper lays them out (a byte of mask and four of state for each pair of
  tokens; four bytes each for token, next state and row start below). The dicts' are what the process grew by. Peak: what it grew by while
  building, above the SIDs themselves.
* An update switches 10,000 random leaves off, or on again. Another thread searches meanwhile, each search in the trie that was current when
  it began, and checks that all it found was alive in that trie.
* A step is the choice of 512 continuations from the logits of 512 beams, with the children of those chosen, per level; all layouts must agree
  on the scores before they are timed. Share: of a step of ours with the vocabulary projection (768 wide) but without the decoder's layers,
  what the trie takes: mask, bitmask and children.
"""

from __future__ import annotations

import argparse
import csv
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
from benchmarks.kernels.static import Static
from kernels.projection import proj_pyramid, pyramid
from kernels.selection import beam_select
from kernels.trie import Trie

CODES, LEVELS, BEAMS, WIDTH = 8192, 4, 512, 768
CHANGED = 10_000
DICT_SHARE = 10
COLUMNS = (
    "layout", "sids", "nodes", "build_s", "megabytes", "megabytes_changed", "peak_megabytes", "update_p50_ms", "update_p99_ms",
    "search_alone_ms", "search_meanwhile_ms", "step_2_ms", "step_3_ms", "step_4_ms", "share_2", "share_3", "share_4",
)  # fmt: skip
Row = dict[str, Any]
Step = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def catalogue(count: int) -> Tensor:
    """SIDs int32[count, 4], not all of them different."""
    chance = np.random.default_rng(0)
    sids = np.empty((count, LEVELS), np.int32)
    sids[:, 0] = chance.zipf(1.2, count) % CODES
    sids[:, 1] = (sids[:, 0].astype(np.int64) * 131 + chance.zipf(1.3, count) % CODES) % CODES
    sids[:, 2:] = chance.integers(0, CODES, (count, 2))
    return torch.from_numpy(sids)


def memory(name: str) -> float:
    """Megabytes of this process: "VmRSS", or "VmHWM", the most since `watch_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


def built(make: Callable[[], Any]) -> tuple[Any, Row]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, began = memory("VmRSS"), time.perf_counter()
    made = make()
    return made, {"build_s": time.perf_counter() - began, "peak_megabytes": memory("VmHWM") - before, "grown": memory("VmRSS") - before}


def milliseconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) * 1000


def allowed(trie: Trie, node: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """As `kernels.projection` takes it: a row of a bitmask for each beam, and the bitmask."""
    rows = trie.allowed(level)
    if rows is not None:
        return node.int(), rows
    offsets, token = trie.children(node, level)
    words = torch.zeros(len(node), CODES // 32, dtype=torch.int32)
    place = torch.repeat_interleave(offsets.diff()) * (CODES // 32) + token // 32
    words.view(-1).index_add_(0, place, torch.ones_like(token, dtype=torch.int32) << (token % 32).int())
    return torch.arange(len(node), dtype=torch.int32), words


def choose(trie: Trie, node: Tensor, logits: Tensor, cumulative: Tensor, width: int, level: int) -> tuple[Tensor, ...]:
    """Score, token and node of the best continuations [1, width] of beams [1, W]."""
    row, bitmask = allowed(trie, node.flatten(), level)
    score, parent, token = beam_select(pyramid(logits, node=row, bitmask=bitmask), cumulative, width)
    return score, token, trie.child(node.gather(1, parent.long()), token, level)


class Searching(threading.Thread):
    """Searches, one after the other, in the trie that is current when each begins."""

    def __init__(self, trie: Trie, rounds: int = 0) -> None:
        super().__init__()
        self.trie, self.rounds, self.done, self.times = trie, rounds, threading.Event(), list[float]()
        self.failed: BaseException | None = None
        self._logits = torch.randn(128, CODES, generator=torch.Generator().manual_seed(1))

    def run(self) -> None:
        try:
            with torch.inference_mode():
                while not self.done.is_set() and (not self.rounds or len(self.times) < self.rounds):
                    self.times.append(milliseconds(self._search))
        except BaseException as error:
            self.failed = error

    def _search(self) -> None:
        trie = self.trie
        node, score = trie.root(1), torch.zeros(1, 1)
        for level in range(LEVELS):
            score, _, node = choose(trie, node, self._logits[: node.shape[1]], score, 128, level)
        leaves = node[score > -torch.inf]
        assert len(leaves) and bool(trie.levels[-1].alive(leaves).all()), "a search found what was not alive in its trie"


def updates(trie: Trie, rounds: int) -> Row:
    alone = Searching(trie, rounds)
    alone.run()
    searching = Searching(trie)
    searching.start()
    generator = torch.Generator().manual_seed(2)
    times = []
    for _ in range(rounds):
        leaves = torch.randint(0, len(trie), (CHANGED,), generator=generator)
        for alive in (False, True):
            began = time.perf_counter()
            searching.trie = searching.trie.set_alive(leaves, alive)
            times.append((time.perf_counter() - began) * 1000)
    searching.done.set()
    searching.join()
    for one in (alone, searching):
        if one.failed is not None:
            raise one.failed
    changed = trie.set_alive(torch.zeros(1, dtype=torch.int64), False)
    return {
        "update_p50_ms": statistics.median(times),
        "update_p99_ms": float(np.percentile(times, 99)),
        "search_alone_ms": statistics.median(alone.times),
        "search_meanwhile_ms": statistics.median(searching.times),
        "megabytes_changed": changed.nbytes / 1e6,
    }


def shares(trie: Trie, prefixes: Tensor, rounds: int) -> Row:
    """What the trie takes of a step that begins with the projection."""
    generator = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(BEAMS, WIDTH, generator=generator), torch.randn(CODES, WIDTH, generator=generator) / WIDTH**0.5
    cumulative = torch.randn(1, BEAMS, generator=generator)
    row: Row = {}
    for level in range(1, LEVELS):
        node, found = trie.walk(prefixes[:, :level]), []
        for _ in range(rounds):
            began = time.perf_counter()
            beam, bitmask = allowed(trie, node, level)
            masked = time.perf_counter()
            _, parent, token = beam_select(proj_pyramid(hidden, weight, node=beam, bitmask=bitmask), cumulative, BEAMS)
            selected = time.perf_counter()
            trie.child(node[parent.long()], token, level)
            ended = time.perf_counter()
            found.append((masked - began + ended - selected) / (ended - began))
        row[f"share_{level + 1}"] = statistics.median(found)
    return row


def dict_step(root: dict[int, Any], prefixes: Tensor, logits: Tensor, cumulative: Tensor) -> tuple[Tensor, ...]:
    nodes = []
    for prefix in prefixes.tolist():
        node = root
        for token in prefix:
            node = node[token]
        nodes.append(node)
    forbidden = torch.ones_like(logits, dtype=torch.bool)
    for row, node in enumerate(nodes):
        forbidden[row, list(node)] = False
    scores = torch.log_softmax(logits, -1).masked_fill(forbidden, -torch.inf) + cumulative.view(-1, 1)
    return (scores.flatten().topk(BEAMS).values.unsqueeze(0),)


def dicts(sids: Tensor) -> dict[int, Any]:
    root: dict[int, Any] = {}
    for first, second, third, last in sids.tolist():
        root.setdefault(first, {}).setdefault(second, {}).setdefault(third, {})[last] = None
    return root


def steps(name: str, level: int, run: Step, expected: Tensor | None, rounds: int) -> tuple[Row, Tensor]:
    """Median time of a step.

    Raises:
        AssertionError: the scores are not those expected.
    """
    generator = torch.Generator().manual_seed(level)
    logits, cumulative = torch.randn(BEAMS, CODES, generator=generator), torch.randn(1, BEAMS, generator=generator)
    score = run(logits, cumulative)[0]
    if expected is not None:
        torch.testing.assert_close(score, expected, atol=1e-4, rtol=0, msg=f"{name}, level {level + 1}: other scores")
    return {f"step_{level + 1}_ms": statistics.median(milliseconds(lambda: run(logits, cumulative)) for _ in range(rounds))}, score


def static_megabytes(tables: Static) -> float:
    edges = [len(token) for token in tables.tokens]
    return (CODES * CODES * 5 + sum(4 * len(start) for start in tables.starts[2:]) + sum(8 * count for count in edges[2:])) / 1e6


def measure(count: int, rounds: int) -> list[Row]:
    sids = catalogue(count)
    trie, ours = built(lambda: Trie.build(sids, (CODES,) * LEVELS))
    nodes = "/".join(str(level.edges) for level in trie.levels)
    ours |= {"layout": "ours", "sids": len(trie), "nodes": nodes, "megabytes": trie.nbytes / 1e6}
    torch.set_num_threads(1)  # one core searches, the other changes
    ours |= updates(trie, rounds)
    torch.set_num_threads(2)
    # Distinct beams of a skewed catalogue: as a search that follows the likely has them.
    prefixes = sids[torch.randperm(len(sids), generator=torch.Generator().manual_seed(4))[: BEAMS * DICT_SHARE]][:BEAMS].long()
    ours |= shares(trie, prefixes, rounds)
    expected = {}
    for level in range(1, LEVELS):
        node = trie.walk(prefixes[:, :level]).view(1, -1)
        row, expected[level] = steps(
            "ours", level, lambda x, c, n=node, l=level: choose(trie, n, x, c, BEAMS, l), None, rounds  # type: ignore[misc]
        )
        ours |= row
    kept = sids[: count // DICT_SHARE]
    small = Trie.build(torch.cat([kept, prefixes.int()]), (CODES,) * LEVELS)
    tables, other = built(lambda: Static(trie.sids, CODES))
    other |= {"layout": "STATIC-style", "sids": len(trie), "megabytes": static_megabytes(tables)}
    for level in range(1, LEVELS):
        node = trie.walk(prefixes[:, :level]).view(1, -1)
        row, _ = steps(
            "STATIC", level, lambda x, c, n=node, l=level: tables.step(x.unsqueeze(0), c, n, BEAMS, l), expected[level], rounds  # type: ignore[misc]
        )
        other |= row
    del tables
    root, python = built(lambda: dicts(torch.cat([kept, prefixes.int()])))
    python |= {"layout": "Python dicts", "sids": len(small), "megabytes": python["grown"]}
    for level in range(1, LEVELS):
        node = small.walk(prefixes[:, :level]).view(1, -1)
        wanted = choose(small, node, *_inputs(level), BEAMS, level)[0]
        row, _ = steps("dicts", level, lambda x, c, l=level: dict_step(root, prefixes[:, :l], x, c), wanted, rounds)  # type: ignore[misc]
        python |= row
    return [ours, other, python]
