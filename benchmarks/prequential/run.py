"""One pass over the log: predict, then learn; every publish interval's version is asked about the same impressions as it goes."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any
from zlib import crc32

from benchmarks.prequential.floors import Floors, Rates
from benchmarks.prequential.snapshots import DEPTHS, HOUR_MS, INTERVALS, Catalogue, Question, Version
from benchmarks.prequential.stream import positive
from model.online.checkpoint import Checkpoint, CheckpointError, Checkpoints
from model.online.step import LearnerState, OnlineLearner
from streaming.records import Sample

STEP_MS = 5 * 60_000
WARM_UP_H = 48
CHECKPOINT_H = 6
BATCH = 64
STREAMING = INTERVALS[0]


@dataclass(frozen=True)
class Plan:
    """What decides the figures.

    Attributes:
        start_ms: beginning of the first day.
        hours: of the log that are used, from there.
        share: of the impressions after the warm-up that are predicted; the same ones for everybody.
    """

    start_ms: int
    hours: int
    share: float
    seed: int

    @property
    def evaluated_from(self) -> int:
        return self.start_ms + WARM_UP_H * HOUR_MS

    def asked(self, sample: Sample) -> bool:
        return crc32(f"{self.seed} {sample.sample_id}".encode()) < self.share * 2**32


class Pass:
    """The state of one pass; `run` continues from the newest checkpoint.

    Time goes in steps of five minutes: first versions are published that are due, then the impressions of the step are predicted, then the
    samples are learned that became ready in it. Floors are not in the checkpoints: they are taught again, which takes seconds.
    """

    def __init__(self, plan: Plan, learner: OnlineLearner, catalogue: Catalogue, floors: Floors, rates: Rates) -> None:
        self.plan, self.learner, self.floors, self.rates = plan, learner, floors, rates
        streaming = Version(learner.model, learner.engagement, learner.vocabulary, catalogue)
        self.versions = {interval.name: Version.like(learner, catalogue) for interval in INTERVALS if interval is not STREAMING}
        self.versions = {STREAMING.name: streaming} | self.versions
        self.records: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._published: dict[str, int] = {}

    def run(self, samples: Iterable[Sample], checkpoints: Checkpoints, identity: dict[str, Any], told: Callable[[int], None]) -> None:
        """Go to the plan's end. `told` gets the number of impressions of every step."""
        resumed = self._resume(checkpoints, identity)
        pending: list[tuple[int, int, Sample]] = []
        stream = iter(samples)
        waiting = next(stream, None)
        began, order = time.monotonic() - self.seconds, 0
        end = self.plan.start_ms + self.plan.hours * HOUR_MS
        if resumed > end:
            raise CheckpointError(
                f"{checkpoints.folder} is at hour {(resumed - self.plan.start_ms) / HOUR_MS:.0f}, the plan ends at hour {self.plan.hours}: "
                "ask for more hours, or move it away"
            )
        for now in range(self.plan.start_ms, end, STEP_MS):
            known = now < resumed
            if now == self.plan.evaluated_from:
                self.floors.choose()
            if not known:
                self._publish(now)
                hours = (now - self.plan.start_ms) / HOUR_MS
                if now > max(resumed, self.plan.start_ms) and hours % CHECKPOINT_H == 0:
                    self._flush()
                    self.seconds = time.monotonic() - began
                    checkpoints.save(self._checkpoint(now, identity))
            shown: list[Sample] = []
            while waiting is not None and waiting.ts < now + STEP_MS:
                shown.append(waiting)
                waiting = next(stream, None)
            self._predict(now, [sample for sample in shown if self.plan.asked(sample)], known)
            for sample in shown:
                heapq.heappush(pending, (sample.ready_ts, order, sample))
                order += 1
            ready = []
            while pending and pending[0][0] < now + STEP_MS:
                ready.append(heapq.heappop(pending)[2])
            if not known:
                self.learner.step(ready)
            self.floors.learn(ready)
            self.rates.learn(ready)
            told(len(shown))
        self._flush()
        self.seconds = time.monotonic() - began

    def _predict(self, now: int, asked: list[Sample], known: bool) -> None:
        """Ask floors at once; versions that do not change soon are asked in larger batches, before they change."""
        if now < self.plan.evaluated_from:
            if now >= self.plan.evaluated_from - 24 * HOUR_MS:
                for sample in asked:
                    if positive(sample):
                        self.floors.attempt(sample)
            return
        if known:
            return
        for sample in asked:
            sid = self.learner.vocabulary.sid_of(sample.item_id)
            if sid is None:
                continue
            record: dict[str, Any] = {
                "user": sample.user_id,
                "ts": sample.ts,
                "long_view": sample.labels.long_view,
                "probability": {"user and item rates": self.rates.probability(sample)},
                "hits": {},
            }
            if positive(sample):
                lists = self.floors.recommend(sample, max(DEPTHS))
                record["hits"] = {name: [float(sample.item_id in found[:depth]) for depth in DEPTHS] for name, found in lists.items()}
            question = Question(len(self.records), sample, sid, positive(sample))
            self.records.append(record)
            for version in self.versions.values():
                version.waiting.append(question)
        for name, version in self.versions.items():
            if name == STREAMING.name or len(version.waiting) >= BATCH:
                self._answer(name)

    def _answer(self, name: str) -> None:
        for answer in self.versions[name].answer():
            record = self.records[answer.record]
            record["probability"][name] = answer.long_view
            if answer.hits:
                record["hits"][name] = answer.hits

    def _flush(self) -> None:
        for name in self.versions:
            self._answer(name)

    def _publish(self, now: int) -> None:
        since = now - self.plan.evaluated_from
        if since < 0:
            return
        for interval in INTERVALS:
            if interval.due(since):
                self._answer(interval.name)
                self.versions[interval.name].publish(self.learner)
                self._published[interval.name] = now

    def _checkpoint(self, now: int, identity: dict[str, Any]) -> Checkpoint:
        """The learner, and every version that is not the learner as it is now."""
        state = self.learner.state()
        for name, at in self._published.items():
            if at != now:
                state.tensors |= {f"version {name}/{key}": tensor for key, tensor in self.versions[name].state().items()}
        own = {"now": now, "records": self.records, "seconds": self.seconds, "published": self._published}
        return Checkpoint(LearnerState(state.tensors, {"learner": state.facts, "pass": own}), {}, identity)

    def _resume(self, checkpoints: Checkpoints, identity: dict[str, Any]) -> int:
        """Time at which the pass goes on; everything before it was predicted and learned."""
        found = checkpoints.load(identity)
        if found is None:
            return self.plan.start_ms
        own, tensors = found.state.facts["pass"], found.state.tensors
        self.learner.restore(LearnerState(tensors, found.state.facts["learner"]))
        self.records, self.seconds, self._published = own["records"], own["seconds"], own["published"]
        for name, at in self._published.items():
            if at == own["now"]:
                self.versions[name].publish(self.learner)
                continue
            prefix = f"version {name}/"
            parts: dict[str, dict[str, Any]] = {"model": {}, "engagement": {}}
            for key, tensor in tensors.items():
                if key.startswith(prefix):
                    part, _, rest = key.removeprefix(prefix).partition(".")
                    parts[part][rest] = tensor
            self.versions[name].load(parts["model"], parts["engagement"])
        return int(own["now"])


def identity_of(plan: Plan, learner: OnlineLearner, bundle_version: str) -> dict[str, Any]:
    """What a checkpoint belongs to. How much of the log is used changes nothing of what came before."""
    chosen = {name: value for name, value in asdict(plan).items() if name != "hours"}
    settings = learner.config.to_json()
    return {"plan": chosen, "model": learner.model.config.to_json(), "learner": settings, "bundle": bundle_version}


def hours_of(start_ms: int, end_ms: int) -> int:
    """Whole hours until everything that was shown up to `end_ms` is in."""
    return math.ceil((end_ms + 1 - start_ms) / HOUR_MS)
