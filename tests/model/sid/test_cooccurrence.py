"""Pairs: Swing and smoothing as their formulas say, one sum at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from model.sid import cooccurrence
from model.sid.cooccurrence import Sequences


def log(users: int, items: int, seed: int) -> tuple[Sequences, dict[int, set[int]]]:
    rng = np.random.default_rng(seed)
    row, user = rng.integers(items, size=6 * users), np.repeat(np.arange(users) * 3, 6)
    had: dict[int, set[int]] = {}
    for one, item in zip(user.tolist(), row.tolist(), strict=True):
        had.setdefault(one, set()).add(item)
    return Sequences(row, user, np.ones(len(row), np.float32)), had


@pytest.mark.parametrize("seed", range(3))
def test_swing_is_the_sum_of_its_formula_over_pairs_of_users(seed: int) -> None:
    sequences, had = log(12, 9, seed)
    expected = np.zeros((9, 9))
    for u, v in itertools.combinations(had, 2):
        both = had[u] & had[v]
        for i, j in itertools.permutations(both, 2):
            expected[i, j] += 1 / np.sqrt(len(had[u])) / np.sqrt(len(had[v])) / (2.0 + len(both))
    found = np.zeros((9, 9))
    pairs = cooccurrence.swing(sequences, 9, alpha=2.0)
    found[pairs.left, pairs.right] = pairs.value
    assert np.allclose(found, expected, atol=1e-6)
    assert len(pairs.left) == (expected > 0).sum()


def test_swing_of_a_crowd_reads_only_some_users_of_an_item() -> None:
    rows, users = np.tile([0, 1], 500), np.repeat(np.arange(500), 2)
    pairs = cooccurrence.swing(Sequences(rows, users, np.ones(1000, np.float32)), 2, max_users=20)
    shared = 2 * 3 * pairs.value[0]  # w_u w_v = 1/2, alpha + |shared| = 3
    assert 0 <= round(float(shared)) <= 20 * 19 / 2


def test_users_who_share_one_item_only_swing_nothing() -> None:
    pairs = cooccurrence.swing(Sequences(np.array([0, 1, 0, 2]), np.array([0, 0, 1, 1]), np.ones(4, np.float32)), 3)
    assert len(pairs.left) == 0


def test_the_same_id_pairs_and_an_unknown_one_does_not() -> None:
    pairs = cooccurrence.same(np.array([4, -1, 7, 4, -1, 4]))
    assert set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == set(itertools.permutations([0, 3, 5], 2))


def test_smoothing_is_that_of_the_formula_and_leaves_alone_what_was_met_with_nothing() -> None:
    sequences, _ = log(10, 7, 5)
    vectors = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    count = np.zeros((8, 8))
    row = sequences.row.reshape(10, 6)
    for line in row:
        for place in range(6):
            for distance in (1, 2):
                if place + distance < 6 and line[place] != line[place + distance]:
                    count[line[place], line[place + distance]] += 1 / distance
                    count[line[place + distance], line[place]] += 1 / distance
    degree = count.sum(axis=1)
    normal = count / np.sqrt(np.outer(np.maximum(degree, 1e-9), np.maximum(degree, 1e-9)))
    hop = vectors.astype(np.float64)
    total, weight = 0.4 * hop, 0.4
    for number in (1, 2):
        hop = 0.6 * normal @ hop + 0.4 * vectors
        total, weight = total + 0.4 * 0.6**number * hop, weight + 0.4 * 0.6**number
    found = cooccurrence.smooth(vectors, sequences, 2, 0.6, hops=2)
    met = degree > 0
    assert np.allclose(found[met], (total / weight)[met], atol=1e-5)
    assert not met[7] and np.allclose(found[7], vectors[7], atol=1e-6)
