"""The samples job, in SQL: every impression with its labels and its context.

    event ──▶ once ──▶ routed ──▶ joined ──▶ arriving ──▶ settled ──▶ sample ──▶ samples
      │                  │          in its window │           │                       ▲ features.user_history
      ▼                  ▼                        └ or late   ├──▶ unclaimed          │ as of one millisecond before
    rejects           rejects                                 ▼        after the attribution window
                                                           rejects ◀───┘

* The row time of an event is its impression's time; the watermark is the event's own time minus the label window and the disorder. So all
  of an impression's events are peers of one row time, which an OVER window joins in one shuffle, exactly when the label window closes.
* An event read after its impression's row time was passed, or a label that happened after the label window, goes round that window.
* `settled` sees the events of an impression in the order of their arrival: the first impression row is its initial sample, labels wait
  for it, and what leaves for one impression leaves in order. Nothing here knows processing time but for the lifetime of the state.
* One watermark judges lateness and closes windows (one source, one task): every event goes exactly one way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streaming import records, topics
from streaming.flink import tables
from streaming.flink.columns import IDENTIFIERS, columns, identifier, quoted, row_type, text
from streaming.flink.tables import interval
from streaming.inspector import NOT_USABLE

if TYPE_CHECKING:
    from pyflink.table import StatementSet, TableEnvironment

LONG_VIEW_MS = 18_000  # a view of 18 s, or of the whole video, is long (KuaiRand's definition)
COUNTED = ("click", "like", "follow", "comment", "share", "hate", "profile_visit")
HISTORY_VIEW = "user_history"


@dataclass(frozen=True)
class Windows:
    """How long things are waited for, in seconds."""

    label_s: float
    attribution_s: float
    disorder_s: float

    @property
    def wait_s(self) -> float:
        """From an impression to its initial sample, in event time."""
        return self.label_s + self.disorder_s


IMPRESSION_COLUMNS = ("user_id", "item_id", "ts", "duration_ms", "pipeline", "policy_logprob", "model_version", "sid", "served_sid")
LABEL = {"label_id": "STRING", "kind": "STRING", "ts": "BIGINT", "impression_ts": "BIGINT", "play_ms": "BIGINT", "value": "DOUBLE"} | {
    "duration_ms": "BIGINT"
}


def checked() -> str:
    """What the job needs of every event; all statements share this one reading of the topics."""
    impression = [f"{identifier(name)} AS {name}" if name in IDENTIFIERS else quoted(name) for name in IMPRESSION_COLUMNS]
    return f"""SELECT topic, kafka_partition, kafka_offset, usable IS NOT TRUE AS is_faulty,
    usable IS TRUE AND `schema` <> {text(tables.HEARTBEAT)} AS is_event,
    event_id, impression_id, {tables.IMPRESSION_TS} AS impression_ts, rt, proc, {", ".join(impression)},
    kind, play_ms, `value`, context
FROM event"""


def once() -> str:
    """Usable events, each `event_id` once: impressions as one nested row, labels of all topics alike as another."""
    kinds = columns([records.Impression])
    impression = ", ".join(f"{quoted(name)} {kinds[name]}" for name in IMPRESSION_COLUMNS)
    label = ", ".join(f"{quoted(name)} {kind}" for name, kind in LABEL.items())
    return f"""SELECT topic, kafka_partition, kafka_offset, impression_id, impression_ts, rt, proc,
    CASE WHEN topic = {text(topics.IMPRESSIONS)} THEN CAST(ROW({", ".join(IMPRESSION_COLUMNS)}) AS ROW<{impression}>) END AS impression,
    context,
    CAST(ROW(CASE WHEN topic <> {text(topics.IMPRESSIONS)} THEN event_id END,
        CASE topic WHEN {text(topics.ENGAGEMENTS)} THEN kind WHEN {text(topics.WATCHES)} THEN 'watch'
            WHEN {text(topics.CONVERSIONS)} THEN 'conversion' WHEN {text(topics.QUESTIONNAIRES)} THEN 'answer' END,
        ts, impression_ts, CASE WHEN topic = {text(topics.WATCHES)} THEN play_ms END,
        CASE WHEN topic = {text(topics.CONVERSIONS)} THEN `value` END, duration_ms) AS ROW<{label}>) AS label
