"""The generative recommendation model: from a user's context to the semantic ID of the video that they would like to see."""

from model.grm.beam import Beams
from model.grm.inputs import GrmBatch, Query, Vocabulary, collate
from model.grm.model import Grm, Scores
from model.grm.presets import PRESETS, GrmConfig, preset

__all__ = ["PRESETS", "Beams", "Grm", "GrmBatch", "GrmConfig", "Query", "Scores", "Vocabulary", "collate", "preset"]
