"""The demand queue on a real Redis: merged by SID, the most wanted first, nothing lost and nothing counted twice."""

import pytest
import redis

from generation.demand import KEYS, MINUTE_MS, DemandQueue, Totals, key_of

pytestmark = pytest.mark.integration
NOW = 1_800_000_000_000


@pytest.fixture
def queue(redis_url):
    redis.Redis.from_url(redis_url).delete(*KEYS)
    return DemandQueue(redis_url)


def test_the_most_wanted_sid_is_claimed_first(queue):
    queue.merge("r1", key_of("b", [1, 2]), b"one", 1, NOW)
    queue.merge("r2", key_of("b", [3, 4]), b"two", 5, NOW)
    assert queue.claim(NOW, 1000).key == "b|3.4"
    assert queue.claim(NOW, 1000).key == "b|1.2"
    assert queue.claim(NOW, 1000) is None


def test_a_request_read_twice_counts_once(queue):
    assert queue.merge("r1", "b|1", b"x", 3, NOW)
    assert not queue.merge("r1", "b|1", b"x", 3, NOW + 5)
    assert queue.totals() == Totals(requested=3, generated=0, pending=1)


def test_demand_of_several_requests_adds_up_and_the_first_request_is_kept(queue):
    queue.merge("r1", "b|1", b"first", 1, NOW)
    queue.merge("r2", "b|2", b"other", 2, NOW)
    queue.merge("r3", "b|1", b"later", 2, NOW)
    claim = queue.claim(NOW, 1000)
    assert (claim.key, claim.request) == ("b|1", b"first")


def test_a_long_wait_outweighs_a_few_wishes(queue):
    queue.merge("old", "b|old", b"", 1, NOW)
    queue.merge("new", "b|new", b"", 3, NOW + 10 * MINUTE_MS)
    assert queue.claim(NOW, 1000).key == "b|old"


def test_the_lease_of_a_dead_worker_runs_out(queue):
    queue.merge("r1", "b|1", b"", 1, NOW)
    queue.claim(NOW, 1000)
    assert queue.claim(NOW + 999, 1000) is None
    assert queue.claim(NOW + 1000, 1000).key == "b|1"


def test_a_finished_sid_is_off_the_queue_and_counted_once(queue):
    queue.merge("r1", "b|1", b"", 1, NOW)
    claim = queue.claim(NOW, 1000)
    queue.finish(claim)
    queue.finish(claim)
    assert queue.claim(NOW + 5000, 1000) is None
    assert queue.totals() == Totals(requested=1, generated=1, pending=0)


def test_a_claim_is_found_behind_many_leased_ones(queue):
    for n in range(100):
        queue.merge(f"r{n}", f"b|{n}", b"", 100 - n, NOW)
    claimed = [queue.claim(NOW, 1000).key for _ in range(100)]
    assert claimed == [f"b|{n}" for n in range(100)]
