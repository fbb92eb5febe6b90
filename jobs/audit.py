"""The system's invariants, recomputed from the raw topics.

Nothing here imports the code that it checks: records are parsed with `json`, rules are written again from the contract, tensors are
read from their file's header, videos are decoded by FFmpeg. Every check returns an `Invariant`; its detail names the first offenders.
"""

from __future__ import annotations

import base64
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

EVENT_TOPICS = ("impressions", "engagements", "watches", "conversions", "questionnaires")
SCHEMA_OF = dict(zip(EVENT_TOPICS, ("impression/1", "engagement/1", "watch/1", "conversion/1", "questionnaire/1"), strict=True))
KINDS = ("click", "like", "follow", "comment", "share", "hate")
ENGAGEMENTS = {*KINDS, "profile_visit"}
DAY_MS = 86_400_000
SHOWN = 5  # offenders that a detail names


@dataclass(frozen=True)
class Invariant:
    name: str
    holds: bool
    detail: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Raw:
    """One Kafka message; `appended` is its record time in milliseconds."""

    topic: str
    partition: int
    offset: int
    appended: int
    body: bytes | None

    @property
    def place(self) -> tuple[str, int, int]:
        return (self.topic, self.partition, self.offset)


def read_topic(client: Mapping[str, Any], topic: str, timeout_s: float = 120) -> Iterator[Raw]:
    """Every committed message of a topic, up to its end as it is now.

    Raises:
        TimeoutError: the broker did not deliver the topic's end in time.
    """
    settings = {"group.id": "audit", "enable.auto.commit": False, "isolation.level": "read_committed", "enable.partition.eof": True}
    reader = Consumer({**client, **settings})
    try:
        described = reader.list_topics(topic, timeout=10).topics[topic]
        open_partitions = set(described.partitions)
        reader.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in open_partitions])
        waited = 0.0
        while open_partitions:
            messages = reader.consume(5000, 1.0)
            waited = 0.0 if messages else waited + 1.0
            if waited > timeout_s:
                raise TimeoutError(f"{topic}: no end of partitions {sorted(open_partitions)} within {timeout_s:.0f} s")
            for message in messages:
                error = message.error()
                if error is None:
                    yield Raw(topic, message.partition() or 0, message.offset() or 0, message.timestamp()[1], message.value())
                elif error.name() == "_PARTITION_EOF":
                    open_partitions.discard(message.partition())
                else:
                    raise RuntimeError(f"{topic}: {error.str()}")
    finally:
        reader.close()


