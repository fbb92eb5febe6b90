"""What `sidstream train` starts from, online and offline: torch's settings and a learner that has seen nothing."""

from __future__ import annotations

import torch

from jobs.settings import Settings
from model.grm import Grm, Vocabulary, preset
from model.online.step import OnlineLearner
from model.sid.bundle import Bundle


def prepare_torch(deterministic: bool) -> None:
    """One thread: on a machine that is shared, FBGEMM's backward with two waits for its threads fifty times longer than it computes."""
    torch.set_num_threads(1)
    if deterministic:
        torch.use_deterministic_algorithms(True)


def fresh(settings: Settings, bundle: Bundle) -> OnlineLearner:
    """A learner of the configured model for the videos of a bundle."""
    model = Grm(preset(settings.model.preset, bundle.code_counts, seed=settings.model.seed))
    if model.thinking is not None:
        model.thinking.use([*bundle.content, *bundle.creative])
    return OnlineLearner(model, Vocabulary.of_bundle(bundle))