FROM (
    SELECT *, ROW_NUMBER() OVER (PARTITION BY event_id ORDER BY proc) AS copy
    FROM checked WHERE is_event
) WHERE copy = 1"""


def routed(windows: Windows) -> str:
    """Which way an event goes, by the watermark at the moment it is read."""
    overdue = round(windows.label_s * 1000)
    return f"""SELECT *,
    COALESCE(rt <= CURRENT_WATERMARK(rt), FALSE) OR (impression IS NULL AND label.ts > impression_ts + {overdue}) AS late,
    COALESCE(rt <= CURRENT_WATERMARK(rt) - {interval(windows.attribution_s - 0.001)}, FALSE) AS expired
FROM once"""


ARRIVING = "topic, kafka_partition, kafka_offset, impression_id, impression_ts, rt, proc, impression, context, label"
KNOWN = dict.fromkeys((*COUNTED, "answers", "play_ms"), "BIGINT") | {"conversion_value": "DOUBLE"}


def joined() -> str:
    """Events whose impression's window is open, with what all of them together say of it, when the window closes."""
    counts = ",\n    ".join(f"COUNT(CASE WHEN label.kind = {text(name)} THEN 1 END) OVER peers AS {quoted(name)}" for name in COUNTED)
    return f"""SELECT {ARRIVING},
    COUNT(CASE WHEN impression IS NOT NULL THEN 1 END) OVER peers AS impressions,
    {counts},
    COUNT(CASE WHEN label.kind = 'answer' THEN 1 END) OVER peers AS answers,
    SUM(label.play_ms) OVER peers AS play_ms,
    SUM(label.`value`) OVER peers AS conversion_value
FROM routed WHERE NOT late
WINDOW peers AS (PARTITION BY impression_id ORDER BY rt RANGE BETWEEN INTERVAL '0' SECOND PRECEDING AND CURRENT ROW)"""


def arriving() -> str:
    """Impressions whose labels are settled, and labels that no window took; labels of a late impression are not known yet."""
    known = f"ROW<{', '.join(f'{quoted(name)} {kind}' for name, kind in KNOWN.items())}>"
    return f"""SELECT {ARRIVING}, CAST(ROW({", ".join(map(quoted, KNOWN))}) AS {known}) AS known
FROM joined WHERE impression IS NOT NULL OR impressions = 0
UNION ALL
SELECT {ARRIVING}, CAST(NULL AS {known}) AS known FROM routed WHERE late AND NOT expired"""


def settled() -> str:
    """Events of an impression in the order of their arrival, with the impression that came first and the labels that came so far.

    `leaving` is what goes out now, in order: the first impression and the labels that waited for it, or a label whose impression is out.
    """
    return """SELECT topic, kafka_partition, kafka_offset, impression_id, impression_ts, rt, context, known,
    impression IS NOT NULL AS is_impression, first_impression, impressions, CARDINALITY(so_far) AS arrived,
    CASE WHEN impression IS NOT NULL THEN (CASE WHEN impressions = 1 THEN ARRAY_REVERSE(so_far) END)
        WHEN first_impression.ts = impression_ts THEN ARRAY[label] END AS leaving
FROM (
    SELECT *,
        FIRST_VALUE(impression) OVER arrival AS first_impression,
        COUNT(CASE WHEN impression IS NOT NULL THEN 1 END) OVER arrival AS impressions,
        ARRAY_AGG(label) OVER arrival AS so_far
    FROM arriving
    WINDOW arrival AS (PARTITION BY impression_id ORDER BY proc ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
)"""


