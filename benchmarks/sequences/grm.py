"""Our GRM on sequences: semantic IDs from co-occurrence and attributes, the decoder, and beam search constrained to the items there are.

Every item has a SID of its own (collisions are resolved to the nearest free code before training), so that a generated SID is one item and
hits are item-level. The same `Fitter` as online, over several epochs; the followers are counted once, before, and a target never sees its
own count. The epoch is chosen by NDCG@10 on the validation targets of a sample of users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.sequences.data import HISTORY, Data
from benchmarks.sequences.metrics import DEPTH, Ranks
from kernels.trie import Trie
from model.grm import Grm, GrmBatch, GrmConfig, Vocabulary, collate
from model.grm.fit import FitConfig, Fitter
from model.online.checkpoint import Checkpoint, Checkpoints
from model.online.step import LearnerState
from model.sid import cooccurrence, quantizer

Pair = tuple[Sequence[int], int]

CHOOSING_USERS = 4000
WINDOW = 5
BEAM_BATCH = 64


@dataclass(frozen=True)
class Settings:
    """Chosen on Beauty's validation targets; the same for every data set."""

    levels: int = 3
    codes: int = 128
    attribute_share: float = 0.5
    d_model: int = 128
    layers: int = 2
    epochs: int = 8
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    beam: int = 100


@dataclass(frozen=True)
class _Entry:
    item_id: int
    ts: int = 0
    play_ms: int | None = None
    kinds: tuple[str, ...] = ("click",)


@dataclass(frozen=True)
class _History:
    history: list[_Entry]


@dataclass(frozen=True)
class _Row:
    """A user without an id: these data have no profile, and an id would only be learned by heart."""

    context: _History
    user_id: int = 0
    ts: int = 0


def semantic_ids(data: Data, settings: Settings, seed: int) -> tuple[npt.NDArray[np.int32], dict[str, Any]]:
    """SIDs int32[items, levels], all distinct, and how many had to give way."""
    train = data.train()
    rows = np.concatenate([np.array(sequence, np.int64) for sequence in train]) - 1
    users = np.repeat(np.arange(len(train)), [len(sequence) for sequence in train])
    met = cooccurrence.Sequences(rows, users, np.ones(len(rows), np.float32))
    together = cooccurrence.factors(cooccurrence.pmi(met, data.items, WINDOW), data.items, data.attributes.shape[1], seed)
    together /= np.maximum(np.linalg.norm(together, axis=1, keepdims=True), 1e-9)
    share = settings.attribute_share
    vectors = np.concatenate([together * (1 - share) ** 0.5, data.attributes * share**0.5], 1).astype(np.float32)
    books = quantizer.fit(vectors, settings.levels, settings.codes, seed)
    codes = quantizer.encode(vectors, books)
    unique = quantizer.separate(vectors, books, codes)
    shared = data.items - len(np.unique(codes, axis=0))
    return unique, {"sids_shared_before": shared, "sids_moved": int((unique != codes).any(1).sum())}


class Generator:
    """The model, what it may generate, and the way from sequences to its batches."""

    def __init__(self, data: Data, settings: Settings, seed: int) -> None:
        self.settings = settings
        sids, self.facts = semantic_ids(data, settings, seed)
        config = GrmConfig(
            codes=(settings.codes,) * settings.levels,
            d_model=settings.d_model,
            layers=settings.layers,
            heads=4,
            self_groups=1,
            ffn=4 * settings.d_model,
            context_hidden=settings.d_model,
            d_sparse=32,
            user_rows=16,
            item_rows=1 << 17,
            prefix_rows=1 << 16,
            d_prefix=64,
            events=HISTORY,
            history=HISTORY,
            content_levels=settings.levels,
            followers=64,
            prefix_lr=0.1,
            seed=seed,
        )
        self.model = Grm(config)
        nothing = np.zeros(data.items, np.int64)
        self._vocabulary = Vocabulary(np.arange(1, data.items + 1), sids, nothing, nothing - 1, config.codes)
        self._sids = sids
        self._item_of = {tuple(sid): item for item, sid in enumerate(sids.tolist(), 1)}
        self._trie = Trie.build(torch.from_numpy(sids.astype(np.int64)), config.codes)
        self._entries = [_Entry(item) for item in range(data.items + 1)]

    def batch(self, pairs: Sequence[Pair]) -> GrmBatch:
        rows = [_Row(_History([self._entries[item] for item in reversed(history[-HISTORY:])])) for history, _ in pairs]
        batch = collate(rows, self._vocabulary, self.model.config)
        return batch.with_targets([self._sids[target - 1].tolist() for _, target in pairs])

    def count(self, pairs: Sequence[Pair]) -> None:
        """Let the targets be followers of their histories."""
        for start in range(0, len(pairs), 1000):
            batch = self.batch(pairs[start : start + 1000])
            assert batch.targets is not None
            self.model.followers.learn(batch.memory, batch.targets)

    def recommend(self, pairs: Sequence[Pair]) -> Iterator[list[int]]:
        """The ten likeliest items of each, best first."""
        widths = [self.settings.beam] * (self.settings.levels - 1) + [DEPTH]
        for start in range(0, len(pairs), BEAM_BATCH):
            for found in self.model.beam(self.batch(pairs[start : start + BEAM_BATCH]), widths, self._trie).sids.tolist():
                yield [self._item_of[tuple(sid)] for sid in found if sid[0] >= 0]

    def measure(self, pairs: Sequence[Pair]) -> dict[str, float]:
        ranks = Ranks()
        ranks.lists(list(self.recommend(pairs)), [target for _, target in pairs])
        return ranks.summary()


