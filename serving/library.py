"""The bundles that serve: each with its videos (from the SID cache), their cards, and the model's vocabulary of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from model.grm.inputs import Vocabulary
from model.online.publish import Published
from model.sid.bundle import Bundle
from serving.cache import CachedVideo, CacheGone, SidCache, catalogue_videos, generated_video
from serving.candidates import Shelf
from serving.cards import Cards
from serving.model import Codebook, Serving
from serving.policy import GrmPolicy, device, moved
from streaming import records

log = logging.getLogger(f"sidstream.{__name__}")

BUNDLES_KEPT = 2  # the one that serves, and the one before it for a rollback


@dataclass(frozen=True)
class Shelved:
    """A bundle made ready to serve."""

    codebook: Codebook
    cards: Cards
    vocabulary: Vocabulary

    def add(self, video: CachedVideo) -> None:
        """Take in a video that was generated."""
        self.vocabulary.learn(video.item_id, video.sid)
        self.codebook.shelf.add([video])


class Library:
    """Loads bundles and models, and keeps their videos up to date with the cache.

    Args:
        load_bundle: version, or None for the current one -> bundle.
        load_model: version -> published model.
        products: of searches, see `serving.policy.products`.
    """

    def __init__(
        self,
        load_bundle: Callable[[str | None], Bundle],
        load_model: Callable[[str], Published],
        cache: SidCache,
        products: torch.dtype = torch.float32,
    ) -> None:
        self._products = products
        self._load_bundle = load_bundle
        self._load_model = load_model
        self._cache = cache
        self._lock = threading.Lock()
        self._shelved: dict[str, Shelved] = {}
        self.current: Shelved | None = None

    def open(self) -> Shelved:
        """Make the store's current bundle the one that serves until a model says otherwise."""
        self.current = self._shelve(None)
        return self.current

    def serving(self, version: str) -> Serving:
        """A published model with its bundle."""
        published = self._load_model(version)
        manifest = published.manifest
        shelved = self._shelved.get(manifest.bundle_version) or self._shelve(manifest.bundle_version)
        for item_id, sid in published.generated.items():
            shelved.vocabulary.learn(item_id, sid)
        facts = {"watermark_ts": manifest.watermark_ts, "samples_trained": manifest.samples_trained, "metrics": manifest.metrics}
        model = moved(published.model, device(), self._products)
        return Serving(GrmPolicy(manifest.version, model, shelved.vocabulary, self._products), shelved.codebook, facts)

    def serves(self, codebook: Codebook) -> None:
        """A model of this bundle serves now."""
        self.current = self._shelved.get(codebook.version, self.current)

    def made(self, video: records.Video) -> None:
        """A video was announced: serve it, and make sure that the cache has it, whoever made it."""
        shelved = self._shelved.get(video.bundle_version)
        if shelved is None or not shelved.vocabulary.valid(video.sid):
            log.warning("event=video_refused bundle=%s sid=%s", video.bundle_version, video.sid)
            return
        shelved.add(generated_video(video, time.time_ns() // 1_000_000))
        try:
            self._cache.put(video)
        except CacheGone:
            log.warning("event=video_not_cached item=%d", video.item_id)

    def sync(self) -> None:
        """Take in videos that reached the cache without being heard of, and put the catalogue back where Redis lost it."""
        for version, shelved in list(self._shelved.items()):
            shelf = shelved.codebook.shelf
            count = self._cache.count(version)
            if count < len(shelf):
                self._cache.restore(version, shelf.items(), shelved.codebook.content_levels)
            elif count > len(shelf):
                for video in self._cache.videos(version):
                    if shelf.video(video.item_id) is None:
                        shelved.add(video)

    def rate(self, ratings: Mapping[int, float]) -> None:
        """Tell the cache how well videos do."""
        if self.current is None:
            return
        codebook = self.current.codebook
        known = {video: rating for item, rating in ratings.items() if (video := codebook.shelf.video(item)) is not None}
        self._cache.rate(codebook.version, known)

    def _shelve(self, version: str | None) -> Shelved:
        with self._lock:
            bundle = self._load_bundle(version)
            if bundle.version in self._shelved:
                return self._shelved[bundle.version]
            now_ms = time.time_ns() // 1_000_000
            try:
                seeded = self._cache.seed(bundle, now_ms=now_ms)
                videos = self._cache.videos(bundle.version)
                log.info("event=bundle_ready version=%s videos=%d seeded=%d", bundle.version, len(videos), seeded)
            except CacheGone:
                videos = catalogue_videos(bundle, now_ms)
                log.warning("event=bundle_not_cached version=%s", bundle.version)
            codebook = Codebook(bundle.version, bundle.content_levels, bundle.code_counts, Shelf(places(bundle), videos))
            shelved = Shelved(codebook, Cards(codebook, bundle.catalogue), Vocabulary.of_bundle(bundle))
            for video in videos:
                shelved.vocabulary.learn(video.item_id, video.sid)
            while len(self._shelved) >= BUNDLES_KEPT:
                del self._shelved[next(iter(self._shelved))]
            self._shelved[bundle.version] = shelved
            return shelved


def places(bundle: Bundle) -> Callable[[npt.NDArray[np.int32]], npt.NDArray[np.float32]]:
    """Where SIDs are: int32[M, L] -> float32[M, d], the content embedding beside the creative one."""

    def place(sids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        return np.concatenate(bundle.embeddings_of(sids), axis=1)

    return place
