"""Which times an event may have: the rule of `streaming.flink.tables.usable_event`, for those who explain it or refuse early."""

from __future__ import annotations

from datetime import UTC, datetime

from streaming.records import Event, Heartbeat, Label
from streaming.topics import DAY_MS


def implausible(event: Event | Heartbeat, appended_ms: int, attribution_ms: int) -> str | None:
    """What is wrong with the times of an event that the broker takes at `appended_ms`, for a person; None if nothing is."""
    if not appended_ms - attribution_ms <= event.ts <= appended_ms + DAY_MS:
        return f"implausible time: ts is {iso(event.ts)}, the broker took it at {iso(appended_ms)}"
    if isinstance(event, Label) and not event.ts - attribution_ms <= event.impression_ts <= event.ts + DAY_MS:
        return f"implausible time: impression_ts is {iso(event.impression_ts)}, ts {iso(event.ts)}"
    return None


def iso(millis: int) -> str:
    """A time in milliseconds as people read it."""
    try:
        return datetime.fromtimestamp(millis / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"{millis} ms"
