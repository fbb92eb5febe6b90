"""The frames of a video: places, subjects, words and ornaments put together, 24 times a second."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random

from PIL import Image, ImageDraw, ImageFilter

from generation import finish, motion, scenery, typography
from generation.paint import HEIGHT, LIGHT, WIDTH, Canvas, Colours, Stamp, glow, luma, mix, sprite, turned
from generation.storyboard import FRAMES_PER_SECOND, Plan, Shot, ShotKind, Storyboard, seed_of

# Where things are, by layout: the middle of the title and of the subject in a wide shot, pixels from the top.
_TITLES = {"top": 200, "centre": 330, "lower": 690, "left": 210}
_HERO_Y = {"top": 585, "centre": 640, "lower": 385, "left": 600}


class Picture:
    """Draws a storyboard. Everything that does not change is drawn once, when its shot begins."""

    def __init__(self, board: Storyboard) -> None:
        plan = board.plan
        self.board = board
        self.plan = plan
        self.colours = Colours.of(plan.theme.palette, plan.style.grade, plan.hue, plan.hour)
        self.style = plan.style
        self._random = Random(seed_of(plan.content_seed, plan.creative_seed))
        self._place = scenery.place(plan.theme.scene, self.colours, plan.content_seed)
        self._particles = motion.Particles(plan.theme.particles, self.colours, plan.content_seed)
        self._ornaments = finish.ornament(plan.style.ornament, self.colours)
        words = [word for line in board.lines for word in line.words]
        self._subtitles = typography.subtitles(
            words, "manrope" if plan.style.font == "amatic" else plan.style.font, self.colours, WIDTH - 40
        )
        self._hero = {size: Stamp(self._finished(plan.theme.hero, size)) for size in (280, 400)}
        self._extras = [Stamp(self._finished(name, 96)) for name in plan.theme.extras]
        self._title = self._block(plan.title, 86)
        self._scenes: dict[ShotKind, Scene] = {}

    def _finished(self, name: str, size: int) -> Image.Image:
        return finish.FINISHES[self.style.finish](sprite(name, size, self.colours, finish.MARGIN), self.colours)

    def _block(self, text: str, size: int) -> typography.Block:
        align = "left" if self.style.layout == "left" else "centre"
        return typography.block(
            typography.cased(text, self.style.case), self.style.font, self.style.finish, self.colours, WIDTH - 90, size, align
        )

    def frames(self) -> Iterator[Image.Image]:
        """RGB frames, WIDTH x HEIGHT, from the first to the last."""
        for index in range(round(self.board.seconds * FRAMES_PER_SECOND)):
            yield self.frame(index / FRAMES_PER_SECOND)

    def frame(self, seconds: float) -> Image.Image:
        """The picture at a time."""
        shots = self.board.shots
        current = max(index for index, shot in enumerate(shots) if shot.start <= seconds + 1e-9)
        change, lasting = motion.TRANSITIONS[self.style.transition]
        shot = shots[current]
        frame = self._scene(shot).draw(shot, seconds)
        passed = seconds - shot.start
        if current and passed < min(lasting, shot.end - shot.start):
            before = shots[current - 1]
            frame = change(self._scene(before).draw(before, seconds), frame, passed / lasting, self.colours.c)
        self._overlay(frame, seconds)
        return frame

    def _scene(self, shot: Shot) -> Scene:
        if shot.kind not in self._scenes:
            self._scenes[shot.kind] = {"wide": Wide, "close": Close, "panels": Panels, "call": Call}[shot.kind](self)
        return self._scenes[shot.kind]

    def beat(self, seconds: float) -> float:
        """1 on the beat, falling towards 0 until the next."""
        return math.exp(-4.5 * (seconds * self.plan.tempo / 60 % 1))

    def _overlay(self, frame: Image.Image, seconds: float) -> None:
        for image, x, y in self._ornaments:
            if self.style.ornament == "viewfinder" and image.width == 24 and seconds % 1 > 0.6:
                continue  # the recording light blinks
            frame.paste(image, (x, y), image)
        draw = ImageDraw.Draw(frame)
        if self.style.ornament == "progress":
            draw.rectangle((0, 0, WIDTH, 9), fill=mix(self.colours.dark, (0, 0, 0), 0.3))
            draw.rectangle((0, 0, round(WIDTH * seconds / self.board.seconds), 9), fill=self.colours.c)
        elif self.style.ornament == "ticker":
            draw.rectangle((0, HEIGHT - 58, WIDTH, HEIGHT), fill=self.colours.a)
            face = typography.font("manrope", 26)
            text = f"{self.plan.theme.name}  •  {self.plan.title}  •  ".upper()
            length = face.getlength(text)
            offset = -(seconds * 110) % length - length
            ink = (255, 255, 255) if luma(self.colours.a) < 150 else self.colours.dark
            while offset < WIDTH:
                draw.text((offset, HEIGHT - 29), text, fill=ink, font=face, anchor="lm")
                offset += length
        for subtitle in self._subtitles:
            if subtitle.start <= seconds < subtitle.end:
                y = 826 if self.style.ornament != "letterbox" else 812
                frame.paste(subtitle.image, ((WIDTH - subtitle.image.width) // 2, y), subtitle.image)

    def put_block(self, frame: Image.Image, block: typography.Block, top: float, since: float, stamps: list[Stamp]) -> None:
        """Reveal a block of words, one after the other, `since` seconds after it began."""
        left = (WIDTH - block.width) / 2
        for index, (word, stamp) in enumerate(zip(block.words, stamps, strict=True)):
            share = motion.clamp((since - 0.1 - 0.13 * index) / 0.3)
            if share <= 0:
                continue
            x, y = left + word.cx, top + word.cy
            eased = motion.ease_out(share)
            if self.style.reveal == "pop":
                stamp.put(frame, x, y, max(0.05, motion.overshoot(share)))
            elif self.style.reveal == "rise":
                stamp.put(frame, x, y + 46 * (1 - eased), 1.0, 0.0, share)
            elif self.style.reveal == "slide":
                stamp.put(frame, x + (WIDTH if index % 2 else -WIDTH) * (1 - eased), y)
            elif self.style.reveal == "drop":
                stamp.put(frame, x, y - 300 * (1 - motion.overshoot(share)))
            elif self.style.reveal == "type":
                if share > 0.25:
                    stamp.put(frame, x, y)
            else:
                stamp.put(frame, x, y, 1.0, 0.0, share)

    @property
    def place(self) -> scenery.Place:
        return self._place

    @property
    def particles(self) -> motion.Particles:
        return self._particles

    @property
    def title(self) -> typography.Block:
        return self._title

    @property
    def extras(self) -> list[Stamp]:
        return self._extras

    def hero(self, size: int) -> Stamp:
        return self._hero[size]

    def finished(self, name: str, size: int) -> Stamp:
        return Stamp(self._finished(name, size))


class Scene:
    """One kind of shot of one video."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.plan: Plan = picture.plan
        self.colours = picture.colours
        self.style = picture.style

    def draw(self, shot: Shot, seconds: float) -> Image.Image:
        raise NotImplementedError

    def view(self, shot: Shot, seconds: float) -> motion.View:
        share = (seconds - shot.start) / (shot.end - shot.start)
        return motion.camera(self.style.camera, share, seconds, self.plan.mirrored)


