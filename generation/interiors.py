"""Places made by people: rooms, stages, stalls, and a studio without a place."""

from __future__ import annotations

import math
from random import Random

from PIL import Image

from generation.landscapes import MARGIN, TALL, WIDE, Layer, Place, sky, skyline
from generation.paint import HEIGHT, Canvas, Colours, Rgb, glow, gradient, mix


def court(colours: Colours, random: Random) -> Place:
    floor = Canvas(WIDE, TALL - 640, 2)
    for index in range(16):
        x = WIDE / 2 + (index - 8) * 60
        floor.poly(
            mix(colours.ground, (colours.light, colours.dark)[index % 2], 0.1),
            x,
            0,
            x + 60,
            0,
            x + 60 + (index - 7.5) * 70,
            420,
            x + (index - 8.5) * 70,
            420,
        )
    floor.arc(colours.light, 6, WIDE / 2, 60, 230, 90, 0, 360)
    wall = Canvas(WIDE, 500, 2)
    for row in range(4):
        for column in range(11):
            wall.box(mix(colours.sky_bottom, colours.dark, 0.3 + 0.1 * ((row + column) % 3)), column * 66 + 3, 250 + row * 60, 60, 54, 6)
    wall.box(colours.light, WIDE / 2 - 95, 10, 190, 130, 8)
    wall.box(mix(colours.light, colours.dark, 0.12), WIDE / 2 - 85, 20, 170, 110, 4)
    wall.box(colours.a, WIDE / 2 - 36, 62, 72, 52, 2)
    wall.box(mix(colours.light, colours.dark, 0.12), WIDE / 2 - 30, 68, 60, 40, 2)
    wall.arc(colours.a, 8, WIDE / 2, 150, 44, 12, 0, 360)
    for index in range(7):
        x = WIDE / 2 - 42 + index * 14
        wall.line(colours.light, 2, x, 152, WIDE / 2 + (x - WIDE / 2) * 0.55, 214)
    return Place(sky(colours, random, "none"), (Layer(wall.image(), 160, 0.4), Layer(floor.image(), 640, 0.8)))


def market(colours: Colours, random: Random) -> Place:
    far = skyline(colours, random)
    stalls = Canvas(WIDE, TALL - 420, 2)
    stalls.box(mix(colours.ground, colours.dark, 0.35), 0, 60, WIDE, 700)
    for index in range(4):
        x, stripe = index * 180 - 20, (colours.a, colours.b, colours.c)[index % 3]
        stalls.box(mix(colours.ground, colours.sky_bottom, 0.25), x + 6, 60, 158, 190, 4)
        stalls.box(mix(stripe, colours.light, 0.5), x + 18, 130, 134, 90, 6)
        for part in range(8):
            colour = stripe if part % 2 else colours.light
            stalls.poly(colour, x + part * 21.5, 20, x + 21.5 + part * 21.5, 20, x + 21.5 + part * 21.5, 84, x + part * 21.5, 84)
            stalls.oval(colour, x + part * 21.5 + 10.75, 84, 10.75, 11)
    stalls.box(mix(colours.ground, colours.light, 0.12), 0, 240, WIDE, 24, 4)
    lights = Canvas(WIDE, 150, 2)
    for index in range(24):
        hang = 40 + 70 * math.sin(math.pi * (index % 8) / 8)
        lights.oval(mix((255, 226, 150), (colours.a, colours.b, colours.c)[index % 3], 0.25), index * WIDE / 23, hang, 8, 10)
    return Place(far.backdrop, (far.behind[0], Layer(stalls.image(), 420, 0.7), Layer(lights.image(), 330, 0.9, 4)))


def _interior(colours: Colours, random: Random) -> tuple[Image.Image, Canvas, Rgb, int]:
    wall = gradient(
        WIDE, TALL, mix(colours.sky_top, colours.light, 0.15), colours.sky_bottom, mix(colours.sky_bottom, colours.ground, 0.35)
    )
    canvas = Canvas(WIDE, TALL, 2)
    frame = mix(colours.light, colours.sky_bottom, 0.1)
    x = random.choice((70, WIDE - 300))
    canvas.box(frame, x, 190, 230, 270, 10)
    canvas.box(mix(colours.sky_top, (150, 205, 240), 0.55), x + 14, 204, 202, 242, 4)
    canvas.oval(mix((255, 240, 200), colours.c, 0.2), x + 150, 290, 34)
    canvas.box(frame, x + 110, 204, 10, 242)
    canvas.box(frame, x + 14, 318, 202, 10)
    return wall, canvas, frame, x


