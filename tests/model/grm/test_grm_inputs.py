"""Rows become sparse features: merged, bounded, hashed, and indifferent to how strange a row is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.grm import Query, Vocabulary, collate
from model.grm.inputs import GAP_ROWS, KINDS, PLAY_ROWS, RANK_ROWS, GrmBatch, hash_rows
from streaming.records import Context, HistoryEntry
from tests.model.conftest import CODES, ITEMS, SmallWorld, small_config, small_world

NOW = 1_700_000_000_000
CONFIG = small_config()


def query(*history: HistoryEntry, user_id: int = 3) -> Query:
    return Query(user_id, NOW, Context(list(history)))


def bags(batch: GrmBatch, feature: str) -> list[list[int]]:
    """Values of a feature, one list per token."""
    jagged = batch.features[feature]
    return [part.tolist() for part in torch.split(jagged.values(), jagged.lengths().tolist())]


def test_a_watch_its_click_and_its_like_are_one_token(world: SmallWorld) -> None:
    entries = [HistoryEntry(7, NOW - 1000, None, ["like"]), HistoryEntry(7, NOW - 2000, 9000), HistoryEntry(7, NOW - 3000, None, ["click"])]
    batch = collate([query(*entries)], world.vocabulary, CONFIG)
    assert batch.mask.tolist() == [[True, True]]
    assert bags(batch, "kind")[1] == [KINDS.index("watch"), KINDS.index("click"), KINDS.index("like")]
    assert [values[1:] for values in (bags(batch, f"code_{level}") for level in range(3))] == [[[int(code)]] for code in world.sids[7]]
    assert bags(batch, "gap")[1] == [1]


def test_videos_stay_newest_first_and_the_oldest_are_left_out(world: SmallWorld) -> None:
    entries = [HistoryEntry(item, NOW - 1000 * age, 1000) for age, item in enumerate([5, 9, 5, 2, 11, 13, 1, 17, 19, 23, 29])]
    batch = collate([query(*entries)], world.vocabulary, CONFIG)
    items = bags(batch, "item")[1:]
    expected = hash_rows(np.array([5, 9, 2, 11, 13, 1, 17, 19]), CONFIG.item_rows)
    assert [value for (value,) in items] == expected.tolist()
    assert bags(batch, "rank")[1:] == [[rank] for rank in range(CONFIG.history)]


def test_an_empty_history_is_the_profile_alone(world: SmallWorld) -> None:
    batch = collate([query(), query(HistoryEntry(1, NOW - 5, 10))], world.vocabulary, CONFIG)
    assert batch.mask.tolist() == [[True, False], [True, True]]
    assert len(bags(batch, "user")[0]) == 1


def test_an_unknown_item_has_a_row_but_no_codes(world: SmallWorld) -> None:
    batch = collate([query(HistoryEntry(-(2**62), NOW, 10))], world.vocabulary, CONFIG)
    assert bags(batch, "code_0")[1] == []
    assert len(bags(batch, "item")[1]) == 1


def test_a_generated_video_has_codes_once_it_was_learned() -> None:
    vocabulary = small_world().vocabulary
    vocabulary.learn(-5, (1, 2, 3))
    vocabulary.learn(-5, (0, 0, 0))
    vocabulary.learn(0, (0, 0, 0))
    vocabulary.learn(-6, (CODES[0], 0, 0))
    assert vocabulary.sid_of(-5) == (1, 2, 3)
    assert vocabulary.sid_of(0) == tuple(small_world().sids[0])
    assert vocabulary.sid_of(-6) is None
    batch = collate([query(HistoryEntry(-5, NOW, 10))], vocabulary, CONFIG)
    assert [bags(batch, f"code_{level}")[1] for level in range(3)] == [[1], [2], [3]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**63 - 1),
            st.lists(
                st.builds(
                    HistoryEntry,
                    st.one_of(st.integers(-5, ITEMS + 5), st.integers(-(2**63), 2**63 - 1)),
                    st.integers(0, 2**53),
                    st.one_of(st.none(), st.integers(-(2**31), 2**53)),
                    st.lists(st.sampled_from([*KINDS, "nonsense"]), max_size=3),
                ),
                max_size=12,
            ),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_every_row_fits_its_table_whatever_the_history_says(rows: list[tuple[int, list[HistoryEntry]]]) -> None:
    batch = collate([query(*history, user_id=user) for user, history in rows], small_world().vocabulary, CONFIG)
    sizes = {"user": CONFIG.user_rows, "item": CONFIG.item_rows, "kind": len(KINDS), "play": PLAY_ROWS, "gap": GAP_ROWS, "rank": RANK_ROWS}
    sizes |= {f"code_{level}": size for level, size in enumerate(CODES)}
    for feature, size in sizes.items():
        values = batch.features[feature].values()
        assert ((values >= 0) & (values < size)).all()
    assert batch.mask.sum().item() == len(batch.slot) == batch.features.stride()
    assert batch.mask.shape[0] == len(rows)


def test_hashing_does_not_depend_on_the_process_and_spreads() -> None:
    # splitmix64 of a zero state begins with 16294208416658607535 (its author's reference code).
    assert hash_rows(np.array([0, 1, -1, 2**62]), 1000).tolist() == [535, 465, 936, 75]
    counts = np.bincount(hash_rows(np.arange(64_000), 64), minlength=64)
    assert counts.min() > 850
    assert counts.max() < 1150


def test_a_catalogue_that_contradicts_itself_is_refused() -> None:
    two, none = np.array([1, 2]), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="repeat"):
        Vocabulary(np.array([1, 1]), np.zeros((2, 3), np.int32), none, none, CODES)
    with pytest.raises(ValueError, match="outside"):
        Vocabulary(two, np.full((2, 3), 99, np.int32), none, none, CODES)