class Wide(Scene):
    """The place with the subject in it, and the title."""

    def __init__(self, picture: Picture) -> None:
        super().__init__(picture)
        self._title = [Stamp(word.image) for word in picture.title.words]
        self._rays = (
            [Stamp(finish.rays(self.colours, 760).rotate(angle, Image.Resampling.BILINEAR)) for angle in range(0, 30, 5)]
            if self.style.ornament == "rays"
            else []
        )
        self._spot = Stamp(glow(560, mix(self.colours.sky_bottom, LIGHT, 0.5), 0.5))

    def draw(self, shot: Shot, seconds: float) -> Image.Image:
        view, place, margin = self.view(shot, seconds), self.picture.place, scenery.MARGIN
        x, y = round(margin + view.dx * 0.12), round(margin + view.dy * 0.12)
        frame = place.backdrop.crop((x, y, x + WIDTH, y + HEIGHT))
        layout = self.style.layout
        hero_y = _HERO_Y[layout]
        hero_x = WIDTH / 2 + (60 if layout == "left" else 0) - view.dx * 0.8
        self._layers(frame, place.behind, view, seconds)
        if self._rays:
            self._rays[round(seconds * 10) % 6].put(frame, hero_x, hero_y)
        else:
            self._spot.put(frame, hero_x, hero_y)
        bob = 9 * math.sin(seconds * 2.6)
        enter = motion.overshoot((seconds - shot.start + 0.15) / 0.45)
        scale = view.zoom * (0.55 + 0.45 * enter) * (1 + 0.05 * self.picture.beat(seconds))
        self.picture.hero(280).put(frame, hero_x, hero_y + bob - view.dy * 0.8, scale, 5 * math.sin(seconds * 1.9))
        for index, stamp in enumerate(self.picture.extras):
            angle = seconds * 0.75 + index * math.tau / 3
            away = 214 + 12 * math.sin(seconds * 2 + index)
            stamp.put(
                frame,
                hero_x + away * math.cos(angle),
                hero_y - 20 + away * 0.62 * math.sin(angle),
                1 + 0.1 * math.sin(angle),
                10 * math.sin(seconds * 2 + index),
            )
        self._layers(frame, place.before, view, seconds)
        self.picture.particles.put(frame, seconds, -view.dx, -view.dy)
        block = self.picture.title
        top = _TITLES[layout] - (block.height / 2 if layout != "top" else 70)
        if layout == "lower":
            top = min(top, 800 - block.height)
        self.picture.put_block(frame, block, top, seconds - shot.start, self._title)
        return frame

    def _layers(self, frame: Image.Image, layers: tuple[scenery.Layer, ...], view: motion.View, seconds: float) -> None:
        for layer in layers:
            x = -scenery.MARGIN - view.dx * layer.depth * 0.7 + layer.sway * math.sin(seconds * 1.6 + layer.y)
            y = layer.y - view.dy * layer.depth * 0.7 + layer.sway * 0.25 * math.cos(seconds * 2.1 + layer.y)
            top = max(0, -round(y))
            height = min(layer.image.height, HEIGHT - round(y)) - top
            if height <= 0:
                continue
            left = min(max(0, -round(x)), layer.image.width - WIDTH)
            part = layer.image.crop((left, top, left + WIDTH, top + height))
            frame.paste(part, (0, round(y) + top), part)


