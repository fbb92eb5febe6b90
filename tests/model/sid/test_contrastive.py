"""Heads: losses as their formulas say in float64, gradients that are right, and two factors that come apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.sid import contrastive, cooccurrence
from model.sid.contrastive import Factor, HeadConfig
from model.sid.cooccurrence import Pairs

CONFIG = HeadConfig(dimensions=6, batch=64, steps=60, lr=1e-2, dropout=0.0, temperature=0.1)


def unit(rows: int, dimensions: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dimensions, generator=generator, dtype=torch.float64), dim=-1)


def info_nce(anchor: np.ndarray, positive: np.ndarray, left: list[int], right: list[int], temperature: float) -> float:
    """Eq. 6, one sum at a time."""
    total = 0.0
    for i in range(len(left)):
        denominator = sum(
            np.exp(anchor[i] @ positive[k] / temperature)
            for k in range(len(left))
            if k == i or (right[k] != left[i] and right[k] != right[i])
        )
        total -= np.log(np.exp(anchor[i] @ positive[i] / temperature) / denominator)
    return total / len(left)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_contrastive_loss_is_that_of_the_formula_where_items_repeat(temperature: float) -> None:
    anchor, positive = unit(9, 5, 0), unit(9, 5, 1)
    left, right = [0, 1, 2, 3, 4, 5, 0, 7, 8], [1, 0, 5, 3, 9, 10, 11, 12, 13]
    found = contrastive.contrastive(anchor, positive, torch.tensor(left), torch.tensor(right), temperature)
    assert abs(float(found) - info_nce(anchor.numpy(), positive.numpy(), left, right, temperature)) < 1e-12
    single = contrastive.contrastive(anchor.float(), positive.float(), torch.tensor(left), torch.tensor(right), temperature)
    assert abs(float(single) - float(found)) < 1e-4


def test_orthogonality_is_that_of_both_formulas() -> None:
    content, creative = unit(20, 4, 2), unit(20, 4, 3)
    one, other = content.numpy(), creative.numpy()
    items = np.mean([float(a @ b) ** 2 for a, b in zip(one, other, strict=True)])
    covariance = np.zeros((4, 4))
    for a, b in zip(one - one.mean(axis=0), other - other.mean(axis=0), strict=True):
        covariance += np.outer(a, b) / 20
    assert abs(float(contrastive.orthogonality(content, creative, "items")) - items) < 1e-12
    assert abs(float(contrastive.orthogonality(content, creative, "dimensions")) - (covariance**2).sum()) < 1e-12


@pytest.mark.parametrize("over", ["dimensions", "items"])
def test_gradients_agree_with_differences(over: str) -> None:
    left, right = torch.tensor([0, 1, 2, 0, 4]), torch.tensor([5, 6, 0, 8, 9])
    inputs = [unit(5, 3, seed).requires_grad_() for seed in (4, 5)]
    assert torch.autograd.gradcheck(lambda a, p: contrastive.contrastive(a, p, left, right, 0.3), inputs)
    assert torch.autograd.gradcheck(lambda a, p: contrastive.orthogonality(a, p, over), inputs)  # type: ignore[arg-type]


def two_factors(items: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States that mix a subject and a style, and which of them each item has."""
    rng = np.random.default_rng(0)
    subject, style = rng.integers(6, size=items), rng.integers(6, size=items)
    mixing = rng.standard_normal((12, 24))
    states = np.concatenate([np.eye(6)[subject], np.eye(6)[style]], axis=1) @ mixing + 0.1 * rng.standard_normal((items, 24))
    return states.astype(np.float32), subject, style


def fitted(config: HeadConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, float]]:
    states, subject, style = two_factors()
    last: dict[str, float] = {}
    heads = contrastive.fit(
        Factor(states, cooccurrence.same(subject)), Factor(states, cooccurrence.same(style)), config, lambda _, losses: last.update(losses)
    )
    return *heads.embed(states, states), subject, style, last


def explained(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Share of the variance that lies between labels."""
    centred = vectors - vectors.mean(axis=0)
    between = sum((labels == label).sum() * (centred[labels == label].mean(axis=0) ** 2).sum() for label in np.unique(labels))
    return float(between / (centred**2).sum())


def test_each_head_finds_its_factor_and_leaves_the_other_out() -> None:
    content, creative, subject, style, _ = fitted(CONFIG)
    assert np.allclose(np.linalg.norm(content, axis=1), 1, atol=1e-5)
    assert explained(content, subject) > 0.8 and explained(creative, style) > 0.8
    assert explained(content, style) < 0.1 and explained(creative, subject) < 0.1


def test_the_penalty_takes_correlation_between_the_heads_away() -> None:
    states, subject, _ = two_factors()
    pairs = cooccurrence.same(subject)

    def correlation(gamma2: float) -> float:
        content, creative = contrastive.fit(Factor(states, pairs), Factor(states, pairs), replace(CONFIG, gamma2=gamma2)).embed(
            states, states
        )
        return float(contrastive.orthogonality(torch.from_numpy(content), torch.from_numpy(creative), "dimensions"))

    assert correlation(100.0) < 0.2 * correlation(0.0)


def test_the_loss_of_a_tiny_set_goes_to_nothing_and_a_seed_fixes_the_bits() -> None:
    states = np.random.default_rng(1).standard_normal((8, 16)).astype(np.float32)
    itself = Pairs(np.arange(8), np.arange(8), np.ones(8, np.float32))
    config = replace(CONFIG, batch=32, gamma2=0.0)
    last: dict[str, float] = {}
    heads = contrastive.fit(Factor(states, itself), Factor(states, itself), config, lambda _, losses: last.update(losses))
    assert last["content"] < 0.02 and last["creative"] < 0.02
    again = contrastive.fit(Factor(states, itself), Factor(states, itself), config)
    assert all(torch.equal(a, b) for a, b in zip(heads.state_dict().values(), again.state_dict().values(), strict=True))


def test_what_cannot_be_learned_from_is_refused() -> None:
    states, subject, _ = two_factors(30)
    pairs, nothing = cooccurrence.same(subject), cooccurrence.same(np.full(30, -1))
    with pytest.raises(ValueError, match="creative: no pair belongs together"):
        contrastive.fit(Factor(states, pairs), Factor(states, nothing), CONFIG)
    with pytest.raises(ValueError, match="30 items for content and of 29"):
        contrastive.fit(Factor(states, pairs), Factor(states[:29], pairs), CONFIG)
    broken = states.copy()
    broken[17] = np.nan
    with pytest.raises(ValueError, match="row 17 of the embeddings is not finite"):
        contrastive.fit(Factor(broken, pairs), Factor(states, pairs), CONFIG)
