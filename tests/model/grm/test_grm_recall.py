"""The prior from a person's own history: what it counts, for every level."""

from __future__ import annotations

import math

import pytest
import torch

from model.grm.presets import preset
from model.grm.recall import HistoryPrior, Memory

CODES = (3, 2, 4, 2)
MEMORY = Memory(
    items=torch.tensor([[0, 1, 2, -1], [-1] * 4]),
    codes=torch.tensor([[[0, 1, 3, 0], [0, 1, 3, 1], [2, 0, 3, 1], [-1, -1, -1, -1]], [[-1] * 4] * 4]),
    liked=torch.tensor([[True, False, False, True], [False] * 4]),
)


@pytest.fixture
def prior() -> HistoryPrior:
    made = HistoryPrior(preset("laptop", CODES))
    with torch.no_grad():
        made.weight.copy_(torch.tensor([[1.0, 10.0, 100.0]] * 4))
    return made


def expected(liked: int, others: int, whole: int) -> float:
    return math.log1p(liked) + 10 * math.log1p(others) + 100 * math.log1p(whole)


@pytest.mark.parametrize(
    ("prefix", "code", "counts"),
    [
        ([], 0, (1, 1, 2)),
        ([], 2, (0, 1, 1)),
        ([], 1, (0, 0, 0)),
        ([0], 1, (1, 1, 2)),
        ([2], 1, (0, 0, 0)),
        ([0, 1], 3, (1, 2, 2)),  # the creative codes of another content count, but are not the same video
        ([1, 1], 3, (1, 2, 0)),
        ([0, 1, 3], 0, (1, 0, 1)),
        ([1, 0, 3], 1, (0, 2, 0)),
        ([0, 1, 2], 1, (0, 0, 0)),
    ],
)
def test_each_level_counts_by_modality_and_by_the_whole_prefix(
    prior: HistoryPrior, prefix: list[int], code: int, counts: tuple[int, int, int]
) -> None:
    codes = torch.tensor(prefix, dtype=torch.int64).view(1, 1, -1).expand(2, 1, -1)
    logits = prior.next(MEMORY, codes)
    assert logits.shape == (2, 1, CODES[len(prefix)])
    assert logits[0, 0, code].item() == pytest.approx(expected(*counts))
    assert not logits[1].any()  # nobody knows anything of the second person


def test_a_target_is_scored_as_the_search_would_score_its_prefixes(prior: HistoryPrior) -> None:
    targets = torch.tensor([[0, 1, 3, 1], [2, 0, 1, 0]])
    for level, logits in enumerate(prior(MEMORY, targets)):
        assert torch.equal(logits, prior.next(MEMORY, targets[:, None, :level])[:, 0])


def test_without_any_history_it_says_nothing(prior: HistoryPrior) -> None:
    nobody = Memory(torch.empty(2, 0, 4, dtype=torch.int64), torch.empty(2, 0, dtype=torch.bool), torch.empty(2, 0, dtype=torch.int64))
    assert not any(level.any() for level in prior(nobody, torch.tensor([[0, 1, 3, 1], [2, 0, 1, 0]])))
