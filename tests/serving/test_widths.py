"""The ladder of widths, what its rungs cost, and which one a batch gets."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.widths import NARROWEST, Costs, Verdict, WidthPolicy, choose, ladder, per_level

ALLOWED, UNKNOWN, REFUSED = Verdict
seconds = st.floats(0, 2)
costs_by_rung = st.lists(st.floats(1e-3, 1), min_size=1, max_size=6).map(lambda costs: sorted(costs, reverse=True))


def test_the_ladder_narrows_the_first_levels_before_it_halves_all_but_the_last():
    assert ladder(32) == [(32, 32, 32, 32), (16, 24, 32, 32), (16, 16, 16, 32), (8, 12, 16, 32), (8, 8, 8, 32)]
    assert ladder(15) == [(15, 15, 15, 15)]


@given(st.integers(1, 600))
def test_no_rung_is_wider_than_the_one_before_at_any_level(widest):
    rungs = ladder(widest)
    for wider, narrower in itertools.pairwise(rungs):
        assert all(less <= more for less, more in zip(narrower, wider, strict=True)) and narrower != wider
    assert rungs[0] == (widest,) * 4
    assert min(rungs[-1]) >= min(widest, NARROWEST)
    assert {rung[-1] for rung in rungs} == {widest}


def test_models_of_any_number_of_levels_have_the_results_of_the_last_width():
    assert [per_level((1, 2, 3, 4), levels) for levels in (1, 2, 3, 4, 6)] == [[4], [1, 4], [1, 2, 4], [1, 2, 3, 4], [1, 2, 3, 3, 3, 4]]


def test_with_time_the_full_search_is_made_and_with_less_the_widest_allowed_one_that_fits_well():
    costs = [0.08, 0.06, 0.04, 0.02]
    assert choose(costs, [ALLOWED] * 4, 0.2) == 0
    assert choose(costs, [ALLOWED] * 4, 0.1) == 2
    assert choose(costs, [ALLOWED, UNKNOWN, REFUSED, ALLOWED], 0.1) == 3


def test_what_is_unknown_is_used_only_where_the_answer_would_be_degraded():
    costs = [0.08, 0.06, 0.04, 0.02]
    assert choose(costs, [ALLOWED, ALLOWED, UNKNOWN, UNKNOWN], 0.081) == 1
    assert choose(costs, [ALLOWED, ALLOWED, UNKNOWN, UNKNOWN], 0.079) == 2
    assert choose(costs, [ALLOWED, UNKNOWN, UNKNOWN, UNKNOWN], 0.079) == 2


@pytest.mark.parametrize("slack_s", [-1.0, 0.0, 0.05, 0.09, 0.2])
def test_what_is_refused_is_never_used(slack_s):
    assert choose([0.08, 0.06, 0.04, 0.02], [ALLOWED, REFUSED, REFUSED, REFUSED], slack_s) == 0
    assert choose([0.08, 0.06, 0.04, 0.02], [ALLOWED, REFUSED, UNKNOWN, REFUSED], slack_s) in (0, 2)


def test_without_any_time_the_narrowest_search_is_made():
    assert choose([0.08, 0.06], [ALLOWED, ALLOWED], -1.0) == 1


@given(costs_by_rung, st.data(), seconds, seconds, st.floats(1, 3))
def test_less_time_or_a_slower_machine_never_gives_a_wider_rung(costs, data, one_s, other_s, slower):
    verdicts = [ALLOWED, *data.draw(st.lists(st.sampled_from(Verdict), min_size=len(costs) - 1, max_size=len(costs) - 1))]
    less, more = sorted((one_s, other_s))
    assert 0 <= choose(costs, verdicts, more) <= choose(costs, verdicts, less) < len(costs)
    assert choose(costs, verdicts, more) <= choose([cost * slower for cost in costs], verdicts, more)


batches = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 16), st.floats(1e-3, 1)), max_size=60)


@given(batches, st.integers(1, 15), st.integers(0, 100), st.integers(0, 100), seconds)
def test_more_load_never_gives_a_wider_rung_whatever_was_measured(learnt, rows, waiting, more_waiting, slack_s):
    policy = WidthPolicy(ladder(32), lambda: [ALLOWED, UNKNOWN, ALLOWED, REFUSED, UNKNOWN], lambda: [1.0] * 5, max_batch=16)
    for rung, size, took_s in learnt:
        policy.costs.learn(rung, size, took_s)
    here = policy.rung(rows, waiting, slack_s)
    assert here <= policy.rung(rows + 1, waiting, slack_s)
    assert here <= policy.rung(rows, waiting + more_waiting, slack_s)


def test_those_who_wait_behind_a_batch_make_it_narrower():
    policy = WidthPolicy(ladder(32), lambda: [ALLOWED] * 5, lambda: [1.0] * 5, max_batch=16)
    assert policy.rung(1, 0, 0.15) == 0
    assert policy.rung(1, 40, 0.15) > 0


def test_a_rung_that_loses_more_than_it_saves_is_used_only_where_the_answer_would_be_degraded():
    shares = [1.0, 0.9, 0.9]
    policy = WidthPolicy(ladder(16), lambda: [ALLOWED, ALLOWED, REFUSED], lambda: shares, max_batch=16)
    for _ in range(400):
        for rung, took_s in enumerate((0.100, 0.094, 0.090)):
            policy.costs.learn(rung, 16, took_s)
    assert policy.rung(16, 0, 0.19) == 0  # the second saves 6% and loses 10%
    assert policy.rung(16, 0, 0.13) == 1
    shares[1] = 0.96
    assert policy.rung(16, 0, 0.19) == 1


def test_a_batch_is_as_large_as_the_narrowest_usable_rung_can_answer_in_time():
    verdicts = [ALLOWED, UNKNOWN, REFUSED]
    policy = WidthPolicy(ladder(16), lambda: verdicts, lambda: [1.0] * 3, max_batch=16)
    assert policy.quickest_s(8) == policy.costs(1, 8) > policy.costs(2, 8)
    verdicts[2] = UNKNOWN
    assert policy.quickest_s(8) == policy.costs(2, 8)


@given(batches)
def test_an_estimate_is_never_less_than_for_a_narrower_rung_or_fewer_rows(learnt):
    costs = Costs(ladder(32), 16)
    for rung, rows, took_s in learnt:
        costs.learn(rung, rows, took_s)
    for rung in range(5):
        for rows in range(1, 17):
            assert 0 < costs(rung, rows) < math.inf
            assert rows == 16 or costs(rung, rows) <= costs(rung, rows + 1)
            assert rung == 4 or costs(rung + 1, rows) <= costs(rung, rows)


def test_estimates_follow_what_batches_of_each_rung_and_size_take():
    costs = Costs(ladder(32), 16)
    taken = {(0, 1): 0.03, (0, 8): 0.07, (4, 8): 0.034, (4, 16): 0.05}
    for _ in range(1_000):
        for (rung, rows), took_s in taken.items():
            costs.learn(rung, rows, took_s)
    assert {of: costs(*of) for of in taken} == pytest.approx(taken, rel=0.02)


def test_a_rung_that_was_slow_while_the_machine_was_busy_is_thought_fast_again_when_others_are():
    costs = Costs(ladder(32), 16)
    for took_s in [0.02] * 100 + [0.2] * 100:
        costs.learn(0, 1, took_s)
    assert costs(0, 1) == pytest.approx(0.2, rel=0.05)
    for took_s in [0.1] * 10 + [0.01] * 200:
        costs.learn(4, 1, took_s)
    assert costs(0, 1) < 0.05
