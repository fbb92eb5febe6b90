"""The bundles that serve, with real codebooks and a real (small, untrained) model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels import native
from model.grm import Grm
from model.grm.inputs import Vocabulary, collate
from model.grm.presets import preset
from model.online.publish import Manifest, Published
from model.sid import bundle
from serving.cache import CachedVideo, CacheGone, catalogue_videos, generated_video
from serving.library import Library
from serving.model import Person, trial
from serving.policy import GrmPolicy, device, products
from serving.widths import uniform
from streaming.records import Context, HistoryEntry, Video
from streaming.sources.simulator import World


class FakeKeeping:
    """The cache as the library keeps it."""

    def __init__(self) -> None:
        self.stock: dict[str, dict[int, CachedVideo]] = {}
        self.gone = False

    def seed(self, built: bundle.Bundle, *, now_ms: int) -> int:
        if self.gone:
            raise CacheGone("switched off")
        return self.restore(built.version, catalogue_videos(built, now_ms), built.content_levels)

    def restore(self, version: str, videos: Sequence[CachedVideo], content_levels: int) -> int:
        stock = self.stock.setdefault(version, {})
        before = len(stock)
        for video in videos:
            stock.setdefault(video.item_id, video)
        return len(stock) - before

    def put(self, video: Video) -> bool:
        return bool(self.restore(video.bundle_version, [generated_video(video, 0)], 2))

    def count(self, version: str) -> int:
        return len(self.stock.get(version, {}))

    def videos(self, version: str) -> list[CachedVideo]:
        return list(self.stock[version].values())


@pytest.fixture(scope="module")
def built() -> bundle.Bundle:
    return bundle.build(World(users=5, items=80, seed=2).catalogue(), codes=8)


@pytest.fixture
def keeping() -> FakeKeeping:
    return FakeKeeping()


def library_of(built: bundle.Bundle, keeping: FakeKeeping) -> Library:
    def load_model(version: str) -> Published:
        config = preset("laptop", built.code_counts)
        manifest = Manifest(version, None, built.version, config.to_json(), {}, watermark_ts=5, samples_trained=6, published_ms=7)
        return Published(Grm(config), manifest, {-9: (1, 2, 3, 4)})

    library = Library(lambda version: built, load_model, keeping)  # type: ignore[arg-type]
    library.open()
    return library


@pytest.fixture
def library(built, keeping) -> Library:
    return library_of(built, keeping)


def announced(built: bundle.Bundle, **changes) -> Video:
    video = Video(
        sid=[1, 1, 1, 1],
        bundle_version=built.version,
        uri="/videos/a.mp4",
        item_id=-5,
        duration_ms=6_000,
        scores={},
        generator="g",
        origin_ts=1,
    )
    return Video(**{name: changes.get(name, getattr(video, name)) for name in video.__struct_fields__})


def test_an_opened_bundle_has_its_catalogue_on_the_shelf_with_titles(library, built):
    assert len(library.current.codebook.shelf) == 80
    item = int(built.item_ids[0])
    card = library.current.cards.card(item)
    assert card.title == built.catalogue["title"][0].as_py()
    assert tuple(card.sid) == built.sid_of(item)


def test_without_redis_the_catalogue_is_served_from_memory_and_put_back_later(library, built, keeping):
    keeping.stock.clear()
    library.sync()
    assert keeping.count(built.version) == 80
    keeping.gone = True
    assert len(library_of(built, keeping).current.codebook.shelf) == 80


def test_an_announced_video_is_served_and_known_to_the_model(library, built, keeping):
    library.made(announced(built))
    assert library.current.codebook.shelf.video(-5).generated
    assert library.current.vocabulary.sid_of(-5) == (1, 1, 1, 1)
    assert keeping.count(built.version) == 81


@pytest.mark.parametrize("changes", [{"bundle_version": "another"}, {"sid": [1, 1, 1]}, {"sid": [1, 1, 1, 8]}, {"sid": [-1, 1, 1, 1]}])
def test_a_video_that_does_not_fit_the_bundle_is_refused(library, built, changes):
    library.made(announced(built, **changes))
    assert len(library.current.codebook.shelf) == 80


def test_a_video_that_reached_the_cache_unheard_of_is_found(library, built, keeping):
    keeping.put(announced(built))
    library.sync()
    assert library.current.codebook.shelf.video(-5) is not None


def test_a_published_model_serves_with_its_bundle_and_knows_its_generated_videos(library, built):
    serving = library.serving("v00000007")
    trial(serving, 16)
    assert serving.codebook is library.current.codebook
    assert (serving.policy.version, serving.facts["watermark_ts"]) == ("v00000007", 5)
    assert library.current.vocabulary.sid_of(-9) == (1, 2, 3, 4)


def test_a_persons_history_changes_what_the_model_answers(built):
    policy = GrmPolicy("v1", Grm(replace(preset("laptop", built.code_counts), seed=3)), Vocabulary.of_bundle(built))
    nobody = Person(1, 1_000_000, Context())
    history = [HistoryEntry(int(item), 900_000 + n, 5_000, ["click"]) for n, item in enumerate(built.item_ids[:20])]
    somebody = Person(1, 1_000_000, Context(history=history))
    sids, log_prob = policy.beam([nobody, somebody], uniform(8))
    assert sids.shape == (2, 8, 4)
    assert (log_prob[:, :-1] >= log_prob[:, 1:]).all()
    assert not (log_prob[0] == log_prob[1]).all()


def test_a_search_is_as_wide_at_each_level_as_it_is_told(built):
    grm = Grm(replace(preset("laptop", built.code_counts), seed=3))
    policy = GrmPolicy("v1", grm, Vocabulary.of_bundle(built))
    person = Person(1, 1_000_000, Context())
    sids, log_prob = policy.beam([person], (1, 2, 3, 8))
    with torch.no_grad():
        expected = grm.beam(collate([person], Vocabulary.of_bundle(built), grm.config), [1, 2, 3, 8])
    assert sids.tolist() == expected.sids.tolist()
    assert log_prob.tolist() == expected.log_prob.tolist()


def test_the_model_answers_nothing_that_a_person_avoids(built):
    policy = GrmPolicy("v1", Grm(replace(preset("laptop", built.code_counts), seed=3)), Vocabulary.of_bundle(built))
    anyone = Person(1, 1_000_000, Context())
    (free,) = policy.beam([anyone], uniform(8))[0].tolist()
    avoid = [tuple(free[0]), tuple(free[1][:3])]
    wary, other = policy.beam([replace(anyone, avoid=avoid), anyone], uniform(8))[0].tolist()
    assert tuple(free[0]) not in map(tuple, wary)
    assert free[1][:3] not in [sid[:3] for sid in wary]
    assert other == free


@pytest.mark.parametrize(("capability", "serves_on"), [((8, 0), "cpu"), ((8, 9), "cpu"), ((9, 0), "cuda"), ((10, 0), "cuda")])
def test_a_gpu_that_the_kernels_are_not_made_for_is_left_alone_and_said(capability, serves_on, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    device.cache_clear()
    try:
        assert [device().type, device().type] == [serves_on] * 2
        assert sum("gpu_not_used" in line for line in caplog.messages) == (serves_on == "cpu")
    finally:
        device.cache_clear()


def test_the_search_multiplies_bfloat16_where_that_is_fast_and_where_it_is_asked_to(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for has, fastest in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(native, "matrix_unit", lambda has=has: has)
        assert products("auto", cpu) == fastest
        assert products("auto", gpu) == torch.bfloat16
        assert products("float32", cpu) == products("float32", gpu) == torch.float32
    with pytest.raises(ValueError, match=r"serving\.precision: bfloat16: this processor .*choose auto or float32"):
        products("bfloat16", cpu)


@pytest.mark.skipif(not native.matrix_unit(), reason="this processor multiplies no bfloat16 matrices")
def test_a_policy_in_bfloat16_finds_what_one_in_float32_finds_but_for_rounding(built):
    grm = Grm(replace(preset("laptop", built.code_counts), seed=3))
    vocabulary = Vocabulary.of_bundle(built)
    people = [Person(user, 1_000_000, Context()) for user in range(4)]
    exact = GrmPolicy("v1", grm, vocabulary).beam(people, uniform(32))[1]
    rounded = GrmPolicy("v1", grm, vocabulary, torch.bfloat16).beam(people, uniform(32))[1]
    assert 0 < np.abs(exact - rounded).max() < 0.05
