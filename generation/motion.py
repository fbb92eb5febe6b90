"""How things move: easing, camera moves, particles, and the passage from one shot to the next. Times are seconds or shares of a shot."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from PIL import Image, ImageChops, ImageDraw

from generation.paint import HEIGHT, WIDTH, Canvas, Colours, Rgb, Stamp, glow, mix, sprite


def clamp(value: float) -> float:
    return min(1.0, max(0.0, value))


def ease_out(share: float) -> float:
    return 1 - (1 - clamp(share)) ** 3


def ease_in_out(share: float) -> float:
    share = clamp(share)
    return share * share * (3 - 2 * share)


def overshoot(share: float) -> float:
    """From 0 to 1, a little past it, and back."""
    share = clamp(share) - 1
    return 1 + 2.70158 * share**3 + 1.70158 * share**2


@dataclass(frozen=True)
class View:
    """Where the camera looks: shifts of the nearest layer in pixels, and how much larger the subject is."""

    dx: float
    dy: float
    zoom: float


def camera(move: str, share: float, seconds: float, mirrored: bool) -> View:
    """The view at `share` of a shot, `seconds` into the video; a mirrored camera moves the other way."""
    side = -1.0 if mirrored else 1.0
    along = ease_in_out(share) - 0.5
    moves: dict[str, tuple[float, float, float]] = {
        "push": (10 * along, 26 * along, 1.0 + 0.16 * (along + 0.5)),
        "pull": (-10 * along, -26 * along, 1.16 - 0.16 * (along + 0.5)),
        "pan": (100 * along, 0, 1.04),
        "tilt": (0, 100 * along, 1.04),
        "drift": (44 * along, 12 * math.sin(seconds * 0.9), 1.02 + 0.05 * along),
        "handheld": (
            9 * math.sin(seconds * 5.1) + 6 * math.sin(seconds * 8.3),
            8 * math.sin(seconds * 6.3 + 1) + 4 * math.cos(seconds * 9.7),
            1.06,
        ),
        "sway": (46 * math.sin(seconds * 1.9), 10 * math.cos(seconds * 3.8), 1.03),
        "dolly": (70 * along, 30 * along, 1.0 + 0.14 * (along + 0.5)),
    }
    dx, dy, zoom = moves[move]
    return View(side * dx, dy, zoom)


def slide(old: Image.Image, new: Image.Image, share: float, colour: Rgb) -> Image.Image:
    frame = Image.new("RGB", old.size, colour)
    x = round(WIDTH * ease_in_out(share))
    frame.paste(old, (-x, 0))
    frame.paste(new, (WIDTH - x, 0))
    return frame


def wipe(old: Image.Image, new: Image.Image, share: float, colour: Rgb) -> Image.Image:
    edge = round((WIDTH + 520) * ease_in_out(share)) - 260
    for ahead, paint in ((46, colour), (0, None)):
        mask = Image.new("L", old.size, 0)
        ImageDraw.Draw(mask).polygon((-9, 0, edge + 120 + ahead, 0, edge - 120 + ahead, HEIGHT, -9, HEIGHT), fill=255)
        old.paste(paint if paint else new, (0, 0, *old.size) if paint else (0, 0), mask)
    return old


def iris(old: Image.Image, new: Image.Image, share: float, colour: Rgb) -> Image.Image:
    radius = 580 * ease_in_out(share)
    for more, paint in ((26, colour), (0, None)):
        mask = Image.new("L", (WIDTH // 2, HEIGHT // 2), 0)
        half = (radius + more) / 2
        ImageDraw.Draw(mask).ellipse((WIDTH / 4 - half, HEIGHT / 4 - half, WIDTH / 4 + half, HEIGHT / 4 + half), fill=255)
        old.paste(paint if paint else new, (0, 0, *old.size) if paint else (0, 0), mask.resize(old.size))
    return old


def fade(old: Image.Image, new: Image.Image, share: float, colour: Rgb) -> Image.Image:
    return Image.blend(old, new, ease_in_out(share))


def stripes(old: Image.Image, new: Image.Image, share: float, colour: Rgb) -> Image.Image:
    mask = Image.new("L", old.size, 0)
    draw = ImageDraw.Draw(mask)
    for index in range(8):
        width = round(WIDTH * ease_out(share * 1.6 - 0.075 * index))
        top = index * HEIGHT // 8
        draw.rectangle((0, top, width, top + HEIGHT // 8) if index % 2 else (WIDTH - width, top, WIDTH, top + HEIGHT // 8), fill=255)
    old.paste(new, (0, 0), mask)
    return old


def flash(old: Image.Image, new: Image.Image, share: float, colour: Rgb) -> Image.Image:
    picture = old if share < 0.3 else new
    light = 1 - abs(share - 0.3) / (0.3 if share < 0.3 else 0.7)
    return Image.blend(picture, Image.new("RGB", old.size, mix(colour, (255, 255, 255), 0.7)), 0.9 * clamp(light))


def cut(old: Image.Image, new: Image.Image, share: float, colour: Rgb) -> Image.Image:
    """A hard cut with two frames of split colours, as when a tape is cut."""
    if share > 0.5:
        return new
    red, green, blue = new.split()
    return Image.merge("RGB", (ImageChops.offset(red, 12, 0), green, ImageChops.offset(blue, -12, 0)))


Transition = Callable[[Image.Image, Image.Image, float, Rgb], Image.Image]

# name -> (how, seconds it lasts); the old frame may be painted over
TRANSITIONS: Final[dict[str, tuple[Transition, float]]] = {
    "slide": (slide, 0.33),
    "wipe": (wipe, 0.33),
    "iris": (iris, 0.38),
    "fade": (fade, 0.42),
    "stripes": (stripes, 0.33),
    "flash": (flash, 0.29),
    "cut": (cut, 0.17),
}


@dataclass(frozen=True)
class _Flight:
    """How particles of a kind fly: how many, mean velocity in pixels a second, how far they swing, how fast they spin in degrees a
    second."""

    count: int
    vx: float
    vy: float
    swing: float
    spin: float = 0.0
    fades: bool = False


_FLIGHTS: Final[dict[str, _Flight]] = {
    "bokeh": _Flight(12, 6, -14, 20, 0, True),
    "bubbles": _Flight(16, 0, -90, 16),
    "confetti": _Flight(26, 10, 150, 30, 220),
    "drift": _Flight(12, 34, -8, 12, 40),
    "embers": _Flight(24, 14, -120, 26, 0, True),
    "notes": _Flight(9, 10, -80, 30, 30),
    "petals": _Flight(16, 40, 90, 40, 120),
    "pixels": _Flight(20, 0, -60, 0),
    "rain": _Flight(34, -60, 900, 0),
    "snow": _Flight(34, 14, 80, 26),
    "spark": _Flight(18, 0, -70, 20, 0, True),
    "sparkle": _Flight(14, 4, -10, 8, 0, True),
    "stars": _Flight(16, -40, 14, 0, 0, True),
    "steam": _Flight(9, 4, -70, 22, 0, True),
    "streaks": _Flight(16, -760, 0, 0),
}


class Particles:
    """Small things in the air. Where each is depends on the time alone."""

    def __init__(self, kind: str, colours: Colours, seed: int) -> None:
        random = Random(seed)
        self._flight = _FLIGHTS[kind]
        self._stamps = [Stamp(image) for image in _pictures(kind, colours)]
        self._each = [
            (
                random.uniform(0, 1),
                random.uniform(0, 1),
                random.uniform(0.6, 1.3),
                random.uniform(0, 6.3),
                random.randrange(len(self._stamps)),
            )
            for _ in range(self._flight.count)
        ]

    def put(self, frame: Image.Image, seconds: float, dx: float, dy: float) -> None:
        flight = self._flight
        for x, y, pace, phase, which in self._each:
            px = (x * (WIDTH + 120) + flight.vx * pace * seconds + dx * pace) % (WIDTH + 120) - 60
            py = (y * (HEIGHT + 120) + flight.vy * pace * seconds + dy * pace) % (HEIGHT + 120) - 60
            alpha = 0.5 + 0.5 * math.sin(seconds * 3.2 * pace + phase * 3) if flight.fades else 1.0
            angle = (phase * 57 + flight.spin * pace * seconds) // 12 * 12 if flight.spin else 0.0
            self._stamps[which].put(frame, px + flight.swing * math.sin(seconds * 1.7 * pace + phase), py, 1.0, angle, alpha)


def _pictures(kind: str, colours: Colours) -> list[Image.Image]:
    """What particles of a kind look like: a few variants."""
    shades = (colours.a, colours.b, colours.c)
    if kind in ("bokeh", "steam"):
        light = colours.light if kind == "steam" else None
        sizes = (90, 130, 170) if kind == "steam" else (46, 70, 110)
        return [
            glow(size, light or mix(shade, colours.light, 0.4), 0.5 if kind == "steam" else 0.75)
            for size, shade in zip(sizes, shades, strict=True)
        ]
    if kind in ("embers", "spark"):
        return [glow(size, mix(colours.c, (255, 190, 90), 0.5), 1.0) for size in (12, 18, 26)]
    if kind == "notes":
        return [sprite("note", size, colours) for size in (34, 46)]
    pictures = []
    for index, shade in enumerate(shades):
        size = (14, 20, 28)[index]
        canvas = Canvas(size * 4, size * 4, 2)
        middle = size * 2
        if kind == "bubbles":
            canvas.arc(mix(colours.light, colours.sky_top, 0.2), 2, middle, middle, size * 0.7, size * 0.7, 0, 360)
            canvas.arc(colours.light, 3, middle, middle, size * 0.45, size * 0.45, 200, 260)
        elif kind == "confetti":
            canvas.box(shade, middle - 5, middle - 9, 10, 18, 2)
        elif kind == "drift":
            canvas.poly(
                mix(colours.light, shade, 0.4),
                middle - size * 0.5,
                middle,
                middle,
                middle - size * 0.2,
                middle + size * 0.5,
                middle,
                middle,
                middle + size * 0.2,
            )
        elif kind == "petals":
            canvas.oval(mix(shade, colours.light, 0.45), middle, middle, size * 0.5, size * 0.28)
        elif kind == "pixels":
            canvas.box(shade, middle - size * 0.3, middle - size * 0.3, size * 0.6, size * 0.6)
        elif kind == "rain":
            canvas.line(mix(colours.light, colours.sky_top, 0.35), 2, middle + 2, middle - size, middle - 2, middle + size)
        elif kind == "snow":
            canvas.oval((255, 255, 255), middle, middle, 2 + size / 6)
        elif kind == "streaks":
            canvas.line(mix(colours.light, colours.sky_bottom, 0.3), 2 + index, 4, middle, size * 4 - 4, middle)
        else:
            half = size * 0.8
            canvas.poly(
                colours.light,
                *(
                    middle,
                    middle - half,
                    middle + half * 0.16,
                    middle - half * 0.16,
                    middle + half,
                    middle,
                    middle + half * 0.16,
                    middle + half * 0.16,
                ),
                *(
                    middle,
                    middle + half,
                    middle - half * 0.16,
                    middle + half * 0.16,
                    middle - half,
                    middle,
                    middle - half * 0.16,
                    middle - half * 0.16,
                ),
            )
        pictures.append(canvas.image())
    return pictures
