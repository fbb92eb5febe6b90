"""Each operation of `kernels/` at the shapes of one level, beside what plain PyTorch does instead, on the same inputs.

Before anything is timed, this project's result is compared with the operation's definition and every other result with this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels.floors import Work
from benchmarks.kernels.model import INPUT_SETS, LOGIT_SCALE
from kernels.beam_attention import advance, beam_self_attention
from kernels.beam_attention import reference as beam_attention_reference
from kernels.context_attention import context_attention
from kernels.context_attention import reference as context_attention_reference
from kernels.linear import epsilon, fold, part_squares, rmsnorm_linear
from kernels.linear import reference as linear_reference
from kernels.projection import Pyramid, proj_pyramid, pyramid
from kernels.projection import reference as projection_reference
from kernels.selection import beam_select
from kernels.selection import reference as selection_reference
from model.grm.presets import GrmConfig

Pairs = list[tuple[Tensor, Tensor]]
"""(found, expected), which must agree."""


@dataclass(frozen=True)
class Shape:
    """A point of the grid on one device; `context` positions matter to the operations that read a context."""

    config: GrmConfig
    batch: int
    width: int
    context: int
    device: torch.device
    dtype: torch.dtype

    @property
    def rows(self) -> int:
        return self.batch * self.width

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    def draw(self, *sizes: int, seed: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers of unit variance."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(sizes, generator=generator, device=self.device, dtype=dtype or self.dtype)

    def integers(self, high: int, *sizes: int, seed: int) -> Tensor:
        """int32 in 0 ≤ x < high."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randint(high, sizes, generator=generator, device=self.device, dtype=torch.int32)


@dataclass(frozen=True)
class Variant:
    """One way to compute an operation. `call` takes the number of an input set; `pairs` its result on set 0 and this project's."""

    call: Callable[[int], Any]
    pairs: Callable[[Any, Any], Pairs]


@dataclass(frozen=True)
class Case:
    """`variants["ours"]` comes first; `work` is what the operation needs at least."""

    work: Work
    variants: Mapping[str, Variant]


def disagreement(pairs: Pairs, dtype: torch.dtype) -> str | None:
    """How far found and expected are apart, where that is more than rounding of `dtype` explains; infinities must be equal."""
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for found, expected in pairs:
        if found.shape != expected.shape:
            return f"shape {list(found.shape)}, expected {list(expected.shape)}"
        scale = max(1e-6, float(expected.float().nan_to_num(posinf=0.0, neginf=0.0).abs().max()))
        # Block by block: the largest results have no room for copies of themselves.
        for one, other in zip(found.split(4096), expected.split(4096), strict=True):
            away = torch.where(one == other, 0.0, (one.float() - other.float()).abs()).nan_to_num(nan=torch.inf)
            if float(away.max()) > tolerance * scale:
                return f"differs by {float(away.max()):.3g} at a scale of {scale:.3g}"
    return None


def projection(shape: Shape) -> Case:
    """Vocabulary projection with log-sum-exp and maxima."""
    d, codes = shape.config.d_model, shape.config.codes[-1]
    hidden = [shape.draw(shape.rows, d, seed=seed) for seed in range(INPUT_SETS)]
    weight = [shape.draw(codes, d, seed=10 + seed) * (LOGIT_SCALE * d**-0.5) for seed in range(INPUT_SETS)]
    bias = shape.draw(codes, seed=20)
    end = slice(-min(64, shape.rows), None)

    def definition(found: Pyramid, _: Any) -> Pairs:
        exact = projection_reference.project(hidden[0][end].float(), weight[0].float(), bias.float(), None)
        return [
            (found.logits[end], exact),
            (found.log_normalizer[end], exact.logsumexp(-1)),
            (found.fine, projection_reference.group_maxima(found.logits, projection_reference.FINE)),
            (found.coarse, projection_reference.group_maxima(found.logits, projection_reference.COARSE)),
        ]

    def chain(index: int) -> Tensor:
        return torch.log_softmax(functional.linear(hidden[index], weight[index], bias).float(), -1)

    variants = {
        "ours": Variant(lambda i: proj_pyramid(hidden[i], weight[i], bias=bias), definition),
        "linear": Variant(lambda i: functional.linear(hidden[i], weight[i], bias), lambda found, ours: [(found, ours.logits)]),
        "linear + maxima": Variant(
            lambda i: pyramid(functional.linear(hidden[i], weight[i], bias)),
            lambda found, ours: [(found.logits, ours.logits), (found.log_normalizer, ours.log_normalizer)],
        ),
        "linear + log_softmax": Variant(chain, lambda found, ours: [(found, ours.logits - ours.log_normalizer.unsqueeze(-1))]),
    }
    moved = (shape.rows * d + codes * d) * shape.itemsize + shape.rows * codes * 4.0 * (1 + 1 / 16 + 1 / 256)
    return Case(Work(2.0 * shape.rows * d * codes, moved), variants)


