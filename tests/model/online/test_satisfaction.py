"""Duration-aware satisfaction: thresholds, restoration against exact integrals, and ranks that do not follow the duration."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.online.satisfaction import DurationRank, cread_loss, restore, thresholds


def test_thresholds_hold_equally_many_watches_and_alpha_moves_them_to_the_tail() -> None:
    watch = torch.arange(1, 1001, dtype=torch.float64)
    even, tail = thresholds(watch, 4), thresholds(watch, 4, 3.0)
    assert even.tolist() == pytest.approx([250.75, 500.5, 750.25, 1000])
    assert tail[-1] == even[-1]
    assert (tail[:-1] > even[:-1]).all()


def test_times_that_repeat_give_no_empty_class() -> None:
    assert thresholds(torch.tensor([0.0, 0.0, 5.0, 5.0]), 8).tolist()[-1] == 5.0
    assert (thresholds(torch.tensor([0.0, 0.0, 5.0, 5.0]), 8).diff() > 0).all()


def test_the_restored_time_of_an_exponential_survival_is_its_mean() -> None:
    at = torch.linspace(0, 100, 2001, dtype=torch.float64)[1:]
    mean = torch.tensor([[3.0], [7.0]], dtype=torch.float64)
    torch.testing.assert_close(restore(torch.exp(-at / mean), at), mean.squeeze(1), rtol=1e-4, atol=0)


def test_the_loss_falls_to_the_shares_that_were_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    watch = -torch.log(torch.rand(4000, generator=generator, dtype=torch.float64)) * 5
    at = thresholds(watch, 20)
    logits = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        cread_loss(logits.expand(len(watch), -1), watch, at, restored=0.0).backward()
        optimizer.step()
    torch.testing.assert_close(torch.sigmoid(logits.detach())[:-1], (watch[:, None] > at).double().mean(0)[:-1], atol=0.01, rtol=0)


def test_its_gradients_are_those_of_finite_differences() -> None:
    at = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    watch = torch.tensor([0.5, 3.0, 9.0], dtype=torch.float64)
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: cread_loss(given, watch, at, ordered=0.5), (logits,))


def test_a_time_that_is_none_is_refused_with_its_row() -> None:
    with pytest.raises(ValueError, match="row 1: watch time is nan"):
        thresholds(torch.tensor([1.0, float("nan")]), 4)


def test_ranks_do_not_follow_the_duration() -> None:
    rng, ranked = np.random.default_rng(0), DurationRank()
    durations = rng.integers(5_000, 120_000, 4000)
    shares = rng.random(4000)
    found = [ranked.rank(int(duration * share), int(duration)) for duration, share in zip(durations, shares, strict=True)]
    known = [(duration, rank) for duration, rank in zip(durations, found, strict=True) if rank is not None]
    assert abs(np.corrcoef(np.array(known).T)[0, 1]) < 0.15  # a bucket holds durations up to a factor of 1.5
    assert found[:20] == [None] * 20
    assert ranked.rank(10, 0) is None
    with pytest.raises(ValueError, match="play_ms is -1"):
        ranked.rank(-1, 1000)
