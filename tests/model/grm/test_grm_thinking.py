"""S²GR on a lazy trunk: the loss is that of its formula, the clusters are those of the codebooks, and a search does not know of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from model.grm import Grm, GrmConfig, Query, collate
from model.grm.fit import Fitter
from model.grm.thinking import TEMPERATURE, Thinking
from model.online.step import LearnerConfig, LearnerState, OnlineLearner
from model.sid import quantizer
from streaming.records import Context, HistoryEntry
from tests.model.conftest import CODES, START_MS, SmallWorld, published, small_config, small_world

CLUSTERS = 3


def codebooks(width: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((size, width)).astype(np.float32) for size in CODES]


def thoughtful(**changes: object) -> Grm:
    model = Grm(small_config(lazy_trunk=1, thinking=CLUSTERS, **changes))
    assert model.thinking is not None
    model.thinking.use(codebooks())
    return model


@pytest.mark.parametrize("width", [2, 7, 100])  # narrower than there are clusters, and wider than the model
def test_the_loss_is_that_of_its_formula_in_the_codebooks_own_space(width: int) -> None:
    torch.manual_seed(0)
    thinking, books = Thinking(small_config(lazy_trunk=1, thinking=CLUSTERS)).double(), codebooks(width)
    thinking.use(books)
    trunk, targets = torch.randn(5, 3, 32, dtype=torch.float64), torch.tensor([[0, 1, 2], [5, 4, 3], [1, 0, 0], [2, 2, 1], [3, 3, 3]])
    found = thinking(trunk, targets)
    for level, book in enumerate(books):
        centres = quantizer.fit(book, 1, CLUSTERS, 0)[0].astype(np.float64)
        # The thought in the codebook's space: W t in coordinates of an orthonormal basis of what the centres span.
        basis, _ = np.linalg.qr(centres.T)
        for row in range(5):
            thought = thinking.levels[level].project.weight.detach().numpy() @ trunk[row, level].numpy()  # type: ignore[union-attr, operator]
            inside = basis @ thought[: basis.shape[1]]
            cosines = [inside @ centre / np.linalg.norm(thought) / np.linalg.norm(centre) for centre in centres]
            code = book[int(targets[row, level])].astype(np.float64)
            own = min(range(CLUSTERS), key=lambda cluster: float(((code - centres[cluster]) ** 2).sum()))
            expected = cosines[own] / TEMPERATURE - math.log(sum(math.exp(cosine / TEMPERATURE) for cosine in cosines))
            assert found[row, level].item() == pytest.approx(expected, rel=1e-4)  # centres are float32


def test_gradients_are_those_of_finite_differences() -> None:
    thinking = Thinking(small_config(lazy_trunk=1, thinking=CLUSTERS)).double()
    thinking.use(codebooks())
    trunk = torch.randn(2, 3, 32, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda states: thinking(states, torch.tensor([[0, 1, 2], [5, 4, 3]])), (trunk,))


def test_clusters_go_where_the_model_goes_and_are_not_in_its_state() -> None:
    model = thoughtful()
    assert not [name for name in model.state_dict() if "centres" in name or "cluster_of" in name]
    assert model.thinking is not None
    assert all(level.centres.dtype == torch.float64 for level in model.thinking.double().levels)


def test_a_level_without_different_code_vectors_has_nothing_to_tell() -> None:
    thinking, books = Thinking(small_config(lazy_trunk=1, thinking=CLUSTERS)), codebooks()
    books[2] = np.zeros_like(books[2])  # a level that is a hash
    thinking.use(books)
    assert (thinking(torch.randn(4, 3, 32), torch.zeros(4, 3, dtype=torch.int64))[:, 2] == 0).all()


def test_the_trunk_learns_the_clusters_of_what_is_watched_and_codes_are_scored_as_ever(world: SmallWorld) -> None:
    rows = [Query(user, START_MS, Context([HistoryEntry(user * 2, START_MS - 100, 9000)])) for user in range(8)]
    model = thoughtful()
    batch = collate(rows, world.vocabulary, model.config).with_targets([world.sids[user * 7].tolist() for user in range(8)])
    plain = Grm(small_config(lazy_trunk=1))
    assert torch.equal(model.log_prob(batch), plain.log_prob(batch))
    fitter = Fitter(model)
    first, last = (fitter.step(batch, torch.ones(8))[0] for _ in range(2))
    thoughts = [model(batch).auxiliary]
    for _ in range(80):
        fitter.step(batch, torch.ones(8))
    thoughts.append(model(batch).auxiliary)
    assert first.log_prob.mean() < last.log_prob.mean()
    assert thoughts[0] is not None
    assert thoughts[1] is not None
    assert thoughts[1].mean() > thoughts[0].mean() / 4


def test_it_continues_bit_for_bit_and_is_published_and_searched_without_codebooks(tmp_path: Path, world: SmallWorld) -> None:
    config = LearnerConfig(window=100, beam=6, recall_share=0.2)
    target, resumed = (OnlineLearner(thoughtful(), small_world().vocabulary, config) for _ in range(2))
    samples = world.samples(192)
    target.step(samples[:96])
    resumed.restore(LearnerState(**vars(target.state())))
    for learner in (target, resumed):
        learner.step(samples[96:])
    one, two = target.state().tensors, resumed.state().tensors
    assert all(torch.equal(one[name], two[name]) for name in one)
    served = published(target, tmp_path)
    batch = collate([Query(1, START_MS, Context())], world.vocabulary, served.config)
    assert torch.equal(target.model.beam(batch, [4, 8, 8]).log_prob, served.beam(batch, [4, 8, 8]).log_prob)


def test_training_without_codebooks_is_refused_and_so_are_those_of_another_model() -> None:
    with pytest.raises(ValueError, match=r"call thinking\.use first"):
        Fitter(Grm(small_config(lazy_trunk=1, thinking=CLUSTERS)))
    with pytest.raises(ValueError, match="expected"):
        Thinking(small_config(lazy_trunk=1, thinking=CLUSTERS)).use(codebooks()[:2])


@pytest.mark.parametrize("changes", [{"thinking": 3}, {"lazy_trunk": 1, "thinking": 5}, {"lazy_trunk": 1, "thinking": -1}])
def test_thoughts_that_cannot_be_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="thinking is"):
        small_config(**changes)


def test_without_the_option_model_and_configuration_are_as_they_were() -> None:
    plain = small_config(lazy_trunk=1)
    assert "thinking" not in plain.to_json()
    assert not [name for name in Grm(plain).state_dict() if "thinking" in name]
    asked = small_config(lazy_trunk=1, thinking=CLUSTERS)
    assert GrmConfig.from_json(asked.to_json()) == asked
