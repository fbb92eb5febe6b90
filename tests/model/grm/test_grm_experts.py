"""Mixture of experts: its formula, its balance, and that it learns, searches and travels like any other weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.grm import Grm, Query, collate
from model.grm.decoder import BALANCE_RATE, Experts
from model.online.step import LearnerConfig, OnlineLearner
from streaming.records import Context
from tests.model.conftest import START_MS, SmallWorld, published, small_config


def experts() -> Experts:
    torch.manual_seed(0)
    return Experts(small_config(d_model=8, heads=2, ffn=12, experts=4)).double()


def test_a_position_gets_the_mean_of_its_best_experts_by_score() -> None:
    mixture, hidden = experts().eval(), torch.randn(2, 1, 3, 8, dtype=torch.float64)
    found = mixture(hidden)
    for place in ((0, 0, 0), (1, 0, 2)):
        vector = hidden[place]
        scores = 1 / (1 + torch.exp(-mixture.router.weight @ vector))
        best = sorted(range(4), key=lambda index: -scores[index].item())[:2]
        parts = [
            scores[i] * (mixture.experts[i].out.weight @ torch.clamp(mixture.experts[i].inner.weight @ vector, min=0) ** 2) for i in best
        ]
        torch.testing.assert_close(found[place], sum(parts) / sum(scores[i] for i in best))


def test_an_expert_that_is_used_too_much_is_chosen_less() -> None:
    mixture = experts()
    mixture.balance.data[0] = 5.0
    mixture(torch.randn(4, 1, 3, 8, dtype=torch.float64))
    assert mixture.balance[0].item() == pytest.approx(5.0 - BALANCE_RATE)
    before = mixture.balance.clone()
    with torch.no_grad():
        mixture(torch.randn(4, 1, 3, 8, dtype=torch.float64))
    assert torch.equal(before, mixture.balance)


def test_gradients_are_those_of_finite_differences() -> None:
    hidden = torch.randn(1, 1, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(experts().eval(), (hidden,))


def test_a_model_of_experts_learns_online_and_is_published_whole(tmp_path: Path, world: SmallWorld) -> None:
    target = OnlineLearner(Grm(small_config(experts=3)), world.vocabulary, LearnerConfig(beam=6, recall_share=0.1))
    for start in range(0, 192, 64):
        target.step(world.samples(192)[start : start + 64])
    assert any(name.endswith("balance") and parameter.any() for name, parameter in target.model.dense_parameters())
    asked = collate([Query(1, START_MS, Context())], world.vocabulary, target.model.config)
    one, two = target.model.beam(asked, [4, 4, 4]), published(target, tmp_path).beam(asked, [4, 4, 4])
    assert torch.equal(one.sids, two.sids)
    assert torch.equal(one.log_prob, two.log_prob)


def test_more_active_experts_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="experts_active is 5"):
        small_config(experts=4, experts_active=5)
