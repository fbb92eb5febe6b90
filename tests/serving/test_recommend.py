"""The policy of a feed."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.cache import CachedVideo, Lookup
from serving.recommend import Candidate, case_of, compose
from tests.serving.fakes import video

ASKED = (1, 2, 3, 4)
OWN = video(10, ASKED)
SIBLING = video(11, (1, 2, 0, 0))
STRANGER = video(12, (3, 3, 3, 3))
POPULAR = [video(item, (0, 0, 0, item % 4)) for item in range(20, 30)]


def candidate(exact=(), content=(), nearest=(), sid=ASKED, log_prob=-1.5) -> Candidate:
    return Candidate(sid, log_prob, Lookup(sid, tuple(exact), tuple(content)), tuple(nearest))


def feed(*candidates: Candidate, count: int = 1, filler=(), **rules):
    return compose(candidates, filler, count=count, content_levels=2, **rules)


def test_a_sid_that_has_a_video_is_an_exact_hit_and_nothing_is_wanted():
    made = feed(candidate(exact=[OWN], nearest=[STRANGER]))
    assert [(slot.video, slot.case, slot.asked, slot.log_prob) for slot in made.slots] == [(OWN, "exact_hit", ASKED, -1.5)]
    assert made.wanted == ()


def test_a_missing_creative_is_served_by_the_best_of_its_content_and_wanted():
    made = feed(candidate(content=[SIBLING], nearest=[STRANGER]), user_id=7)
    assert [(slot.video, slot.case) for slot in made.slots] == [(SIBLING, "content_hit")]
    (wanted,) = made.wanted
    assert (wanted.sid, wanted.reason, wanted.nearest_sid, wanted.user_id) == (ASKED, "content_hit", SIBLING.sid, 7)


def test_a_missing_content_is_served_by_the_nearest_and_wanted():
    made = feed(candidate(nearest=[STRANGER]))
    assert [(slot.video, slot.case) for slot in made.slots] == [(STRANGER, "miss")]
    assert [(wanted.reason, wanted.nearest_sid) for wanted in made.wanted] == [("miss", STRANGER.sid)]


def test_a_missing_sid_keeps_its_slot_when_everything_near_is_excluded():
    made = feed(candidate(nearest=[STRANGER]), filler=POPULAR, exclude=[STRANGER.item_id])
    assert [(slot.video, slot.case, slot.asked) for slot in made.slots] == [(POPULAR[0], "miss", ASKED)]


def test_a_video_seen_a_moment_ago_leaves_its_place_to_the_next_of_the_beam():
    other = candidate(sid=(0, 0, 0, 0), exact=[POPULAR[0]], log_prob=-9.0)
    made = feed(candidate(exact=[OWN]), other, seen=[OWN.item_id])
    assert [slot.video for slot in made.slots] == [POPULAR[0]]


def test_what_was_seen_comes_back_only_when_nothing_else_is_left():
    made = feed(candidate(exact=[OWN]), filler=[STRANGER], count=2, seen=[OWN.item_id])
    assert [(slot.video, slot.pipeline) for slot in made.slots] == [(STRANGER, "popular"), (OWN, "grm")]


def test_places_that_the_beam_leaves_empty_are_filled_without_the_model():
    made = feed(candidate(exact=[OWN]), filler=POPULAR, count=3)
    assert [(slot.pipeline, slot.case, slot.log_prob) for slot in made.slots[1:]] == [("popular", None, None)] * 2


def test_the_case_compares_what_was_served_with_what_was_asked():
    assert case_of((1, 2, 3), (1, 2, 3), 1) == "exact_hit"
    assert case_of((1, 2, 3), (1, 0, 0), 1) == "content_hit"
    assert case_of((1, 2, 3), (0, 2, 3), 1) == "miss"


sids = st.tuples(*[st.integers(0, 2)] * 4)
stock = st.lists(sids, max_size=25).map(lambda found: [video(item, sid) for item, sid in enumerate(found)])


some_items = st.sets(st.integers(0, 24))


@settings(max_examples=100)
@given(st.lists(sids, unique=True, max_size=12), stock, st.integers(1, 15), some_items, some_items, st.randoms())
def test_any_feed_keeps_the_rules(beam, videos: list[CachedVideo], count, exclude, seen, chance):
    def looked_up(sid):
        exact = [v for v in videos if v.sid == sid]
        return Lookup(sid, tuple(exact), () if exact else tuple(v for v in videos if v.sid[:2] == sid[:2]))

    near = chance.sample(videos, len(videos))
    candidates = [Candidate(sid, -float(rank), looked_up(sid), near) for rank, sid in enumerate(beam)]
    made = compose(candidates, videos, count=count, content_levels=2, exclude=exclude, seen=seen)
    items = [slot.video.item_id for slot in made.slots]
    assert len(items) == len(set(items)) == min(count, len(videos) - len({v.item_id for v in videos} & exclude))
    assert not set(items) & exclude
    unseen = {v.item_id for v in videos} - exclude - seen
    assert not set(items) & seen or unseen <= set(items), "somebody sees a video again although there are new ones"
    asked = [slot for slot in made.slots if slot.asked is not None]
    assert len({slot.asked for slot in asked}) == len(asked)
    for slot in asked:
        assert slot.case == case_of(slot.asked or (), slot.video.sid, 2)
    there = {v.sid for v in videos}
    assert [wanted.sid for wanted in made.wanted] == [slot.asked for slot in asked if slot.asked not in there]