class Close(Scene):
    """The subject, large, before the style's texture; its companions pass by."""

    def __init__(self, picture: Picture) -> None:
        super().__init__(picture)
        margin = scenery.MARGIN
        self._backdrop = finish.pattern(self.style.finish, self.colours, WIDTH + 2 * margin, HEIGHT + 2 * margin)
        self._chip = Stamp(typography.chip(self.plan.theme.name, "manrope", self.colours))

    def draw(self, shot: Shot, seconds: float) -> Image.Image:
        view, margin = self.view(shot, seconds), scenery.MARGIN
        x, y = round(margin + view.dx * 0.5), round(margin + view.dy * 0.5)
        frame = self._backdrop.crop((x, y, x + WIDTH, y + HEIGHT))
        since = seconds - shot.start
        for index, stamp in enumerate(self.picture.extras):
            angle = -since * 1.1 + index * math.tau / 3 + self.plan.creative_seed % 6
            stamp.put(
                frame,
                WIDTH / 2 + 225 * math.cos(angle) - view.dx,
                455 + 310 * math.sin(angle) - view.dy,
                1.25,
                14 * math.sin(seconds * 2.4 + index),
            )
        enter = motion.overshoot((since + 0.1) / 0.4)
        scale = (0.7 + 0.3 * enter) * view.zoom * 0.92 * (1 + 0.04 * self.picture.beat(seconds))
        tilt = (-6 if self.plan.mirrored else 6) * math.sin(seconds * 1.6)
        self.picture.hero(400).put(frame, WIDTH / 2 - view.dx * 0.3, 455 + 8 * math.sin(seconds * 2.4) - view.dy * 0.3, scale, tilt)
        self.picture.particles.put(frame, seconds, -view.dx, -view.dy)
        self._chip.put(frame, WIDTH / 2, 130 - 120 * (1 - motion.ease_out(since / 0.35)))
        return frame


