"""One model of one variant: semantic IDs, a decoder, one pass over the targets, and how well the later ones are found."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.ablations.problems import Problem
from benchmarks.prequential.snapshots import DEPTHS, Catalogue
from model.grm import Grm, GrmBatch, GrmConfig, Vocabulary, collate, preset
from model.grm.fit import Fitter, Precision
from model.sid import quantizer
from streaming.records import Sample

Sids = npt.NDArray[np.int32]

CHUNK = 32
FOUND = 64
PROBED = 64
NEAR = 0.02
"""Decoders are at equal compute when their operations a target differ by no more than this share."""


@dataclass(frozen=True)
class Variant:
    """content, creative: levels of `codes` codes; where `creative` is 0 the SID is of both embeddings together. changes: of the model's
    configuration. as_costly_as: changes that make another decoder; the feed-forward is widened until the operations are the same. on: the
    data where it makes a difference. by_chance: what is taught of clusters of codes is taught of random ones, as a control. precision: of a
    step's products."""

    name: str
    content: int = 2
    creative: int = 2
    codes: int = 64
    changes: tuple[tuple[str, Any], ...] = ()
    as_costly_as: tuple[tuple[str, Any], ...] = ()
    on: tuple[str, ...] = ("KuaiRand", "Beauty")
    by_chance: bool = False
    precision: Precision = "float32"


FULL = (("context_layers", 2), ("context_splits", 2), ("context_groups", 4))
THOUGHTFUL = (("lazy_trunk", 1), ("thinking", 16))
THINKING = (("thinking_tokens", True), ("thinking", 16), ("thinking_goal", 0.1))
VARIANTS = (
    Variant("D-SID 2 + 2 × 64, lazy decoder"),
    Variant("full decoder: keys, values per layer and head", changes=FULL),
    Variant("lazy decoder as costly as the full one", as_costly_as=FULL),
    Variant("LazyAR (first layer reads no code)", changes=(("lazy_trunk", 1),)),
    Variant("single SID 4 × 64", content=4, creative=0),
    Variant("D-SID 1 + 1 × 64", content=1, creative=1),
    Variant("D-SID 2 + 1 × 64", content=2, creative=1),
    Variant("D-SID 3 + 3 × 64", content=3, creative=3),
    Variant("D-SID 2 + 2 × 16", codes=16),
    Variant("D-SID 2 + 2 × 256", codes=256),
    # Beauty has histories of 20 items at most, and no authors.
    Variant("context: 48 newest videos instead of 32", changes=(("history", 48),), on=("KuaiRand",)),
    Variant("context: 32 newest, 16 clusters of older", changes=(("long", 16),), on=("KuaiRand",)),
    Variant("context: 32 newest, 16 authors", changes=(("cross", 16),), on=("KuaiRand",)),
    Variant("context: 32 newest, 16 clusters, 16 authors", changes=(("long", 16), ("cross", 16)), on=("KuaiRand",)),
    Variant("LazyAR, trunk taught 16 clusters a level", changes=THOUGHTFUL),
    Variant("LazyAR, trunk taught 16 random clusters", changes=THOUGHTFUL, by_chance=True),
    Variant("lazy decoder, learned in bfloat16", on=("KuaiRand",), precision="bfloat16"),
    Variant("thinking tokens, taught nothing", changes=(("thinking_tokens", True),)),
    Variant("thinking tokens, taught 16 clusters and a goal", changes=THINKING),
    Variant("lazy decoder as costly as thinking tokens", as_costly_as=(("thinking_tokens", True),)),
)


@cache
def semantic_ids(problem: Problem, content_levels: int, creative_levels: int, size: int, seed: int) -> tuple[Sids, list[quantizer.Vectors]]:
    """SIDs int32[N, L], one a video as far as there are free ones, and the codebook of each level."""
    if not creative_levels:
        both = np.concatenate([problem.content, problem.creative], 1)
        books = quantizer.fit(both, content_levels, size, seed)
        return quantizer.separate(both, books, quantizer.encode(both, books), or_share=True), books
    content_books = quantizer.fit(problem.content, content_levels, size, seed)
    creative_books = quantizer.fit(problem.creative, creative_levels, size, seed + 1)
    content = quantizer.encode(problem.content, content_books)
    creative = quantizer.encode(problem.creative, creative_books)
    creative = quantizer.separate(problem.creative, creative_books, creative, prefix=content, or_share=True)
    return np.concatenate([content, creative], 1), [*content_books, *creative_books]


