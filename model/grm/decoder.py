"""Lazy decoder: cross-attention to the shared context without key and value projections, causal self-attention over the SID, feed-forward.

Hidden states have shape [B, W, T, d]: B requests, W beams of each, T positions. Training has one beam and all positions, beam search
one position and all beams; a context is never repeated for the beams, they are merely more queries to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_post_hook

from kernels.linear import fold
from kernels.step import LayerWeights, Packed, Shape, available
from model.grm.presets import GrmConfig


@dataclass(frozen=True)
class Context:
    """Keys and values of B rows: `keys[l]`, `values[l]`: float[B, G_kv, S, d_head] of chunk l; `bias`: float[B, 1, 1, S], 0 or -inf."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    bias: Tensor

    @property
    def lengths(self) -> Tensor:
        """int32[B], valid positions of each row; they come first."""
        return (self.bias.flatten(1) == 0).sum(1, dtype=torch.int32)

    def to(self, dtype: torch.dtype) -> Context:
        """The same in another type; what is shared stays shared."""
        if self.bias.dtype == dtype:
            return self
        keys = tuple(key.to(dtype) for key in self.keys)
        values = keys if self.values is self.keys else tuple(value.to(dtype) for value in self.values)
        return Context(keys, values, self.bias.to(dtype))


Past = list[tuple[Tensor, Tensor]]
"""Self-attention keys and values of every layer: float[B, W, T, groups, d_head] each."""


