"""The decoder over the levels of one search, every step an operation of `kernels`.

What `Decoder.forward` computes, for all beams at one position after the other: keys and values of self-attention are written once and found
by ancestor, and the context is shared by the beams. Shapes follow from batch, context and widths alone, so a CUDA graph can hold a search.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.beam_attention import advance, beam_self_attention, places
from kernels.context_attention import projected_attention
from kernels.linear import embed, linear, linear_squares, part_squares, rms_norm, rmsnorm_linear
from kernels.selection import Selection, proj_select
from kernels.step import MOST_STEPS, Steps
from model.grm.decoder import Block, Context, Decoder, FeedForward


class Expansion:
    """The beams of B requests as they grow.

    Args:
        slots: the most beams of a request that are continued after any level, the last one too where their value is asked.
    """

    def __init__(self, decoder: Decoder, context: Context, slots: int) -> None:
        config = decoder.config
        self._decoder = decoder
        lengths = context.lengths
        # Whether all are full costs a GPU a synchronisation, and its kernel is as fast with lengths.
        full = not lengths.is_cuda and bool((lengths == context.bias.shape[-1]).all())
        self._lengths = None if full else lengths
        self._chunks = [(key.transpose(1, 2), value.transpose(1, 2)) for key, value in zip(context.keys, context.values, strict=True)]
        self._trunk = None if decoder.fuse is None else decoder.trunk(context)
        steps = (config.levels if decoder.think is None else 2 * config.levels) + (config.value_rank > 0)
        like, shape = context.keys[0], (len(lengths), steps, slots, config.self_groups, config.d_head)
        self._layers = range(config.lazy_trunk, config.layers)
        self._read = torch.zeros(len(lengths), 1, 0, dtype=torch.int64, device=like.device)
        packed = decoder.packed() if steps <= MOST_STEPS and like.dtype == torch.float32 else None
        self._steps: Steps | None = None
        if packed is not None:
            self._steps = Steps(packed, [self._chunks[decoder.chunk(layer)] for layer in self._layers], self._lengths, steps, slots)
            return
        self._ancestors = torch.zeros(shape[:3], dtype=torch.int32, device=like.device)
        self._past = {layer: (like.new_empty(shape), like.new_empty(shape)) for layer in self._layers}
        self._normed, self._heads = decoder.normed()

    def select(
        self, codes: Tensor, cumulative: Tensor, width: int, extra: Tensor | None, node: Tensor | None, bitmask: Tensor | None
    ) -> Selection:
        """The best continuations of all beams, of codes int64[B, W, level], by one code: see `kernels.selection.proj_select`."""
        level = codes.shape[2]
        bias: Tensor = self._decoder.heads[level].bias  # type: ignore[assignment]
        if self._steps is not None:
            step = self._prepare(self._steps, codes, level)
            return self._steps.select(step, level, cumulative, width, bias, extra, node, bitmask)
        hidden, squares, head = self._headed(codes, level)
        return proj_select(hidden, head, cumulative, width, squares=squares, bias=bias, extra=extra, node=node, bitmask=bitmask)

    def value(self, codes: Tensor) -> Tensor:
        """Logits float[B * W, buckets] of the value of finished beams, codes int64[B, W, levels]; one position more tells them."""
        level = self._decoder.config.levels
        bias: Tensor = self._decoder.heads[level].bias  # type: ignore[assignment]
        if self._steps is not None:
            return self._steps.logits(self._prepare(self._steps, codes, level), level, bias)
        hidden, squares, head = self._headed(codes, level)
        return linear(hidden, head, bias=bias) if squares is None else rmsnorm_linear(hidden, None, head, squares=squares, bias=bias)

    def _prepare(self, steps: Steps, codes: Tensor, level: int) -> int:
        """What the last step at a level begins with, in the fast form on a CPU; its number."""
        decoder = self._decoder
        if decoder.fuse is None and level > 0:
            steps.embed(codes, decoder.codes[level - 1].weight, decoder.position[level])  # type: ignore[arg-type]
        elif decoder.fuse is None:
            steps.embed(codes, decoder.start, decoder.position[0])
        else:
            steps.start(codes, self._embed(codes, level)[0])
        if decoder.think is None or level == decoder.config.levels:
            return level if decoder.think is None else 2 * level
        thought = decoder.think(steps.run(2 * level), level)
        steps.stay()
        steps.start(codes, thought)
        return 2 * level + 1

    def _headed(self, codes: Tensor, level: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """States and the head they are multiplied with; and their squares where it is that product that norms them."""
        hidden, squares = self._states(codes, level)
        gain, head = self._heads[level]
        if gain is not None:
            return rms_norm(hidden, gain), None, head
        return hidden, part_squares(hidden) if squares is None else squares, head

    def _states(self, codes: Tensor, level: int) -> tuple[Tensor, Tensor | None]:
        """States float[B * W, d] that predict the code of `level`, or the value, and their squares if a kernel left them."""
        hidden, squares = self._embed(codes, level)
        think = self._decoder.think
        # A thought is a token that every beam goes on with alone: where codes stand, it is 0.
        self._read = codes if think is None else torch.stack([torch.zeros_like(codes), codes], -1).flatten(2)
        if think is None or level == self._decoder.config.levels:
            return self._step(hidden, squares, codes.shape[1], self._read.shape[2])
        thought = think(self._step(hidden, squares, codes.shape[1], 2 * level)[0], level)
        itself = torch.arange(codes.shape[1], dtype=torch.int32, device=codes.device).repeat(len(codes), 1)
        self._ancestors, self._read = advance(self._ancestors, self._read, itself, torch.zeros_like(itself))
        return self._step(thought, None, codes.shape[1], 2 * level + 1)

    def advance(self, parent: Tensor, token: Tensor) -> Tensor:
        """Go on with those at `parent` int32[B, K] of the beams that `select` was asked of last, by `token` int32[B, K]; their codes."""
        if self._steps is not None:
            return self._steps.advance(parent, token)
        self._ancestors, longer = advance(self._ancestors, self._read, parent, token)
        return longer if self._decoder.think is None else longer[..., 1::2]

    def _step(self, hidden: Tensor, squares: Tensor | None, beams: int, step: int) -> tuple[Tensor, Tensor | None]:
        """All layers at one position of every beam: states float[B * W, d], and their squares if a kernel left them."""
        place = None if step == 0 or hidden.is_cuda else places(self._ancestors, beams, step)
        for layer in self._layers:
            hidden, squares = self._layer(layer, hidden, squares, beams, step, place)
        return hidden, squares

    def _embed(self, codes: Tensor, level: int) -> tuple[Tensor, Tensor | None]:
        """States float[B * W, d] before the first layer, and their squares if a kernel made them."""
        decoder = self._decoder
        if decoder.fuse is not None and self._trunk is not None:
            hidden = decoder.embed(codes, level).squeeze(2)
            return decoder.fuse(self._trunk[:, :, level].expand_as(hidden), hidden).flatten(0, 1), None
        if level == 0:
            return embed(codes.new_zeros(len(codes)), decoder.start.unsqueeze(0), decoder.position[0])
        table: Tensor = decoder.codes[level - 1].weight  # type: ignore[assignment]
        return embed(codes.flatten(0, 1)[:, -1], table, decoder.position[level])

    def _layer(
        self, layer: int, hidden: Tensor, squares: Tensor | None, beams: int, step: int, place: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        config = self._decoder.config
        block = self._decoder.blocks[layer]
        assert isinstance(block, Block)
        cross, own, inner = self._normed[layer]
        keys, values = self._chunks[self._decoder.chunk(layer)]
        mixed = projected_attention(hidden, *cross, keys, values, self._lengths, heads=config.heads, squares=squares)
        hidden, squares = linear_squares(mixed, block.cross.out.weight, hidden)
        qkv = rmsnorm_linear(hidden, *own, squares=squares)
        mixed = beam_self_attention(qkv.view(-1, beams, qkv.shape[1]), *self._past[layer], self._ancestors, step, place=place)
        hidden, squares = linear_squares(mixed.view_as(hidden), block.self.out.weight, hidden)
        if inner is None or not isinstance(block.ffn, FeedForward):
            return hidden + block.ffn(block.ffn_norm(hidden)), None
        return linear_squares(rmsnorm_linear(hidden, *inner, squares=squares, activation="relu2"), block.ffn.out.weight, hidden)