def sample(windows: Windows) -> str:
    """One row per sample, without context from the history: an initial sample first, then the labels that waited for it."""
    wait = round(windows.wait_s * 1000)

    def count(name: str) -> str:
        return f"CASE WHEN label_id IS NULL THEN s.known.{quoted(name)} WHEN l.kind = {text(name)} THEN 1 END"

    labels = {name: count(name) for name in COUNTED}
    labels["answers"] = "CASE WHEN label_id IS NULL THEN s.known.answers WHEN l.kind = 'answer' THEN 1 END"
    labels["play_ms"] = "CASE WHEN label_id IS NULL THEN s.known.play_ms ELSE l.play_ms END"
    labels["long_view"] = f"""CASE WHEN label_id IS NULL
            THEN CASE WHEN s.known.play_ms >= LEAST({LONG_VIEW_MS}, s.first_impression.duration_ms) THEN 1
                WHEN s.known.play_ms IS NOT NULL THEN 0 END
            WHEN l.play_ms >= LEAST({LONG_VIEW_MS}, l.duration_ms) THEN 1 WHEN l.play_ms IS NOT NULL THEN 0 END"""
    labels["conversion_value"] = "CASE WHEN label_id IS NULL THEN s.known.conversion_value ELSE l.`value` END"
    ordered = ",\n        ".join(labels[field] for field in columns([records.Labels]) if field != "schema")
    copied = ", ".join(f"s.first_impression.{quoted(name)} AS {quoted(name)}" for name in IMPRESSION_COLUMNS)
    return f"""SELECT s.impression_id || ':' || COALESCE(label_id, 'initial') AS sample_id,
    CASE WHEN label_id IS NULL THEN 'initial' ELSE 'correction' END AS kind,
    s.impression_id, {copied},
    GREATEST(l.ts, s.first_impression.ts + {wait}) AS ready_ts,
    CAST(ROW({ordered}) AS {row_type(records.Labels)}) AS labels,
    CASE WHEN label_id IS NULL THEN s.context END AS context, s.rt
FROM settled AS s CROSS JOIN UNNEST(s.leaving) AS l ({", ".join(map(quoted, LABEL))})
WHERE l.impression_ts = s.first_impression.ts"""


def history_table(client: Mapping[str, Any], group: str, idle_s: float) -> str:
    """The user's history as a versioned table, each version valid from the millisecond after it was known.

    `idle_s`: how long a features job that says nothing may hold the samples back; it sends its time with every heartbeat.
    """
    source = tables.source(client, group, [topics.feature_topic(HISTORY_VIEW)])
    for key in ("scan.startup.mode", "value.json.decode.json-parser.enabled"):
        source.pop(key)
    with_clause = tables.options(
        {
            **source,
            "connector": "upsert-kafka",
            "key.format": "raw",
            "value.fields-include": "EXCEPT_KEY",
            "scan.watermark.idle-timeout": f"{round(idle_s * 1000)} ms",
        }
    )
    entries = columns([records.Context])["history"]
    return f"""CREATE TABLE history (
    user_id STRING, event_timestamp BIGINT, entries {entries},
    rt AS COALESCE(TO_TIMESTAMP_LTZ(event_timestamp + 1, 3), {tables.EPOCH}), WATERMARK FOR rt AS rt - {interval(0.001)},
    PRIMARY KEY (user_id) NOT ENFORCED
) WITH ({with_clause})"""


SAMPLE_COLUMNS = {**columns([records.Sample])}
del SAMPLE_COLUMNS["schema"]


def sample_sink(client: Mapping[str, Any], name: str) -> str:
    """The topic `samples`, keyed by user, so that a correction follows its initial sample in the same partition."""
    body = ", ".join(f"{quoted(column)} {kind}" for column, kind in SAMPLE_COLUMNS.items())
    sink = tables.sink(client, topics.SAMPLES, exactly_once=f"{name}-samples")
    with_clause = tables.options({**sink, **tables.keyed("key_user")})
    return f"CREATE TABLE samples (key_user STRING, {body}) WITH ({with_clause})"


def reject_sink(client: Mapping[str, Any], name: str) -> str:
    """The topic `rejects`: which records cannot be used, and why; the inspector adds their bytes."""
    with_clause = tables.options(tables.sink(client, topics.REJECTS, exactly_once=f"{name}-rejects"))
    return f"CREATE TABLE rejects (topic STRING, `partition` INT, `offset` BIGINT, reason STRING) WITH ({with_clause})"


