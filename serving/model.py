"""The model that serves, and its hot swap: load beside the old one, try it, then replace it in one assignment.

A request takes one `Serving` and keeps it to its end, so a swap drops nothing. A version that does not load, does not pass its trial, or
fails on real requests is remembered as bad and never tried again; the one before it goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from serving.cache import Codes
from serving.candidates import Shelf
from serving.widths import Widths, uniform
from streaming.records import Context

log = logging.getLogger(f"sidstream.{__name__}")

FAILURES_BEFORE_ROLLBACK: Final = 3
ATTEMPTS: Final = 3  # a store over the network may fail for a moment; a version is bad when it failed this often


@dataclass(frozen=True)
class Person:
    """Whom a feed is for, as the model sees them: a row of its batch. `ts` is now, ms UTC; `avoid` are SIDs, or beginnings of them, that
    would not help."""

    user_id: int
    ts: int
    context: Context
    scene: str = ""
    avoid: Sequence[Codes] = ()


class Policy(Protocol):
    """A published model: asked for people, it answers with the SIDs that they would like to see."""

    version: str

    def beam(self, people: Sequence[Person], widths: Widths) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """(SIDs int64[B, W, L], log-probabilities float32[B, W]), best first; −∞ where there is no further beam. W is the last width."""

    def learn(self, item_id: int, sid: Codes) -> None:
        """Know a new video, so that it means something in a history."""


@dataclass(frozen=True)
class Codebook:
    """What serving knows of a bundle: its version, the shape of its SIDs, and the videos that exist under it."""

    version: str
    content_levels: int
    code_counts: tuple[int, ...]
    shelf: Shelf


@dataclass(frozen=True)
class Serving:
    """A model with the bundle that its SIDs are of."""

    policy: Policy
    codebook: Codebook
    facts: Mapping[str, Any] = field(default_factory=dict)  # of its manifest: watermark_ts, samples_trained, metrics
    since: float = field(default_factory=time.time)  # wall clock, s


@dataclass(frozen=True)
class Swap:
    """One change of the serving model, or one that failed."""

    at: float  # wall clock, s
    version: str
    outcome: str  # swapped, rejected, rolled_back
    detail: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


class BadVersion(Exception):
    """A model that loaded but cannot serve; the message says why."""


def trial(serving: Serving, widest: int) -> None:
    """Let a model answer for nobody in particular before it answers people; this also warms it up.

    Raises:
        BadVersion: it answers in the wrong shape, with codes out of range, or with numbers that are none.
    """
    people = [Person(0, 0, Context()), Person(1, 0, Context())]
    counts = np.asarray(serving.codebook.code_counts)
    for rows in (1, 2):
        sids, log_prob = serving.policy.beam(people[:rows], uniform(widest))
        if sids.ndim != 3 or sids.shape[0] != rows or sids.shape[2] != len(counts) or log_prob.shape != sids.shape[:2] or not sids.shape[1]:
            raise BadVersion(f"answers shapes {sids.shape} and {log_prob.shape} for {rows} rows of {len(counts)} levels")
        if np.isnan(log_prob).any() or not np.isfinite(log_prob[:, 0]).all():
            raise BadVersion("answers log-probabilities that are no numbers")
        codes = sids[np.isfinite(log_prob)]
        if (codes < 0).any() or (codes >= counts).any():
            raise BadVersion("answers codes outside the bundle's codebooks")


class ModelSlot:
    """The one model that serves now.

    Args:
        current: what the store wants served, or None where nothing was published yet.
        load: a version -> the model with its bundle.
        widest: beam width of the trial.
        on_swap: told of every swap and failed swap.
    """

    def __init__(
        self,
        current: Callable[[], str | None],
        load: Callable[[str], Serving],
        *,
        widest: int,
        on_swap: Callable[[Swap], None] = lambda swap: None,
    ) -> None:
        self._current = current
        self._load = load
        self._widest = widest
        self._on_swap = on_swap
        self._serving: Serving | None = None
        self._previous: Serving | None = None
        self._failures = 0
        self._attempts: dict[str, int] = {}
        self._bad: set[str] = set()
        self._lock = threading.Lock()
        self.swaps: deque[Swap] = deque(maxlen=500)

    @property
    def serving(self) -> Serving | None:
        return self._serving

    def refresh(self) -> bool:
        """Serve what the store names now, unless it is served already or known to be bad; answers whether it was swapped. Never raises."""
        try:
            version = self._current()
        except Exception as error:
            log.warning("event=store_unreadable error=%r", str(error))
            return False
        serving = self._serving
        if version is None or version in self._bad or (serving is not None and serving.policy.version == version):
            return False
        started = time.monotonic()
        try:
            fresh = self._load(version)
            trial(fresh, self._widest)
        except Exception as error:
            self._attempts[version] = self._attempts.get(version, 0) + 1
            if isinstance(error, BadVersion) or self._attempts[version] >= ATTEMPTS:
                self._bad.add(version)
                self._attempts.pop(version, None)
            self._note(version, "rejected", f"{type(error).__name__}: {error}")
            return False
        with self._lock:
            self._previous, self._serving, self._failures = self._serving, fresh, 0
        self._attempts.clear()
        self._note(version, "swapped", f"{time.monotonic() - started:.2f} s", fresh.facts)
        return True

    def succeeded(self, serving: Serving) -> None:
        """A batch was answered."""
        if serving is self._serving:
            self._failures = 0

    def failed(self, serving: Serving, error: Exception) -> None:
        """A batch raised. After three in a row the version is bad and the one before it serves again."""
        with self._lock:
            if serving is not self._serving:
                return
            self._failures += 1
            if self._failures < FAILURES_BEFORE_ROLLBACK:
                return
            self._bad.add(serving.policy.version)
            self._serving, self._previous, self._failures = self._previous, None, 0
        self._note(serving.policy.version, "rolled_back", f"{type(error).__name__}: {error}")

    def _note(self, version: str, outcome: str, detail: str, facts: Mapping[str, Any] | None = None) -> None:
        swap = Swap(time.time(), version, outcome, detail, facts or {})
        self.swaps.append(swap)
        level = logging.INFO if outcome == "swapped" else logging.ERROR
        log.log(level, "event=model_%s version=%s detail=%r", outcome, version, detail)
        self._on_swap(swap)
