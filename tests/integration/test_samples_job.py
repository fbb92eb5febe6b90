"""The samples job and the inspector on real Kafka and Flink: every rule of samples, corrections and dead letters, in one run."""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from jobs import audit
from streaming import records, topics
from tests.integration.fuzz_bodies import bodies
from tests.integration.samples_scenario import (
    ATTRIBUTION_MS,
    DISORDER_MS,
    HOUR_MS,
    LABEL_MS,
    START,
    Stream,
    conversion,
    engagement,
    impression,
    of,
    stream,
    watch,
)

pytestmark = pytest.mark.integration

PLAIN = [
    impression(n, START + n * 100, context=records.Context([records.HistoryEntry(7, START - 9)]) if n % 4 else None) for n in range(200)
]
BURST = [impression(n, START + 2 * HOUR_MS + n) for n in range(2_000, 5_000)]
LATE = impression(300, START + 5_000)
LAGGED = [impression(n, START + 6_000 + n) for n in range(400, 420)]
ORPHANS = impression(500, START + 7_000)
MISPLACED = impression(0, START + 1_234)
UNTOLD = records.encode(
    impression(700, START + 8_100, context=records.Context([records.HistoryEntry(7, START - 9)]), sid=[1, 2], served_sid=[1, 2])
).replace(b',"play_ms":null,"kinds":[]', b"").replace(b'"served_sid":[1,2]', b'"served_sid":[1,"x"]')  # fmt: skip
FORETOLD = impression(701, START + 8_200, context=records.Context([records.HistoryEntry(7, START + 8_200)]))
FUZZED = impression(600, START + 8_000)
FUZZ = bodies(seed=20220425, count=400)
YEAR_MS = 365 * 24 * HOUR_MS

FAULTY: list[tuple[str, bytes | None, str]] = [
    (topics.IMPRESSIONS, b"\xff\xfe\x00garbage", "not a JSON object"),
    (topics.IMPRESSIONS, records.encode(impression(9000, START))[:40], "not a JSON object"),
    (topics.IMPRESSIONS, b"[1, 2]", "not a JSON object"),
    (topics.IMPRESSIONS, None, "empty"),
    (topics.WATCHES, b"", "empty"),
    (topics.IMPRESSIONS, records.encode(engagement(PLAIN[0], 1, event_id="schema")), 'schema is "engagement/1" (expected impression/1)'),
    (topics.IMPRESSIONS, records.encode(impression(9001, START)).replace(b"impression/1", b"impression/2"), 'schema is "impression/2"'),
    (topics.WATCHES, records.encode(watch(PLAIN[1], 1, -4, "negative")), "Watch negative: play_ms is -4 (expected ≥ 0)"),
    (topics.WATCHES, records.encode(watch(PLAIN[1], YEAR_MS, 4, "next-year")), "implausible time"),
    (topics.WATCHES, records.encode(watch(impression(1, START - 24 * HOUR_MS), 0, 4, "yesterday")), "implausible time"),
    (topics.ENGAGEMENTS, records.encode(engagement(PLAIN[2], 1)).replace(b'"user_id":2', b'"user_id":"two"'), 'user_id is "two"'),
    (topics.ENGAGEMENTS, records.encode(engagement(PLAIN[2], 1)).replace(b'"user_id":2', b'"user_id":null'), "user_id is null"),
    (topics.ENGAGEMENTS, records.encode(engagement(PLAIN[2], 1)).replace(b'"user_id":2', b'"user_id":2.7'), "user_id is 2.7"),
    (topics.IMPRESSIONS, records.encode(impression(9002, START)).replace(b'"item_id":', b'"item_id":0.5e1,"old":'), "item_id is 5.0"),
    (topics.ENGAGEMENTS, records.encode(engagement(PLAIN[2], 1, "poke")), 'kind is "poke"'),
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stream]:
    """The whole story, told once; the tests read its end."""
    with stream(tmp_path_factory.mktemp("samples")) as here:
        first(here)
        job, inspector = here.start("samples", "run"), here.start("inspect")
        here.samples.wait(lambda rows: len(here.initial_ids()) >= len(PLAIN) + 1, f"the first samples\n{here.log('samples')}", 180)
        late(here)
        kill_in_the_middle(here, job, inspector)
        yield here


