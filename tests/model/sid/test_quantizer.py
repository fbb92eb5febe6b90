"""Residual k-means: what must hold for any vectors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.sid import fsq, quantizer


def clustered(items: int, dimensions: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((7, dimensions))
    return (centres[rng.integers(7, size=items)] + 0.3 * rng.standard_normal((items, dimensions))).astype(np.float32)


def lost(vectors: np.ndarray, codebooks: list[np.ndarray]) -> float:
    return float(((vectors - quantizer.decode(quantizer.encode(vectors, codebooks), codebooks)) ** 2).sum())


@settings(max_examples=25, deadline=None)
@given(items=st.integers(1, 200), dimensions=st.integers(1, 8), codes=st.integers(1, 20), seed=st.integers(0, 10_000), grid=st.booleans())
def test_a_level_more_never_reconstructs_worse(items: int, dimensions: int, codes: int, seed: int, grid: bool) -> None:
    vectors = clustered(items, dimensions, seed)
    if grid:  # many equal vectors
        vectors = vectors.round()
    codebooks = quantizer.fit(vectors, 3, codes, seed)
    losses = [float((vectors**2).sum())] + [lost(vectors, codebooks[:levels]) for levels in (1, 2, 3)]
    assert all(after <= before * (1 + 1e-5) + 1e-6 for before, after in itertools.pairwise(losses)), losses
    assert all(1 <= len(book) <= codes for book in codebooks)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    vectors = clustered(500, 16, 0)
    first, again, other = (quantizer.fit(vectors, 2, 32, seed) for seed in (1, 1, 2))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))
    assert any(a.tobytes() != b.tobytes() for a, b in zip(first, other, strict=True))


def test_enough_codes_for_all_distinct_vectors_lose_nothing() -> None:
    vectors = np.repeat(np.eye(6, dtype=np.float32), 5, axis=0)
    codebooks = quantizer.fit(vectors, 2, 64, 0)
    assert len(codebooks[0]) == 6 and len(codebooks[1]) == 1
    assert lost(vectors, codebooks) < 1e-10


def test_every_code_of_the_first_level_is_used() -> None:
    vectors = clustered(3000, 8, 3)
    codebooks = quantizer.fit(vectors, 1, 128, 0)
    assert len(np.unique(quantizer.encode(vectors, codebooks))) == 128


def test_balancing_spreads_skewed_clusters_over_more_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    size = 1 / np.arange(1, 41)
    centres = rng.standard_normal((40, 12))
    skewed = (centres[rng.choice(40, 2000, p=size / size.sum())] + 0.3 * rng.standard_normal((2000, 12))).astype(np.float32)

    def entropy() -> float:
        found = []
        for seed in range(4):
            share = np.bincount(quantizer.encode(skewed, quantizer.fit(skewed, 1, 32, seed))[:, 0]) / len(skewed)
            found.append(-(share * np.log(share.clip(1e-12))).sum())
        return float(np.mean(found))

    balanced = entropy()
    monkeypatch.setattr(quantizer, "BALANCE", 0.0)
    assert balanced > entropy() + 0.005


def test_a_vector_is_encoded_alone_as_it_is_among_others() -> None:
    vectors = clustered(300, 16, 4)
    codebooks = quantizer.fit(vectors, 2, 16, 0)
    together = quantizer.encode(vectors, codebooks)
    assert all((quantizer.encode(vectors[row : row + 1], codebooks)[0] == together[row]).all() for row in range(0, 300, 7))


def test_large_input_is_encoded_in_blocks_without_changing_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(400, 8, 5)
    codebooks = quantizer.fit(vectors, 2, 16, 0)
    whole = quantizer.encode(vectors, codebooks)
    monkeypatch.setattr(quantizer, "BLOCK", 16 * 33)
    assert (quantizer.encode(vectors, codebooks) == whole).all()


def test_no_progress_is_reported_more_or_less_often_than_announced() -> None:
    calls: list[None] = []
    quantizer.fit(clustered(50, 4, 6), 3, 8, 0, lambda: calls.append(None))
    assert len(calls) == 3 * quantizer.ITERATIONS


@pytest.mark.parametrize("vectors", [np.zeros((0, 3), np.float32), np.full((2, 3), np.nan, np.float32)])
def test_vectors_that_have_no_codebook_are_refused(vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"at least one is needed|row 0 of the embeddings is not finite"):
        quantizer.fit(vectors, 1, 4, 0)


@pytest.mark.parametrize("seed", range(5))
def test_separated_sids_are_unique_keep_the_nearest_in_place_and_change_late_levels_only(seed: int) -> None:
    vectors = np.repeat(np.random.default_rng(seed).standard_normal((40, 6)).astype(np.float32), 5, axis=0)
    books = quantizer.fit(vectors, 3, 8, seed)
    codes = quantizer.encode(vectors, books)
    unique = quantizer.separate(vectors, books, codes)
    assert len(np.unique(unique, axis=0)) == len(vectors)
    assert (unique[:, 0] == codes[:, 0]).all()
    kept = (unique == codes).all(axis=1)
    assert kept.sum() == len(np.unique(codes, axis=0))


def test_items_that_come_later_leave_the_sids_of_the_others_alone() -> None:
    vectors = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)
    books = quantizer.fit(vectors, 2, 16, 0)
    first = quantizer.separate(vectors[:40], books, quantizer.encode(vectors[:40], books))
    later = quantizer.separate(vectors[40:], books, quantizer.encode(vectors[40:], books), taken=first)
    assert len(np.unique(np.concatenate([first, later]), axis=0)) == 60


def test_more_vectors_than_sids_are_refused() -> None:
    vectors = np.ones((5, 3), np.float32)
    books = [np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)]
    with pytest.raises(ValueError, match="use more codes"):
        quantizer.separate(vectors, books, quantizer.encode(vectors, books))


VARIANTS = [
    quantizer.Variant("none"),
    quantizer.Variant("exact"),
    quantizer.Variant(uniformity=0.8),
    quantizer.Variant(fsq_values=2),
    quantizer.Variant("exact", 0.5, 3),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@settings(max_examples=8, deadline=None)
@given(items=st.integers(1, 120), dimensions=st.integers(1, 6), codes=st.integers(3, 20), seed=st.integers(0, 10_000))
def test_in_every_variant_a_level_more_never_reconstructs_worse_and_a_seed_fixes_the_bits(
    variant: quantizer.Variant, items: int, dimensions: int, codes: int, seed: int
) -> None:
    vectors = clustered(items, dimensions, seed)
    codebooks, again = (quantizer.fit(vectors, 3, codes, seed, variant=variant) for _ in range(2))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(codebooks, again, strict=True))
    losses = [float((vectors**2).sum())] + [lost(vectors, codebooks[:levels]) for levels in (1, 2, 3)]
    assert all(after <= before * (1 + 1e-5) + 1e-6 for before, after in itertools.pairwise(losses)), losses


def entropy_of(codes: np.ndarray) -> float:
    share = np.bincount(codes) / len(codes)
    return float(-(share * np.log(share.clip(1e-12))).sum())


def test_exact_balance_spreads_vectors_more_evenly_than_plain_k_means() -> None:
    rng = np.random.default_rng(0)
    size = 1 / np.arange(1, 41)
    centres = rng.standard_normal((40, 12))
    skewed = (centres[rng.choice(40, 2000, p=size / size.sum())] + 0.3 * rng.standard_normal((2000, 12))).astype(np.float32)
    plain, exact = (
        np.mean(
            [
                entropy_of(quantizer.encode(skewed, quantizer.fit(skewed, 1, 32, seed, variant=quantizer.Variant(kind)))[:, 0])
                for seed in range(3)
            ]
        )
        for kind in ("none", "exact")
    )
    assert exact > plain + 0.01


def test_an_even_assignment_gives_every_centroid_as_many_vectors() -> None:
    vectors = clustered(103, 4, 0)
    count = np.bincount(quantizer._even_assignment(vectors, vectors[:10]))
    assert len(count) == 10 and count.min() >= 10 and count.max() <= 11


def test_uniformity_moves_near_centroids_apart_and_leaves_far_ones_alone() -> None:
    books = np.array([[0, 0], [0.1, 0], [5, 0], [0, 5]], np.float32)
    moved = quantizer._push_apart(books, 0.5)
    assert np.linalg.norm(moved[0] - moved[1]) > 0.5
    assert np.array_equal(moved[2:], books[2:])


def test_a_grid_level_has_orthogonal_axes_and_finds_the_nearest_cell_axis_by_axis() -> None:
    residual = clustered(400, 5, 1)
    grid = fsq.codebook(residual, 30, 3)
    assert grid.shape == (27, 5)
    steps = [grid[9] - grid[0], grid[3] - grid[0], grid[1] - grid[0]]
    assert all(abs(float(a @ b)) < 1e-4 for a, b in itertools.combinations(steps, 2))
    digits = np.stack(np.unravel_index(quantizer.nearest(residual, grid), (3, 3, 3)), axis=1)
    for axis, stride in enumerate((9, 3, 1)):
        direction = steps[axis] / np.linalg.norm(steps[axis])
        centres = (grid[np.arange(3) * stride] - 0) @ direction
        own = np.abs((residual @ direction)[:, None] - centres).argmin(axis=1)
        assert (own == digits[:, axis]).mean() > 0.99


@pytest.mark.parametrize(("codes", "values"), [(8, 1), (2, 3)])
def test_a_grid_that_cannot_be_is_refused(codes: int, values: int) -> None:
    with pytest.raises(ValueError, match="values per axis"):
        fsq.codebook(np.ones((4, 2), np.float32), codes, values)


def test_a_vector_that_is_not_finite_is_refused_by_its_row() -> None:
    vectors = clustered(20, 4, 0)
    books = quantizer.fit(vectors, 2, 4, 0)
    vectors[13, 2] = np.nan
    with pytest.raises(ValueError, match="row 13 of the embeddings is not finite"):
        quantizer.fit(vectors, 2, 4, 0)
    with pytest.raises(ValueError, match="row 13 of the embeddings is not finite"):
        quantizer.encode(vectors, books)


def test_under_a_prefix_only_equal_prefixes_collide_and_what_finds_nothing_free_may_share() -> None:
    vectors = np.ones((7, 3), np.float32)
    books = [np.ones((1, 3), np.float32), np.zeros((3, 3), np.float32)]
    prefix = np.array([[0], [0], [0], [0], [1], [1], [2]], np.int32)
    codes = quantizer.encode(vectors, books)
    found = quantizer.separate(vectors, books, codes, prefix=prefix, or_share=True)
    assert sorted(found[:4, 1].tolist()) == [0, 0, 1, 2] and sorted(found[4:6, 1].tolist()) == [0, 1] and found[6, 1] == 0
    with pytest.raises(ValueError, match="use more codes"):
        quantizer.separate(vectors, books, codes, prefix=prefix)