class CrossAttention(nn.Module):
    """Queries of every beam and position against one context."""

    def __init__(self, config: GrmConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.heads, self.d_head, self.groups = config.heads, config.d_head, config.context_groups
        self.query = nn.Linear(config.d_model, config.d_model, bias=False, device=device)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False, device=device)

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        batch, beams, positions, width = hidden.shape
        query = self.query(hidden).view(batch, beams * positions, self.groups, self.heads // self.groups, self.d_head)
        query = query.transpose(1, 2).reshape(batch, self.groups, -1, self.d_head)
        scores = query @ keys.transpose(-1, -2) * self.d_head**-0.5 + bias
        mixed = torch.softmax(scores, -1) @ values
        mixed = mixed.view(batch, self.groups, beams * positions, self.heads // self.groups, self.d_head).transpose(1, 2)
        return self.out(mixed.reshape(batch, beams, positions, width))


class SelfAttention(nn.Module):
    """Grouped-query attention of a position to itself and to the positions before it, within its beam."""

    def __init__(self, config: GrmConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.heads, self.d_head, self.groups = config.heads, config.d_head, config.self_groups
        self.width = config.d_model
        self.qkv = nn.Linear(config.d_model, config.d_model + 2 * self.groups * self.d_head, bias=False, device=device)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False, device=device)

    def forward(self, hidden: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, beams, positions, width = hidden.shape
        query, key, value = self.qkv(hidden).split([width, self.groups * self.d_head, self.groups * self.d_head], -1)
        key = key.view(batch, beams, positions, self.groups, self.d_head)
        value = value.view(batch, beams, positions, self.groups, self.d_head)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        query = query.view(batch, beams, positions, self.groups, -1, self.d_head).permute(0, 1, 3, 2, 4, 5)  # [B, W, G, T, H/G, d_head]
        scores = query.flatten(3, 4) @ key.permute(0, 1, 3, 4, 2) * self.d_head**-0.5
        if positions > 1:
            known = key.shape[2]
            later = torch.ones(positions, known, dtype=torch.bool, device=hidden.device).triu(known - positions + 1)
            scores = scores.masked_fill(later.repeat_interleave(self.heads // self.groups, 0), float("-inf"))
        mixed = torch.softmax(scores, -1) @ value.permute(0, 1, 3, 2, 4)
        mixed = mixed.view(batch, beams, self.groups, positions, -1, self.d_head).permute(0, 1, 3, 2, 4, 5)
        return self.out(mixed.reshape(batch, beams, positions, width)), (key, value)


class FeedForward(nn.Module):
    """Squared ReLU (Primer, arXiv 2109.08668): as good as GELU, and a tenth of its time on a CPU."""

    def __init__(self, config: GrmConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.inner = nn.Linear(config.d_model, config.ffn, bias=False, device=device)
        self.out = nn.Linear(config.ffn, config.d_model, bias=False, device=device)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(functional.relu(self.inner(hidden)).square())


EMBEDDING_STD = 0.1

BALANCE_RATE = 1e-3
"""Step of the routing bias (Wang et al., arXiv 2408.15664)."""


class Experts(nn.Module):
    """Mixture of feed-forward networks: a position goes to the `experts_active` that score it best, and takes their mean by score.

    Balanced without a loss (arXiv 2408.15664): a bias that only routing sees falls for an expert that is used more than the mean, and rises
    for one that is used less.
    """

    def __init__(self, config: GrmConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.active = config.experts_active
        self.router = nn.Linear(config.d_model, config.experts, bias=False, device=device)
        # A parameter without gradient: it is published and saved with the weights, and no optimizer moves it.
        self.balance = nn.Parameter(torch.zeros(config.experts, device=device), requires_grad=False)
        self.experts = nn.ModuleList(FeedForward(config, device) for _ in range(config.experts))

    def forward(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        with torch.autocast(flat.device.type, enabled=False):  # rounded scores would send positions to other experts
            scores = torch.sigmoid(self.router(flat))
        chosen = (scores + self.balance).topk(self.active, -1).indices
        gates = scores.gather(1, chosen)
        gates = gates / gates.sum(1, keepdim=True)
        mixed = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            row, place = (chosen == index).nonzero(as_tuple=True)
            mixed = mixed.index_add(0, row, (expert(flat[row]) * gates[row, place].unsqueeze(1)).to(mixed.dtype))
        if torch.is_grad_enabled() and self.training:
            load = torch.bincount(chosen.flatten(), minlength=len(self.balance)).to(self.balance.dtype)
            self.balance.data += BALANCE_RATE * torch.sign(load.mean() - load)
        return mixed.view_as(hidden)


class Fuse(nn.Module):
    """Where LazyAR lets the code before in: W_f [m ⊙ (W_g s); s], of the trunk's state m and the code's embedding s."""

    def __init__(self, config: GrmConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.d_model, bias=False, device=device)
        self.out = nn.Linear(2 * config.d_model, config.d_model, bias=False, device=device)

    def forward(self, trunk: Tensor, code: Tensor) -> Tensor:
        return self.out(torch.cat([trunk * self.gate(code), code], -1))


class Thought(nn.Module):
    """What a state becomes when it is read again: t_l = norm(h) + p_l (S²GR, arXiv 2601.18664), on the scale of a code's embedding."""

    def __init__(self, config: GrmConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.d_model, device=device)
        self.place = nn.Parameter(torch.empty(config.levels, config.d_model, device=device))
        nn.init.constant_(self.norm.weight, EMBEDDING_STD)
        nn.init.normal_(self.place, std=EMBEDDING_STD)

    def forward(self, hidden: Tensor, level: int) -> Tensor:
        """float[..., d] → the same."""
        return self.norm(hidden) + self.place[level]


class Block(nn.Module):
    """Pre-norm: cross-attention, self-attention, feed-forward, each added to the residual stream."""

    def __init__(self, config: GrmConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.cross_norm = nn.RMSNorm(config.d_model, device=device)
        self.cross = CrossAttention(config, device)
        self.self_norm = nn.RMSNorm(config.d_model, device=device)
        self.self = SelfAttention(config, device)
        self.ffn_norm = nn.RMSNorm(config.d_model, device=device)
        self.ffn = Experts(config, device) if config.experts else FeedForward(config, device)

    def forward(
        self, hidden: Tensor, keys: Tensor, values: Tensor, bias: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden = hidden + self.cross(self.cross_norm(hidden), keys, values, bias)
        mixed, present = self.self(self.self_norm(hidden), past)
        hidden = hidden + mixed
        return hidden + self.ffn(self.ffn_norm(hidden)), present


Normed = tuple[Tensor | None, Tensor]
"""Gain of a norm, None where it is in the weight already, and the weight of the product that follows."""


class Folded:
    """Weights with the gains of the norms before them inside, at addresses that stay."""

    def __init__(self) -> None:
        self._weights: list[Tensor] = []
        self._made_from: Versions = []

    def of(self, pairs: Sequence[Normed]) -> list[Tensor]:
        """One for each pair of a gain and a weight, as they are now; always for the same pairs."""
        versions = [_version(tensor) for pair in pairs for tensor in pair if tensor is not None]
        if not _same(versions, self._made_from):
            # A search runs in inference mode, whose tensors could not be written to again outside of it.
            with torch.inference_mode(False), torch.no_grad():
                made = [fold(gain, weight) for gain, weight in pairs if gain is not None]
                if self._weights:
                    torch._foreach_copy_(self._weights, made)
                else:
                    self._weights = made
            self._made_from = versions
        return self._weights


def _count(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Fused optimizers write to parameters without counting it, and searches would go on with weights from before."""
    increment_version([tensor for group in optimizer.param_groups for tensor in group["params"] if tensor.grad is not None])


register_optimizer_step_post_hook(_count)


Versions = list[tuple[Tensor, int]]
"""Tensors and how often each was written to. They are kept, for the id of one that is gone may be that of the next."""


def _version(tensor: Tensor) -> tuple[Tensor, int]:
    """What changes when the tensor does, but for `.data` and for tensors made in inference mode, which count nothing."""
    return tensor, 0 if tensor.is_inference() else tensor._version


def _same(one: Versions, other: Versions) -> bool:
    return len(one) == len(other) and all(a is b and v == w for (a, v), (b, w) in zip(one, other, strict=True))


def _normed(block: Block) -> tuple[Normed, Normed, Normed | None]:
    ffn = (block.ffn_norm.weight, block.ffn.inner.weight) if isinstance(block.ffn, FeedForward) else None
    return (block.cross_norm.weight, block.cross.query.weight), (block.self_norm.weight, block.self.qkv.weight), ffn


def _layer_weights(block: nn.Module) -> LayerWeights:
    assert isinstance(block, Block) and isinstance(block.ffn, FeedForward)
    query, qkv, inner = (
        norm.weight * weight
        for norm, weight in (
            (block.cross_norm, block.cross.query.weight),
            (block.self_norm, block.self.qkv.weight),
            (block.ffn_norm, block.ffn.inner.weight),
        )
    )
    return LayerWeights(query, block.cross.out.weight, qkv, block.self.out.weight, inner, block.ffn.out.weight)


class Decoder(nn.Module):
    """Token embeddings, blocks, and a norm and head per level.

    Position t reads code t - 1 (position 0 a learned start) and predicts code t; where value is a token too, one position more reads the
    last code and predicts the bucket of the value. With a lazy trunk the first layers read the position alone; their states of all
    positions are the first element of what `forward` keeps. With thinking tokens a position's state is read once more, as a thought,
    before it predicts a code: twice as many positions, of which the second of each two predicts.

    Attributes:
        worth: float[buckets], mean value of each bucket, as whoever trains says; None where value is no token.
        products: type of the weights that a search on a CPU multiplies with, see `kernels.step.PRODUCTS`.
    """

    def __init__(self, config: GrmConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.config = config
        self.start = nn.Parameter(torch.empty(config.d_model, device=device))
        self.codes = nn.ModuleList(
            nn.Embedding(size, config.d_model, device=device) for size in (config.codes if config.thinking_goal else config.tokens[:-1])
        )
        self.position = nn.Parameter(torch.empty(len(config.tokens), config.d_model, device=device))
        self.blocks = nn.ModuleList(Block(config, device) for _ in range(config.layers))
        self.fuse = Fuse(config, device) if config.lazy_trunk else None
        self.think = Thought(config, device) if config.thinking_tokens else None
        self.norms = nn.ModuleList(nn.RMSNorm(config.d_model, device=device) for _ in config.tokens)
        self.heads = nn.ModuleList(nn.Linear(config.d_model, size, device=device) for size in config.tokens)
        # Without gradient: it is published and saved with the weights, and no optimizer moves it.
        worth = nn.Parameter(torch.zeros(config.value_buckets, device=device), requires_grad=False) if config.value_buckets else None
        self.worth: nn.Parameter | None = worth
        self._folded = Folded()
        self._packed: tuple[Versions, Packed] | None = None
        self._owners: list[tuple[dict[str, nn.Parameter | None], str]] = []
        self.products = torch.float32

    def packed(self) -> Packed | None:
        """Weights of the layers behind the trunk and of the heads as the fast form of a search on this CPU reads them; None where there is
        no such form: on a GPU, in another type than float32, with experts, or without the compiled library.

        Made anew when this is called after a parameter or `products` has changed (by `.data` one changes unseen).
        """
        config, plain = self.config, self.start.device.type == "cpu" and self.start.dtype == torch.float32
        if not plain or config.experts or torch.compiler.is_compiling() or not available(self.products):
            return None
        if not self._owners:  # asking every module for its parameters takes longer than what depends on it
            self._owners = [(module._parameters, name) for module in self.modules() for name in module._parameters]
        versions = [_version(owned) for owner, name in self._owners if (owned := owner[name]) is not None]
        made = self._packed
        if made is None or made[1].products != self.products or not _same(versions, made[0]):
            with torch.inference_mode(False), torch.no_grad():
                layers = [_layer_weights(block) for block in self.blocks[config.lazy_trunk :]]
                heads = [norm.weight * head.weight for norm, head in zip(self.norms, self.heads, strict=True)]  # type: ignore[operator]
                shape = Shape(config.d_model, config.heads, config.self_groups, config.context_groups, config.d_head, config.ffn)
                made = versions, Packed(shape, layers, heads, self.products)
            self._packed = made  # both at once: other threads may be searching
        return made[1]

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes its own of what is made from parameters."""
        return self.__dict__ | {"_folded": Folded(), "_packed": None, "_owners": []}

    def normed(self) -> tuple[list[tuple[Normed, Normed, Normed | None]], list[Normed]]:
        """Gain and weight of the products that follow a norm: per layer of cross- and self-attention and of a feed-forward network that is
        not experts, and per level of the head.

        On a GPU the gains are folded into copies of the weights. They stay where they are, so a captured graph may read them, and are made
        anew when this is called after a parameter has changed (by `.data` it changes unseen).
        """
        layers = [_normed(block) for block in self.blocks if isinstance(block, Block)]
        heads: list[Normed] = [(norm.weight, head.weight) for norm, head in zip(self.norms, self.heads, strict=True)]  # type: ignore[misc]
        if not self.start.is_cuda:
            return layers, heads
        folded = iter(self._folded.of([pair for layer in (*layers, heads) for pair in layer if pair is not None]))
        return [((None, next(folded)), (None, next(folded)), None if ffn is None else (None, next(folded))) for _, _, ffn in layers], [
            (None, next(folded)) for _ in heads
        ]

    def reset_parameters(self) -> None:
        """Small embeddings; residual branches shrink with depth; heads start flat, so the first loss is that of a uniform guess."""
        branch = (3 * self.config.layers) ** -0.5
        for block in self.blocks:
            fed = (part.out for part in block.modules() if isinstance(part, FeedForward))
            for module in (block.cross.out, block.self.out, *fed):  # type: ignore[union-attr]
                module.weight.data.mul_(branch)  # type: ignore[union-attr, operator]
        for embedding in (self.start, self.position, *(module.weight for module in self.codes)):
            nn.init.normal_(embedding, std=EMBEDDING_STD)  # type: ignore[arg-type]
        for head in self.heads:
            nn.init.normal_(head.weight, std=0.02)  # type: ignore[arg-type]
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]

    def embed(self, codes: Tensor, position: int) -> Tensor:
        """Input of one position: int64[B, W, position] codes so far → float[B, W, 1, d]."""
        first = self.start.expand(*codes.shape[:2], -1) if position == 0 else self.codes[position - 1](codes[..., -1])
        return (first + self.position[position]).unsqueeze(2)

    def embed_all(self, targets: Tensor) -> Tensor:
        """Inputs of all T positions of int64[B, L] → float[B, 1, T, d] (teacher forcing)."""
        tokens = [self.start.expand(len(targets), -1)]
        tokens += [embedding(targets[:, level]) for level, embedding in enumerate(self.codes)]
        return torch.stack(tokens, 1).unsqueeze(1) + self.position

    def teach(self, sids: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """All positions of known SIDs int64[B, W, L].

        Returns:
            States that predict codes and value, float[B, W, T, d], and what the model thought before it read the code before: the trunk's
            states float[B, 1, T, d], or the thoughts float[B, W, L, d]; None where it has neither.
        """
        if self.think is None:
            known = self.embed_all(sids.flatten(0, 1)).unflatten(0, sids.shape[:2]).squeeze(2)
            hidden, kept = self(known, context)
            return hidden, None if self.fuse is None else kept[0][0]
        # A thought is made of everything before it, so there is no way to have them all at once.
        states, thoughts, past = [], [], None
        for level in range(self.config.levels):
            hidden, past = self(self.embed(sids[..., :level], level), context, past)
            thoughts.append(self.think(hidden, level))
            hidden, past = self(thoughts[-1], context, past)
            states.append(hidden)
        if self.worth is not None:
            states.append(self(self.embed(sids, self.config.levels), context, past)[0])
        return torch.cat(states, 2), torch.cat(thoughts, 2)

    def forward(self, hidden: Tensor, context: Context, past: Past | None = None) -> tuple[Tensor, Past]:
        """float[B, W, T, d] → the same after all blocks, and the keys and values to continue with."""
        present: Past = []
        if self.fuse is not None:
            beams, positions = hidden.shape[1:3]
            start = 0 if past is None else past[1][0].shape[2]
            trunk = self.trunk(context).expand(-1, beams, -1, -1) if past is None else past[0][0]
            hidden = self.fuse(trunk[:, :, start : start + positions], hidden).to(hidden.dtype)
            present.append((trunk, trunk[..., :0]))
        for index in range(self.config.lazy_trunk, self.config.layers):
            before = None if past is None else past[len(present)]
            hidden, kept = self._block(index, hidden, context, before)
            present.append(kept)
        return hidden, present

    def trunk(self, context: Context) -> Tensor:
        """States of all T positions after the layers that read no code, float[B, 1, T, d]."""
        hidden = self.position.expand(len(context.bias), 1, -1, -1)
        for index in range(self.config.lazy_trunk):
            hidden, _ = self._block(index, hidden, context, None)
        return hidden

    def _block(
        self, index: int, hidden: Tensor, context: Context, before: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        chunk = self.chunk(index)
        mixed: tuple[Tensor, tuple[Tensor, Tensor]] = self.blocks[index](
            hidden, context.keys[chunk], context.values[chunk], context.bias, before
        )
        return mixed

    def chunk(self, layer: int) -> int:
        """Which keys and values of the context a layer reads."""
        return layer * self.config.context_layers // self.config.layers

    def logits(self, hidden: Tensor, level: int) -> Tensor:
        """float[..., d] at the position of `level` → float[..., codes of the level]; behind the levels comes the value."""
        return self.heads[level](self.norms[level](hidden))

    def value(self, hidden: Tensor) -> Tensor:
        """States float[..., T, d] of SIDs → log-probability of each bucket of their value, float[..., buckets]."""
        return torch.log_softmax(self.logits(hidden[..., -1, :], self.config.levels), -1)
