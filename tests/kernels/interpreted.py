"""Checks of the Triton kernels, in a process of their own (`test_triton.py`): in Triton's interpreter, or on the GPU that
`SIDSTREAM_KERNELS_ON=cuda` asks for.

In the interpreter only float32 and float16 multiply rightly (bfloat16 products are silently wrong), and shared memory, registers and races
do not exist. New tensors are poisoned, so what a kernel forgets to write shows.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = str(int(os.environ.get("SIDSTREAM_KERNELS_ON", "cpu") == "cpu"))

import itertools

import pytest
import torch
from torch import Tensor

from kernels import beam_attention, beam_topk, context_attention, linear, projection, selection
from kernels.nearest import nearest_children, nearest_sid
from kernels.trie import Trie, cpu, ops
from kernels.trie.levels import Dense
from tests.kernels.test_nearest import WIDTH, same, world
from tests.kernels.test_ops import history, mask_of, relative
from tests.kernels.test_selection import KINDS, assert_same, numbers
from tests.kernels.test_trie import steps, wide

DEVICE = os.environ.get("SIDSTREAM_KERNELS_ON", "cpu")
SEED = 21
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE != "cpu" else [])
SHAPES = [(1, 1, 1, 1), (2, 3, 63, 5), (1, 16, 100, 33), (2, 16, 256, 16), (1, 33, 1000, 7), (1, 5, 4500, 3)]


def there(*tensors: Tensor) -> tuple[Tensor, ...]:
    """On the device where kernels run."""
    return tuple(tensor.to(DEVICE) for tensor in tensors)


def rounding(dtype: torch.dtype) -> float:
    """What a relative error may be."""
    return {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is made empty is full of NaN, or of -7."""
    empty, empty_like = Tensor.new_empty, torch.empty_like

    def fill(made: Tensor) -> Tensor:
        return made.fill_(torch.nan if made.is_floating_point() else -7)

    monkeypatch.setattr(Tensor, "new_empty", lambda *args, **kwargs: fill(empty(*args, **kwargs)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: fill(empty_like(*args, **kwargs)))


@pytest.mark.parametrize(("kind", "shape"), list(itertools.product(KINDS, SHAPES)))
def test_selection_is_a_stable_sort_of_the_same_scores(kind: str, shape: tuple[int, int, int, int]) -> None:
    batch, beams, vocabulary, k = shape
    logits, cumulative = there(*numbers(kind, batch, beams, vocabulary, torch.Generator().manual_seed(SEED)))
    rows = projection.pyramid(logits.flatten(0, 1), backend="triton")
    expected = projection.pyramid(logits.flatten(0, 1), backend="torch")
    assert torch.equal(rows.fine, expected.fine) and torch.equal(rows.coarse, expected.coarse)
    torch.testing.assert_close(rows.log_normalizer, expected.log_normalizer, atol=2e-5, rtol=1e-6)
    offset = projection.reference.valid(cumulative - rows.log_normalizer.view(cumulative.shape))
    wanted = selection.reference.stable_topk(projection.reference.valid(logits), offset, k)
    assert_same(selection.beam_select(rows, cumulative, k, backend="triton"), wanted)
    assert_same(beam_topk(logits, cumulative, k, normalize=False, backend="triton"), beam_topk(logits, cumulative, k, normalize=False))


def test_selection_has_a_prefix_and_does_not_see_the_batch() -> None:
    logits, cumulative = there(*numbers("integers", 3, 9, 300, torch.Generator().manual_seed(SEED)))
    long = beam_topk(logits, cumulative, 20, backend="triton")
    short = beam_topk(logits, cumulative, 10, backend="triton")
    assert_same(short, tuple(part[:, :10].contiguous() for part in long))  # type: ignore[arg-type]
    alone = beam_topk(logits[1:2], cumulative[1:2], 20, backend="triton")
    assert_same(alone, tuple(part[1:2].contiguous() for part in long))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "vocabulary", "normalizer"), [(3, 100, "full"), (70, 300, "allowed"), (5, 520, None)])
