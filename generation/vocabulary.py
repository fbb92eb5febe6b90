"""The words in which a video is planned: content themes, creative styles, and the vector sprites they use; read from `data/`.

Catalogues such as KuaiRand name subjects by number only. Which tag (or, without one, which first content code) gets which theme is
therefore an assignment: fixed, spread evenly, and the same in every process, but not a translation of what the tag means.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

Stroke = tuple[str, str, tuple[float, ...]]


@dataclass(frozen=True)
class Theme:
    """A subject: what is drawn and what is said. `palette`: sky top, sky bottom, ground, then the colours a, b, c of the sprites. `words`
    beside its name by which a title may name it."""

    name: str
    scene: str
    particles: str
    hero: str
    extras: tuple[str, ...]
    palette: tuple[str, ...]
    titles: tuple[str, ...]
    hooks: tuple[str, ...]
    details: tuple[str, ...]
    calls: tuple[str, ...]
    buttons: tuple[str, ...]
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Style:
    """A way to tell: picture (finish to reveal), music (tempo in beats a minute, groove, mode, timbre), voice (rate in words a minute)."""

    name: str
    finish: str
    grade: str
    camera: str
    transition: str
    layout: str
    ornament: str
    font: str
    case: str
    reveal: str
    tempo: int
    groove: str
    mode: str
    timbre: str
    voice: str
    rate: int
    pitch: int


def _read(name: str) -> Any:
    text = resources.files("generation").joinpath("data", name).read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _frozen(row: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


@cache
def themes() -> tuple[Theme, ...]:
    return tuple(Theme(**_frozen(row)) for row in _read("themes.yaml"))


@cache
def styles() -> tuple[Style, ...]:
    return tuple(Style(**_frozen(row)) for row in _read("styles.yaml"))


@cache
def sprites() -> dict[str, tuple[Stroke, ...]]:
    """Strokes (kind, colour, numbers) of each sprite, on a canvas of 100 x 100."""
    return {
        name: tuple((kind, colour, tuple(numbers)) for kind, colour, *numbers in strokes) for name, strokes in _read("sprites.yaml").items()
    }
