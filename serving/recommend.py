"""The policy of a feed, pure: what the model asked for and what exists, composed into distinct items, with what should be made.

Three cases of a served video against the SID that was asked, told by comparing the two: **exact hit** (equal), **content hit**
(equal in the content levels), **miss** (neither). An asked SID that has no video keeps its slot: the nearest thing that exists is
served there, and the SID is wanted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from serving.cache import CachedVideo, Codes, Lookup
from serving.demand import Wanted

Case = Literal["exact_hit", "content_hit", "miss"]


@dataclass(frozen=True)
class Candidate:
    """One SID of the beam, best first: its log-probability under the policy, what the cache has, and what is nearest to it."""

    sid: Codes
    log_prob: float
    found: Lookup
    nearest: Sequence[CachedVideo] = ()


@dataclass(frozen=True)
class Slot:
    """One place in a feed. `asked` and `log_prob` are None where the place was filled without the model."""

    video: CachedVideo
    asked: Codes | None
    case: Case | None
    log_prob: float | None
    pipeline: str


@dataclass(frozen=True)
class Feed:
    slots: tuple[Slot, ...]
    wanted: tuple[Wanted, ...]


def case_of(asked: Codes, served: Codes, content_levels: int) -> Case:
    """Which of the three cases it is to serve `served` where `asked` was asked."""
    if asked == served:
        return "exact_hit"
    return "content_hit" if asked[:content_levels] == served[:content_levels] else "miss"


def compose(
    candidates: Sequence[Candidate],
    filler: Iterable[CachedVideo],
    *,
    count: int,
    content_levels: int,
    exclude: Collection[int] = (),
    seen: Collection[int] = (),
    user_id: int | None = None,
) -> Feed:
    """A feed of at most `count` distinct items.

    Args:
        candidates: the beam, best first.
        filler: videos to fill up with, best first (neighbours of the beam, then what is popular).
        exclude: items that must not appear.
        seen: items that the person saw recently: they appear only when nothing else is left.
        user_id: noted with what is wanted.
    """
    exclude, seen = frozenset(exclude), frozenset(seen)
    taken: set[int] = set()
    filler = [video for video in filler if video.item_id not in exclude]
    slots: list[Slot] = []
    wanted: list[Wanted] = []

    def first(videos: Iterable[CachedVideo], avoid: Collection[int]) -> CachedVideo | None:
        return next((v for v in videos if v.item_id not in taken and v.item_id not in exclude and v.item_id not in avoid), None)

    def take(video: CachedVideo, asked: Candidate | None, pipeline: str) -> None:
        taken.add(video.item_id)
        if asked is None:
            slots.append(Slot(video, None, None, None, pipeline))
            return
        case = case_of(asked.sid, video.sid, content_levels)
        slots.append(Slot(video, asked.sid, case, asked.log_prob, pipeline))
        if not asked.found.exact:
            wanted.append(Wanted(asked.sid, "content_hit" if case == "content_hit" else "miss", video.sid, user_id))

    def fill(avoid: Collection[int]) -> None:
        while len(slots) < count and (video := first(filler, avoid)) is not None:
            take(video, None, "popular")

    repeats = []
    for candidate in candidates:
        if len(slots) == count:
            break
        found = candidate.found
        if found.exact:
            video = first(found.exact, seen)
        else:
            video = first(found.content, seen) or first(candidate.nearest, seen) or first(filler, seen)
        if video is not None:
            take(video, candidate, "grm")
        elif found.exact:
            repeats.append(candidate)  # seen a moment ago: leaves its place to the next of the beam
    fill(avoid=seen)
    for candidate in repeats:
        if len(slots) < count and (video := first(candidate.found.exact, ())) is not None:
            take(video, candidate, "grm")
    fill(avoid=())
    return Feed(tuple(slots), tuple(wanted))
