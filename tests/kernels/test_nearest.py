"""Nearest SIDs against brute force in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.nearest import nearest


@settings(max_examples=60, deadline=None)
@given(
    wanted=st.integers(1, 20),
    places=st.integers(1, 300),
    dimensions=st.sampled_from([1, 3, 64]),
    k=st.integers(1, 9),
    grid=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_it_finds_what_brute_force_finds_in_the_same_order(
    wanted: int, places: int, dimensions: int, k: int, grid: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    asked, known = torch.randn(wanted, dimensions, generator=generator), torch.randn(places, dimensions, generator=generator)
    if grid:  # many equal distances
        asked, known = asked.round(), known.round()
    k = min(k, places)
    exact = (asked.double().unsqueeze(1) - known.double()).square().sum(-1)
    expected, row = exact.sort(dim=1, stable=True)
    distance, found = nearest(asked, known, k)
    assert torch.equal(found, row[:, :k]) and torch.equal(distance, expected[:, :k])


def test_a_place_that_exists_is_its_own_nearest_at_distance_zero() -> None:
    known = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0)) * 100
    distance, row = nearest(known, known)
    assert row[:, 0].tolist() == list(range(3000)) and not distance.any()


def test_the_answer_does_not_depend_on_the_batch() -> None:
    generator = torch.Generator().manual_seed(1)
    known = torch.nn.functional.normalize(torch.randn(2000, 64, generator=generator), dim=1)
    asked = torch.randn(50, 64, generator=generator)
    distance, row = nearest(asked, known, 5)
    for one in range(50):
        alone = nearest(asked[one : one + 1], known, 5)
        assert torch.equal(alone[0][0], distance[one]) and torch.equal(alone[1][0], row[one])


def test_places_far_from_the_origin_are_told_apart_although_the_product_rounds_their_differences_away() -> None:
    generator = torch.Generator().manual_seed(2)
    known = 100 + 1e-3 * torch.randn(400, 64, generator=generator)
    asked = 100 + 1e-3 * torch.randn(20, 64, generator=generator)
    exact = (asked.double().unsqueeze(1) - known.double()).square().sum(-1)
    assert torch.equal(nearest(asked, known, 3)[1], exact.sort(dim=1, stable=True).indices[:, :3])


def test_more_neighbours_than_places_are_refused() -> None:
    with pytest.raises(ValueError, match="are expected"):
        nearest(torch.zeros(1, 2), torch.zeros(3, 2), 4)
