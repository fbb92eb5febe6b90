"""A world of simulated people and videos: what there is to watch, what people want, and how they answer what they are shown.

A video is a *content* vector (a topic, a subject within it, an angle) and a *creative* vector (a style, a variant of it, a take). A
person wants a few subjects and a few styles, likes a video as far as its vectors lie near both, and changes. Topics are made in some
styles only, so there are combinations that people want and that no video has. The answer takes vectors, not ids: a generated video is
answered by the vectors that its semantic ID stands for.

Everything follows from the seed; the catalogue does not depend on the number of people.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streaming.records import EngagementKind

Vector = npt.NDArray[np.float32]

TOPICS: Final = (
    "cooking", "travel", "football", "pets", "gardening", "cars", "music", "fashion",
    "gaming", "fitness", "science", "crafts", "comedy", "finance", "nature", "dance",
)  # fmt: skip
STYLES: Final = ("vlog", "cinematic", "animated", "tutorial", "slideshow", "interview", "timelapse", "split screen")
SUBJECTS: Final = 2  # of each topic
ANGLES: Final = 4  # of every subject
VARIANTS: Final = 4  # of each style
TAKES: Final = 4  # of every variant
STYLES_OF_A_TOPIC: Final = 4  # of the eight; the other combinations do not exist
ITEMS_OF_AN_AUTHOR: Final = 5
DIMENSIONS: Final = 32

CONTENT_PARTS: Final = (0.75, 0.55, 0.20)  # lengths of topic, subject and angle before scaling to unit length
CREATIVE_PARTS: Final = (0.80, 0.40, 0.15)  # of style, variant and take
# Cosine to a wish at which a video begins to please and at which it pleases fully: another subject of the same topic has .65, another
# topic about 0; another variant of the same style .80.
PLEASES: Final = (0.3, 0.95)

WISHES: Final = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # weights of a person's subjects
TASTES: Final = (1.0, 0.9, 0.8)  # of a person's styles
ANY_STYLE: Final = 0.4  # how much of a liking is left where the style is not to a person's taste
CHANGES_A_SESSION: Final = 0.06  # how often a session begins with one wish replaced
DAY_MS: Final = 86_400_000
EPOCH_MS: Final = 1_640_995_200_000  # uploads are in 2022


@dataclass
class Person:
    """What somebody wants; `subjects` and `treatments` index the world's prototypes, most wanted first."""

    user_id: int
    subjects: list[int]
    treatments: list[int]
    activity: float  # share of all sessions, relative
    sessions: int = 0
    changes: list[dict[str, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Reaction:
    """How one shown video went; `at_ms` and `play_ms` are the video's own time, `conversion_after_ms` is after the impression."""

    play_ms: int
    finished: bool
    engagements: tuple[tuple[EngagementKind, int], ...]  # kind, at_ms
    conversion: tuple[float, float] | None  # value, delay in units of the median delay
    satisfaction: int | None  # 1..5, where asked


class World:
    """People and videos.

    Args:
        users: number of people, ids from 0.
        items: number of videos, ids from 1.
        seed: of everything.
    """

    def __init__(self, users: int = 200, items: int = 1000, seed: int = 0) -> None:
        self.seed = seed
        self._build_videos(items, np.random.default_rng([seed, 1]))
        self._build_people(users, np.random.default_rng([seed, 2]))

    # -- videos -----------------------------------------------------------------------------------------------------

    def _build_videos(self, items: int, rng: np.random.Generator) -> None:
        topic = _orthogonal(len(TOPICS), rng)
        style = _orthogonal(len(STYLES), rng)
        self.subjects = _combine(topic, _directions(len(TOPICS) * SUBJECTS, rng), CONTENT_PARTS)
        self.treatments = _combine(style, _directions(len(STYLES) * VARIANTS, rng), CREATIVE_PARTS)
        angles, takes = _directions(ANGLES, rng), _directions(TAKES, rng)

        self.offered = np.stack([rng.permutation(len(STYLES))[:STYLES_OF_A_TOPIC] for _ in TOPICS])
        authors = max(1, -(-items // ITEMS_OF_AN_AUTHOR))
        author_topic = rng.permutation(np.arange(authors) % len(TOPICS))
        author_subject = author_topic * SUBJECTS + rng.integers(SUBJECTS, size=authors)
        self.author = rng.permutation(np.arange(items) % authors)
        wanders = rng.random(items) < 0.3  # to another subject of the author's topic
        self.subject = np.where(
            wanders, author_topic[self.author] * SUBJECTS + rng.integers(SUBJECTS, size=items), author_subject[self.author]
        )
        chosen = self.offered[self.subject // SUBJECTS, rng.integers(STYLES_OF_A_TOPIC, size=items)]
        self.treatment = chosen * VARIANTS + rng.integers(VARIANTS, size=items)
        self.content = _unit(self.subjects[self.subject] + CONTENT_PARTS[2] * angles[rng.integers(ANGLES, size=items)])
        self.creative = _unit(self.treatments[self.treatment] + CREATIVE_PARTS[2] * takes[rng.integers(TAKES, size=items)])
        self.item_ids = np.arange(1, items + 1)
        self.duration_ms = (np.clip(rng.lognormal(np.log(20), 0.5, items), 6, 60) * 1000).astype(np.int64)
        self.quality = np.clip(rng.lognormal(0, 0.2, items), 0.6, 1.3)
        self._upload_ts = EPOCH_MS + rng.integers(365, size=items) * DAY_MS

    def catalogue(self) -> pa.Table:
        """The videos as every source gives them, with `content` and `creative` embeddings (unit length, DIMENSIONS floats each)."""
        style = self.treatment // VARIANTS
        titles = [f"{TOPICS[s // SUBJECTS]} {s % SUBJECTS + 1}, {STYLES[k]}" for s, k in zip(self.subject, style, strict=True)]
        whole = {
            "item_id": self.item_ids,
            "author_id": self.author,
            "tag": self.subject,
            "upload_ts": self._upload_ts,
            "duration_ms": self.duration_ms,
            "width": np.where(style == STYLES.index("split screen"), 1080, 720),
            "height": np.where(style == STYLES.index("cinematic"), 960, 1280),
            "music_id": self.treatment,
            "music_type": style,
        }
        columns: dict[str, pa.Array] = {name: pa.array(values, pa.int64()) for name, values in whole.items()}
        columns["video_type"] = pa.array(["NORMAL"] * len(self.item_ids))
        columns["upload_type"] = pa.array([STYLES[k] for k in style])
        columns["title"] = pa.array(titles)
        columns["content"] = pa.array(list(self.content), pa.list_(pa.float32()))
        columns["creative"] = pa.array(list(self.creative), pa.list_(pa.float32()))
        return pa.table(columns)

    def vectors_of(self, item_id: int) -> tuple[Vector, Vector]:
        """Content and creative of a catalogue video.

        Raises:
            KeyError: the catalogue has no such video.
        """
        if not 1 <= item_id <= len(self.item_ids):
            raise KeyError(f"item {item_id} is not in the simulated catalogue of {len(self.item_ids)} videos")
        return self.content[item_id - 1], self.creative[item_id - 1]

    def quality_of(self, item_id: int) -> float:
        """How well a video is made, about 1; 1 for one that is not in the catalogue."""
        return float(self.quality[item_id - 1]) if 1 <= item_id <= len(self.item_ids) else 1.0

    # -- people -----------------------------------------------------------------------------------------------------

    def _build_people(self, users: int, rng: np.random.Generator) -> None:
        fashion = 1 / (np.arange(len(self.subjects)) + 8.0)  # some subjects are wanted more than others
        self._fashion = rng.permutation(fashion / fashion.sum())
        activity = rng.permutation(1 / (np.arange(users) + users / 4))
        self.people = [
            Person(
                user,
                rng.choice(len(self.subjects), len(WISHES), replace=False, p=self._fashion).tolist(),
                (rng.permutation(len(STYLES))[: len(TASTES)] * VARIANTS + rng.integers(VARIANTS, size=len(TASTES))).tolist(),
                float(activity[user]),
            )
            for user in range(users)
        ]

    def begin_session(self, user_id: int) -> None:
        """Somebody comes back, now and then with another wish."""
        person = self.people[user_id]
        rng = np.random.default_rng([self.seed, 3, user_id, person.sessions])
        person.sessions += 1
        if rng.random() < CHANGES_A_SESSION:
            place, subject = int(rng.integers(len(WISHES))), int(rng.choice(len(self.subjects), p=self._fashion))
            person.changes.append({"session": person.sessions, "place": place, "from": person.subjects[place], "to": subject})
            person.subjects[place] = subject

    def liking(self, user_id: int, content: Vector, creative: Vector) -> float:
        """How well a video pleases somebody, 0..1; vectors of any length but zero."""
        person = self.people[user_id]
        wish = max(w * _pleases(self.subjects[s], content) for w, s in zip(WISHES, person.subjects, strict=True))
        taste = max(w * _pleases(self.treatments[t], creative) for w, t in zip(TASTES, person.treatments, strict=True))
        return wish * (ANY_STYLE + (1 - ANY_STYLE) * taste)

    def react(
        self,
        user_id: int,
        content: Vector,
        creative: Vector,
        duration_ms: int,
        position: int,
        rng: np.random.Generator,
        quality: float = 1.0,
    ) -> Reaction:
        """How somebody who looks at a video answers it; what is further down gets less attention."""
        liking = self.liking(user_id, content, creative)
        pleased = rng.random() < min(0.95, (0.01 + 0.9 * liking * quality) / (1 + 0.04 * position))
        if pleased:
            share = rng.triangular(0.6, 1.0, 1.4)
            play_ms = max(int(duration_ms * share), min(18_000, duration_ms))
        else:
            play_ms = int(duration_ms * min(rng.exponential(0.12), 0.5))
        chances: tuple[tuple[EngagementKind, float], ...] = (
            ("click", 0.7 if pleased else 0.01),
            ("like", 0.12 * pleased),
            ("follow", 0.02 * pleased),
            ("comment", 0.02 * pleased),
            ("share", 0.02 * pleased),
            ("profile_visit", 0.03 * pleased),
            ("hate", 0.01 * (liking == 0.0)),
        )
        happened = rng.random(len(chances)) < [chance for _, chance in chances]
        at = rng.random(len(chances))
        engagements = tuple(
            (kind, 0 if kind == "click" else int(play_ms * moment))
            for (kind, _), happens, moment in zip(chances, happened, at, strict=True)
            if happens
        )
        buys, asked, value, delay, noise = rng.random(), rng.random(), rng.lognormal(3, 0.6), rng.lognormal(0, 1), rng.normal(0, 0.6)
        return Reaction(
            play_ms=play_ms,
            finished=play_ms >= duration_ms,
            engagements=engagements,
            conversion=(round(float(value), 2), float(delay)) if pleased and buys < 0.04 else None,
            satisfaction=int(np.clip(round(1.5 + 3.5 * liking + noise), 1, 5)) if asked < 0.01 else None,
        )

    # -- truth ------------------------------------------------------------------------------------------------------

    def missing(self) -> Iterator[tuple[int, int]]:
        """(topic, style) pairs that no video has."""
        offered = {(topic, int(style)) for topic, styles in enumerate(self.offered) for style in styles}
        return (pair for pair in ((t, s) for t in range(len(TOPICS)) for s in range(len(STYLES))) if pair not in offered)

    def truth(self) -> dict[str, Any]:
        """What only the simulator knows, as JSON: what each person wants (and wanted), what each video is, what is missing."""
        return {
            "seed": self.seed,
            "topics": TOPICS,
            "styles": STYLES,
            "weights": {"subjects": WISHES, "treatments": TASTES},
            "missing": [{"topic": TOPICS[t], "style": STYLES[s]} for t, s in self.missing()],
            "items": [
                {"item_id": int(i), "subject": int(s), "treatment": int(t), "quality": round(float(q), 3)}
                for i, s, t, q in zip(self.item_ids, self.subject, self.treatment, self.quality, strict=True)
            ],
            "users": [
                {"user_id": p.user_id, "subjects": p.subjects, "treatments": p.treatments, "sessions": p.sessions, "changes": p.changes}
                for p in self.people
            ],
            "prototypes": {"subjects": self.subjects.tolist(), "treatments": self.treatments.tolist()},
        }


def _pleases(wish: Vector, found: Vector) -> float:
    low, high = PLEASES
    cosine = float(wish @ found) / max(float(np.linalg.norm(wish) * np.linalg.norm(found)), 1e-9)
    return min(1.0, max(0.0, (cosine - low) / (high - low)))


def _unit(rows: npt.NDArray) -> Vector:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _directions(count: int, rng: np.random.Generator) -> Vector:
    return _unit(rng.standard_normal((count, DIMENSIONS)))


def _orthogonal(count: int, rng: np.random.Generator) -> Vector:
    return np.linalg.qr(rng.standard_normal((DIMENSIONS, count)))[0].T.astype(np.float32)


def _combine(coarse: Vector, fine: Vector, parts: tuple[float, float, float]) -> Vector:
    """Prototypes: every coarse direction with its share of the fine ones."""
    return _unit(parts[0] * np.repeat(coarse, len(fine) // len(coarse), axis=0) + parts[1] * fine)
