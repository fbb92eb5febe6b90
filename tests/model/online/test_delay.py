"""Delayed feedback on simulated conversions whose true rates and delays are known."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from model.online.delay import MODES, Arrivals, Mode, delayed_loss, ingested, weights

RATES = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
LATE_SHARE = torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)  # of the conversions, after the waiting window
PEOPLE = 40_000


def handed_over(mode: Mode) -> tuple[torch.Tensor, torch.Tensor]:
    """(group int64[N], label float64[N]) as the mode's pipeline would hand them over."""
    generator = torch.Generator().manual_seed(7)
    group = torch.arange(3).repeat_interleave(PEOPLE)
    converts = torch.rand(len(group), generator=generator, dtype=torch.float64) < RATES[group]
    late = converts & (torch.rand(len(group), generator=generator, dtype=torch.float64) < LATE_SHARE[group])
    first = {"wait": converts, "fnw": torch.zeros_like(converts), "es_dfm": converts & ~late, "defer": converts & ~late}[mode]
    again = {"wait": torch.zeros_like(late), "fnw": converts, "es_dfm": late, "defer": torch.ones_like(late)}[mode]
    return torch.cat([group, group[again]]), torch.cat([first, converts[again]]).double()


def fitted(mode: Mode, corrected: bool) -> torch.Tensor:
    """Rate of each group after Newton-sized gradient steps on the counts of (group, label)."""
    group, label = handed_over(mode)
    cells = [(place, value, int(((group == place) & (label == value)).sum())) for place in range(3) for value in (0.0, 1.0)]
    places, labels = torch.tensor([cell[0] for cell in cells]), torch.tensor([cell[1] for cell in cells], dtype=torch.float64)
    share = torch.tensor([cell[2] for cell in cells], dtype=torch.float64) / PEOPLE
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    late = (RATES * LATE_SHARE)[places]
    for _ in range(400):
        of = logits[places]
        weight = weights(mode, labels, torch.sigmoid(of), late) if corrected else torch.ones_like(of)
        loss = (share * weight * functional.binary_cross_entropy_with_logits(of, labels, reduction="none")).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= 2 * gradient
    return torch.sigmoid(logits).detach()


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_finds_the_true_rates(mode: Mode) -> None:
    torch.testing.assert_close(fitted(mode, True), RATES, atol=0.01, rtol=0.03)


@pytest.mark.parametrize("mode", ["fnw", "es_dfm", "defer"])
def test_without_its_weights_a_mode_finds_less_than_the_true_rates(mode: Mode) -> None:
    assert (fitted(mode, False)[1:] < RATES[1:] - 0.03).all()


def test_gradients_are_those_of_finite_differences_with_weights_held() -> None:
    logits = torch.tensor([0.3, -1.0], dtype=torch.float64, requires_grad=True)
    labels, late = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.1, 0.2], dtype=torch.float64)
    worth = torch.tensor([1.0, 2.5], dtype=torch.float64)
    delayed_loss("es_dfm", logits, labels, late, worth).backward()
    weight = worth * weights("es_dfm", labels, torch.sigmoid(logits), late)
    torch.testing.assert_close(logits.grad, (weight * (torch.sigmoid(logits) - labels) / 2).detach())


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of wait, fnw, es_dfm, defer"):
        weights("later", torch.zeros(1), torch.zeros(1), torch.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected one of wait, fnw, es_dfm, defer"):
        ingested("later", Arrivals(*(torch.zeros(1, dtype=torch.bool),) * 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("wait", [(4, 0), (5, 1)]),
        ("fnw", [(0, 0), (1, 0), (1, 1), (2, 1), (3, 1)]),
        ("es_dfm", [(0, 0), (1, 1), (2, 1), (3, 1)]),
        ("defer", [(0, 0), (1, 1), (4, 0), (5, 1)]),
    ],
)
def test_a_mode_ingests_what_its_pipeline_would(mode: Mode, expected: list[tuple[int, int]]) -> None:
    arrivals = Arrivals(torch.tensor([False, True]), torch.tensor([True, True]), torch.tensor([False, True]))
    places, labels = ingested(mode, arrivals)
    assert sorted(zip(places.tolist(), labels.int().tolist(), strict=True)) == expected
