"""The prefix trie against a set of tuples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.trie import Trie

COUNTS = (5, 3, 4)
SIDS = st.lists(st.tuples(*(st.integers(0, count - 1) for count in COUNTS)), max_size=40)


def tensor(sids: list[tuple[int, ...]]) -> torch.Tensor:
    return torch.tensor(sids, dtype=torch.int32).view(-1, len(COUNTS))


@settings(max_examples=60, deadline=None)
@given(sids=SIDS, more=SIDS)
def test_it_holds_exactly_what_was_put_in(sids: list[tuple[int, ...]], more: list[tuple[int, ...]]) -> None:
    trie = Trie.build(tensor(sids), COUNTS)
    grown = trie.append(tensor(more))
    everything = [tuple(sid) for sid in np.ndindex(*COUNTS)]
    for found, expected in ((trie, set(sids)), (grown, set(sids) | set(more))):
        assert found.contains(tensor(everything)).tolist() == [sid in expected for sid in everything]
        assert [tuple(sid) for sid in found.sids.tolist()] == sorted(expected)
        assert len(found) == len(expected)


@settings(max_examples=60, deadline=None)
@given(sids=SIDS)
def test_what_may_follow_a_prefix_is_what_follows_it_in_some_sid(sids: list[tuple[int, ...]]) -> None:
    trie = Trie.build(tensor(sids), COUNTS)
    for level in range(len(COUNTS)):
        prefixes = [tuple(prefix) for prefix in np.ndindex(*COUNTS[:level])]
        node = trie.walk(torch.tensor(prefixes, dtype=torch.int64).view(len(prefixes), level))
        expected = [[any(sid[: level + 1] == (*prefix, token) for sid in sids) for token in range(COUNTS[level])] for prefix in prefixes]
        assert trie.mask(node, level).tolist() == expected
        offsets, tokens = trie.children(node, level)
        lists = [tokens[offsets[row] : offsets[row + 1]].tolist() for row in range(len(prefixes))]
        assert lists == [[token for token, allowed in enumerate(row) if allowed] for row in expected]


def test_a_leaf_is_the_rank_of_its_sid() -> None:
    sids = torch.randint(0, 64, (500, 4), generator=torch.Generator().manual_seed(0))
    trie = Trie.build(sids, (64, 64, 64, 64))
    order = sorted(set(map(tuple, sids.tolist())))
    assert trie.walk(sids).tolist() == [order.index(tuple(sid)) for sid in sids.tolist()]


def test_a_search_from_the_root_stays_inside_for_any_shape() -> None:
    sids = torch.randint(0, 8, (30, 4), generator=torch.Generator().manual_seed(1))
    trie = Trie.build(sids, (8, 8, 8, 8))
    node = trie.root(2)
    assert trie.mask(node, 0).shape == (2, 1, 8)
    node = trie.child(node.expand(2, 3), torch.tensor([[int(sids[0, 0])] * 2 + [-1]] * 2), 0)
    assert node.shape == (2, 3) and (node[:, 2] == -1).all() and (node[:, :2] >= 0).all()
    assert not trie.mask(node, 1)[:, 2].any()


def test_a_token_that_its_level_does_not_have_leads_nowhere() -> None:
    trie = Trie.build(torch.tensor([[0, 0, 0], [1, 0, 0]]), COUNTS)
    node = trie.walk(torch.tensor([[0]]))
    assert trie.child(node, torch.tensor([COUNTS[1]]), 1).tolist() == [-1]  # as a number it would be the first edge of the next node


def test_appending_leaves_the_trie_that_is_in_use_as_it_was() -> None:
    trie = Trie.build(torch.tensor([[1, 1, 1]]), COUNTS)
    trie.append(torch.tensor([[0, 0, 0]]))
    assert len(trie) == 1 and trie.walk(torch.tensor([[1, 1, 1]])).tolist() == [0]


@pytest.mark.parametrize(
    ("sids", "counts", "message"),
    [([[0, 3, 0]], COUNTS, r"SID \[0, 3, 0\] \(row 0\)"), ([[0, 0]], COUNTS, "is expected"), ([[0, 0, 0]], (2**22,) * 3, "63 bits")],
)
def test_sids_that_are_none_are_refused(sids: list[list[int]], counts: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trie.build(torch.tensor(sids), counts)


def test_a_large_catalogue_agrees_with_a_set_on_members_and_strangers() -> None:
    sids = torch.randint(0, 8192, (20_000, 4), generator=torch.Generator().manual_seed(2))
    trie = Trie.build(sids, (8192,) * 4)
    strangers = sids.clone()
    strangers[:, 3] = (strangers[:, 3] + 1) % 8192
    members = set(map(tuple, sids.tolist()))
    assert bool(trie.contains(sids).all())
    assert trie.contains(strangers).tolist() == [tuple(sid) in members for sid in strangers.tolist()]