def insert_samples(history: bool) -> str:
    """Samples with the context that serving logged, else with the history known strictly before the impression; corrections have none.

    A logged context whose newest entry is not older than the impression, or has no time, is not believed.
    """
    entry = row_type(records.HistoryEntry)
    empty = f"ARRAY_REMOVE(ARRAY[CAST(NULL AS {entry})], CAST(NULL AS {entry}))"
    logged = "CASE WHEN CARDINALITY(s.context.history) = 0 OR s.context.history[1].ts < s.ts THEN s.context.history END"
    entries = f"COALESCE(CASE WHEN kind = 'initial' THEN COALESCE({logged}, {'h.entries' if history else 'NULL'}) END, {empty})"
    values = {name: f"s.{quoted(name)}" for name in SAMPLE_COLUMNS}
    values["context"] = f"CAST(ROW({entries}) AS {row_type(records.Context)})"
    values["weight"] = "CAST(1 AS DOUBLE)"
    join = "LEFT JOIN history FOR SYSTEM_TIME AS OF s.rt AS h ON CAST(s.user_id AS STRING) = h.user_id" if history else ""
    return f"INSERT INTO samples SELECT CAST(s.user_id AS STRING), {', '.join(values.values())} FROM sample AS s {join}"


def unclaimed() -> str:
    """Labels that came before their impression, and the impressions that such labels waited for."""
    return """SELECT topic, kafka_partition, kafka_offset, impression_id, impression_ts, is_impression, rt FROM settled
WHERE first_impression IS NULL OR (is_impression AND impressions = 1 AND arrived > 1)"""


def insert_rejects(windows: Windows) -> str:
    """What cannot be used: faulty, too old, at odds with its impression, or without an impression until the attribution window ended.

    A session of an impression's unclaimed labels ends one attribution window after the impression's time, and fires then.
    """
    position = "topic, kafka_partition, kafka_offset"
    return f"""INSERT INTO rejects
SELECT {position}, {text(NOT_USABLE)} FROM checked WHERE is_faulty
UNION ALL
SELECT {position}, 'read after the attribution window of its impression' FROM routed WHERE expired
UNION ALL
SELECT {position}, 'impression_ts is not the time of its impression' FROM settled
WHERE NOT is_impression AND first_impression.ts <> impression_ts
UNION ALL
SELECT o.topic, o.kafka_partition, o.kafka_offset, 'orphan' FROM (
    SELECT ARRAY_AGG(ROW({position})) AS waiting, COUNT(CASE WHEN is_impression THEN 1 END) AS impressions
    FROM TABLE(SESSION(TABLE unclaimed PARTITION BY (impression_id, impression_ts), DESCRIPTOR(rt), {interval(windows.attribution_s)}))
    GROUP BY impression_id, impression_ts, window_start, window_end
) AS w CROSS JOIN UNNEST(w.waiting) AS o ({position}) WHERE w.impressions = 0"""


def define(
    environment: TableEnvironment,
    client: Mapping[str, Any],
    windows: Windows,
    *,
    name: str = "sidstream-samples",
    history_idle_s: float | None = 120,
    scan: Mapping[str, str] | None = None,
) -> StatementSet:
    """Define tables and views, and return the statements to run as one job.

    Args:
        name: consumer group and prefix of transactions; one job a name.
        history_idle_s: see `history_table`; None leaves the history out, so that only logged contexts are used.
        scan: further options of the event source.
    """
    # Processing time: rows that a key has not touched for this long are forgotten. In a replay nothing is, which only costs memory.
    environment.get_config().set("table.exec.state.ttl", f"{round((windows.attribution_s + windows.wait_s) * 1000)} ms")
    event = tables.event_table(
        client,
        name,
        row_time=tables.IMPRESSION_TIME,
        watermark_lag_s=windows.wait_s,
        attribution_s=windows.attribution_s,
        scan=scan,
    )
    environment.execute_sql(event)
    views = {
        "checked": checked(),
        "once": once(),
        "routed": routed(windows),
        "joined": joined(),
        "arriving": arriving(),
        "settled": settled(),
        "sample": sample(windows),
        "unclaimed": unclaimed(),
    }
    for view, query in views.items():
        # Registered as a plan, not as text: a text is parsed and planned anew by every view and statement above it.
        environment.create_temporary_view(view, environment.sql_query(query))
    for statement in (sample_sink(client, name), reject_sink(client, name)):
        environment.execute_sql(statement)
    if history_idle_s is not None:
        environment.execute_sql(history_table(client, name, history_idle_s))
    statements = environment.create_statement_set()
    statements.add_insert_sql(insert_samples(history_idle_s is not None))
    statements.add_insert_sql(insert_rejects(windows))
    return statements