def first(here: Stream) -> None:
    """Before the job starts: impressions, labels in and out of their window, duplicates, faults; nothing else is late yet."""
    for user in range(10):
        for second in range(0, 30, 10):
            here.history(user, START + second * 1000 - 1 + user, second)
    for n, shown in enumerate(PLAIN):
        if n % 10 == 3:
            here.send(topics.ENGAGEMENTS, engagement(shown, 900))
        here.send(topics.IMPRESSIONS, shown)
        if n % 10 == 4:
            for _ in range(2):
                here.send(topics.ENGAGEMENTS, engagement(shown, 900))
        if n % 3 == 0:
            here.send(topics.WATCHES, watch(shown, 20_000, 19_000 if n % 2 else 500))
        if n % 20 == 5:
            here.send(topics.ENGAGEMENTS, engagement(shown, LABEL_MS + 500, "like"))
        if n % 20 == 6:
            here.send(topics.CONVERSIONS, conversion(shown, 30_000, 9.5))
    here.send(topics.IMPRESSIONS, PLAIN[7])
    here.send(topics.IMPRESSIONS, msgspec.structs.replace(PLAIN[8], event_id="another-event"))
    here.send(topics.IMPRESSIONS, FUZZED)
    here.send(topics.IMPRESSIONS, UNTOLD, START + 8_100)
    here.send(topics.IMPRESSIONS, FORETOLD)
    here.send(topics.CONVERSIONS, conversion(PLAIN[12], 900, -0.0))
    here.send(topics.ENGAGEMENTS, engagement(LATE, 100))
    here.send(topics.ENGAGEMENTS, engagement(ORPHANS, 100))
    here.send(topics.ENGAGEMENTS, engagement(MISPLACED, 100, "share", "misplaced"))
    here.send(topics.ENGAGEMENTS, records.encode(engagement(PLAIN[9], 50, "follow", "trailing")) + b" and more", START)
    for topic, body, _ in FAULTY:
        here.send(topic, body, START, partition=1)
    here.clock(START + LABEL_MS + DISORDER_MS + 20_000)


def late(here: Stream) -> None:
    """After every window has closed: what comes late, twice, or an hour behind."""
    now = START + HOUR_MS
    here.clock(now)
    here.send(topics.IMPRESSIONS, LATE, now)
    here.send(topics.ENGAGEMENTS, engagement(PLAIN[4], 900), now)
    here.send(topics.ENGAGEMENTS, engagement(PLAIN[10], 900, "comment"), now)
    here.send(topics.IMPRESSIONS, PLAIN[11], now)
    for shown in LAGGED:
        here.send(topics.IMPRESSIONS, shown, now)
        here.send(topics.WATCHES, watch(shown, 5_000, 5_000), now)
    for body in FUZZ:
        here.send(topics.ENGAGEMENTS, body.of(FUZZED), FUZZED.ts)
    here.clock(now + 1_000)
    wanted = {f"{LATE.impression_id}:initial", "imp10:comment-imp10", f"{LAGGED[-1].impression_id}:watch-{LAGGED[-1].impression_id}"}
    here.samples.wait(lambda rows: wanted <= {row["sample_id"] for row in rows}, "late samples")


def kill_in_the_middle(here: Stream, job: Any, inspector: Any) -> None:
    """A burst of impressions, both processes killed while it is on its way, and the log's clock run out after they came back."""
    for shown in BURST:
        here.send(topics.IMPRESSIONS, shown)
        here.send(topics.ENGAGEMENTS, engagement(shown, 10))
        if shown.item_id % 100 == 0:
            here.send(topics.ENGAGEMENTS, b"{" + shown.event_id.encode(), shown.ts)
    here.producer.flush()
    time.sleep(0.5)
    here.kill(job)
    here.kill(inspector)
    here.start("samples", "run")
    here.start("inspect")
    here.clock(BURST[-1].ts + LABEL_MS + DISORDER_MS + 1)
    here.samples.wait(lambda rows: {s.impression_id for s in BURST} <= here.initial_ids(), f"the burst\n{here.log('samples')}", 180)
    assert not [row for row in here.letters.read() if row["reason"] == "orphan"]
    here.clock(BURST[-1].ts + ATTRIBUTION_MS + LABEL_MS + DISORDER_MS + 1)
    here.letters.wait(lambda rows: any(row["reason"] == "orphan" for row in rows), f"orphans\n{here.log('inspect')}")
    time.sleep(3)
    here.letters.read()
    here.samples.read(1.0)


def rows_of(ran: Stream, number: int) -> list[dict[str, Any]]:
    return [row for row in ran.samples.rows if row["impression_id"] == f"imp{number}"]


def letters_at(ran: Stream, body: bytes | None) -> list[dict[str, Any]]:
    places = {place for place, raw in ran.raw.items() if raw == body}
    return [row for row in ran.letters.rows if (row["topic"], row["partition"], row["offset"]) in places]


