"""The learner that a configuration asks for: the settings reach it, and its report tells of them."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pyarrow as pa
import pytest

from jobs import train_offline
from jobs.learner import learner_config
from jobs.settings import Settings, Trainer
from jobs.train_input import Source
from model.online.conversion import ConversionConfig
from model.online.delay import MODES
from model.online.step import LearnerConfig
from model.sid import bundle
from streaming.records import Context, Labels, Sample


def settings(**trainer: object) -> Settings:
    return Settings.model_validate({"samples": {"label_window_s": 1, "attribution_window_s": 2}, "trainer": {"batch": 16, **trainer}})


def small_bundle() -> bundle.Bundle:
    rng = np.random.default_rng(0)
    vectors = {
        name: pa.array(list(rng.normal(size=(40, 4)).astype(np.float32)), pa.list_(pa.float32())) for name in ("content", "creative")
    }
    return bundle.build(pa.table({"item_id": pa.array(range(40), pa.int64()), **vectors}), codes=4)


def samples(count: int) -> list[Sample]:
    """A tenth of a second apart; every fourth converts, half a second after its sample was ready."""
    found = []
    for index in range(count):
        given = {"impression_id": str(index), "user_id": index % 5, "item_id": index % 40, "ts": index * 100, "context": Context([])}
        labels = Labels(click=1, long_view=index % 2)
        found.append(Sample(sample_id=f"{index}:initial", kind="initial", ready_ts=index * 100 + 10, labels=labels, **given))
        if index % 4 == 0:
            late = Labels(conversion_value=2.0)
            found.append(Sample(sample_id=f"{index}:late", kind="correction", ready_ts=index * 100 + 510, labels=late, **given))
    return sorted(found, key=lambda row: row.ready_ts)


def test_the_defaults_ask_for_nothing() -> None:
    assert learner_config(Settings()) == LearnerConfig()


def test_the_settings_know_every_mode() -> None:
    (known, _) = get_args(Trainer.model_fields["delayed_feedback"].annotation)
    assert get_args(known) == MODES


def test_what_is_worth_learning_is_as_the_settings_say() -> None:
    asked = {"satisfaction": "duration", "gbpo": 0.5, "precision": "bfloat16", "user_weight": 0.25}
    assert learner_config(settings(**asked)) == LearnerConfig(**asked)


@pytest.mark.parametrize("mode", MODES)
def test_training_with_a_mode_reports_conversions_by_their_final_labels(mode: str) -> None:
    asked = settings(delayed_feedback=mode, pending_conversions=500)
    assert learner_config(asked).conversion == ConversionConfig(mode, 2_000, 500)
    run = train_offline.learn(asked, small_bundle(), Source.of(samples(60)))
    learner = run.learner
    kept = learner.metrics.open.predictions["conversion"]
    assert len(kept["outcome"]) >= 30
    assert sum(kept["outcome"]) == pytest.approx(len(kept["outcome"]) / 4, abs=1)
    assert learner.conversions is not None
    assert learner.conversions.pending.forgotten == 0
    assert train_offline.summary(run)["samples"] == 75
