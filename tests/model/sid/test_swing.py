"""Swing: who shares users that share little else."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from model.sid import cooccurrence
from model.sid.cooccurrence import Sequences


def met(baskets: list[list[int]]) -> Sequences:
    row = np.concatenate([np.array(basket, np.int64) for basket in baskets])
    user = np.repeat(np.arange(len(baskets)), [len(basket) for basket in baskets])
    return Sequences(row, user, np.ones(len(row), np.float32))


def test_scores_are_the_sums_over_pairs_of_users() -> None:
    rng = np.random.default_rng(3)
    baskets = [sorted(set(rng.integers(0, 8, 5).tolist())) for _ in range(12)]
    expected = np.zeros((8, 8))
    for u, v in combinations(range(len(baskets)), 2):
        shared = sorted(set(baskets[u]) & set(baskets[v]))
        for i, j in combinations(shared, 2):
            expected[i, j] += 1 / np.sqrt(len(baskets[u]) * len(baskets[v])) / (1.0 + len(shared))
    pairs = cooccurrence.swing(met(baskets), 8)
    found = np.zeros((8, 8))
    found[pairs.left, pairs.right] = pairs.value
    np.testing.assert_allclose(found, expected + expected.T, rtol=1e-5)


def test_two_items_that_all_of_many_users_share_keep_the_pairs_of_as_many_users_as_are_drawn() -> None:
    pairs = cooccurrence.swing(met([[0, 1]] * 400), 2, max_users=20)
    users = 20 * 19 / 2
    np.testing.assert_allclose(pairs.value, users / 2 / 3, rtol=1e-5)  # w_u w_v = 1/2, and two items are shared
