"""`/recommend` against beam width and load: the laptop model, its SID cache in a real Redis, real HTTP, one run.

    python -m benchmarks.recommend [--items N] [--rates 5,10,20,40] [--seconds S]

First the engine alone (features, beam search, cache, policy) by beam width and rows in a batch, beside the same rows one by one; then the
whole service under an open load from another process. Both are done twice: with this project's search, in the precision that serving
chooses by itself, and with the same model searched as one writes it in plain PyTorch. In float32, which the engine is timed in as well,
both must find the same SIDs before anything is timed. Impressions are made and encoded but not sent: there is no Kafka here. The model's
weights are random, so its beams hit what random beams hit; the time does not depend on that.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from torch import Tensor

from benchmarks import provenance
from benchmarks.kernels import eager
from benchmarks.local_redis import running_redis
from jobs.settings import Samples
from jobs.settings import Serving as Serves
from kernels.trie import Trie
from model.grm import Grm
from model.grm.beam import Beams
from model.grm.inputs import GrmBatch, Vocabulary
from model.grm.presets import preset
from model.sid import bundle
from serving.agreement import Agreement
from serving.app import Parts, create
from serving.batching import Batcher
from serving.cache import SidCache
from serving.candidates import Shelf
from serving.cards import Cards
from serving.degrade import Popularity
from serving.engine import Answered, Ask, Engine, History
from serving.events import EventLog
from serving.library import places
from serving.live import LiveView
from serving.metrics import Metrics
from serving.model import Codebook, ModelSlot, Person, Serving
from serving.policy import GrmPolicy, products
from serving.service import Recommender
from serving.stats import Stats
from serving.widths import WidthPolicy, Widths, ladder, name, uniform
from streaming.records import Context, HistoryEntry
from streaming.sources.simulator import World

WIDTHS = (8, 16, 32, 64, 128)
ROWS = (1, 4, 8)


class Discarding:
    """A producer that takes records and drops them."""

    def produce(self, topic: str, value: bytes, key: bytes, *, on_delivery: Callable[[Any, Any], None]) -> None:
        on_delivery(None, None)

    def poll(self, timeout: float) -> int:
        time.sleep(timeout)
        return 0

    def flush(self, timeout: float) -> int:
        return 0


class Histories:
    """Everybody's last 50 interactions, from memory: reading features has a benchmark of its own."""

    def __init__(self, items: Sequence[int]) -> None:
        self._items = items

    def histories(self, user_ids: Sequence[int]) -> list[list[HistoryEntry]]:
        now = time.time_ns() // 1_000_000
        return [
            [HistoryEntry(item, now - 60_000 * n, 5_000, []) for n, item in enumerate(random.Random(user).sample(self._items, 50))]
            for user in user_ids
        ]


