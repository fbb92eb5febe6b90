"""Hot swap of the model."""

from __future__ import annotations

import numpy as np
import pytest

from serving.candidates import Shelf
from serving.model import ATTEMPTS, FAILURES_BEFORE_ROLLBACK, BadVersion, Codebook, ModelSlot, Serving, trial
from tests.serving.fakes import CODES, FakePolicy, place

CODEBOOK = Codebook("sid-fake", 2, CODES, Shelf(place))


class FakeStore:
    def __init__(self) -> None:
        self.current: str | None = None
        self.broken: dict[str, Exception] = {}
        self.loads: list[str] = []

    def load(self, version: str) -> Serving:
        self.loads.append(version)
        if version in self.broken:
            raise self.broken[version]
        return Serving(FakePolicy(version), CODEBOOK)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def slot(store: FakeStore) -> ModelSlot:
    return ModelSlot(lambda: store.current, store.load, widest=16)


def publish(store: FakeStore, slot: ModelSlot, version: str) -> bool:
    store.current = version
    return slot.refresh()


def test_before_the_first_version_there_is_no_model(store, slot):
    assert not slot.refresh()
    assert slot.serving is None


def test_a_new_version_replaces_the_old_one_once(store, slot):
    assert publish(store, slot, "v1")
    assert publish(store, slot, "v2")
    assert not slot.refresh()
    assert slot.serving.policy.version == "v2"
    assert store.loads == ["v1", "v2"]


def test_a_version_that_does_not_load_leaves_the_old_one_and_is_given_up_after_some_attempts(store, slot):
    publish(store, slot, "v1")
    store.broken["v2"] = OSError("damaged")
    for _ in range(ATTEMPTS + 3):
        assert not publish(store, slot, "v2")
    assert slot.serving.policy.version == "v1"
    assert store.loads.count("v2") == ATTEMPTS
    assert publish(store, slot, "v3")


def test_a_store_that_fails_for_a_moment_is_asked_again(store, slot):
    store.broken["v1"] = OSError("network")
    publish(store, slot, "v1")
    store.broken.clear()
    assert slot.refresh()


def test_an_unreadable_pointer_changes_nothing(store):
    def unreadable() -> str:
        raise OSError("gone")

    assert not ModelSlot(unreadable, store.load, widest=16).refresh()


def test_a_version_that_keeps_failing_on_people_is_rolled_back_for_good(store, slot):
    publish(store, slot, "v1")
    publish(store, slot, "v2")
    failing = slot.serving
    for _ in range(FAILURES_BEFORE_ROLLBACK):
        slot.failed(failing, RuntimeError("boom"))
    assert slot.serving.policy.version == "v1"
    assert not slot.refresh()
    assert [swap.outcome for swap in slot.swaps] == ["swapped", "swapped", "rolled_back"]


def test_single_failures_between_successes_roll_nothing_back(store, slot):
    publish(store, slot, "v1")
    publish(store, slot, "v2")
    for _ in range(3 * FAILURES_BEFORE_ROLLBACK):
        slot.failed(slot.serving, RuntimeError("boom"))
        slot.succeeded(slot.serving)
    assert slot.serving.policy.version == "v2"


def test_a_late_failure_of_an_old_version_does_not_touch_the_new_one(store, slot):
    publish(store, slot, "v1")
    old = slot.serving
    publish(store, slot, "v2")
    for _ in range(2 * FAILURES_BEFORE_ROLLBACK):
        slot.failed(old, RuntimeError("boom"))
    assert slot.serving.policy.version == "v2"


@pytest.mark.parametrize(
    ("sids", "log_prob", "complaint"),
    [
        (np.zeros((1, 8, 3), np.int64), np.zeros((1, 8), np.float32), "shapes"),
        (np.full((1, 8, 4), 4, np.int64), np.zeros((1, 8), np.float32), "outside"),
        (np.zeros((1, 8, 4), np.int64), np.full((1, 8), np.nan, np.float32), "no numbers"),
        (np.zeros((1, 8, 4), np.int64), np.full((1, 8), -np.inf, np.float32), "no numbers"),
    ],
)
def test_a_model_that_answers_nonsense_does_not_pass_its_trial(sids, log_prob, complaint):
    policy = FakePolicy()
    policy.beam = lambda people, widths: (sids, log_prob)  # type: ignore[method-assign]
    with pytest.raises(BadVersion, match=complaint):
        trial(Serving(policy, CODEBOOK), 8)


def test_beams_that_do_not_exist_do_not_matter_in_the_trial():
    policy = FakePolicy()

    def beam(people, widths):
        sids, log_prob = np.zeros((len(people), 3, 4), np.int64), np.zeros((len(people), 3), np.float32)
        sids[:, 2], log_prob[:, 2] = -1, -np.inf
        return sids, log_prob

    policy.beam = beam  # type: ignore[method-assign]
    trial(Serving(policy, CODEBOOK), 8)
