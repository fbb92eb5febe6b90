"""Our GRM on sequences: semantic IDs from co-occurrence and attributes, training, and what is chosen on the validation targets.

Every item has a SID of its own (collisions are resolved to the nearest free code before training), so that a SID is one item and hits are
item-level. Followers are counted once, before training, and a target never sees its own count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.sequences.causal import windows
from benchmarks.sequences.data import Data
from benchmarks.sequences.fitting import Schedule, fit
from benchmarks.sequences.metrics import Ranks
from benchmarks.sequences.sasrec import hide
from benchmarks.sequences.sequence_grm import SequenceGrm, Shape
from benchmarks.sequences.transitions import Transitions
from model.sid import cooccurrence, quantizer

Pair = tuple[Sequence[int], int]
Weights = tuple[float, float]
"""Of the heads `item` and transitions; the SID's log-probability has weight 1."""

SAMPLES = (3000, 6000)
"""Users whose validation targets choose the epoch, and those whose choose the weights of the heads."""
CHOOSING_WEIGHTS: Weights = (0.4, 0.3)
"""Of the heads while the epoch is chosen; the final ones are chosen after that."""
WINDOW = 5
DIMENSIONS = 64
"""Of what is known of an item from co-occurrence."""
ROOM = 3
"""SIDs there must be for every item, or too many would have to give way."""
SCORING_BATCH = 64
GRID: list[Weights] = list(product((0.0, 0.2, 0.4, 0.7, 1.0), (0.0, 0.15, 0.3, 0.5)))


@dataclass(frozen=True)
class Settings:
    """The same for every data set; rates, dropout and epochs were not searched."""

    shape: Shape = field(default_factory=Shape)
    attribute_share: float = 0.5
    lr: float = 4e-3
    weight_decay: float = 0.0
    epochs: int = 8
    patience: int = 3


def semantic_ids(data: Data, settings: Settings, seed: int) -> tuple[npt.NDArray[np.int32], dict[str, Any]]:
    """SIDs int32[items, 2], all distinct, and how many had to give way."""
    train = data.train()
    rows = np.concatenate([np.array(sequence, np.int64) for sequence in train]) - 1
    users = np.repeat(np.arange(len(train)), [len(sequence) for sequence in train])
    met = cooccurrence.Sequences(rows, users, np.ones(len(rows), np.float32))
    together = cooccurrence.factors(cooccurrence.pmi(met, data.items, WINDOW), data.items, DIMENSIONS, seed)
    together /= np.maximum(np.linalg.norm(together, axis=1, keepdims=True), 1e-9)
    share = settings.attribute_share
    vectors = np.concatenate([together * (1 - share) ** 0.5, data.attributes * share**0.5], 1).astype(np.float32)
    books = quantizer.fit(vectors, 2, codes_for(data.items, settings), seed)
    codes = quantizer.encode(vectors, books)
    unique = quantizer.separate(vectors, books, codes)
    shared = data.items - len(np.unique(codes, axis=0))
    return unique, {"sids_shared_before": shared, "sids_moved": int((unique != codes).any(1).sum())}


def codes_for(items: int, settings: Settings) -> int:
    """Codes of a level: those of the settings, doubled until there is room for so many items."""
    codes = settings.shape.codes
    while codes**2 < ROOM * items:
        codes *= 2
    return codes


class Recommender:
    """A model and the counts beside it."""

    def __init__(self, data: Data, settings: Settings, seed: int) -> None:
        torch.manual_seed(seed)
        sids, self.facts = semantic_ids(data, settings, seed)
        self._data = data
        self.model = SequenceGrm(sids, data.attributes, replace(settings.shape, codes=codes_for(data.items, settings)))
        self.count(data.train())

    def count(self, sequences: Sequence[Sequence[int]]) -> None:
        self.model.count(sequences)
        self._transitions = Transitions(sequences, self._data.items)

    def measure(self, pairs: Sequence[Pair], weights: Sequence[Weights] = ((0.0, 0.0),)) -> list[dict[str, float]]:
        """Metrics with each of the weights."""
        ranks = [Ranks() for _ in weights]
        for start in range(0, len(pairs), SCORING_BATCH):
            part = pairs[start : start + SCORING_BATCH]
            histories = [history for history, _ in part]
            heads = self.model.heads(histories)
            counts = torch.from_numpy(self._transitions.log_score(histories))
            for (by_item, by_count), of in zip(weights, ranks, strict=True):
                scores = heads["sid"] + counts * by_count
                if by_item:
                    scores += heads["item"] * by_item
                if not self._data.may_repeat:
                    hide(scores, histories)
                of.scores(scores.numpy(), [target for _, target in part])
        return [of.summary() for of in ranks]


def train(
    data: Data, seed: int, settings: Settings, folder: Path, said: Callable[[str], None]
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Test metrics by method, and facts about the run; `folder` keeps every epoch.

    `GRM`: the SID's probability alone. `three heads`: with the weights that were best on the validation targets.
    `+ validation transitions`: the validation items are counted as followers, and nothing is trained on them.
    """
    recommender = Recommender(data, settings, seed)
    model = recommender.model
    schedule = Schedule(settings.lr, settings.weight_decay, settings.epochs, settings.patience)
    identity = {"data": data.name, "seed": seed, "settings": asdict(settings)}
    validation, test, users = data.validation(), data.test(), len(data.sequences)
    rng = np.random.default_rng(seed)
    choosing, weighing = ([validation[user] for user in rng.choice(users, min(count, users), replace=False)] for count in SAMPLES)

    def measure() -> dict[str, float]:
        return recommender.measure(choosing, [CHOOSING_WEIGHTS])[0]

    fitted = fit(model, windows(data.train()), schedule, measure, seed, folder / "train", identity, said)
    on_validation = recommender.measure(weighing, GRID)
    best = max(range(len(GRID)), key=lambda index: on_validation[index]["n10"])
    said(f"validation: {on_validation[0]}; with {GRID[best]}: {on_validation[best]}")
    methods: dict[str, dict[str, float]] = {}
    for suffix in ("", " + validation transitions"):
        if suffix:
            recommender.count(data.until_validation())
        alone, together = recommender.measure(test, [(0.0, 0.0), GRID[best]])
        methods |= {f"GRM{suffix}": alone, f"GRM, three heads{suffix}": together}
    facts = recommender.facts | {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epoch": fitted.epoch,
        "epoch_seconds": round(fitted.seconds, 1),
        "earlier": fitted.earlier,
        "weights": GRID[best],
        "validation": on_validation[0],
        "validation_three_heads": on_validation[best],
    }
    return methods, facts


def refit(
    data: Data, seed: int, settings: Settings, folder: Path, chosen: dict[str, Any], said: Callable[[str], None]
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Test metrics of a model that learned the validation items too, for as many epochs and with the weights that `train` chose."""
    recommender = Recommender(data, settings, seed)
    recommender.count(data.until_validation())
    schedule = Schedule(settings.lr, settings.weight_decay, settings.epochs, settings.patience)
    identity = {"data": data.name, "seed": seed, "settings": asdict(settings), "epochs": chosen["epoch"]}
    fitted = fit(
        recommender.model, windows(data.until_validation()), schedule, None, seed, folder / "refit", identity, said, stop=chosen["epoch"]
    )
    alone, together = recommender.measure(data.test(), [(0.0, 0.0), tuple(chosen["weights"])])
    facts = {"epoch": fitted.epoch, "epoch_seconds": round(fitted.seconds, 1), "earlier": fitted.earlier, "weights": chosen["weights"]}
    return {"GRM, refit": alone, "GRM, three heads, refit": together}, facts
