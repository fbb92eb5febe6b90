"""How good the IDs are: the measures on cases with known answers, and the real catalogue."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from jobs.sids import kuairand_input
from model.sid import bundle, probe, report

DATA = Path(os.environ.get("SIDSTREAM_DATA", Path(__file__).parents[4] / "shared" / "data")) / "kuairand"


def measured(vectors: np.ndarray, rebuilt: np.ndarray, codes: np.ndarray) -> report.Quality:
    size = int(codes.max()) + 1
    return report.measure((vectors, rebuilt, codes), (vectors, rebuilt, codes), ([size], [size]))


def test_codes_that_lose_nothing_score_perfectly() -> None:
    vectors = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
    found = measured(vectors, vectors, np.arange(60, dtype=np.int32)[:, None]).joint
    assert found.retrieval == found.neighbours == {1: 1.0, 5: 1.0, 10: 1.0}
    assert (found.compression, found.collision, found.distortion) == (1.0, 0.0, 0.0)
    assert [(level.codes, level.used, round(level.entropy, 6)) for level in found.levels] == [(60, 60, 1.0)] * 2


def test_one_code_for_everything_tells_videos_apart_by_chance_only() -> None:
    vectors = np.random.default_rng(1).standard_normal((200, 5)).astype(np.float32)
    rebuilt = np.broadcast_to(vectors.mean(axis=0), vectors.shape)
    found = measured(vectors, rebuilt, np.zeros((200, 1), np.int32)).joint
    assert (found.compression, found.collision, found.distinct) == (200.0, 1.0, 1)
    assert abs(found.distortion - 1.0) < 1e-5
    assert abs(found.retrieval[10] - 10 / 200) < 1e-9


def test_identical_videos_are_found_as_often_as_a_draw_among_them() -> None:
    vectors = np.repeat(np.random.default_rng(2).standard_normal((10, 4)), 4, axis=0).astype(np.float32)
    found = measured(vectors, vectors, np.repeat(np.arange(10), 4)[:, None].astype(np.int32)).joint
    assert abs(found.retrieval[1] - 0.25) < 1e-9 and found.retrieval[5] == 1.0
    assert found.collision == 1.0 and found.compression == 4.0


def test_the_probe_sees_what_one_factor_says_of_the_other() -> None:
    rng = np.random.default_rng(3)
    content = rng.standard_normal((600, 4)).astype(np.float32)
    codes = np.zeros((600, 1), np.int32)
    copied, own = content @ rng.standard_normal((4, 4)).astype(np.float32), rng.standard_normal((600, 4)).astype(np.float32)
    told = report.measure((content, content, codes), (copied, copied, codes), ([1], [1])).probe
    silent = report.measure((content, content, codes), (own, own, codes), ([1], [1])).probe
    assert min(told.values()) > 0.5 and max(silent.values()) < 0.05


@pytest.mark.integration
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the KuaiRand files are not at {DATA}")
def test_the_real_catalogue_gets_ids_that_tell_its_videos_apart() -> None:
    catalogue, together = kuairand_input(DATA, None)
    built = bundle.build(catalogue, together)
    quality = json.loads(json.dumps(built.quality))
    print(report.table(quality))
    assert quality["items"] == len(built.item_ids) > 7000
    assert quality["joint"]["collision"] <= 0.026 and quality["joint"]["compression"] < 1.03
    assert quality["joint"]["retrieval"]["10"] > 0.95
    assert all(level["used"] == level["codes"] == 64 for factor in ("content", "creative") for level in quality[factor]["levels"])
    assert max(quality["probe"].values()) < 0.08
    assert max(abs(found["points"]) for found in quality["code_probe"].values()) < 2


def codes_of(seed: int, copied: float) -> tuple[np.ndarray, np.ndarray]:
    """Codes of both factors; a share of creative's first level is a function of content's."""
    rng = np.random.default_rng(seed)
    content, creative = rng.integers(8, size=(4000, 2)), rng.integers(8, size=(4000, 2))
    creative[:, 0] = np.where(rng.random(4000) < copied, (content[:, 0] * 3 + content[:, 1]) % 8, creative[:, 0])
    return content.astype(np.int32), creative.astype(np.int32)


def test_the_probe_of_codes_sees_what_content_foretells_and_only_that() -> None:
    silent, told = (probe.probes(*codes_of(0, copied), seed=0) for copied in (0.0, 0.5))
    assert all(abs(found.points) < 2 for found in silent.values()), silent
    # Half of the codes are known for sure, of the others an eighth is guessed right.
    assert abs(told["content to creative 1"].accuracy - (0.5 + 0.5 / 8)) < 0.03
    assert abs(told["content to creative 2"].points) < 2


def test_the_probe_of_codes_counts_what_is_skewed_as_chance() -> None:
    rng = np.random.default_rng(1)
    content, creative = rng.integers(8, size=(3000, 1)), (rng.random((3000, 1)) < 0.1).astype(int)
    found = probe.probes(content.astype(np.int32), creative.astype(np.int32), seed=0)["content to creative 1"]
    assert abs(found.chance - 0.9) < 0.02 and abs(found.points) < 1


@pytest.mark.parametrize("videos", [0, 1, 14])
def test_too_few_videos_are_probed_for_nothing(videos: int) -> None:
    codes = np.arange(videos, dtype=np.int32)[:, None]
    assert all(found.points == 0 for found in probe.probes(codes, codes, seed=0).values())
