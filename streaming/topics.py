"""The topics of the system: their names, their records, and how they are created."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from streaming import records

IMPRESSIONS: Final = "impressions"
ENGAGEMENTS: Final = "engagements"
WATCHES: Final = "watches"
CONVERSIONS: Final = "conversions"
QUESTIONNAIRES: Final = "questionnaires"
SAMPLES: Final = "samples"
MODEL_PUBLISHED: Final = "model.published"
GENERATION_REQUESTS: Final = "generation.requests"
VIDEOS: Final = "videos"
DEAD_LETTERS: Final = "dead_letters"
REJECTS: Final = "rejects"  # internal: Flink's verdicts by partition and offset; the inspector adds the raw bytes

EVENT_SCHEMAS: Final[dict[str, type[records.Event]]] = {
    IMPRESSIONS: records.Impression,
    ENGAGEMENTS: records.Engagement,
    WATCHES: records.Watch,
    CONVERSIONS: records.Conversion,
    QUESTIONNAIRES: records.Questionnaire,
}
EVENT_TOPICS: Final[tuple[str, ...]] = tuple(EVENT_SCHEMAS)


def feature_topic(view: str) -> str:
    """Topic of a feature view's final values."""
    return f"features.{view}"
