"""Words as pictures: titles set in the style's type, subtitles that follow the voice, buttons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from generation.paint import Canvas, Colours, Rgb, luma, mix

# type -> (package of the font's wheel, file, how much larger it must be set to look as large as the others)
_FONTS: Final[dict[str, tuple[str, str, float]]] = {
    "fredoka": ("font_fredoka_one", "FredokaOne-Regular.ttf", 1.0),
    "manrope": ("font_manrope", "Manrope-ExtraBold.ttf", 0.94),
    "caladea": ("font_caladea", "Caladea-Bold.ttf", 1.02),
    "fjalla": ("font_fjallaone", "FjallaOne-Regular.ttf", 1.14),
    "amatic": ("font_amatic_sc", "AmaticSC-Bold.ttf", 1.5),
}


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A typeface at a size in pixels; Pillow's own where the font's wheel is not installed."""
    package, file, larger = _FONTS[name]
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return ImageFont.load_default(size)
    return ImageFont.truetype(str(Path(spec.submodule_search_locations[0]) / "files" / file), round(size * larger))


def cased(text: str, case: str) -> str:
    return {"upper": text.upper(), "lower": text.lower(), "title": text}[case]


@dataclass(frozen=True)
class Word:
    """A word as a picture (RGBA) with its centre, in pixels from the top left of the block it belongs to."""

    image: Image.Image
    cx: float
    cy: float


@dataclass(frozen=True)
class Block:
    """Words set in lines; `width` and `height` in pixels."""

    words: tuple[Word, ...]
    width: int
    height: int


def _wrapped(words: Sequence[str], face: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, space: float) -> list[list[str]]:
    lines: list[list[str]] = [[]]
    used = 0.0
    for word in words:
        length = face.getlength(word)
        if lines[-1] and used + space + length > width:
            lines.append([])
            used = 0.0
        used += length + (space if lines[-1] else 0)
        lines[-1].append(word)
    return lines


