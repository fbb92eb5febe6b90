"""The learner that a configuration asks for, online and offline alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from jobs.settings import ConfigError, Settings
from model.grm import Grm, GrmConfig, Vocabulary, preset
from model.grm.presets import OPTIONS
from model.online.conversion import ConversionConfig
from model.online.step import LearnerConfig, OnlineLearner
from model.sid.bundle import Bundle


def prepare_torch(deterministic: bool) -> None:
    """One thread: on a machine that is shared, FBGEMM's backward with two waits for its threads fifty times longer than it computes."""
    torch.set_num_threads(1)
    if deterministic:
        torch.use_deterministic_algorithms(True)


def learner_config(settings: Settings) -> LearnerConfig:
    """What the trainer's settings say of learning."""
    given = settings.trainer
    conversion = None
    if given.delayed_feedback is not None:
        attribution_ms = round(settings.samples.attribution_window_s * 1000)
        conversion = ConversionConfig(given.delayed_feedback, attribution_ms, given.pending_conversions)
    return LearnerConfig(
        conversion=conversion,
        satisfaction=given.satisfaction,
        gbpo=given.gbpo,
        precision=given.precision,
        user_weight=given.user_weight,
    )


def fresh_learner(settings: Settings, bundle: Bundle) -> OnlineLearner:
    """A learner of a bundle's videos that has learned nothing.

    Raises:
        ConfigError: `model.options` has one that there is not, or that the model cannot have.
    """
    model = Grm(shape(settings, bundle.code_counts))
    if model.thinking is not None:
        model.thinking.use([*bundle.content, *bundle.creative])
    return OnlineLearner(model, Vocabulary.of_bundle(bundle), learner_config(settings))


def identity(learner: OnlineLearner, bundle: Bundle) -> dict[str, Any]:
    """What a checkpoint of the learner belongs to."""
    return {"bundle": bundle.version, "model": learner.model.config.to_json(), "learner": learner.config.to_json()}


def shape(settings: Settings, codes: Sequence[int]) -> GrmConfig:
    """The configured preset with the configured options; raises like `fresh_learner`."""
    options = {}
    for name, value in settings.model.options.items():
        if name not in OPTIONS:
            raise ConfigError(f"model.options.{name}: there is no such option (there are {', '.join(OPTIONS)})")
        kind = type(OPTIONS[name])
        if kind(value) != value:
            raise ConfigError(f"model.options.{name} is {value}: expected {kind.__name__}")
        options[name] = kind(value)
    try:
        return preset(settings.model.preset, codes, seed=settings.model.seed, **options)
    except ValueError as error:
        raise ConfigError(f"model.options: {error}") from error
