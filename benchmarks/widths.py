"""The width policy against the full width: the same model and the same people under loads that the full width cannot bear.

    python -m benchmarks.widths --dir KUAIRAND [--targets N] [--loads 0.5,1,1.5,2.5] [--seconds S]

The laptop model learns the log's first positively watched videos once. Then people of the log ask for feeds at random times, each with the
history of one of the next impressions, moved to now; features, search, SID cache and neighbours are the server's own, HTTP and Kafka are
left out. Time is the processor time of the one thread that answers, and idle time is skipped: so a run means the same on a busy machine.

First quietly, while the server measures in its idle moments what each rung of the ladder finds of the full search's best. Then, at each
load, a server that always searches at full width, one whose gate knows what was measured, and one whose gate lets every rung pass. A load
of 1 is as many requests a second as are answered in full batches of full width, timed in the same run. An answer after the deadline is a
degraded one. `kept` is the share of the full search's best results that people got: by measured agreement of what was searched for them,
nothing for a degraded answer. No model is published meanwhile.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from benchmarks import provenance
from benchmarks.local_redis import running_redis
from benchmarks.prequential.stream import earlier, positive, samples
from benchmarks.recommend import Service
from jobs.settings import Serving as Settings
from jobs.sids import kuairand_input
from model.grm import Grm
from model.grm.fit import Fitter
from model.grm.inputs import Vocabulary, collate
from model.grm.presets import preset
from model.sid import bundle
from serving.agreement import BEST
from serving.cache import SidCache
from serving.candidates import Shelf
from serving.engine import Answered, Ask
from serving.library import places
from serving.model import Codebook
from serving.policy import GrmPolicy, products
from serving.service import MARGIN_S
from serving.widths import Widths, ladder, name
from streaming.records import HistoryEntry, Sample
from streaming.sources.kuairand import SourceError
from streaming.sources.kuairand_events import exposures

PEOPLE = 500
CHUNK = 32
CAPACITY_ROUNDS = 12


@dataclass(frozen=True)
class Log:
    """Histories of people of the log: whoever asks is one of them."""

    asked: Sequence[list[HistoryEntry]]

    def histories(self, user_ids: Sequence[int]) -> list[list[HistoryEntry]]:
        return [self.asked[user % len(self.asked)] for user in user_ids]


def learnt(folder: Path, targets: int, seed: int, after: int) -> tuple[bundle.Bundle, Grm, Vocabulary, list[Sample]]:
    """The bundle of what was known before the log, a model that learnt its first targets, and the next ones."""
    rows = exposures(folder)
    catalogue, together = kuairand_input(folder, rows.first_ms)
    built = bundle.build(catalogue, together, seed=seed)
    vocabulary = Vocabulary.of_bundle(built)
    grm = Grm(preset("laptop", built.code_counts, seed=seed))
    watched = (sample for sample in samples(rows, earlier(folder, rows.first_ms)) if positive(sample))
    taken = [sample for sample, _ in zip(watched, range(targets + after), strict=False)]
    if len(taken) < targets + after:
        raise SourceError(f"{folder}: {len(taken)} positively watched videos, {targets + after} are needed: ask for fewer targets")
    fitter, sid_of = Fitter(grm), dict(zip(built.item_ids.tolist(), built.sids.tolist(), strict=True))
    for start in range(0, targets, CHUNK):
        chunk = [sample for sample in taken[start : min(start + CHUNK, targets)] if sample.item_id in sid_of]
        batch = collate(chunk, vocabulary, grm.config).with_targets([sid_of[sample.item_id] for sample in chunk])
        fitter.step(batch, torch.ones(len(chunk)))
    return built, grm, vocabulary, taken[targets:]


def _moved(sample: Sample, now: int) -> list[HistoryEntry]:
    return [msgspec.structs.replace(entry, ts=entry.ts + now - sample.ts) for entry in sample.context.history]


class Clock:
    """Processor seconds of this thread, and what was skipped."""

    def __init__(self) -> None:
        self._skipped_s = 0.0

    def __call__(self) -> float:
        return time.thread_time() + self._skipped_s

    def skip_to(self, at_s: float) -> None:
        self._skipped_s += max(0.0, at_s - self())


@dataclass
class Asked:
    """A request on its way: `took_s` is None until it was answered by the model."""

    at_s: float
    took_s: float | None = None


def ask(service: Service, clock: Clock, rate: float, seconds: float, seed: int, deadline_s: float) -> dict[str, Any]:
    """An open load: requests at random times that do not wait for each other's answers."""
    chance, began, before = random.Random(seed), clock(), service.searched()
    asked: list[Asked] = []
    coming = began + chance.expovariate(rate)

    def note(one: Asked, future: Future[Answered]) -> None:
        if future.exception() is None:
            one.took_s = clock() - one.at_s

    while coming < began + seconds or service.batcher.waiting():
        while coming <= clock() and coming < began + seconds:
            one = Asked(coming)
            asked.append(one)
            service.batcher.submit(Ask(chance.randrange(PEOPLE), "home", BEST), coming + deadline_s).add_done_callback(partial(note, one))
            coming += chance.expovariate(rate)
        if not service.batcher.turn():
            clock.skip_to(coming)
    searched = service.searched() - before
    good = [one.took_s * 1000 for one in asked if one.took_s is not None and one.took_s <= deadline_s]
    agreement = {name(widths): known.mean for widths, known in zip(service.widths.rungs, service.agreement.evidence, strict=True)}
    found = sum(count * agreement[widths] for widths, count in searched.items()) / max(1, searched.total())
    return {
        "rate": round(rate, 1),
        "requests": len(asked),
        "degraded": len(asked) - len(good),
        "kept": round(found * len(good) / len(asked), 4),
        **{f"p{q}_ms": round(float(np.percentile(good, q)), 1) for q in (50, 95, 99)},
        "searched": dict(searched),
    }


