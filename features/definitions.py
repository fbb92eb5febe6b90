"""What the system knows of people and videos, as a feature engineer writes it: Feast entities, stream feature views and a service.

`sidstream features apply` registers this file, `sidstream features run` computes it (Flink), `sidstream features write` puts it online.
Values are as of the latest event of the person or video: a window of five minutes reaches five minutes back from that event.

Columns of an event, each 0 or 1 unless said otherwise:
    impression, click, like, follow, comment, share, hate, profile_visit, watch, long_view (18 s or the whole video), conversion,
    play_ms (of a watch, else null), conversion_value (of a conversion, else null), interaction (a watch or an engagement, as JSON)
"""

from datetime import timedelta

from feast import Entity, FeatureService, Field, FileSource, KafkaSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.data_format import JsonFormat
from feast.types import Float64, Int64, Json

WINDOWS = {"5m": timedelta(minutes=5), "1h": timedelta(hours=1), "24h": timedelta(hours=24)}

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64, description="a person who watches")
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64, description="a video; generated ones have negative ids")


def events(view: str) -> KafkaSource:
    """The event topics, with the files that `sidstream features backfill` writes for training."""
    return KafkaSource(
        name=f"{view}_events",
        topic="impressions;engagements;watches;conversions;questionnaires",
        kafka_bootstrap_servers="",  # the configuration of the Flink job says where Kafka is
        message_format=JsonFormat(schema_json=""),
        timestamp_field="event_timestamp",
        batch_source=FileSource(name=f"{view}_log", path=f"data/{view}.parquet", timestamp_field="event_timestamp"),
    )


def total(column: str, name: str) -> list[Aggregation]:
    """The sum of a column over every window: `<name>_5m`, `<name>_1h`, `<name>_24h`."""
    return [Aggregation(column, "sum", window, name=f"{name}_{label}") for label, window in WINDOWS.items()]


def mean(column: str, name: str) -> list[Aggregation]:
    """The mean of a column over every window; null in a window where the column has no value."""
    return [Aggregation(column, "mean", window, name=f"{name}_{label}") for label, window in WINDOWS.items()]


USER_COUNTERS = [
    *total("impression", "impressions"),
    *total("click", "clicks"),
    *total("like", "likes"),
    *total("long_view", "long_views"),
    *total("play_ms", "play_ms"),
]

user_counters = StreamFeatureView(
    name="user_counters",
    description="how much a person saw, clicked, liked and watched lately",
    entities=[user],
    source=events("user_counters"),
    timestamp_field="event_timestamp",
    aggregations=USER_COUNTERS,
    schema=[Field(name="user_id", dtype=Int64), *(Field(name=counter.name, dtype=Int64) for counter in USER_COUNTERS)],
)

ITEM_COUNTERS = [
    *total("impression", "impressions"),
    *total("click", "clicks"),
    *total("like", "likes"),
    *total("long_view", "long_views"),
]
ITEM_MEANS = mean("play_ms", "mean_play_ms")

item_counters = StreamFeatureView(
    name="item_counters",
    description="how often a video was shown, clicked, liked and watched lately",
    entities=[item],
    source=events("item_counters"),
    timestamp_field="event_timestamp",
    aggregations=[*ITEM_COUNTERS, *ITEM_MEANS],
    schema=[
        Field(name="item_id", dtype=Int64),
        *(Field(name=counter.name, dtype=Int64) for counter in ITEM_COUNTERS),
        *(Field(name=value.name, dtype=Float64) for value in ITEM_MEANS),
    ],
    tags={"packed": "true"},  # candidates are read by the hundred: serving reads a packed copy
)

user_history = StreamFeatureView(
    name="user_history",
    description="the person's last interactions, newest first: item_id, ts, play_ms, kinds; how many, the configuration says",
    entities=[user],
    source=events("user_history"),
    timestamp_field="event_timestamp",
    aggregations=[Aggregation("interaction", "last", name="entries")],
    schema=[Field(name="user_id", dtype=Int64), Field(name="entries", dtype=Json)],
)

recommendation = FeatureService(name="recommendation", features=[user_counters, item_counters, user_history])
