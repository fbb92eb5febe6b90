"""The page's data: the server's own counts merged with what the other processes write beside it; each part may be missing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from serving.live import LiveView
from serving.metrics import Metrics, quantile
from serving.model import Codebook, ModelSlot

PARTS: Final = ("trainer", "writer", "inspector")
STALE_S: Final = 60.0  # a part whose file is older is shown as silent


@dataclass
class Stats:
    """Reads everything once per call; called about once a second by each open page.

    Args:
        run: folder of the small JSON files that processes keep up to date (`trainer.json`, `writer.json`, …).
        health: name of a dependency -> whether it answers, kept elsewhere.
    """

    run: Path
    metrics: Metrics
    live: LiveView
    model: ModelSlot
    codebook: Callable[[], Codebook | None]
    health: Mapping[str, bool]
    started: float

    def snapshot(self, *, seconds: int = 300, step: int = 2) -> dict[str, Any]:
        """Everything that the page shows, JSON-ready; times are wall clock seconds unless named `_ms`."""
        now = time.time()
        parts = {name: self._part(self.run / f"{name}.json", now) for name in PARTS}
        generators = [self._part(path, now) for path in sorted(self.run.glob("generator-*.json"))]
        missing = [name for name, part in parts.items() if part is None]
        if not any(generators):
            missing.append("generator")
        missing += [name for name, alive in self.health.items() if not alive]
        return {
            "now": now,
            "missing": missing,
            "server": self._server(now),
            "series": self.metrics.series(now, seconds=seconds, step=step),
            "totals": dict(self.live.seen),
            "models": [
                {"at": swap.at, "version": swap.version, "outcome": swap.outcome, "detail": swap.detail, **_brief(swap.facts)}
                for swap in list(self.model.swaps)[-120:]
            ],
            "videos": self._videos(),
            "queue": self._queue([part for part in generators if part]),
            "generators": [part for part in generators if part],
            **parts,
        }

    def _server(self, now: float) -> dict[str, Any]:
        serving = self.model.serving
        codebook = self.codebook()
        lag = list(self.live.sample_lag_ms)
        return {
            "up_s": now - self.started,
            "model_version": serving.policy.version if serving else None,
            "bundle_version": codebook.version if codebook else None,
            "model_since": serving.since if serving else None,
            "watermark_ts": serving.facts.get("watermark_ts") if serving else None,
            "latency_ms": self.metrics.recent_latency(now),
            "sample_lag_ms": {"p50": quantile(lag, 0.5), "p99": quantile(lag, 0.99)},
        }

    def _videos(self) -> dict[str, Any]:
        codebook = self.codebook()
        if codebook is None:
            return {"total": 0, "sids": 0, "newest": []}
        newest = [
            {"item_id": video.item_id, "sid": video.sid, "uri": video.uri, "at_ms": at, "waited_ms": max(0, at - video.origin_ts)}
            for video, at in list(self.live.newest)[:12]
        ]
        if not newest:
            made = [video for video in codebook.shelf.items() if video.generated][-12:]
            newest = [
                {"item_id": video.item_id, "sid": list(video.sid), "uri": video.uri, "at_ms": video.put_ts, "waited_ms": None}
                for video in reversed(made)
            ]
        return {"total": len(codebook.shelf), "generated": codebook.shelf.generated, "sids": codebook.shelf.sids, "newest": newest}

    def _queue(self, generators: list[dict[str, Any]]) -> dict[str, Any]:
        """What waits: the generators' shared queue where they tell it, with the demand that was seen since this server started."""
        wanted = self.live.most_wanted(12)
        pending = [part["pending"] for part in generators if isinstance(part.get("pending"), int)]
        if not wanted and generators:
            keys = [str(key).rpartition("|")[2] for key in generators[0].get("most_wanted", [])]
            wanted = [{"sid": key.split("."), "demand": None, "reason": "miss", "since": 0} for key in keys]
        return {"sids": max(pending) if pending else len(self.live.wishes), "most_wanted": wanted}

    def _part(self, path: Path, now: float) -> dict[str, Any] | None:
        try:
            if now - path.stat().st_mtime > STALE_S:
                return None
            facts = json.loads(path.read_text())
        except (OSError, ValueError):  # not there, or being replaced by a process that does not do so in one step
            return None
        return facts if isinstance(facts, dict) else None


def _brief(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in ("watermark_ts", "samples_trained") if name in facts}