def kitchen(colours: Colours, random: Random) -> Place:
    wall, canvas, frame, window = _interior(colours, random)
    left = 400 if window < WIDE / 2 else 70  # the shelf hangs where the window is not
    for row in range(2):
        y = 270 + row * 130
        canvas.box(mix(colours.ground, colours.dark, 0.2), left, y, 210, 12, 3)
        for index in range(4):
            h, colour = random.randrange(36, 80), random.choice((colours.a, colours.b, colours.c, frame))
            canvas.box(mix(colour, colours.sky_bottom, 0.25), left + 12 + index * 50, y - h, 34, h, 8)
    for row in range(3):
        for column in range(12):
            canvas.box(
                mix(colours.light, colours.sky_bottom, 0.35 + 0.1 * ((row + column) % 2)), column * 60 + 2, 500 + row * 52, 56, 48, 4
            )
    counter = Canvas(WIDE, TALL - 690, 2)
    counter.box(colours.ground, 0, 20, WIDE, 400)
    counter.box(mix(colours.ground, colours.light, 0.4), 0, 0, WIDE, 34, 4)
    for index in range(4):
        counter.box(mix(colours.ground, colours.dark, 0.18), index * 180 + 10, 60, 160, 260, 10)
        counter.oval(mix(colours.ground, colours.light, 0.5), index * 180 + 90, 86, 7)
    return Place(wall, (Layer(canvas.image(), -MARGIN, 0.35), Layer(counter.image(), 690, 0.8)))


