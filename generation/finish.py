"""What a style does to a drawn thing (sticker, neon, paper, …) and to the whole picture (letterbox, scan lines, border, …)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from PIL import Image, ImageChops, ImageFilter, ImageOps

from generation.paint import HEIGHT, WIDTH, Canvas, Colours, Rgb, glow, mix, turned

MARGIN: Final = 36  # empty pixels that a finish needs around a sprite


def _grown(alpha: Image.Image, pixels: int) -> Image.Image:
    """The mask, larger by so many pixels all round, with smooth edges."""
    return alpha.filter(ImageFilter.GaussianBlur(pixels * 0.6)).point([min(255, max(0, (value - 14) * 9)) for value in range(256)])


def _plain(alpha: Image.Image, colour: Rgb, opacity: float = 1.0) -> Image.Image:
    image = Image.new("RGBA", alpha.size, (*colour, 0))
    image.putalpha(alpha if opacity == 1.0 else alpha.point([round(value * opacity) for value in range(256)]))
    return image


def _moved(image: Image.Image, dx: int, dy: int) -> Image.Image:
    return ImageChops.offset(image, dx, dy)


def _shadowed(image: Image.Image, colours: Colours, blur: float, dx: int, dy: int, opacity: float) -> Image.Image:
    alpha = _moved(image.getchannel("A"), dx, dy)
    shadow = _plain(alpha.filter(ImageFilter.GaussianBlur(blur)) if blur else alpha, colours.dark, opacity)
    shadow.alpha_composite(image)
    return shadow


def flat(image: Image.Image, colours: Colours) -> Image.Image:
    return _shadowed(image, colours, 9, 0, 10, 0.45)


def sticker(image: Image.Image, colours: Colours) -> Image.Image:
    outline = _plain(_grown(image.getchannel("A"), 9), (255, 255, 255))
    outline.alpha_composite(image)
    return _shadowed(outline, colours, 5, 3, 7, 0.5)


def outline(image: Image.Image, colours: Colours) -> Image.Image:
    line = _plain(_grown(image.getchannel("A"), 6), colours.dark)
    line.alpha_composite(image)
    return line


def neon(image: Image.Image, colours: Colours) -> Image.Image:
    """Dark inside, lit at the edges, with light around."""
    alpha = image.getchannel("A")
    grey = image.convert("L").filter(ImageFilter.FIND_EDGES)
    edges = ImageChops.multiply(ImageChops.add(grey, grey), alpha)
    rim = ImageChops.subtract(_grown(alpha, 4), alpha)
    lines = ImageChops.lighter(edges.filter(ImageFilter.GaussianBlur(0.8)), rim)
    halo = _plain(_grown(alpha, 14).filter(ImageFilter.GaussianBlur(13)), colours.c, 0.75)
    inside = Image.blend(image.convert("RGB"), Image.new("RGB", image.size, colours.dark), 0.22).convert("RGBA")
    inside.putalpha(alpha)
    halo.alpha_composite(inside)
    halo.alpha_composite(_plain(lines, mix(colours.b, (255, 255, 255), 0.55)))
    return halo


def paper(image: Image.Image, colours: Colours) -> Image.Image:
    edge = _plain(_grown(image.getchannel("A"), 4), mix(colours.light, (255, 255, 255), 0.5))
    edge.alpha_composite(image)
    return _shadowed(edge, colours, 1.2, 7, 8, 0.4)


def duotone(image: Image.Image, colours: Colours) -> Image.Image:
    toned = ImageOps.colorize(
        ImageOps.autocontrast(image.convert("L")), colours.dark, mix(colours.c, (255, 255, 255), 0.3), mid=colours.a
    ).convert("RGBA")
    toned.putalpha(image.getchannel("A"))
    return _shadowed(toned, colours, 10, 0, 10, 0.5)


def misprint(image: Image.Image, colours: Colours) -> Image.Image:
    """Two inks that do not quite meet."""
    alpha = image.getchannel("A")
    ghost = _plain(_moved(alpha, -7, 5), colours.c, 0.75)
    ghost.alpha_composite(_plain(_moved(alpha, 6, -4), colours.b, 0.6))
    ghost.alpha_composite(image)
    return ghost


def glass(image: Image.Image, colours: Colours) -> Image.Image:
    """On a round pane with a bright rim."""
    size = image.width
    pane = Canvas(size, size, 2)
    pane.oval(colours.light, size / 2, size / 2, size / 2 - 4)
    disc = _plain(pane.image().getchannel("A"), mix(colours.light, colours.sky_top, 0.25), 0.36)
    rim = Canvas(size, size, 2)
    rim.arc((255, 255, 255), 3, size / 2, size / 2, size / 2 - 6, size / 2 - 6, 0, 360)
    rim.arc((255, 255, 255), 9, size / 2, size / 2, size / 2 - 20, size / 2 - 20, 200, 250)
    disc.alpha_composite(_plain(rim.image().getchannel("A"), (255, 255, 255), 0.8))
    inner = image.resize((round(size * 0.84), round(size * 0.84)), Image.Resampling.BILINEAR)
    disc.alpha_composite(flat(inner, colours), (round(size * 0.08), round(size * 0.08)))
    return disc


FINISHES: Final[dict[str, Callable[[Image.Image, Colours], Image.Image]]] = {
    finish.__name__: finish for finish in (flat, sticker, outline, neon, paper, duotone, misprint, glass)
}


def pattern(kind: str, colours: Colours, width: int, height: int) -> Image.Image:
    """The backdrop of a close-up: a light in the middle and the style's own texture (RGB)."""
    inner, outer = mix(colours.sky_bottom, colours.light, 0.3), turned(mix(colours.sky_top, colours.b, 0.45), 0, 1.3)
    if kind in ("neon", "duotone"):
        inner, outer = turned(mix(colours.sky_bottom, colours.b, 0.4), 0, 1.3), mix(colours.dark, colours.sky_top, 0.3)
    image = Image.new("RGB", (width, height), outer)
    light = glow(round(height * 1.15), inner, 1.0)
    image.paste(light, ((width - light.width) // 2, (height - light.height) // 2), light)
    canvas = Canvas(width, height, 2)
    cx, cy, reach = width / 2, height / 2, math.hypot(width, height)
    if kind in ("sticker", "outline"):
        for index in range(16):
            a, b = math.tau * index / 16, math.tau * (index + 0.5) / 16
            canvas.poly(
                (255, 255, 255),
                cx,
                cy,
                cx + reach * math.cos(a),
                cy + reach * math.sin(a),
                cx + reach * math.cos(b),
                cy + reach * math.sin(b),
            )
    elif kind in ("misprint", "paper"):
        for row in range(height // 36 + 1):
            for column in range(width // 36 + 1):
                away = math.hypot(column * 36 - cx, row * 36 - cy) / reach
                canvas.oval((255, 255, 255), column * 36 + 18 * (row % 2), row * 36, 3 + 13 * away)
    elif kind in ("neon", "glass"):
        for index in range(7):
            canvas.arc((255, 255, 255), 3, cx, cy, 90 + index * 82, 90 + index * 82, 0, 360)
    else:
        for index in range(14):
            canvas.line((255, 255, 255), 26, index * 120 - 500, -30, index * 120, height + 30)
    texture = _plain(canvas.image().getchannel("A"), mix(colours.light, inner, 0.2), 0.16)
    image.paste(texture, (0, 0), texture)
    return image


def ornament(kind: str, colours: Colours) -> list[tuple[Image.Image, int, int]]:
    """What lies over every frame: pictures (RGBA) with their left and top. Progress bar, ticker and rays move and are not here."""
    if kind == "letterbox":
        bar = Image.new("RGBA", (WIDTH, 62), (8, 7, 10, 255))
        return [(bar, 0, 0), (bar, 0, HEIGHT - 62)]
    if kind == "border":
        outer = Canvas(WIDTH, HEIGHT, 2)
        outer.box(colours.light, 0, 0, WIDTH, HEIGHT)
        inner = Canvas(WIDTH, HEIGHT, 2)
        inner.box(colours.light, 16, 16, WIDTH - 32, HEIGHT - 32, 26)
        frame = _plain(ImageChops.subtract(outer.image().getchannel("A"), inner.image().getchannel("A")), colours.light)
        strips = ((0, 0, WIDTH, 44), (0, HEIGHT - 44, WIDTH, HEIGHT), (0, 44, 17, HEIGHT - 44), (WIDTH - 17, 44, WIDTH, HEIGHT - 44))
        return [(frame.crop(strip), strip[0], strip[1]) for strip in strips]
    if kind == "viewfinder":
        corners = []
        for right in (0, 1):
            for bottom in (0, 1):
                canvas = Canvas(56, 56, 2)
                x, y = (52 if right else 4), (52 if bottom else 4)
                canvas.line(colours.light, 4, x, 4 if bottom else 52, x, y, 4 if right else 52, y)
                corners.append((canvas.image(), 26 + right * (WIDTH - 108), 30 + bottom * (HEIGHT - 116)))
        dot = Canvas(24, 24, 2)
        dot.oval((235, 50, 50), 12, 12, 9)
        return [*corners, (dot.image(), 52, 56)]
    if kind == "scanlines":
        lines = Image.new("L", (WIDTH, HEIGHT), 0)
        line = Image.new("L", (WIDTH, 2), 46)
        for y in range(0, HEIGHT, 5):
            lines.paste(line, (0, y))
        return [(_plain(lines, (0, 0, 0)), 0, 0)]
    if kind == "tape":
        pieces = []
        for x, y, angle in ((14, 16, 38), (WIDTH - 134, 16, -38)):
            canvas = Canvas(120, 120, 2)
            canvas.box(mix(colours.light, colours.c, 0.35), 2, 46, 116, 28)
            pieces.append(
                (
                    _plain(
                        canvas.image().rotate(angle, Image.Resampling.BICUBIC).getchannel("A"), mix(colours.light, colours.c, 0.35), 0.85
                    ),
                    x,
                    y,
                )
            )
        return pieces
    if kind == "dots":
        canvas = Canvas(WIDTH, 150, 2)
        for row in range(6):
            for column in range(24):
                canvas.oval((255, 255, 255), column * 24 + 12 * (row % 2), row * 24, max(0.5, 9 - row * 1.7))
        top = _plain(canvas.image().getchannel("A"), colours.light, 0.55)
        return [(top, 0, 0), (top.rotate(180), 0, HEIGHT - 150)]
    return []


def rays(colours: Colours, diameter: int) -> Image.Image:
    """A wheel of light with twelve spokes (RGBA); turned by 30 degrees it looks the same."""
    wheel = Canvas(diameter, diameter, 1)
    middle = diameter / 2
    for index in range(12):
        wheel.pie(colours.light, middle, middle, middle, middle, index * 30, index * 30 + 15)
    fading = glow(diameter, colours.light, 0.75).getchannel("A")
    return _plain(ImageChops.multiply(wheel.image().getchannel("A"), fading), mix(colours.light, colours.c, 0.3))
