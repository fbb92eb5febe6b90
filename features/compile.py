"""Feature views compiled to Flink SQL.

    event ──▶ happened ──▶ one query a view: an OVER window after another, the longest first ──▶ features.<view>
     │        each event_id once, with the item of its impression, when both are known             ▲
     └── heartbeats, to the views without windows of time: they bring those topics the time ───────┘

The row time of an event is when it became known (`streaming.flink.tables.known_time`), so none is late. A value is final when it is
written: an OVER window speaks when the watermark has passed the row, and says what holds as of that row. Rows of one entity and one
millisecond are peers: all of them get the values that include all of them.

A label says nothing of its video; it counts with its impression, once both are known, and not at all without one. The state of a
window of time is bounded by its length, in event time. What is kept of an impression, of the labels that wait for one, and of a history
has a lifetime, in processing time, since it was last touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from features.view import Aggregate, View, ViewError
from streaming import topics
from streaming.flink import tables
from streaming.flink.columns import identifier, quoted, text
from streaming.flink.tables import interval

if TYPE_CHECKING:
    from pyflink.table import StatementSet, TableEnvironment

JOB = "sidstream-features"
LONG_VIEW_MS = 18_000  # a view of 18 s, or of the whole video, is long (KuaiRand's definition)
HAPPENED = "happened"
KINDS = ("click", "like", "follow", "comment", "share", "hate", "profile_visit")

# What a feature can be made of: see `features/definitions.py`.
COLUMNS: dict[str, str] = {
    "impression": f"CASE WHEN topic = {text(topics.IMPRESSIONS)} THEN 1 ELSE 0 END",
    **{kind: f"CASE WHEN topic = {text(topics.ENGAGEMENTS)} AND kind = {text(kind)} THEN 1 ELSE 0 END" for kind in KINDS},
    "watch": f"CASE WHEN topic = {text(topics.WATCHES)} THEN 1 ELSE 0 END",
    # A duration of 0 is one that nobody knew.
    "long_view": f"CASE WHEN topic = {text(topics.WATCHES)} AND play_ms >= LEAST({LONG_VIEW_MS}, "
    f"CASE WHEN duration_ms > 0 THEN duration_ms ELSE {LONG_VIEW_MS} END) THEN 1 ELSE 0 END",
    "conversion": f"CASE WHEN topic = {text(topics.CONVERSIONS)} THEN 1 ELSE 0 END",
    "play_ms": f"CASE WHEN topic = {text(topics.WATCHES)} THEN play_ms END",
    "conversion_value": f"CASE WHEN topic = {text(topics.CONVERSIONS)} THEN `value` END",
}
INTERACTION = "interaction"
# What is remembered of an event, so that it can wait for its impression.
SEEN: dict[str, str] = {
    "topic": "STRING",
    "event_id": "STRING",
    "user_id": "BIGINT",
    "ts": "BIGINT",
    "kind": "STRING",
    "play_ms": "BIGINT",
    "duration_ms": "BIGINT",
    "value": "DOUBLE",
    "known_ms": "BIGINT",
    "place": "BIGINT",
}
FUNCTIONS: dict[str, str] = {
    "sum": "COALESCE(SUM({column}) OVER {window}, 0)",
    "count": "COUNT({column}) OVER {window}",
    "mean": "AVG(CAST({column} AS DOUBLE)) OVER {window}",
    "min": "MIN({column}) OVER {window}",
    "max": "MAX({column}) OVER {window}",
}
LAST = "last"
# Interactions of one user and one millisecond arrive in any order. So many more than asked for are kept, put in a fixed order, and cut.
PEERS = 14


def milliseconds(time: str) -> str:
    """A TIMESTAMP_LTZ(3) after 1970 as BIGINT milliseconds."""
    return f"CAST(TIMESTAMPDIFF(SECOND, {tables.EPOCH}, {time}) AS BIGINT) * 1000 + EXTRACT(MILLISECOND FROM {time})"


def happened() -> str:
    """What happened to a user and an item: the columns that features are made of.

    One pass by impression, which remembers what it has seen. A label whose impression is known happens when it is known itself; those that
    came before it wait, and happen together with the first impression row. Copies of an event are recognised where its impression is
    looked up, because a state per event would cost more than all the windows.
    """
    columns = ",\n    ".join(f"CAST({source} AS {kind_of(name)}) AS {quoted(name)}" for name, source in COLUMNS.items())
    event = ", ".join(map(quoted, SEEN))
    return f"""SELECT e.user_id, shown_item AS item_id, rt,
    {columns},
    CASE WHEN topic IN ({text(topics.ENGAGEMENTS)}, {text(topics.WATCHES)}) THEN {interaction()} END AS {INTERACTION}