def room(colours: Colours, random: Random) -> Place:
    wall, canvas, frame, window = _interior(colours, random)
    left = 400 if window < WIDE / 2 else 90
    for index in range(3):
        x, y, w, h = left + (index % 2) * 110, 220 + (index // 2) * 150 + (index % 2) * 30, 92, 116
        canvas.box(frame, x, y, w, h, 4)
        canvas.box(mix((colours.a, colours.b, colours.c)[index], colours.sky_bottom, 0.3), x + 9, y + 9, w - 18, h - 18)
        canvas.oval(mix((colours.b, colours.c, colours.a)[index], colours.light, 0.3), x + w / 2, y + h / 2, 20)
    floor = Canvas(WIDE, TALL - 660, 2)
    floor.box(colours.ground, 0, 0, WIDE, 440)
    for index in range(7):
        floor.line(mix(colours.ground, colours.dark, 0.2), 2, 0, 30 + index * index * 9, WIDE, 30 + index * index * 9)
    floor.box(mix(colours.light, colours.sky_bottom, 0.3), 0, 0, WIDE, 14)
    floor.oval(mix(colours.b, colours.ground, 0.35), WIDE / 2, 120, 290, 62)
    floor.oval(mix(colours.b, colours.light, 0.35), WIDE / 2, 120, 240, 48)
    return Place(wall, (Layer(canvas.image(), -MARGIN, 0.35), Layer(floor.image(), 660, 0.8)))


def boutique(colours: Colours, random: Random) -> Place:
    wall = gradient(WIDE, TALL, colours.sky_top, colours.sky_bottom, mix(colours.sky_bottom, colours.ground, 0.4))
    canvas = Canvas(WIDE, TALL, 2)
    for index in range(9):
        canvas.box(mix(colours.sky_top, colours.light, 0.25 if index % 2 else 0.02), index * 80, 0, 80, 720)
    canvas.pie(mix(colours.light, colours.sky_bottom, 0.15), WIDE / 2, 420, 210, 290, 180, 360)
    canvas.box(mix(colours.light, colours.sky_bottom, 0.15), WIDE / 2 - 210, 420, 420, 320)
    canvas.pie(mix(colours.sky_top, colours.light, 0.55), WIDE / 2, 420, 192, 272, 180, 360)
    canvas.box(mix(colours.sky_top, colours.light, 0.55), WIDE / 2 - 192, 420, 384, 320)
    for side in (-1, 1):
        for index in range(6):
            colour = mix(random.choice((colours.a, colours.b, colours.c)), colours.sky_bottom, 0.25)
            canvas.oval(colour, WIDE / 2 + side * (262 + random.randrange(-30, 30)), 560 + index * 24, 34, 26)
    podium = Canvas(WIDE, TALL - 690, 2)
    podium.box(mix(colours.ground, colours.light, 0.25), 0, 30, WIDE, 400)
    podium.oval(mix(colours.ground, colours.dark, 0.15), WIDE / 2, 92, 230, 50)
    podium.oval(mix(colours.light, colours.ground, 0.25), WIDE / 2, 74, 220, 46)
    return Place(wall, (Layer(canvas.image(), -MARGIN, 0.35), Layer(podium.image(), 690, 0.8)))


def stage(colours: Colours, random: Random) -> Place:
    hall = gradient(WIDE, TALL, colours.dark, colours.sky_top, colours.sky_bottom, mix(colours.ground, colours.dark, 0.4))
    for index in range(5):
        x = WIDE * (index + 0.5) / 5 + random.uniform(-20, 20)
        beam = Canvas(WIDE, TALL, 1)
        beam.poly(
            (colours.a, colours.b, colours.c)[index % 3],
            x - 10,
            0,
            x + 10,
            0,
            WIDE / 2 + (index - 2) * 190 + 70,
            760,
            WIDE / 2 + (index - 2) * 190 - 70,
            760,
        )
        light = beam.image()
        light.putalpha(light.getchannel("A").point([round(value * 0.26) for value in range(256)]))
        hall.paste(light, (0, 0), light)
    curtain = Canvas(WIDE, 700, 2)
    for side in (0, 1):
        for index in range(4):
            x = index * 34 if side == 0 else WIDE - index * 34
            w = 40 - index * 5
            curtain.oval(mix(colours.sky_bottom, (colours.dark, colours.a)[index % 2], 0.45), x, 300, w, 420)
    floor = Canvas(WIDE, TALL - 700, 2)
    floor.oval(mix(colours.ground, colours.sky_bottom, 0.25), WIDE / 2, 130, 480, 130)
    floor.oval(mix(colours.ground, colours.c, 0.22), WIDE / 2, 90, 250, 56)
    floor.box(colours.ground, 0, 150, WIDE, 300)
    heads = Canvas(WIDE, 170, 2)
    for index in range(15):
        x, y = index * 50 + random.randrange(-12, 12), random.randrange(60, 100)
        heads.oval(colours.dark, x, y, 25, 28)
        heads.oval(colours.dark, x, y + 90, 48, 64)
        if random.random() < 0.4:
            heads.line(colours.dark, 15, x + 26, y + 70, x + 34, y - 36)
    return Place(hall, (Layer(curtain.image(), -40, 0.3), Layer(floor.image(), 700, 0.7)), (Layer(heads.image(), HEIGHT - 130, 1.3, 4),))


def grid(colours: Colours, random: Random) -> Place:
    dusk = gradient(WIDE, TALL, colours.dark, colours.sky_top, colours.sky_bottom, colours.sky_bottom)
    sun = Canvas(360, 360, 2)
    for index in range(60):
        y = index * 6
        half = math.sqrt(max(0.0, 180**2 - (y + 3 - 180) ** 2))
        if index < 30 or index % 6 > (index - 30) // 8:
            sun.box(mix(colours.c, (255, 214, 90), 1 - index / 60), 180 - half, y, 2 * half, 6.4)
    halo = glow(620, colours.c, 0.5)
    dusk.paste(halo, (WIDE // 2 - 310, 250), halo)
    disc = sun.image()
    dusk.paste(disc, (WIDE // 2 - 180, 380), disc)
    floor = Canvas(WIDE, TALL - 640, 2)
    floor.box(mix(colours.ground, colours.dark, 0.4), 0, 0, WIDE, 440)
    for index in range(-14, 15):
        floor.line(colours.b, 2, WIDE / 2 + index * 26, 0, WIDE / 2 + index * 150, 440)
    for index in range(11):
        floor.line(colours.b, 2, 0, 440 * (index / 10) ** 2, WIDE, 440 * (index / 10) ** 2)
    blocks = Canvas(WIDE, 160, 1)
    for _ in range(16):
        x, h = random.randrange(0, WIDE, 20), random.randrange(1, 7) * 20
        blocks.box(mix(colours.sky_top, colours.dark, 0.5), x, 160 - h, 60, h)
    return Place(dusk, (Layer(blocks.image(), 485, 0.3), Layer(floor.image(), 640, 0.7)))


def studio(colours: Colours, random: Random) -> Place:
    wall = gradient(WIDE, TALL, colours.sky_top, mix(colours.sky_top, colours.sky_bottom, 0.5), colours.sky_bottom)
    far = Canvas(WIDE, TALL, 2)
    for _ in range(7):
        colour = mix(random.choice((colours.a, colours.b, colours.c)), colours.sky_top, 0.62)
        x, y, r = random.randrange(WIDE), random.randrange(120, 760), random.randrange(40, 150)
        kind = random.randrange(3)
        if kind == 0:
            far.oval(colour, x, y, r)
        elif kind == 1:
            far.arc(colour, 16, x, y, r, r, 0, 360)
        else:
            far.poly(colour, x - r, y + r, x, y - r, x + r, y + r)
    near = Canvas(WIDE, TALL, 2)
    for _ in range(12):
        colour = mix(random.choice((colours.a, colours.b, colours.c)), colours.light, 0.2)
        x, y = random.choice((random.randrange(90), random.randrange(WIDE - 90, WIDE))), random.randrange(140, 820)
        near.line(colour, 10, x, y, x + random.randrange(-40, 40), y + random.randrange(20, 60))
    base = Canvas(WIDE, TALL - 690, 2)
    base.oval(mix(colours.ground, colours.light, 0.12), WIDE / 2, 330, 560, 330)
    base.oval(colours.ground, WIDE / 2, 92, 210, 48)
    base.oval(mix(colours.ground, colours.light, 0.4), WIDE / 2, 72, 200, 44)
    return Place(wall, (Layer(far.image(), -MARGIN, 0.25), Layer(near.image(), -MARGIN, 0.9, 3), Layer(base.image(), 690, 0.7)))
