"""Beam selection against its definition and against a stable sort, on numbers chosen to break it."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import beam_topk
from kernels.projection import proj_pyramid, pyramid
from kernels.selection import beam_select, cpu, proj_select, reference

KINDS = [
    "normal",
    "integers",
    "zeros of both signs",
    "mostly -inf",
    "neighbouring floats",
    "one row wins",
    "NaN and inf",
    "huge",
    "beyond what a float holds",
    "ascending",
    "all equal",
    "all dead",
]


def numbers(kind: str, batch: int, beams: int, vocabulary: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Logits [B, W, V] and cumulative scores [B, W] of one troublesome kind."""
    shape = (batch, beams, vocabulary)
    chance = torch.rand(shape, generator=generator)
    logits = torch.randn(shape, generator=generator) * 3
    cumulative = -torch.rand(batch, beams, generator=generator) * 4
    if kind == "integers":
        logits = torch.randint(-3, 3, shape, generator=generator).float()
        cumulative = torch.randint(-2, 1, (batch, beams), generator=generator).float()
    elif kind == "zeros of both signs":
        logits = torch.where(chance < 0.3, -0.0, 0.0)
        cumulative = torch.where(torch.rand(batch, beams, generator=generator) < 0.5, -0.0, 0.0)
    elif kind == "mostly -inf":
        logits[chance < 0.99] = -math.inf
    elif kind == "neighbouring floats":
        logits = 1 + torch.randint(0, 8, shape, generator=generator).float() * 2**-23
    elif kind == "one row wins":
        cumulative[:, 1:] = -1000.0
    elif kind == "NaN and inf":
        logits[chance < 0.1] = math.nan
        logits[chance > 0.9] = math.inf
        logits[:, -1] = math.nan
        cumulative[:, 0] = math.nan
    elif kind == "huge":
        logits *= 1e38
    elif kind == "beyond what a float holds":
        logits *= 1e38
        cumulative = torch.randn(batch, beams, generator=generator) * 3e38
    elif kind == "ascending":
        logits = logits.sort(dim=-1).values
    elif kind == "all equal":
        logits = torch.full(shape, 0.7)
        cumulative[:] = -1.3
    elif kind == "all dead":
        cumulative[:] = -math.inf
    cumulative[torch.rand(batch, beams, generator=generator) < 0.2] = -math.inf
    return logits, cumulative


def bits(values: Tensor) -> list[int]:
    return values.view(torch.int32 if values.dtype == torch.float32 else torch.int64).flatten().tolist()


def assert_same(found: tuple[Tensor, Tensor, Tensor], expected: tuple[Tensor, Tensor, Tensor]) -> None:
    assert bits(found[0]) == bits(expected[0])
    assert torch.equal(found[1], expected[1]) and torch.equal(found[2], expected[2])


