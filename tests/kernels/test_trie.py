"""The prefix trie against a set of tuples, and its fast step against the definition."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.bits import pack, unpack
from kernels.trie import Prefixes, Trie, cpu, ops, reference
from kernels.trie.layered import Layered
from kernels.trie.levels import Dense, Sparse, Starts

COUNTS = (5, 3, 4)
SIDS = st.lists(st.tuples(*(st.integers(0, count - 1) for count in COUNTS)), max_size=40)


def mask(trie: Trie, node: torch.Tensor, level: int) -> torch.Tensor:
    """What may follow each node int64[...], bool[..., tokens of the level]."""
    return unpack(trie.words(node.flatten(), level), trie.code_counts[level]).view(*node.shape, -1)


def tensor(sids: list[tuple[int, ...]]) -> torch.Tensor:
    return torch.tensor(sids, dtype=torch.int32).view(-1, len(COUNTS))


@settings(max_examples=25, deadline=None)
@given(sids=SIDS, more=SIDS)
def test_it_holds_exactly_what_was_put_in(sids: list[tuple[int, ...]], more: list[tuple[int, ...]]) -> None:
    trie = Trie.build(tensor(sids), COUNTS)
    grown = trie.append(tensor(more))
    everything = [tuple(sid) for sid in np.ndindex(*COUNTS)]
    for found, expected in ((trie, set(sids)), (grown, set(sids) | set(more))):
        assert found.contains(tensor(everything)).tolist() == [sid in expected for sid in everything]
        assert [tuple(sid) for sid in found.sids.tolist()] == sorted(expected)
        assert len(found) == len(expected)


@settings(max_examples=25, deadline=None)
@given(sids=SIDS)
def test_what_may_follow_a_prefix_is_what_follows_it_in_some_sid(sids: list[tuple[int, ...]]) -> None:
    trie = Trie.build(tensor(sids), COUNTS)
    for level in range(len(COUNTS)):
        prefixes = [tuple(prefix) for prefix in np.ndindex(*COUNTS[:level])]
        node = trie.walk(torch.tensor(prefixes, dtype=torch.int64).view(len(prefixes), level))
        expected = [[any(sid[: level + 1] == (*prefix, token) for sid in sids) for token in range(COUNTS[level])] for prefix in prefixes]
        assert mask(trie, node, level).tolist() == expected
        offsets, tokens, _ = trie.expand(node, level)
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
    assert mask(trie, node, 0).shape == (2, 1, 8)
    node = trie.child(node.expand(2, 3), torch.tensor([[int(sids[0, 0])] * 2 + [-1]] * 2), 0)
    assert node.shape == (2, 3) and (node[:, 2] == -1).all() and (node[:, :2] >= 0).all()
    assert not mask(trie, node, 1)[:, 2].any()


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
    assert [isinstance(level, Dense) for level in trie.levels] == [True, True, False, False], "rows of bits where they are small"
    strangers = sids.clone()
    strangers[:, 3] = (strangers[:, 3] + 1) % 8192
    members = set(map(tuple, sids.tolist()))
    assert bool(trie.contains(sids).all())
    assert trie.contains(strangers).tolist() == [tuple(sid) in members for sid in strangers.tolist()]


def wide(seed: int, count: int = 400) -> torch.Tensor:
    """Skewed SIDs over several words of tokens, some tokens at the edges of words."""
    generator = torch.Generator().manual_seed(seed)
    return (100 * torch.rand(count, 3, generator=generator) ** 3).long().clamp(max=99)


def same(one: Trie, other: Trie) -> None:
    """Equal bits in every array."""
    for mine, its in zip(one.levels, other.levels, strict=True):
        assert mine.edges == its.edges and mine.nodes == its.nodes
        for left, right in zip(mine.tensors(), its.tensors(), strict=True):
            assert torch.equal(left, right)


@pytest.mark.parametrize("dense_levels", [0, 2, 3])
def test_ten_thousand_random_updates_end_where_a_rebuild_does(dense_levels: int) -> None:
    chance = np.random.default_rng(3)
    trie = Trie.build(wide(3), (100,) * 3, dense_levels)
    everything, alive = trie.sids, np.ones(len(trie), bool)
    for turn in range(100):
        leaves, on = chance.choice(len(trie), 100), bool(chance.random() < 0.45)
        trie = trie.set_alive(torch.from_numpy(leaves), on)
        alive[leaves] = on
        if turn % 10 == 0:
            left = Trie.build(everything[torch.from_numpy(alive)], (100,) * 3, dense_levels)
            assert trie.contains(everything).tolist() == alive.tolist() == trie.alive.tolist()
            for level in range(3):
                prefixes = torch.unique(everything[:, : level + 1], dim=0)[:, :level]
                assert torch.equal(mask(trie, trie.walk(prefixes), level), mask(left, left.walk(prefixes), level))
                found, expected = trie.expand(trie.walk(prefixes), level), left.expand(left.walk(prefixes), level)
                assert all(map(torch.equal, found[:2], expected[:2]))
    same(trie.set_alive(torch.arange(len(trie)), True), Trie.build(everything, (100,) * 3, dense_levels))


@settings(max_examples=12, deadline=None)
@given(sids=SIDS, more=SIDS, data=st.data())
def test_dense_and_sparse_levels_agree_through_updates(
    sids: list[tuple[int, ...]], more: list[tuple[int, ...]], data: st.DataObject
) -> None:
    tries = [Trie.build(tensor(sids), COUNTS, dense_levels) for dense_levels in (0, 1, 3)]
    if len(tries[0]):
        off = data.draw(st.lists(st.integers(0, len(tries[0]) - 1)))
        tries = [trie.set_alive(torch.tensor(off, dtype=torch.int64), False) for trie in tries]
    dead = set(map(tuple, tries[0].sids[~tries[0].alive].tolist()))
    tries += [trie.append(tensor(more)) for trie in tries]
    everything = torch.tensor(list(np.ndindex(*COUNTS)))
    for trie, live in zip(tries, [set(sids) - dead] * 3 + [(set(sids) - dead) | set(more)] * 3, strict=True):
        assert trie.contains(everything).tolist() == [sid in live for sid in np.ndindex(*COUNTS)]
        assert trie.leaf(trie.sids).tolist() == list(range(len(trie)))
        for level in range(len(COUNTS)):
            node = torch.tensor([-1, *range(trie.levels[level].nodes)])
            offsets, tokens, children = trie.expand(node, level)
            owner = torch.repeat_interleave(offsets.diff())
            assert torch.equal(trie.child(node[owner], tokens, level), children)
            assert int(mask(trie, node, level).sum()) == len(tokens) and not mask(trie, node, level)[0].any()


def test_a_prefix_without_a_live_sid_is_not_allowed_until_one_comes_back() -> None:
    trie = Trie.build(torch.tensor([[0, 0, 0], [0, 0, 3], [0, 2, 1], [4, 1, 1]]), COUNTS, dense_levels=2)
    off = trie.set_alive(torch.tensor([0, 1, 3]), False)
    words = [int(level[0, 0]) for level in (trie.allowed(0), off.allowed(0)) if level is not None]
    assert words == [0b10001, 0b00001] and off.allowed(2) is None
    assert mask(off, off.walk(torch.tensor([[0]])), 1).tolist() == [[False, False, True]]
    assert mask(off.set_alive(torch.tensor([1]), True), off.root(1)[0], 0).tolist() == [[True, False, False, False, False]]
    assert trie.contains(trie.sids).all(), "the trie that the change was made from is another one now"


def test_a_leaf_that_is_none_is_refused() -> None:
    trie = Trie.build(torch.tensor([[0, 0, 0]]), COUNTS)
    for leaf in (-1, 1):
        with pytest.raises(ValueError, match=f"leaf {leaf}: 0 ≤ leaf < 1"):
            trie.set_alive(torch.tensor([leaf]), False)


def test_the_largest_vocabulary_fits_its_16_bits() -> None:
    sids = torch.tensor([[65535, 65535], [65535, 0], [0, 65535], [40000, 32768]])
    for dense_levels in (0, 1):
        trie = Trie.build(sids, (65536, 65536), dense_levels)
        assert trie.contains(sids).all() and not trie.contains(sids.flip(0).roll(1, 1)).all()
        assert sorted(trie.sids.tolist()) == sorted(sids.tolist())


def test_starts_give_back_the_node_of_every_edge() -> None:
    for vocabulary in (9, 9000, 60000):
        counts = torch.randint(1, 9, (61,), generator=torch.Generator().manual_seed(4))
        starts = Starts.of(counts, vocabulary)
        assert torch.equal(starts.all(), torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]))
        assert torch.equal(starts.parent(torch.arange(int(counts.sum()))), torch.repeat_interleave(counts))


def steps(trie: Trie, level: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and tokens of a level: about half lead on, some are outside; the second beam is dead."""
    generator = torch.Generator().manual_seed(seed)
    node = torch.randint(-1, trie.levels[level].nodes, (count,), generator=generator)
    token = torch.randint(-2, trie.code_counts[level] + 2, (count,), generator=generator)
    sids = trie.sids[torch.randint(0, len(trie), (count,), generator=generator)]
    node[1] = -1
    half = torch.arange(count) % 2 == 0
    return torch.where(half, trie.leaf(sids[:, :level]), node), torch.where(half, sids[:, level], token)


