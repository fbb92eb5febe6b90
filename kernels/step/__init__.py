"""One level of a search in one call: embedding, all layers of the decoder at one position of every beam, head and selection.

The fast form of a search on a CPU. It computes what the operations of `kernels` compute one after the other, from weights that were packed
for it; on a GPU they are kernels of their own, which a graph joins. A request alone has the bits that it has in a batch, on any number of
threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import native
from kernels.linear import epsilon
from kernels.selection import Selection
from kernels.selection.native import Asked, groups
from kernels.step import reference
from kernels.step.reference import LayerWeights

MOST_STEPS = 64
"""Steps that a beam's attention to itself has room for."""

LEAST_ROWS, LEAST_ROWS_OF_UNIT = 16, 64
"""Rows worth a thread of their own: fewer take less time than waking it. The second is for products by the matrix unit."""

PRODUCTS = (torch.float32, torch.bfloat16)
"""Types of what is multiplied, weights, queries, keys and values of the context; sums, norms, softmax, the attention of a beam to its own
codes and the residual stream are float32."""


class Shape(NamedTuple):
    """Sizes of a layer: d, query heads, groups of keys of self- and of context attention, width of a head, width of the feed-forward."""

    width: int
    heads: int
    groups: int
    context_groups: int
    head: int
    ffn: int


class _Layer(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p) for name in (*LayerWeights._fields, "context_keys", "context_values", "keys", "values")
    ]  # as `Layer` of native/step.c


class _Step(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in (*Shape._fields, "layers", "matrix_unit")),
        *((name, ctypes.c_long) for name in ("batch", "beams", "step", "steps", "slots", "positions")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("layer", "lengths", "ancestors", "hidden")),
    ]  # as `Step` there


class _Level(ctypes.Structure):
    _fields_ = [
        ("step", _Step),
        ("selection", Asked),
        *((name, ctypes.c_void_p) for name in ("table", "position", "codes")),
        ("length", ctypes.c_long),
        *((name, ctypes.c_void_p) for name in ("head", "bias", "extra", "logits")),
        *((name, ctypes.c_void_p) for name in ("parent", "token", "next_ancestors", "next_codes")),
    ]  # as `Level` there


def available(products: torch.dtype = torch.float32) -> bool:
    """Whether this machine has the compiled library, and for bfloat16 a processor that multiplies it in hardware."""
    return native.matrix_unit() if products == torch.bfloat16 else native.library() is not None


class Packed:
    """Weights as the products read them.

    Args:
        layers: float32, on the CPU. heads: float32[codes, d] of each level, with the gain of the norm before them inside.
        products: see `PRODUCTS`; `available` says whether this machine has it.

    Raises:
        ValueError: no such products, or not of this machine.
    """

    def __init__(self, shape: Shape, layers: Sequence[LayerWeights], heads: Sequence[Tensor], products: torch.dtype) -> None:
        if products not in PRODUCTS or not available(products):
            raise ValueError(f"products in {products}: this machine computes {', '.join(str(one) for one in PRODUCTS if available(one))}")
        self.shape, self.products, self.matrix_unit = shape, products, products == torch.bfloat16
        self.layers = [LayerWeights(*map(self._pack, weights)) for weights in layers]
        self.heads = [self._pack(head) for head in heads]
        self.codes = [len(head) for head in heads]

    def _pack(self, weight: Tensor) -> Tensor:
        lib, rows = native.library(), weight.float().contiguous()
        assert lib is not None
        packed = torch.empty(lib.weight_bytes(*rows.shape, self.matrix_unit), dtype=torch.uint8)
        lib.pack_weight(*rows.shape, rows.data_ptr(), self.matrix_unit, packed.data_ptr())
        return packed