def selection(shape: Shape) -> Case:
    """The best continuations over all beams, from logits, maxima and log-normalizers that exist."""
    codes, k = shape.config.codes[-1], shape.width
    rows = [pyramid(LOGIT_SCALE * shape.draw(shape.rows, codes, seed=seed, dtype=torch.float32)) for seed in range(INPUT_SETS)]
    cumulative = [shape.draw(shape.batch, shape.width, seed=10 + seed, dtype=torch.float32) for seed in range(INPUT_SETS)]
    offset = [c - r.log_normalizer.view_as(c) for r, c in zip(rows, cumulative, strict=True)]

    def scores(index: int) -> Tensor:
        return rows[index].logits.view(shape.batch, shape.width, codes) + offset[index].unsqueeze(-1)

    def flat(index: int) -> tuple[Tensor, Tensor, Tensor]:
        best, place = scores(index).flatten(1).topk(k)
        return best, place // codes, place % codes

    def by_row(index: int) -> tuple[Tensor, Tensor, Tensor]:
        keep = min(k, codes)
        best, token = rows[index].logits.topk(keep)
        summed = best.view(shape.batch, shape.width, keep) + offset[index].unsqueeze(-1)
        score, place = summed.flatten(1).topk(k)
        return score, place // keep, token.view(shape.batch, -1).gather(1, place)

    def definition(found: tuple[Tensor, Tensor, Tensor], _: Any) -> Pairs:
        exact = selection_reference.beam_topk(scores(0)[-1:], cumulative[0][-1:] * 0, k, False)
        return [(one[-1:].double(), other.double()) for one, other in zip(found, exact, strict=True)]

    def same(found: tuple[Tensor, Tensor, Tensor], ours: tuple[Tensor, Tensor, Tensor]) -> Pairs:
        # Plain top-k leaves the order of equal scores open, so ids are checked by what they score.
        score, parent, token = found
        row = torch.arange(shape.batch, device=score.device).unsqueeze(1) * shape.width + parent
        rescored = rows[0].logits[row, token] + offset[0].gather(1, parent)
        return [(score, ours[0]), (rescored, ours[0])]

    variants = {
        "ours": Variant(lambda i: beam_select(rows[i], cumulative[i], k), definition),
        "flat top-k": Variant(flat, same),
        "row top-k": Variant(by_row, same),
    }
    # A descent reads all coarse maxima, 16 fine ones and 16 logits for each of k groups, and writes k results of 12 bytes.
    moved = shape.batch * 4.0 * (shape.width * codes / 256 + 32 * k + 3 * k)
    return Case(Work(0.0, moved), variants)


