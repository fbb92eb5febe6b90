"""`sidstream inspect`: dead letters with their raw bytes, and the live clock of the topics."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from jobs.process import Endpoints, Stop, ready, run, write_json
from jobs.report import read_json
from jobs.settings import Settings
from streaming import topics
from streaming.heartbeat import EVERY_MS, LIVE_MS, Heartbeats, partitions
from streaming.inspector import NOT_USABLE, Counters, Rejected, dead_letter, fault_of, reason_of, verdict
from streaming.kafka import Client, consumer, producer, until_end
from streaming.records import DeadLetter, encode

GROUP: Final = "inspector"
BATCH: Final = 5_000
QUIET_S: Final = 2.0  # offsets without dead letters are committed this often
REMEMBERED: Final = 100_000  # places of recent dead letters: an array of several faulty rows is rejected once for each
STAMP_AGAIN_S: Final = 30.0
SUSPECTS_BYTES: Final = 32 * 2**20  # faulty bodies kept until Flink's verdict comes; others are fetched again

Place = tuple[str, int, int]  # topic, partition, offset

log = logging.getLogger("sidstream.inspector")


class Bytes:
    """Fetches one record by its place."""

    def __init__(self, client: Client) -> None:
        self._reader: Consumer = consumer(client, f"{GROUP}-bytes", [])

    def fetch(self, topic: str, partition: int, offset: int) -> tuple[bytes | None, int] | None:
        """Body and record time, or None where the record is no longer kept."""
        low, high = self._reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
        if not low <= offset < high:
            return None
        self._reader.assign([TopicPartition(topic, partition, offset)])
        for _ in range(20):
            message = self._reader.poll(0.5)
            if message is not None and message.error() is None:
                return (message.value(), message.timestamp()[1]) if message.offset() == offset else None
        raise TimeoutError(f"{topic}-{partition} offset {offset} was not delivered within 10 s")


class Suspects:
    """Bodies that look faulty, kept for the verdict that Flink will send in a moment, so that they need not be fetched one by one."""

    def __init__(self, limit: int = SUSPECTS_BYTES) -> None:
        self._bodies: OrderedDict[Place, tuple[bytes, int]] = OrderedDict()
        self._size, self._limit = 0, limit

    def keep(self, place: Place, body: bytes, appended: int) -> None:
        self._bodies[place] = (body, appended)
        self._size += len(body)
        while self._size > self._limit:
            _, (oldest, _) = self._bodies.popitem(last=False)
            self._size -= len(oldest)

    def take(self, place: Place) -> tuple[bytes, int] | None:
        found = self._bodies.pop(place, None)
        if found is not None:
            self._size -= len(found[0])
        return found


class LiveClock(threading.Thread):
    """Sends heartbeats in wall-clock time from the moment on that live traffic was seen."""

    def __init__(self, client: Client, stop: Stop, started: bool) -> None:
        super().__init__(name="live-clock", daemon=True)
        self._client, self._producer, self._stop_signal = client, producer(client), stop
        self._beats = Heartbeats(self._producer, partitions(client))
        self.live = threading.Event()
        if started:
            self.live.set()

    def saw(self, record_time_ms: int) -> None:
        """Told of every event's record time; one near the wall clock starts the clock."""
        if not self.live.is_set() and abs(time.time() * 1000 - record_time_ms) < LIVE_MS:
            log.info("event=live_clock_started")
            self.live.set()

    def run(self) -> None:
        due, stamped = 0.0, False
        while not self._stop_signal.is_set():
            if self.live.wait(0.2):
                if not stamped and time.monotonic() >= due:
                    stamped, due = self._stamped(), time.monotonic() + STAMP_AGAIN_S
                now = time.time_ns() // 1_000_000
                self._beats.send(now, now)
                self._producer.poll(0)
                self._stop_signal.wait(EVERY_MS / 1000)
        self._producer.flush(5)

    def _stamped(self) -> bool:
        """Whether the broker now stamps records when it appends them; without the right to ask for that, time moves on all the same."""
        try:
            topics.stamp_on_append(self._client, topics.EVENT_TOPICS)
        except KafkaException as error:
            log.warning('event=record_times_are_the_producers_own reason="%s"', error.args[0].str())
            return False
        return True


def buried(client: Client) -> Iterator[DeadLetter]:
    """Dead letters of the event topics that were written until now."""
    reader = consumer(client, f"{GROUP}-buried", [], enable_partition_eof=True)
    parts = reader.list_topics(topics.DEAD_LETTERS, timeout=10).topics[topics.DEAD_LETTERS].partitions
    decoder = msgspec.json.Decoder(DeadLetter)
    for message in until_end(reader, [TopicPartition(topics.DEAD_LETTERS, number, OFFSET_BEGINNING) for number in parts]):
        letter = decoder.decode(message.value() or b"")
        if letter.topic in topics.EVENT_TOPICS:
            yield letter
    reader.close()


