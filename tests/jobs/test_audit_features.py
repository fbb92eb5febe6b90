"""The audit of online features holds on right values and breaks on each kind of wrong one."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from jobs import audit
from jobs.audit_features import online_features_equal
from tests.jobs.test_audit import T0, FakeLog

WINDOWS = ("5m", "1h", "24h")
VIEWS = {
    "user_counters": [f"{name}_{w}" for name in ("impressions", "clicks", "likes", "long_views", "play_ms") for w in WINDOWS],
    "user_history": ["entries"],
    "item_counters": [f"{name}_{w}" for name in ("impressions", "clicks", "likes", "long_views", "mean_play_ms") for w in WINDOWS],
}


class FakeStore:
    """What Feast would answer, from plain dictionaries."""

    values: dict = {}  # noqa: RUF012

    def __init__(self, repo_path):
        self.repo_path = repo_path

    def list_stream_feature_views(self):
        return [SimpleNamespace(name=name, features=[SimpleNamespace(name=f) for f in fields]) for name, fields in VIEWS.items()]

    def get_online_features(self, features, entity_rows):
        names = [feature.split(":")[1] for feature in features]
        rows = [self.values[next(iter(row.items()))] for row in entity_rows]
        return SimpleNamespace(to_dict=lambda: {name: [row.get(name) for row in rows] for name in names})


@pytest.fixture
def store(monkeypatch):
    """Online values of one user who watched one video twice, an hour and a half apart; the first time 6 s of 9, then 2 s."""
    feast = ModuleType("feast")
    feast.FeatureStore = FakeStore
    monkeypatch.setitem(sys.modules, "feast", feast)
    sums = {f"{name}_{w}": 0 for name in ("clicks", "likes", "long_views") for w in WINDOWS}
    sums |= {"impressions_5m": 1, "impressions_1h": 1, "impressions_24h": 2}
    user = {**sums, "play_ms_5m": 2_000, "play_ms_1h": 2_000, "play_ms_24h": 8_000}
    user["entries"] = [{"item_id": 10, "ts": T0 + 5_401_000, "play_ms": 2_000}, {"item_id": 10, "ts": T0 + 1_000, "play_ms": 6_000}]
    item = {**sums, "mean_play_ms_5m": 2_000.0, "mean_play_ms_1h": 2_000.0, "mean_play_ms_24h": 4_000.0}
    FakeStore.values = {("user_id", 1): user, ("item_id", 10): item}
    return FakeStore


def verdict():
    log = FakeLog()
    for name, start, play_ms in (("a", T0, 6_000), ("b", T0 + 5_400_000, 2_000)):
        log.impression(name, start)
        log.watch(name, start + 1_000, play_ms=play_ms, impression_ts=start)
    return online_features_equal(audit.collect(log.raws, 7 * 86_400_000), Path("."), 500)


def test_right_values_hold(store):
    assert verdict().holds, verdict().detail


def test_a_label_that_was_known_before_its_impression_counts_from_when_its_impression_was(store):
    log = FakeLog()
    log.impression("a", T0)
    log.watch("a", T0 + 1_000, play_ms=6_000, impression_ts=T0)
    shown = T0 + 5_400_000
    log.watch("b", shown + 1_000, play_ms=2_000, impression_ts=shown)
    log.raws.append(replace(log.impression("b", shown), appended=shown + 60_500))
    del log.raws[-2]
    verdict = online_features_equal(audit.collect(log.raws, 7 * 86_400_000), Path("."), 500)
    assert verdict.holds, verdict.detail
    store.values["user_id", 1]["play_ms_5m"] = 0
    assert not online_features_equal(audit.collect(log.raws, 7 * 86_400_000), Path("."), 500).holds


@pytest.mark.parametrize(
    ("entity", "feature", "value"),
    [
        (("user_id", 1), "impressions_1h", 2),
        (("user_id", 1), "play_ms_24h", 2_000),
        (("user_id", 1), "clicks_5m", None),
        (("item_id", 10), "impressions_24h", 1),
        (("item_id", 10), "mean_play_ms_24h", 4_001.0),
        (("user_id", 1), "entries", []),
        (("user_id", 1), "entries", [{"item_id": 10, "ts": T0 + 5_401_000, "play_ms": 2_000}, {"item_id": 11, "ts": T0 + 1_000}]),
    ],
)
def test_a_wrong_value_is_found(store, entity, feature, value):
    store.values[entity][feature] = value
    found = verdict()
    assert not found.holds
    assert feature in found.detail
