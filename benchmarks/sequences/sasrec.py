"""SASRec (Kang and McAuley, 2018) trained with the full cross-entropy over all items: the strongest plain baseline on such data.

Causal self-attention over the history, item embeddings shared between input and output, a target at every position. The epoch is chosen by
NDCG@10 on the validation targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.sequences.causal import BATCH, CausalEncoder, full_cross_entropy, padded, windows
from benchmarks.sequences.data import Data
from benchmarks.sequences.fitting import Schedule, fit
from benchmarks.sequences.metrics import Ranks


@dataclass(frozen=True)
class Settings:
    d_model: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.5
    lr: float = 2e-3
    weight_decay: float = 0.0
    epochs: int = 40
    patience: int = 6


class SasRec(nn.Module):
    def __init__(self, items: int, settings: Settings) -> None:
        super().__init__()
        self.items = nn.Embedding(items + 1, settings.d_model)
        self.encoder = CausalEncoder(settings.d_model, settings.layers, settings.heads, settings.d_model, settings.dropout)
        nn.init.normal_(self.items.weight, std=0.02)

    def forward(self, histories: Tensor) -> Tensor:
        """int64[B, S] item ids, padded with 0 on the right → float[B, S, d_model]."""
        embedded: Tensor = self.encoder(self.items(histories) * self.items.embedding_dim**0.5)
        return embedded

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        kept = targets > 0
        return full_cross_entropy(self(inputs)[kept], self.items.weight, targets[kept])

    def count_weights(self) -> list[nn.Parameter]:
        return []

    def scores(self, histories: Sequence[Sequence[int]]) -> Tensor:
        """float[B, items + 1]; column 0 is no item."""
        table = padded(histories)
        states = self(table)[torch.arange(len(table)), (table > 0).sum(1) - 1]
        return states @ self.items.weight.T


@torch.no_grad()
def evaluate(model: SasRec, pairs: Sequence[tuple[Sequence[int], int]], may_repeat: bool) -> dict[str, float]:
    ranks = Ranks()
    for start in range(0, len(pairs), BATCH):
        part = pairs[start : start + BATCH]
        histories = [history for history, _ in part]
        scores = model.scores(histories)
        if not may_repeat:
            hide(scores, histories)
        ranks.scores(scores.numpy(), [target for _, target in part])
    return ranks.summary()


def hide(scores: Tensor, histories: Sequence[Sequence[int]]) -> None:
    """Put every item of a history behind all others."""
    for row, history in enumerate(histories):
        scores[row, list(history)] = float("-inf")


def train(data: Data, seed: int, settings: Settings, folder: Path, said: Callable[[str], None]) -> tuple[dict[str, float], dict[str, Any]]:
    """Test metrics of the epoch that was best on the validation targets, and facts about the run; `folder` keeps every epoch."""
    torch.manual_seed(seed)
    model = SasRec(data.items, settings)
    schedule = Schedule(settings.lr, settings.weight_decay, settings.epochs, settings.patience)
    identity = {"data": data.name, "seed": seed, "settings": asdict(settings)}

    def measure() -> dict[str, float]:
        return evaluate(model, data.validation(), data.may_repeat)

    fitted = fit(model, windows(data.train()), schedule, measure, seed, folder, identity, said)
    facts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epoch": fitted.epoch,
        "epoch_seconds": round(fitted.seconds, 1),
        "earlier": fitted.earlier,
        "validation": fitted.validation,
    }
    return evaluate(model, data.test(), data.may_repeat), facts
