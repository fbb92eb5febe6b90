"""Nearest SIDs against the definition: every distance in float64, a stable sort."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import nearest as package
from kernels.nearest import cpu, nearest, nearest_children, nearest_sid, reference
from kernels.trie import Trie

Found = tuple[torch.Tensor, torch.Tensor]
Find = Callable[[torch.Tensor, torch.Tensor, int], Found]
COUNTS, WIDTH = (6, 40, 7), 3


def same(found: Found, expected: Found) -> None:
    """Equal bits of distances, and equal rows."""
    assert torch.equal(found[1], expected[1]) and torch.equal(found[0], expected[0])


def world(seed: int, count: int = 300, grid: bool = True) -> tuple[Trie, list[torch.Tensor], torch.Tensor]:
    """A catalogue, centroids (on a grid: many equal distances), and SIDs that may exist or not."""
    generator = torch.Generator().manual_seed(seed)

    def sids(number: int) -> torch.Tensor:
        return torch.stack([(codes * torch.rand(number, generator=generator) ** 2).long() for codes in COUNTS], 1)

    books = [torch.randn(codes, WIDTH, generator=generator) * 2 ** (1 - level) for level, codes in enumerate(COUNTS)]
    return Trie.build(sids(count), COUNTS), [(4 * book).round() / 4 if grid else book for book in books], sids(12)


def alike(found: Found, expected: Found) -> None:
    """Equal rows, and distances that differ by the order of their sums at most."""
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0], rtol=1e-14, atol=0)


both_ways = pytest.mark.parametrize("nearest", [nearest, cpu.nearest], ids=["compiled", "torch"])


@both_ways
@settings(max_examples=60, deadline=None)
@given(
    wanted=st.integers(1, 40),
    places=st.integers(1, 300),
    dimensions=st.sampled_from([1, 3, 64]),
    k=st.integers(1, 9),
    grid=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_it_finds_what_brute_force_finds_in_the_same_order(
    nearest: Find, wanted: int, places: int, dimensions: int, k: int, grid: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    asked, known = torch.randn(wanted, dimensions, generator=generator), torch.randn(places, dimensions, generator=generator)
    if grid:  # many equal distances
        asked, known = asked.round(), known.round()
    k = min(k, places)
    alike(nearest(asked, known, k), reference.nearest(asked, known, k))


@both_ways
def test_a_place_that_exists_is_its_own_nearest_at_distance_zero(nearest: Find) -> None:
    known = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0)) * 100
    distance, row = nearest(known, known, 1)
    assert row[:, 0].tolist() == list(range(3000)) and not distance.any()


@both_ways
def test_the_answer_does_not_depend_on_the_batch(nearest: Find) -> None:
    generator = torch.Generator().manual_seed(1)
    known = torch.nn.functional.normalize(torch.randn(2000, 64, generator=generator), dim=1)
    asked = torch.randn(50, 64, generator=generator)
    distance, row = nearest(asked, known, 5)
    for one in range(50):
        alone = nearest(asked[one : one + 1], known, 5)
        assert torch.equal(alone[0][0], distance[one]) and torch.equal(alone[1][0], row[one])


@both_ways
def test_places_far_from_the_origin_are_told_apart_although_the_product_rounds_their_differences_away(nearest: Find) -> None:
    generator = torch.Generator().manual_seed(2)
    known = 100 + 1e-3 * torch.randn(400, 64, generator=generator)
    asked = 100 + 1e-3 * torch.randn(20, 64, generator=generator)
    exact = (asked.double().unsqueeze(1) - known.double()).square().sum(-1)
    assert torch.equal(nearest(asked, known, 3)[1], exact.sort(dim=1, stable=True).indices[:, :3])


@both_ways
@pytest.mark.parametrize(("places", "k"), [(2048, 24), (2049, 24), (5000, 128), (5000, 129), (7000, 1), (2060, 40)])
def test_many_places_on_a_grid_keep_the_order_of_equal_distances(nearest: Find, places: int, k: int) -> None:
    generator = torch.Generator().manual_seed(places)
    known, asked = (torch.randint(-2, 3, (count, 5), generator=generator).float() for count in (places, 37))
    known[::97] = known[0]
    same(nearest(asked, known, k), reference.nearest(asked, known, k))


@both_ways
def test_one_place_that_is_no_number_among_many_leaves_the_others_as_they_are(nearest: Find) -> None:
    generator = torch.Generator().manual_seed(4)
    known, asked = torch.randn(4500, 20, generator=generator), torch.randn(33, 20, generator=generator)
    for wrong in (torch.nan, torch.inf, -torch.inf):
        known[2100, 3] = wrong
        alike(nearest(asked, known, 7), reference.nearest(asked, known, 7))


def test_more_neighbours_than_places_are_refused() -> None:
    with pytest.raises(ValueError, match="are expected"):
        nearest(torch.zeros(1, 2), torch.zeros(3, 2), 4)


@both_ways
def test_what_is_no_number_or_endless_is_not_found_and_large_numbers_are(nearest: Find) -> None:
    asked = torch.tensor([[0.0, 0.0], [3e25, 0.0], [torch.nan, 0.0]])
    known = torch.tensor([[torch.nan, 0.0], [3e25, 0.0], [torch.inf, 1.0], [1.0, 1.0], [-2e25, 0.0]])
    distance, row = nearest(asked, known, 4)
    assert row.tolist() == [[3, 4, 1, -1], [1, 3, 4, -1], [-1] * 4] and bool((distance[row < 0] == torch.inf).all())
    alike((distance, row), reference.nearest(asked, known, 4))


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("worth", [0, 16, 1 << 20])
def test_a_level_of_the_descent_is_the_definition(nodes: int, worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "WORTH", worth)  # by differences alone, by the product, as it comes
    monkeypatch.setattr(cpu, "BLOCK", 100)  # several blocks
    for seed, grid in ((0, True), (1, False)):
        trie, books, wanted = world(seed, grid=grid)
        books[1][5] = torch.nan
        generator = torch.Generator().manual_seed(seed)
        node = torch.randint(-1, trie.levels[1].nodes, (12, nodes), generator=generator)
        node[3] = -1
        offsets, token, child = trie.expand(node.flatten(), 1)
        residual = torch.randn(12, nodes, WIDTH, generator=generator, dtype=torch.float64)
        residual[7, 0] = torch.inf
        own = trie.walk(wanted[:, :2])
        for k in (1, 5, 300):
            given = (residual, offsets, token, child, own, books[1], k)
            same(nearest_children(*given), reference.nearest_children(*given))


@pytest.mark.parametrize("grid", [True, False])
def test_a_descent_that_keeps_everything_is_exact(grid: bool) -> None:
    trie, books, wanted = world(2, grid=grid)
    trie = trie.set_alive(torch.arange(0, len(trie), 3), False)
    distance, leaf = nearest_sid(wanted, trie, books, 9, beam=len(trie))
    live = trie.alive.nonzero()[:, 0]
    places = sum(book[trie.sids[live][:, level]].double() for level, book in enumerate(books))
    asked = sum(book[wanted[:, level]].double() for level, book in enumerate(books))
    assert isinstance(places, torch.Tensor) and isinstance(asked, torch.Tensor)
    expected, row = reference.nearest(asked, places, 9)
    torch.testing.assert_close(distance, expected, atol=1e-12, rtol=0)
    if not grid:  # among equals a SID that exists comes first here
        assert torch.equal(leaf, live[row])
    assert bool(trie.alive[leaf].all())


@pytest.mark.parametrize("beam", [1, 4])
def test_a_narrow_descent_finds_live_leaves_in_order_and_what_exists_at_distance_zero(beam: int) -> None:
    trie, books, wanted = world(3, grid=False)
    trie = trie.set_alive(torch.arange(0, len(trie), 2), False)
    wanted = torch.cat([wanted, trie.sids[trie.alive]])
    distance, leaf = nearest_sid(wanted, trie, books, beam, beam=beam)
    assert bool(trie.alive[leaf[leaf >= 0]].all()) and bool((leaf[:, 0] >= 0).all())
    assert bool((distance[:, 1:] >= distance[:, :-1]).all())
    exists = trie.walk(wanted) >= 0
    assert torch.equal(leaf[exists, 0], trie.walk(wanted[exists])) and not distance[exists, 0].any()
    for one in range(12):
        same(nearest_sid(wanted[one : one + 1], trie, books, beam, beam=beam), (distance[one : one + 1], leaf[one : one + 1]))


def test_a_trie_with_nothing_alive_has_nothing_near() -> None:
    trie, books, wanted = world(4)
    for empty in (trie.set_alive(torch.arange(len(trie)), False), Trie.build(trie.sids[:0], COUNTS)):
        distance, leaf = nearest_sid(wanted, empty, books, 2)
        assert leaf.tolist() == [[-1, -1]] * 12 and bool((distance == torch.inf).all())
    assert nearest_sid(wanted[:0], trie, books, 2)[1].shape == (0, 2)


def test_what_does_not_fit_the_trie_is_refused() -> None:
    trie, books, wanted = world(5)
    with pytest.raises(ValueError, match="1 ≤ k ≤ beam"):
        nearest_sid(wanted, trie, books, 3, beam=2)
    with pytest.raises(ValueError, match=r"SID \[0, 0, 7\] \(row 1\)"):
        nearest_sid(torch.tensor([[0, 0, 0], [0, 0, 7]]), trie, books)


def test_torch_knows_what_a_search_for_the_nearest_makes() -> None:
    trie, books, wanted = world(6)
    torch.library.opcheck(package._nearest, (torch.randn(3, 4), torch.randn(9, 4), 2))
    node = trie.walk(wanted[:, :1]).unsqueeze(1).clamp(min=0)
    offsets, token, child = trie.expand(node.flatten(), 1)
    residual = torch.randn(12, 1, WIDTH, dtype=torch.float64)
    torch.library.opcheck(package._nearest_children, (residual, offsets, token, child, node[:, 0], books[1], 4, "torch"))
