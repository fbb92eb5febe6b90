"""The online learner: score a batch of samples, then learn from it, then record both."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from zlib import crc32

import torch
from torch import Tensor

from model.grm import Grm, GrmBatch, Scores, Vocabulary, collate
from model.grm.fit import FitConfig, Fitter, Precision, restore_slots, slots
from model.grm.loss import Valued
from model.online.conversion import ConversionConfig, Conversions, Shown
from model.online.engagement import LABELS, RatedHead, engagement_loss, watched
from model.online.floors import Floors
from model.online.metrics import Prequential
from model.online.satisfaction import SATISFYING, DurationRank
from model.online.value import Ledger
from model.online.worth import UserWorth, ValueBuckets
from model.policy.gbpo import Feedback

log = logging.getLogger(__name__)

Sid = tuple[int, ...]
RECALL_AT = 10


@dataclass(frozen=True)
class LearnerConfig:
    """How the learner learns; sizes of the model itself are in `GrmConfig`.

    Attributes:
        chunk: targets per optimizer step; a batch of samples has several.
        recall_share: share of the targets for which a beam search is run; the same ones in every run.
        beam: widths of that search.
        window: samples per metrics window.
        half_life: of the popularity floor, in targets.
        rate_rows: users, and videos, whose rates of labels are counted apart.
        conversion: how conversions are predicted; None = they are not.
        satisfaction: what counts as a satisfying watch: the label `long_view`, or one that is long for a video of its duration.
        gbpo: what a policy gradient on what people said weighs beside the cross-entropy; 0 = there is none.
        precision: of the products of scoring and learning; the search for recall stays float32, as serving's.
        user_weight: power of a person's past worth in the weight of their samples; 0 = everybody counts the same. See `UserWorth`.
    """

    fit: FitConfig = field(default_factory=FitConfig)
    chunk: int = 32
    recall_share: float = 0.5
    beam: int = 16
    window: int = 2000
    half_life: float = 2000.0
    rate_rows: int = 1 << 16
    conversion: ConversionConfig | None = None
    satisfaction: Literal["long_view", "duration"] = "long_view"
    gbpo: float = 0.0
    precision: Precision = "float32"
    user_weight: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Options that are not taken are left out: a learner without them is the same learner that it was before there were any."""
        tree = asdict(self)
        return {name: value for name, value in tree.items() if name not in OPTIONS or value != OPTIONS[name]}


OPTIONS: dict[str, Any] = {"conversion": None, "satisfaction": "long_view", "gbpo": 0.0, "precision": "float32", "user_weight": 0.0}


@dataclass(frozen=True)
class _Target:
    """A sample that names an SID, and what learning it now is worth; its own `share` of that, and the bucket of what its labels are worth
    (-1: not known)."""

    row: Any
    sid: Sid
    weight: float
    advantage: float = 0.0
    share: float = 1.0
    bucket: int = -1


@dataclass
class Counters:
    """What became of every sample that was handed in: `rows` is the sum of the five below it."""

    rows: int = 0
    initials: int = 0
    corrections: int = 0
    duplicates: int = 0
    unknown_items: int = 0
    invalid: int = 0
    targets: int = 0
    steps: int = 0
    skipped_steps: int = 0
    watermark_ts: int = 0