def capacity(service: Service, rows: int) -> float:
    """Requests a second in full batches, one after the other, with the first rung."""
    took = []
    for number in range(CAPACITY_ROUNDS):
        began = time.thread_time()
        service.engine.answer([Ask(number * rows + row, "home", BEST) for row in range(rows)], service.widths.rungs[0])
        took.append(time.thread_time() - began)
    return rows / statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="folder of the KuaiRand files")
    parser.add_argument("--targets", type=int, default=20_000, help="that the model learns first")
    parser.add_argument("--quiet", type=float, default=500, help="seconds of one request a second, in which rungs are measured")
    parser.add_argument("--loads", default="0.5,1,1.5,2.5", help="of what the full width sustains, comma separated")
    parser.add_argument("--seconds", type=float, default=8, help="of each load")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="result file; default benchmarks/results/widths.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        built, grm, vocabulary, following = learnt(given.dir, given.targets, given.seed, PEOPLE)
    except SourceError as error:
        sys.exit(str(error))
    now = time.time_ns() // 1_000_000
    log = Log([_moved(sample, now) for sample in following])
    settings = Settings()
    rungs = ladder(settings.beam_width)
    with tempfile.TemporaryDirectory() as folder, running_redis(Path(folder)) as url:
        cache = SidCache(url)
        cache.seed(built)
        codebook = Codebook(built.version, built.content_levels, built.code_counts, Shelf(places(built), cache.videos(built.version)))
        policy = GrmPolicy("v00000001", grm, vocabulary, products(settings.precision, torch.device("cpu")))
        clock = Clock()

        def service(ladder_of: Sequence[Widths], **changes: float) -> Service:
            changed = settings.model_copy(update=changes)
            return Service(cache, codebook, policy, built, log, ladder_of, changed, Path(folder), clock)

        def load(side: Service, rate: float, seconds: float) -> dict[str, Any]:
            return ask(side, clock, rate, seconds, given.seed, settings.deadline_ms / 1000 - MARGIN_S)

        gc.collect()
        gc.freeze()
        measuring, full = service(rungs), service(rungs[:1])
        quiet = {"load": "quiet", "side": "measuring", **load(measuring, 1.0, given.quiet)}
        full_rate = capacity(full, settings.max_batch)
        sides = {"full": full, "gated": service(rungs), "free": service(rungs, least_agreement=0.0)}
        for side in sides.values():
            side.agreement.evidence[1:] = map(replace, measuring.agreement.evidence[1 : len(side.widths.rungs)])
        verdicts = measuring.agreement.verdicts()
        by_load = [
            {"load": times, "side": which, **load(side, times * full_rate, given.seconds)}
            for times in map(float, given.loads.split(","))
            for which, side in sides.items()
        ]
    by_rung = [
        {"widths": name(widths), "agreement": round(known.mean, 4), "samples": known.samples, "verdict": verdict.name.lower()}
        | {f"estimated_ms_of_{rows}": round(1000 * sides["free"].widths.costs(rung, rows), 1) for rows in (1, 4, settings.max_batch)}
        for rung, (widths, known, verdict) in enumerate(zip(rungs, measuring.agreement.evidence, verdicts, strict=True))
    ]
    for line in by_rung:
        print(f"{line['widths']:>12} finds {line['agreement']} of {line['samples']} people's best {BEST}: {line['verdict']}")
    print(f"{'load':>5}{'side':>10}{'rate':>7}{'p50':>7}{'p99':>7}{'degraded':>12}{'kept':>8}  searched")
    for line in [quiet, *by_load]:
        numbers = f"{line['rate']:>7}{line['p50_ms']:>7}{line['p99_ms']:>7}{line['degraded']:>7}/{line['requests']:<4}{line['kept']:>8}"
        print(f"{line['load']:>5}{line['side']:>10}{numbers}  {line['searched']}")
    facts = {"targets": given.targets, "items": len(built.item_ids), "settings": settings.model_dump(), "full_rate": round(full_rate, 1)}
    result = {**facts, "by_rung": by_rung, "quiet": quiet, "by_load": by_load}
    print(provenance.write("widths", result, ("torch", "torchrec", "redis"), given.out))


if __name__ == "__main__":
    main()