def test_every_impression_has_exactly_one_initial_sample(ran: Stream) -> None:
    initial = Counter(row["impression_id"] for row in ran.samples.rows if row["kind"] == "initial")
    assert initial == Counter([shown.impression_id for shown in (*PLAIN, *BURST, *LAGGED, LATE, FUZZED, FORETOLD)] + ["imp700"])


def test_no_sample_is_seen_twice_after_a_kill(ran: Stream) -> None:
    assert [sample for sample, times in Counter(row["sample_id"] for row in ran.samples.rows).items() if times > 1] == []


def test_labels_in_their_window_are_counted_in_the_initial_sample(ran: Stream) -> None:
    (sample,) = rows_of(ran, 3)
    assert (sample["labels"]["click"], sample["labels"]["like"]) == (1, 0)
    assert (sample["labels"]["play_ms"], sample["labels"]["long_view"]) == (19_000, 1)
    assert sample["ready_ts"] == sample["ts"] + LABEL_MS + DISORDER_MS


def test_a_short_watch_is_no_long_view_and_none_is_unknown(ran: Stream) -> None:
    assert rows_of(ran, 6)[0]["labels"]["long_view"] == 0
    assert rows_of(ran, 7)[0]["labels"]["long_view"] is None
    assert rows_of(ran, 7)[0]["labels"]["play_ms"] is None


def test_a_conversion_brings_its_value(ran: Stream) -> None:
    assert rows_of(ran, 6)[0]["labels"]["conversion_value"] == 9.5
    assert rows_of(ran, 7)[0]["labels"]["conversion_value"] is None


def test_a_zero_with_a_sign_is_zero(ran: Stream) -> None:
    assert rows_of(ran, 12)[0]["labels"]["conversion_value"] == 0


def test_a_duplicate_label_counts_once_also_when_it_comes_late(ran: Stream) -> None:
    (sample,) = rows_of(ran, 4)
    assert sample["labels"]["click"] == 1


def test_a_label_after_its_window_is_a_correction_that_follows_its_initial_sample(ran: Stream) -> None:
    initial, correction = rows_of(ran, 5)
    assert (initial["kind"], initial["labels"]["like"]) == ("initial", 0)
    assert (correction["sample_id"], correction["kind"]) == ("imp5:like-imp5", "correction")
    assert {name: value for name, value in correction["labels"].items() if value is not None} == {"like": 1}
    assert correction["ready_ts"] == correction["ts"] + LABEL_MS + DISORDER_MS
    assert correction["context"] == {"history": []}


def test_a_label_that_is_read_late_is_a_correction(ran: Stream) -> None:
    assert [row["sample_id"] for row in rows_of(ran, 10)] == ["imp10:initial", "imp10:comment-imp10"]


def test_every_correction_follows_its_initial_in_the_same_partition(ran: Stream) -> None:
    first_of: dict[str, tuple[int, int]] = {}
    for row in ran.samples.rows:
        place = (row["_partition"], row["_offset"])
        if row["kind"] == "initial":
            first_of[row["impression_id"]] = place
        else:
            partition, offset = first_of[row["impression_id"]]
            assert (partition, offset < place[1]) == (place[0], True)
        assert row["_key"] == str(row["user_id"]).encode()


def test_a_late_impression_has_an_initial_sample_of_unknown_labels_and_then_those_that_waited(ran: Stream) -> None:
    initial, waited = rows_of(ran, 300)
    assert initial["kind"] == "initial"
    assert set(initial["labels"].values()) == {None}
    assert waited["sample_id"] == "imp300:click-imp300"


def test_topics_that_lag_an_hour_lose_nothing(ran: Stream) -> None:
    for shown in LAGGED:
        labels = [row["labels"] for row in ran.samples.rows if row["impression_id"] == shown.impression_id]
        assert sum(label["play_ms"] or 0 for label in labels) == 5_000


def test_bytes_after_the_json_object_are_ignored(ran: Stream) -> None:
    assert rows_of(ran, 9)[0]["labels"]["follow"] == 1


def test_a_label_without_an_impression_is_an_orphan_with_its_bytes_when_the_attribution_window_ends(ran: Stream) -> None:
    (letter,) = letters_at(ran, records.encode(engagement(ORPHANS, 100)))
    assert letter["reason"] == "orphan"
    assert base64.b64decode(letter["body_base64"]) == records.encode(engagement(ORPHANS, 100))


def test_a_label_at_odds_with_its_impressions_time_is_a_dead_letter(ran: Stream) -> None:
    (letter,) = letters_at(ran, records.encode(engagement(MISPLACED, 100, "share", "misplaced")))
    assert letter["reason"] in ("impression_ts is not the time of its impression", "orphan")