@dataclass
class LearnerState:
    """Everything that the learner is, apart from its configuration: tensors by name, and what JSON can hold."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class OnlineLearner:
    """One model and everything that learning it online needs.

    Given equal batches in equal order on one thread, the weights are equal bit for bit.
    """

    def __init__(self, model: Grm, vocabulary: Vocabulary, config: LearnerConfig | None = None) -> None:
        self.model, self.vocabulary, self.config = model, vocabulary, config or LearnerConfig()
        self.counters = Counters()
        self.ledger = Ledger()
        self.floors = Floors(vocabulary, self.config.half_life)
        self.metrics = Prequential(model.config.levels, self.config.window)
        self.engagement = RatedHead(model.config.d_model, model.config.codes, model.config.seed, self.config.rate_rows)
        self.fitter = Fitter(model, self.config.fit, self.config.precision)
        self._engagement_optimizer = torch.optim.Adam(self.engagement.parameters(), lr=1e-3, fused=True)
        self.durations = DurationRank() if self.config.satisfaction == "duration" else None
        self.values = ValueBuckets(model.config.value_buckets) if model.config.value_buckets else None
        self.people = UserWorth(self.config.user_weight, self.config.rate_rows) if self.config.user_weight else None
        self.conversions: Conversions | None = None
        if self.config.conversion is not None:
            self.conversions = Conversions(self.config.conversion, model.config.d_model, model.config.codes, model.config.seed)

    def step(self, rows: Sequence[Any]) -> None:
        """Score, learn and record samples (`streaming.records.Sample` or alike), in their order.

        Initial samples are scored; those with a positive value are learned, and with GBPO the unwanted ones too. A value token learns of
        all of them, or it could not tell good from bad: each step on targets takes its part of the others along, with no weight but for the
        token, so there are as many steps as without it. Corrections are learned for what they add, and bring no context to judge values by.
        A sample that cannot be used is counted and left out: it never stops the stream.
        """
        initials, corrections, late = self._triage(rows)
        positives = [target for target in initials if target.weight > 0]
        learned = [target for target in initials if self._teaches(target)]
        others = [target for target in initials if not self._teaches(target)]
        self.metrics.open.saw([target.row.ts for target in initials])
        self._search(positives)
        seen: list[tuple[Sequence[_Target], Scores, Tensor]] = []
        together = any(target.bucket >= 0 for target in initials)
        if others and not together:
            batch = self._collate(others)
            with torch.no_grad():
                seen.append((others, self.fitter.score(batch), self._target_tensor(batch)))
        for chunk in self._chunks(learned, others if together else []):
            batch = self._collate(chunk)
            scores = self._learn(batch, chunk)
            seen.append((chunk, scores, self._target_tensor(batch)))
            wanted = torch.tensor([target.weight > 0 for target in chunk])
            if wanted.any():
                self.metrics.open.targets(scores.log_prob[wanted].double().numpy(), scores.hit[wanted].numpy())
        for start in range(0, len(corrections), self.config.chunk):
            chunk = corrections[start : start + self.config.chunk]
            self._learn(self._collate(chunk), chunk)
            self.metrics.open.delayed += len(chunk)
        self._engage(seen)
        self._value(seen)
        self._convert(seen, late)
        self.floors.learn([target.sid for target in positives])
        self.counters.targets += len(positives) + len(corrections)
        if self.metrics.roll():
            log.info("window=%s", self.metrics.closed[-1])

    def predict(self, rows: Sequence[Any], beam: int | None = None) -> list[list[Sid]]:
        """The ten likeliest SIDs of each row, without learning."""
        width = beam or self.config.beam
        levels = self.model.config.levels
        beams = self.model.beam(collate(rows, self.vocabulary, self.model.config), [width] * (levels - 1) + [RECALL_AT])
        return [[tuple(sid) for sid in found] for found in beams.sids.tolist()]

    def state(self) -> LearnerState:
        """A copy that later learning does not change."""
        tensors = self.fitter.state()
        tensors |= {f"engagement.{name}": tensor for name, tensor in self.engagement.state_dict().items()}
        tensors |= slots(self._engagement_optimizer, "engagement_adam")
        tensors |= {f"ledger.{name}": tensor for name, tensor in self.ledger.state().items()}
        tensors["rng"] = torch.get_rng_state()
        facts: dict[str, Any] = {
            "counters": vars(self.counters).copy(),
            "floors": self.floors.state(),
            "metrics": self.metrics.state(),
            "generated": [[item, list(sid)] for item, sid in self.vocabulary.generated.items()],
        }
        if self.durations is not None:
            facts["durations"] = self.durations.state()
        if self.values is not None:
            facts["values"] = self.values.state()
        if self.people is not None:
            tensors |= {f"people.{name}": tensor for name, tensor in self.people.state().items()}
        if self.conversions is not None:
            tensors |= self.conversions.state()
            facts["conversions"] = self.conversions.facts()
        return LearnerState({name: tensor.detach().clone() for name, tensor in tensors.items()}, facts)

    def restore(self, state: LearnerState) -> None:
        """Continue exactly where `state` was taken.

        Raises:
            ValueError: it is of a model of another shape.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in state.tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        self.fitter.restore(state.tensors)
        try:
            self.engagement.load_state_dict(parts["engagement"])
            if self.conversions is not None:
                self.conversions.restore(state.tensors, state.facts["conversions"])
            if self.durations is not None:
                self.durations.restore(state.facts["durations"])
            if self.values is not None:
                self.values.restore(state.facts["values"])
            if self.people is not None:
                self.people.restore(parts["people"])
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"a checkpoint of another model: {error}") from error
        restore_slots(self._engagement_optimizer, "engagement_adam", state.tensors)
        self.ledger.restore(parts["ledger"])
        torch.set_rng_state(state.tensors["rng"])
        self.counters = Counters(**state.facts["counters"])
        self.floors.restore(state.facts["floors"])
        self.metrics.restore(state.facts["metrics"])
        self.vocabulary.generated = {item: tuple(sid) for item, sid in state.facts["generated"]}

    def _triage(self, rows: Sequence[Any]) -> tuple[list[_Target], list[_Target], list[Any]]:
        """Initial samples to score, corrections that have something to teach, and the rows of all corrections."""
        initials: list[_Target] = []
        corrections: list[_Target] = []
        late: list[Any] = []
        for row in rows:
            self.counters.rows += 1
            try:
                sid = self._sid(row)
                if sid is None:
                    self.counters.unknown_items += 1
                    continue
                share = row.weight if self.people is None else row.weight * self.people.weight(row.user_id)
                worth = self.ledger.admit(row.kind, row.impression_id, row.labels, share, self._satisfied(row))
            except (ValueError, OverflowError) as error:
                self.counters.invalid += 1
                log.warning("sample=%s skipped reason=%s", row.sample_id, error)
                continue
            self.counters.watermark_ts = max(self.counters.watermark_ts, row.ts)
            if worth.duplicate:
                self.counters.duplicates += 1
            elif row.kind == "initial":
                self.counters.initials += 1
                bucket = -1 if self.values is None or worth.value is None else self.values.bucket(worth.value)
                initials.append(_Target(row, sid, worth.weight, worth.advantage, share, bucket))
            else:
                self.counters.corrections += 1
                late.append(row)
                if worth.weight > 0:
                    corrections.append(_Target(row, sid, worth.weight))
            if self.people is not None and worth.value is not None:
                self.people.learn(row.user_id, worth.value, int(row.kind == "initial"))
        return initials, corrections, late

    def _satisfied(self, row: Any) -> bool | None:
        """Whether the watch was long for a video of its duration; None where that is not known, or not asked.

        Raises:
            ValueError: the play time is negative.
        """
        play_ms, duration_ms = row.labels.play_ms, row.duration_ms
        if self.durations is None or play_ms is None or duration_ms is None:
            return None
        if row.kind == "initial" and self.ledger.knows(row.impression_id):
            return None  # seen before: not counted again
        rank = self.durations.rank(play_ms, duration_ms)
        return None if rank is None else rank > SATISFYING

    def _sid(self, row: Any) -> Sid | None:
        """The SID of what was shown: the catalogue's, or, for a generated video, the one that it was served as.

        Raises:
            ValueError: it is outside the codebooks.
        """
        sid = self.vocabulary.sid_of(row.item_id)
        served = row.served_sid
        if sid is None and served is not None:
            if not self.vocabulary.valid(served):
                raise ValueError(f"served_sid is {list(served)}: expected {len(self.vocabulary.codes)} codes below {self.vocabulary.codes}")
            self.vocabulary.learn(row.item_id, served)
            sid = tuple(served)
        return sid

    def _collate(self, targets: Sequence[_Target]) -> GrmBatch:
        batch = collate([target.row for target in targets], self.vocabulary, self.model.config)
        return batch.with_targets([target.sid for target in targets])

    @staticmethod
    def _target_tensor(batch: GrmBatch) -> Tensor:
        assert batch.targets is not None
        return batch.targets

    def _search(self, positives: Sequence[_Target]) -> None:
        """Recall at 10 of the model and of the floors, on a fixed share of the targets."""
        share = int(self.config.recall_share * 2**32)
        asked = [target for target in positives if crc32(target.row.sample_id.encode()) < share]
        if not asked:
            return
        rows = [target.row for target in asked]
        found = self.predict(rows)
        for target, model_top, floor_tops in zip(asked, found, self.floors.recommend(rows, RECALL_AT), strict=True):
            hits = {name: target.sid in top for name, top in floor_tops.items()}
            self.metrics.open.searched({"model": target.sid in model_top, **hits})

    def _learn(self, batch: GrmBatch, targets: Sequence[_Target]) -> Scores:
        """One optimizer step; returns what the model said before it."""
        weight = torch.tensor([target.weight for target in targets], dtype=torch.float32)
        scores, taken = self.fitter.step(batch, weight, feedback=self._feedback(targets), valued=self._valued(targets))
        if taken:
            self.counters.steps += 1
        else:
            self.counters.skipped_steps += 1
            log.warning("step skipped reason=loss_not_finite samples=%s", [target.row.sample_id for target in targets])
        return scores

    def _teaches(self, target: _Target) -> bool:
        return target.weight > 0 or (self.config.gbpo > 0 and target.advantage < 0)

    def _chunks(self, learned: list[_Target], others: list[_Target]) -> list[list[_Target]]:
        """What each step learns: so many targets, and others in the proportion of them all, or the next step would unlearn what this one
        has learned of good and bad."""
        if not learned:
            return [others] if others else []
        chunks = []
        for start in range(0, len(learned), self.config.chunk):
            end = min(start + self.config.chunk, len(learned))
            first, last = (len(others) * place // len(learned) for place in (start, end))
            chunks.append(learned[start:end] + others[first:last])
        return chunks

    def _valued(self, targets: Sequence[_Target]) -> Valued | None:
        """What the targets were worth, where that is learned and known of any."""
        if all(target.bucket < 0 for target in targets):
            return None
        share = torch.tensor([target.share for target in targets], dtype=torch.float32)
        return Valued(torch.tensor([target.bucket for target in targets]), share)

    def _feedback(self, targets: Sequence[_Target]) -> Feedback | None:
        """What people said of the targets; how likely one was is known where it is the SID that serving had asked for."""
        if not (self.config.gbpo > 0 and any(target.advantage for target in targets)):
            return None
        old = [
            target.row.policy_logprob if target.row.sid is not None and tuple(target.row.sid) == target.sid else None for target in targets
        ]
        # The policy's loss is a mean over what it learns from, and not over what came along for the value token.
        share = self.config.gbpo * len(targets) / sum(map(self._teaches, targets))
        return Feedback(
            torch.tensor([math.nan if each is None else each for each in old], dtype=torch.float32),
            torch.tensor([target.advantage for target in targets], dtype=torch.float32),
            share,
        )

    def _engage(self, seen: Sequence[tuple[Sequence[_Target], Scores, Tensor]]) -> None:
        """Predict clicks and long views of everything that was scored, record, then fit the head once, and count."""
        if not seen:
            return
        targets = [target for group, _, _ in seen for target in group]
        rows = [target.row for target in targets]
        users = [row.user_id for row in rows]
        shown = torch.tensor(users), torch.tensor([row.item_id for row in rows])
        rates = self.engagement.rates
        before = watched(rows, rates.strangers(shown[0]), self.vocabulary)
        logits = self.engagement(
            torch.cat([scores.summary for _, scores, _ in seen]),
            torch.cat([scores.log_prob for _, scores, _ in seen]),
            torch.cat([codes for _, _, codes in seen]),
            *shown,
            before,
        )
        outcomes = torch.tensor([[_outcome(target.row.labels, label) for label in LABELS] for target in targets])
        for column, label in enumerate(LABELS):
            known = (~outcomes[:, column].isnan()).nonzero().squeeze(1).tolist()
            probability = torch.sigmoid(logits[:, column].detach().double())[known].tolist()
            self.metrics.open.predicted(
                label, probability, [int(outcomes[place, column]) for place in known], [users[place] for place in known]
            )
        loss = engagement_loss(logits, outcomes)
        if math.isfinite(loss.item()):
            self._engagement_optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._engagement_optimizer.step()
        rates.learn(*shown, outcomes)
        first = before.of(_first(rows))
        rates.learn(shown[0][first.row], first.item, first.outcomes)

    @torch.no_grad()
    def _value(self, seen: Sequence[tuple[Sequence[_Target], Scores, Tensor]]) -> None:
        """Record what was expected of everything that was scored beside its long view; then each bucket is worth what it is now."""
        worth = self.model.decoder.worth
        if self.values is None or worth is None or not seen:
            return
        told = torch.cat([scores.value for _, scores, _ in seen if scores.value is not None])
        rows = [target.row for group, _, _ in seen for target in group]
        known = [place for place, row in enumerate(rows) if row.labels.long_view is not None]
        outcomes = [int(rows[place].labels.long_view > 0) for place in known]
        self.metrics.open.predicted("value", (told.exp() @ worth)[known].tolist(), outcomes, [rows[place].user_id for place in known])
        worth.copy_(self.values.means())

    def _convert(self, seen: Sequence[tuple[Sequence[_Target], Scores, Tensor]], late: Sequence[Any]) -> None:
        """Predict conversions of everything that was scored, learn what the mode ingests, and record what is known for good."""
        if self.conversions is None or not (seen or late):
            return
        shown = None
        if seen:
            rows = [target.row for group, _, _ in seen for target in group]
            summary, log_prob = torch.cat([scores.summary for _, scores, _ in seen]), torch.cat([scores.log_prob for _, scores, _ in seen])
            shown = Shown(rows, summary, log_prob, torch.cat([codes for _, _, codes in seen]))
        now_ts = max(row.ready_ts for row in [*(shown.rows if shown else ()), *late])
        ended = self.conversions.step(shown, late, now_ts)
        if ended.said:
            self.metrics.open.predicted("conversion", ended.said, ended.converted, ended.users)


def _first(rows: Sequence[Any]) -> Tensor:
    """bool[B]: the rows that are their user's earliest."""
    earliest: dict[int, int] = {}
    for index in sorted(range(len(rows)), key=lambda index: rows[index].ts):
        earliest.setdefault(rows[index].user_id, index)
    found = torch.zeros(len(rows), dtype=torch.bool)
    found[list(earliest.values())] = True
    return found


def _outcome(labels: Any, name: str) -> float:
    """1 or 0 where the label is known, NaN where it is not."""
    count = getattr(labels, name)
    return float("nan") if count is None else float(count > 0)