@pytest.mark.parametrize("dense_levels", [0, 3])
def test_the_fast_step_is_the_definition(dense_levels: int) -> None:
    trie = Trie.build(wide(5), (100,) * 3, dense_levels)
    trie = trie.set_alive(torch.arange(0, len(trie), 2), False)
    for index, level in enumerate(trie.levels):
        node, token = steps(trie, index, 64, 6)
        starts = (*level.starts.tensors, level.starts.shift)
        if isinstance(level, Dense):
            for live in (level.live, level.bits):
                found = cpu.child_dense(node, token, level.bits, level.rank, live, *starts, level.vocabulary)
                assert torch.equal(found, reference.child_dense(node, token, level.bits, level.rank, live, *starts, level.vocabulary))
        if isinstance(level, Sparse):
            for living in (level.live, None):
                found = cpu.child_sparse(node, token, level.token, living, *starts, level.most)
                assert torch.equal(found, reference.child_sparse(node, token, level.token, living, *starts, level.most))


def test_torch_knows_what_a_step_makes() -> None:
    trie = Trie.build(wide(7), (100,) * 3, 1)
    node, token = steps(trie, 1, 8, 8)
    dense, sparse = trie.levels[0], trie.levels[1]
    assert isinstance(dense, Dense) and isinstance(sparse, Sparse)
    starts = (*sparse.starts.tensors, sparse.starts.shift)
    torch.library.opcheck(ops.child_sparse, (node, token, sparse.token, sparse.live, *starts, sparse.most))
    starts = (*dense.starts.tensors, dense.starts.shift)
    torch.library.opcheck(ops.child_dense, (node * 0, token, dense.bits, dense.rank, dense.live, *starts, dense.vocabulary))


