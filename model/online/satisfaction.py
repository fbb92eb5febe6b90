"""How satisfying a watch was, given how long the video is: its place among the watches of videos about as long.

A view of so many seconds is easy for a long video and impossible for a short one, so a model that is paid for seconds learns durations.
The duration-aware target (OneRec-V2, arXiv 2508.20900) asks for a watch that is long *for a video of this duration*. There a watch is
compared with the person's own; here with everybody's, of whom there are enough.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from model.online.rank import Rank

SATISFYING = 0.75
"""A watch satisfies when it is longer than this share of the watches of videos about as long (the paper's best quarter)."""


class DurationRank:
    """How long a watch was among the watches of videos about as long: a share from 0 to 1, by whole powers of `base` of the duration.

    Prequential: a watch is ranked before it is counted. Each bucket remembers its latest `kept` watches; `least` must be there before
    anything is said.
    """

    def __init__(self, base: float = 1.5, kept: int = 500, least: int = 20) -> None:
        self.base = base
        self._seen: defaultdict[int, Rank] = defaultdict(lambda: Rank(kept, least))

    def rank(self, play_ms: int, duration_ms: int) -> float | None:
        """Share of the bucket's watches that were shorter, equal ones half; None where too few are known or the duration is not.

        Raises:
            ValueError: a negative play time.
        """
        if play_ms < 0:
            raise ValueError(f"play_ms is {play_ms}: expected ≥ 0")
        if duration_ms <= 0:
            return None
        return self._seen[int(math.log(1 + duration_ms / 1000, self.base))].of(play_ms)

    def state(self) -> list[Any]:
        """[bucket, its play times in ms, oldest first] of every bucket."""
        return [[bucket, seen.state()] for bucket, seen in self._seen.items()]

    def restore(self, state: list[Any]) -> None:
        self._seen.clear()
        for bucket, seen in state:
            self._seen[bucket].restore(seen)