class Steps:
    """The steps of one search.

    Args:
        contexts: keys and values of each layer, float32[B, S, G, D]; layers that share theirs give the same tensors.
        lengths: int32[B], positions of each request that are there, the first ones; None: all.
        steps: at most `MOST_STEPS`. slots: the most beams at any step.

    Raises:
        ValueError: by a step beyond `steps`, or of more beams than `slots`.
    """

    def __init__(self, packed: Packed, contexts: Sequence[tuple[Tensor, Tensor]], lengths: Tensor | None, steps: int, slots: int) -> None:
        lib = native.library()
        assert lib is not None
        self._lib, self._packed, self._lengths = lib, packed, lengths
        shape, layers = packed.shape, len(contexts)
        batch, positions = contexts[0][0].shape[:2]
        self._batch = batch
        self._past = native.floats(layers, 2, batch, steps, slots, shape.groups, shape.head)
        self._hidden = native.floats(batch * slots, shape.width)
        self._ancestors = torch.zeros(batch, steps, slots, dtype=torch.int32)
        self._layers = (_Layer * layers)()
        self._level = level = _Level()
        level.step = _Step(
            *shape, layers, packed.matrix_unit, batch, 0, 0, steps, slots, positions, epsilon(torch.float32),
            ctypes.addressof(self._layers), native.address(lengths), self._ancestors.data_ptr(), self._hidden.data_ptr(),
        )  # fmt: skip
        self._scratch_bytes = lib.step_scratch(ctypes.byref(level))
        self._contexts: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        history, side = self._past.data_ptr(), self._past[0, 0].numel() * 4
        for index, (layer, weights, (keys, values)) in enumerate(zip(self._layers, packed.layers, contexts, strict=True)):
            key = keys.data_ptr(), values.data_ptr()
            if key not in self._contexts:
                self._contexts[key] = self._pack(keys, values)
            for name, weight in zip(weights._fields, weights, strict=True):
                setattr(layer, name, weight.data_ptr())
            layer.context_keys, layer.context_values = (part.data_ptr() for part in self._contexts[key])
            layer.keys, layer.values = history + 2 * index * side, history + (2 * index + 1) * side

    def _pack(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        batch, _, count, _ = keys.shape
        asked = ctypes.byref(self._level)
        packed = native.floats(batch * count * self._lib.key_size(asked)), native.floats(batch * count * self._lib.value_size(asked))
        strides = ((ctypes.c_long * 4)(*(side.stride(axis) for axis in (0, 2, 1, 3))) for side in (keys, values))
        self._lib.pack_context(
            asked, keys.data_ptr(), values.data_ptr(), *strides, *(side.data_ptr() for side in packed),
        )  # fmt: skip
        return packed

    def embed(self, codes: Tensor, table: Tensor, position: Tensor) -> None:
        """The states of the next step are `table[codes[..., -1]] + position`, of the first of the table before there is a code.

        Args:
            codes: int64[B, W, length], contiguous. table: float32[V, d]. position: float32[d].
        """
        level = self._level
        self._codes, self._read = codes, (table, position)  # here, lest their owner lets go of them meanwhile
        level.step.beams, level.codes, level.length = codes.shape[1], codes.data_ptr(), codes.shape[2]
        level.table, level.position = table.data_ptr(), position.data_ptr()

    def start(self, codes: Tensor, hidden: Tensor) -> None:
        """The states of the next step are hidden float32[B * W, d], of beams with these codes."""
        level = self._level
        self._codes = codes
        level.step.beams, level.codes, level.length = codes.shape[1], codes.data_ptr(), codes.shape[2]
        level.table = None
        self._hidden[: len(hidden)] = hidden

    def run(self, step: int) -> Tensor:
        """States float32[B * W, d] after all layers; valid until the next call."""
        self._level.head = None
        return self._run(step)

    def logits(self, step: int, level: int, bias: Tensor) -> Tensor:
        """All layers; the norm of the states times the head of a level, plus bias [codes]: float32[B * W, codes]."""
        asked, rows = self._level, self._batch * self._level.step.beams
        out = native.floats(rows, self._packed.codes[level])
        asked.head, asked.bias, asked.extra, asked.logits = self._packed.heads[level].data_ptr(), bias.data_ptr(), None, out.data_ptr()
        asked.selection.vocabulary, asked.selection.k = out.shape[1], 0
        self._run(step)
        return out

    def select(
        self,
        step: int,
        level: int,
        cumulative: Tensor,
        k: int,
        bias: Tensor,
        extra: Tensor | None = None,
        node: Tensor | None = None,
        bitmask: Tensor | None = None,
    ) -> Selection:
        """All layers, and the k best continuations by a code of the level: see `kernels.selection.proj_select`."""
        asked, chosen, codes = self._level, self._level.selection, self._packed.codes[level]
        rows, places = self._batch * asked.step.beams, groups(codes)
        work = native.floats(rows * (codes + places + 1))
        extra = None if extra is None else extra.float().contiguous()
        node = None if node is None else node.int().contiguous()
        bitmask = None if bitmask is None else bitmask.contiguous()
        cumulative = cumulative.float().contiguous()
        score, found = native.floats(self._batch, k), torch.empty(2, self._batch, k, dtype=torch.int32)
        at = work.data_ptr()
        asked.head, asked.bias, asked.extra = self._packed.heads[level].data_ptr(), bias.data_ptr(), native.address(extra)
        asked.logits = chosen.logits = at
        chosen.batch, chosen.beams, chosen.vocabulary, chosen.k, chosen.normalize = self._batch, asked.step.beams, codes, k, True
        chosen.cumulative, chosen.node, chosen.bitmask = cumulative.data_ptr(), native.address(node), native.address(bitmask)
        chosen.words = 0 if bitmask is None else bitmask.shape[1]
        chosen.maxima, chosen.offset = at + 4 * rows * codes, at + 4 * rows * (codes + places)
        chosen.score, chosen.parent, chosen.token = score.data_ptr(), found.data_ptr(), found.data_ptr() + 4 * self._batch * k
        self._run(step)
        self._lib.level_choose(ctypes.byref(asked), native.scratch(8 * self._lib.selection_keys(ctypes.byref(chosen))))
        return score, found[0], found[1]

    def _run(self, step: int) -> Tensor:
        now, level = self._level.step, ctypes.byref(self._level)
        rows = self._batch * now.beams
        if rows > len(self._hidden) or not 0 <= step < now.steps:
            raise ValueError(
                f"step {step} of {now.steps}, {now.beams} beams in {now.slots} slots: no more of either than there was room made for"
            )
        now.step = step
        lib, size = self._lib, self._scratch_bytes
        few = LEAST_ROWS_OF_UNIT if self._packed.matrix_unit else LEAST_ROWS
        native.over_rows(lambda first, last: lib.level_rows(level, first, last, native.scratch(size)), rows, few)
        return self._hidden[:rows]

    def stay(self) -> None:
        """Every beam of the last step goes on alone, with the codes it has."""
        at = self._level.step
        self._ancestors[:, at.step, : at.beams] = torch.arange(at.beams, dtype=torch.int32)

    def advance(self, parent: Tensor, token: Tensor) -> Tensor:
        """Go on with those at `parent` int32[B, K] of the beams of the last step, by `token` int32[B, K]; their codes."""
        level, k = self._level, parent.shape[1]
        parent, token = parent.int().contiguous(), token.int().contiguous()
        ancestors = torch.empty_like(self._ancestors)
        codes = torch.empty(self._batch, k, level.length + 1, dtype=torch.int64)
        level.parent, level.token, level.next_ancestors, level.next_codes = (side.data_ptr() for side in (parent, token, ancestors, codes))
        self._lib.level_advance(ctypes.byref(level), k)
        self.follow(ancestors)
        return codes

    def follow(self, ancestors: Tensor) -> None:
        """The beams descend from those that this table says, int32[B, steps, slots]; see `kernels.beam_attention`."""
        self._ancestors = ancestors
        self._level.step.ancestors = ancestors.data_ptr()


__all__ = ["LayerWeights", "Packed", "Shape", "Steps", "available", "reference"]
