"""Metrics against their definitions, floors against counting, values and the ledger."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.online.floors import Floors, Popularity
from model.online.metrics import Prequential, auc, calibration, grouped_auc, normalised_entropy
from model.online.value import Ledger, positive_labels, value
from streaming.records import Context, HistoryEntry, Labels
from tests.model.conftest import SmallWorld

CASES = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.7, 0.9]), st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(CASES)
def test_auc_is_the_share_of_pairs_in_the_right_order(cases: list[tuple[float, int, int]]) -> None:
    probability, outcome, _ = (np.array(column) for column in zip(*cases, strict=True))
    pairs = [(p > n) + 0.5 * (p == n) for p, n in itertools.product(probability[outcome == 1], probability[outcome == 0])]
    found = auc(probability, outcome)
    assert (found is None) == (not pairs)
    if found is not None:
        assert found == pytest.approx(np.mean(pairs))


@settings(max_examples=40, deadline=None)
@given(CASES)
def test_grouped_auc_is_the_weighted_mean_of_the_users(cases: list[tuple[float, int, int]]) -> None:
    probability, outcome, users = (np.array(column) for column in zip(*cases, strict=True))
    weighted = total = 0.0
    for user in range(4):
        mine = users == user
        one = auc(probability[mine], outcome[mine]) if mine.any() else None
        if one is not None:
            weighted, total = weighted + one * mine.sum(), total + mine.sum()
    found = grouped_auc(probability, outcome, users)
    assert (found is None) == (total == 0)
    if found is not None:
        assert found == pytest.approx(weighted / total)


def test_saying_the_rate_has_entropy_one_and_calibration_one() -> None:
    outcome = np.array([1, 0, 0, 0])
    assert normalised_entropy(np.full(4, 0.25), outcome) == pytest.approx(1)
    assert calibration(np.full(4, 0.25), outcome) == pytest.approx(1)
    assert calibration(np.full(4, 0.5), outcome) == pytest.approx(2)
    assert normalised_entropy(np.array([0.9, 0.1, 0.1, 0.1]), outcome) < 1


def test_a_window_closes_when_it_is_full_and_survives_json() -> None:
    metrics = Prequential(levels=2, size=4)
    metrics.open.saw([5, 3])
    metrics.open.targets(np.log([[0.5, 0.25], [1.0, 1.0]]), np.array([[True, False], [True, True]]))
    metrics.open.searched({"model": True, "popularity": False})
    assert not metrics.roll()
    metrics.open.saw([9, 7])
    metrics.open.predicted("click", [0.2, 0.9], [0, 1], [1, 1])
    copy = Prequential(levels=2, size=4)
    copy.restore(json.loads(json.dumps(metrics.state())))
    assert metrics.roll()
    assert copy.roll()
    assert metrics.closed == copy.closed
    window = metrics.closed[0]
    assert (window["from"], window["to"], window["samples"], window["positives"]) == (3, 9, 4, 2)
    assert window["loss"] == pytest.approx(-(math.log(0.5) + math.log(0.25)) / 4)
    assert window["level_accuracy"] == [1.0, 0.5]
    assert (window["recall_at_10"], window["floors"]["popularity"], window["floors"]["last_author"]) == (1.0, 0.0, None)
    assert window["auc"] == {"click": 1.0}
    assert metrics.recall() == {"model": 1.0, "popularity": 0.0}


def test_an_empty_window_has_no_numbers_and_is_json() -> None:
    metrics = Prequential(levels=2, size=1)
    assert metrics.recall() == {}
    assert metrics.windows() == []
    assert json.loads(json.dumps(metrics.open.summary()))["recall_at_10"] is None


def test_popularity_fades_by_half_every_half_life() -> None:
    old, new = (1, 1), (2, 2)
    fading, lasting = Popularity(half_life=10), Popularity(half_life=None)
    for each in (fading, lasting):
        each.learn([old] * 20)
        each.learn([new] * 15)
    assert lasting.top(2) == [old, new]
    assert fading.top(2) == [new, old]
    assert fading.weight(old) / fading.weight(new) == pytest.approx((1 - 0.25) * 2**-1.5 / (1 - 2**-1.5))


def test_popularity_does_not_overflow() -> None:
    fading = Popularity(half_life=1)
    for index in range(1500):
        fading.learn([(index % 3,)])
    assert math.isfinite(fading.weight((2,)))
    assert fading.top(1) == [(1499 % 3,)]


def test_the_last_author_floor_offers_that_author_first_and_popular_sids_after(world: SmallWorld) -> None:
    floors = Floors(world.vocabulary, 100)
    popular = (5, 4, 3)
    floors.learn([popular] * 3 + [tuple(world.sids[14])])

    class Row:
        user_id, ts = 1, 0
        context = Context([HistoryEntry(-9, 3), HistoryEntry(2, 2), HistoryEntry(3, 1)])

    offered = floors.recommend([Row()], 10)[0]
    theirs = {tuple(world.sids[item]) for item in (2, 14, 26, 38, 50)}
    assert set(offered["last_author"][: len(theirs)]) == theirs
    assert offered["last_author"][0] == tuple(world.sids[14])
    assert offered["last_author"][len(theirs)] == popular
    assert offered["popularity"][0] == popular


def test_dislike_takes_every_value_away() -> None:
    assert value(positive_labels(Labels(click=1, long_view=1))) == 1.5
    assert value(positive_labels(Labels(click=1, long_view=1, hate=1))) == 0
    assert value(positive_labels(Labels())) == 0
    assert value(positive_labels(Labels(click=0, play_ms=4))) == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["click", "like", "long_view", "conversion_value"])), max_size=30))
def test_corrections_never_add_up_to_more_than_the_labels_are_worth(events: list[tuple[int, str]]) -> None:
    ledger = Ledger()
    learned = {n: ledger.admit("initial", str(n), Labels(click=n % 2), 1.0).weight for n in range(6)}
    labels = {n: {"click"} if n % 2 else set() for n in range(6)}
    for impression, label in events:
        learned[impression] += ledger.admit("correction", str(impression), Labels(**{label: 1}), 1.0).weight
        labels[impression].add(label)
    for impression, names in labels.items():
        assert learned[impression] == pytest.approx(value(positive_labels(Labels(**dict.fromkeys(names, 1)))))


def test_the_ledger_forgets_the_oldest_and_survives_storage() -> None:
    ledger = Ledger(capacity=2)
    for name in ("a", "b", "c"):
        assert not ledger.admit("initial", name, Labels(click=1), 1.0).duplicate
    copy = Ledger(capacity=2)
    copy.restore(ledger.state())
    for each in (ledger, copy):
        assert each.admit("initial", "c", Labels(click=1), 1.0).duplicate
        assert not each.admit("initial", "a", Labels(click=1), 1.0).duplicate
