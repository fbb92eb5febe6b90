"""What a video will show and say: planned from a semantic ID's attributes alone, then set in time once the voice is known. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Literal

from generation.vocabulary import Style, Theme, styles, themes

ShotKind = Literal["wide", "close", "panels", "call"]

FRAMES_PER_SECOND: Final = 24
VOICE_STARTS: Final = 0.25  # seconds of picture before the first word
PAUSE: Final = 0.22  # least silence between two lines, seconds


@dataclass(frozen=True)
class Content:
    """What is known of the videos with (or nearest to) the content codes; None = unknown. `title` is one of theirs, not the new video's."""

    tag: int | None = None
    author_id: int | None = None
    title: str | None = None


@dataclass(frozen=True)
class Creative:
    """What is known of the videos with (or nearest to) the creative codes; None = unknown."""

    music_type: int | None = None
    video_type: str | None = None
    upload_type: str | None = None
    duration_ms: int | None = None


@dataclass(frozen=True)
class VideoSpec:
    """A video to be made. The same spec gives the same frames and the same sound."""

    bundle_version: str
    sid: tuple[int, ...]
    content_levels: int
    content: Content = Content()
    creative: Creative = Creative()
    seconds: float = 6.0
    title: str | None = None
    call_to_action: str | None = None

    @property
    def content_codes(self) -> tuple[int, ...]:
        return self.sid[: self.content_levels]

    @property
    def creative_codes(self) -> tuple[int, ...]:
        return self.sid[self.content_levels :]


@dataclass(frozen=True)
class Plan:
    """A video without its timing: its subject, its style, and what is said (`lines`: hook, detail, call to action)."""

    spec: VideoSpec
    theme: Theme
    style: Style
    hour: str
    hue: float
    content_seed: int
    creative_seed: int
    title: str
    lines: tuple[str, ...]
    button: str
    tempo: int
    mirrored: bool
    montage: bool


@dataclass(frozen=True)
class Shot:
    """A shot from `start` to `end`, seconds."""

    kind: ShotKind
    start: float
    end: float


@dataclass(frozen=True)
class Line:
    """A spoken line: when it starts and its words as (text, start, end); seconds of the video."""

    start: float
    words: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class Storyboard:
    plan: Plan
    shots: tuple[Shot, ...]
    lines: tuple[Line, ...]
    seconds: float


def seed_of(*parts: object) -> int:
    """A number from anything printable: the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=6).digest(), "big")


def _spread(number: int, count: int) -> int:
    """An index below `count`; neighbouring numbers are far apart, and the first `count` numbers all differ."""
    step = next(step for step in range(max(1, round(count * 0.618)), 2 * count + 2) if _coprime(step, count))
    return (number * step) % count


def _coprime(first: int, second: int) -> bool:
    while second:
        first, second = second, first % second
    return first == 1


def plan(spec: VideoSpec) -> Plan:
    """Choose subject, style and words.

    The subject is one that the known title names; else the one that the known tag (without a tag: the first content code) is assigned to.
    All content codes together choose its place, hour, colours and words. The first creative code chooses the style; all creative codes and
    what is known of the creative side choose tempo, direction and cut.

    Raises:
        ValueError: the spec has no creative or no content code.
    """
    if not spec.content_codes or not spec.creative_codes:
        raise ValueError(f"SID {list(spec.sid)} needs at least one content and one creative code")
    theme = _subject(spec.content, spec.content_codes[0])
    style = styles()[_spread(spec.creative_codes[0], len(styles()))]
    content_seed, creative_seed = seed_of("content", *spec.content_codes), seed_of("creative", *spec.creative_codes)
    content, creative = Random(content_seed), Random(creative_seed)
    hour = content.choice(("day", "day", "dusk", "dawn"))
    hue = content.uniform(-26, 26)
    title, hook, detail = content.choice(theme.titles), content.choice(theme.hooks), content.choice(theme.details)
    choice = content.randrange(len(theme.calls))
    tempo = round(style.tempo * creative.uniform(0.94, 1.06))
    if spec.creative.duration_ms is not None:  # a creative whose videos are short is told in a hurry
        tempo = round(tempo * (1.06 if spec.creative.duration_ms < 12_000 else 0.96 if spec.creative.duration_ms > 45_000 else 1.0))
    return Plan(
        spec=spec,
        theme=theme,
        style=style,
        hour=hour,
        hue=hue,
        content_seed=content_seed,
        creative_seed=creative_seed,
        title=spec.title or title,
        lines=(hook, detail, theme.calls[choice]),
        button=spec.call_to_action or theme.buttons[choice],
        tempo=tempo,
        mirrored=creative.random() < 0.5,
        montage=tempo >= 108 if creative.random() < 0.75 else tempo < 108,
    )


def _subject(content: Content, first_code: int) -> Theme:
    """The subject of a video: the theme that a word of the title names (the tag chooses where several do), else the tag's or the code's."""
    number = content.tag if content.tag is not None and content.tag >= 0 else first_code
    said = set(re.findall(r"[a-z]+", (content.title or "").lower()))
    named = [theme for theme in themes() if said & {*theme.name.split(), *theme.words}]
    return named[number % len(named)] if named else themes()[_spread(number, len(themes()))]


def speech_room(seconds: float, lines: int) -> float:
    """Seconds of speech that fit in a video."""
    return seconds - VOICE_STARTS - PAUSE * lines


def timed(plan: Plan, speech: Sequence[Sequence[tuple[str, float, float]]]) -> Storyboard:
    """Set a plan in time. `speech`: per line its words as (text, start, end) in seconds from the line's own start, as the voice spoke them.

    Every line falls into its shot; what time is left is shared among the shots; cuts fall on the beat where that cuts no word off.
    """
    seconds = plan.spec.seconds
    lengths = [words[-1][2] if words else 0.0 for words in speech]
    slack = max(0.0, seconds - VOICE_STARTS - sum(lengths) - PAUSE * len(lengths)) / len(lengths)
    beat = 60 / plan.tempo
    starts, cuts = [], []
    clock = VOICE_STARTS
    for index, length in enumerate(lengths):
        starts.append(clock)
        done = clock + length
        clock = done + PAUSE + slack
        if index + 1 < len(lengths):
            on_beat = round((clock - PAUSE / 2) / beat) * beat
            cuts.append(on_beat if done <= on_beat <= clock else clock - PAUSE / 2)
    bounds = [0.0, *cuts, seconds]
    shots: list[Shot] = []
    for kind, start, end in zip(("wide", "close", "call"), bounds, bounds[1:], strict=False):
        if kind == "close" and plan.montage and end - start > 1.5:
            middle = start + (end - start) * 0.46
            shots += [Shot("panels", start, middle), Shot("close", middle, end)]
        else:
            shots.append(Shot(kind, start, end))  # type: ignore[arg-type]
    lines = tuple(
        Line(start, tuple((text, start + first, start + last) for text, first, last in words))
        for start, words in zip(starts, speech, strict=True)
    )
    return Storyboard(plan, tuple(shots), lines, seconds)
