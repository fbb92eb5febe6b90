"""The compiled selection against its definition, on the numbers that are meant to break every selection."""

from __future__ import annotations

import ctypes
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import native
from kernels.projection.reference import valid
from kernels.selection import logits_select, reference
from kernels.selection import native as compiled
from tests.kernels.marks import needs_library
from tests.kernels.test_selection import KINDS, assert_same, numbers

pytestmark = needs_library

SIZES = {
    "kind": st.sampled_from(KINDS),
    "batch": st.integers(1, 3),
    "beams": st.sampled_from([1, 3, 16, 33, 130]),
    "vocabulary": st.sampled_from([1, 2, 3, 15, 16, 17, 31, 63, 64, 65, 100, 255, 256, 257, 272, 1000]),
    "k": st.sampled_from([1, 2, 7, 32, 64, 65, 500]),
    "seed": st.integers(0, 2**31),
}


def offsets(logits: Tensor, cumulative: Tensor, normalize: bool = True) -> Tensor:
    """What the library adds to each row of logits [M, V]: cumulative [M] without the log-normalizer."""
    lib, (rows, vocabulary) = native.library(), logits.shape
    assert lib is not None
    maxima, offset, logits = torch.empty(rows, compiled.groups(vocabulary)), torch.empty(rows), logits.contiguous()
    read = logits.data_ptr(), cumulative.contiguous().data_ptr()
    asked = compiled.Asked(rows, 1, vocabulary, 1, normalize, 0, *read, None, None, maxima.data_ptr(), offset.data_ptr(), None, None, None)
    lib.scan(ctypes.byref(asked), 0, rows)
    return offset


def allowed(node: Tensor, bitmask: Tensor, vocabulary: int) -> Tensor:
    """bool[M, V]; nothing where the node is -1."""
    bits = bitmask[node.long().clamp(min=0)].unsqueeze(-1) >> torch.arange(32, dtype=torch.int32) & 1
    return bits.flatten(1)[:, :vocabulary].bool() & (node >= 0).unsqueeze(1)


def masks(rows: int, vocabulary: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A node of each row, some of them -1, and the words of 3 nodes, whose last bits stand for no token."""
    words = torch.randint(-(2**31), 2**31, (3, -(-vocabulary // 32)), dtype=torch.int32, generator=generator)
    words[2] = 0  # a node that allows nothing
    return torch.randint(-1, 3, (rows,), dtype=torch.int32, generator=generator), words


@settings(max_examples=500, deadline=None)
@given(**SIZES, threads=st.integers(1, 3))
def test_without_a_normalizer_it_gives_the_bits_of_a_stable_sort(
    kind: str, batch: int, beams: int, vocabulary: int, k: int, seed: int, threads: int
) -> None:
    logits, cumulative = numbers(kind, batch, beams, vocabulary, torch.Generator().manual_seed(seed))
    with patch.object(torch, "get_num_threads", lambda: threads), patch.object(compiled, "LEAST_ROWS", 8):
        found = compiled.select(logits.flatten(0, 1), cumulative, k, None, None, normalize=False)
    assert_same(found, reference.beam_topk(logits, cumulative, k, normalize=False))


@settings(max_examples=500, deadline=None)
@given(**SIZES, masked=st.booleans(), threads=st.integers(1, 3))
def test_with_masks_it_gives_the_bits_of_a_stable_sort_by_its_own_offsets(
    kind: str, batch: int, beams: int, vocabulary: int, k: int, seed: int, masked: bool, threads: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, cumulative = numbers(kind, batch, beams, vocabulary, generator)
    node, bitmask = masks(batch * beams, vocabulary, generator) if masked else (None, None)
    before = logits.clone()
    with patch.object(torch, "get_num_threads", lambda: threads), patch.object(compiled, "LEAST_ROWS", 8):
        found = logits_select(logits.flatten(0, 1), cumulative, k, node=node, bitmask=bitmask)
    values = valid(logits)
    if node is not None and bitmask is not None:
        values = values.masked_fill(~allowed(node, bitmask, vocabulary).view_as(values), -torch.inf)
    offset = offsets(logits.flatten(0, 1), cumulative.flatten())
    assert_same(found, reference.stable_topk(values, offset.view_as(cumulative), k))
    assert torch.equal(logits.nan_to_num(7.0), before.nan_to_num(7.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocabulary", [1, 17, 1000, 100_000])
def test_its_log_normalizer_is_that_of_float64_over_the_valid_tokens(kind: str, vocabulary: int) -> None:
    logits, _ = numbers(kind, 1, 9, vocabulary, torch.Generator().manual_seed(vocabulary))
    exact = torch.logsumexp(valid(logits[0].double()), 1)
    found = -offsets(logits[0], torch.zeros(9)).double()
    alive = exact > -torch.inf
    torch.testing.assert_close(found[alive], exact[alive], rtol=2**-23, atol=2e-5)


def test_its_log_normalizer_does_not_drift_where_all_of_a_hundred_thousand_tokens_round_the_same_way() -> None:
    logits = torch.linspace(-6, -0.1, 32).unsqueeze(1).repeat(1, 100_000)
    logits[:, 0] = 0.0
    found, exact = -offsets(logits, torch.zeros(32)).double(), torch.logsumexp(logits.double(), 1)
    torch.testing.assert_close(found, exact, rtol=2**-23, atol=2e-6)


def test_a_request_alone_has_the_bits_that_it_has_in_a_batch() -> None:
    generator = torch.Generator().manual_seed(2)
    logits, cumulative = numbers("normal", 5, 33, 1000, generator)
    node, bitmask = masks(5 * 33, 1000, generator)
    together = compiled.select(logits.flatten(0, 1), cumulative, 64, node, bitmask)
    for row in range(5):
        own = node.view(5, 33)[row]
        alone = compiled.select(logits[row], cumulative[row : row + 1], 64, own, bitmask)
        assert_same(alone, tuple(part[row : row + 1] for part in together))  # type: ignore[arg-type]


def test_logits_that_are_a_view_and_scores_of_another_type_are_read_as_they_are() -> None:
    wide = torch.randn(300, 48, generator=torch.Generator().manual_seed(5))
    view, cumulative = wide.t()[::2], torch.linspace(0, -3, 24, dtype=torch.float64).view(3, 8)
    expected = compiled.select(view.contiguous(), cumulative.float(), 30, None, None)
    assert_same(logits_select(view, cumulative, 30), expected)


@pytest.mark.parametrize("other", [torch.bfloat16, torch.float64])
def test_results_are_float32_whatever_the_default_type_is(other: torch.dtype) -> None:
    logits, cumulative = numbers("normal", 2, 9, 300, torch.Generator().manual_seed(3))
    expected, before = compiled.select(logits.flatten(0, 1), cumulative, 40, None, None), torch.get_default_dtype()
    torch.set_default_dtype(other)  # as libraries do while they load a model
    try:
        assert_same(compiled.select(logits.flatten(0, 1), cumulative, 40, None, None), expected)
    finally:
        torch.set_default_dtype(before)