class Inspection:
    """Consume, judge, write: dead letters and the offsets they answer for are one transaction, so each record is buried once."""

    def __init__(self, ends: Endpoints, stop: Stop, attribution_ms: int) -> None:
        self._attribution_ms = attribution_ms
        self._state = ends.home / "run" / "inspector.json"
        saved = read_json(self._state)
        self.counters = Counters.from_dict(saved.get("counters", {}))
        # A fixed member: after a kill the next process takes its place at once instead of waiting for its session to end.
        self._reader = consumer(ends.kafka, GROUP, [*topics.EVENT_TOPICS, topics.REJECTS], group_instance_id=GROUP)
        self._writer = producer(ends.kafka, transactional_id=f"sidstream-{GROUP}")
        self._writer.init_transactions(30)
        self._bytes = Bytes(ends.kafka)
        self.clock = LiveClock(ends.kafka, stop, bool(saved.get("live")))
        self._rejected = msgspec.json.Decoder(Rejected)
        self._suspects = Suspects()
        self._buried: OrderedDict[Place, None] = OrderedDict()
        self.counters.dead_letters.clear()
        for letter in buried(ends.kafka):
            self._remember(letter)
        self._committed_at = time.monotonic()
        self._uncommitted: dict[tuple[str, int], int] = {}

    def judge(self, message: Message) -> DeadLetter | None:
        """The dead letter of a record, if it gets one here."""
        topic, partition, offset = message.topic() or "", message.partition() or 0, message.offset() or 0
        body, appended = message.value(), message.timestamp()[1]
        if topic == topics.REJECTS:
            return self._complete(self._rejected.decode(body or b"{}"))
        what = verdict(body)
        self.counters.saw(topic, partition, offset, what)
        if what == "invisible":
            return dead_letter(topic, partition, offset, reason_of(topic, body, appended, self._attribution_ms), body)
        if what == "row":
            self.clock.saw(appended)
            if body and fault_of(topic, body) is not None:
                self._suspects.keep((topic, partition, offset), body, appended)
        return None

    def _complete(self, rejected: Rejected) -> DeadLetter | None:
        place = (rejected.topic, rejected.partition, rejected.offset)
        if place in self._buried:
            return None
        body, appended = self._suspects.take(place) or self._bytes.fetch(*place) or (None, 0)
        if body is None:
            return dead_letter(*place, f"{rejected.reason}; its bytes are no longer kept", None)
        if rejected.reason != NOT_USABLE:
            return dead_letter(*place, rejected.reason, body)
        return dead_letter(*place, reason_of(rejected.topic, body, appended, self._attribution_ms), body)

    def _remember(self, letter: DeadLetter) -> None:
        self.counters.buried(letter.topic, letter.partition)
        self._buried[letter.topic, letter.partition, letter.offset] = None
        if len(self._buried) > REMEMBERED:
            self._buried.popitem(last=False)

    def step(self, messages: Sequence[Message]) -> None:
        """Judge a batch and commit it."""
        letters: list[DeadLetter] = []
        for message in messages:
            if message.error() is not None:
                log.warning('event=read_failed reason="%s"', message.error())
                continue
            letter = self.judge(message)
            if letter is not None:
                self._remember(letter)
                letters.append(letter)
            self._uncommitted[message.topic() or "", message.partition() or 0] = (message.offset() or 0) + 1
        if letters:
            self.save()  # what was counted is not counted again if this process ends between the two
            self._bury(letters)
        elif self._uncommitted and time.monotonic() - self._committed_at > QUIET_S:
            self.save()
            self._commit()

    def _commit(self) -> None:
        """Commit offsets that no dead letter depends on; a broker that is away gets them with the next ones."""
        self._committed_at = time.monotonic()
        try:
            self._reader.commit(offsets=self._offsets(), asynchronous=False)
        except KafkaException as error:
            log.warning('event=commit_postponed reason="%s"', error.args[0].str())
            return
        self._settled()

    def _bury(self, letters: Sequence[DeadLetter]) -> None:
        self._writer.begin_transaction()
        for letter in letters:
            self._writer.produce(topics.DEAD_LETTERS, encode(letter), f"{letter.topic}-{letter.partition}-{letter.offset}")
        self._writer.send_offsets_to_transaction(self._offsets(), self._reader.consumer_group_metadata(), 30)
        self._writer.commit_transaction(30)
        self._settled()

    def _offsets(self) -> list[TopicPartition]:
        return [TopicPartition(topic, partition, offset) for (topic, partition), offset in self._uncommitted.items()]

    def _settled(self) -> None:
        self._uncommitted.clear()
        self._committed_at = time.monotonic()
        self.save()

    def save(self) -> None:
        write_json(self._state, {"at": time.time(), "live": self.clock.live.is_set(), "counters": self.counters.as_dict()})

    def read(self) -> list[Message]:
        return self._reader.consume(BATCH, 0.2)

    def close(self) -> None:
        if self._uncommitted:
            self._commit()
        self._reader.close()


def main(settings: Settings, ends: Endpoints, stop: Stop) -> None:
    """Judge until stopped. A transaction that fails ends the process; the next one begins at what was committed."""
    inspection = Inspection(ends, stop, round(settings.samples.attribution_window_s * 1000))
    inspection.clock.start()
    inspection.save()
    ready(ends.home, "inspector")
    while not stop.is_set():
        try:
            inspection.step(inspection.read())
        except KafkaException as error:
            raise ConnectionError(f"Kafka: {error.args[0].str()}") from error
    inspection.close()
    inspection.clock.join(5)


@click.command()
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def command(config: Path | None) -> None:
    """Write dead letters, and keep the live clock.

    Reads the event topics independently of Flink: what is not JSON is a dead letter with its raw bytes; what Flink rejects gets its
    bytes and a readable reason. Sends heartbeats in wall-clock time once live traffic was seen.
    """
    run("inspector", main, config)
