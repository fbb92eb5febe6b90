"""Places under the sky: what lies behind and before the subject, as a still backdrop and layers that a camera moves at different speeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from PIL import Image

from generation.paint import HEIGHT, WIDTH, Canvas, Colours, Rgb, glow, gradient, luma, mix

MARGIN = 70  # how far the camera may move before a layer ends, pixels
WIDE = WIDTH + 2 * MARGIN
TALL = HEIGHT + 2 * MARGIN
HORIZON = 640


@dataclass(frozen=True)
class Layer:
    """A picture (RGBA, WIDE pixels wide) whose top is at `y`; the camera moves it by `depth` (0 far, 1 near), waves by `sway` pixels."""

    image: Image.Image
    y: int
    depth: float
    sway: float = 0.0


@dataclass(frozen=True)
class Place:
    """`backdrop`: RGB, WIDE x TALL. The subject stands before the `behind` layers and behind those `before` it."""

    backdrop: Image.Image
    behind: tuple[Layer, ...]
    before: tuple[Layer, ...] = ()


def sky(colours: Colours, random: Random, light: str = "auto") -> Image.Image:
    """A gradient sky with a sun or a moon and, by night, stars."""
    picture = gradient(WIDE, TALL, colours.sky_top, mix(colours.sky_top, colours.sky_bottom, 0.55), colours.sky_bottom, colours.sky_bottom)
    night = luma(colours.sky_top) < 80
    if night:
        for _ in range(70):
            x, y, size = random.randrange(WIDE), random.randrange(int(TALL * 0.6)), random.choice((1, 1, 2, 3))
            star = glow(size * 4, (255, 250, 230), 0.9)
            picture.paste(star, (x, y), star)
    if light != "none":
        x, y = random.randrange(150, WIDE - 150), random.randrange(210, 420)
        colour = (255, 244, 214) if night else mix((255, 246, 214), colours.sky_bottom, 0.2)
        halo = glow(460, colour, 0.55)
        picture.paste(halo, (x - 230, y - 230), halo)
        disc = Canvas(120, 120, 3)
        disc.oval(colour, 60, 60, 44 if night else 52)
        image = disc.image()
        picture.paste(image, (x - 60, y - 60), image)
    return picture


def _ridge(random: Random, roughness: float, step: int = 10) -> list[float]:
    """Heights in -1..1 along WIDE, one every `step` pixels: a few sines; rougher ones have more of the short waves."""
    waves = [(random.uniform(0.6, 1.4) * k, random.uniform(0, 6.3), roughness ** (k - 1) / k) for k in range(1, 8)]
    total = sum(weight for _, _, weight in waves)
    return [sum(w * math.sin(f * x / WIDE * 4 + p) for f, p, w in waves) / total for x in range(0, WIDE + step, step)]


def _land(colour: Rgb, top: int, swing: float, random: Random, depth: float, roughness: float = 0.5, sway: float = 0.0) -> Layer:
    """Rolling land, water or sand from `top` to the bottom of the picture."""
    step = 10
    swing_px = swing * 90
    canvas = Canvas(WIDE, TALL - top, 2)
    points: list[float] = []
    for index, height in enumerate(_ridge(random, roughness, step)):
        points += [index * step, swing_px + height * swing_px]
    canvas.poly(colour, *points, WIDE, TALL - top, 0, TALL - top)
    return Layer(canvas.image(), top, depth, sway)


def hills(colours: Colours, random: Random) -> Place:
    far, near = mix(colours.sky_bottom, colours.ground, 0.45), colours.ground
    front = Canvas(WIDE, 190, 2)
    for _ in range(120):
        x, h = random.randrange(WIDE), random.randrange(30, 120)
        lean, green = (
            random.uniform(-18, 18),
            mix(near, random.choice((colours.dark, colours.c, colours.sky_bottom)), random.uniform(0.15, 0.4)),
        )
        front.poly(green, x - 4, 190, x + 4, 190, x + lean, 190 - h)
    return Place(
        sky(colours, random),
        (_land(far, 520, 0.9, random, 0.25), _land(mix(far, near, 0.6), 590, 0.7, random, 0.5), _land(near, 660, 0.45, random, 0.8)),
        (Layer(front.image(), HEIGHT - 150, 1.4, 3),),
    )


def mountains(colours: Colours, random: Random) -> Place:
    def peaks(colour: Rgb, base: int, count: int, height: int, depth: float) -> Layer:
        canvas = Canvas(WIDE, TALL - base + height, 2)
        for index in range(count):
            x = (index + random.uniform(0.2, 0.8)) * WIDE / count
            top, half = random.uniform(0, height * 0.45), WIDE / count * random.uniform(0.8, 1.15)
            floor = TALL - base + height
            canvas.poly(colour, x - half, height, x, top, x + half, height, x + half, floor, x - half, floor)
            canvas.poly(mix(colour, colours.dark, 0.22), x, top, x + half, height, x + half * 0.2, height)
            snow = (height - top) * 0.26
            ratio = snow / (height - top)
            canvas.poly(
                mix(colours.light, colour, 0.12),
                *(x, top, x + half * ratio, top + snow, x + half * ratio * 0.4, top + snow * 0.8),
                *(x, top + snow * 1.2, x - half * ratio * 0.4, top + snow * 0.8, x - half * ratio, top + snow),
            )
        canvas.box(colour, 0, height, WIDE, TALL)
        return Layer(canvas.image(), base - height, depth)

    pines = Canvas(WIDE, 300, 2)
    for _ in range(26):
        x, h = random.randrange(WIDE), random.randrange(70, 150)
        green = mix(colours.ground, colours.dark, random.uniform(0.25, 0.6))
        for part in range(3):
            y, half = 130 - h * (0.35 + 0.3 * part) + 20, h * (0.3 - 0.06 * part)
            pines.poly(green, x - half, y + h * 0.38, x, y, x + half, y + h * 0.38)
    pines.box(mix(colours.ground, colours.dark, 0.45), 0, 128, WIDE, 180)
    far = mix(colours.sky_bottom, colours.ground, 0.45)
    return Place(
        sky(colours, random),
        (
            peaks(far, 620, 3, 300, 0.2),
            peaks(mix(far, colours.ground, 0.6), 680, 4, 210, 0.5),
            _land(colours.ground, 680, 0.3, random, 0.8),
        ),
        (Layer(pines.image(), HEIGHT - 170, 1.3),),
    )


def snow(colours: Colours, random: Random) -> Place:
    scene = mountains(colours, random)
    white = mix(colours.ground, colours.light, 0.5)
    drifts = (_land(mix(white, colours.sky_top, 0.2), 610, 0.5, random, 0.7), _land(white, 690, 0.4, random, 0.9))
    return Place(scene.backdrop, (*scene.behind[:2], *drifts), (_land(mix(white, (255, 255, 255), 0.5), 850, 0.3, random, 1.3),))


def forest(colours: Colours, random: Random) -> Place:
    def trees(colour: Rgb, base: int, count: int, depth: float) -> Layer:
        canvas = Canvas(WIDE, TALL - base + 420, 2)
        for index in range(count):
            x, h = (index + random.uniform(0, 1)) * WIDE / count, random.uniform(230, 410)
            for part in range(5):
                y, half = 420 - h + part * h * 0.17, h * (0.08 + 0.045 * part)
                canvas.poly(colour, x - half, y + h * 0.3, x, y, x + half, y + h * 0.3)
        canvas.box(colour, 0, 418, WIDE, TALL)
        return Layer(canvas.image(), base - 420, depth)

    far = mix(colours.sky_bottom, colours.ground, 0.5)
    layers = (trees(far, 600, 12, 0.2), trees(mix(far, colours.ground, 0.55), 660, 9, 0.5), _land(colours.ground, 690, 0.3, random, 0.9))
    front = Canvas(WIDE, 220, 2)
    for _ in range(60):
        x, h = random.randrange(WIDE), random.randrange(40, 130)
        front.poly(
            mix(colours.ground, colours.dark, random.uniform(0.3, 0.7)), x - 14, 220, x + 14, 220, x + random.uniform(-24, 24), 220 - h
        )
    return Place(sky(colours, random), layers, (Layer(front.image(), HEIGHT - 170, 1.4, 3),))


def ocean(colours: Colours, random: Random) -> Place:
    def shade(share: float) -> Rgb:
        return mix(mix(colours.sky_bottom, colours.ground, 0.4), colours.ground, share)

    behind = tuple(
        _land(shade(0.2 + 0.2 * index), 560 + 45 * index, 0.22, random, 0.2 + 0.2 * index, 0.9, 10 + 4 * index) for index in range(3)
    )
    before = tuple(
        _land(shade(0.8 + 0.2 * index), 715 + 75 * index, 0.26, random, 1.0 + 0.3 * index, 0.9, 20 + 6 * index) for index in range(2)
    )
    return Place(sky(colours, random), behind, before)


def beach(colours: Colours, random: Random) -> Place:
    sea = mix(colours.sky_top, colours.b, 0.45)
    foam = mix(colours.light, sea, 0.15)
    waves = (
        _land(mix(sea, colours.dark, 0.12), 560, 0.12, random, 0.3, 0.9, 8),
        _land(sea, 610, 0.14, random, 0.45, 0.9, 14),
        _land(foam, 660, 0.2, random, 0.6, 0.9, 18),
        _land(colours.ground, 680, 0.2, random, 0.8),
    )
    near = mix(colours.ground, colours.light, 0.35)
    return Place(sky(colours, random), waves, (_land(near, 850, 0.3, random, 1.3),))


def pitch(colours: Colours, random: Random) -> Place:
    grass = Canvas(WIDE, TALL - 600, 2)
    for index in range(9):
        shade = mix(colours.ground, colours.light if index % 2 else colours.dark, 0.1)
        top, bottom = 460 * (index / 9) ** 1.7, 480 * ((index + 1) / 9) ** 1.7
        grass.box(shade, 0, top, WIDE, bottom - top + 2)
    grass.arc(colours.light, 5, WIDE / 2, 150, 210, 62, 0, 360)
    grass.line(colours.light, 5, 0, 150, WIDE, 150)
    crowd = Canvas(WIDE, 170, 2)
    crowd.box(mix(colours.sky_bottom, colours.dark, 0.5), 0, 0, WIDE, 170)
    for _ in range(520):
        crowd.oval(
            mix(random.choice((colours.a, colours.b, colours.c, colours.light)), colours.dark, random.uniform(0, 0.5)),
            random.randrange(WIDE),
            random.randrange(12, 165),
            5,
        )
    for side in (130, WIDE - 130):
        crowd.box(colours.dark, side - 4, 0, 8, 40)
    return Place(sky(colours, random), (Layer(crowd.image(), 440, 0.4), Layer(grass.image(), 600, 0.8)))


def road(colours: Colours, random: Random) -> Place:
    lane = Canvas(WIDE, TALL - 640, 2)
    middle, grey = WIDE / 2, mix(colours.ground, colours.dark, 0.65)
    lane.box(mix(colours.ground, colours.sky_bottom, 0.2), 0, 0, WIDE, 500)
    lane.poly(grey, middle - 34, 0, middle + 34, 0, middle + 420, 420, middle - 420, 420)
    for side in (-1, 1):
        lane.poly(colours.light, middle + side * 30, 0, middle + side * 33, 0, middle + side * 400, 420, middle + side * 372, 420)
    for index in range(5):
        near, far = ((index + 0.15) / 5) ** 1.8, ((index + 0.65) / 5) ** 1.8
        lane.poly(
            colours.c,
            middle - 2 - 8 * near,
            420 * near,
            middle + 2 + 8 * near,
            420 * near,
            middle + 2 + 16 * far,
            420 * far,
            middle - 2 - 16 * far,
            420 * far,
        )
    far_hills = _land(mix(colours.sky_bottom, colours.ground, 0.5), 540, 0.8, random, 0.25)
    return Place(
        sky(colours, random),
        (far_hills, _land(mix(colours.sky_bottom, colours.ground, 0.8), 590, 0.4, random, 0.45), Layer(lane.image(), 640, 0.8)),
    )


def skyline(colours: Colours, random: Random) -> Place:
    night = luma(colours.sky_top) < 110

    def towers(colour: Rgb, base: int, depth: float, width: tuple[int, int], windows: bool) -> Layer:
        canvas = Canvas(WIDE, TALL - base + 420, 2)
        x: float = -20
        while x < WIDE:
            w, h = random.randrange(*width), random.randrange(130, 400)
            canvas.box(colour, x, 420 - h, w, h + 60)
            if random.random() < 0.4:
                canvas.box(colour, x + w * 0.3, 420 - h - 24, w * 0.4, 30)
                canvas.line(colour, 3, x + w / 2, 420 - h - 70, x + w / 2, 420 - h)
            if windows:
                lit = mix(colours.c if night else colours.light, colours.light, 0.3)
                for row in range(int(h / 24)):
                    for column in range(int((w - 14) / 17)):
                        if random.random() < (0.5 if night else 0.75):
                            shade = lit if random.random() < 0.75 else mix(colour, lit, 0.4)
                            canvas.box(shade if night else mix(colour, lit, 0.35), x + 10 + column * 17, 420 - h + 14 + row * 24, 9, 13, 1)
            x += w + random.randrange(0, 10)
        canvas.box(colour, 0, 418, WIDE, TALL)
        return Layer(canvas.image(), base - 420, depth)

    far = mix(colours.sky_bottom, colours.ground, 0.4)
    street = Canvas(WIDE, TALL - 690, 2)
    street.box(mix(colours.ground, colours.dark, 0.5), 0, 0, WIDE, 400)
    street.box(mix(colours.ground, colours.sky_bottom, 0.35), 0, 0, WIDE, 10)
    for index in range(9):
        street.box(mix(colours.ground, colours.light, 0.55), index * 90, 92, 46, 6, 3)
    return Place(
        sky(colours, random),
        (
            towers(far, 620, 0.2, (60, 110), False),
            towers(mix(far, colours.ground, 0.75), 690, 0.55, (80, 130), True),
            Layer(street.image(), 690, 0.9),
        ),
    )


def clouds(colours: Colours, random: Random) -> Place:
    def bank(colour: Rgb, top: int, size: tuple[int, int], count: int, depth: float) -> Layer:
        canvas = Canvas(WIDE, TALL - top, 2)
        for index in range(count):
            r = random.randrange(*size)
            canvas.oval(colour, (index + random.uniform(0, 1)) * WIDE / count, 120 + random.uniform(-20, 40), r * 1.25, r)
        canvas.box(colour, 0, 150, WIDE, TALL)
        return Layer(canvas.image(), top, depth, 5)

    puffs = Canvas(WIDE, 420, 2)
    for _ in range(5):
        x, y, r = random.randrange(WIDE), random.randrange(60, 360), random.randrange(20, 40)
        for dx, grow in ((-1.2, 0.7), (0, 1.1), (1.2, 0.8)):
            puffs.oval(mix(colours.light, colours.sky_top, 0.25), x + dx * r, y, r * grow * 1.3, r * grow)
    return Place(
        sky(colours, random),
        (
            Layer(puffs.image(), 150, 0.25, 8),
            bank(mix(colours.light, colours.ground, 0.5), 600, (50, 90), 11, 0.5),
            bank(mix(colours.light, colours.ground, 0.25), 680, (50, 90), 11, 0.8),
        ),
        (bank(colours.light, 800, (50, 80), 11, 1.3),),
    )


def space(colours: Colours, random: Random) -> Place:
    picture = gradient(WIDE, TALL, colours.sky_top, mix(colours.sky_top, colours.sky_bottom, 0.6), colours.sky_bottom)
    for _ in range(3):
        cloud = glow(random.randrange(380, 640), random.choice((colours.a, colours.b, colours.sky_bottom)), 0.34)
        picture.paste(cloud, (random.randrange(-200, WIDE - 200), random.randrange(-100, TALL - 300)), cloud)
    for _ in range(150):
        star = glow(random.choice((3, 4, 5, 8)), (255, 252, 240), 1.0)
        picture.paste(star, (random.randrange(WIDE), random.randrange(TALL)), star)
    world = Canvas(WIDE, 420, 2)
    x, y, r = random.randrange(160, 520), 200, random.randrange(80, 130)
    world.oval(mix(colours.b, colours.sky_top, 0.2), x, y, r)
    for index in range(4):
        world.arc(
            mix(colours.b, (colours.light, colours.dark)[index % 2], 0.3), 9, x, y - r * 0.3 + index * r * 0.2, r * 0.8, r * 0.22, 20, 160
        )
    world.arc(mix(colours.c, colours.sky_top, 0.2), 7, x, y, r * 1.6, r * 0.4, 350, 190)
    ground = _land(mix(colours.ground, colours.sky_bottom, 0.45), 740, 0.4, random, 0.8, 0.9)
    front = Canvas(WIDE, TALL - 830, 2)
    front.oval(mix(colours.ground, colours.sky_bottom, 0.2), WIDE / 2, 360, 620, 330)
    for _ in range(7):
        front.oval(
            mix(colours.ground, colours.dark, 0.4),
            random.randrange(60, WIDE - 60),
            random.randrange(100, 170),
            random.randrange(18, 46),
            10,
        )
    return Place(picture, (Layer(world.image(), 130, 0.25), ground), (Layer(front.image(), 830, 1.2),))
