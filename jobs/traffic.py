"""What a client of `/recommend` sees: requests, errors, latencies, the three cases, written to `home/run/traffic.json` as they come."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.observer import percentiles
from jobs.process import write_json

WINDOW_S = 20


class Answers:
    """A client's own account of its requests; not thread-safe.

    Args:
        home: where `run/traffic.json` is kept, at most once a second and by `write`.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / "run" / "traffic.json"
        self._started = time.monotonic()
        self._written = 0.0
        self._asked = 0
        self.client = uuid.uuid4().hex[:12]  # its requests are told from those of others, say of somebody at the page, by this
        self.requests = self.errors = self.degraded = self.items = 0
        self.latency_ms: list[float] = []
        self.cases: Counter[str] = Counter()
        self.served: dict[str, set[str]] = {}  # bundle version → SIDs of what was served, codes joined by dots
        self.windows: list[Counter[str]] = []

    def next_request(self) -> str:
        """Id of the request that is asked next."""
        self._asked += 1
        return f"{self.client}-{self._asked}"

    def answered(self, answer: Mapping[str, Any], latency_ms: float) -> None:
        """Count a feed."""
        self.requests += 1
        self.latency_ms.append(latency_ms)
        self.degraded += answer.get("degraded") is not None
        window = int((time.monotonic() - self._started) // WINDOW_S)
        self.windows += [Counter() for _ in range(window + 1 - len(self.windows))]
        served = self.served.setdefault(str(answer.get("bundle_version")), set())
        for item in answer["items"]:
            self.items += 1
            served.add(".".join(map(str, item.get("served_sid") or ())))
            case = item.get("case") or "none"
            self.cases[case] += 1
            self.windows[window][case] += 1
        self._tick()

    def failed(self) -> None:
        """Count a request without an answer."""
        self.requests += 1
        self.errors += 1
        self._tick()

    def _tick(self) -> None:
        if time.monotonic() - self._written > 1:
            self.write()

    def write(self) -> None:
        self._written = time.monotonic()
        windows = [{"from_s": n * WINDOW_S, "to_s": (n + 1) * WINDOW_S, **window} for n, window in enumerate(self.windows)]
        body = {
            "client": self.client,
            "requests": self.requests,
            "errors": self.errors,
            "degraded": self.degraded,
            "items": self.items,
            "latency_ms": percentiles(self.latency_ms),
            "cases": dict(self.cases),
            "cases_over_time": windows,
            "served": {bundle: sorted(sids) for bundle, sids in self.served.items()},
        }
        write_json(self._path, body)
