"""A small world for the model's tests: a catalogue, people with one favourite subject each, and their samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels import native
from model.grm import Grm, GrmConfig, Vocabulary
from model.online.publish import Publisher, load_current
from model.online.step import OnlineLearner
from model.store import ModelStore
from streaming.records import Context, HistoryEntry, Labels, Sample
from tests.kernels.marks import FUSED

CODES = (6, 5, 4)
ITEMS = 60
USERS = 24
START_MS = 1_700_000_000_000


@dataclass
class SmallWorld:
    """Videos with known SIDs; user u likes subject u % 6, that is, the first code."""

    vocabulary: Vocabulary
    sids: np.ndarray
    seed: int

    def samples(self, count: int) -> list[Sample]:
        """Initial samples in time order; histories grow as people watch."""
        rng = np.random.default_rng(self.seed)
        histories: dict[int, list[HistoryEntry]] = {}
        found = []
        for index in range(count):
            user, item, ts = int(rng.integers(USERS)), int(rng.integers(ITEMS)), START_MS + index * 1000
            if rng.random() < 0.5:
                item -= (item - user) % CODES[0]  # half of what is shown suits
            item %= ITEMS
            liked = int(self.sids[item, 0]) == user % CODES[0]
            play_ms = 20_000 if liked else 500
            found.append(
                Sample(
                    sample_id=f"{index}:initial",
                    kind="initial",
                    impression_id=f"{index}",
                    user_id=user,
                    item_id=item,
                    ts=ts,
                    ready_ts=ts + 60_000,
                    labels=Labels(click=int(liked), like=0, follow=0, comment=0, share=0, hate=0, play_ms=play_ms, long_view=int(liked)),
                    context=Context(list(histories.get(user, []))),
                )
            )
            seen = [HistoryEntry(item, ts + 100, None, ["click"])] * liked + [HistoryEntry(item, ts + play_ms, play_ms)]
            histories[user] = [*reversed(seen), *histories.get(user, [])][:20]
        return found


def small_world(seed: int = 0) -> SmallWorld:
    rng = np.random.default_rng(1234)
    sids = np.stack([rng.integers(size, size=ITEMS) for size in CODES], 1).astype(np.int32)
    sids[:, 0] = np.arange(ITEMS) % CODES[0]
    vocabulary = Vocabulary(np.arange(ITEMS), sids, rng.integers(5_000, 60_000, ITEMS), np.arange(ITEMS) % 12, CODES)
    return SmallWorld(vocabulary, sids, seed)


def small_config(**changes: object) -> GrmConfig:
    sizes: dict[str, object] = {
        "codes": CODES,
        "d_model": 32,
        "layers": 2,
        "heads": 4,
        "self_groups": 2,
        "ffn": 64,
        "context_hidden": 32,
        "d_sparse": 16,
        "user_rows": 64,
        "item_rows": 128,
        "prefix_rows": 128,
        "d_prefix": 8,
        "history": 8,
        **changes,
    }
    return GrmConfig(**sizes)  # type: ignore[arg-type]


def published(target: OnlineLearner, folder: Path) -> Grm:
    """What a server would load of the learner's model."""
    publisher = Publisher(ModelStore(folder), "b1")
    taken = publisher.take(target.model, target.fitter.take_touched(), {})
    publisher.publish(taken, target.model.config, offsets={}, watermark_ts=0, samples_trained=0, metrics={})
    return load_current(ModelStore(folder)).model


@pytest.fixture
def world() -> SmallWorld:
    return small_world()


@pytest.fixture
def model() -> Grm:
    return Grm(small_config())


@pytest.fixture(params=["compiled", "torch"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What searches on this CPU: the compiled library, or the operations of torch that a machine without it has."""
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif not FUSED:
        pytest.skip("a processor without fused multiply-add")
    else:
        assert native.library() is not None
    return str(request.param)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
