"""The GRM on sequences without times, profiles or labels: our lazy decoder and our prior of followers over a causal encoder of the history.

The context of a position is what the encoder saw until then, so that one pass over a sequence trains all of its positions: they are so many
beams of one context, each of which may look at the keys that are not later. The SID tree has two levels, so that the search needs one beam,
of first codes: every item under them has its exact probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.sequences.causal import CausalEncoder, full_cross_entropy, padded
from model.grm import GrmConfig
from model.grm.context import Context
from model.grm.decoder import Decoder
from model.grm.followers import LAGS, FollowerPrior
from model.grm.loss import level_log_prob
from model.grm.recall import Memory

IMPOSSIBLE = -1e9
"""Logit of a code that no item has: finite, so that no gradient is NaN."""
ATTRIBUTE_SCALE = 8.0
"""Rows of unit length and 64 numbers → numbers of unit size."""

BEAM = 64
"""First codes under which every item is scored; what is under the others counts as impossible."""


@dataclass(frozen=True)
class Shape:
    codes: int = 256
    d_model: int = 64
    encoder_layers: int = 2
    decoder_layers: int = 2
    followers: int = 64
    dropout: float = 0.5
    decoder_dropout: float = 0.4


class SequenceGrm(nn.Module):
    """Two heads: `sid` generates the SID, code by code; `item` retrieves the item by the inner product with its embedding."""

    def __init__(self, sids: npt.NDArray[np.int32], attributes: npt.NDArray[np.float32], shape: Shape) -> None:
        """
        Args:
            sids: int32[items, 2], all distinct; item = row + 1.
            attributes: float32[items, d].
        """
        super().__init__()
        items, codes, d_model = len(sids), shape.codes, shape.d_model
        self.config = GrmConfig(
            codes=(codes, codes),
            d_model=d_model,
            layers=shape.decoder_layers,
            heads=4,
            self_groups=1,
            ffn=4 * d_model,
            context_hidden=d_model,
            d_sparse=d_model,
            user_rows=1,
            item_rows=items + 1,
            prefix_rows=1,
            d_prefix=1,
            content_levels=2,
            followers=shape.followers,
        )
        self.sid: Tensor
        self.attributes: Tensor
        self.allowed: Tensor
        sid = torch.zeros(items + 1, 2, dtype=torch.int64)
        sid[1:] = torch.from_numpy(sids.astype(np.int64))
        allowed = torch.zeros(codes, codes, dtype=torch.bool)
        allowed[sid[1:, 0], sid[1:, 1]] = True
        self.register_buffer("sid", sid)
        self.register_buffer("allowed", allowed)
        known = torch.from_numpy(attributes * ATTRIBUTE_SCALE)
        self.register_buffer("attributes", torch.cat([known.new_zeros(1, known.shape[1]), known]))

        self.items = nn.Embedding(items + 1, d_model)
        self.codes = nn.ModuleList(nn.Embedding(codes, d_model) for _ in range(2))
        self.attribute = nn.Linear(attributes.shape[1], d_model)
        self.encoder = CausalEncoder(d_model, shape.encoder_layers, 2, d_model, shape.dropout)
        self.project = nn.Linear(d_model, self.config.d_context)
        self.norm = nn.RMSNorm(self.config.d_head)
        self.lead = nn.Linear(d_model, d_model)
        self.decoder = Decoder(self.config)
        self.decoder.reset_parameters()
        self.popularity = nn.Parameter(torch.zeros(codes, codes))
        self.followers = FollowerPrior(self.config)
        nn.init.ones_(self.followers.weight)
        self.drop = nn.Dropout(shape.decoder_dropout)
        for embedding in (self.items, *self.codes):
            nn.init.normal_(embedding.weight, std=0.02 * d_model**0.5)  # type: ignore[arg-type]

    def count_weights(self) -> list[nn.Parameter]:
        return [self.followers.weight]

    def count(self, sequences: Sequence[Sequence[int]]) -> None:
        """Let every item be a follower of those before it, instead of what was counted before."""
        self.followers.table.zero_()
        for sequence in sequences:
            if len(sequence) > 1:
                whole = torch.tensor(sequence)
                self.followers.learn(self._memory(_newest(whole[None, :-1])[0]), self.sid[whole[1:]])

    def table(self) -> Tensor:
        """float[items + 1, d_model]: what an item is as an input, and as an output of the head `item`."""
        own = self.items.weight + self.codes[0](self.sid[:, 0]) + self.codes[1](self.sid[:, 1])
        embedded: Tensor = own + self.attribute(self.attributes)
        return embedded

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of the SIDs and of the items, int64[B, S] with 0 = none; both heads learn from the same states."""
        rows, length = inputs.shape
        table, kept, aims = self.table(), targets > 0, self.sid[targets]
        states = self.encoder(table[inputs])
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        bias = torch.zeros(length, length).masked_fill(later, float("-inf"))
        # The decoder's queries: position, then level, then head of the group.
        bias = bias.repeat_interleave(2 * self.config.heads // self.config.context_groups, 0)[None, None]
        embedded = self.decoder.embed_all(aims.flatten(0, 1)).view(rows, length, 2, -1) + self.drop(self.lead(states)).unsqueeze(2)
        hidden, _ = self.decoder(self.drop(embedded), self._context(states, bias))
        hidden, aims = self.drop(hidden[kept]), aims[kept]
        followed = self.followers.read(self._memory(_newest(inputs)[kept]), aims)
        prior = self.followers(followed, aims)
        first = self.decoder.logits(hidden[:, 0], 0) + prior[0]
        second = self.decoder.logits(hidden[:, 1], 1) + prior[1] + self.popularity[aims[:, 0]]
        log_prob = level_log_prob(
            [first.masked_fill(~self.allowed.any(1), IMPOSSIBLE), second.masked_fill(~self.allowed[aims[:, 0]], IMPOSSIBLE)], aims
        )
        by_item = full_cross_entropy(states[kept] * self.items.embedding_dim**-0.5, table, targets[kept])
        return by_item - log_prob.sum(1).mean()

    @torch.no_grad()
    def heads(self, histories: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Log-probability of every item by head, float[B, items + 1]; column 0 is no item and of no use.

        `sid` is IMPOSSIBLE or less for items under none of the BEAM likeliest first codes.
        """
        inputs = padded(histories)
        rows, codes = len(inputs), self.config.codes[0]
        table, last = self.table(), (inputs > 0).sum(1) - 1
        states = self.encoder(table[inputs])
        newest = states[torch.arange(rows), last]
        bias = torch.zeros(inputs.shape).masked_fill(inputs == 0, float("-inf"))[:, None, None, :]
        context, lead = self._context(states, bias), self.lead(newest)[:, None, None]
        followed = self.followers.read(self._memory(_newest(inputs)[torch.arange(rows), last]))

        root = torch.zeros(rows, 1, 0, dtype=torch.int64)
        hidden, past = self.decoder(self.decoder.embed(root, 0) + lead, context)
        first = self.decoder.logits(hidden[:, 0, 0], 0) + self.followers.next(followed, root)[:, 0]
        likeliest, prefix = first.masked_fill(~self.allowed.any(1), IMPOSSIBLE).log_softmax(1).topk(min(BEAM, codes))
        width = prefix.shape[1]
        past = [(key.expand(-1, width, -1, -1, -1), value.expand(-1, width, -1, -1, -1)) for key, value in past]
        hidden, _ = self.decoder(self.decoder.embed(prefix.unsqueeze(2), 1) + lead, context, past)
        second = self.decoder.logits(hidden[:, :, 0], 1) + self.popularity[prefix] + self.followers.next(followed, prefix.unsqueeze(2))
        second = second.masked_fill_(~self.allowed[prefix], IMPOSSIBLE).log_softmax(2)
        tree = second.new_full((rows, codes, codes), IMPOSSIBLE)
        tree[torch.arange(rows)[:, None], prefix] = second + likeliest.unsqueeze(2)
        by_sid = tree.flatten(1)[:, self.sid[:, 0] * codes + self.sid[:, 1]]
        by_item = newest * self.items.embedding_dim**-0.5 @ table.T
        by_item[:, 0] = float("-inf")
        return {"sid": by_sid, "item": by_item.log_softmax(1)}

    def _context(self, states: Tensor, bias: Tensor) -> Context:
        heads = self.project(self.drop(states)).view(*states.shape[:2], -1, self.config.d_head)
        keys = self.norm(heads).transpose(1, 2)
        return Context((keys,), (keys,), bias)

    def _memory(self, items: Tensor) -> Memory:
        """Of int64[n, LAGS] item ids, -1 where there is none."""
        return Memory(
            self.sid[items.clamp(min=0)].masked_fill((items < 0).unsqueeze(-1), -1), torch.zeros_like(items, dtype=torch.bool), items
        )


def _newest(inputs: Tensor) -> Tensor:
    """int64[B, S], 0 = none → int64[B, S, LAGS]: the items at and before each position, newest first, -1 where there is none."""
    place = torch.arange(inputs.shape[1])[:, None] - torch.arange(LAGS)
    found = inputs[:, place.clamp(min=0)]
    return found.masked_fill((place < 0) | (found == 0), -1)
