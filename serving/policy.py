"""The published GRM as serving asks it: people in, semantic IDs with log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from model.grm.inputs import Vocabulary, collate
from model.grm.model import Grm
from serving.cache import Codes
from serving.model import Person


class GrmPolicy:
    """One version of the model with the videos that it knows; the vocabulary is shared by the versions of one bundle."""

    def __init__(self, version: str, grm: Grm, vocabulary: Vocabulary) -> None:
        self.version = version
        self._grm = grm.eval()
        self._vocabulary = vocabulary

    def beam(self, people: Sequence[Person], width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """(SIDs int64[B, W, L], log-probabilities float32[B, W]), best first; −∞ where there is no further beam."""
        with torch.no_grad():  # not inference mode: FBGEMM's CPU lookup is reached through autograd only
            batch = collate(people, self._vocabulary, self._grm.config)
            beams = self._grm.beam(batch, [width] * self._grm.config.levels)
        return beams.sids.numpy(), beams.log_prob.numpy()

    def learn(self, item_id: int, sid: Codes) -> None:
        """Know a new video, so that it means something in a history."""
        self._vocabulary.learn(item_id, sid)