class Panels(Scene):
    """Three bands, each with one of the subject's companions, coming in from the sides on the beat."""

    def __init__(self, picture: Picture) -> None:
        super().__init__(picture)
        shades = [mix(shade, self.colours.sky_bottom, 0.25) for shade in (self.colours.a, self.colours.b, self.colours.c)]
        self._bands = []
        height = HEIGHT // 3
        for index, shade in enumerate(shades):
            band = finish.pattern(self.style.finish, self.colours, WIDTH, height)
            band = Image.blend(band, Image.new("RGB", band.size, shade), 0.6)
            ImageDraw.Draw(band).rectangle((0, height - 6, WIDTH, height), fill=self.colours.light)
            self._bands.append((band, picture.finished(self.plan.theme.extras[index], 210)))

    def draw(self, shot: Shot, seconds: float) -> Image.Image:
        since = seconds - shot.start
        frame = Image.new("RGB", (WIDTH, HEIGHT), mix(self.colours.sky_top, self.colours.dark, 0.4))
        for index, (band, stamp) in enumerate(self._bands):
            share = motion.ease_out((since - 0.13 * index) / 0.3) if shot.start > 0 else 1.0
            side = 1 if (index + self.plan.mirrored) % 2 else -1
            x, y = round(side * WIDTH * (1 - share)), index * HEIGHT // 3
            frame.paste(band, (x, y))
            along = 60 * side * (since / max(0.1, shot.end - shot.start) - 0.5)
            stamp.put(
                frame,
                WIDTH / 2 + x * 1.4 + along,
                y + HEIGHT / 6,
                1 + 0.06 * self.picture.beat(seconds),
                8 * math.sin(seconds * 2.2 + index),
            )
        return frame


class Call(Scene):
    """The call to action: the place out of focus, the subject small, and a button that is tapped."""

    def __init__(self, picture: Picture) -> None:
        super().__init__(picture)
        margin = scenery.MARGIN
        place = picture.place
        backdrop = place.backdrop.crop((margin, margin, margin + WIDTH, margin + HEIGHT))
        for layer in (*place.behind, *place.before):
            backdrop.paste(layer.image, (-margin, layer.y), layer.image)
        small = backdrop.resize((WIDTH // 4, HEIGHT // 4), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(4))
        shade = turned(mix(self.colours.dark, self.colours.b, 0.5), 0, 1.3)
        self._backdrop = Image.blend(small, Image.new("RGB", small.size, shade), 0.45).resize(
            (WIDTH + 2 * margin, HEIGHT + 2 * margin), Image.Resampling.BICUBIC
        )
        self._button = Stamp(
            typography.button(self.plan.button, "manrope" if self.style.font == "amatic" else self.style.font, self.colours)
        )
        self._words = (
            picture.title
            if picture.title.height < 240
            else typography.block(self.plan.title, self.style.font, self.style.finish, self.colours, WIDTH - 90, 64)
        )
        self._title = [Stamp(word.image) for word in self._words.words]
        self._ring = Stamp(_ring())
        self._spot = Stamp(glow(620, mix(self.colours.c, LIGHT, 0.3), 0.5))

    def draw(self, shot: Shot, seconds: float) -> Image.Image:
        view, margin = self.view(shot, seconds), scenery.MARGIN
        x, y = round(margin + view.dx * 0.4), round(margin + view.dy * 0.4)
        frame = self._backdrop.crop((x, y, x + WIDTH, y + HEIGHT))
        since = seconds - shot.start
        self._spot.put(frame, WIDTH / 2, 400)
        self.picture.particles.put(frame, seconds, -view.dx, -view.dy)
        self.picture.hero(280).put(
            frame,
            WIDTH / 2,
            400 + 8 * math.sin(seconds * 2.6),
            (0.6 + 0.4 * motion.overshoot(since / 0.4)) * 0.92,
            6 * math.sin(seconds * 2),
        )
        self.picture.put_block(frame, self._words, 190 - self._words.height / 2, since + 0.15, self._title)
        enter = motion.overshoot((since - 0.15) / 0.4)
        if enter > 0:
            pressed = max(0.0, 1 - abs(since - 0.95) / 0.12)
            self._button.put(frame, WIDTH / 2, 690 + 300 * (1 - enter), 1 + 0.04 * self.picture.beat(seconds) - 0.07 * pressed)
        ripple = (since - 0.95) / 0.5
        if 0 < ripple < 1:
            self._ring.put(frame, WIDTH / 2 + 90, 700, 0.3 + 1.1 * ripple, 0, 1 - ripple)
        return frame


def _ring() -> Image.Image:
    canvas = Canvas(180, 180, 2)
    canvas.arc((255, 255, 255), 8, 90, 90, 78, 78, 0, 360)
    return canvas.image()
