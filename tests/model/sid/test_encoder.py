"""Embeddings: unit length, close where things belong together, and two factors that do not repeat each other."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from model.sid import cooccurrence, encoder, probe, report
from model.sid.disentangle import disentangle, even_out, unit


def catalogue(items: int, rng: np.random.Generator) -> pa.Table:
    return pa.table(
        {
            "item_id": np.arange(items) * 7,
            "author_id": rng.integers(items, size=items),
            "tag": pa.array(rng.integers(-1, 5, items), mask=rng.random(items) < 0.1),
            "video_type": pa.array(rng.choice(["NORMAL", "AD"], items), mask=rng.random(items) < 0.1),
            "upload_type": rng.choice(["Web", "Camera", "Import"], items),
            "duration_ms": pa.array(rng.integers(5_000, 90_000, items), mask=rng.random(items) < 0.1),
            "width": rng.choice([540, 720], items),
            "height": rng.choice([960, 1280], items),
            "music_id": rng.integers(40, size=items),
            "music_type": rng.integers(4, size=items),
        }
    )


def watched_in_groups(items: int, rng: np.random.Generator, strangers: int = 0) -> pa.Table:
    """Users who each watch one of two halves of the catalogue, and now and then a video that it does not have."""
    rows = [(rng.permutation(items // 2) + rng.integers(2) * (items // 2))[:15] * 7 for _ in range(400)]
    return pa.table({"item_ids": [[*row.tolist(), *([-5] * strangers)] for row in rows]})


def test_every_video_has_two_unit_vectors_also_where_attributes_are_unknown() -> None:
    rng = np.random.default_rng(0)
    for vectors in encoder.embed(catalogue(200, rng), watched_in_groups(200, rng, strangers=2), dimensions=12):
        assert vectors.shape == (200, 12) and vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_what_is_watched_together_is_near_in_content() -> None:
    rng = np.random.default_rng(1)
    content, _ = encoder.embed(catalogue(100, rng), watched_in_groups(100, rng), dimensions=16)
    similar = content @ content.T
    same = similar[:50, :50].mean() + similar[50:, 50:].mean()
    assert same / 2 > similar[:50, 50:].mean() + 0.2


def test_a_weight_of_zero_leaves_a_video_out() -> None:
    row, user = np.array([0, 1, 2]), np.zeros(3, np.int64)
    pairs = cooccurrence.pmi(cooccurrence.Sequences(row, user, np.array([1, 0, 1], np.float32)), 3, window=1)
    assert set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == {(0, 2), (2, 0)}


def test_users_are_not_joined_at_their_ends() -> None:
    sequences = cooccurrence.Sequences(np.array([0, 1, 2, 3]), np.array([0, 0, 1, 1]), np.ones(4, np.float32))
    pairs = cooccurrence.pmi(sequences, 4, window=3)
    assert set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == {(0, 1), (1, 0), (2, 3), (3, 2)}


def test_factors_rebuild_a_matrix_of_low_rank() -> None:
    rng = np.random.default_rng(2)
    thin = rng.standard_normal((60, 3)).astype(np.float32)
    full = thin @ thin.T
    left, right = np.divmod(np.arange(3600), 60)
    found = cooccurrence.factors(cooccurrence.Pairs(left, right, full.reshape(-1)), 60, 3, seed=0)
    assert np.allclose(found @ found.T, full, atol=1e-3)


def test_disentangling_takes_out_of_creative_what_content_predicts_and_puts_nothing_in() -> None:
    rng = np.random.default_rng(3)
    content = unit(rng.standard_normal((1500, 8)))
    mixed = unit(np.eye(6)[rng.integers(6, size=1500)] + 2 * content[:, :1] * np.eye(6)[0] + 2 * content[:, 1:2] * np.eye(6)[1])
    apart = disentangle(mixed, content)

    def probes(creative: np.ndarray) -> dict[str, float]:
        codes = np.zeros((1500, 1), np.int32)
        return report.measure((content, content, codes), (creative, creative, codes), ([1], [1])).probe

    before, after = probes(mixed), probes(apart)
    assert before["content_to_creative_linear"] > 0.3 and after["content_to_creative_linear"] < 0.05
    assert after["creative_to_content_linear"] < 0.05
    assert after["creative_to_content_neighbours"] <= before["creative_to_content_neighbours"] + 0.02


def test_evening_out_takes_most_of_what_codes_tell_and_moves_videos_only_onto_vectors_that_exist() -> None:
    rng = np.random.default_rng(6)
    cluster = rng.integers(8, size=4000).astype(np.int32)
    style = np.where(rng.random(4000) < 0.3, cluster, rng.integers(8, size=4000))
    creative = unit(np.eye(8)[style] + 0.1 * rng.standard_normal((4000, 8)))
    even = even_out(creative, cluster)

    def points(vectors: np.ndarray) -> float:
        codes = vectors.argmax(axis=1).astype(np.int32)
        return probe.probe(cluster[:, None], codes).points

    assert points(creative) > 20 and points(even) < points(creative) / 3
    moved = (even != creative).any(axis=1)
    assert 0.1 < moved.mean() < 0.35
    assert {row.tobytes() for row in even[moved]} <= {row.tobytes() for row in creative}


def test_without_history_content_is_tag_and_author() -> None:
    table = catalogue(150, np.random.default_rng(4))
    content, _ = encoder.embed(table, dimensions=8)
    tags = table["tag"].to_pylist()
    similar = content @ content.T
    same = np.array([[a == b for b in tags] for a in tags])
    assert similar[same].mean() > similar[~same].mean() + 0.3


def test_weights_that_do_not_fit_their_items_are_refused() -> None:
    table = pa.table({"item_ids": [[7, 14]], "weights": [[1.0]]})
    with pytest.raises(encoder.CatalogueError, match="1 values for 2 items"):
        encoder.embed(catalogue(20, np.random.default_rng(5)), table)
