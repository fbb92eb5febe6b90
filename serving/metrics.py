"""What serving counts: Prometheus metrics for machines, and the same numbers by second for the page."""

from __future__ import annotations

import threading
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.agreement import Agreement
from serving.widths import Verdict, WidthPolicy, name

BUCKETS: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)
SECONDS_KEPT: Final = 900


@dataclass
class Second:
    """What happened in one second of the wall clock."""

    at: int
    counts: Tally[str] = field(default_factory=Tally)
    latencies_ms: list[float] = field(default_factory=list)


class Metrics:
    """Counters of one serving process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.latency = Histogram("sidstream_recommend_seconds", "Time of POST /recommend", buckets=BUCKETS, registry=self.registry)
        self.stages = Histogram(
            "sidstream_recommend_stage_seconds", "Time of a batch's stages", ["stage"], buckets=BUCKETS, registry=self.registry
        )
        self.requests = Counter("sidstream_requests", "HTTP requests", ["path", "status"], registry=self.registry)
        self.cases = Counter("sidstream_cases", "Served items by cache case", ["case"], registry=self.registry)
        self.pipelines = Counter("sidstream_items", "Served items by what chose them", ["pipeline"], registry=self.registry)
        self.generated = Counter("sidstream_items_generated", "Served items that were generated", registry=self.registry)
        self.degraded = Counter("sidstream_degraded", "Degraded answers by reason", ["reason"], registry=self.registry)
        self.swaps = Counter("sidstream_model_swaps", "Model swaps by outcome", ["outcome"], registry=self.registry)
        self.model = Gauge("sidstream_model_info", "The version that serves", ["version", "bundle"], registry=self.registry)
        self.events = Counter("sidstream_events", "Events posted, by topic and outcome", ["topic", "outcome"], registry=self.registry)
        self.impressions = Counter("sidstream_impressions", "Impressions by fate", ["outcome"], registry=self.registry)
        self.wanted = Counter("sidstream_generation_requests", "Requests for missing videos", ["reason"], registry=self.registry)
        self.queue = Gauge("sidstream_queue", "Requests that wait for the model", registry=self.registry)
        self.searches = Counter("sidstream_searches", "Requests searched for, by widths per level", ["widths"], registry=self.registry)
        self.batch = Gauge("sidstream_batch_rows", "Requests in the last batch", registry=self.registry)
        self.videos = Gauge("sidstream_videos", "Videos that can be served", ["kind"], registry=self.registry)
        for case in ("exact_hit", "content_hit", "miss"):
            self.cases.labels(case)
        self._seconds: deque[Second] = deque(maxlen=SECONDS_KEPT)
        self._lock = threading.Lock()

    def tick(self, at_s: float, **counts: int) -> None:
        """Count things in the current second."""
        with self._lock:
            self._second(at_s).counts.update(counts)

    def latency_ms(self, at_s: float, took_ms: float) -> None:
        self.latency.observe(took_ms / 1000)
        with self._lock:
            self._second(at_s).latencies_ms.append(took_ms)

    def ladder(self, policy: WidthPolicy, agreement: Agreement) -> None:
        """Show, from now on, what is known of every rung."""
        facts: dict[str, tuple[str, Callable[[int], float]]] = {
            "agreement": ("Share of the full search's best results that a search finds", lambda rung: agreement.evidence[rung].mean),
            "samples": ("People whom that share is over", lambda rung: agreement.evidence[rung].samples),
            "allowed": ("Whether that is enough to use it", lambda rung: agreement.verdicts()[rung] is Verdict.ALLOWED),
            "milliseconds": ("Estimated time of a request that is answered alone", lambda rung: 1000 * policy.costs(rung, 1)),
        }
        for fact, (meaning, of) in facts.items():
            gauge = Gauge(f"sidstream_search_{fact}", meaning, ["widths"], registry=self.registry)
            for rung, widths in enumerate(policy.rungs):
                gauge.labels(name(widths)).set_function(partial(of, rung))

    def serving(self, version: str, bundle: str) -> None:
        """The version that serves now."""
        self.model.clear()
        self.model.labels(version, bundle).set(1)

    def text(self) -> bytes:
        """The Prometheus exposition format."""
        return generate_latest(self.registry)

    def series(self, at_s: float, *, seconds: int, step: int) -> dict[str, list[Any]]:
        """Counts by steps of `step` seconds, oldest first: `{"at": […], name: […], "p50": […], "p99": […]}`; None = not measured."""
        newest = int(at_s) // step * step  # the running step is left out: it is not full
        starts = list(range(newest - seconds // step * step, newest, step))
        buckets = {start: Second(start) for start in starts}
        for second in list(self._seconds):
            bucket = buckets.get(second.at // step * step)
            if bucket is not None:
                bucket.counts.update(second.counts)
                bucket.latencies_ms += second.latencies_ms
        names = sorted({name for bucket in buckets.values() for name in bucket.counts})
        result: dict[str, list[Any]] = {name: [buckets[start].counts[name] for start in starts] for name in names}
        return {
            "at": starts,
            "p50": [quantile(buckets[start].latencies_ms, 0.50) for start in starts],
            "p99": [quantile(buckets[start].latencies_ms, 0.99) for start in starts],
            **result,
        }

    def recent_latency(self, at_s: float, seconds: int = 60) -> dict[str, float | None]:
        """Quantiles of the last seconds, in ms."""
        values = [took for second in list(self._seconds) if second.at >= at_s - seconds for took in second.latencies_ms]
        return {"p50": quantile(values, 0.50), "p95": quantile(values, 0.95), "p99": quantile(values, 0.99)}

    def _second(self, at_s: float) -> Second:
        at = int(at_s)
        if not self._seconds or self._seconds[-1].at < at:
            self._seconds.append(Second(at))
        return self._seconds[-1]


def quantile(values: Sequence[float], q: float) -> float | None:
    """The value below which a share `q` lies, by nearest rank; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(q * len(ordered)))], 2)
