"""The width policy against the full width: the same model and the same people under loads that the full width cannot bear.

    python -m benchmarks.widths --dir KUAIRAND [--targets N] [--rates 20,60,120,180] [--seconds S]

The laptop model learns the log's first positively watched videos once. Then people of the log ask for feeds over HTTP, each with the
history of one of the next impressions, moved to now. First quietly, while a server measures in its idle moments what each rung of the
ladder finds of the full search's best, for which it may take more of the time than it does by default. Then, at each rate in turns, a
server that always searches at full width, one whose gate knows what was measured, and one whose gate lets every rung pass.
`kept` is the share of the full search's best results that people got: the mean over their searches by measured agreement, nothing for a
degraded answer. No model is published meanwhile, and impressions are not sent: there is no Kafka here.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from benchmarks import provenance
from benchmarks.local_redis import running_redis
from benchmarks.prequential.stream import earlier, positive, samples
from benchmarks.recommend import Service, load, running
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
from serving.library import places
from serving.model import Codebook
from serving.policy import GrmPolicy
from serving.widths import Widths, ladder, name
from streaming.records import HistoryEntry, Sample
from streaming.sources.kuairand import SourceError
from streaming.sources.kuairand_events import exposures

PEOPLE = 500  # as many as `benchmarks.open_load` asks for
CHUNK = 32


@dataclass(frozen=True)
class Log:
    """Histories of people of the log: whoever asks is one of them."""

    asked: Sequence[list[HistoryEntry]]

    def histories(self, user_ids: Sequence[int]) -> list[list[HistoryEntry]]:
        return [self.asked[user % len(self.asked)] for user in user_ids]


def learnt(folder: Path, targets: int, seed: int) -> tuple[bundle.Bundle, Grm, Vocabulary, Log]:
    """The bundle of what was known before the log, a model that learnt its first targets, and the next people."""
    rows = exposures(folder)
    catalogue, together = kuairand_input(folder, rows.first_ms)
    built = bundle.build(catalogue, together, seed=seed)
    vocabulary = Vocabulary.of_bundle(built)
    grm = Grm(preset("laptop", built.code_counts, seed=seed))
    watched = (sample for sample in samples(rows, earlier(folder, rows.first_ms)) if positive(sample))
    taken = [sample for sample, _ in zip(watched, range(targets + PEOPLE), strict=False)]
    if len(taken) < targets + PEOPLE:
        raise SourceError(f"{folder}: {len(taken)} positively watched videos, {targets + PEOPLE} are needed: ask for fewer targets")
    fitter, sid_of = Fitter(grm), dict(zip(built.item_ids.tolist(), built.sids.tolist(), strict=True))
    for start in range(0, targets, CHUNK):
        chunk = [sample for sample in taken[start : min(start + CHUNK, targets)] if sample.item_id in sid_of]
        batch = collate(chunk, vocabulary, grm.config).with_targets([sid_of[sample.item_id] for sample in chunk])
        fitter.step(batch, torch.ones(len(chunk)))
    now = time.time_ns() // 1_000_000
    return built, grm, vocabulary, Log([_moved(sample, now) for sample in taken[targets:]])


def _moved(sample: Sample, now: int) -> list[HistoryEntry]:
    return [msgspec.structs.replace(entry, ts=entry.ts + now - sample.ts) for entry in sample.context.history]


def take_turns(sides: Mapping[str, tuple[Service, str]], rate: float, seconds: float, turns: int) -> list[dict[str, Any]]:
    """A line a side: sums over its turns, of quantiles the median turn."""
    taken: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for turn in range(turns):
        for side, (service, url) in list(sides.items())[:: 1 if turn % 2 else -1]:
            taken[side].append(load(service, url, rate, seconds))
    return [
        {"side": side, "rate": rate}
        | {quantile: float(np.median([turn[quantile] for turn in of])) for quantile in ("p50_ms", "p95_ms", "p99_ms")}
        | {count: sum(turn[count] for turn in of) for count in ("requests", "degraded")}
        | {"searched": dict(sum((Counter(turn["searched"]) for turn in of), Counter()))}
        for side, of in taken.items()
    ]


def kept(line: Mapping[str, Any], agreement: Mapping[str, float]) -> float:
    """The share of the full search's best results in the answers of one load."""
    searches = sum(line["searched"].values())
    found = sum(count * agreement[widths] for widths, count in line["searched"].items()) / max(searches, 1)
    return found * (1 - line["degraded"] / line["requests"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="folder of the KuaiRand files")
    parser.add_argument("--targets", type=int, default=20_000, help="that the model learns first")
    parser.add_argument("--quiet", type=float, default=40, help="seconds of 10 requests a second, in which rungs are measured")
    parser.add_argument("--share", type=float, default=0.3, help="of the time, what measuring may take; the server's default is less")
    parser.add_argument("--rates", default="20,40,80,120", help="requests a second, comma separated")
    parser.add_argument("--seconds", type=float, default=4, help="of load at each rate and turn")
    parser.add_argument("--turns", type=int, default=3, help="at each rate: the machine may be busy in some of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="result file; default benchmarks/results/widths.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sys.setswitchinterval(0.0005)  # as the server does
    try:
        built, grm, vocabulary, log = learnt(given.dir, given.targets, given.seed)
    except SourceError as error:
        sys.exit(str(error))
    settings = Settings()
    rungs = ladder(settings.beam_width)
    with tempfile.TemporaryDirectory() as folder, running_redis(Path(folder)) as url:
        cache = SidCache(url)
        cache.seed(built)
        codebook = Codebook(built.version, built.content_levels, built.code_counts, Shelf(places(built), cache.videos(built.version)))
        policy = GrmPolicy("v00000001", grm, vocabulary)

        def service(ladder_of: Sequence[Widths], changed: Settings) -> Service:
            return Service(cache, codebook, policy, built, log, ladder_of, changed, Path(folder))

        measuring = service(rungs, settings.model_copy(update={"shadow_share": given.share}))
        with running(measuring) as address:
            quiet = load(measuring, address, 10, given.quiet)
        evidence, allowed = measuring.agreement.evidence, measuring.agreement.allowed()
        sides = {
            "full": service(rungs[:1], settings),
            "gated": service(rungs, settings),
            "free": service(rungs, settings.model_copy(update={"least_agreement": 0.0})),
        }
        for side in sides.values():
            side.agreement.evidence[:] = map(replace, evidence[: len(side.agreement.evidence)])
        with ExitStack() as stack:
            served = {which: (side, stack.enter_context(running(side))) for which, side in sides.items()}
            lines = [line for rate in given.rates.split(",") for line in take_turns(served, float(rate), given.seconds, given.turns)]
    by_rung = [
        {"widths": name(widths), "agreement": round(known.mean, 4), "samples": known.samples, "allowed": fine}
        | {f"estimated_ms_of_{rows}": round(1000 * sides["free"].widths.costs(rung, rows), 1) for rows in (1, 4, 16)}
        for rung, (widths, known, fine) in enumerate(zip(rungs, evidence, allowed, strict=True))
    ]
    agreement = {name(widths): known.mean for widths, known in zip(rungs, evidence, strict=True)}
    by_rate = [{**line, "kept": round(kept(line, agreement), 4)} for line in lines]
    for line in by_rung:
        print(f"{line['widths']:>12} finds {line['agreement']} of {line['samples']} people's best {BEST}, allowed: {line['allowed']}")
    print(f"{'side':>6}{'rate':>7}{'p50':>8}{'p99':>8}{'degraded':>12}{'kept':>8}  searched")
    for line in by_rate:
        numbers = f"{line['rate']:>7}{line['p50_ms']:>8}{line['p99_ms']:>8}{line['degraded']:>7}/{line['requests']:<4}{line['kept']:>8}"
        print(f"{line['side']:>6}{numbers}  {line['searched']}")
    facts = {"targets": given.targets, "items": len(built.item_ids), "settings": settings.model_dump(), "turns": given.turns}
    result = {**facts, "by_rung": by_rung, "quiet": quiet, "by_rate": by_rate}
    print(provenance.write("widths", result, ("torch", "torchrec", "fastapi", "redis"), given.out))


if __name__ == "__main__":
    main()