def operations(config: GrmConfig, batch: GrmBatch) -> float:
    """Multiply-adds of a forward pass, a target; the backward pass takes twice as many."""
    model = Grm(config).requires_grad_(False)  # the counter hooks into whatever asks for a gradient
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch)
    return counter.get_total_flops() / 2 / len(batch)


def matched(config: GrmConfig, wanted: float, batch: GrmBatch) -> GrmConfig:
    """The configuration with the feed-forward width that brings it nearest to the wanted operations.

    Raises:
        ValueError: no width brings it near.
    """
    low, high = (operations(replace(config, ffn=width), batch) for width in (64, 128))
    width = 64 * max(1, round(1 + (wanted - low) / (high - low)))
    found = replace(config, ffn=width)
    if abs(operations(found, batch) / wanted - 1) > NEAR:
        raise ValueError(f"{operations(found, batch):.0f} operations a target with a feed-forward of {width}, {wanted:.0f} were wanted")
    return found


class Trial:
    """A variant on a problem."""

    def __init__(self, problem: Problem, variant: Variant, seed: int) -> None:
        self.problem, self._precision = problem, variant.precision
        sids, books = semantic_ids(problem, variant.content, variant.creative, variant.codes, seed)
        codes = tuple(len(book) for book in books)
        self._vocabulary = Vocabulary(problem.item_ids, sids, problem.durations_ms, problem.authors, codes)
        self._catalogue = Catalogue(problem.item_ids, sids, codes)
        plain = preset("laptop", codes, content_levels=variant.content, seed=seed)
        config = self._config = replace(plain, **dict(variant.changes))
        probe = self._batch(problem.train[:PROBED])
        if variant.as_costly_as:
            config = matched(config, operations(replace(plain, **dict(variant.as_costly_as)), probe), probe)
        self.operations = operations(config, probe)
        self.model = Grm(config)
        if self.model.thinking is not None:
            rng = np.random.default_rng(seed)
            self.model.thinking.use([book[rng.permutation(len(book))] for book in books] if variant.by_chance else books)
        self.shared = len(sids) - len(np.unique(sids, axis=0))

    def learn(self) -> float:
        """One pass over the targets; seconds."""
        fitter, began = Fitter(self.model, precision=self._precision), time.perf_counter()
        for start in range(0, len(self.problem.train), CHUNK):
            rows = self.problem.train[start : start + CHUNK]
            fitter.step(self._batch(rows), torch.ones(len(rows)))
        return time.perf_counter() - began

    @torch.no_grad()
    def test(self) -> dict[str, float]:
        """Recall among all videos, and the mean negative log-probability of a target's whole SID."""
        hits, losses = [], []
        for start in range(0, len(self.problem.test), CHUNK):
            rows = self.problem.test[start : start + CHUNK]
            batch = self._batch(rows)
            losses.append(-self.model.log_prob(batch).sum(1))
            beams = self.model.beam(batch, [FOUND] * self.model.config.levels, self._catalogue.trie).sids.tolist()
            for row, sids in zip(rows, beams, strict=True):
                seen = set() if self.problem.repeats else {entry.item_id for entry in row.context.history}
                hits.append(self._catalogue.hits([tuple(sid) for sid in sids if sid[0] >= 0], row.item_id, seen))
        recall = np.mean(hits, 0).tolist()
        return {f"recall_at_{depth}": value for depth, value in zip(DEPTHS, recall, strict=True)} | {
            "loss": float(torch.cat(losses).mean())
        }

    def _batch(self, rows: list[Sample]) -> GrmBatch:
        return collate(rows, self._vocabulary, self._config).with_targets([self._vocabulary.sid_of(row.item_id) or () for row in rows])


def measure(problem: Problem, variant: Variant, seed: int) -> dict[str, Any]:
    """The row of one variant."""
    trial = Trial(problem, variant, seed)
    learning = trial.learn()
    dense = sum(parameter.numel() for _, parameter in trial.model.dense_parameters())
    return {
        **trial.test(),
        "operations_a_target": round(trial.operations),
        "dense_parameters": dense,
        "ffn": trial.model.config.ffn,
        "sids_shared": trial.shared,
        "training_s": round(learning, 1),
    }
