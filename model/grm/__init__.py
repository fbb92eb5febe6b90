"""The generative recommendation model: from a user's context to the semantic ID of the video that they would like to see.

Names are imported when first used: who only decodes needs torch alone, and not the libraries of the embedding tables.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.grm.beam import Beams
    from model.grm.inputs import GrmBatch, Query, Vocabulary, collate
    from model.grm.model import Grm, Scores
    from model.grm.presets import PRESETS, GrmConfig, preset

__all__ = ["PRESETS", "Beams", "Grm", "GrmBatch", "GrmConfig", "Query", "Scores", "Vocabulary", "collate", "preset"]

_MODULES = {
    "beam": ("Beams",),
    "inputs": ("GrmBatch", "Query", "Vocabulary", "collate"),
    "model": ("Grm", "Scores"),
    "presets": ("PRESETS", "GrmConfig", "preset"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