@pytest.mark.parametrize("tokens", [1, 31, 32, 100, 8192])
def test_bits_are_unpacked_as_the_definition_says(tokens: int) -> None:
    words = torch.randint(-(2**31), 2**31, (3, -(-tokens // 32)), generator=torch.Generator().manual_seed(9)).int()
    assert torch.equal(unpack(words, tokens), reference.unpack(words, tokens))
    assert torch.equal(unpack(words.t().contiguous().t(), tokens), reference.unpack(words, tokens))


def walked(trie: Prefixes) -> list[list[int]]:
    """Every SID that the steps of a search lead to."""
    node, found = trie.root(1)[0], torch.zeros(1, 0, dtype=torch.int64)
    for level in range(3):
        parent, token = unpack(trie.words(node, level), 100).nonzero().unbind(1)
        node, found = trie.child(node[parent], token, level), torch.cat([found[parent], token.unsqueeze(1)], 1)
    return sorted(found.tolist())


FRESH = torch.tensor([[99, 0, 0], [99, 99, 99], [0, 0, 0]])
OFF = torch.unique(wide(10), dim=0)[::2]
CHANGES: dict[str, list[Callable[[Any], Prefixes]]] = {
    "one trie": [
        lambda trie: trie.set_alive(trie.leaf(OFF), False),
        lambda trie: trie.append(FRESH),
        lambda trie: trie.set_alive(trie.leaf(OFF), True),
    ],
    "two layers": [
        lambda layers: layers.set_alive(OFF, False),
        lambda layers: layers.append(FRESH),
        lambda layers: layers.set_alive(OFF, True),
        lambda layers: Layered.of(layers.merged()),
    ],
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_reader_beside_changes_sees_one_state_whole_or_the_next(kind: str) -> None:
    trie = Trie.build(wide(10), (100,) * 3)
    before = trie if kind == "one trie" else Layered.of(trie)
    cycle: list[Callable[[Any], Prefixes]] = [*CHANGES[kind], lambda _: before]
    states: list[list[list[int]]] = []
    now: Prefixes = before
    for change in cycle:
        now = change(now)
        states.append(walked(now))
    assert states[0] != states[1] != states[2]
    current, done, seen = [now], threading.Event(), list[int]()

    def read() -> None:
        while not done.is_set():
            found = walked(current[0])
            seen.append(states.index(found) if found in states else -1)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    turn = 0
    while turn < 40 or len(set(seen)) < 2:
        current[0] = cycle[turn % len(cycle)](current[0])
        turn += 1
    done.set()
    reader.join()
    assert -1 not in seen


def test_two_layers_lead_where_one_trie_of_both_leads() -> None:
    sids = torch.unique(wide(11), dim=0)
    old, new = sids[::2], sids[1::3]
    one = Trie.build(old, (100,) * 3)
    two = Layered.of(one)
    for part in new.split(20):
        one, two = one.append(part), two.append(part)
    off = torch.cat([old[::5], new[::4], torch.tensor([[99, 99, 99]])])
    one, two = one.set_alive(one.leaf(off[:-1]), False), two.set_alive(off, False)
    back = off[::3]
    one, two = one.append(back), two.append(back)
    assert torch.equal(two.contains(sids), one.contains(sids))
    assert len(two.main) == len(old) and bool((two.main.leaf(two.recent.sids) < 0).all())
    prefixes, nodes = torch.zeros(1, 0, dtype=torch.int64), (one.root(1)[0], two.root(1)[0])
    for level in range(3):
        assert torch.equal(two.words(nodes[1], level), one.words(nodes[0], level))
        offsets, token, _ = one.expand(nodes[0], level)
        parent = torch.repeat_interleave(offsets.diff())
        nodes = one.child(nodes[0][parent], token, level), two.child(nodes[1][parent], token, level)
        prefixes = torch.cat([prefixes[parent], token.unsqueeze(1)], 1)
        assert bool((nodes[1] >= 0).all()) and two.child(nodes[1][:1], torch.tensor([-1]), min(level + 1, 2)).tolist() == [-1]
    assert torch.equal(two.merged().sids[two.merged().alive], one.sids[one.alive])
    assert torch.equal(prefixes, one.sids[one.alive])


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 100])
def test_packed_tokens_unpack_to_themselves(tokens: int) -> None:
    some = torch.rand(7, tokens, generator=torch.Generator().manual_seed(tokens)) < 0.5
    assert pack(some).shape == (7, -(-tokens // 32))
    assert torch.equal(unpack(pack(some), tokens), some)
