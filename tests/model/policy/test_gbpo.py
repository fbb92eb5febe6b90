"""GBPO: its value by hand, and the bound on its gradient."""

from __future__ import annotations

import math

import pytest
import torch

from model.policy.gbpo import gbpo_loss


def test_the_loss_is_the_bounded_ratio_times_the_advantage() -> None:
    now, old = torch.tensor([0.2, 0.5, 0.3, 0.01], dtype=torch.float64), torch.tensor([0.4, 0.1, 0.1, 0.9], dtype=torch.float64)
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    expected = -(0.2 / 0.4 + 1.0 - 0.3 / 0.7 - 0.01 / 0.99) / 4
    assert gbpo_loss(now.log(), old.log(), advantage).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("old", [1e-12, 1e-3, 0.5])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_the_gradient_is_never_larger_than_that_of_the_cross_entropy(old: float, advantage: float) -> None:
    for probability in (1e-6, 0.01, 0.3, 0.9, 0.999):
        log_prob = torch.tensor([math.log(probability)], dtype=torch.float64, requires_grad=True)
        gbpo_loss(log_prob, torch.tensor([math.log(old)], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)).backward()
        assert log_prob.grad is not None
        by_probability = abs(log_prob.grad.item()) / probability
        assert by_probability <= (1 / probability if advantage > 0 else 1 / (1 - probability)) * (1 + 1e-9)


def test_without_the_old_policy_a_sample_counts_as_its_own() -> None:
    log_prob = torch.tensor([-2.0, -3.0, -1.0], dtype=torch.float64)
    old = torch.tensor([math.nan, math.nan, 0.0], dtype=torch.float64)
    assert gbpo_loss(log_prob, old, torch.ones(3, dtype=torch.float64)).item() == pytest.approx(-(2 + math.exp(-1)) / 3)


def test_a_row_that_is_no_number_is_named() -> None:
    with pytest.raises(ValueError, match="row 1: advantage is NaN"):
        gbpo_loss(torch.zeros(2) - 1, torch.zeros(2) - 1, torch.tensor([1.0, float("nan")]))
