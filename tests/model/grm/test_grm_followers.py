"""The prior from what others watched next: what is counted, what is forgotten, and what is left out."""

from __future__ import annotations

import math

import pytest
import torch

from model.grm.followers import COMMON, LATER, OLDER, SCALES, FollowerPrior
from model.grm.presets import preset
from model.grm.recall import Memory

CODES = (4, 3, 5)


def memory_of(*histories: list[int]) -> Memory:
    """Histories of table rows, newest first; the SIDs of the videos do not matter here."""
    width = max(map(len, histories))
    items = torch.tensor([history + [-1] * (width - len(history)) for history in histories])
    return Memory(torch.full((*items.shape, len(CODES)), -1), torch.zeros_like(items, dtype=torch.bool), items)


@pytest.fixture
def prior() -> FollowerPrior:
    made = FollowerPrior(preset("laptop", CODES, item_rows=16, followers=3))
    with torch.no_grad():
        made.weight.copy_(torch.tensor([[1.0, 10.0]] * 3))
    return made


def counted(prior: FollowerPrior, row: int) -> dict[tuple[int, ...], float]:
    return {tuple((slot[:-1].int() - 1).tolist()): pytest.approx(slot[-1].item()) for slot in prior.table[row] if slot[-1] > 0}


def test_a_target_is_counted_for_every_video_before_it_and_less_for_older_ones(prior: FollowerPrior) -> None:
    changed = prior.learn(memory_of([7, 2], [7]), torch.tensor([[0, 1, 2], [0, 1, 2]]))
    assert changed.tolist() == [2, 7]
    assert counted(prior, 7) == {(0, 1, 2): 2.0}
    assert counted(prior, 2) == {(0, 1, 2): LATER}


def test_a_full_row_forgets_its_rarest_follower(prior: FollowerPrior) -> None:
    for sid in ([0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]):
        prior.learn(memory_of([5]), torch.tensor([sid]))
    assert counted(prior, 5) == {(0, 0, 0): 2.0, (1, 0, 0): 2.0, (3, 0, 0): 1.0}


def test_logits_are_weighted_logarithms_of_the_shares_that_follow_the_prefix(prior: FollowerPrior) -> None:
    prior.learn(memory_of([7], [7], [2]), torch.tensor([[0, 1, 2], [0, 2, 2], [0, 1, 4]]))
    found = prior.read(memory_of([7, 2]))
    newest, older = 1 / math.sqrt(2 + COMMON), OLDER / math.sqrt(1 + COMMON)

    def logit(mass: float) -> float:
        return sum(weight * math.log1p(scale * mass) for weight, scale in zip((1.0, 10.0), SCALES, strict=True))

    for prefix, masses in (
        ([], [2 * newest + older, 0, 0, 0]),
        ([0], [0, newest + older, newest]),
        ([0, 1], [0, 0, newest, 0, older]),
        ([1, 1], [0] * 5),
    ):
        logits = prior.next(found, torch.tensor([[prefix]], dtype=torch.int64).view(1, 1, -1))
        assert logits[0, 0].tolist() == pytest.approx([logit(mass) for mass in masses], rel=1e-5)


def test_targets_are_scored_as_the_search_would_score_their_prefixes(prior: FollowerPrior) -> None:
    asked, targets = memory_of([7, 2], [3]), torch.tensor([[0, 1, 2], [3, 2, 4]])
    prior.learn(asked, targets)
    found = prior.read(asked)
    for level, logits in enumerate(prior(found, targets)):
        assert torch.equal(logits, prior.next(found, targets[:, None, :level])[:, 0])


def test_leaving_a_target_out_is_never_having_counted_it(prior: FollowerPrior) -> None:
    asked, target = memory_of([7, 2, 3]), torch.tensor([[0, 1, 2]])
    others = memory_of([7], [3, 2]), torch.tensor([[0, 1, 2], [1, 1, 1]])
    prior.learn(*others)
    before = prior.next(prior.read(asked), torch.zeros(1, 1, 0, dtype=torch.int64))
    prior.learn(asked, target)
    after = prior.next(prior.read(asked, leave_out=target), torch.zeros(1, 1, 0, dtype=torch.int64))
    torch.testing.assert_close(after, before)
    assert not torch.allclose(prior.next(prior.read(asked), torch.zeros(1, 1, 0, dtype=torch.int64)), before)


def test_an_empty_history_has_no_followers(prior: FollowerPrior) -> None:
    empty = Memory(torch.zeros(2, 0, 3, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.bool), torch.zeros(2, 0, dtype=torch.int64))
    assert prior.learn(empty, torch.tensor([[0, 0, 0], [1, 1, 1]])).tolist() == []
    assert not prior.next(prior.read(empty), torch.zeros(2, 1, 0, dtype=torch.int64)).any()


def test_a_batch_that_shares_its_videos_is_counted_one_target_after_the_other(prior: FollowerPrior) -> None:
    alone = FollowerPrior(preset("laptop", CODES, item_rows=16, followers=3))
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        items = torch.randint(-1, 5, (7, 6), generator=generator)  # a video is often met, and rows are full: the order decides what stays
        targets = torch.randint(0, 3, (7, 3), generator=generator)
        changed = prior.learn(memory_of(*items.tolist()), targets)
        for row, target in zip(items.tolist(), targets, strict=True):
            alone.learn(memory_of(row), target.unsqueeze(0))
        assert torch.equal(prior.table, alone.table)
        assert changed.tolist() == sorted(set(items[items >= 0].tolist()))
