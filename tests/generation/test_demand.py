"""Demand merges by SID, and what it is depends on the set of requests alone."""

from __future__ import annotations

from functools import reduce
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from generation.demand import MINUTE_MS, Want, Wish, key_of, merge, most_wanted, urgency

NOW = 1_800_000_000_000
wishes = st.lists(
    st.builds(
        Wish,
        request_id=st.integers(0, 30).map(lambda n: f"r{n}"),
        key=st.integers(0, 4).map(lambda n: f"b|{n}"),
        demand=st.integers(1, 9),
        asked_ms=st.integers(NOW, NOW + 60 * MINUTE_MS),
    ),
    max_size=40,
    unique_by=lambda wish: wish.request_id,
)


def merged(all_wishes: list[Wish]) -> dict[str, Want]:
    return reduce(merge, all_wishes, {})


@given(wishes, st.integers(0, 2**32))
def test_order_and_repetition_of_requests_change_nothing(all_wishes: list[Wish], seed: int) -> None:
    again = all_wishes + all_wishes[: len(all_wishes) // 2]
    Random(seed).shuffle(again)
    assert merged(again) == merged(all_wishes)


@given(wishes)
def test_no_wish_is_lost_and_none_counts_twice(all_wishes: list[Wish]) -> None:
    wants = merged(all_wishes)
    assert sum(want.demand for want in wants.values()) == sum(wish.demand for wish in all_wishes)
    assert {request for want in wants.values() for request in want.request_ids} == {wish.request_id for wish in all_wishes}


@given(wishes)
def test_the_most_wanted_come_first(all_wishes: list[Wish]) -> None:
    urgencies = [want.urgency for want in most_wanted(merged(all_wishes))]
    assert urgencies == sorted(urgencies, reverse=True)


@given(st.integers(1, 1000), st.integers(1, 10**6))
def test_an_old_wish_overtakes_any_crowd_that_comes_late_enough(crowd: int, demand: int) -> None:
    assert urgency(1, NOW) > urgency(crowd, NOW + crowd * MINUTE_MS)
    assert urgency(demand + 1, NOW) > urgency(demand, NOW)


def test_keys_of_different_sids_differ() -> None:
    assert key_of("b", [1, 23]) == "b|1.23" != key_of("b", [12, 3])
