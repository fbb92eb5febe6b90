"""Simulated people want what the catalogue partly lacks, and answer by the vectors of what they are shown."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming import topics
from streaming.sources.simulator import SUBJECTS, TOPICS, VARIANTS, World
from streaming.sources.simulator_events import LIFE, Shown, Visits, answers

T0 = 1_700_000_000_000


@pytest.fixture(scope="module")
def world():
    return World(users=40, items=300, seed=3)


def feed_of(world, items, user_ts=T0):
    return [
        Shown(f"i{item}", user_ts, place, int(item), int(world.duration_ms[item - 1]), *world.vectors_of(int(item)))
        for place, item in enumerate(items)
    ]


def ranked(world, user):
    """Catalogue rows, best liked first."""
    return sorted(range(len(world.item_ids)), key=lambda n: -world.liking(user, world.content[n], world.creative[n]))


def test_the_same_seed_gives_the_same_catalogue_whatever_the_number_of_people():
    assert World(users=5, items=80, seed=1).catalogue().equals(World(users=9, items=80, seed=1).catalogue())
    assert not World(users=5, items=80, seed=1).catalogue().equals(World(users=5, items=80, seed=2).catalogue())


def test_embeddings_have_unit_length(world):
    table = world.catalogue()
    for column in ("content", "creative"):
        lengths = np.linalg.norm(np.array(table[column].to_pylist()), axis=1)
        assert np.allclose(lengths, 1, atol=1e-5)


def test_no_video_has_a_missing_combination_and_many_people_want_one(world):
    made = {(s // SUBJECTS, t // VARIANTS) for s, t in zip(world.subject.tolist(), world.treatment.tolist(), strict=True)}
    missing = set(world.missing())
    assert len(missing) == len(TOPICS) * 4
    assert not made & missing
    wanted = [(p.subjects[0] // SUBJECTS, p.treatments[0] // VARIANTS) in missing for p in world.people]
    assert 0.2 < np.mean(wanted) < 0.8


def test_a_video_made_for_a_wish_that_nobody_serves_is_liked_more_than_the_best_of_the_catalogue(world):
    missing = set(world.missing())
    person = next(p for p in world.people if (p.subjects[0] // SUBJECTS, p.treatments[0] // VARIANTS) in missing)
    best = max(world.liking(person.user_id, *world.vectors_of(int(item))) for item in world.item_ids)
    made = world.liking(person.user_id, 2 * world.subjects[person.subjects[0]], 3 * world.treatments[person.treatments[0]])
    assert made > 0.95
    assert made > best


def test_people_watch_what_they_like_longer_and_click_it_more_often(world):
    rng = np.random.default_rng(0)
    order = ranked(world, 7)
    shares = []
    for rows in (order[:5], order[-50:]):
        seen = [world.react(7, world.content[n], world.creative[n], 20_000, 0, rng) for n in rows for _ in range(400 // len(rows))]
        shares.append((np.mean([r.play_ms >= 18_000 for r in seen]), np.mean([("click", 0) in r.engagements for r in seen])))
    assert shares[0][0] > 3 * shares[1][0]
    assert shares[0][1] > 2 * shares[1][1]


def test_what_is_further_down_the_feed_gets_less_attention(world):
    top = ranked(world, 7)[0]
    first, tenth = (
        np.mean([world.react(7, world.content[top], world.creative[top], 20_000, place, rng).play_ms for _ in range(600)])
        for place, rng in ((0, np.random.default_rng(1)), (9, np.random.default_rng(1)))
    )
    assert tenth < 0.9 * first


def test_wishes_drift_and_the_truth_says_when():
    world = World(users=30, items=100, seed=5)
    before = [list(person.subjects) for person in world.people]
    for _ in range(20):
        for person in world.people:
            world.begin_session(person.user_id)
    changed = [person for person, old in zip(world.people, before, strict=True) if person.subjects != old]
    assert changed
    truth = json.loads(json.dumps(world.truth()))
    assert [user["changes"] != [] for user in truth["users"]] == [person.changes != [] for person in world.people]
    assert all(person.changes for person in changed)


def test_a_visit_is_answered_the_same_way_twice(world):
    feed = feed_of(world, range(1, 11))
    assert answers(world, 3, 0, feed) == answers(world, 3, 0, feed)
    assert answers(world, 3, 0, feed) != answers(world, 3, 1, feed)


@settings(max_examples=30, deadline=None)
@given(user=st.integers(0, 39), visit=st.integers(0, 50), items=st.lists(st.integers(1, 300), min_size=1, max_size=10, unique=True))
def test_events_answer_only_what_was_shown_and_are_sent_after_they_happened(world, user, visit, items):
    feed = feed_of(world, items)
    sent, done = answers(world, user, visit, feed)
    shown = {place.impression_id for place in feed}
    assert {delivery.event.impression_id for delivery in sent} <= shown
    assert all(T0 <= d.event.ts <= d.at_ms and d.event.impression_ts == T0 and d.event.user_id == user for d in sent)
    assert [d.at_ms for d in sent] == sorted(d.at_ms for d in sent)
    watches = {d.event.event_id: d.event for d in sent if d.topic == topics.WATCHES}
    assert done >= T0 + sum(watch.play_ms for watch in watches.values()) // LIFE - len(watches)


def test_most_labels_come_within_a_window_of_twelve_seconds_and_some_do_not(world):
    delays, ids, late = [], [], 0
    for user in range(40):
        for visit in range(25):
            start = 1 + (user * 25 + visit) % 290
            sent, _ = answers(world, user, visit, feed_of(world, range(start, start + 10)))
            delays += [d.event.ts - T0 for d in sent]
            late += sum(d.at_ms - d.event.ts > 500 for d in sent)
            ids += [(user, visit, d.event.event_id) for d in sent]
    assert 0.9 < np.mean(np.array(delays) < 12_000) < 0.999
    assert 0 < late < 0.03 * len(ids)
    assert 0 < len(ids) - len(set(ids)) < 0.01 * len(ids)


def test_an_unknown_item_is_an_error(world):
    with pytest.raises(KeyError, match="301"):
        world.vectors_of(301)


def test_a_person_asks_again_only_after_the_answer_came():
    visits = Visits(World(users=3, items=20, seed=0))
    asking = [visits.next(T0) for _ in range(3)]
    assert sorted(asking) == [0, 1, 2]
    assert visits.next(T0) is None
    visits.done(asking[0], T0 + 60_000)
    assert visits.next(T0) == asking[0]
