"""Every record that travels through Kafka: the single source for wire format, validation, JSON Schemas and Flink columns.

Records are JSON objects, one per Kafka message. Times are event time, int64 milliseconds UTC. `None` means *unknown*, never zero.
Unknown fields are tolerated and dropped; an unknown `schema` or a broken bound raises `RecordError` with a reason a person can read.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
import msgspec.inspect

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]  # what Flink, Kafka's clients and Feast can hold
ItemId = Int64
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
UserId = Count
Millis = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Sid = list[Int64]
Case = Literal["exact_hit", "content_hit", "miss"]
EngagementKind = Literal["click", "like", "follow", "comment", "share", "hate", "profile_visit"]


class HistoryEntry(msgspec.Struct, frozen=True):
    """One past interaction; `play_ms` is None where the entry is an engagement, `kinds` is empty where it is a watch."""

    item_id: ItemId
    ts: Int64
    play_ms: Int64 | None = None
    kinds: list[str] = []


class Context(msgspec.Struct, frozen=True):
    """What was known of the user strictly before the impression; `history` is newest first."""

    history: list[HistoryEntry] = []


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema"):
    """Common to the input topics."""

    event_id: Identifier
    user_id: UserId
    ts: Millis


class Impression(Event, frozen=True, kw_only=True, tag="impression/1"):
    """A video shown to a user."""

    impression_id: Identifier
    request_id: str
    item_id: ItemId
    position: Count
    scene: str
    duration_ms: Millis
    sid: Sid | None = None
    served_sid: Sid | None = None
    case: Case | None = None
    model_version: str | None = None
    bundle_version: str | None = None
    policy_logprob: Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)] | None = None
    pipeline: str | None = None
    mode: str | None = None
    cache_age_ms: Int64 | None = None
    context: Context | None = None
    device: str | None = None
    network: str | None = None


class Label(Event, frozen=True, kw_only=True):
    """An event that tells how an impression went; it carries the impression's time, which is its row time in the label window."""

    impression_id: Identifier
    impression_ts: Millis


class Engagement(Label, frozen=True, kw_only=True, tag="engagement/1"):
    kind: EngagementKind
    at_ms: Count | None = None


class Watch(Label, frozen=True, kw_only=True, tag="watch/1"):
    play_ms: Millis
    duration_ms: Millis
    finished: bool | None = None
    replays: Count | None = None
    stalls: Count | None = None


class Conversion(Label, frozen=True, kw_only=True, tag="conversion/1"):
    value: Annotated[float, msgspec.Meta(ge=0, le=1e15)]
    currency: Annotated[str, msgspec.Meta(pattern="^[A-Z]{3}$")]


class Questionnaire(Label, frozen=True, kw_only=True, tag="questionnaire/1"):
    question: str
    answer: str


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="heartbeat/1"):
    """Says that a partition's time has reached `ts` although nothing happened in it; sent to every partition by the clock's one owner.

    `user_id` is negative (see `streaming.heartbeat`): it travels through the feature job like a user and so moves the time of the
    feature topics too, once everything before it has been written there.
    """

    event_id: Identifier
    user_id: Annotated[int, msgspec.Meta(lt=0)]
    ts: Millis


