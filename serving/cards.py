"""Videos as people see them: a title, a few attributes, and a drawn picture for a video that has no file here."""

from __future__ import annotations

import colorsys
import hashlib
import math
import random
from collections.abc import Sequence
from html import escape
from typing import Any

import msgspec

from serving.cache import CachedVideo, Codes, sid_text
from serving.model import Codebook

SHOWN = ("author_id", "tag", "video_type", "upload_type", "music_id", "width", "height")


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """One video on the page."""

    item_id: int
    title: str
    sid: list[int] | None
    uri: str
    poster: str
    duration_ms: int
    generated: bool
    attributes: dict[str, Any]


class Cards:
    """Cards of one bundle; the catalogue's columns are read row by row when a card is asked for."""

    def __init__(self, codebook: Codebook, catalogue: Any = None) -> None:
        self._codebook = codebook
        self._catalogue = catalogue
        ids = catalogue.column("item_id").to_pylist() if catalogue is not None else []
        self._rows = {item: row for row, item in enumerate(ids)}

    def card(self, item_id: int) -> Card:
        """The card of any item; one that is not known here says so in its title."""
        video = self._codebook.shelf.video(item_id)
        attributes = self._attributes(item_id)
        title = attributes.pop("title", None) or self._title(item_id, video, attributes)
        return Card(
            item_id=item_id,
            title=str(title),
            sid=list(video.sid) if video else None,
            uri=video.uri if video else f"/posters/{item_id}.svg",
            poster=f"/posters/{item_id}.svg",
            duration_ms=video.duration_ms if video else int(attributes.get("duration_ms") or 0),
            generated=bool(video and video.generated),
            attributes=attributes,
        )

    def poster(self, item_id: int) -> str:
        """The picture of any item, as SVG."""
        card = self.card(item_id)
        sid = tuple(card.sid) if card.sid else _any_sid(item_id)
        return poster(sid, self._codebook.content_levels if card.sid else 2, card.title, sid_text(sid) if card.sid else "")

    def _attributes(self, item_id: int) -> dict[str, Any]:
        row = self._rows.get(item_id)
        if row is None:
            return {}
        names = [name for name in ("title", "duration_ms", *SHOWN) if name in self._catalogue.column_names]
        values = {name: self._catalogue.column(name)[row].as_py() for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def _title(self, item_id: int, video: CachedVideo | None, attributes: dict[str, Any]) -> str:
        if video is not None and video.generated:
            return f"Made for {sid_text(video.sid)}"
        if "tag" in attributes:
            return f"Topic {attributes['tag']} · creator {attributes.get('author_id', '?')}"
        return f"Video {item_id}"


def poster(sid: Codes, content_levels: int, title: str, caption: str) -> str:
    """A 9:16 picture: the content codes choose the colours, the creative codes the shapes, so that like SIDs look alike."""
    content, creative = sid[:content_levels], sid[content_levels:]
    hue = _unit(content[:1])
    second = (hue + 0.08 + 0.22 * _unit(content)) % 1.0
    colours = [_colour(hue, 0.55, 0.42), _colour(second, 0.6, 0.26), _colour(hue, 0.75, 0.72), _colour(second, 0.7, 0.6)]
    shapes = _shapes(creative, colours[2], colours[3])
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 270 480" role="img">'
        f'<title>{escape(title)}</title><defs><linearGradient id="g" x1="0" y1="0" x2="1" y2="1">'
        f'<stop offset="0" stop-color="{colours[0]}"/><stop offset="1" stop-color="{colours[1]}"/></linearGradient></defs>'
        f'<rect width="270" height="480" fill="url(#g)"/>{shapes}'
        f'<text x="18" y="436" font-family="ui-monospace,monospace" font-size="13" fill="#fff" fill-opacity=".72">{escape(caption)}</text>'
        "</svg>"
    )


def _shapes(creative: Sequence[int], bright: str, other: str) -> str:
    chance = random.Random(",".join(map(str, creative)))
    style = (creative[0] if creative else 0) % 4
    x, y = 60 + chance.random() * 150, 120 + chance.random() * 200
    drawn = []
    for step in range(7):
        fade = 0.34 - step * 0.035
        size = 26 + step * (18 + chance.random() * 10)
        colour = bright if step % 2 else other
        stroke = f'fill="none" stroke="{colour}" stroke-width="{5 + chance.random() * 5:.1f}" stroke-opacity="{fade + 0.1:.2f}"'
        if style == 0:
            drawn.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="{size:.0f}" {stroke}/>')
        elif style == 1:
            height = y + step * 22 - 60
            wave = " ".join(f"{px},{height + 18 * math.sin(px / 38 + step + x):.1f}" for px in range(-10, 290, 12))
            drawn.append(f'<polyline points="{wave}" {stroke}/>')
        elif style == 2:
            px, py = chance.random() * 270, chance.random() * 440
            drawn.append(f'<circle cx="{px:.0f}" cy="{py:.0f}" r="{size * 0.62:.0f}" fill="{colour}" fill-opacity="{fade:.2f}"/>')
        else:
            angle = (x + step * 17) % 90
            drawn.append(
                f'<rect x="{x - size:.0f}" y="{y - size:.0f}" width="{2 * size:.0f}" height="{2 * size:.0f}" rx="14" '
                f'transform="rotate({angle:.0f} {x:.0f} {y:.0f})" {stroke}/>'
            )
    return "".join(drawn)


def _unit(codes: Sequence[int]) -> float:
    """A number in [0, 1) that tells codes apart, the same in every process."""
    digest = hashlib.blake2b(",".join(map(str, codes)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32


def _any_sid(item_id: int) -> Codes:
    digest = hashlib.blake2b(str(item_id).encode(), digest_size=4).digest()
    return tuple(digest)


def _colour(hue: float, saturation: float, lightness: float) -> str:
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue % 1.0, lightness, saturation))
    return f"#{red:02x}{green:02x}{blue:02x}"
