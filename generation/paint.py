"""Colours, an anti-aliased canvas, and stamps: the materials of which pictures are made."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from PIL import Image, ImageDraw

from generation.vocabulary import sprites

Rgb = tuple[int, int, int]

WIDTH: Final = 540
HEIGHT: Final = 960
LIGHT: Final[Rgb] = (255, 250, 240)


def rgb(text: str) -> Rgb:
    """'#rrggbb' as bytes."""
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def mix(first: Rgb, second: Rgb, share: float) -> Rgb:
    """`share` of the second colour in the first."""
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second, strict=True))  # type: ignore[return-value]


def luma(colour: Rgb) -> float:
    """Brightness, 0 to 255 (Rec. 601)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def turned(colour: Rgb, degrees: float, saturation: float = 1.0, value: float = 1.0) -> Rgb:
    """The colour with its hue turned and its saturation and value scaled."""
    h, s, v = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
    r, g, b = colorsys.hsv_to_rgb((h + degrees / 360) % 1, min(1.0, s * saturation), min(1.0, v * value))
    return round(r * 255), round(g * 255), round(b * 255)


# hue turn, saturation, value, tint, share of the tint
GRADES: Final[dict[str, tuple[float, float, float, Rgb, float]]] = {
    "natural": (0, 1.0, 1.0, (255, 255, 255), 0.0),
    "vivid": (0, 1.25, 1.04, (255, 255, 255), 0.0),
    "pastel": (0, 0.68, 1.06, (255, 244, 250), 0.26),
    "night": (0, 1.15, 0.62, (24, 12, 66), 0.22),
    "noir": (0, 0.34, 0.72, (30, 28, 34), 0.12),
    "warm": (-6, 1.05, 1.0, (255, 176, 96), 0.14),
    "cool": (8, 0.9, 1.0, (120, 180, 255), 0.16),
    "faded": (0, 0.66, 0.98, (226, 205, 176), 0.24),
}


def graded(colour: Rgb, grade: str, place: bool = False) -> Rgb:
    """A colour under a grade; `place` for skies and grounds, which take more of it than things and words do."""
    degrees, saturation, value, tint, share = GRADES[grade]
    if not place:
        value, share = max(value, 0.94), share * 0.5
    if luma(colour) < 80 < luma(tint):  # a light tint turns darkness into mud
        share *= 0.35
    return mix(turned(colour, degrees, saturation, value), tint, share)


@dataclass(frozen=True)
class Colours:
    """The colours of one video, graded. `a`, `b`, `c` paint the sprites, `light` and `dark` text and outlines."""

    sky_top: Rgb
    sky_bottom: Rgb
    ground: Rgb
    a: Rgb
    b: Rgb
    c: Rgb
    grade: str
    light: Rgb = LIGHT
    dark: Rgb = (24, 20, 32)

    @classmethod
    def of(cls, palette: Sequence[str], grade: str, turn: float, hour: str) -> Colours:
        """Colours of a theme's palette: hue turned by `turn` degrees, at an hour of the day, under a style's grade."""
        top, bottom, ground, a, b, c = (rgb(text) for text in palette)
        top, bottom, ground = (turned(colour, turn) for colour in (top, bottom, ground))
        if luma(top) > 90:  # what is set at night stays at night
            if hour == "dusk":
                top, bottom, ground = mix(top, (72, 44, 120), 0.55), mix(bottom, (255, 140, 92), 0.5), mix(ground, (60, 30, 80), 0.3)
            elif hour == "dawn":
                top, bottom = mix(top, (150, 140, 226), 0.4), mix(bottom, (255, 204, 196), 0.5)
        dark = mix(mix(ground, top, 0.3), (12, 8, 20), 0.82)
        colours = cls(top, bottom, ground, a, b, c, grade)
        return replace(
            colours,
            sky_top=graded(top, grade, place=True),
            sky_bottom=graded(bottom, grade, place=True),
            ground=graded(ground, grade, place=True),
            a=graded(a, grade),
            b=graded(b, grade),
            c=graded(c, grade),
            light=mix(LIGHT, graded(bottom, grade, place=True), 0.04),
            dark=dark,
        )

    def named(self, name: str) -> Rgb:
        """A sprite's colour word: a, b, c, w, k, each with + or -, or '#rrggbb' (graded like the rest)."""
        if name.startswith("#"):
            return graded(rgb(name), self.grade)
        base = {"a": self.a, "b": self.b, "c": self.c, "w": self.light, "k": self.dark}[name[0]]
        if name.endswith("+"):
            return mix(base, (255, 255, 255), 0.35)
        if name.endswith("-"):
            return mix(base, self.dark, 0.32)
        return base


