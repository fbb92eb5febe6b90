"""Beam search: exact where it can be, ordered, shared, and constrained."""

from __future__ import annotations

import itertools

import pytest
import torch

from kernels.trie import Trie
from model.grm import Grm, Query, collate
from streaming.records import Context, HistoryEntry
from tests.model.conftest import CODES, START_MS, SmallWorld, small_config, small_world

EVERY_SID = list(itertools.product(*(range(size) for size in CODES)))


def people(count: int) -> list[Query]:
    return [
        Query(user, START_MS, Context([HistoryEntry(user * 3 + n, START_MS - n * 5000, 4000) for n in range(user)]))
        for user in range(count)
    ]


@pytest.fixture
def trained() -> Grm:
    """Weights that differ from person to person and from code to code."""
    model = Grm(small_config())
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in model.dense_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        model.tables()["prefix"].add_(torch.randn_like(model.tables()["prefix"]))
    return model


def exhaustive(model: Grm, person: Query) -> torch.Tensor:
    """Log-probability of every SID."""
    batch = collate([person] * len(EVERY_SID), small_world().vocabulary, model.config).with_targets(EVERY_SID)
    return model.log_prob(batch).sum(1).detach()


def test_wide_enough_beams_find_what_trying_every_sid_finds(trained: Grm, world: SmallWorld) -> None:
    asked = people(3)
    found = trained.beam(collate(asked, world.vocabulary, trained.config), [6, 30, 20])
    for row, person in enumerate(asked):
        score, order = exhaustive(trained, person).topk(20)
        assert found.sids[row].tolist() == [list(EVERY_SID[index]) for index in order]
        torch.testing.assert_close(found.log_prob[row], score, rtol=1e-5, atol=1e-5)


def test_a_narrow_beam_scores_its_sids_as_the_model_does(trained: Grm, world: SmallWorld) -> None:
    asked = people(2)
    found = trained.beam(collate(asked, world.vocabulary, trained.config), [2, 3, 5])
    assert found.sids.shape == (2, 5, 3)
    assert (found.log_prob.diff(dim=1) <= 0).all()
    for row, person in enumerate(asked):
        batch = collate([person] * 5, world.vocabulary, trained.config).with_targets(found.sids[row].tolist())
        torch.testing.assert_close(trained.log_prob(batch).sum(1).detach(), found.log_prob[row], rtol=1e-5, atol=1e-5)


def test_a_request_gets_the_same_beams_alone_and_in_company(trained: Grm, world: SmallWorld) -> None:
    asked = people(4)
    together = trained.beam(collate(asked, world.vocabulary, trained.config), [4, 8, 8])
    for row, person in enumerate(asked):
        alone = trained.beam(collate([person], world.vocabulary, trained.config), [4, 8, 8])
        assert torch.equal(together.sids[row], alone.sids[0])


def test_a_trie_allows_only_its_sids_and_does_not_change_how_likely_they_are(trained: Grm, world: SmallWorld) -> None:
    allowed = [EVERY_SID[index] for index in (3, 40, 41, 77, 119)]
    found = trained.beam(collate(people(2), world.vocabulary, trained.config), [6, 30, 8], Trie.build(torch.tensor(allowed), CODES))
    for row, person in enumerate(people(2)):
        every = exhaustive(trained, person)
        expected = sorted(((every[EVERY_SID.index(sid)].item(), sid) for sid in allowed), reverse=True)
        assert [tuple(sid) for sid in found.sids[row, :5].tolist()] == [sid for _, sid in expected]
        assert found.log_prob[row, :5].tolist() == pytest.approx([score for score, _ in expected], rel=1e-4)
        assert (found.log_prob[row, 5:] == float("-inf")).all()
        assert (found.sids[row, 5:] == -1).all()


def test_widths_that_do_not_fit_are_refused(trained: Grm, world: SmallWorld) -> None:
    batch = collate(people(1), world.vocabulary, trained.config)
    for widths in ([4, 4], [4, 0, 4], [4, 4, 4, 4]):
        with pytest.raises(ValueError, match="one per level"):
            trained.beam(batch, widths)
