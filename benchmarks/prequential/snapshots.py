"""Published versions of the learner, one per publish interval, all asked about the same impressions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kernels.trie import Trie
from model.grm import Grm, Vocabulary, collate
from model.online.engagement import LABELS, RatedHead, watched
from model.online.step import OnlineLearner
from streaming.records import Sample

HOUR_MS = 3_600_000
DEPTHS = (10, 50)
BEAM = 64
"""Wider than the deepest list, because what is in the history is left out of it."""

Sid = tuple[int, ...]


@dataclass(frozen=True)
class Interval:
    """How often a version is published: `hours`, 0 = the learner itself is asked, infinite = once, at the end of the warm-up."""

    name: str
    hours: float

    def due(self, since_ms: int) -> bool:
        """Whether a version is published this long after the end of the warm-up."""
        if self.hours == 0:
            return False
        return since_ms == 0 if math.isinf(self.hours) else since_ms % round(self.hours * HOUR_MS) == 0


INTERVALS = (
    Interval("streaming", 0),
    Interval("hourly", 1),
    Interval("every 6 hours", 6),
    Interval("daily", 24),
    Interval("every 3 days", 72),
    Interval("frozen", math.inf),
)


class Catalogue:
    """Which videos an SID stands for, and the tree of all SIDs."""

    def __init__(self, item_ids: npt.NDArray[np.int64], sids: npt.NDArray[np.int32], codes: Sequence[int]) -> None:
        """int64[N], int32[N, L], and the codes of each level."""
        self.trie = Trie.build(torch.from_numpy(sids.astype(np.int64)), codes)
        self._items: dict[Sid, list[int]] = {}
        for item, sid in zip(item_ids.tolist(), sids.tolist(), strict=True):
            self._items.setdefault(tuple(sid), []).append(item)

    def hits(self, found: Sequence[Sid], item: int, seen: AbstractSet[int]) -> list[float]:
        """Probability that `item` is among the first of each depth, when SIDs become their unseen videos in random order."""
        before = 0
        for sid in found:
            videos = [video for video in self._items.get(sid, []) if video not in seen]
            if item in videos:
                return [min(1.0, max(0.0, (depth - before) / len(videos))) for depth in DEPTHS]
            before += len(videos)
        return [0.0] * len(DEPTHS)


@dataclass(frozen=True)
class Question:
    """An impression to be predicted; `record` is its number, `recall` whether its video is also to be found."""

    record: int
    sample: Sample
    sid: Sid
    recall: bool


@dataclass(frozen=True)
class Answer:
    """long_view: probability. hits: by depth; empty where recall was not asked for."""

    record: int
    long_view: float
    hits: list[float]


class Version:
    """Weights to ask: a copy that was published, or the learner's own."""

    def __init__(self, model: Grm, engagement: RatedHead, vocabulary: Vocabulary, catalogue: Catalogue) -> None:
        self._model, self._engagement, self._vocabulary, self._catalogue = model, engagement, vocabulary, catalogue
        self.waiting: list[Question] = []

    @classmethod
    def like(cls, learner: OnlineLearner, catalogue: Catalogue) -> Version:
        """A version of its own, with weights that are not the learner's yet."""
        config = learner.model.config
        return cls(
            Grm(config), RatedHead(config.d_model, config.codes, config.seed, learner.config.rate_rows), learner.vocabulary, catalogue
        )

    def publish(self, learner: OnlineLearner) -> None:
        """Take over the learner's weights."""
        self.load(learner.model.state_dict(), learner.engagement.state_dict())

    def load(self, model: Mapping[str, Tensor], engagement: Mapping[str, Tensor]) -> None:
        self._model.load_state_dict(model)
        self._engagement.load_state_dict(engagement)

    def state(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self._model.state_dict().items()}
        return tensors | {f"engagement.{name}": tensor for name, tensor in self._engagement.state_dict().items()}

    @torch.no_grad()
    def answer(self) -> list[Answer]:
        """Answer what waits."""
        asked, self.waiting = self.waiting, []
        if not asked:
            return []
        batch = collate([question.sample for question in asked], self._vocabulary, self._model.config)
        batch = batch.with_targets([question.sid for question in asked])
        scores = self._model(batch)
        assert batch.targets is not None
        users = torch.tensor([question.sample.user_id for question in asked])
        items = torch.tensor([question.sample.item_id for question in asked])
        before = watched([question.sample for question in asked], self._engagement.rates.strangers(users), self._vocabulary)
        logits = self._engagement(scores.summary, scores.log_prob, batch.targets, users, items, before)
        long_view = torch.sigmoid(logits[:, LABELS.index("long_view")].double()).tolist()
        hits: dict[int, list[float]] = {}
        searched = [question for question in asked if question.recall]
        if searched:
            widths = [BEAM] * self._model.config.levels
            queries = collate([question.sample for question in searched], self._vocabulary, self._model.config)
            beams = self._model.beam(queries, widths, self._catalogue.trie).sids.tolist()
            for question, sids in zip(searched, beams, strict=True):
                seen = {entry.item_id for entry in question.sample.context.history}
                hits[question.record] = self._catalogue.hits([tuple(sid) for sid in sids], question.sample.item_id, seen)
        return [Answer(question.record, long, hits.get(question.record, [])) for question, long in zip(asked, long_view, strict=True)]