def _integer(value: Any, low: int | None = None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (low is None or value >= low)


def _valid(raw: Raw, record: Any, attribution_ms: int) -> bool:
    """Whether the contract lets a record into the system."""
    if not isinstance(record, dict) or record.get("schema") != SCHEMA_OF[raw.topic]:
        return False
    ts: Any = record.get("ts")
    if not (isinstance(record.get("event_id"), str) and record["event_id"] and _integer(record.get("user_id"), 0) and _integer(ts, 0)):
        return False
    if not raw.appended - attribution_ms <= ts <= raw.appended + DAY_MS:
        return False
    if not (isinstance(record.get("impression_id"), str) and record["impression_id"]):
        return False
    if raw.topic == "impressions":
        return (
            isinstance(record.get("request_id"), str)
            and _integer(record.get("item_id"))
            and _integer(record.get("position"), 0)
            and isinstance(record.get("scene"), str)
            and _integer(record.get("duration_ms"), 0)
        )
    if not _integer(record.get("impression_ts"), 0):
        return False
    if raw.topic == "engagements":
        return record.get("kind") in ENGAGEMENTS
    if raw.topic == "watches":
        return _integer(record.get("play_ms"), 0) and _integer(record.get("duration_ms"), 0)
    if raw.topic == "conversions":
        value = record.get("value")
        return isinstance(value, int | float) and value >= 0 and isinstance(record.get("currency"), str)
    return isinstance(record.get("question"), str) and isinstance(record.get("answer"), str)


@dataclass
class Events:
    """What the input topics hold, by this module's own reading."""

    impressions: dict[str, dict[str, Any]] = field(default_factory=dict)  # impression_id → record
    labels: dict[str, dict[str, Any]] = field(default_factory=dict)  # event_id → record, with its "topic" and "known_at"
    bodies: dict[tuple[str, int, int], bytes | None] = field(default_factory=dict)  # what is neither heartbeat nor valid, by place
    read: Counter[tuple[str, int]] = field(default_factory=Counter)
    valid: Counter[tuple[str, int]] = field(default_factory=Counter)
    heartbeats: Counter[tuple[str, int]] = field(default_factory=Counter)
    orphans: dict[tuple[str, int, int], bytes] = field(default_factory=dict)  # labels whose impression is unknown, by place
    strays: dict[tuple[str, int, int], bytes] = field(
        default_factory=dict
    )  # labels at odds with their impression's time, or too late for it


def collect(raws: Iterable[Raw], attribution_ms: int, disorder_ms: int = 500) -> Events:
    """Sort raw records into heartbeats, valid events (first of each id) and the rest."""
    events = Events()
    seen: set[str] = set()
    places: dict[str, list[tuple[tuple[str, int, int], bytes, dict[str, Any]]]] = defaultdict(list)
    for raw in raws:
        events.read[raw.topic, raw.partition] += 1
        try:
            record: Any = json.loads(raw.body) if raw.body else None
        except (ValueError, UnicodeDecodeError, RecursionError):
            record = None
        if isinstance(record, dict) and record.get("schema") == "heartbeat/1":
            events.heartbeats[raw.topic, raw.partition] += 1
            continue
        if not _valid(raw, record, attribution_ms):
            events.bodies[raw.place] = raw.body
            continue
        events.valid[raw.topic, raw.partition] += 1
        if raw.topic != "impressions":
            record["topic"] = raw.topic
            record["known_at"] = max(record["ts"], raw.appended - disorder_ms)
            places[record["impression_id"]].append((raw.place, raw.body or b"", record))
        if record["event_id"] in seen:
            continue
        seen.add(record["event_id"])
        if raw.topic == "impressions":
            record["appended"] = raw.appended
            events.impressions.setdefault(record["impression_id"], record)
        else:
            events.labels[record["event_id"]] = record
    for impression_id, where in places.items():
        if impression_id not in events.impressions:
            events.orphans.update({place: body for place, body, _ in where})
            continue
        shown_ms = events.impressions[impression_id]["ts"]
        for place, body, label in where:
            if label["impression_ts"] != shown_ms or label["known_at"] - shown_ms >= attribution_ms:
                events.strays[place] = body
                events.labels.pop(label["event_id"], None)
    return events


def _some(ids: Iterable[Any]) -> str:
    ids = sorted(map(str, ids))
    return ", ".join(ids[:SHOWN]) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")


def verdict(name: str, faults: Mapping[str, Sequence[Any]], ok: str) -> Invariant:
    bad = {what: ids for what, ids in faults.items() if ids}
    return Invariant(name, not bad, "; ".join(f"{len(ids)} {what}: {_some(ids)}" for what, ids in bad.items()) or ok)


@dataclass
class SampleLedger:
    """A fold over the `samples` topic that keeps no contexts, so that its memory grows with ids only."""

    initial: Counter[str] = field(default_factory=Counter)
    sample_ids: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    early_corrections: list[str] = field(default_factory=list)
    newer: list[str] = field(default_factory=list)
    unreal: list[str] = field(default_factory=list)
    contexts: int = 0


def _reality(events: Events) -> dict[int, dict[tuple[int, int, int | None, str], int]]:
    """user → (item, ts, play_ms, kind) → the earliest time at which the interaction was known."""
    real: dict[int, dict[tuple[int, int, int | None, str], int]] = defaultdict(dict)
    for label in events.labels.values():
        shown = events.impressions.get(label["impression_id"])
        if shown is None:
            continue
        key = (shown["item_id"], label["ts"], label.get("play_ms") if label["topic"] == "watches" else None, label.get("kind") or "")
        known = real[label["user_id"]]
        known[key] = min(label["known_at"], known.get(key, label["known_at"]))
    return real


def _entry_key(entry: Mapping[str, Any]) -> tuple[int, int, int | None, str]:
    return (entry["item_id"], entry["ts"], entry.get("play_ms"), (entry.get("kinds") or [""])[0])


def fold_samples(raws: Iterable[Raw], events: Events) -> SampleLedger:
    ledger, real = SampleLedger(), _reality(events)
    for raw in raws:
        sample = json.loads(raw.body or b"{}")
        impression_id = sample["impression_id"]
        ledger.sample_ids[sample["sample_id"]] += 1
        if sample["kind"] == "initial":
            ledger.initial[impression_id] += 1
        elif not ledger.initial[impression_id]:
            ledger.early_corrections.append(sample["sample_id"])
        counts = ledger.labels[impression_id]
        for name, value in sample["labels"].items():
            if value and name != "long_view":
                counts[name] += value
        counts["watches"] += sample["labels"].get("play_ms") is not None
        history = (sample.get("context") or {}).get("history") or []
        ledger.contexts += bool(history)
        known = real.get(sample["user_id"], {})
        for entry in history:
            if entry["ts"] >= sample["ts"]:
                ledger.newer.append(impression_id)
                break
            if known.get(_entry_key(entry), math.inf) >= sample["ts"]:
                ledger.unreal.append(impression_id)
                break
    return ledger


def initial_samples_equal_impressions(events: Events, ledger: SampleLedger) -> Invariant:
    faults: dict[str, list[Any]] = {
        "impressions without an initial sample": [i for i in events.impressions if not ledger.initial[i]],
        "initial samples of no impression": [i for i, n in ledger.initial.items() if n and i not in events.impressions],
        "impressions with several initial samples": [i for i, n in ledger.initial.items() if n > 1],
        "sample ids seen twice": [i for i, n in ledger.sample_ids.items() if n > 1],
    }
    return verdict("initial samples = impressions", faults, f"{len(events.impressions)} of {len(events.impressions)}, by id")


def every_label_exactly_once(events: Events, ledger: SampleLedger) -> Invariant:
    expected: dict[str, Counter[str]] = defaultdict(Counter)
    for label in events.labels.values():
        if label["impression_id"] not in events.impressions:
            continue
        counts = expected[label["impression_id"]]
        if label["topic"] == "engagements" and label["kind"] in KINDS:
            counts[label["kind"]] += 1
        elif label["topic"] == "watches":
            counts["play_ms"] += label["play_ms"]
            counts["watches"] += 1
        elif label["topic"] == "conversions":
            counts["conversion_value"] += label["value"]
    wrong: list[str] = []
    for impression_id in expected.keys() | ledger.labels.keys():
        want, got = expected.get(impression_id, Counter()), ledger.labels.get(impression_id, Counter())
        names = (*KINDS, "play_ms", "conversion_value")
        same = all(math.isclose(want[n], got[n], rel_tol=1e-9, abs_tol=1e-9) for n in names)
        if not same or bool(want["watches"]) != bool(got["watches"]):
            wrong.append(f"{impression_id} expected {dict(want)} found {dict(got)}")
    total = sum(label["impression_id"] in events.impressions for label in events.labels.values())
    return verdict("every label in exactly one sample or correction", {"impressions with other labels": wrong}, f"{total} labels")


def corrections_follow_initials(ledger: SampleLedger) -> Invariant:
    corrections = sum(ledger.sample_ids.values()) - sum(ledger.initial.values())
    faults = {"corrections before their initial": ledger.early_corrections}
    return verdict("a correction only after its initial", faults, f"{corrections} corrections")


def contexts_are_past(ledger: SampleLedger) -> Invariant:
    faults: dict[str, list[Any]] = {
        "contexts with an entry not older than their impression": ledger.newer,
        "contexts with an entry that was not known then": ledger.unreal,
    }
    return verdict("no context newer than its impression", faults, f"{ledger.contexts} contexts with a history")


def read_equals_rows_plus_dead_letters(events: Events, letters: Iterable[Raw]) -> Invariant:
    """Each raw record is a heartbeat, a valid event or a dead letter with its raw bytes.

    Orphans (labels whose impression never came) may be dead letters once their time is over; strays (labels at odds with their
    impression's time, or later than its attribution window) must be.
    """
    dead: Counter[tuple[str, int, int]] = Counter()
    altered: list[str] = []
    accused: list[str] = []
    orphans = 0
    for raw in letters:
        letter = json.loads(raw.body or b"{}")
        place = (letter["topic"], letter["partition"], letter["offset"])
        if letter["topic"] not in EVENT_TOPICS:
            continue
        dead[place] += 1
        if place in events.bodies:
            body: bytes | None = events.bodies[place]
        elif place in events.orphans and "orphan" in letter["reason"]:
            body = events.orphans[place]
            orphans += 1
        elif place in events.strays:
            body = events.strays[place]
        else:
            accused.append(f"{place} ({letter['reason']})")
            continue
        if base64.b64decode(letter["body_base64"]) != (body or b""):
            altered.append(str(place))
    faults: dict[str, list[Any]] = {
        "faulty records without a dead letter": [p for p in (*events.bodies, *events.strays) if not dead[p]],
        "records with several dead letters": [p for p, n in dead.items() if n > 1],
        "valid records with a dead letter": accused,
        "dead letters with other bytes": altered,
    }
    rows, hearts = sum(events.valid.values()), sum(events.heartbeats.values())
    ok = f"{sum(events.read.values())} read = {rows} rows + {hearts} heartbeats + {len(events.bodies)} dead letters; {orphans} orphans"
    return verdict("read = rows + dead letters, per partition", faults, ok)


def code_counts(model_store: Path, bundle_version: str) -> list[int]:
    """Codes per level of a bundle, content first, read from the header of its safetensors file."""
    path = model_store / "bundles" / bundle_version / "codebooks.safetensors"
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    counts: list[int] = []
    for factor in ("content", "creative"):
        names = sorted(name for name in header if name.startswith(factor))
        for name in names:
            shape = header[name]["shape"]
            counts += [shape[1]] * shape[0] if len(shape) == 3 else [shape[0]]
    return counts


def served_sids_decode(events: Events, model_store: Path, answered: Mapping[str, Sequence[str]]) -> Invariant:
    """Every SID that was logged or told as served consists of codes that its bundle has.

    Args:
        answered: bundle version → distinct SIDs that clients were told, codes joined by dots.
    """
    counts: dict[str, list[int]] = {}
    unstated: list[str] = []
    undecodable: list[str] = []
    stated: list[tuple[str, str, Sequence[int]]] = []
    for impression_id, shown in events.impressions.items():
        sid, version = shown.get("served_sid"), shown.get("bundle_version")
        if sid is not None and version is not None:
            stated.append((impression_id, version, sid))
        elif sid is not None or shown.get("pipeline") == "grm":
            unstated.append(impression_id)
    for version, sids in answered.items():
        stated += [(f"answer {text}", version, [int(code) for code in text.split(".") if code]) for text in sids]
    for name, version, sid in stated:
        if version not in counts:
            counts[version] = code_counts(model_store, version)
        levels = zip(sid, counts[version], strict=False)
        if len(sid) != len(counts[version]) or not all(_integer(code, 0) and code < n for code, n in levels):
            undecodable.append(name)
    faults: dict[str, list[Any]] = {"served SIDs outside their bundle": undecodable, "served impressions without a SID or bundle": unstated}
    return verdict("every served SID decodes under the stated bundle", faults, f"{len(stated)} served SIDs under {len(counts)} bundles")


def cases_add_up(
    events: Events, answered: Mapping[str, int], items: int, *, logged: bool, unanswered: int = 0, client: str = ""
) -> Invariant:
    """Cases that clients were told = items that they got = (where the server logs its impressions) cases in the topic.

    A server that dies between its log and its answer leaves impressions that no client was told of, one that dies between its answer and
    its log the reverse: told and logged may differ by what requests without an answer had asked for, and by nothing where there are none.

    Args:
        answered: case → items that clients received, degraded items under "none".
        items: items that clients received in all.
        logged: whether the server logs impressions.
        unanswered: items that were asked for in requests without an answer.
        client: what the ids of these clients' requests begin with; others may ask the same server.
    """
    told = sum(answered.values())
    faults: dict[str, list[Any]] = {"items unaccounted for": [] if told == items else [f"{told} of {items}"]}
    if logged:
        theirs = (shown for shown in events.impressions.values() if shown["request_id"].startswith(client))
        served = [shown for shown in theirs if shown.get("pipeline") not in (None, "replay")]
        topic = Counter(shown.get("case") or "none" for shown in served)
        differing = [name for name in answered.keys() | topic.keys() if abs(answered.get(name, 0) - topic[name]) > unanswered]
        faults["cases that differ from the topic"] = [f"{name}: told {answered.get(name, 0)}, logged {topic[name]}" for name in differing]
    summary = ", ".join(f"{count} {case}" for case, count in sorted(answered.items())) or "nothing asked"
    summary += f"; up to {unanswered} more asked for without an answer" if unanswered else ""
    return verdict("the three cases add up to what was asked", faults, summary)


def videos_play(raws: Iterable[Raw], folder: Path) -> Invariant:
    """Every announced video decodes to its last frame, with sound as long as the picture."""
    import av

    broken: list[str] = []
    played = 0
    for raw in raws:
        video = json.loads(raw.body or b"{}")
        name = Path(video["uri"]).name
        try:
            with av.open(str(folder / name)) as file:
                fps = float(file.streams.video[0].average_rate or 0)
                pictures = sum(1 for _ in file.decode(video=0))
            with av.open(str(folder / name)) as file:
                sound_s = sum(frame.samples / frame.sample_rate for frame in file.decode(audio=0))
            seconds = pictures / fps if fps else 0.0
            if abs(seconds - video["duration_ms"] / 1000) > 0.25 or abs(sound_s - seconds) > 0.5:
                broken.append(f"{name}: {seconds:.2f} s of picture, {sound_s:.2f} s of sound, {video['duration_ms']} ms announced")
            played += 1
        except (OSError, IndexError, av.error.FFmpegError) as error:
            broken.append(f"{name}: {error}")
    return verdict("every video plays", {"broken videos": broken}, f"{played} videos decoded to the last frame, with sound")


def processes_exited_cleanly(exit_codes: Mapping[str, int | None]) -> Invariant:
    bad = [f"{name}: {code}" for name, code in exit_codes.items() if code != 0]
    return verdict("every process exited cleanly", {"processes": bad}, ", ".join(sorted(exit_codes)))
