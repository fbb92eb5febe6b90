"""Two heads over a frozen encoder's states, content and creative, trained to say different things (RaG, arXiv 2606.25496, eq. 5-8).

L = L_content + gamma1 L_creative + gamma2 L_orth: a contrastive loss for each head over mined pairs (the same product, items that Swing
finds together, see `model.sid.cooccurrence`), and a penalty on what the two have in common. The encoder itself is not trained: any
vectors do as states, `model.sid.vision_language` makes them of frames and text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.sid.cooccurrence import Pairs
from model.sid.quantizer import refuse_broken

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class HeadConfig:
    """dimensions: of each embedding. hidden: width of each head's hidden layer; 0 = a linear head. dropout: of the states, so that an item
    paired with itself is seen twice, differently (SimCSE, Gao et al., 2021). temperature, gamma1, gamma2: RaG names no values.

    orthogonality: "dimensions" = squared norm of the batch's cross-covariance: no dimension of one head is correlated with one of the
    other; "items" = eq. 7 read for one item, the squared inner product of its two embeddings, which does not keep one head from being a
    function of the other (turn one of two equal embeddings by a right angle).
    """

    dimensions: int = 64
    hidden: int = 0
    dropout: float = 0.1
    temperature: float = 0.05
    gamma1: float = 1.0
    gamma2: float = 10.0
    orthogonality: Literal["dimensions", "items"] = "dimensions"
    batch: int = 512
    steps: int = 1000
    lr: float = 1e-3
    weight_decay: float = 1e-2
    seed: int = 0


class Factor(NamedTuple):
    """What one head learns from: states float32[N, d_in] of all items (each head may have its own), and pairs that belong together.

    Pairs are drawn in proportion to their value.
    """

    states: Vectors
    pairs: Pairs


class Heads(nn.Module):
    """content, creative: from states float[B, d_in] to embeddings float[B, dimensions] of unit length."""

    def __init__(self, content_width: int, creative_width: int, config: HeadConfig) -> None:
        super().__init__()
        self.config, self.widths = config, (content_width, creative_width)
        self.content = _head(content_width, config)
        self.creative = _head(creative_width, config)

    def forward(self, content_states: Tensor, creative_states: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.content(content_states), dim=-1), F.normalize(self.creative(creative_states), dim=-1)

    @torch.no_grad()
    def embed(self, content_states: Vectors, creative_states: Vectors, batch: int = 8192) -> tuple[Vectors, Vectors]:
        """Embeddings float32[N, dimensions] of all items, without dropout."""
        training = self.training
        self.eval()
        found = [
            self(torch.from_numpy(content_states[start : start + batch]), torch.from_numpy(creative_states[start : start + batch]))
            for start in range(0, len(content_states), batch)
        ]
        self.train(training)
        return torch.cat([content for content, _ in found]).numpy(), torch.cat([creative for _, creative in found]).numpy()


def contrastive(anchor: Tensor, positive: Tensor, left: Tensor, right: Tensor, temperature: float) -> Tensor:
    """InfoNCE in the batch (eq. 6): mean of -log exp(a_i p_i / t) / sum_k exp(a_i p_k / t), the positive in the denominator.

    Args:
        anchor, positive: float[B, d], rows of unit length.
        left, right: int64[B], which items they are. Another positive that is the anchor's item, or its positive's, is no negative.
    """
    similarity = anchor @ positive.T / temperature
    itself = torch.eye(len(left), dtype=torch.bool, device=left.device)
    known = (left[:, None] == right[None, :]) | (right[:, None] == right[None, :])
    return F.cross_entropy(similarity.masked_fill(known & ~itself, -torch.inf), torch.arange(len(left), device=left.device))


def orthogonality(content: Tensor, creative: Tensor, over: Literal["dimensions", "items"]) -> Tensor:
    """L_orth (eq. 7) of embeddings float[B, d] of the same items; see HeadConfig for the two readings."""
    if over == "items":
        return (content * creative).sum(dim=-1).square().mean()
    covariance = (content - content.mean(dim=0)).T @ (creative - creative.mean(dim=0)) / len(content)
    return covariance.square().sum()


def fit(content: Factor, creative: Factor, config: HeadConfig, progress: Callable[[int, dict[str, float]], None] | None = None) -> Heads:
    """Train both heads.

    Args:
        progress: called after every step with its number and the losses `content`, `creative`, `orthogonality`.

    Raises:
        ValueError: a factor without pairs, states that are not finite (the message names the row), or of different numbers of items.
    """
    for name, factor in (("content", content), ("creative", creative)):
        if not len(factor.pairs.left):
            raise ValueError(f"{name}: no pair belongs together, so there is nothing to learn from; pair items with themselves at least")
        refuse_broken(factor.states)
    if len(content.states) != len(creative.states):
        raise ValueError(f"states of {len(content.states)} items for content and of {len(creative.states)} for creative")
    rng = np.random.default_rng(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        heads = Heads(content.states.shape[1], creative.states.shape[1], config)
        optimizer = torch.optim.AdamW(heads.parameters(), config.lr, weight_decay=config.weight_decay)
        states = torch.from_numpy(content.states), torch.from_numpy(creative.states)
        draws = [_Draw(factor.pairs, rng) for factor in (content, creative)]
        for step in range(config.steps):
            pairs = [draw(config.batch) for draw in draws]
            losses = _losses(heads, states, pairs, config)
            optimizer.zero_grad()
            (losses["content"] + config.gamma1 * losses["creative"] + config.gamma2 * losses["orthogonality"]).backward()
            optimizer.step()
            if progress is not None:
                progress(step + 1, {name: float(loss.detach()) for name, loss in losses.items()})
    return heads


def _losses(heads: Heads, states: tuple[Tensor, Tensor], pairs: list[tuple[Tensor, Tensor]], config: HeadConfig) -> dict[str, Tensor]:
    losses = {}
    for name, own, head, (left, right) in zip(("content", "creative"), states, (heads.content, heads.creative), pairs, strict=True):
        anchor, positive = (F.normalize(head(own[rows]), dim=-1) for rows in (left, right))
        losses[name] = contrastive(anchor, positive, left, right, config.temperature)
    # Of the items of both kinds of pairs: what is asked for is that the heads are apart everywhere, not among one's pairs.
    rows = torch.cat([left for left, _ in pairs])
    content, creative = heads(states[0][rows], states[1][rows])
    losses["orthogonality"] = orthogonality(content, creative, config.orthogonality)
    return losses


class _Draw:
    """Pairs in proportion to their value."""

    def __init__(self, pairs: Pairs, rng: np.random.Generator) -> None:
        self._pairs, self._rng = pairs, rng
        self._mass = np.cumsum(pairs.value, dtype=np.float64)

    def __call__(self, count: int) -> tuple[Tensor, Tensor]:
        place = np.searchsorted(self._mass, self._rng.random(count) * self._mass[-1], side="right").clip(max=len(self._mass) - 1)
        return torch.from_numpy(self._pairs.left[place]), torch.from_numpy(self._pairs.right[place])


def _head(width: int, config: HeadConfig) -> nn.Sequential:
    if not config.hidden:
        return nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, config.dimensions))
    return nn.Sequential(
        nn.Dropout(config.dropout), nn.Linear(width, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.dimensions)
    )
