"""The gate of quality: what share of the full search's best results each narrower search still finds, measured on people who just asked.

One person's search is repeated with every rung of the ladder, a search at a time and only while nobody waits, in the thread that answers:
a request that comes meanwhile waits for one search of one person at most, and all of them together take a small share of the time.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from serving.cache import Codes
from serving.model import Person, Serving
from serving.widths import Verdict, Widths

log = logging.getLogger(f"sidstream.{__name__}")

BEST: Final = 10  # results of the full search that a rung has to find: a feed's length
ENOUGH: Final = 20  # people, before a rung is judged
WINDOW: Final = 100  # people that an average is over


@dataclass
class Evidence:
    """What is known of a rung: the mean share over the last people (NaN of none), and how many those are."""

    mean: float = math.nan
    samples: int = 0

    def add(self, share: float) -> None:
        self.samples = min(self.samples + 1, WINDOW)
        self.mean = share if self.samples == 1 else self.mean + (share - self.mean) / self.samples


class Agreement:
    """Evidence for each rung, gathered by `step`, and the verdict on it.

    A new version of the model leaves what is known of its predecessor the weight of `ENOUGH` people: versions follow each other every
    few seconds and differ by as much learning, so a reset would leave nothing known for ever, but what the new one does soon counts more.
    Another bundle has other SIDs and another model: there it starts over.

    Args:
        rungs: from the full search down.
        least: the agreement from which on a rung is allowed.
        share: of the time, what measuring may take; 0 = nothing is measured.
        recent: who was answered last, and by what.
    """

    def __init__(
        self,
        rungs: Sequence[Widths],
        *,
        least: float,
        share: float,
        recent: Callable[[], tuple[Serving, Person] | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rungs = rungs
        self._least = least
        self._share = share
        self._recent = recent
        self._clock = clock
        self._due_s = clock()
        self._of: tuple[str, str] | None = None  # bundle and version that the evidence is of
        self._searches: Generator[None] | None = None
        self.evidence = [Evidence(1.0, WINDOW), *(Evidence() for _ in rungs[1:])]

    def verdicts(self) -> list[Verdict]:
        """By rung; the full search is always allowed."""
        recent = self._recent()
        if recent is not None:
            self._follow(recent[0])
        return [self._verdict(one) for one in self.evidence]

    def shares(self) -> list[float]:
        """By rung, the share of the full search's best that it finds; NaN where nothing is known."""
        return [one.mean for one in self.evidence]

    def step(self) -> bool:
        """Do one search, if it is time for one; answers whether there may be more to do now. Never raises."""
        began_s = self._clock()
        if self._searches is None:
            recent = self._recent()
            if recent is None or not self._share or began_s < self._due_s:
                return False
            self._searches = self._measure(*recent)
            self._due_s = began_s
        try:
            next(self._searches)
        except StopIteration:
            self._searches = None
        except Exception as error:  # people whom this version fails are counted where they are answered
            self._searches = None
            log.warning("event=shadow_search_failed error=%r", f"{type(error).__name__}: {error}")
        self._due_s += (self._clock() - began_s) / self._share
        return self._searches is not None

    def _verdict(self, known: Evidence) -> Verdict:
        if known.samples < ENOUGH:
            return Verdict.UNKNOWN
        return Verdict.ALLOWED if known.mean >= self._least else Verdict.REFUSED

    def _measure(self, serving: Serving, person: Person) -> Generator[None]:
        """A step for each rung; counts nothing where the search finds nothing."""
        self._follow(serving)
        wanted = _found(serving, person, self._rungs[0])[:BEST]
        for rung, evidence in zip(self._rungs[1:], self.evidence[1:], strict=True):
            yield
            if wanted:
                evidence.add(len({*wanted} & {*_found(serving, person, rung)}) / len(wanted))

    def _follow(self, serving: Serving) -> None:
        bundle, version = serving.codebook.version, serving.policy.version
        if self._of is not None and self._of[0] != bundle:
            self.evidence[1:] = [Evidence() for _ in self._rungs[1:]]
        elif self._of is not None and self._of[1] != version:
            for evidence in self.evidence[1:]:
                evidence.samples = min(evidence.samples, ENOUGH)
        self._of = bundle, version


def _found(serving: Serving, person: Person, widths: Widths) -> list[Codes]:
    sids, log_prob = serving.policy.beam([person], widths)
    return list(map(tuple, sids[0][np.isfinite(log_prob[0])].tolist()))