class Canvas:
    """Draws on a transparent picture `over` times too large, which is what makes its edges smooth; coordinates are of the small one."""

    def __init__(self, width: int, height: int, over: int = 2, fill: Rgb | None = None) -> None:
        self.over = over
        background = (*fill, 255) if fill else (0, 0, 0, 0)
        self._image = Image.new("RGBA", (width * over, height * over), background)
        self._draw = ImageDraw.Draw(self._image)

    def _scaled(self, numbers: Sequence[float]) -> list[float]:
        return [number * self.over for number in numbers]

    def oval(self, colour: Rgb, cx: float, cy: float, rx: float, ry: float | None = None) -> None:
        ry = rx if ry is None else ry
        self._draw.ellipse(self._scaled((cx - rx, cy - ry, cx + rx, cy + ry)), fill=colour)

    def box(self, colour: Rgb, x: float, y: float, w: float, h: float, radius: float = 0) -> None:
        if w > 0 and h > 0:
            self._draw.rounded_rectangle(self._scaled((x, y, x + w, y + h)), radius=min(radius, w / 2, h / 2) * self.over, fill=colour)

    def poly(self, colour: Rgb, *points: float) -> None:
        self._draw.polygon(self._scaled(points), fill=colour)

    def line(self, colour: Rgb, width: float, *points: float) -> None:
        scaled = self._scaled(points)
        self._draw.line(scaled, fill=colour, width=max(1, round(width * self.over)), joint="curve")
        radius = width * self.over / 2
        for x, y in ((scaled[0], scaled[1]), (scaled[-2], scaled[-1])):
            self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def arc(self, colour: Rgb, width: float, cx: float, cy: float, rx: float, ry: float, start: float, end: float) -> None:
        half = width / 2
        box = self._scaled((cx - rx - half, cy - ry - half, cx + rx + half, cy + ry + half))
        self._draw.arc(box, start, end, fill=colour, width=max(1, round(width * self.over)))

    def pie(self, colour: Rgb, cx: float, cy: float, rx: float, ry: float, start: float, end: float) -> None:
        self._draw.pieslice(self._scaled((cx - rx, cy - ry, cx + rx, cy + ry)), start, end, fill=colour)

    def image(self) -> Image.Image:
        return self._image.reduce(self.over) if self.over > 1 else self._image


def gradient(width: int, height: int, *stops: Rgb) -> Image.Image:
    """A vertical gradient through evenly spaced colours (RGB)."""
    strip = Image.new("RGB", (1, len(stops)))
    strip.putdata(list(stops))
    # Half a pixel in from both ends, so that the first and last stops are reached at the very edges.
    return strip.resize((1, height), Image.Resampling.BILINEAR, box=(0, 0.5, 1, len(stops) - 0.5)).resize((width, height))


def glow(diameter: int, colour: Rgb, strength: float = 1.0) -> Image.Image:
    """A soft round light (RGBA)."""
    falloff = Image.radial_gradient("L").resize((diameter, diameter), Image.Resampling.BILINEAR)
    alpha = falloff.point([round(strength * 255 * max(0.0, 1 - value / 181) ** 2) for value in range(256)])
    light = Image.new("RGBA", (diameter, diameter), (*colour, 0))
    light.putalpha(alpha)
    return light


def sprite(name: str, size: int, colours: Colours, margin: int = 0) -> Image.Image:
    """A sprite of the vocabulary, `size` pixels wide and high, with an empty margin around it (RGBA)."""
    canvas = Canvas(size + 2 * margin, size + 2 * margin, over=3)
    unit = size / 100
    for kind, colour, numbers in sprites()[name]:
        paint = colours.named(colour)
        if kind == "box":
            x, y, w, h, radius = numbers
            canvas.box(paint, margin + x * unit, margin + y * unit, w * unit, h * unit, radius * unit)
        elif kind in ("oval", "pie"):
            cx, cy, rx, ry, *angles = numbers
            place = (margin + cx * unit, margin + cy * unit, rx * unit, ry * unit)
            canvas.oval(paint, *place) if kind == "oval" else canvas.pie(paint, *place, *angles)
        elif kind == "arc":
            width, cx, cy, rx, ry, start, end = numbers
            canvas.arc(paint, width * unit, margin + cx * unit, margin + cy * unit, rx * unit, ry * unit, start, end)
        elif kind == "line":
            canvas.line(paint, numbers[0] * unit, *(margin + number * unit for number in numbers[1:]))
        else:
            canvas.poly(paint, *(margin + number * unit for number in numbers))
    return canvas.image()


class Stamp:
    """A picture that is put on frames again and again; what it looks like at a scale, angle and opacity is drawn once."""

    def __init__(self, image: Image.Image) -> None:
        box = image.getchannel("A").getbbox() or (0, 0, image.width, image.height)
        # Empty edges cost time at every turn; cut as much from both sides, so that the centre stays.
        dx, dy = min(box[0], image.width - box[2]), min(box[1], image.height - box[3])
        # With colours already multiplied by opacity, so that turning does not have to do it each time.
        self._image = image.crop((dx, dy, image.width - dx, image.height - dy)).convert("RGBa")
        self._drawn: dict[tuple[int, int, int], Image.Image] = {}

    def put(self, frame: Image.Image, cx: float, cy: float, scale: float = 1.0, angle: float = 0.0, alpha: float = 1.0) -> None:
        """Put it on an RGB frame with its centre at (cx, cy); scale in steps of 1/64, angle of 2 degrees, opacity of 1/12."""
        key = (round(scale * 64), round(angle / 2) % 180, min(12, round(alpha * 12)))
        if key[0] <= 0 or key[2] <= 0:
            return
        image = self._drawn.get(key)
        if image is None:
            image = self._drawn[key] = self._at(*key)
        frame.paste(image, (round(cx - image.width / 2), round(cy - image.height / 2)), image)

    def _at(self, scale: int, angle: int, alpha: int) -> Image.Image:
        image = self._image
        if scale != 64 or angle:
            factor, turn = scale / 64, math.radians(angle * 2)
            cos, sin = math.cos(turn), math.sin(turn)
            width = math.ceil((abs(image.width * cos) + abs(image.height * sin)) * factor) + 2
            height = math.ceil((abs(image.width * sin) + abs(image.height * cos)) * factor) + 2
            a, b, d, e = cos / factor, -sin / factor, sin / factor, cos / factor
            c, f = image.width / 2 - a * width / 2 - b * height / 2, image.height / 2 - d * width / 2 - e * height / 2
            image = image.transform((width, height), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)
        image = image.convert("RGBA")
        if alpha < 12:
            image.putalpha(image.getchannel("A").point([round(value * alpha / 12) for value in range(256)]))
        return image
