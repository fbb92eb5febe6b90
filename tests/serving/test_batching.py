"""Dynamic batching with deadlines."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batching import NARROWEST, Batcher, CostEstimate, Stopped, TooLate, beam_width, rows_in_time


def soon(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


def test_the_beam_is_full_without_load_and_narrows_until_its_cost_fits():
    def cost(rows: int, width: int) -> float:
        return rows * width * 0.001

    assert beam_width(64, 1, 0.2, cost) == 64
    assert beam_width(64, 8, 0.2, cost) == 8
    assert beam_width(64, 100, 0.001, cost) == NARROWEST


@given(st.integers(NARROWEST, 512), st.integers(1, 64), st.floats(0, 2))
def test_the_beam_never_gets_wider_by_more_load(widest, rows, slack_s):
    cost = CostEstimate()
    assert beam_width(widest, rows + 1, slack_s, cost) <= beam_width(widest, rows, slack_s, cost) <= widest


def test_a_batch_has_as_many_rows_as_can_be_answered_in_time_and_at_least_one():
    def cost(rows: int, width: int) -> float:
        return 0.010 * rows

    assert rows_in_time([0.1, 0.1, 0.1], 16, cost) == 3
    assert rows_in_time([0.1, 0.03, 0.02, 0.02], 16, cost) == 2
    assert rows_in_time([0.1] * 9, 4, cost) == 4
    assert rows_in_time([0.001, 0.001], 16, cost) == 1


def test_under_overload_the_newest_requests_are_answered_and_the_oldest_are_told_at_once():
    def answer(asks, width):
        time.sleep(0.02)
        return list(asks)

    batcher = Batcher(answer, widest=16, max_batch=4)
    batcher.start()
    for _ in range(40):  # learn what a batch costs
        batcher.submit(0, soon()).result(10)
    futures = [batcher.submit(number, time.monotonic() + 0.06) for number in range(40)]
    late = sum(isinstance(future.exception(10), TooLate) for future in futures)
    batcher.stop()
    assert 0 < late < 40
    assert futures[-1].exception() is None


def test_the_cost_estimate_follows_what_batches_take():
    cost = CostEstimate()
    for _ in range(200):
        cost.learn(4, 32, 0.080)
    assert cost(4, 32) == pytest.approx(0.080, rel=0.05)


def test_requests_that_come_while_the_model_is_busy_share_the_next_batch():
    entered, go = threading.Event(), threading.Event()
    sizes = []

    def answer(asks, width):
        sizes.append(len(asks))
        entered.set()
        go.wait(10)
        return [ask * 10 for ask in asks]

    batcher = Batcher(answer, widest=16, max_batch=3)
    batcher.start()
    first = batcher.submit(1, soon())
    assert entered.wait(10)
    others = [batcher.submit(number, soon()) for number in (2, 3, 4, 5)]
    go.set()
    assert [future.result(10) for future in (first, *others)] == [10, 20, 30, 40, 50]
    batcher.stop()
    assert sizes == [1, 3, 1]


def test_a_request_whose_deadline_has_passed_costs_the_model_nothing():
    asked: list[str] = []

    def answer(asks, width):
        asked.extend(asks)
        return asks

    batcher: Batcher[str, str] = Batcher(answer, widest=16, max_batch=8)
    late = batcher.submit("late", time.monotonic() - 1)
    good = batcher.submit("good", soon())
    batcher.start()
    good.result(10)
    with pytest.raises(TooLate):
        late.result(10)
    batcher.stop()
    assert asked == ["good"]


def test_a_failing_batch_fails_its_own_requests_only():
    def answer(asks, width):
        if "bad" in asks:
            raise ValueError("broken")
        return list(asks)

    batcher = Batcher(answer, widest=16, max_batch=1)
    batcher.start()
    bad, good = batcher.submit("bad", soon()), batcher.submit("good", soon())
    with pytest.raises(ValueError, match="broken"):
        bad.result(10)
    assert good.result(10) == "good"
    batcher.stop()


def test_stopping_answers_what_is_queued_and_takes_nothing_more():
    batcher: Batcher[int, int] = Batcher(lambda asks, width: list(asks), widest=16, max_batch=2)
    queued = [batcher.submit(number, soon()) for number in range(5)]
    batcher.start()
    batcher.stop()
    assert [future.result(0) for future in queued] == list(range(5))
    with pytest.raises(Stopped):
        batcher.submit(6, soon())