def self_attention(shape: Shape) -> Case:
    """Beams to their own tokens at the last level, by ancestors; beside the same after moving the cache of one layer."""
    config, step = shape.config, shape.config.levels - 1
    groups, heads, width = config.self_groups, config.heads, config.d_head
    sizes = (shape.batch, config.levels, shape.width, groups, width)
    qkv = [shape.draw(shape.batch, shape.width, (heads + 2 * groups) * width, seed=seed) for seed in range(INPUT_SETS)]
    keys = [shape.draw(*sizes, seed=10 + seed) for seed in range(INPUT_SETS)]
    values = [shape.draw(*sizes, seed=20 + seed) for seed in range(INPUT_SETS)]
    before = [shape.integers(shape.width, *sizes[:3], seed=30 + seed) for seed in range(INPUT_SETS)]
    parent = [shape.integers(shape.width, shape.batch, shape.width, seed=40 + seed) for seed in range(INPUT_SETS)]
    codes = shape.integers(2, shape.batch, shape.width, step - 1, seed=50).long()
    ancestors = [advance(table, codes, chosen, chosen)[0] for table, chosen in zip(before, parent, strict=True)]

    def in_beam_order(side: Tensor, table: Tensor) -> Tensor:
        """The cache [B * W, G, step, D] that reordering code holds before the last selection."""
        row = torch.arange(shape.batch, device=side.device).unsqueeze(1)
        past = [side[row, time, table[:, time].long()] for time in range(step - 1)] + [side[:, step - 1]]
        return torch.stack(past, 3).flatten(0, 1).contiguous()

    cached = [tuple(in_beam_order(side, table) for side in (k, v)) for k, v, table in zip(keys, values, before, strict=True)]
    moved_from = [
        (chosen + torch.arange(shape.batch, device=chosen.device, dtype=torch.int32).unsqueeze(1) * shape.width).flatten()
        for chosen in parent
    ]

    def reordered(index: int) -> Tensor:
        query, *newest = qkv[index].view(shape.rows, -1, 1, width).split([heads, groups, groups], 1)
        key, value = (torch.cat([side.index_select(0, moved_from[index]), new], 2) for side, new in zip(cached[index], newest, strict=True))
        mixed = functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return mixed.reshape(shape.batch, shape.width, -1)

    def definition(found: Tensor, _: Any) -> Pairs:
        exact = beam_attention_reference.beam_self_attention(
            qkv[0][-1:].float(), keys[0][-1:].float(), values[0][-1:].float(), ancestors[0][-1:], step
        )
        return [(found[-1:], exact)]

    variants = {
        "ours": Variant(lambda i: beam_self_attention(qkv[i], keys[i], values[i], ancestors[i], step), definition),
        "reorder + SDPA": Variant(reordered, lambda found, ours: [(found, ours)]),
    }
    # Queries and results, the newest keys and values read and written, and the history.
    elements = shape.rows * width * (2 * heads + 4 * groups + 2 * groups * step)
    flops = 4.0 * shape.rows * heads * width * (step + 1)
    return Case(Work(flops, elements * shape.itemsize + shape.rows * step * 4.0), variants)