@settings(max_examples=500, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    batch=st.integers(1, 3),
    beams=st.sampled_from([1, 3, 16, 33]),
    vocabulary=st.sampled_from([1, 2, 63, 64, 65, 100, 256, 1000]),
    k=st.sampled_from([1, 2, 7, 32, 64, 500]),
    normalize=st.booleans(),
    few=st.sampled_from([0, cpu.FEW]),
    seed=st.integers(0, 2**31),
)
def test_the_fast_path_gives_the_bits_of_the_definition(
    kind: str, batch: int, beams: int, vocabulary: int, k: int, normalize: bool, few: int, seed: int
) -> None:
    logits, cumulative = numbers(kind, batch, beams, vocabulary, torch.Generator().manual_seed(seed))
    before = logits.clone()
    with patch.object(cpu, "FEW", few):
        assert_same(beam_topk(logits, cumulative, k, normalize), reference.beam_topk(logits, cumulative, k, normalize))
    assert torch.equal(logits.nan_to_num(7.0), before.nan_to_num(7.0))


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    batch=st.integers(1, 2),
    beams=st.sampled_from([1, 3, 17]),
    vocabulary=st.sampled_from([1, 16, 63, 100, 256, 272, 1000]),
    k=st.sampled_from([1, 7, 32, 500]),
    few=st.sampled_from([0, cpu.FEW]),
    seed=st.integers(0, 2**31),
)
def test_a_selection_by_maxima_gives_the_bits_of_the_definition(
    kind: str, batch: int, beams: int, vocabulary: int, k: int, few: int, seed: int
) -> None:
    logits, cumulative = numbers(kind, batch, beams, vocabulary, torch.Generator().manual_seed(seed))
    rows = pyramid(logits.flatten(0, 1))
    with patch.object(cpu, "FEW", few):
        assert_same(beam_select(rows._replace(logits=logits.flatten(0, 1)), cumulative, k), reference.beam_topk(logits, cumulative, k))


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    batch=st.integers(1, 2),
    beams=st.sampled_from([1, 3, 17]),
    vocabulary=st.sampled_from([1, 16, 63, 100]),
    k=st.sampled_from([1, 7, 32, 500]),
    masked=st.booleans(),
    few=st.sampled_from([0, cpu.FEW]),
    seed=st.integers(0, 2**31),
)
def test_projection_and_selection_in_one_give_the_bits_of_the_two(
    kind: str, batch: int, beams: int, vocabulary: int, k: int, masked: bool, few: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, cumulative = numbers(kind, batch, beams, vocabulary, generator)
    hidden, weight = torch.randn(batch * beams, 4, generator=generator), torch.randn(vocabulary, 4, generator=generator)
    hidden[0] = 0.0  # this row's logits are the troublesome numbers themselves
    words = torch.randint(-(2**31), 2**31, (3, -(-vocabulary // 32)), dtype=torch.int32, generator=generator)
    node = torch.randint(-1, 3, (batch * beams,), dtype=torch.int32, generator=generator)
    parts = {"extra": logits.flatten(0, 1)} | ({"node": node, "bitmask": words} if masked else {})
    with patch.object(cpu, "FEW", few):
        found = proj_select(hidden, weight, cumulative, k, **parts)
    assert_same(found, beam_select(proj_pyramid(hidden, weight, **parts), cumulative, k))


@pytest.mark.parametrize("kind", KINDS)
def test_the_definition_is_a_stable_sort_of_python_numbers(kind: str) -> None:
    logits, cumulative = numbers(kind, 1, 5, 30, torch.Generator().manual_seed(3))
    k = 40
    expected = []
    for parent, row in enumerate(logits[0].tolist()):
        offset = cumulative[0, parent].item()
        for token, logit in enumerate(row):
            if offset < math.inf and -math.inf < logit < math.inf:
                total = (torch.tensor(offset) + torch.tensor(logit)).item()
                if total > -math.inf:
                    expected.append((-total, parent, token))
    expected = sorted(expected)[:k]
    score, parents, tokens = beam_topk(logits, cumulative, k, normalize=False)
    found = list(zip((-score[0]).tolist(), parents[0].tolist(), tokens[0].tolist(), strict=True))
    assert found[: len(expected)] == expected
    assert found[len(expected) :] == [(math.inf, 0, -1)] * (k - len(expected))


def test_normalized_scores_are_log_probabilities() -> None:
    logits = torch.randn(2, 3, 200, generator=torch.Generator().manual_seed(0)) * 5
    cumulative = torch.tensor([[0.0, -1.0, -2.0], [0.0, -0.5, -9.0]])
    score, parent, token = beam_topk(logits, cumulative, 50)
    exact = torch.log_softmax(logits.double(), -1) + cumulative.double().unsqueeze(-1)
    assert torch.allclose(score.double(), exact[torch.arange(2).unsqueeze(1), parent.long(), token.long()], atol=2e-5)


def test_nothing_is_returned_twice_and_a_longer_list_begins_with_the_shorter() -> None:
    logits, cumulative = numbers("integers", 2, 16, 500, torch.Generator().manual_seed(1))
    short, long = beam_topk(logits, cumulative, 50), beam_topk(logits, cumulative, 100)
    assert_same(tuple(part[:, :50].contiguous() for part in long), short)  # type: ignore[arg-type]
    alive = long[2][0] >= 0
    assert len(set(zip(long[1][0][alive].tolist(), long[2][0][alive].tolist(), strict=True))) == int(alive.sum())


def test_a_request_has_the_same_result_alone_and_in_a_batch() -> None:
    logits, cumulative = numbers("normal", 5, 32, 512, torch.Generator().manual_seed(2))
    together = beam_topk(logits, cumulative, 64)
    for row in range(5):
        alone = beam_topk(logits[row : row + 1], cumulative[row : row + 1], 64)
        assert_same(alone, tuple(part[row : row + 1] for part in together))  # type: ignore[arg-type]


def test_the_log_normalizer_counts_tokens_that_are_valid_only() -> None:
    logits = torch.tensor([[[1.0, 2.0, math.nan, math.inf]]])
    score, _, token = beam_topk(logits, torch.zeros(1, 1), 4)
    assert token.tolist() == [[1, 0, -1, -1]]
    assert math.isclose(math.exp(score[0, 0]) + math.exp(score[0, 1]), 1.0, rel_tol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floating_types_are_computed_in_float32_or_wider(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 4, 130, generator=torch.Generator().manual_seed(4)).to(dtype)
    found, expected = beam_topk(logits, torch.zeros(2, 4), 20), reference.beam_topk(logits, torch.zeros(2, 4), 20)
    assert found[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_same(found, expected)


def test_logits_that_are_a_view_are_read_as_they_are() -> None:
    wide = torch.randn(3, 8, 300, generator=torch.Generator().manual_seed(5))
    view = wide.transpose(0, 1)[:, :, ::2]
    assert_same(beam_topk(view, torch.zeros(8, 3), 30), reference.beam_topk(view.contiguous(), torch.zeros(8, 3), 30))


@pytest.mark.parametrize(("shape", "beams", "k"), [((1, 2, 3), 3, 1), ((1, 2, 3), 2, 0), ((1, 2, 0), 2, 1)])
def test_shapes_that_do_not_fit_are_refused(shape: tuple[int, int, int], beams: int, k: int) -> None:
    with pytest.raises(ValueError, match="are expected"):
        beam_topk(torch.zeros(shape), torch.zeros(1, beams), k)
