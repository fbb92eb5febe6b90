"""The shelf: what exists, by distance."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.candidates import Shelf
from tests.serving.fakes import place, video

sids = st.tuples(*[st.integers(0, 3)] * 4)


@given(st.lists(sids, min_size=1, max_size=40), sids, st.integers(1, 10), st.integers(0, 40))
def test_the_nearest_are_those_of_a_full_search_however_the_shelf_grew(stock, asked, k, at_first):
    videos = [video(item, sid) for item, sid in enumerate(stock)]
    shelf = Shelf(place, videos[:at_first])
    for late in videos[at_first:]:
        shelf.add([late])
    distances = {sid: float(np.square(place(np.array([sid], np.int32)) - place(np.array([asked], np.int32))).sum()) for sid in stock}
    (found,) = shelf.nearest([asked], k)
    expected = sorted(distances.values())[: min(k, len(distances))]
    got = list(dict.fromkeys(v.sid for v in found))
    assert [distances[sid] for sid in got] == expected
    assert {v.item_id for v in found} == {v.item_id for v in videos if v.sid in got}


def test_a_video_counts_once_and_the_newest_of_a_sid_comes_first():
    shelf = Shelf(place)
    assert shelf.add([video(1, (0, 0, 0, 0)), video(2, (0, 0, 0, 0), generated=True)]) == 2
    assert shelf.add([video(1, (0, 0, 0, 0))]) == 0
    assert [v.item_id for v in shelf.nearest([(0, 0, 0, 1)], 5)[0]] == [2, 1]
    assert (len(shelf), shelf.sids, shelf.generated) == (2, 1, 1)


def test_used_up_is_a_sid_whose_videos_are_all_known_and_a_beginning_with_no_other():
    shelf = Shelf(place, [video(1, (0, 0, 0, 0)), video(2, (0, 0, 0, 0)), video(3, (0, 0, 0, 1)), video(4, (2, 0, 0, 0))])
    assert shelf.used_up({1}) == []
    assert shelf.used_up({1, 2}) == [(0, 0, 0, 0)]
    assert set(shelf.used_up({1, 2, 3, 4, 99})) == {(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0), (2, 0, 0, 0), (2, 0, 0)}
    shelf.add([video(5, (2, 0, 0, 3))])
    assert shelf.used_up({4}) == [(2, 0, 0, 0)]


def test_an_empty_shelf_has_nothing_near():
    assert Shelf(place).nearest([(0, 0, 0, 0)], 3) == [[]]
