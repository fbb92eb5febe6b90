"""All places by name: what lies behind and before the subject."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from generation import interiors, landscapes
from generation.landscapes import MARGIN, Layer, Place
from generation.paint import Colours

__all__ = ["MARGIN", "SCENES", "Layer", "Place", "place"]

SCENES: Final[dict[str, Callable[[Colours, Random], Place]]] = {
    "beach": landscapes.beach,
    "boutique": interiors.boutique,
    "clouds": landscapes.clouds,
    "court": interiors.court,
    "forest": landscapes.forest,
    "grid": interiors.grid,
    "hills": landscapes.hills,
    "kitchen": interiors.kitchen,
    "market": interiors.market,
    "mountains": landscapes.mountains,
    "ocean": landscapes.ocean,
    "pitch": landscapes.pitch,
    "road": landscapes.road,
    "room": interiors.room,
    "skyline": landscapes.skyline,
    "snow": landscapes.snow,
    "space": landscapes.space,
    "stage": interiors.stage,
    "studio": interiors.studio,
}


def place(scene: str, colours: Colours, seed: int) -> Place:
    """The place called `scene`; another seed gives another place of the same kind."""
    return SCENES[scene](colours, Random(seed))
