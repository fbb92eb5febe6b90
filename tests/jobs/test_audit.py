"""Each invariant holds on a sound log and breaks on the fault that it names."""

import base64
import json

import pytest

from jobs import audit

T0 = 1_700_000_000_000
DAY = 86_400_000


class FakeLog:
    """A log of raw records, built by hand."""

    def __init__(self):
        self.raws: list[audit.Raw] = []
        self.samples: list[audit.Raw] = []
        self.letters: list[audit.Raw] = []

    def put(self, topic, record, appended=T0):
        body = record if isinstance(record, bytes) else json.dumps(record).encode()
        raw = audit.Raw(topic, 0, len(self.raws), appended, body)
        self.raws.append(raw)
        return raw

    def impression(self, name, ts=T0, user=1, item=10, **more):
        record = {"schema": "impression/1", "event_id": f"e-{name}", "impression_id": name, "user_id": user, "ts": ts, "item_id": item}
        return self.put("impressions", record | {"request_id": "r", "position": 0, "scene": "home", "duration_ms": 9000} | more, ts)

    def watch(self, name, ts=T0 + 1000, user=1, play_ms=4000, event_id=None, impression_ts=T0):
        record = {"schema": "watch/1", "event_id": event_id or f"w-{name}", "impression_id": name, "impression_ts": impression_ts}
        return self.put("watches", record | {"user_id": user, "ts": ts, "play_ms": play_ms, "duration_ms": 9000}, ts)

    def sample(self, name, ts=T0, kind="initial", history=(), user=1, sample_id=None, **labels):
        body = {"sample_id": sample_id or f"{name}:{kind}", "kind": kind, "impression_id": name, "user_id": user, "ts": ts}
        body |= {"labels": labels, "context": {"history": list(history)}}
        self.samples.append(audit.Raw("samples", 0, len(self.samples), T0, json.dumps(body).encode()))

    def letter(self, raw, reason="not JSON", body=None):
        text = base64.b64encode(raw.body if body is None else body).decode()
        letter = {"topic": raw.topic, "partition": raw.partition, "offset": raw.offset, "reason": reason, "body_base64": text}
        self.letters.append(audit.Raw("dead_letters", 0, len(self.letters), T0, json.dumps(letter).encode()))

    def events(self):
        return audit.collect(self.raws, 7 * DAY)

    def ledger(self):
        return audit.fold_samples(self.samples, self.events())


@pytest.fixture
def log():
    log = FakeLog()
    log.impression("a")
    log.watch("a")
    log.sample("a", play_ms=4000)
    return log


def test_a_sound_log_holds_every_sample_invariant(log):
    events, ledger = log.events(), log.ledger()
    verdicts = [
        audit.initial_samples_equal_impressions(events, ledger),
        audit.every_label_exactly_once(events, ledger),
        audit.corrections_follow_initials(ledger),
        audit.contexts_are_past(ledger),
        audit.read_equals_rows_plus_dead_letters(events, log.letters),
    ]
    assert [v for v in verdicts if not v.holds] == []


def test_an_impression_without_a_sample_is_found(log):
    log.impression("b")
    verdict = audit.initial_samples_equal_impressions(log.events(), log.ledger())
    assert not verdict.holds
    assert "b" in verdict.detail


def test_a_second_initial_sample_is_found(log):
    log.sample("a", sample_id="other", play_ms=None)
    assert not audit.initial_samples_equal_impressions(log.events(), log.ledger()).holds


def test_a_sample_of_no_impression_is_found(log):
    log.sample("ghost")
    assert not audit.initial_samples_equal_impressions(log.events(), log.ledger()).holds


def test_a_lost_label_is_found(log):
    log.impression("b")
    log.watch("b")
    log.sample("b")
    verdict = audit.every_label_exactly_once(log.events(), log.ledger())
    assert not verdict.holds
    assert "b expected" in verdict.detail


def test_a_label_counted_twice_is_found(log):
    log.sample("a", kind="correction", play_ms=4000)
    assert not audit.every_label_exactly_once(log.events(), log.ledger()).holds


def test_a_duplicate_event_counts_once(log):
    log.watch("a")
    assert audit.every_label_exactly_once(log.events(), log.ledger()).holds


def test_a_correction_before_its_initial_is_found():
    log = FakeLog()
    log.impression("a")
    log.watch("a")
    log.sample("a", kind="correction", play_ms=4000)
    log.sample("a")
    assert not audit.corrections_follow_initials(log.ledger()).holds


@pytest.mark.parametrize("entry_ts", [T0 + 1000, T0 + 50_000])
def test_a_context_from_the_future_or_of_the_same_moment_is_found(log, entry_ts):
    log.watch("a", ts=entry_ts, event_id="w2")
    log.impression("b", ts=T0 + 1000)
    log.sample("b", ts=T0 + 1000, history=[{"item_id": 10, "ts": entry_ts, "play_ms": 4000, "kinds": []}])
    assert not audit.contexts_are_past(log.ledger()).holds


def test_a_context_with_an_invented_entry_is_found(log):
    log.impression("b", ts=T0 + 9000)
    log.sample("b", ts=T0 + 9000, history=[{"item_id": 11, "ts": T0 + 1000, "play_ms": 4000, "kinds": []}])
    assert not audit.contexts_are_past(log.ledger()).holds


