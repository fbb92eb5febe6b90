"""Rates of labels by user and by video, and the head that starts from them."""

from __future__ import annotations

import math

import torch

from model.online.engagement import LABELS, SHRINK, RatedHead, Rates

NAN = float("nan")


def logit(share: float) -> float:
    return math.log(share / (1 - share))


def test_rates_are_counts_shrunk_to_the_whole() -> None:
    rates = Rates(2, 8)
    users, items = torch.tensor([1, 1, 9, 2]), torch.tensor([-3, 4, 4, 4])
    rates.learn(users, items, torch.tensor([[1.0, NAN], [0.0, 1.0], [1.0, NAN], [0.0, 0.0]]))
    base, away = rates(torch.tensor([1, 5]), torch.tensor([4, 5]))
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
    base, away = head.rates(users, items)
    found = head(torch.randn(3, 6), torch.randn(3, 2), torch.zeros(3, 2, dtype=torch.int64), users, items)
    assert found.shape == (3, len(LABELS))
    torch.testing.assert_close(found, base + away.sum(-1))
