"""The learner that a configuration asks for."""

from __future__ import annotations

from jobs.settings import Settings
from model.grm import Grm, Vocabulary, preset
from model.online.conversion import ConversionConfig
from model.online.step import LearnerConfig, OnlineLearner
from model.sid.bundle import Bundle


def learner_config(settings: Settings) -> LearnerConfig:
    """What the trainer's settings say of learning."""
    given = settings.trainer
    conversion = None
    if given.delayed_feedback is not None:
        attribution_ms = round(settings.samples.attribution_window_s * 1000)
        conversion = ConversionConfig(given.delayed_feedback, attribution_ms, given.pending_conversions)
    return LearnerConfig(conversion=conversion, satisfaction=given.satisfaction, gbpo=given.gbpo)


def fresh_learner(settings: Settings, bundle: Bundle) -> OnlineLearner:
    """A learner of a bundle's videos that has learned nothing."""
    model = Grm(preset(settings.model.preset, bundle.code_counts, seed=settings.model.seed))
    return OnlineLearner(model, Vocabulary.of_bundle(bundle), learner_config(settings))