def cross_attention(shape: Shape, *, ragged: bool) -> Case:
    """Beams to the shared context of one layer; ragged: contexts of different lengths, which plain attention masks."""
    config, context = shape.config, shape.context
    heads, groups, width = config.heads, config.context_groups, config.d_head
    query = [shape.draw(shape.batch, shape.width, heads, width, seed=seed) for seed in range(INPUT_SETS)]
    keys = [shape.draw(shape.batch, groups, context, width, seed=10 + seed) for seed in range(INPUT_SETS)]
    values = keys if config.context_splits == 1 else [shape.draw(*keys[0].shape, seed=20 + seed) for seed in range(INPUT_SETS)]
    lengths, mask = None, None
    if ragged:
        lengths = 1 + context // 2 + shape.integers(context - context // 2, shape.batch, seed=30)
        mask = (torch.arange(context, device=shape.device) < lengths.unsqueeze(1)).view(shape.batch, 1, 1, context)

    def attend(index: int) -> Tensor:
        found = context_attention(query[index], keys[index].transpose(1, 2), values[index].transpose(1, 2), lengths)
        assert isinstance(found, Tensor)
        return found

    def view(index: int) -> Tensor:
        packed = query[index].view(shape.batch, shape.width, groups, -1, width).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(packed.flatten(2, 3), keys[index], values[index], attn_mask=mask)
        return mixed.view_as(packed).transpose(1, 2).reshape(query[index].shape)

    # A context per beam is far larger than any cache: one such input is enough, and made when first asked for.
    repeated: list[tuple[Tensor, Tensor]] = []

    def expanded(index: int) -> Tensor:
        if not repeated:
            key = keys[0].repeat_interleave(shape.width, 0)
            repeated.append((key, key if values is keys else values[0].repeat_interleave(shape.width, 0)))
        packed = query[0].view(shape.rows, groups, -1, width)
        every = None if mask is None else mask.repeat_interleave(shape.width, 0)
        return functional.scaled_dot_product_attention(packed, *repeated[0], attn_mask=every).view(query[0].shape)

    def definition(found: Tensor, _: Any) -> Pairs:
        exact, _lse = context_attention_reference.context_attention(
            query[0][-1:].float(),
            keys[0][-1:].transpose(1, 2).float(),
            values[0][-1:].transpose(1, 2).float(),
            None if lengths is None else lengths[-1:],
        )
        return [(found[-1:], exact)]

    def same(found: Tensor, ours: Tensor) -> Pairs:
        return [(found, ours)]

    variants = {"ours": Variant(attend, definition), "SDPA view": Variant(view, same), "expanded K/V": Variant(expanded, same)}
    positions = float(shape.batch * context if lengths is None else lengths.sum())
    work = Work(
        4.0 * positions * shape.width * config.d_model,
        shape.itemsize * (2.0 * shape.rows * config.d_model + positions * groups * width * config.context_splits),
    )
    return Case(work, variants)


def norm_linear(shape: Shape) -> Case:
    """Norm, the wide product of the feed-forward and its squared ReLU."""
    d, wide = shape.config.d_model, shape.config.ffn
    x = [shape.draw(shape.rows, d, seed=seed) for seed in range(INPUT_SETS)]
    weight = [shape.draw(wide, d, seed=10 + seed) * d**-0.5 for seed in range(INPUT_SETS)]
    gain = 1 + 0.1 * shape.draw(d, seed=20)
    end = slice(-min(64, shape.rows), None)

    def chain(index: int) -> Tensor:
        return functional.relu(functional.linear(functional.rms_norm(x[index], (d,), gain), weight[index])).square()

    def definition(found: Tensor, _: Any) -> Pairs:
        eps = epsilon(shape.dtype)
        wide = x[0][end].float()
        exact = linear_reference.fused_linear(wide, part_squares(wide), fold(gain, weight[0]).float(), None, None, "relu2", eps)
        return [(found[end], exact)]

    def same(found: Tensor, ours: Tensor) -> Pairs:
        return [(found, ours)]

    # As in a search: the gain is in the weight, and whoever made x left its squares.
    folded, squares = [fold(gain, one) for one in weight], [part_squares(one) for one in x]

    def fused(index: int) -> Tensor:
        if shape.device.type == "cpu":
            return rmsnorm_linear(x[index], gain, weight[index], activation="relu2")
        return rmsnorm_linear(x[index], None, folded[index], squares=squares[index], activation="relu2")

    variants = {
        "ours": Variant(fused, definition),
        "norm, linear, relu²": Variant(chain, same),
        "linear": Variant(
            lambda i: functional.linear(x[i], weight[i]), lambda found, _: [(found, functional.linear(x[0].float(), weight[0].float()))]
        ),
    }
    moved = (shape.rows * (d + wide) + d * wide) * shape.itemsize
    return Case(Work(2.0 * shape.rows * d * wide, moved), variants)


OPERATIONS: Mapping[str, Callable[[Shape], Case]] = {
    "proj_pyramid": projection,
    "beam_select": selection,
    "beam_self_attention": self_attention,
    "context_attention": lambda shape: cross_attention(shape, ragged=False),
    "context_attention, ragged": lambda shape: cross_attention(shape, ragged=True),
    "rmsnorm_linear": norm_linear,
}
READ_CONTEXT = ("context_attention", "context_attention, ragged")
"""Operations that are measured at every context length; the others do not depend on it."""