def _lettered(
    text: str, face: ImageFont.FreeTypeFont | ImageFont.ImageFont, size: int, finish: str, colours: Colours, fill: Rgb
) -> Image.Image:
    """One word, in the way the finish letters it; the picture's margin is the same on all sides."""
    pad = max(8, size // 5)
    height = round(size * 1.25)
    width = round(face.getlength(text))
    place = (pad, pad + round(size * 0.62))
    mask = Image.new("L", (width + 2 * pad, height + 2 * pad), 0)
    ImageDraw.Draw(mask).text(place, text, fill=255, font=face, anchor="lm")

    def layer(alpha: Image.Image, colour: Rgb, opacity: float = 1.0) -> Image.Image:
        image = Image.new("RGBA", alpha.size, (*colour, 0))
        image.putalpha(alpha.point([round(value * opacity) for value in range(256)]) if opacity < 1 else alpha)
        return image

    def stroked(stroke: int) -> Image.Image:
        alpha = Image.new("L", mask.size, 0)
        ImageDraw.Draw(alpha).text(place, text, fill=255, font=face, anchor="lm", stroke_width=stroke)
        return alpha

    if finish in ("sticker", "outline"):
        image = layer(stroked(max(3, size // 11)), colours.dark)
        image = _under(image, layer(ImageChops.offset(stroked(max(3, size // 11)), 0, size // 14), colours.dark))
    elif finish == "neon":
        image = layer(stroked(2).filter(ImageFilter.GaussianBlur(size / 9)), colours.c, 1.0)
        image.alpha_composite(layer(stroked(3).filter(ImageFilter.GaussianBlur(size / 22)), colours.c, 0.9))
        fill = mix(fill, (255, 255, 255), 0.6)
    elif finish == "misprint":
        image = layer(ImageChops.offset(mask, -size // 16, size // 20), colours.a)
        image = _under(image, layer(stroked(max(2, size // 22)).filter(ImageFilter.GaussianBlur(size / 12)), colours.dark, 0.7))
    elif finish == "paper":
        image = layer(ImageChops.offset(stroked(max(2, size // 16)), 3, 4), colours.dark, 0.55)
        image.alpha_composite(layer(stroked(max(2, size // 16)), colours.dark))
    else:
        image = layer(
            ImageChops.offset(stroked(max(2, size // 24)), 0, size // 18).filter(ImageFilter.GaussianBlur(size / 13)), colours.dark, 0.9
        )
    image.alpha_composite(layer(mask, fill))
    return image


def _under(image: Image.Image, below: Image.Image) -> Image.Image:
    below.alpha_composite(image)
    return below


def block(text: str, name: str, finish: str, colours: Colours, width: int, size: int, align: str = "centre", most_lines: int = 3) -> Block:
    """A title in at most `most_lines` lines of `width` pixels, as large as `size` allows; every second line may take the accent colour."""
    words = text.split()
    while True:
        face = font(name, size)
        space = face.getlength("n") * 0.55
        lines = _wrapped(words, face, width, space)
        fits = len(lines) <= most_lines and all(face.getlength(word) <= width for word in words)
        if fits or size <= 24:
            break
        size -= 4
    leading = size * 1.08
    accent = colours.c if luma(colours.c) > 120 else mix(colours.c, (255, 255, 255), 0.45)
    placed = []
    for row, line in enumerate(lines):
        length = sum(face.getlength(word) for word in line) + space * (len(line) - 1)
        x = 0.0 if align == "left" else (width - length) / 2
        for word in line:
            second = row % 2 == (1 if len(lines) > 1 else 0)
            thin = finish == "neon" or (name == "amatic" and len(lines) == 1)  # colour needs body to be read
            fill = accent if second and not thin else colours.light
            image = _lettered(word, face, size, finish, colours, fill)
            placed.append(Word(image, x + face.getlength(word) / 2, row * leading + size * 0.62))
            x += face.getlength(word) + space
    return Block(tuple(placed), width, round(leading * len(lines)))


@dataclass(frozen=True)
class Subtitle:
    """A picture of a few words, one of them lit while it is spoken; seconds of the video."""

    start: float
    end: float
    image: Image.Image


def subtitles(
    spoken: Sequence[tuple[str, float, float]], name: str, colours: Colours, width: int, size: int = 34, longest: int = 5
) -> list[Subtitle]:
    """Pictures for spoken words (text, start, end): sentences in equal parts of at most `longest` words."""
    sentences: list[list[tuple[str, float, float]]] = [[]]
    for word in spoken:
        sentences[-1].append(word)
        if word[0][-1] in ".!?":
            sentences.append([])
    chunks = []
    for sentence in sentences:
        parts = -(-len(sentence) // longest)
        chunks += [sentence[len(sentence) * part // parts : len(sentence) * (part + 1) // parts] for part in range(parts)]
    pictures = []
    plate = mix(colours.dark, (0, 0, 0), 0.2)
    lit = colours.c if luma(colours.c) > 130 else mix(colours.c, (255, 255, 255), 0.5)
    for chunk in chunks:
        fitting = size
        face = font(name, fitting)
        while sum(face.getlength(word) for word, _, _ in chunk) + face.getlength("n") * 0.6 * len(chunk) > width - 56 and fitting > 18:
            fitting -= 2
            face = font(name, fitting)
        space = face.getlength("n") * 0.6
        length = sum(face.getlength(word) for word, _, _ in chunk) + space * (len(chunk) - 1)
        height = round(size * 1.75)
        base = Canvas(round(length) + 48, height, 2)
        base.box(plate, 0, 0, round(length) + 48, height, height * 0.36)
        ground = base.image()
        ground.putalpha(ground.getchannel("A").point([round(value * 0.8) for value in range(256)]))
        for current, (_, start, _) in enumerate(chunk):
            image = ground.copy()
            x = 24.0
            for index, (text, _, _) in enumerate(chunk):
                mask = Image.new("L", image.size, 0)
                ImageDraw.Draw(mask).text((x, height / 2), text, fill=255, font=face, anchor="lm")
                image.paste((*(lit if index == current else (255, 255, 255)), 255), (0, 0, *image.size), mask)
                x += face.getlength(text) + space
            end = chunk[current + 1][1] if current + 1 < len(chunk) else chunk[current][2]
            pictures.append(Subtitle(start, end, image))
    return pictures


def button(text: str, name: str, colours: Colours, size: int = 40) -> Image.Image:
    """A pill with a word to act on and an arrow."""
    face = font(name, size)
    while face.getlength(text) > 330 and size > 20:
        size -= 2
        face = font(name, size)
    width, height = round(face.getlength(text)) + 130, 92
    canvas = Canvas(width + 20, height + 30, 2)
    canvas.box(mix(colours.dark, (0, 0, 0), 0.3), 10, 16, width, height, 46)
    canvas.box(colours.c, 10, 8, width, height, 46)
    canvas.box(mix(colours.c, (255, 255, 255), 0.3), 24, 14, width - 28, 26, 13)
    canvas.box(colours.c, 24, 26, width - 28, 20, 10)
    ink = colours.dark if luma(colours.c) > 110 else (255, 255, 255)
    arrow = width - 48
    canvas.line(ink, 7, arrow - 10, 36, arrow + 10, 54, arrow - 10, 72)
    image = canvas.image()
    ImageDraw.Draw(image).text((44, 53), text, fill=(*ink, 255), font=face, anchor="lm")
    return image


def chip(text: str, name: str, colours: Colours, size: int = 26) -> Image.Image:
    """A small label."""
    face = font(name, size)
    width = round(face.getlength(text)) + 40
    canvas = Canvas(width, round(size * 1.9), 2)
    canvas.box(colours.light, 0, 0, width, round(size * 1.9), size)
    image = canvas.image()
    ImageDraw.Draw(image).text((20, size * 0.95), text, fill=(*colours.dark, 255), font=face, anchor="lm")
    return image