def test_projection(dtype: torch.dtype, rows: int, vocabulary: int, normalizer: str | None) -> None:
    generator = torch.Generator().manual_seed(SEED)
    hidden = (torch.randn(rows, 40, generator=generator) * 0.3).to(dtype)
    weight = torch.randn(vocabulary, 40, generator=generator).to(dtype)
    bias, extra = torch.randn(vocabulary, generator=generator), torch.randn(rows, vocabulary, generator=generator)
    weight[2, 0], hidden[0, 0] = torch.nan, 1.0
    allowed = torch.rand(4, vocabulary, generator=generator) < 0.5
    node = torch.randint(-1, 4, (rows,), generator=generator, dtype=torch.int32)
    bitmask = mask_of(allowed)
    hidden, weight, bias, extra, node, bitmask = there(hidden, weight, bias, extra, node, bitmask)
    mask = {} if normalizer is None else {"node": node, "bitmask": bitmask, "normalizer": normalizer}
    found = projection.proj_pyramid(hidden, weight, bias=bias, extra=extra, backend="triton", **mask)
    wide = projection.proj_pyramid(hidden.double(), weight.double(), bias=bias.double(), extra=extra.double(), backend="torch", **mask)
    kept = wide.logits > -torch.inf
    assert torch.equal(found.logits > -torch.inf, kept)
    assert relative(found.logits[kept], wide.logits[kept]) < 1e-5  # products of rounded numbers are summed in float32
    torch.testing.assert_close(found.log_normalizer.double(), wide.log_normalizer, atol=2e-5, rtol=1e-5)
    again = projection.pyramid(found.logits, backend="torch")
    assert torch.equal(found.fine, again.fine) and torch.equal(found.coarse, again.coarse)
    alone = projection.proj_pyramid(
        hidden[1:3], weight, bias=bias, extra=extra[1:3], backend="triton", **(mask | ({"node": node[1:3]} if mask else {}))
    )
    assert torch.equal(alone.logits, found.logits[1:3]) and torch.equal(alone.log_normalizer, found.log_normalizer[1:3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [3, 1100])
def test_projection_of_rows_that_it_norms(dtype: torch.dtype, rows: int) -> None:
    generator = torch.Generator().manual_seed(SEED)
    hidden, weight = there(*(torch.randn(*shape, generator=generator).to(dtype) for shape in ((rows, 40), (300, 40))))
    squares = linear.part_squares(hidden)
    found = projection.proj_pyramid(hidden, weight, squares=squares, eps=1e-6, backend="triton")
    wide = projection.proj_pyramid(hidden.double(), weight.double(), squares=squares.double(), eps=1e-6, backend="torch")
    assert relative(found.logits, wide.logits) < 1e-5
    torch.testing.assert_close(found.log_normalizer.double(), wide.log_normalizer, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("normalizer", ["full", "allowed"])
def test_pyramid_of_masked_logits(normalizer: str) -> None:
    generator = torch.Generator().manual_seed(SEED)
    logits = torch.randn(19, 333, generator=generator)
    allowed, node = torch.rand(3, 333, generator=generator) < 0.1, torch.arange(19, dtype=torch.int32) % 4 - 1
    logits, node, bitmask = there(logits, node, mask_of(allowed))
    arguments = {"node": node, "bitmask": bitmask, "normalizer": normalizer}
    found = projection.pyramid(logits, backend="triton", **arguments)
    expected = projection.pyramid(logits, backend="torch", **arguments)
    assert all(torch.equal(part, other) for part, other in zip(found[:3], expected[:3], strict=True))
    torch.testing.assert_close(found.log_normalizer, expected.log_normalizer, atol=2e-5, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("beams", "heads", "groups", "width", "step"), [(1, 4, 1, 16, 0), (13, 4, 2, 24, 2), (40, 3, 3, 16, 3)])
def test_beam_self_attention(dtype: torch.dtype, beams: int, heads: int, groups: int, width: int, step: int) -> None:
    generator = torch.Generator().manual_seed(SEED)
    keys, values, ancestors = history(2, 4, 48, groups, width, step, beams, generator)
    qkv = torch.randn(2, beams, (heads + 2 * groups) * width, generator=generator)
    keys, values, qkv = there(keys.to(dtype), values.to(dtype), qkv.to(dtype))
    (ancestors,) = there(ancestors)
    exact = beam_attention.reference.beam_self_attention(qkv.double(), keys.double(), values.double(), ancestors, step)
    found = beam_attention.beam_self_attention(qkv, keys, values, ancestors, step, backend="triton")
    assert relative(found, exact) < rounding(dtype)
    start = heads * width
    assert torch.equal(keys[:, step, :beams].flatten(2), qkv[..., start : start + groups * width])
    assert torch.equal(values[:, step, :beams].flatten(2), qkv[..., start + groups * width :])
    assert keys[:, step, beams:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [None, [70, 0, 33]])
@pytest.mark.parametrize(("beams", "heads", "groups", "width"), [(5, 4, 1, 16), (20, 6, 2, 24)])
def test_context_attention(dtype: torch.dtype, lengths: list[int] | None, beams: int, heads: int, groups: int, width: int) -> None:
    generator = torch.Generator().manual_seed(SEED)
    (query,) = there(torch.randn(3, beams, heads, width, generator=generator).to(dtype))
    keys, values = there(*(torch.randn(3, groups, 70, width, generator=generator).to(dtype) for _ in range(2)))
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    count = None if lengths is None else torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    exact, lse = context_attention.reference.context_attention(query.double(), keys.double(), values.double(), count)
    for row, end in enumerate(lengths or []):
        keys[row, end:], values[row, end:] = torch.nan, torch.nan
    found, total = context_attention.context_attention(query, keys, values, count, with_lse=True, backend="triton")
    assert relative(found, exact) < rounding(dtype)
    torch.testing.assert_close(total.double(), lse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [None, [70, 0, 33]])
@pytest.mark.parametrize(("beams", "heads", "groups", "width"), [(1, 4, 1, 16), (70, 4, 2, 32)])
def test_projected_attention(dtype: torch.dtype, lengths: list[int] | None, beams: int, heads: int, groups: int, width: int) -> None:
    generator = torch.Generator().manual_seed(SEED)
    hidden, weight = torch.randn(3 * beams, 40, generator=generator), torch.randn(heads * width, 40, generator=generator) * 0.3
    keys = torch.randn(3, groups, 70, width, generator=generator)
    hidden, weight, keys = there(*(part.to(dtype) for part in (hidden, weight, keys)))
    keys = keys.transpose(1, 2)
    known = None if lengths is None else torch.tensor(lengths, device=DEVICE)
    found = context_attention.projected_attention(hidden, None, weight, keys, keys, known, heads=heads, backend="triton")
    exact = context_attention.projected_attention(
        hidden.double(), None, weight.double(), keys.double(), keys.double(), known, heads=heads, backend="torch"
    )
    assert relative(found, exact) < 4 * rounding(dtype)
    alone = context_attention.projected_attention(
        hidden[:beams], None, weight, keys[:1], keys[:1], None if known is None else known[:1], heads=heads, backend="triton"
    )
    assert torch.equal(alone, found[:beams])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [3, 150, 1100])
def test_fused_linear(dtype: torch.dtype, rows: int) -> None:
    generator = torch.Generator().manual_seed(SEED)
    shapes = ((rows, 40), (40,), (72, 40), (72,), (rows, 72))
    x, gain, weight, bias, residual = there(*(torch.randn(*shape, generator=generator).to(dtype) for shape in shapes))
    found = linear.rmsnorm_linear(x, gain, weight, bias=bias, residual=residual, activation="relu2", eps=1e-6, backend="triton")
    exact = linear.rmsnorm_linear(
        x.double(), gain.double(), weight.double(), bias=bias.double(), residual=residual.double(), activation="relu2", eps=1e-6
    )
    assert relative(found, exact) < 2 * rounding(dtype)
    assert relative(linear.linear(x, weight, backend="triton"), x.double() @ weight.double().T) < 2 * rounding(dtype)
    added, squares = linear.linear_squares(x, weight, residual, backend="triton")
    assert squares is not None
    torch.testing.assert_close(squares, linear.part_squares(added))
    again = linear.rmsnorm_linear(added, None, residual[:8], squares=squares, backend="triton")
    assert relative(again, linear.rmsnorm_linear(added.double(), None, residual[:8].double(), eps=linear.epsilon(dtype))) < 2 * rounding(
        dtype
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_leaves_its_squares(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(SEED)
    table, position = there(*(torch.randn(*shape, generator=generator).to(dtype) for shape in ((9, 300), (300,))))
    (token,) = there(torch.randint(9, (21,), generator=generator))
    found, squares = linear.embed(token, table, position, backend="triton")
    assert squares is not None
    assert torch.equal(found, table[token] + position)
    torch.testing.assert_close(squares, linear.part_squares(found))


@pytest.mark.parametrize(("step", "kept"), [(0, 5), (2, 9), (3, 30)])
def test_beams_carry_their_codes_and_ancestors_along(step: int, kept: int) -> None:
    generator = torch.Generator().manual_seed(SEED)
    ancestors, codes = torch.randint(6, (2, 4, 10), generator=generator).int(), torch.randint(99, (2, 6, step), generator=generator)
    parent, token = torch.randint(6, (2, kept), generator=generator).int(), torch.randint(-1, 99, (2, kept), generator=generator).int()
    ancestors, codes, parent, token = there(ancestors, codes, parent, token)
    found = beam_attention.advance(ancestors, codes, parent, token, backend="triton")
    expected = beam_attention.advance(ancestors, codes, parent, token, backend="torch")
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_more_candidates_than_a_program_holds_are_refused() -> None:
    with pytest.raises(ValueError, match='use backend="torch"'):
        beam_topk(*there(torch.zeros(1, 2, 40000), torch.zeros(1, 2)), 4096, backend="triton")


@pytest.mark.parametrize("dense_levels", [0, 3])
def test_a_step_in_the_trie(dense_levels: int) -> None:
    trie = Trie.build(*there(wide(SEED)), (100,) * 3, dense_levels)
    trie = trie.set_alive(torch.arange(0, len(trie), 2, device=DEVICE), False)
    for index, level in enumerate(trie.levels):
        node, token = there(*steps(Trie.build(wide(SEED), (100,) * 3, dense_levels), index, 301, SEED))
        assert (node < 0).any() and (token < 0).any() and (token >= 100).any()
        starts = (*level.starts.tensors, level.starts.shift)
        if isinstance(level, Dense):
            dense = (node, token, level.bits, level.rank, level.live, *starts, level.vocabulary)
            assert torch.equal(ops.child_dense(*dense, "triton"), cpu.child_dense(*dense))
        else:
            for live in (level.live, None):
                sparse = (node, token, level.token, live, *starts, level.most)
                assert torch.equal(ops.child_sparse(*sparse, "triton"), cpu.child_sparse(*sparse))


@pytest.mark.parametrize("codes", [300, 1000])
def test_words_of_a_sparse_level(codes: int) -> None:
    generator = torch.Generator().manual_seed(SEED)
    sids = (codes * torch.rand(2000, 2, generator=generator)).long()
    sids[:1200, 0] = 7
    trie = Trie.build(*there(sids), (codes, codes), 0)
    trie = trie.set_alive(torch.arange(0, len(trie), 3, device=DEVICE), False)
    level = trie.levels[1]
    assert level.most > 128  # more than one block of children
    (node,) = there(torch.randint(-1, level.nodes, (70,), generator=generator))
    arguments = (node, level.token, level.live, *level.starts.tensors, level.starts.shift, codes)  # type: ignore[union-attr]
    assert torch.equal(ops.words_sparse(*arguments, "triton"), cpu.words_sparse(*arguments))


def test_a_descent_to_the_nearest_sid() -> None:
    made, books, wanted = world(SEED)  # on a grid: sums of squares are exact in any order
    trie = Trie.build(*there(made.sids), made.code_counts)
    *books, wanted = there(*books, wanted)
    same(nearest_sid(wanted, trie, books, 5, beam=6, backend="triton"), nearest_sid(wanted, trie, books, 5, beam=6, backend="torch"))
    residual = torch.full((12, 1, WIDTH), torch.nan, dtype=torch.float64, device=DEVICE)
    offsets, token, child = trie.expand(trie.walk(wanted[:, :1]), 1)
    given = (residual, offsets, token, child, torch.full((12,), -1, device=DEVICE), books[1], 3)
    same(nearest_children(*given, backend="triton"), nearest_children(*given, backend="torch"))
