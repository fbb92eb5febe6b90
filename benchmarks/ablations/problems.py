"""The two data sets in one shape: histories and targets to learn from once, later ones to be found, two embeddings a video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.prequential.stream import earlier, positive, samples
from benchmarks.sequences import data
from jobs.sids import kuairand_input
from model.sid import cooccurrence, encoder
from streaming.records import Context, HistoryEntry, Labels, Sample
from streaming.sources.kuairand_events import exposures

Ints = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]

SEQUENCE_WINDOW = 5


@dataclass(frozen=True, eq=False)
class Problem:
    """Samples of positive targets to learn from in this order, samples to test on, and the videos; compared by identity.

    Attributes:
        item_ids: int64[N]; durations_ms, authors: int64[N], 0 and -1 = unknown.
        content, creative: float32[N, d], unit length.
        repeats: whether a target may be in its history.
    """

    name: str
    train: list[Sample]
    test: list[Sample]
    item_ids: Ints
    durations_ms: Ints
    authors: Ints
    content: Vectors
    creative: Vectors
    repeats: bool


def kuairand(folder: Path, targets: int, tested: int, seed: int) -> Problem:
    """The log's first positively watched videos, and those that come next. Embeddings are of what was known before the log."""
    rows = exposures(folder)
    catalogue, together = kuairand_input(folder, rows.first_ms)
    content, creative = encoder.embed(catalogue, together, seed=seed)
    watched = (sample for sample in samples(rows, earlier(folder, rows.first_ms)) if positive(sample))
    taken = [sample for sample, _ in zip(watched, range(targets + tested), strict=False)]
    if len(taken) < targets + tested:
        raise ValueError(f"{folder}: {len(taken)} positively watched videos, {targets + tested} are needed: ask for fewer targets")
    ids, durations = catalogue["item_id"].to_numpy(), catalogue["duration_ms"].fill_null(0).to_numpy()
    authors = catalogue["author_id"].fill_null(-1).to_numpy()
    return Problem("KuaiRand", taken[:targets], taken[targets:], ids, durations, authors, content, creative, repeats=False)


def beauty(folder: Path, targets: int, tested: int, seed: int) -> Problem:
    """Training targets in random order, and the test targets of some users. Content is co-occurrence, creative is attributes."""
    found = data.load(folder, "Beauty")
    train = found.train()
    rows = np.concatenate([np.array(sequence, np.int64) for sequence in train]) - 1
    users = np.repeat(np.arange(len(train)), [len(sequence) for sequence in train])
    met = cooccurrence.Sequences(rows, users, np.ones(len(rows), np.float32))
    pmi = cooccurrence.pmi(met, found.items, SEQUENCE_WINDOW)
    content = cooccurrence.factors(pmi, found.items, found.attributes.shape[1], seed)
    content = (content / np.maximum(np.linalg.norm(content, axis=1, keepdims=True), 1e-9)).astype(np.float32)
    pairs = [(sequence[:place], sequence[place]) for sequence in train for place in range(1, len(sequence))]
    rng = np.random.default_rng(seed)
    if len(pairs) < targets:
        raise ValueError(f"{folder}: {len(pairs)} training targets, {targets} are needed: ask for fewer")
    test = found.test()
    learned = [pairs[place] for place in rng.permutation(len(pairs))[:targets]]
    asked = [test[place] for place in rng.permutation(len(test))[:tested]]
    ids = np.arange(1, found.items + 1)
    train_samples, test_samples = list(_sequence_samples(learned)), list(_sequence_samples(asked))
    return Problem("Beauty", train_samples, test_samples, ids, ids * 0, ids * 0 - 1, content, found.attributes, repeats=True)


def _sequence_samples(pairs: list[tuple[list[int], int]]) -> Iterator[Sample]:
    """Sequences have neither times nor users that come back: all are user 0 at time 0."""
    for number, (history, target) in enumerate(pairs):
        entries = [HistoryEntry(item, 0, None, ["click"]) for item in reversed(history[-data.HISTORY :])]
        yield Sample(
            sample_id=f"{number}:initial",
            kind="initial",
            impression_id=str(number),
            user_id=0,
            item_id=target,
            ts=0,
            ready_ts=0,
            labels=Labels(click=1),
            context=Context(entries),
        )
