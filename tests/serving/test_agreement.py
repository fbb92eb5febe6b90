"""The gate of quality: what narrower searches still find, and what follows from it."""

from __future__ import annotations

import numpy as np
import pytest

from serving.agreement import ENOUGH, WINDOW, Agreement
from serving.candidates import Shelf
from serving.model import Codebook, Person, Serving
from serving.widths import Verdict, Widths, uniform
from streaming.records import Context
from tests.serving.fakes import CODES, place

RUNGS: list[Widths] = [uniform(16), (8, 8, 8, 16), (4, 4, 4, 16)]
SEARCH_S = 0.010
ALLOWED, UNKNOWN, REFUSED = Verdict


class Model:
    """Finds as many of the full search's ten best as it is told; each search takes 10 ms of a clock of its own."""

    def __init__(self, version: str = "v1", **shares: float) -> None:
        self.version = version
        self.now_s = 0.0
        self.finds = {RUNGS[1]: shares.get("eight", 1.0), RUNGS[2]: shares.get("four", 1.0)}
        self.asked: list[tuple[int, Widths]] = []
        self.found = 10
        self.failure: Exception | None = None

    def beam(self, people, widths):
        self.now_s += SEARCH_S
        self.asked += [(person.user_id, widths) for person in people]
        if self.failure:
            raise self.failure
        kept = round(10 * self.finds.get(widths, 1.0))
        sids = np.array([[[0, 0, 0, n] if n < kept else [1, 1, 1, n] for n in range(16)]])
        score = np.where(np.arange(16) < self.found, -1.0 - np.arange(16), -np.inf)
        return sids, score[None].astype(np.float32)

    def learn(self, item_id, sid):
        raise NotImplementedError


class Bench:
    """A gate with its model; `measure` lets as many people be measured as wanted."""

    def __init__(self, model: Model, *, share: float = 0.5, least: float = 0.9) -> None:
        self.model, self.bundle, self.user = model, "sid-1", 0
        self.gate = Agreement(RUNGS, least=least, share=share, recent=self.recent, clock=lambda: self.model.now_s)

    def recent(self) -> tuple[Serving, Person]:
        serving = Serving(self.model, Codebook(self.bundle, 2, CODES, Shelf(place)))
        return serving, Person(self.user, 0, Context())

    def publish(self, model: Model) -> None:
        model.now_s = self.model.now_s
        self.model = model

    def measure(self, people: int) -> None:
        for _ in range(people):
            self.user += 1
            self.model.now_s += 10.0
            while self.gate.step():
                pass

    @property
    def samples(self) -> list[int]:
        return [evidence.samples for evidence in self.gate.evidence[1:]]


def test_each_rung_is_compared_with_the_full_search_of_the_same_person():
    bench = Bench(Model(eight=0.9, four=0.4))
    bench.measure(2)
    assert bench.model.asked == [(user, widths) for user in (1, 2) for widths in RUNGS]
    assert [evidence.mean for evidence in bench.gate.evidence] == pytest.approx([1.0, 0.9, 0.4])
    assert bench.samples == [2, 2]


def test_a_rung_is_unknown_until_enough_people_were_measured_and_then_allowed_if_it_finds_enough():
    bench = Bench(Model(eight=0.9, four=0.8))
    assert bench.gate.verdicts() == [ALLOWED, UNKNOWN, UNKNOWN]
    bench.measure(ENOUGH - 1)
    assert bench.gate.verdicts() == [ALLOWED, UNKNOWN, UNKNOWN]
    bench.measure(1)
    assert bench.gate.verdicts() == [ALLOWED, ALLOWED, REFUSED]


def test_a_rung_that_finds_less_than_it_did_is_refused():
    bench = Bench(Model())
    bench.measure(WINDOW)
    assert bench.gate.verdicts() == [ALLOWED, ALLOWED, ALLOWED]
    bench.model.finds[RUNGS[2]] = 0.5
    bench.measure(2 * WINDOW)
    assert bench.gate.verdicts() == [ALLOWED, ALLOWED, REFUSED]
    assert bench.samples == [WINDOW, WINDOW]


def test_a_new_version_keeps_the_evidence_with_less_weight():
    bench = Bench(Model())
    bench.measure(WINDOW)
    bench.publish(Model("v2", four=0.5))
    assert bench.gate.verdicts() == [ALLOWED, ALLOWED, ALLOWED]
    assert bench.samples == [ENOUGH, ENOUGH]
    bench.measure(6)
    assert bench.gate.verdicts() == [ALLOWED, ALLOWED, REFUSED]


def test_another_bundle_starts_over_before_its_first_measurement():
    bench = Bench(Model())
    bench.measure(WINDOW)
    bench.bundle = "sid-2"
    assert bench.gate.verdicts() == [ALLOWED, UNKNOWN, UNKNOWN]
    assert bench.samples == [0, 0]


def test_measuring_takes_its_share_of_the_time_and_no_more():
    bench = Bench(Model(), share=0.1)
    model = bench.model
    while model.now_s < 60:
        if not bench.gate.step():
            model.now_s += 0.005
    assert len(model.asked) * SEARCH_S == pytest.approx(6.0, rel=0.05)


def test_a_step_is_one_search_so_that_whoever_comes_waits_for_one_only():
    bench = Bench(Model())
    for searches in (1, 2, 3):
        bench.gate.step()
        assert len(bench.model.asked) == searches


def test_without_a_share_of_the_time_nothing_is_measured():
    bench = Bench(Model(), share=0.0)
    bench.measure(3)
    assert bench.model.asked == []


def test_a_search_that_finds_nothing_says_nothing_about_others():
    bench = Bench(Model())
    bench.model.found = 0
    bench.measure(3)
    assert bench.samples == [0, 0]


def test_a_failing_search_is_no_evidence_and_stops_nobody():
    bench = Bench(Model())
    bench.model.failure = RuntimeError("boom")
    bench.measure(3)
    assert (len(bench.model.asked), bench.samples) == (3, [0, 0])
    bench.model.failure = None
    bench.measure(1)
    assert bench.samples == [1, 1]
