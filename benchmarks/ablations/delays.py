"""Delayed-feedback modes where the truth is known: conversions whose rate drifts and whose delay depends on the same features.

A logistic model learns online from what a mode ingests, in event time, and is asked about every impression before anything is known of it.
What is reported is its divergence from the true rate, not from noisy labels. `at once` is what cannot be had: every label without
delay. `uncorrected` ingests as ES-DFM does and leaves its weights out. ES-DFM and DEFER read p(late), which a second model learns when
attribution ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from model.online.delay import MODES, Mode, weights

FEATURES: Final = 8
WAIT, ATTRIBUTION = 0.02, 0.25
"""Shares of the whole time: how long a sample waits for its label, and how long a conversion counts."""
BATCH: Final = 32
RATE: Final = 0.2
PIPELINES: Final = ("at once", "uncorrected", *MODES)


@dataclass(frozen=True)
class World:
    """N impressions at equal distances over time 0 … 1: features float64[N, F] with a constant, true rates float64[N], conversion delays
    float64[N], infinite where nothing comes within the attribution window."""

    features: Tensor
    truth: Tensor
    delay: Tensor


def world(count: int, seed: int) -> World:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
    features[:, 0] = 1.0
    before, after, slowness = torch.randn(3, FEATURES, generator=generator, dtype=torch.float64) * 0.5
    before[0] = after[0] = -1.5
    turn = torch.linspace(0, torch.pi / 2, count, dtype=torch.float64).unsqueeze(1)
    drifting = before * turn.cos() + after * turn.sin()
    drifting[:, 0] = -1.5
    mean = 0.06 * torch.exp((features[:, 1:] * slowness[1:]).sum(1))
    ends = -mean * torch.log(torch.rand(count, generator=generator, dtype=torch.float64).clamp(min=1e-12))
    rate = torch.sigmoid((features * drifting).sum(1))
    converts = torch.rand(count, generator=generator, dtype=torch.float64) < rate
    delay = torch.where(converts & (ends < ATTRIBUTION), ends, torch.inf)
    return World(features, rate * (1 - torch.exp(-ATTRIBUTION / mean)), delay)


def ingested(pipeline: str, of: World) -> tuple[Tensor, Tensor, Tensor]:
    """(time float64[M], impression int64[M], label float64[M]) as a pipeline hands them over, in order of time."""
    count = len(of.truth)
    shown, every = torch.arange(count, dtype=torch.float64) / count, torch.arange(count)
    converts, early = of.delay.isfinite(), of.delay <= WAIT
    late = every[converts & ~early]
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {
        "at once": [(shown, every, converts)],
        "wait": [(shown + ATTRIBUTION, every, converts)],
        "fnw": [(shown, every, torch.zeros_like(converts)), _converted(of, shown, every[converts])],
        "es_dfm": [(shown + WAIT, every, early), _converted(of, shown, late)],
        "defer": [(shown + WAIT, every, early), (shown + ATTRIBUTION, every, converts)],
    }
    parts["uncorrected"] = parts["es_dfm"]
    time, place, label = (torch.cat(column) for column in zip(*parts[pipeline], strict=True))
    order = torch.argsort(time, stable=True)
    return time[order], place[order], label[order].double()


def _converted(of: World, shown: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return shown[places] + of.delay[places], places, torch.ones(len(places), dtype=torch.bool)


class Logistic:
    """Logistic regression by plain gradient steps."""

    def __init__(self) -> None:
        self.weight = torch.zeros(FEATURES, dtype=torch.float64)

    def rate(self, features: Tensor) -> Tensor:
        return torch.sigmoid(features @ self.weight)

    def learn(self, features: Tensor, labels: Tensor, worth: Tensor) -> None:
        self.weight += RATE * features.T @ (worth * (labels - self.rate(features))) / BATCH


def measure(pipeline: str, count: int, seed: int) -> dict[str, float]:
    """Divergence from the truth and calibration over the second half of time, and labels learned per impression."""
    of = world(count, seed)
    time, place, label = ingested(pipeline, of)
    late_label = (of.delay.isfinite() & (of.delay > WAIT)).double()
    model, late = Logistic(), Logistic()
    said = torch.empty(count, dtype=torch.float64)
    learned = ended = 0
    for start in range(0, count, BATCH):
        now, rows = start / count, slice(start, start + BATCH)
        over = max(0, int((now - ATTRIBUTION) * count))
        if over > ended:
            late.learn(of.features[ended:over], late_label[ended:over], torch.ones(over - ended, dtype=torch.float64))
            ended = over
        upto = int(torch.searchsorted(time, torch.tensor(now, dtype=torch.float64)))
        for first in range(learned, upto, BATCH):
            taken = slice(first, min(first + BATCH, upto))
            features = of.features[place[taken]]
            model.learn(features, label[taken], _worth(pipeline, label[taken], model.rate(features), late.rate(features)))
        learned = upto
        said[rows] = model.rate(of.features[rows])
    half = slice(count // 2, count)
    truth, found = of.truth[half], said[half]
    entropy = functional.binary_cross_entropy(truth, truth)
    return {
        "divergence": float(functional.binary_cross_entropy(found, truth) - entropy),
        "calibration": float(found.sum() / truth.sum()),
        "labels_per_impression": round(len(label) / count, 3),
    }


def _worth(pipeline: str, labels: Tensor, rate: Tensor, late: Tensor) -> Tensor:
    modes: dict[str, Mode] = {mode: mode for mode in MODES}
    return weights(modes[pipeline], labels, rate, late) if pipeline in modes else torch.ones_like(rate)