class Labels(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an impression; None = not known yet.

    Counts of events, except `play_ms` (total), `long_view` (0/1: `play_ms` reaches 18 s or the video's end) and `conversion_value` (total).
    """

    click: int | None = None
    like: int | None = None
    follow: int | None = None
    comment: int | None = None
    share: int | None = None
    hate: int | None = None
    profile_visit: int | None = None
    answers: int | None = None
    play_ms: int | None = None
    long_view: int | None = None
    conversion_value: float | None = None


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """An impression joined with its labels and the context of its moment; `ready_ts` is when its window closed, in event time.

    A correction holds one label that was not in the initial sample; its other labels are None and its context is empty (the initial
    sample, which always precedes it, has the context).
    """

    sample_id: str
    kind: Literal["initial", "correction"]
    impression_id: str
    user_id: int
    item_id: int
    ts: int
    ready_ts: int
    labels: Labels
    context: Context
    weight: float = 1.0
    duration_ms: int | None = None
    pipeline: str | None = None
    policy_logprob: float | None = None
    model_version: str | None = None
    sid: Sid | None = None
    served_sid: Sid | None = None


class _LoggedEntry(msgspec.Struct):
    item_id: Int64 | None = None
    ts: Int64 | None = None
    play_ms: Int64 | None = None
    kinds: list[str | None] | None = None


class _LoggedContext(msgspec.Struct):
    history: list[_LoggedEntry | None]


class _Logged(msgspec.Struct):
    """What a sample copies from its impression, where any part of it may be null."""

    context: _LoggedContext
    sid: list[Int64 | None] | None = None
    served_sid: list[Int64 | None] | None = None


class ModelPublished(msgspec.Struct, frozen=True, kw_only=True):
    """A model version that serving may load; `base` is the version that a delta applies to."""

    version: str
    base: str | None
    manifest: str
    bundle_version: str
    watermark_ts: int
    samples_trained: int
    metrics: dict[str, Any]


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A video that somebody would like to see and that does not exist."""

    request_id: str
    sid: Sid
    bundle_version: str
    demand: int
    reason: Literal["miss", "content_hit"]
    nearest_sid: Sid
    user_id: int | None = None
    metadata: dict[str, Any] | None = None


class Video(msgspec.Struct, frozen=True, kw_only=True):
    """A generated video; `origin_ts` is the time of the request it answers."""

    sid: Sid
    bundle_version: str
    uri: str
    item_id: int
    duration_ms: int
    scores: dict[str, float]
    generator: str
    origin_ts: int


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A record that could not be used: where it was, why, and its raw bytes."""

    topic: str
    partition: int
    offset: int
    reason: str
    body_base64: str


class RecordError(ValueError):
    """A record that breaks its schema; the message says which, where and why."""


EVENTS: dict[str, type[Event]] = {
    "impressions": Impression,
    "engagements": Engagement,
    "watches": Watch,
    "conversions": Conversion,
    "questionnaires": Questionnaire,
}  # topic → record
OUTPUTS: dict[str, type[msgspec.Struct]] = {
    "samples": Sample,
    "model.published": ModelPublished,
    "generation.requests": GenerationRequest,
    "videos": Video,
    "dead_letters": DeadLetter,
}  # topic → record

_encoder = msgspec.json.Encoder()
_decoders = {topic: msgspec.json.Decoder(schema | Heartbeat) for topic, schema in EVENTS.items()}  # type: ignore[operator]
# Types of Python by their names in JSON, for errors.
_JSON_NAMES = {"NoneType": "null", "bool": "a boolean", "int": "a number", "float": "a number", "str": "a string", "list": "an array"}
_sample_decoder = msgspec.json.Decoder(Sample)
_logged_decoder = msgspec.json.Decoder(_Logged)
_expectation = re.compile(r"^(?P<expected>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)


def encode(record: msgspec.Struct) -> bytes:
    """A record as it travels."""
    return _encoder.encode(record)


def decode(topic: str, body: bytes) -> Event | Heartbeat:
    """A record of an event topic, checked.

    Raises:
        RecordError: not JSON, another schema, a field that is missing or breaks its bound.
    """
    try:
        return _decoders[topic].decode(body)
    except msgspec.ValidationError as error:
        raise RecordError(explain(topic, body, str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"not a JSON object: {error}") from error


def decode_sample(body: bytes) -> Sample:
    """A record of the topic `samples`.

    What the sender of an impression left out of the context or of the SIDs that it logged is null there. That must not cost the sample:
    entries without item or time are left out, and a SID without a code is unknown.

    Raises:
        msgspec.DecodeError: it is no sample.
    """
    try:
        return _sample_decoder.decode(body)
    except msgspec.ValidationError:
        logged = _logged_decoder.decode(body)
        entries = [
            HistoryEntry(entry.item_id, entry.ts, entry.play_ms, [kind for kind in entry.kinds or () if kind is not None])
            for entry in logged.context.history
            if entry is not None and entry.item_id is not None and entry.ts is not None
        ]
        unknown = {name: None for name in ("sid", "served_sid") if None in (getattr(logged, name) or ())}
        return msgspec.convert({**msgspec.json.decode(body), "context": {"history": msgspec.to_builtins(entries)}, **unknown}, Sample)


def explain(topic: str, body: bytes, error: str) -> str:
    """A validation error of msgspec for a person: which record, which field, what it is, what was expected.

    `Watch 8f3c2a11…: play_ms is -4 (expected ≥ 0)`
    """
    name = EVENTS[topic].__name__
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as unreadable:
        return f"{name}: not a JSON object that can be read: {unreadable}"
    if not isinstance(found, dict):
        return f"{name}: not a JSON object but {_JSON_NAMES[type(found).__name__]}"
    identity = found.get("event_id")
    head = f"{name} {identity[:8] + '…' if len(identity) > 8 else identity}" if isinstance(identity, str) and identity else name
    parts = _expectation.match(error)
    assert parts is not None  # every text matches
    expected, path = parts["expected"], parts["path"] or ""
    if "missing required field" in expected:
        return f"{head}: {path + '.' if path else ''}{expected.rpartition(' ')[2].strip('`')} is missing"
    if path == "schema" or expected.startswith("Invalid value"):
        wanted = msgspec.inspect.type_info(EVENTS[topic])
        assert isinstance(wanted, msgspec.inspect.StructType)
        if path in ("schema", ""):
            return f"{head}: schema is {shown(found.get('schema'))} (expected {wanted.tag})"
    if expected.startswith("Invalid enum value"):
        return f"{head}: {path} is {shown(at(found, path))} (not one of its values)"
    wish = re.sub(r"^Expected ", "", expected).replace("`", "").replace(">=", "≥").replace("<=", "≤")
    wish = re.sub(r"^(?:int|float) (?=[≥≤<>])", "", wish)
    return f"{head}: {path or 'the record'} is {shown(at(found, path))} (expected {wish})"


def at(tree: Any, path: str) -> Any:
    """The value at a path such as `context.history[3].ts`, None where it leads nowhere."""
    for step in re.findall(r"[^.\[\]]+", path):
        if isinstance(tree, dict):
            tree = tree.get(step)
        elif isinstance(tree, list) and step.isdigit() and int(step) < len(tree):
            tree = tree[int(step)]
    return tree


def shown(value: Any) -> str:
    """A value as JSON, short enough for a line."""
    line = msgspec.json.encode(value).decode()
    return line if len(line) <= 60 else line[:57] + "…"


def json_schemas() -> dict[str, dict[str, Any]]:
    """Topic → JSON Schema (2020-12) of its records, for clients in other languages."""
    return {topic: msgspec.json.schema(record) for topic, record in {**EVENTS, **OUTPUTS}.items()}
