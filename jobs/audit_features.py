"""Online feature values, read by the plain Feast SDK, against a recomputation from the raw events at one frozen instant.

The rules are written again from what `docs/features.md` promises: values are as of the entity's latest event; an event counts from
`max(its own time, its append minus the features' disorder)`, a label not before its impression; a window reaches back from there, both
ends included; a history holds the last interactions, newest first.
"""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.audit import Events, Invariant, verdict

WINDOWS_MS = {"5m": 300_000, "1h": 3_600_000, "24h": 86_400_000}
LONG_VIEW_MS = 18_000
HISTORY = 50
NAME = "online feature values equal a recomputation"

Happened = tuple[int, dict[str, Any]]  # known-at in ms, what happened


def known_ms(shown: Mapping[str, Any], disorder_ms: int) -> int:
    """When an impression became known."""
    return max(shown["ts"], shown["appended"] - disorder_ms)


def happenings(events: Events, disorder_ms: int) -> tuple[dict[int, list[Happened]], dict[int, list[Happened]]]:
    """What happened to each user and each item, in the order in which it became known."""
    users: dict[int, list[Happened]] = defaultdict(list)
    items: dict[int, list[Happened]] = defaultdict(list)
    for shown in events.impressions.values():
        known = known_ms(shown, disorder_ms)
        happened = (known, {"impressions": 1, "item_id": shown["item_id"], "ts": shown["ts"]})
        users[shown["user_id"]].append(happened)
        items[shown["item_id"]].append(happened)
    for label in events.labels.values():
        shown_first = events.impressions.get(label["impression_id"])
        if shown_first is None:
            continue
        known = max(label["known_at"], known_ms(shown_first, disorder_ms))
        what: dict[str, Any] = {"item_id": shown_first["item_id"], "ts": label["ts"]}
        if label["topic"] == "watches":
            duration = label["duration_ms"]
            long = label["play_ms"] >= (min(LONG_VIEW_MS, duration) if duration else LONG_VIEW_MS)
            what |= {"play_ms": label["play_ms"], "long_views": int(long), "interaction": True, "kinds": []}
        elif label["topic"] == "engagements":
            what |= {f"{label['kind']}s": 1, "interaction": True, "kinds": [label["kind"]]}
        users[label["user_id"]].append((known, what))
        items[shown_first["item_id"]].append((known, what))
    for rows in (*users.values(), *items.values()):
        rows.sort(key=lambda row: row[0])
    return users, items


def counters(rows: Sequence[Happened], names: Iterable[str]) -> dict[str, float]:
    """Sums over each window that ends with the last row."""
    end = rows[-1][0]
    return {
        f"{name}_{label}": sum(what.get(name, 0) for known, what in rows if known >= end - reach)
        for name in names
        for label, reach in WINDOWS_MS.items()
    }


def means(rows: Sequence[Happened]) -> dict[str, float | None]:
    end = rows[-1][0]
    result: dict[str, float | None] = {}
    for label, reach in WINDOWS_MS.items():
        values = [what["play_ms"] for known, what in rows if known >= end - reach and "play_ms" in what]
        result[f"mean_play_ms_{label}"] = sum(values) / len(values) if values else None
    return result


def entries(rows: Sequence[Happened], length: int) -> list[tuple[int, int, int, int | None, tuple[str, ...]]]:
    """The last interactions as (known-at, ts, item, play_ms, kinds), newest first; those of one moment in any order."""
    seen = [
        (known, what["ts"], what["item_id"], what.get("play_ms"), tuple(what["kinds"])) for known, what in rows if what.get("interaction")
    ]
    return seen[::-1][:length]


def same_history(found: Any, expected: Sequence[tuple[int, int, int, int | None, tuple[str, ...]]], cut: bool) -> bool:
    """Whether an online history is the expected one; interactions of one moment may stand in any order, also across the cut."""
    listed = json.loads(found) if isinstance(found, str) else (found or [])
    got = [(e["ts"], e["item_id"], e.get("play_ms"), tuple(e.get("kinds") or ())) for e in listed]
    want = [row[1:] for row in expected]
    if len(got) != len(want):
        return False
    if cut:  # the oldest moment may have been cut through: compare what is newer than it
        oldest = expected[-1][0]
        sure = [row[1:] for row in expected if row[0] > oldest]
        return sorted(got[: len(sure)], key=repr) == sorted(sure, key=repr)
    return sorted(got, key=repr) == sorted(want, key=repr)


def online_features_equal(events: Events, feature_repo: Path, disorder_ms: int, *, sample: int = 1000, length: int = HISTORY) -> Invariant:
    """Compare up to `sample` users and items, chosen by a fixed seed among those with events."""
    from feast import FeatureStore

    users, items = happenings(events, disorder_ms)
    chooser = random.Random(0)
    people = chooser.sample(sorted(users), min(sample, len(users)))
    videos = chooser.sample(sorted(items), min(sample, len(items)))
    store = FeatureStore(repo_path=str(feature_repo))
    keys = {"user_id", "item_id"}  # Feast lists a view's join key among its features
    views = {
        view.name: [f"{view.name}:{field.name}" for field in view.features if field.name not in keys]
        for view in store.list_stream_feature_views()
    }
    online_users = _online(store, views["user_counters"] + views["user_history"], "user_id", people)
    online_items = _online(store, views["item_counters"], "item_id", videos)
    wrong: list[str] = []
    for index, person in enumerate(people):
        rows = users[person]
        expected = counters(rows, ("impressions", "clicks", "likes", "long_views", "play_ms"))
        wrong += _differences(f"user {person}", online_users, index, expected)
        seen = entries(rows, length)
        total = sum(1 for _, what in rows if what.get("interaction"))
        if seen and not same_history(online_users["entries"][index], seen, total > length):
            wrong.append(f"user {person} entries: {str(online_users['entries'][index])[:80]} expected {seen[:2]}")
    for index, video in enumerate(videos):
        rows = items[video]
        expected_item: dict[str, float | None] = {**counters(rows, ("impressions", "clicks", "likes", "long_views")), **means(rows)}
        wrong += _differences(f"item {video}", online_items, index, expected_item)
    return verdict(NAME, {"values": wrong}, f"{len(people)} users and {len(videos)} items, read by the Feast SDK")


def _online(store: Any, features: list[str], key: str, ids: Sequence[int]) -> dict[str, list[Any]]:
    return store.get_online_features(features=features, entity_rows=[{key: one} for one in ids]).to_dict()


def _differences(who: str, online: Mapping[str, list[Any]], index: int, expected: Mapping[str, float | None]) -> list[str]:
    wrong = []
    for name, want in expected.items():
        got = online[name][index]
        same = got is None if want is None else got is not None and math.isclose(got, want, rel_tol=1e-6)
        if not same:
            wrong.append(f"{who} {name}: {got} expected {want}")
    return wrong
