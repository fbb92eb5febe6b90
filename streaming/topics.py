"""The topics of the system: their names, their records, and how they are created."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic

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

EVENT_SCHEMAS: Final[dict[str, type[records.Event]]] = records.EVENTS
EVENT_TOPICS: Final[tuple[str, ...]] = tuple(EVENT_SCHEMAS)

FOREVER: Final = "-1"
GENERATION_PARTITIONS: Final = 8  # the most generators that can share the work
DAY_MS: Final = 86_400_000


def feature_topic(view: str) -> str:
    """Topic of a feature view's final values."""
    return f"features.{view}"


@dataclass(frozen=True)
class TopicSpec:
    """A topic as it is created; `config` are the broker's own keys."""

    name: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)


def specs(
    *, partitions: int, retention_ms: int, retention_bytes: int, views: Iterable[str], feature_partitions: int = 1
) -> list[TopicSpec]:
    """Every topic of the system; pure.

    Record times are the producers' (`CreateTime`) until live traffic begins (`stamp_on_append`): a replay stamps its records with the log's
    times, which may be years ago. Retention by time would delete those at once, so only a deployment without replays wants it; the size
    bounds the topics otherwise.

    Args:
        partitions: of the event topics and of `samples`.
        retention_ms: of the event topics, by record time; -1 = none.
        retention_bytes: of each partition of the event topics and of `samples`; -1 = none.
        views: feature views; each has a topic of final values, compacted to the newest per entity after a week.
        feature_partitions: more than one only where every partition gets heartbeats of its own.
    """
    event = {
        "message.timestamp.type": "CreateTime",
        "retention.ms": str(retention_ms),
        "retention.bytes": str(retention_bytes),
        # A record dated far ahead of the broker's clock would carry the watermark with it; the broker refuses it, the producer is told.
        "message.timestamp.after.max.ms": "3600000",
    }
    kept = {"retention.ms": FOREVER}
    features = {"cleanup.policy": "compact", "min.compaction.lag.ms": str(7 * DAY_MS)}  # a restarted join needs a week's versions
    return [
        *(TopicSpec(name, partitions, event) for name in EVENT_TOPICS),
        TopicSpec(SAMPLES, partitions, {"retention.ms": FOREVER, "retention.bytes": str(retention_bytes)}),
        TopicSpec(REJECTS, 1, kept),
        TopicSpec(DEAD_LETTERS, 1, kept),
        TopicSpec(MODEL_PUBLISHED, 1, kept),
        TopicSpec(VIDEOS, 1, kept),
        TopicSpec(GENERATION_REQUESTS, GENERATION_PARTITIONS, kept),
        *(TopicSpec(feature_topic(view), feature_partitions, features) for view in views),
    ]


def create(client: Mapping[str, Any], wanted: Sequence[TopicSpec], *, replication: int = -1, timeout_s: float = 30) -> list[str]:
    """Create what is not there; a topic that exists is left as it is. Returns the names of the new ones.

    Args:
        replication: -1 = the broker's default.

    Raises:
        KafkaException: the broker refused a topic or cannot be reached.
    """
    admin = AdminClient(dict(client))
    # Fails with the address when nothing answers, instead of once a topic.
    existing = admin.list_topics(timeout=timeout_s).topics
    missing = [spec for spec in wanted if spec.name not in existing]
    if not missing:
        return []
    futures = admin.create_topics(
        [NewTopic(spec.name, spec.partitions, replication, config=dict(spec.config)) for spec in missing], operation_timeout=timeout_s
    )
    created = []
    for name, done in futures.items():
        try:
            done.result(timeout_s)
            created.append(name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
    return created


def stamp_on_append(client: Mapping[str, Any], names: Sequence[str], *, timeout_s: float = 10) -> None:
    """Let the broker stamp the records of these topics when it appends them, whatever time their producer says.

    In live traffic a record's time is when it became known. A producer stamps it when it is asked to send, which on a busy machine is
    seconds before the record is there; heartbeats would have moved time past it, and it would be late everywhere.

    Raises:
        KafkaException: the broker refused or cannot be reached.
    """
    entry = ConfigEntry("message.timestamp.type", "LogAppendTime", incremental_operation=AlterConfigOpType.SET)
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=[entry]) for name in names]
    admin = AdminClient(dict(client))
    for done in admin.incremental_alter_configs(resources, request_timeout=timeout_s).values():
        done.result(timeout_s)
