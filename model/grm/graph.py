"""The whole search of a batch as one static call, a CUDA graph on a GPU: one for each bucket of shapes.

Encoding the context stays outside: its sparse inputs have a size of their own in every batch. Inside is everything from the first level to
the last selection, which then costs no Python and no launches of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from kernels.graph import StaticCall
from kernels.trie import Prefixes
from model.grm.beam import Beams
from model.grm.decoder import Context
from model.grm.followers import LAGS, Followers
from model.grm.inputs import GrmBatch
from model.grm.model import Grm
from model.grm.recall import Memory

POSITIONS = 64
"""Contexts and lists to avoid are padded to a multiple of it, batches to a power of two."""


class BeamGraph:
    """`Grm.beam` with static shapes; used by one thread at a time.

    Args:
        grm: its weights are read where they are; their values may change, their place not.
        trie: of allowed SIDs, for all searches.

    Raises:
        ValueError: a model with experts, whose routing decides by numbers what is computed.
    """

    def __init__(self, grm: Grm, trie: Prefixes | None = None) -> None:
        if grm.config.experts:
            raise ValueError(f"a model of {grm.config.experts} experts has no static shapes: search it with Grm.beam")
        self._grm = grm
        self._trie = trie
        self._calls: dict[tuple[object, ...], StaticCall] = {}

    @torch.no_grad()
    def __call__(self, batch: GrmBatch, widths: Sequence[int], avoid: Sequence[Tensor] = ()) -> Beams:
        """See `Grm.beam`."""
        # What a captured search reads of weights that have changed since.
        self._grm.decoder.normed()
        batch = self._grm.resolve(batch)
        context, followed = self._grm.context(batch).to(self._grm.decoder.start.dtype), self._grm.followers.read(batch.memory)
        parts = [*self._shared(context), context.bias, batch.memory.codes, batch.memory.liked, followed.codes, followed.weight]
        rows, positions = batch.mask.shape
        bucket = 1 << (rows - 1).bit_length(), _padded(positions)
        lists = [(_padded(prefixes.shape[1]), prefixes.shape[2]) for prefixes in avoid]
        key = *bucket, tuple(lists), *widths
        call = self._calls.get(key)
        if call is None:
            room = [prefixes.new_zeros(bucket[0], *size) for prefixes, size in zip(avoid, lists, strict=True)]
            call = StaticCall(partial(self._search, tuple(widths), len(parts)), [*self._buffers(parts, *bucket), *room])
            self._calls[key] = call
        for buffer, part, nothing in zip(call.inputs, [*parts, *avoid], [*self._nothing(), *[-1] * len(avoid)], strict=True):
            buffer.fill_(nothing)
            buffer[tuple(slice(size) for size in part.shape)].copy_(part)
        sids, log_prob = call.run()
        return Beams(sids[:rows].clone(), log_prob[:rows].clone())

    def _search(self, widths: tuple[int, ...], known: int, *parts: Tensor) -> tuple[Tensor, Tensor]:
        *shared, bias, codes, liked, followed, weight = parts[:known]
        chunks = len(shared) // self._grm.config.context_splits
        context = Context(tuple(shared[:chunks]), tuple(shared[-chunks:]), bias)
        # Which videos they were is asked outside only.
        memory = Memory(codes, liked, codes[..., 0])
        beams = self._grm.search(context, memory, Followers(followed, weight), widths, self._trie, parts[known:])
        return beams.sids, beams.log_prob

    def _shared(self, context: Context) -> tuple[Tensor, ...]:
        """Keys of the context, and its values unless they are the keys."""
        return context.keys if self._grm.config.context_splits == 1 else (*context.keys, *context.values)

    def _buffers(self, parts: Sequence[Tensor], rows: int, positions: int) -> list[Tensor]:
        """Room for `parts` of as many rows and positions."""
        config = self._grm.config
        followed = LAGS * config.followers
        sizes = [
            *[(rows, config.context_groups, positions, config.d_head)] * (len(parts) - 5),
            (rows, 1, 1, positions),
            (rows, positions, config.levels),
            (rows, positions),
            (rows, followed, config.levels),
            (rows, followed),
        ]
        return [part.new_zeros(size) for part, size in zip(parts, sizes, strict=True)]

    def _nothing(self) -> list[float]:
        """What stands in each part where a row or a position is none."""
        shared = self._grm.config.context_layers * self._grm.config.context_splits
        return [0.0] * shared + [-torch.inf, -1, 0, -1, 0.0]


def _padded(count: int) -> int:
    return -(-count // POSITIONS) * POSITIONS
