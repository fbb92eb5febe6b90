"""Dynamic batching with deadlines."""

from __future__ import annotations

import threading
import time

import pytest

from serving.batching import Batcher, Stopped, TooLate, rows_in_time
from serving.widths import Verdict, WidthPolicy, ladder, uniform


def soon(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


def steady(max_batch: int) -> WidthPolicy:
    """One width for every load."""
    return WidthPolicy([uniform(16)], lambda: [Verdict.ALLOWED], lambda: [1.0], max_batch)


def test_a_batch_has_as_many_rows_as_can_be_answered_in_time_and_at_least_one():
    def cost(rows: int) -> float:
        return 0.010 * rows

    assert rows_in_time([0.1, 0.1, 0.1], 16, cost) == 3
    assert rows_in_time([0.1, 0.03, 0.02, 0.02], 16, cost) == 2
    assert rows_in_time([0.1] * 9, 4, cost) == 4
    assert rows_in_time([0.001, 0.001], 16, cost) == 1


def test_under_overload_the_newest_requests_are_answered_and_the_oldest_are_told_at_once():
    def answer(asks, widths):
        time.sleep(0.02)
        return list(asks)

    batcher = Batcher(answer, widths=steady(4))
    batcher.start()
    for _ in range(40):  # learn what a batch costs
        batcher.submit(0, soon()).result(10)
    futures = [batcher.submit(number, time.monotonic() + 0.06) for number in range(40)]
    late = sum(isinstance(future.exception(10), TooLate) for future in futures)
    batcher.stop()
    assert 0 < late < 40
    assert futures[-1].exception() is None


def test_requests_that_come_while_the_model_is_busy_share_the_next_batch():
    entered, go = threading.Event(), threading.Event()
    sizes = []

    def answer(asks, widths):
        sizes.append(len(asks))
        entered.set()
        go.wait(10)
        return [ask * 10 for ask in asks]

    batcher = Batcher(answer, widths=steady(3))
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

    def answer(asks, widths):
        asked.extend(asks)
        return asks

    batcher: Batcher[str, str] = Batcher(answer, widths=steady(8))
    late = batcher.submit("late", time.monotonic() - 1)
    good = batcher.submit("good", soon())
    batcher.start()
    good.result(10)
    with pytest.raises(TooLate):
        late.result(10)
    batcher.stop()
    assert asked == ["good"]


def test_a_failing_batch_fails_its_own_requests_only():
    def answer(asks, widths):
        if "bad" in asks:
            raise ValueError("broken")
        return list(asks)

    batcher = Batcher(answer, widths=steady(1))
    batcher.start()
    bad, good = batcher.submit("bad", soon()), batcher.submit("good", soon())
    with pytest.raises(ValueError, match="broken"):
        bad.result(10)
    assert good.result(10) == "good"
    batcher.stop()


def test_stopping_answers_what_is_queued_and_takes_nothing_more():
    batcher: Batcher[int, int] = Batcher(lambda asks, widths: list(asks), widths=steady(2))
    queued = [batcher.submit(number, soon()) for number in range(5)]
    batcher.start()
    batcher.stop()
    assert [future.result(0) for future in queued] == list(range(5))
    with pytest.raises(Stopped):
        batcher.submit(6, soon())


def test_what_is_spare_is_done_bit_by_bit_and_only_while_nobody_waits():
    done: list[str] = []
    begun = threading.Event()

    def spare() -> bool:
        done.append("spare")
        if len(done) == 2:
            begun.set()
            while not batcher.waiting():
                time.sleep(0.001)
        return done.count("spare") < 3

    batcher: Batcher[str, str] = Batcher(lambda asks, widths: [done.append(ask) or ask for ask in asks], widths=steady(1), spare=spare)
    batcher.start()
    batcher.submit("first", soon()).result(10)
    assert begun.wait(10)
    batcher.submit("second", soon()).result(10)
    batcher.stop()
    assert done == ["first", "spare", "second", "spare", "spare"]


def test_a_crowd_is_searched_narrower_than_one_person_is():
    searched = []

    def answer(asks, widths):
        searched.append((len(asks), widths))
        time.sleep(0.001)
        return asks

    policy = WidthPolicy(ladder(16), lambda: [Verdict.ALLOWED] * 3, lambda: [1.0] * 3, 4)
    for _ in range(200):
        policy.costs.learn(0, 4, 0.4)
        policy.costs.learn(1, 4, 0.35)
        policy.costs.learn(2, 4, 0.02)
        policy.costs.learn(0, 1, 0.05)
    batcher: Batcher[int, int] = Batcher(answer, widths=policy)
    crowd = [batcher.submit(number, soon(0.5)) for number in range(4)]
    batcher.start()
    assert [future.result(10) for future in crowd] == [0, 1, 2, 3]
    batcher.submit(4, soon(0.5)).result(10)
    batcher.stop()
    assert searched == [(4, (8, 8, 8, 16)), (1, (16, 16, 16, 16))]