def test_a_context_of_real_past_interactions_holds(log):
    log.impression("b", ts=T0 + 9000)
    log.sample("b", ts=T0 + 9000, history=[{"item_id": 10, "ts": T0 + 1000, "play_ms": 4000, "kinds": []}])
    assert audit.contexts_are_past(log.ledger()).holds


def test_garbage_needs_exactly_one_dead_letter_with_its_bytes(log):
    raw = log.put("watches", b"\xff garbage")
    assert not audit.read_equals_rows_plus_dead_letters(log.events(), log.letters).holds
    log.letter(raw)
    assert audit.read_equals_rows_plus_dead_letters(log.events(), log.letters).holds
    log.letter(raw)
    assert not audit.read_equals_rows_plus_dead_letters(log.events(), log.letters).holds


def test_a_dead_letter_with_altered_bytes_is_found(log):
    log.letter(log.put("watches", b"garbage"), body=b"other")
    assert not audit.read_equals_rows_plus_dead_letters(log.events(), log.letters).holds


def test_a_dead_letter_for_a_good_record_is_found(log):
    log.letter(log.raws[0])
    assert not audit.read_equals_rows_plus_dead_letters(log.events(), log.letters).holds


def test_an_orphan_may_be_dead_lettered_only_if_its_impression_never_came(log):
    log.letter(log.watch("nobody"), reason="orphan: no impression within the attribution window")
    assert audit.read_equals_rows_plus_dead_letters(log.events(), log.letters).holds
    log.letter(log.raws[1], reason="orphan: no impression within the attribution window")
    assert not audit.read_equals_rows_plus_dead_letters(log.events(), log.letters).holds


def test_cases_that_clients_were_not_told_are_found(log):
    log.impression("b", case="miss", pipeline="grm")
    assert audit.cases_add_up(log.events(), {"miss": 1}, 1, logged=True).holds
    assert not audit.cases_add_up(log.events(), {"miss": 2}, 2, logged=True).holds
    assert not audit.cases_add_up(log.events(), {"miss": 1}, 2, logged=True).holds


def test_cases_may_differ_by_what_requests_without_an_answer_asked_for_and_no_more(log):
    log.impression("b", case="miss", pipeline="grm")
    assert audit.cases_add_up(log.events(), {"miss": 11}, 11, logged=True, unanswered=10).holds
    assert not audit.cases_add_up(log.events(), {"miss": 12}, 12, logged=True, unanswered=10).holds


def test_feeds_of_others_are_not_in_the_account_of_a_client(log):
    log.impression("b", case="miss", pipeline="grm", request_id="me-1")
    log.impression("c", case="exact_hit", pipeline="grm", request_id="somebody-1")
    assert audit.cases_add_up(log.events(), {"miss": 1}, 1, logged=True, client="me-").holds
    assert not audit.cases_add_up(log.events(), {"miss": 1}, 1, logged=True).holds
    assert not audit.cases_add_up(log.events(), {}, 0, logged=True, client="me-").holds


def test_a_served_sid_outside_its_bundle_is_found(log, tmp_path):
    header = json.dumps(
        {f"{f}.{n}": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 0]} for f in ("content", "creative") for n in (0, 1)}
    )
    folder = tmp_path / "bundles" / "v1"
    folder.mkdir(parents=True)
    (folder / "codebooks.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())
    log.impression("b", served_sid=[0, 3, 1, 2], bundle_version="v1", pipeline="grm")
    assert audit.served_sids_decode(log.events(), tmp_path, {"v1": ["3.3.0.0"]}).holds
    assert not audit.served_sids_decode(log.events(), tmp_path, {"v1": ["3.3.0"]}).holds
    assert not audit.served_sids_decode(log.events(), tmp_path, {"v1": ["3.4.0.0"]}).holds
    log.impression("c", served_sid=[0, 4, 1, 2], bundle_version="v1", pipeline="grm")
    assert not audit.served_sids_decode(log.events(), tmp_path, {}).holds


def test_a_video_that_is_no_video_is_found(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"not a video")
    raw = audit.Raw("videos", 0, 0, T0, json.dumps({"uri": "/videos/x.mp4", "duration_ms": 6000}).encode())
    assert not audit.videos_play([raw], tmp_path).holds
    assert audit.videos_play([], tmp_path).holds


def test_a_process_that_was_killed_is_found():
    assert audit.processes_exited_cleanly({"trainer": 0}).holds
    assert not audit.processes_exited_cleanly({"trainer": 0, "server": -9}).holds


def test_a_label_at_odds_with_its_impressions_time_is_a_dead_letter_and_in_no_sample(log):
    raw = log.watch("a", event_id="stray", impression_ts=T0 - 5, play_ms=77)
    assert audit.every_label_exactly_once(log.events(), log.ledger()).holds
    assert not audit.read_equals_rows_plus_dead_letters(log.events(), log.letters).holds
    log.letter(raw, reason="impression_ts is not the time of its impression")
    assert audit.read_equals_rows_plus_dead_letters(log.events(), log.letters).holds
