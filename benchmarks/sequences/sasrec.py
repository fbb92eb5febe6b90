"""SASRec (Kang and McAuley, 2018) trained with the full cross-entropy over all items: the strongest plain baseline on such data.

Causal self-attention over the history, item embeddings shared between input and output, a target at every position. The epoch is chosen by
NDCG@10 on the validation targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.sequences.data import HISTORY, Data
from benchmarks.sequences.metrics import Ranks

BATCH = 256


@dataclass(frozen=True)
class Settings:
    d_model: int = 128
    layers: int = 2
    heads: int = 2
    dropout: float = 0.5
    lr: float = 1e-3
    weight_decay: float = 0.0
    epochs: int = 60
    patience: int = 5


class SasRec(nn.Module):
    def __init__(self, items: int, settings: Settings) -> None:
        super().__init__()
        self.items = nn.Embedding(items + 1, settings.d_model, padding_idx=0)
        self.position = nn.Parameter(torch.zeros(HISTORY, settings.d_model))
        self.drop = nn.Dropout(settings.dropout)
        layer = nn.TransformerEncoderLayer(
            settings.d_model, settings.heads, settings.d_model, settings.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, settings.layers, nn.LayerNorm(settings.d_model), enable_nested_tensor=False)
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, histories: Tensor) -> Tensor:
        """int64[B, HISTORY] item ids, padded with 0 on the right → float[B, HISTORY, d_model]."""
        hidden = self.drop(self.items(histories) * self.items.embedding_dim**0.5 + self.position)
        causal = torch.ones(HISTORY, HISTORY, dtype=torch.bool).triu(1)
        return self.blocks(hidden, mask=causal)

    def scores(self, states: Tensor) -> Tensor:
        """float[..., d_model] → float[..., items + 1]; the padding can never win."""
        logits = states @ self.items.weight.T
        logits[..., 0] = float("-inf")
        return logits


def padded(sequences: Sequence[Sequence[int]]) -> Tensor:
    table = np.zeros((len(sequences), HISTORY), np.int64)
    for row, sequence in enumerate(sequences):
        kept = sequence[-HISTORY:]
        table[row, : len(kept)] = kept
    return torch.from_numpy(table)


@torch.no_grad()
def evaluate(model: SasRec, pairs: Sequence[tuple[Sequence[int], int]], may_repeat: bool) -> dict[str, float]:
    model.eval()
    ranks = Ranks()
    for start in range(0, len(pairs), BATCH):
        part = pairs[start : start + BATCH]
        histories = padded([history for history, _ in part])
        last = (histories > 0).sum(1) - 1
        scores = model.scores(model(histories)[torch.arange(len(part)), last])
        if not may_repeat:
            scores.scatter_(1, histories, float("-inf"))
        ranks.scores(scores.numpy(), [target for _, target in part])
    return ranks.summary()


def train(data: Data, seed: int, settings: Settings, said: Callable[[str], None]) -> tuple[dict[str, float], dict[str, Any]]:
    """Test metrics of the epoch that was best on the validation targets, and facts about the run."""
    torch.manual_seed(seed)
    model = SasRec(data.items, settings)
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr, (0.9, 0.98), weight_decay=settings.weight_decay)
    sequences = [sequence[-HISTORY - 1 :] for sequence in data.train() if len(sequence) > 1]
    inputs, targets = padded([sequence[:-1] for sequence in sequences]), padded([sequence[1:] for sequence in sequences])
    best: dict[str, float] = {"n10": -1.0}
    kept: dict[str, Tensor] = {}
    best_epoch = 0
    may_repeat = any(len(set(sequence)) < len(sequence) for sequence in data.train())
    for epoch in range(1, settings.epochs + 1):
        model.train()
        losses = []
        for rows in torch.randperm(len(inputs)).split(BATCH):
            aims = targets[rows]
            states = model(inputs[rows])[aims > 0]
            loss = functional.cross_entropy(model.scores(states), aims[aims > 0])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        found = evaluate(model, data.validation(), may_repeat)
        said(f"epoch {epoch:3} of at most {settings.epochs}  loss {np.mean(losses):.3f}  validation N@10 {found['n10']:.4f}")
        if found["n10"] > best["n10"]:
            best, best_epoch = found, epoch
            kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        elif epoch - best_epoch >= settings.patience:
            break
    model.load_state_dict(kept)
    facts = {"parameters": sum(parameter.numel() for parameter in model.parameters()), "epoch": best_epoch, "validation": best}
    return evaluate(model, data.test(), may_repeat), facts
