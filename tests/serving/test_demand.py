"""Demand merged per process."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.demand import Demand, DemandLedger, Wanted


def wish(sid: tuple[int, ...] = (1, 2, 3, 4)) -> Wanted:
    return Wanted(sid, "miss", (0, 0, 0, 0))


def test_the_first_wish_is_requested_at_once_and_the_next_ones_together_when_the_memory_ends():
    ledger = DemandLedger(memory_s=10)
    assert ledger.add("b", wish(), 0.0) == Demand(wish(), 1)
    assert [ledger.add("b", wish(), now) for now in (1.0, 2.0, 9.0)] == [None, None, None]
    assert ledger.due(9.9) == []
    assert [(bundle, demand.count) for bundle, demand in ledger.due(10.0)] == [("b", 3)]


def test_a_sid_that_nobody_wants_any_more_is_forgotten():
    ledger = DemandLedger(memory_s=10)
    ledger.add("b", wish(), 0.0)
    assert ledger.due(10.0) == []
    assert len(ledger) == 0


def test_sids_of_different_bundles_are_different():
    ledger = DemandLedger()
    assert ledger.add("old", wish(), 0.0) is not None
    assert ledger.add("new", wish(), 0.0) is not None


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 8), st.booleans()), max_size=60))
def test_no_wish_is_lost_and_none_counts_twice(wishes):
    ledger = DemandLedger(memory_s=5)
    now, requested = 0.0, 0
    for code, pause, look in wishes:
        now += pause
        demand = ledger.add("b", wish((code,)), now)
        requested += demand.count if demand else 0
        if look:
            requested += sum(due.count for _, due in ledger.due(now))
    requested += sum(due.count for _, due in ledger.flush(now))
    assert requested == len(wishes)