@pytest.mark.parametrize(("topic", "body", "reason"), FAULTY, ids=[str(n) for n in range(len(FAULTY))])
def test_a_faulty_record_is_one_dead_letter_with_its_bytes_and_a_reason(ran: Stream, topic: str, body: bytes | None, reason: str) -> None:
    (letter,) = [letter for letter in letters_at(ran, body) if letter["topic"] == topic]
    assert reason in letter["reason"]
    assert base64.b64decode(letter["body_base64"]) == (body or b"")


def test_each_odd_body_is_used_or_dead_never_both_never_neither(ran: Stream) -> None:
    used = {row["sample_id"].partition(":")[2] for row in ran.samples.rows if row["impression_id"] == FUZZED.impression_id}
    dead = Counter((row["topic"], row["partition"], row["offset"]) for row in ran.letters.rows)
    places = {raw: place for place, raw in ran.raw.items()}
    verdicts = {body.event_id: (body.event_id in used, dead[places[body.of(FUZZED)]]) for body in FUZZ}
    wrong = {
        body.event_id: (body.of(FUZZED)[:200], verdicts[body.event_id])
        for body in FUZZ
        if verdicts[body.event_id] not in ((True, 0), (False, 1))
    }
    assert wrong == {}
    assert {used for used, _ in verdicts.values()} == {True, False}


def test_no_record_has_two_dead_letters(ran: Stream) -> None:
    places = Counter((row["topic"], row["partition"], row["offset"]) for row in ran.letters.rows)
    assert [place for place, times in places.items() if times > 1] == []


def test_faults_in_a_burst_are_all_found_although_the_inspector_was_killed(ran: Stream) -> None:
    broken = [raw for raw in ran.raw.values() if raw is not None and raw.startswith(b"{i")]
    assert len(broken) == 30
    assert all(len(letters_at(ran, raw)) == 1 for raw in broken)


def test_the_counters_equal_what_was_sent(ran: Stream) -> None:
    counters = json.loads((ran.home / "run" / "inspector.json").read_text())["counters"]
    sent = Counter(f"{topic}-{partition}" for topic, partition, _ in ran.raw)
    assert {place: counters["read"][place] - counters["heartbeats"].get(place, 0) for place in counters["read"]} == {
        place: sent[place] for place in counters["read"]
    }
    assert sum(counters["dead_letters"].values()) == len(ran.letters.rows)


def test_the_logged_context_is_taken_else_the_history_strictly_before(ran: Stream) -> None:
    logged = rows_of(ran, 1)[0]
    assert [entry["item_id"] for entry in logged["context"]["history"]] == [7]
    for shown in PLAIN[::4]:
        (sample, *_) = [row for row in ran.samples.rows if row["impression_id"] == shown.impression_id]
        known = [second for second in range(0, 30, 10) if START + second * 1000 - 1 + shown.user_id < shown.ts]
        assert [entry["item_id"] for entry in sample["context"]["history"]] == known[-1:]


def test_a_logged_context_that_is_newer_than_its_impression_is_not_believed(ran: Stream) -> None:
    (sample,) = rows_of(ran, 701)
    assert all(entry["ts"] < FORETOLD.ts for entry in sample["context"]["history"])
    assert [entry["item_id"] for entry in sample["context"]["history"]] == [0]


def test_what_an_impression_left_out_of_its_context_does_not_cost_the_sample(ran: Stream) -> None:
    (sample,) = rows_of(ran, 700)
    decoded = records.decode_sample(json.dumps({name: value for name, value in sample.items() if name[0] != "_"}).encode())
    assert (decoded.context.history, decoded.sid, decoded.served_sid) == ([records.HistoryEntry(7, START - 9)], [1, 2], None)


def test_the_audit_agrees(ran: Stream) -> None:
    raws = [raw for topic in topics.EVENT_TOPICS for raw in audit.read_topic(ran.client, topic)]
    odd = {body.of(FUZZED) for body in FUZZ}
    events = audit.collect([raw for raw in raws if raw.body not in odd], ATTRIBUTION_MS)
    events.labels.pop("misplaced", None)
    ledger = audit.fold_samples((raw for raw in audit.read_topic(ran.client, topics.SAMPLES) if b"imp600" not in (raw.body or b"")), events)
    events.impressions.pop(FUZZED.impression_id)
    assert audit.corrections_follow_initials(ledger).holds
    assert audit.initial_samples_equal_impressions(events, ledger).detail.startswith(str(len(events.impressions)))
    events.labels.pop("trailing", None)


def test_labels_of_another_impression_time_are_no_corrections(ran: Stream) -> None:
    assert all(row["labels"]["share"] in (0, None) for row in rows_of(ran, 0))
    assert of(PLAIN[0])["impression_ts"] != MISPLACED.ts