def train(
    data: Data, seed: int, settings: Settings, folder: Path, said: Callable[[str], None]
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Test metrics with and without validation transitions in the followers, and facts about the run; `folder` keeps every epoch."""
    generator = Generator(data, settings, seed)
    pairs = [(sequence[:place], sequence[place]) for sequence in data.train() for place in range(1, len(sequence))]
    validation = data.validation()
    chosen = np.random.default_rng(seed).choice(len(validation), min(CHOOSING_USERS, len(validation)), replace=False)
    choosing = [validation[user] for user in chosen]
    fitter = Fitter(generator.model, FitConfig(lr=settings.lr, count_lr=0.03, warmup=200, weight_decay=settings.weight_decay))
    checkpoints = Checkpoints(folder)
    identity = {"data": data.name, "seed": seed, "settings": vars(settings), "config": generator.model.config.to_json()}
    best, best_epoch, first = {"n10": -1.0}, 0, 1
    kept: dict[str, torch.Tensor] = {}
    if (found := checkpoints.load(identity)) is not None:
        tensors, facts = found.state.tensors, found.state.facts
        fitter.restore(tensors)
        kept = {name.removeprefix("best."): tensor for name, tensor in tensors.items() if name.startswith("best.")}
        best, best_epoch, first = facts["best"], facts["best_epoch"], facts["epoch"] + 1
        said(f"resumed after epoch {facts['epoch']}")
    else:
        generator.count(pairs)
    per_epoch = len(pairs) // settings.batch
    for epoch in range(first, settings.epochs + 1):
        order = np.random.default_rng((seed, epoch)).permutation(len(pairs))
        losses = []
        for step in range(per_epoch):
            batch = generator.batch([pairs[index] for index in order[step * settings.batch : (step + 1) * settings.batch]])
            rate = max(0.02, 1 - ((epoch - 1) * per_epoch + step) / (settings.epochs * per_epoch))
            scores, _ = fitter.step(batch, torch.ones(len(batch)), rate=rate, epochs=True)
            losses.append(-float(scores.log_prob.sum(1).mean()))
        measured = generator.measure(choosing)
        quality = f"validation R@10 {measured['r10']:.4f} N@10 {measured['n10']:.4f}"
        said(f"epoch {epoch:2} of {settings.epochs}  loss {np.mean(losses):.3f}  {quality}")
        if measured["n10"] > best["n10"]:
            best, best_epoch = measured, epoch
            kept = {name: tensor.clone() for name, tensor in generator.model.state_dict().items()}
        tensors = fitter.state() | {f"best.{name}": tensor for name, tensor in kept.items()}
        checkpoints.save(Checkpoint(LearnerState(tensors, {"best": best, "best_epoch": best_epoch, "epoch": epoch}), {}, identity))
    generator.model.load_state_dict(kept)
    found_plain = generator.measure(data.test())
    generator.count(validation)
    dense = sum(parameter.numel() for _, parameter in generator.model.dense_parameters())
    facts = generator.facts | {"dense_parameters": dense, "epoch": best_epoch, "validation": best}
    return {"grm": found_plain, "grm + validation transitions": generator.measure(data.test())}, facts
