"""Rates of labels by user and by video, and the head that starts from them."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import torch

from model.grm import Grm
from model.online.engagement import LABELS, SHRINK, RatedHead, Rates, Watched, watched
from model.online.step import LearnerConfig, OnlineLearner
from streaming.records import Context, HistoryEntry
from tests.model.conftest import SmallWorld, small_config

NAN = float("nan")
NOTHING = Watched(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))


def logit(share: float) -> float:
    return math.log(share / (1 - share))


def test_rates_are_counts_shrunk_to_the_whole() -> None:
    rates = Rates(2, 8)
    users, items = torch.tensor([1, 1, 9, 2]), torch.tensor([-3, 4, 4, 4])
    rates.learn(users, items, torch.tensor([[1.0, NAN], [0.0, 1.0], [1.0, NAN], [0.0, 0.0]]))
    base, away = rates(torch.tensor([1, 5]), torch.tensor([4, 5]), NOTHING)
    whole = [(1 + 2) / (2 + 4), (1 + 1) / (2 + 2)]
    # Users 1 and 9 share a row of eight, and so do videos -3 and 5.
    user = [(2 + SHRINK * whole[0]) / (3 + SHRINK), (1 + SHRINK * whole[1]) / (1 + SHRINK)]
    item = [(1 + SHRINK * whole[0]) / (3 + SHRINK), (1 + SHRINK * whole[1]) / (2 + SHRINK)]
    torch.testing.assert_close(base, torch.tensor([logit(share) for share in whole]))
    expected = [[logit(one) - logit(all_), logit(other) - logit(all_)] for one, other, all_ in zip(user, item, whole, strict=True)]
    torch.testing.assert_close(away[0], torch.tensor(expected))
    stranger = [[0.0, logit((1 + SHRINK * whole[0]) / (1 + SHRINK)) - logit(whole[0])], [0.0, 0.0]]
    torch.testing.assert_close(away[1], torch.tensor(stranger), atol=1e-6, rtol=1e-5)


def test_a_head_that_has_learned_nothing_says_what_the_rates_say() -> None:
    head = RatedHead(6, (5, 7), 0, 16)
    users, items = torch.tensor([3, 4, 3]), torch.tensor([1, 1, 2])
    head.rates.learn(users, items, torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    base, away = head.rates(users, items, NOTHING)
    found = head(torch.randn(3, 6), torch.randn(3, 2), torch.zeros(3, 2, dtype=torch.int64), users, items, NOTHING)
    assert found.shape == (3, len(LABELS))
    torch.testing.assert_close(found, base + away.sum(-1))


def test_what_strangers_watched_before_counts_as_samples_would() -> None:
    rates = Rates(len(LABELS), 8)
    users, items = torch.tensor([1, 2]), torch.tensor([4, 4])
    rates.learn(users[:1], items[:1], torch.tensor([[1.0, 0.0]]))
    assert rates.strangers(users).tolist() == [False, True]
    before = Watched(torch.tensor([1, 1, 1]), torch.tensor([5, 6, 7]), torch.tensor([True, True, False]))
    base, away = rates(users, items, before)
    _, without = rates(users, items, NOTHING)
    rate = (1 + 0) / (2 + 1)
    assert torch.equal(away[0], without[0]) and torch.equal(away[1, 0], without[1, 0])  # clicks are not told
    assert math.isclose(float(base[1] + away[1, 1, 0]), logit((2 + SHRINK * rate) / (3 + SHRINK)), rel_tol=1e-5)


def test_a_long_view_in_a_history_is_as_in_the_samples(world: SmallWorld) -> None:
    known = 7
    _, durations = world.vocabulary.lookup(np.array([known]))
    entries = [
        HistoryEntry(known, 9, int(durations[0])),  # to the end
        HistoryEntry(known, 8, min(18_000, int(durations[0])) - 1),
        HistoryEntry(999, 7, 18_000),  # of unknown duration
        HistoryEntry(known, 6, None, ["like"]),
        HistoryEntry(known, 5, None, ["watch"]),
    ]
    rows = [msgspec.structs.replace(row, context=Context(entries)) for row in world.samples(2)]
    found = watched(rows, torch.tensor([False, True]), world.vocabulary)
    assert found.row.tolist() == [1] * 4
    assert found.item.tolist() == [known, known, 999, known]
    assert found.long.tolist() == [True, False, True, False]


def test_a_history_is_counted_once_from_the_first_sample_of_a_person(world: SmallWorld) -> None:
    samples = [sample for sample in world.samples(400) if sample.user_id == 3]
    late = samples[5:8]
    learner = OnlineLearner(Grm(small_config()), world.vocabulary, LearnerConfig(rate_rows=64))
    watches = sum(entry.play_ms is not None for entry in late[0].context.history)
    assert watches
    learner.step([late[1], late[0]])  # in one batch, the later one first
    counted = learner.engagement.rates.counts[0, 3, :, 1]
    assert counted.tolist() == [2, 2 + watches]
    learner.step([late[2]])
    assert learner.engagement.rates.counts[0, 3, :, 1].tolist() == [3, 3 + watches]
