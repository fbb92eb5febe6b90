"""Beam search as it is written in plain PyTorch, twice, over the decoder's weights: the straightforward way, and the way of an expert.

`NAIVE` repeats the context for every beam, normalises, sums and ranks every candidate with one flat top-k, and reorders its caches.
`SMART` keeps one context, with the beams as queries of PyTorch's fused attention, takes the best of each row before it ranks, and
reorders too.
Both are written from scratch against the weights alone, so they check the search that they are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels.model import Found
from model.grm.decoder import Block, Context, Decoder


class Cache(Protocol):
    """Self-attention keys and values of all layers, [R, G, t, D] each."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append one token's [R, G, 1, D] to a layer; all its tokens."""


class Growing:
    """The plain way: concatenation, and an index-select per layer when beams change."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        if layer_idx in self.layers:
            key, value = self.layers[layer_idx]
            key_states, value_states = torch.cat([key, key_states], 2), torch.cat([value, value_states], 2)
        self.layers[layer_idx] = key_states, value_states
        return key_states, value_states

    def reorder(self, row: Tensor) -> None:
        self.layers = {index: (key.index_select(0, row), value.index_select(0, row)) for index, (key, value) in self.layers.items()}


Step = Callable[[Tensor, Tensor, Tensor, int, int], tuple[Tensor, Tensor, Tensor, Tensor]]
"""(logits [B, W, V], cumulative float32[B, W], state int64[B, W], width, level) -> score, parent, token and state, [B, K] each.

The state is what a set of allowed SIDs keeps per beam; a step without one hands it through.
"""


@dataclass(frozen=True)
class Style:
    """What the two ways differ in. `repeat`: one context per beam instead of per request."""

    repeat: bool
    step: Step


def flat_topk(logits: Tensor, cumulative: Tensor, state: Tensor, width: int, level: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every candidate is normalised, summed and ranked."""
    scores = torch.log_softmax(logits.float(), -1) + cumulative.unsqueeze(-1)
    best, place = scores.flatten(1).topk(width)
    return best, place // logits.shape[2], place % logits.shape[2], state


def row_topk(logits: Tensor, cumulative: Tensor, state: Tensor, width: int, level: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """No row can give more than `width` of the best: rank within rows first, then among what is left."""
    values = logits.float()
    keep = min(width, values.shape[2])
    best, token = values.topk(keep)
    scores = best + (cumulative - values.logsumexp(-1)).unsqueeze(-1)
    score, place = scores.flatten(1).topk(width)
    return score, place // keep, token.flatten(1).gather(1, place), state


NAIVE = Style(repeat=True, step=flat_topk)
SMART = Style(repeat=False, step=row_topk)


def search(model: Decoder, context: Context, widths: Sequence[int], style: Style) -> Found:
    """Exact beam search, up to the order among equal scores."""
    batch = context.bias.shape[0]
    codes = torch.zeros(batch, 1, 0, dtype=torch.int64, device=context.bias.device)
    score = torch.zeros(batch, 1, dtype=torch.float32, device=context.bias.device)
    state = torch.zeros(batch, 1, dtype=torch.int64, device=context.bias.device)
    cache = Growing()
    repeated: dict[int, Context] = {}
    for level, width in enumerate(widths):
        beams = codes.shape[1]
        first = model.start.expand(batch * beams, -1) if level == 0 else model.codes[level - 1](codes[:, :, -1].flatten())
        shared = context
        if style.repeat:
            shared = repeated.setdefault(beams, _repeat(context, beams, model.config.context_splits))
        hidden = layers(model, first + model.position[level], shared, cache)
        logits = model.heads[level](model.norms[level](hidden)).view(batch, beams, -1)
        score, parent, token, state = style.step(logits, score, state, min(width, beams * logits.shape[2]), level)
        codes = torch.cat([codes.gather(1, parent.unsqueeze(-1).expand(-1, -1, level)), token.unsqueeze(-1)], -1)
        if level + 1 < len(widths):
            row = (parent + torch.arange(batch, device=parent.device).unsqueeze(1) * beams).flatten()
            cache.reorder(row)
    return codes, score


def log_prob(model: Decoder, context: Context, sids: Tensor) -> Tensor:
    """What SIDs int64[W, L] are worth after the one context given: float32[W]. For checks; the model decides the precision."""
    cache = Growing()
    total = torch.zeros(len(sids), device=sids.device)
    for level in range(sids.shape[1]):
        first = model.start.expand(len(sids), -1) if level == 0 else model.codes[level - 1](sids[:, level - 1])
        hidden = layers(model, first + model.position[level], context, cache)
        scores = torch.log_softmax(model.heads[level](model.norms[level](hidden)).float(), -1)
        total = total + scores.gather(1, sids[:, level : level + 1]).squeeze(1)
    return total


def layers(model: Decoder, hidden: Tensor, context: Context, cache: Cache) -> Tensor:
    """All blocks on one token of each row [R, d], which joins the cache; the context has R rows, or N < R with R / N beams each."""
    config = model.config
    for index in range(config.layers):
        block = model.blocks[index]
        assert isinstance(block, Block)
        chunk = index * config.context_layers // config.layers
        query = block.cross.query(block.cross_norm(hidden))
        hidden = hidden + block.cross.out(_cross(query, context.keys[chunk], context.values[chunk]))
        qkv = block.self.qkv(block.self_norm(hidden)).view(len(hidden), -1, config.d_head)
        query, key, value = (part.unsqueeze(2) for part in qkv.split([config.heads, config.self_groups, config.self_groups], 1))
        key, value = cache.update(key, value, index)
        mixed = functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        hidden = hidden + block.self.out(mixed.reshape(len(hidden), -1))
        inner = block.ffn.inner(block.ffn_norm(hidden))  # type: ignore[union-attr, operator]
        hidden = hidden + block.ffn.out(functional.relu(inner).square())  # type: ignore[union-attr, operator]
    return hidden


def _cross(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Queries [R, H * D] to contexts [N, G, S, D]: beams and heads of a group are one sequence of queries."""
    count, groups, _, width = keys.shape
    packed = query.view(count, -1, groups, query.shape[1] // groups // width, width).transpose(1, 2)
    mixed = functional.scaled_dot_product_attention(packed.flatten(2, 3), keys, values)
    return mixed.view_as(packed).transpose(1, 2).reshape(query.shape)


def _repeat(context: Context, beams: int, splits: int) -> Context:
    keys = tuple(key.repeat_interleave(beams, 0) for key in context.keys)
    values = keys if splits == 1 else tuple(value.repeat_interleave(beams, 0) for value in context.values)
    return Context(keys, values, context.bias.repeat_interleave(beams, 0))
