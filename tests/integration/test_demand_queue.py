"""The demand queue on a real Redis: the rule of `generation.demand`, leases, and the place in the log."""

from __future__ import annotations

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generation.demand import MINUTE_MS, Wish, merge, most_wanted
from generation.queue import KEYS, DemandQueue, Totals

pytestmark = pytest.mark.integration
NOW = 1_800_000_000_000


@pytest.fixture
def queue(redis_url: str) -> DemandQueue:
    redis.Redis.from_url(redis_url).delete(*KEYS)
    return DemandQueue(redis_url)


def put(queue: DemandQueue, *wishes: Wish) -> int | None:
    """Merge wishes as if each were the next record of partition 0."""
    at = queue.offsets().get(0, 0)
    return queue.merge([(wish, wish.request_id) for wish in wishes], {0: at}, {0: at + len(wishes)})


@given(
    st.lists(
        st.builds(
            Wish,
            request_id=st.integers(0, 25).map(lambda n: f"r{n}"),
            key=st.integers(0, 3).map(lambda n: f"b|{n}"),
            demand=st.integers(1, 5),
            asked_ms=st.integers(0, 20).map(lambda n: NOW + n * MINUTE_MS),
        ),
        max_size=20,
        unique_by=lambda wish: wish.request_id,
    ),
    st.integers(1, 5),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_queue_is_what_the_rule_says(queue: DemandQueue, redis_url: str, wishes: list[Wish], batch: int) -> None:
    client = redis.Redis.from_url(redis_url)
    client.delete(*KEYS)
    wants: dict = {}
    for first in range(0, len(wishes), batch):
        put(queue, *wishes[first : first + batch])
        put(queue, *wishes[:first])  # read again
        for wish in wishes[first : first + batch]:
            wants = merge(wants, wish)
    expected = most_wanted(wants)
    stored = client.zrevrange("sidstream:generation:wanted", 0, -1, withscores=True)
    assert {key.decode(): round(score, 6) for key, score in stored} == {want.key: round(want.urgency, 6) for want in expected}
    assert queue.totals() == Totals(sum(want.demand for want in expected), 0, 0, len(expected))


def test_the_most_wanted_sid_is_claimed_first_and_by_one_worker(queue: DemandQueue) -> None:
    put(queue, Wish("r1", "b|1.2", 1, NOW), Wish("r2", "b|3.4", 5, NOW))
    assert [queue.claim(NOW, 1000).key, queue.claim(NOW, 1000).key] == ["b|3.4", "b|1.2"]
    assert queue.claim(NOW, 1000) is None


def test_a_claim_carries_the_earliest_request(queue: DemandQueue) -> None:
    put(queue, Wish("late", "b|1", 2, NOW + 5), Wish("early", "b|1", 1, NOW))
    assert queue.claim(NOW, 1000).request == b"early"


def test_the_lease_of_a_dead_worker_runs_out(queue: DemandQueue) -> None:
    put(queue, Wish("r1", "b|1", 1, NOW))
    queue.claim(NOW, 1000)
    assert queue.claim(NOW + 999, 1000) is None
    assert queue.claim(NOW + 1000, 1000).key == "b|1"


def test_a_worker_that_goes_on_keeps_its_lease(queue: DemandQueue) -> None:
    put(queue, Wish("r1", "b|1", 1, NOW))
    claim = queue.claim(NOW, 1000)
    queue.renew(claim, NOW + 900, 1000)
    assert queue.claim(NOW + 1500, 1000) is None
    queue.release(claim)
    assert queue.claim(NOW + 1500, 1000) == claim


def test_a_failed_sid_lets_others_pass_and_is_tried_again(queue: DemandQueue) -> None:
    put(queue, Wish("r1", "b|1", 9, NOW), Wish("r2", "b|2", 1, NOW))
    assert queue.fail(queue.claim(NOW, 1000), NOW + 5000) == 1
    assert queue.claim(NOW, 1000).key == "b|2"
    assert queue.fail(queue.claim(NOW + 5000, 1000), NOW + 9000) == 2


def test_a_finished_sid_is_counted_once(queue: DemandQueue) -> None:
    put(queue, Wish("r1", "b|1", 3, NOW))
    claim = queue.claim(NOW, 1000)
    queue.finish(claim, "generated")
    queue.finish(claim, "generated")
    assert queue.claim(NOW + 5000, 1000) is None
    assert queue.totals() == Totals(requested=3, generated=1, refused=0, pending=0)


def test_requests_and_the_place_in_the_log_change_together_or_not_at_all(queue: DemandQueue) -> None:
    assert put(queue, Wish("r1", "b|1", 1, NOW)) == 1
    assert queue.merge([(Wish("r2", "b|2", 1, NOW), "")], {0: 0}, {0: 2}) is None  # another worker has read on meanwhile
    assert (queue.offsets(), queue.totals().pending) == ({0: 1}, 1)
    assert queue.merge([(Wish("r2", "b|2", 1, NOW), "")], {0: 1, 3: 0}, {0: 2, 3: 7}) == 1
    assert queue.offsets() == {0: 2, 3: 7}
