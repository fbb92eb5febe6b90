"""Ablations: the simulated delays are what they claim, and comparisons are at equal compute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.ablations import delays, models
from benchmarks.ablations.problems import Problem
from streaming.records import Context, HistoryEntry, Labels, Sample

ITEMS = 30


def test_simulated_conversions_come_as_often_as_the_truth_says() -> None:
    of = delays.world(20_000, 1)
    assert float(of.delay.isfinite().double().mean()) == pytest.approx(float(of.truth.mean()), abs=0.01)


def test_every_pipeline_hands_over_every_impression_and_no_label_before_its_time() -> None:
    of = delays.world(500, 2)
    shown = torch.arange(500, dtype=torch.float64) / 500
    for pipeline in delays.PIPELINES:
        time, place, label = delays.ingested(pipeline, of)
        assert set(place.tolist()) == set(range(500))
        assert (time.diff() >= 0).all()
        late = label.bool() & (time < shown[place] + of.delay[place] - 1e-9)
        assert bool(late.any()) == (pipeline == "at once")


def test_weights_bring_a_mode_nearer_to_the_truth_than_none() -> None:
    bare, weighted = (delays.measure(pipeline, 6000, 0) for pipeline in ("uncorrected", "es_dfm"))
    assert weighted["divergence"] < bare["divergence"]
    assert abs(weighted["calibration"] - 1) < abs(bare["calibration"] - 1)


@pytest.fixture(scope="module")
def problem() -> Problem:
    rng = np.random.default_rng(0)
    rows = [
        Sample(
            sample_id=str(number), kind="initial", impression_id=str(number), user_id=0, item_id=number % ITEMS, ts=0, ready_ts=0,
            labels=Labels(click=1), context=Context([HistoryEntry((number + 7) % ITEMS, 0, None, ["click"])]),
        )
        for number in range(40)
    ]  # fmt: skip
    content, creative = rng.standard_normal((2, ITEMS, 4)).astype(np.float32)
    ids = np.arange(ITEMS)
    return Problem("small", rows[:32], rows[32:], ids, ids * 0, ids * 0 - 1, content, creative, repeats=True)


@pytest.mark.parametrize("name", ["single SID 4 × 64", "D-SID 3 + 3 × 64"])
def test_sids_have_the_variants_levels_and_are_one_a_video(problem: Problem, name: str) -> None:
    variant = next(found for found in models.VARIANTS if found.name == name)
    sids, books = models.semantic_ids(problem, variant.content, variant.creative, 4, 0)
    codes = [len(book) for book in books]
    assert sids.shape == (ITEMS, variant.content + variant.creative)
    assert (sids < np.array(codes)).all()
    assert len(np.unique(sids, axis=0)) == ITEMS


@pytest.mark.integration  # laptop-sized models
def test_the_wider_lazy_decoder_takes_as_many_operations_as_the_full_one_and_a_lazy_trunk_is_measured(problem: Problem) -> None:
    _, full, wide = (models.Trial(problem, replace(variant, codes=4), 0) for variant in models.VARIANTS[:3])
    assert wide.operations == pytest.approx(full.operations, rel=models.NEAR)
    assert wide.model.config.ffn > full.model.config.ffn
    row = models.measure(problem, replace(models.VARIANTS[3], codes=4), 0)
    assert 0 <= row["recall_at_10"] <= row["recall_at_50"] <= 1


def test_every_variant_of_the_context_or_of_what_is_taught_is_that_model_and_learns_from_that_input(problem: Problem) -> None:
    long = next(variant for variant in models.VARIANTS if dict(variant.changes).get("long"))
    small = (("d_model", 32), ("ffn", 32), ("context_hidden", 32), ("user_rows", 8), ("item_rows", 64), ("prefix_rows", 64), ("history", 0))
    trial = models.Trial(problem, replace(long, codes=4, changes=(*small, *long.changes)), 0)
    trial.learn()
    assert trial.model.table_momenta()["count"].any()
    taught, chance = (variant for variant in models.VARIANTS if variant.changes == models.THOUGHTFUL)
    clusters = []
    for variant in (taught, chance):
        trial = models.Trial(problem, replace(variant, codes=8, changes=(*small, ("lazy_trunk", 1), ("thinking", 3))), 0)
        assert trial.model.thinking is not None
        clusters.append(trial.model.thinking.levels[0].cluster_of.tolist())
    assert clusters[0] != clusters[1]
