"""Residual k-means in batches: as good as with everything in memory, the same after a kill, within the memory that it states."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.sid import minibatch, quantizer
from model.sid.minibatch import Plan

PLAN = Plan(levels=2, codes=16, batch=256, steps=30, checkpoint_every=7)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, 8))
    return (centres[np.sort(rng.integers(20, size=3000))] + 0.4 * rng.standard_normal((3000, 8))).astype(np.float32)


@pytest.fixture(scope="module")
def books(vectors: np.ndarray) -> list[np.ndarray]:
    return minibatch.fit(vectors, PLAN)


def lost(vectors: np.ndarray, books: list[np.ndarray]) -> float:
    return float(((vectors - quantizer.decode(quantizer.encode(vectors, books), books)) ** 2).sum())


def test_a_level_more_reconstructs_better_and_nearly_as_well_as_in_memory(vectors: np.ndarray, books: list[np.ndarray]) -> None:
    losses = [float((vectors**2).sum()), lost(vectors, books[:1]), lost(vectors, books)]
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert losses[-1] < 1.1 * lost(vectors, quantizer.fit(vectors, 2, 16, 0))


def test_a_file_read_in_parts_gives_the_bits_of_the_array(tmp_path: Path, vectors: np.ndarray, books: list[np.ndarray]) -> None:
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    assert all(a.tobytes() == b.tobytes() for a, b in zip(books, minibatch.fit(mapped, PLAN), strict=True))


def test_another_seed_gives_other_codebooks(vectors: np.ndarray, books: list[np.ndarray]) -> None:
    assert minibatch.fit(vectors, replace(PLAN, seed=1))[0].tobytes() != books[0].tobytes()


@pytest.mark.parametrize("killed_after", [1, 8, 30, 31, 45, 60])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(
    tmp_path: Path, vectors: np.ndarray, books: list[np.ndarray], killed_after: int
) -> None:
    calls = itertools.count(1)

    def kill(*_: object) -> None:
        if next(calls) == killed_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        minibatch.fit(vectors, PLAN, checkpoint=tmp_path, progress=kill)
    steps: list[int] = []
    resumed = minibatch.fit(vectors, PLAN, checkpoint=tmp_path, progress=lambda level, step, _: steps.append(level * 30 + step))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(books, resumed, strict=True))
    assert (steps[0] if steps else 61) > killed_after - PLAN.checkpoint_every


def test_the_state_of_another_fit_is_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    minibatch.fit(vectors, PLAN, checkpoint=tmp_path)
    with pytest.raises(minibatch.Interrupted, match="state of another fit"):
        minibatch.fit(vectors, replace(PLAN, seed=3), checkpoint=tmp_path)
    with pytest.raises(minibatch.Interrupted, match="state of another fit"):
        minibatch.fit(vectors[:-1], PLAN, checkpoint=tmp_path)


def test_codes_of_a_stream_are_those_of_the_array(vectors: np.ndarray, books: list[np.ndarray]) -> None:
    streamed = np.concatenate(list(minibatch.encode(vectors, books, batch=700, block=16 * 50)))
    assert streamed.dtype == np.int32 and (streamed == quantizer.encode(vectors, books)).mean() > 0.999


def test_a_row_that_is_not_finite_is_named_by_its_place_in_the_file(vectors: np.ndarray, books: list[np.ndarray]) -> None:
    broken = vectors.copy()
    broken[1234, 3] = np.inf
    with pytest.raises(ValueError, match="row 1234 of the embeddings is not finite"):
        minibatch.fit(broken, replace(PLAN, steps=100))
    with pytest.raises(ValueError, match="row 1234 of the embeddings is not finite"):
        list(minibatch.encode(broken, books))


def test_fewer_vectors_than_codes_are_refused(vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="take fewer codes"):
        minibatch.fit(vectors[:10], PLAN)


def test_moving_makes_a_centroid_the_mean_of_all_that_it_saw() -> None:
    generator = torch.Generator().manual_seed(0)
    state = minibatch._State([], torch.zeros(3, 4), torch.zeros(3), 0)
    seen = [torch.randn(50, 4, generator=generator) for _ in range(4)]
    codes = [torch.randint(2, (50,), generator=generator) for _ in range(4)]
    for rows, code in zip(seen, codes, strict=True):
        minibatch._move(state, rows, code)
    rows, code = torch.cat(seen).double(), torch.cat(codes)
    for centroid in (0, 1):
        assert torch.allclose(state.centroids[centroid].double(), rows[code == centroid].mean(dim=0), atol=1e-6)
    assert state.centroids[2].eq(0).all() and state.seen.tolist() == torch.bincount(code, minlength=3).tolist()