FROM (
    SELECT rt, at_place, at_ms, shown_item, ids, places,
        CASE WHEN first_place = at_place THEN so_far ELSE ARRAY[seen] END AS happening
    FROM (
        SELECT rt, place AS at_place, known_ms AS at_ms, seen, MAX(item_id) OVER w AS shown_item,
            FIRST_VALUE(CASE WHEN topic = {text(topics.IMPRESSIONS)} THEN place END) OVER w AS first_place,
            ARRAY_AGG(event_id) OVER w AS ids, ARRAY_AGG(place) OVER w AS places, ARRAY_AGG(seen) OVER w AS so_far
        FROM (
            SELECT *, CAST(ROW({event}) AS ROW<{", ".join(f"{quoted(name)} {kind}" for name, kind in SEEN.items())}>) AS seen
            FROM (
                SELECT topic, event_id, {identifier("user_id")} AS user_id, {identifier("item_id")} AS item_id, impression_id,
                    COALESCE(impression_ts, ts) AS shown_ts, ts, kind, play_ms,
                    duration_ms, `value`, rt, {milliseconds("rt")} AS known_ms,
                    {place()} AS place
                FROM event WHERE usable AND `schema` <> {text(tables.HEARTBEAT)}
            )
        )
        WINDOW w AS (PARTITION BY impression_id, shown_ts ORDER BY rt RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
    ) WHERE shown_item IS NOT NULL
) CROSS JOIN UNNEST(happening) AS e ({event})
WHERE places[ARRAY_POSITION(ids, e.event_id)] = e.place AND (e.place = at_place OR e.known_ms < at_ms)"""


def place() -> str:
    """Topic, partition and offset in one number, which tells copies apart."""
    numbers = " ".join(f"WHEN {text(topic)} THEN {number}" for number, topic in enumerate(topics.EVENT_TOPICS))
    return f"CAST(CASE topic {numbers} END AS BIGINT) * {1 << 59} + CAST(kafka_partition AS BIGINT) * {1 << 44} + kafka_offset"


def kind_of(column: str) -> str:
    return "DOUBLE" if column == "conversion_value" else "BIGINT"


def interaction() -> str:
    """One entry of a history as a JSON text; it begins with its time, so that texts sort by it."""
    return (
        f"""'{{"known_at":' || CAST({milliseconds("rt")} AS STRING) || ',"ts":' || CAST(ts AS STRING) || """
        """',"item_id":' || CAST(shown_item AS STRING) || ',"play_ms":' || """
        f"CASE WHEN topic = {text(topics.WATCHES)} THEN CAST(play_ms AS STRING) ELSE 'null' END || "
        f"""',"kinds":[' || CASE WHEN topic = {text(topics.ENGAGEMENTS)} THEN '"' || kind || '"' ELSE '' END || ']}}'"""
    )


def event_table(client: Mapping[str, Any], disorder_s: float, attribution_s: float, scan: Mapping[str, str] | None = None) -> str:
    """The shared table of all event topics, with this job's row time and watermark."""
    return tables.event_table(
        client,
        JOB,
        row_time=tables.known_time(disorder_s),
        watermark_lag_s=disorder_s,
        attribution_s=attribution_s,
        scan=scan,
    )


def is_listing(view: View) -> bool:
    """Whether the view lists the last interactions instead of aggregating over windows of time.

    Raises:
        ViewError: it does both, or something that no SQL is known for.
    """
    listings = [a for a in view.aggregates if a.function == LAST]
    for aggregate in view.aggregates:
        problem = fault(aggregate)
        if problem:
            raise ViewError(f"{view.name}.{aggregate.name}: {problem}")
    if listings and len(view.aggregates) > 1:
        raise ViewError(f"{view.name}: {listings[0].name} lists interactions and must be the only feature of its view")
    if view.join_key not in ("user_id", "item_id"):
        raise ViewError(f"{view.name}: events have a user_id and an item_id, no {view.join_key}")
    return bool(listings)


def fault(aggregate: Aggregate) -> str | None:
    """Why an aggregate cannot be computed; None if it can."""
    if aggregate.function == LAST:
        if aggregate.column != INTERACTION or aggregate.window_s is not None:
            return f"{LAST} lists the column {INTERACTION}, over no window"
        return None
    if aggregate.function not in FUNCTIONS:
        return f"function {aggregate.function} is none of {', '.join((*FUNCTIONS, LAST))}"
    if aggregate.column not in COLUMNS:
        return f"column {aggregate.column} is none of {', '.join(COLUMNS)}"
    if aggregate.window_s is None or aggregate.window_s <= 0:
        return "it needs a time_window"
    return None


def query(view: View, history: int) -> str:
    """The SELECT that computes a view: key text, entity, event_timestamp in ms and the features; of a listing, key text and JSON body."""
    return listing(view, history) if is_listing(view) else counters(view)


def counters(view: View) -> str:
    """One OVER pass per window, the longest first: its rows wait longest, and are narrowest there."""
    windows = sorted({a.window_s for a in view.aggregates if a.window_s is not None}, reverse=True)
    passes, source, done = list[str](), HAPPENED, list[str]()
    for window in windows:
        here = [a for a in view.aggregates if a.window_s == window]
        later = {a.column for a in view.aggregates if a.window_s is not None and a.window_s < window}
        carried = [view.join_key, "rt", *(column for column in COLUMNS if column in later), *done]
        computed = [f"{FUNCTIONS[a.function].format(column=quoted(a.column), window='w')} AS {quoted(a.name)}" for a in here]
        columns = ",\n    ".join([", ".join(map(quoted, carried)), *computed])
        name = f"within_{round(window * 1000)}_ms"
        passes.append(
            f"{name} AS (\n    SELECT {columns}\n    FROM {source}\n    WINDOW w AS (PARTITION BY {view.join_key} ORDER BY rt "
            f"RANGE BETWEEN {interval(window)} PRECEDING AND CURRENT ROW)\n)"
        )
        source = name
        done += [a.name for a in here]
    values = ",\n    ".join(f"CAST({quoted(f.name)} AS {sql_type(f.type)}) AS {quoted(f.name)}" for f in view.features)
    head = f"CAST({view.join_key} AS STRING) AS key_entity, {view.join_key}, {milliseconds('rt')} AS event_timestamp"
    return f"WITH {', '.join(passes)}\nSELECT {head},\n    {values}\nFROM {source}"


def listing(view: View, history: int) -> str:
    """The entity's last interactions, newest first, with the heartbeats that bring its topic the time."""
    (aggregate,) = view.aggregates
    sort = f"ARRAY_SLICE(ARRAY_SORT(ARRAY_AGG({INTERACTION}) OVER w, FALSE), 1, {history})"
    entries = f"CASE WHEN {view.join_key} IS NULL OR beat THEN '' ELSE ARRAY_JOIN({sort}, ',') END"
    # One partition's heartbeats are enough: their row is written when the watermark of all partitions has passed them.
    beats = ""
    if view.join_key == "user_id":
        beats = (
            f"\n    UNION ALL\n    SELECT {identifier('user_id')}, rt, CAST(NULL AS STRING), TRUE FROM event\n    WHERE usable AND "
            f"`schema` = {text(tables.HEARTBEAT)} AND topic = {text(topics.IMPRESSIONS)} AND kafka_partition = 0"
        )
    return f"""SELECT CAST({view.join_key} AS STRING) AS key_entity,
    '{{"{view.join_key}":' || CAST({view.join_key} AS STRING) || ',"event_timestamp":' || CAST({milliseconds("rt")} AS STRING) ||
    ',"{aggregate.name}":[' || {entries} || ']}}' AS body
FROM (
    SELECT {view.join_key}, rt, {INTERACTION}, FALSE AS beat FROM {HAPPENED} WHERE {INTERACTION} IS NOT NULL{beats}
)
WINDOW w AS (PARTITION BY {view.join_key} ORDER BY rt ROWS BETWEEN {history + PEERS - 1} PRECEDING AND CURRENT ROW)"""


def sql_type(feature: str) -> str:
    return {"Int64": "BIGINT", "Float64": "DOUBLE", "Float32": "FLOAT", "Bool": "BOOLEAN", "String": "STRING"}[feature]


def sink_columns(view: View) -> str:
    """Columns of a view's sink, in the order of `query`."""
    if is_listing(view):
        return "key_entity STRING, body STRING"
    features = "".join(f", {quoted(feature.name)} {sql_type(feature.type)}" for feature in view.features)
    return f"key_entity STRING, {view.join_key} BIGINT, event_timestamp BIGINT{features}"


def sink_name(view: View) -> str:
    return f"{view.name}_values"


def kafka_sink(client: Mapping[str, Any], view: View) -> str:
    """The topic `features.<view>`, keyed by the entity in decimals."""
    options = {**tables.sink(client, topics.feature_topic(view.name)), **tables.keyed("key_entity"), "properties.linger.ms": "5"}
    if is_listing(view):
        options["value.format"] = "raw"
    return f"CREATE TABLE {sink_name(view)} ({sink_columns(view)}) WITH ({tables.options(options)})"


def insert(view: View, history: int) -> str:
    return f"INSERT INTO {sink_name(view)}\n{query(view, history)}"


def define(
    environment: TableEnvironment, event: str, sinks: Iterable[str], views: Sequence[View], *, history: int, lifetime_s: float
) -> StatementSet:
    """Define tables and views, and return the statements to run as one job.

    Args:
        event: CREATE TABLE of `event`.
        sinks: CREATE TABLE of every view's sink.
        history: entries of a listing.
        lifetime_s: how long an impression waits for labels and a history for more, in processing time; then they are forgotten.
    """
    environment.get_config().set("table.exec.state.ttl", f"{round(lifetime_s * 1000)} ms")
    environment.execute_sql(event)
    # Registered as a plan, not as text: the views share it instead of planning and computing it once each.
    environment.create_temporary_view(HAPPENED, environment.sql_query(happened()))
    for sink in sinks:
        environment.execute_sql(sink)
    statements = environment.create_statement_set()
    for view in views:
        statements.add_insert_sql(insert(view, history))
    return statements