class NaivePolicy(GrmPolicy):
    """The same model, searched by `eager.NAIVE`: context repeated for every beam, one flat top-k over all candidates, caches reordered.

    Histories must be of one length: the plain search knows no padding.
    """

    def __init__(self, version: str, grm: Grm, vocabulary: Vocabulary, products: torch.dtype = torch.float32) -> None:
        super().__init__(version, grm, vocabulary, products)
        self._search = self._naive

    def _naive(self, batch: GrmBatch, widths: Sequence[int], trie: Trie | None = None, avoid: Sequence[Tensor] = ()) -> Beams:
        assert trie is None
        batch = self._grm.resolve(batch)
        followed = self._grm.followers.read(batch.memory)
        codes = torch.zeros(len(batch.mask), 1, 0, dtype=torch.int64)

        def step(logits: Tensor, cumulative: Tensor, state: Tensor, width: int, level: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            nonlocal codes
            logits = logits + self._grm.prior.next(codes) + self._grm.recall.next(batch.memory, codes)
            scores = torch.log_softmax(logits + self._grm.followers.next(followed, codes), -1) + cumulative.unsqueeze(-1)
            for prefixes in avoid:
                if prefixes.shape[2] == level + 1:
                    row, beam, which = (codes.unsqueeze(2) == prefixes[:, None, :, :-1]).all(-1).nonzero(as_tuple=True)
                    token = prefixes[row, which, -1]
                    scores[row[token >= 0], beam[token >= 0], token[token >= 0]] = -torch.inf
            best, place = scores.flatten(1).topk(width)
            parent, token = place // logits.shape[2], place % logits.shape[2]
            codes = torch.cat([codes.gather(1, parent.unsqueeze(-1).expand(-1, -1, level)), token.unsqueeze(-1)], -1)
            return best, parent, token, state

        return Beams(*eager.search(self._grm.decoder, self._grm.context(batch), widths, eager.Style(repeat=True, step=step)))


class Service:
    """The serving process without Kafka."""

    def __init__(
        self,
        cache: SidCache,
        codebook: Codebook,
        policy: GrmPolicy,
        built: bundle.Bundle,
        history: History,
        rungs: Sequence[Widths],
        settings: Serves,
        folder: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.codebook = codebook
        self.metrics, popularity = Metrics(), Popularity()
        slot = ModelSlot(lambda: "v00000001", lambda version: Serving(policy, self.codebook), widest=settings.beam_width)
        slot.refresh()
        self.engine = Engine(slot, history, cache, popularity, self.metrics)
        self.agreement = Agreement(
            rungs, least=settings.least_agreement, share=settings.shadow_share, recent=lambda: self.engine.recent, clock=clock
        )
        self.widths = WidthPolicy(rungs, self.agreement.verdicts, self.agreement.shares, settings.max_batch, policy.precision)
        self.batcher: Batcher[Ask, Answered] = Batcher(self.engine.answer, widths=self.widths, spare=self.agreement.step, clock=clock)
        log = EventLog(Discarding(), Discarding(), self.metrics, attribution_ms=round(Samples().attribution_window_s * 1000))
        recommender = Recommender(
            self.batcher,
            lambda: self.codebook,
            popularity,
            log,
            self.metrics,
            deadline_ms=settings.deadline_ms,
            log_impressions=True,
        )
        live = LiveView(popularity, self.metrics, lambda video: None, lambda: None)
        stats = Stats(folder, self.metrics, live, slot, lambda: self.codebook, {}, time.time())
        cards = Cards(self.codebook, built.catalogue)
        self.app = create(Parts(recommender, log, history, lambda: cards, stats, self.metrics, folder))

    def searched(self) -> Counter[str]:
        """Requests searched for, so far, by widths."""
        count = self.metrics.registry.get_sample_value
        return Counter({widths: int(count("sidstream_searches_total", {"widths": widths}) or 0) for widths in map(name, self.widths.rungs)})


def check(ours: GrmPolicy, naive: GrmPolicy, history: Histories) -> None:
    """Both find the same, for people who avoid something too.

    Raises:
        AssertionError: they do not.
    """
    now = time.time_ns() // 1_000_000
    people = [Person(user, now, Context(history=entries)) for user, entries in enumerate(history.histories(range(4)))]
    best = ours.beam(people, uniform(1))[0][:, 0].tolist()
    people += [replace(person, avoid=(tuple(sid), tuple(sid[:2]))) for person, sid in zip(people, best, strict=True)]
    found, expected = ours.beam(people, uniform(32)), naive.beam(people, uniform(32))
    assert np.array_equal(found[0], expected[0]) and np.allclose(found[1], expected[1], atol=1e-4), "the searches do not find the same"


def time_engine(engine: Engine, exact: Engine, naive: Engine, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of a batch by width and rows, those in float32 and of the naive search, and what batching saves against the same rows
    one by one."""
    table = []
    for width in WIDTHS:
        alone_ms = 0.0
        for rows in ROWS:
            taken: dict[str, list[float]] = {"ours": [], "float32": [], "naive": []}
            for number in range(rounds):
                asks = [Ask(number * rows + row, "home", 10) for row in range(rows)]
                for side, times in zip((engine, exact, naive), taken.values(), strict=True):
                    began = time.perf_counter()
                    side.answer(asks, uniform(width))
                    times.append((time.perf_counter() - began) * 1000)
            median, exact_median, naive_median = (statistics.median(times[2:]) for times in taken.values())
            alone_ms = median if rows == 1 else alone_ms
            table.append(
                {
                    "width": width,
                    "rows": rows,
                    "median_ms": round(median, 1),
                    "float32_ms": round(exact_median, 1),
                    "naive_ms": round(naive_median, 1),
                    "naive_over_ours": round(naive_median / median, 2),
                    "one_by_one_over_batch": round(rows * alone_ms / median, 2),
                }
            )
    return table


def time_load(service: Service, rates: Sequence[float], seconds: float) -> list[dict[str, Any]]:
    """What a client sees at each rate, and how its requests were searched."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(service.app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    service.batcher.start()
    gc.collect()
    gc.freeze()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    table = []
    try:
        for rate in rates:
            before = service.searched()
            command = [sys.executable, "-m", "benchmarks.open_load", url, "--rate", str(rate), "--seconds", str(seconds)]
            result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
            table.append({**result, "searched": dict(service.searched() - before)})
    finally:  # a client that failed has said why; the server's threads would keep this process for ever
        server.should_exit = True
        thread.join()
        service.batcher.stop()
    return table


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--items", type=int, default=5_000)
    arguments.add_argument("--codes", type=int, default=64)
    arguments.add_argument("--rounds", type=int, default=20)
    arguments.add_argument("--rates", default="5,10,20,40,80", help="requests a second, comma separated")
    arguments.add_argument("--seconds", type=float, default=20, help="of load at each rate")
    arguments.add_argument("--out", type=Path, help="result file; default benchmarks/results/recommend.json")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    settings = Serves()
    built = bundle.build(World(items=given.items, seed=1).catalogue(), codes=given.codes)
    with tempfile.TemporaryDirectory() as folder, running_redis(Path(folder)) as url:
        cache = SidCache(url)
        cache.seed(built)
        codebook = Codebook(built.version, built.content_levels, built.code_counts, Shelf(places(built), cache.videos(built.version)))
        vocabulary, chosen = Vocabulary.of_bundle(built), products(settings.precision, torch.device("cpu"))
        kinds = ((GrmPolicy, chosen), (GrmPolicy, torch.float32), (NaivePolicy, torch.float32))
        # Each has weights of its own, all the same: a model is searched in one precision.
        policies = [kind("v00000001", Grm(preset("laptop", built.code_counts)), vocabulary, dtype) for kind, dtype in kinds]
        history = Histories(built.item_ids.tolist())
        check(policies[1], policies[2], history)
        ours, exact, naive = (
            Service(cache, codebook, policy, built, history, ladder(settings.beam_width), settings, Path(folder)) for policy in policies
        )
        by_width = time_engine(ours.engine, exact.engine, naive.engine, given.rounds)
        print(f"{given.items} items, median ms of a batch\n{'width':>6}{'rows':>6}{'ms':>9}{'float32':>9}{'naive':>9}{'batching':>9}")
        for line in by_width:
            sides = f"{line['median_ms']:>9}{line['float32_ms']:>9}{line['naive_ms']:>9}"
            print(f"{line['width']:>6}{line['rows']:>6}{sides}{line['one_by_one_over_batch']:>9}")
        rates = [float(rate) for rate in given.rates.split(",")]
        by_rate = time_load(ours, rates, given.seconds)
        by_rate_naive = time_load(naive, rates, given.seconds)
        print(f"{'search':>6}{'rate':>6}{'p50':>9}{'p95':>9}{'p99':>9}{'degraded':>10}")
        for name, lines in (("ours", by_rate), ("naive", by_rate_naive)):
            for line in lines:
                numbers = f"{line['rate']:>6}{line['p50_ms']:>9}{line['p95_ms']:>9}{line['p99_ms']:>9}"
                print(f"{name:>6}{numbers}{line['degraded']:>6}/{line['requests']}")
    facts = {
        "items": given.items,
        "codes": given.codes,
        "deadline_ms": settings.deadline_ms,
        "beam_width": settings.beam_width,
        "precision": str(chosen).removeprefix("torch."),
    }
    print(
        provenance.write(
            "recommend",
            {**facts, "by_width": by_width, "by_rate": by_rate, "by_rate_naive": by_rate_naive},
            ("torch", "torchrec", "fastapi", "redis"),
            given.out,
        )
    )


if __name__ == "__main__":
    main()
